"""MariaDB: a resource is a schema and the user that opens it.

A schema cannot be renamed, and its owner can drop it, make it again, and change its comment. So identity has three
parts: the mark at the end of the schema's comment; a role, named like the mark, that the user was granted, and that
only an administrator can take from it; a record in the service's own schema, which has the server's identity too.

- `endpoint`   the service's address, and the one that customers are given
- `session`    sessions: pinned settings, timeouts, only a writable primary
- `errors`     what each failure means
- `names`      names in statements
- `registry`   the service's own schema: server, records, locks
- `rights`     who has which rights on a schema
- `identity`   what the server shows under a manifest's names, and whether it is the manifest's object
- `sessions`   ends customers' sessions
- `create`     plan, provision
- `adopt`      adopt, what stands against it, and the way out of management
- `quarantine` no login, no right, no session; and the end of that
- `prove`      a login of the customer's user
- `obstacles`  what keeps a schema from being dropped
- `destroy`    teardown
- `memory`     what the server keeps of the control database
- `check`      what is not as it should be on the server
- `objects`    all that bears a mark of ours, and all that bears none
"""

import uuid
from collections.abc import Iterator

from outbox.memory import Memory, Moment
from outbox.rows import Json
from worker.backends import Finding, MarkedObject, Observation, Plan, Still, always
from worker.backends.fleet import Measured, UnmarkedObject
from worker.backends.mysql import (
    adopt,
    check,
    create,
    destroy,
    identity,
    memory,
    objects,
    prove,
    quarantine,
    registry,
)
from worker.backends.mysql.endpoint import Public
from worker.backends.mysql.session import CONNECTION_LIMIT, INSPECT_SECONDS, Server


class Mysql:
    """One server; `dsn` is a mysql:// URL whose path is the service's own schema."""

    observable = True

    options = frozenset({"public_host", "public_port", "sslmode", "connection_limit"})

    def __init__(
        self,
        dsn: str,
        *,
        protected: frozenset[str] = frozenset(),
        public_host: str | None = None,
        public_port: int | None = None,
        sslmode: str | None = None,
        connection_limit: int = CONNECTION_LIMIT,
    ) -> None:
        self._server = Server(dsn, protected, connection_limit)
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
        """See `worker.backends.fleet.pinned`; objects have no numbers here, so it is the server alone."""
        return manifest | {"server": manifest.get("server") or self.server_identity()}

    def unmark(self, manifest: Json) -> Json:
        """See `worker.backends.fleet.unmark`."""
        return adopt.unmark(self._server, manifest)

    def inspect(self, manifest: Json) -> Observation:
        """See the Protocol."""
        return identity.inspect(self._server, manifest)

    def locate(self, manifest: Json) -> Observation:
        """See `worker.backends.fleet.locate`."""
        return objects.locate(self._server, manifest)

    def quarantine(self, manifest: Json, still: Still = always) -> None:
        """See the Protocol."""
        quarantine.quarantine(self._server, manifest, still)

    def release(self, manifest: Json, still: Still = always) -> None:
        """See the Protocol."""
        quarantine.release(self._server, manifest, still)

    def prove(self, manifest: Json, credentials: Json | None) -> Json:
        """See `worker.backends.prove`."""
        return prove.prove(self._server, manifest, credentials)

    def teardown(self, manifest: Json, fence: int) -> Json:  # noqa: ARG002 - identity fences here, not the number
        """See the Protocol."""
        return destroy.teardown(self._server, manifest)

    def remember(self, new: Memory, least: Moment | None = None) -> Memory | None:
        """See `worker.backends.remember`."""
        return memory.remember(self._server, new, least)

    def recall(self, installation: uuid.UUID) -> Memory | None:
        """See `worker.backends.recall`."""
        return memory.recall(self._server, installation)

    def installations(self) -> list[uuid.UUID]:
        """See `worker.backends.installations`."""
        return memory.installations(self._server)

    def server_identity(self) -> str | None:
        """See `worker.backends.server_identity`."""
        with self._server.connect(seconds=INSPECT_SECONDS) as session:
            return registry.server_id(session)

    def check(self) -> list[Finding]:
        """See `worker.backends.check`."""
        return check.check(self._server)

    def objects(self) -> Iterator[MarkedObject]:
        """See `worker.backends.objects`."""
        return objects.objects(self._server)

    def unmarked(self) -> Iterator[UnmarkedObject]:
        """See `worker.backends.fleet.unmarked`."""
        return objects.unmarked(self._server)

    def measured(self, names: Json) -> Measured:
        """See `worker.backends.fleet.measured`."""
        return objects.measured(self._server, names)
