"""RabbitMQ: a resource is a vhost and the user that opens it, over the management API.

Vhost and user each bear a tag with the generation, which only administrators can change. The management API takes no
condition and knows no transaction: so identity is read just before each change, nothing is ever made again under a
name, and what is left of the race is said in docs/backends.md. It keeps no memory of the control database for the same
reason: reading, deciding and writing could not be one step.

- `session`     the API: timeouts, bounded answers, and what each failure means
- `marks`       the tags that are ours
- `identity`    the cluster, its authority, and whether a manifest's names are the manifest's vhost and user
- `endpoint`    the address that customers are given
- `create`      plan and provision
- `adopt`       adopt, say what would be adopted, and let go
- `rights`      what the service's account may do, and what a customer's user may not
- `turns`       whose turn it is to change an object
- `connections` the clients of a vhost, closed
- `permissions` what users may do in a vhost, taken away and given back
- `quarantine`  quarantine and release
- `prove`       a login after a release
- `destroy`     teardown
- `objects`     all that bears a mark of ours, and all that does not
- `check`       what is not as it should be on the server
"""

import uuid
from collections.abc import Iterator

from outbox.rows import Json
from worker.backends import Finding, MarkedObject, Observation, Plan, Still, always
from worker.backends.fleet import UnmarkedObject
from worker.backends.rabbitmq import adopt, check, create, destroy, identity, objects, prove, quarantine
from worker.backends.rabbitmq.endpoint import Public
from worker.backends.rabbitmq.session import Server


class Rabbitmq:
    """One server or cluster; `dsn` is the management API's http(s):// URL, its user an administrator."""

    observable = True

    options = frozenset({"connection_limit", "public_host", "public_port", "sslmode"})

    def __init__(
        self,
        dsn: str,
        *,
        protected: frozenset[str] = frozenset(),
        public_host: str | None = None,
        public_port: int | None = None,
        sslmode: str | None = None,
        connection_limit: int | None = None,
    ) -> None:
        self._server = Server(dsn, protected)
        self._public = Public(public_host, public_port, sslmode)
        self._connection_limit = connection_limit

    def plan(self, resource_id: uuid.UUID, generation: uuid.UUID) -> Plan:
        """See the Protocol; names contain the resource's UUID, whole."""
        return create.plan(self._server, self._public, resource_id, generation)

    def provision(self, manifest: Json, credentials: Json) -> Json:
        """See the Protocol."""
        return create.provision(self._server, manifest, credentials, self._connection_limit)

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
        return identity.locate(self._server, manifest)

    def quarantine(self, manifest: Json, still: Still = always) -> None:
        """See the Protocol."""
        quarantine.quarantine(self._server, manifest, still)

    def release(self, manifest: Json, still: Still = always) -> None:
        """See the Protocol."""
        quarantine.release(self._server, manifest, still)

    def prove(self, manifest: Json, credentials: Json | None) -> Json:
        """See `worker.backends.prove`."""
        return prove.prove(self._server, manifest, credentials)

    def teardown(self, manifest: Json, fence: int) -> Json:  # noqa: ARG002 - the API takes no condition
        """See the Protocol."""
        return destroy.teardown(self._server, manifest)

    def server_identity(self) -> str | None:
        """See `worker.backends.server_identity`."""
        with self._server.connect() as session:
            return identity.server_id(session, identity.nodes(session))

    def check(self) -> list[Finding]:
        """See `worker.backends.check`."""
        return check.check(self._server)

    def objects(self) -> Iterator[MarkedObject]:
        """See `worker.backends.objects`."""
        return objects.objects(self._server)

    def unmarked(self) -> Iterator[UnmarkedObject]:
        """See `worker.backends.fleet.unmarked`."""
        return objects.unmarked(self._server)
