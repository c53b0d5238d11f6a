"""Redis and Valkey: a resource is an ACL user and the keys under its prefix.

Identity has two halves: the generation key `deprovisioner:gen:<prefix>`, which a Lua script compares before each batch
of UNLINK; and a channel pattern that carries the generation on the ACL user. The tenant can change neither.
An ACL user `deprovisioner:server:<uuid>` that may do nothing names the server: its run id changes at every restart, and
keys are replicated, evicted and flushed.

- `session`    clients: timeouts, and what each failure means
- `keys`       the keys under a prefix: scanned and unlinked in batches
- `identity`   what the server shows under a manifest's names, and whether it is the manifest's namespace
- `endpoint`   the address that customers are given
- `commands`   what a customer may run
- `rights`     what an adopted user may do
- `create`     plan, provision
- `adopt`      adopt, tell beforehand what would be refused, let go of it again
- `changes`    changes of a user, fenced against workers that stood still
- `quarantine` quarantine, release, prove
- `destroy`    teardown
- `logins`     who tries to log in to a user in quarantine
- `snapshot`   the final snapshot, and its proof
- `memory`     what the server keeps of the control database
- `check`      what is not as it should be on the server
- `objects`    all that bears a mark of ours
- `locate`     a namespace whose server moved
"""

import datetime as dt
import uuid
from collections.abc import Iterator

from outbox.memory import Memory, Moment
from outbox.rows import Json
from worker.backends import Finding, LoginAttempts, MarkedObject, Observation, Plan, Read, Still, Write, always
from worker.backends.fleet import Measured, UnmarkedObject
from worker.backends.redis import (
    adopt,
    check,
    create,
    destroy,
    identity,
    locate,
    logins,
    memory,
    objects,
    quarantine,
    snapshot,
    unmarked,
)
from worker.backends.redis.endpoint import Public
from worker.backends.redis.session import PACE, Server


class Redis:
    """One server; `dsn` is a redis:// URL whose user may manage ACLs."""

    observable = True

    options = frozenset({"public_host", "public_port", "scripting", "sslmode", "volatile_users", "pace"})

    def __init__(
        self,
        dsn: str,
        *,
        protected: frozenset[str] = frozenset(),
        public_host: str | None = None,
        public_port: int | None = None,
        sslmode: str | None = None,
        volatile_users: bool = False,
        scripting: bool = False,
        pace: int = PACE,
    ) -> None:
        self._server = Server(dsn, protected, volatile_users=volatile_users, scripting=scripting, pace=pace)
        self._public = Public(public_host, public_port, sslmode)

    def plan(self, resource_id: uuid.UUID, generation: uuid.UUID) -> Plan:
        """See the Protocol; names contain the resource's UUID, whole."""
        return create.plan(self._server, self._public, resource_id, generation)

    def provision(self, manifest: Json, credentials: Json) -> Json:
        """See the Protocol."""
        return create.provision(self._server, manifest, credentials)

    def adopt(self, manifest: Json, generation: uuid.UUID) -> Json:
        """See the Protocol."""
        return adopt.adopt(self._server, manifest, generation)

    def adoptable(self, manifest: Json) -> list[Finding]:
        """See `worker.backends.fleet.adoptable`."""
        return adopt.adoptable(self._server, manifest)

    def pinned(self, manifest: Json) -> Json:
        """See `worker.backends.fleet.pinned`."""
        return adopt.pinned(self._server, manifest)

    def unmark(self, manifest: Json) -> Json:
        """See `worker.backends.fleet.unmark`."""
        return adopt.unmark(self._server, manifest)

    def inspect(self, manifest: Json) -> Observation:
        """See the Protocol."""
        return identity.inspect(self._server, manifest)

    def quarantine(self, manifest: Json, still: Still = always) -> None:
        """See the Protocol."""
        quarantine.quarantine(self._server, manifest, still)

    def release(self, manifest: Json, still: Still = always) -> None:
        """See the Protocol."""
        quarantine.release(self._server, manifest, still)

    def prove(self, manifest: Json, credentials: Json | None) -> Json:
        """See `worker.backends.prove`."""
        return quarantine.prove(self._server, manifest, credentials)

    def teardown(self, manifest: Json, fence: int) -> Json:  # noqa: ARG002 - the generation key fences here
        """See the Protocol."""
        return destroy.teardown(self._server, manifest)

    def login_attempts(self, manifest: Json, since: dt.datetime) -> LoginAttempts | None:
        """See `worker.backends.login_attempts`."""
        return logins.login_attempts(self._server, manifest, since)

    def snapshot(self, manifest: Json, write: Write, still: Still) -> Json:
        """See `worker.backends.snapshot`."""
        return snapshot.take(self._server, manifest, write, still)

    def verify_snapshot(self, manifest: Json, read: Read, source: Json, still: Still) -> Json:
        """See `worker.backends.verify_snapshot`."""
        return snapshot.verify(self._server, manifest, read, source, still)

    def restore_snapshot(self, manifest: Json, credentials: Json, read: Read, still: Still) -> Json:  # noqa: ARG002
        """See `worker.backends.restore_snapshot`; a namespace is filled by the service's own user."""
        return snapshot.restore(self._server, manifest, read, still)

    def remember(self, new: Memory, least: Moment | None = None) -> Memory | None:
        """See `worker.backends.remember`."""
        return memory.remember(self._server, new, least)

    def recall(self, installation: uuid.UUID) -> Memory | None:
        """See `worker.backends.recall`."""
        return memory.recall(self._server, installation)

    def server_identity(self) -> str | None:
        """See `worker.backends.server_identity`."""
        with self._server.connect() as session:
            return " ".join(identity.server_ids(session)) or None

    def installations(self) -> list[uuid.UUID]:
        """See `worker.backends.installations`."""
        return memory.installations(self._server)

    def check(self) -> list[Finding]:
        """See `worker.backends.check`."""
        return check.check(self._server)

    def objects(self) -> Iterator[MarkedObject]:
        """See `worker.backends.objects`."""
        return objects.objects(self._server)

    def locate(self, manifest: Json) -> Observation:
        """See `worker.backends.fleet.locate`."""
        return locate.locate(self._server, manifest)

    def unmarked(self) -> Iterator[UnmarkedObject]:
        """See `worker.backends.fleet.unmarked`."""
        return unmarked.unmarked(self._server)

    def measured(self, names: Json) -> Measured:
        """See `worker.backends.fleet.measured`."""
        return unmarked.measured(self._server, names)
