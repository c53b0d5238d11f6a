"""PostgreSQL: a resource is a database and the role that opens it.

Identity is the database's OID, the cluster's system identifier and a generation comment; OID and comment
survive RENAME, and a database made again under the same name has neither. A database is created under a name
that nothing else can have (`zz_new_<generation>`) and dropped under one (`zz_del_<generation>`), because CREATE
and DROP DATABASE take only a name and run in no transaction: RENAME does, and there identity is checked.

- `session`   connections: timeouts, the lock on an object, transactions, what each failure means
- `blockers`  customers that a session waits for: they are ended
- `slots`     the session that is kept: to look at waits, and for when customers have taken all connection slots
- `waits`     what a session waits for, seen by a second one
- `identity`  what the server shows under a manifest's names, and whether it is the manifest's object
- `endpoint`  the address that customers are given
- `create`    plan, provision
- `adopt`     adopt, tell beforehand what would be refused, let go of it again
- `rights`    what the account must be allowed to do before it adopts
- `quarantine` no login, no connection, no name
- `lock`      the lock on an object, taken over from a worker whose claim is lost
- `notes`     what was there before a quarantine
- `release`   the end of a quarantine
- `prove`     a login of the customer's role
- `attempts`  who tries to log in to what is in quarantine
- `destroy`   teardown
- `pace`      turns of drops on one server
- `heir`      who owns what a dropped role leaves elsewhere
- `grants`    rights of a dropped role that DROP OWNED leaves
- `snapshot`  the final snapshot, and its proof
- `contents`  what a database holds, in numbers that are compared
- `client`    pg_dump and pg_restore
- `memory`    what the server keeps of the control database
- `check`     what is not as it should be on the server
- `objects`   all that bears a mark of ours
- `locate`    an object whose server moved
- `unmarked`  all that bears none; and the size of one object
"""

import datetime as dt
import uuid
from collections.abc import Iterator

from outbox.memory import Memory, Moment
from outbox.rows import Json
from worker.backends import Finding, LoginAttempts, MarkedObject, Observation, Plan, Read, Still, Write, always
from worker.backends.fleet import Measured, UnmarkedObject
from worker.backends.postgres import (
    adopt,
    attempts,
    check,
    create,
    destroy,
    identity,
    locate,
    memory,
    objects,
    prove,
    quarantine,
    release,
    snapshot,
    unmarked,
)
from worker.backends.postgres.endpoint import Public
from worker.backends.postgres.session import CONNECTION_LIMIT, PACE, Server


class Postgres:
    """One cluster, reached through the maintenance database that `dsn` names."""

    observable = True

    options = frozenset({"public_host", "public_port", "sslmode", "connection_limit", "pace"})

    def __init__(
        self,
        dsn: str,
        *,
        protected: frozenset[str] = frozenset(),
        public_host: str | None = None,
        public_port: int | None = None,
        sslmode: str | None = None,
        connection_limit: int = CONNECTION_LIMIT,
        pace: int = PACE,
    ) -> None:
        self._server = Server(dsn, protected, connection_limit, pace)
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
        release.release(self._server, manifest, still)

    def prove(self, manifest: Json, credentials: Json | None) -> Json:
        """See `worker.backends.prove`."""
        return prove.prove(self._server, manifest, credentials)

    def login_attempts(self, manifest: Json, since: dt.datetime) -> LoginAttempts | None:
        """See `worker.backends.login_attempts`."""
        return attempts.login_attempts(self._server, manifest, since)

    def teardown(self, manifest: Json, fence: int) -> Json:  # noqa: ARG002 - identity fences here, not the number
        """See the Protocol."""
        return destroy.teardown(self._server, manifest)

    def snapshot(self, manifest: Json, write: Write, still: Still) -> Json:
        """See `worker.backends.snapshot`."""
        return snapshot.take(self._server, manifest, write, still)

    def verify_snapshot(self, manifest: Json, read: Read, source: Json, still: Still) -> Json:
        """See `worker.backends.verify_snapshot`."""
        return snapshot.verify(self._server, manifest, read, source, still)

    def restore_snapshot(self, manifest: Json, credentials: Json, read: Read, still: Still) -> Json:
        """See `worker.backends.restore_snapshot`."""
        return snapshot.restore(self._server, manifest, credentials, read, still)

    def remember(self, new: Memory, least: Moment | None = None) -> Memory | None:
        """See `worker.backends.remember`."""
        return memory.remember(self._server, new, least)

    def recall(self, installation: uuid.UUID) -> Memory | None:
        """See `worker.backends.recall`."""
        return memory.recall(self._server, installation)

    def server_identity(self) -> str | None:
        """See `worker.backends.server_identity`; with the database that keeps the memory."""
        with self._server.connect() as session:
            return f"{identity.system_identifier(session)}/{session.info.dbname}"

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
