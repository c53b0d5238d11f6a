"""S3, and stores that speak it: a resource is a bucket, with all versions of its objects.

Identity is the bucket's name, made from the resource's UUID; its tag `deprovisioner`, which carries the generation; the
account, which every request names as the owner that it expects; and the endpoint, known by an object of the service's
own bucket. S3 has no way to change a bucket only if it is still the same: what is left of that is in docs/backends.md.

- `endpoint`   the dsn, and the address that customers are given
- `session`    requests: timeouts, the expected owner, and what each failure means
- `identity`   what the endpoint shows under a manifest's name, and whether it is the manifest's bucket
- `create`     plan, provision, adopt, unmark
- `policy`     what shuts customers out
- `turns`      whose turn it is to change a policy
- `quarantine` quarantine, release
- `destroy`    teardown
- `locks`      what keeps a version from being deleted, and until when
- `objects`    all buckets that bear a mark of ours, and all others
- `memory`     what the endpoint keeps of the control database
- `rights`     which rights the account lacks
- `check`      what is not as it should be on the endpoint
"""

import uuid
from collections.abc import Iterator

from outbox.memory import Memory, Moment
from outbox.rows import Json
from worker.backends import Finding, MarkedObject, Observation, Plan, Still, always
from worker.backends.fleet import UnmarkedObject
from worker.backends.s3 import check, create, destroy, identity, memory, objects, quarantine
from worker.backends.s3.session import Server


class S3:
    """One endpoint and one account on it; `dsn` is `s3://KEY:SECRET@HOST:PORT/SERVICE-BUCKET?region=…`."""

    observable = True

    def __init__(self, dsn: str, *, protected: frozenset[str] = frozenset()) -> None:
        self._server = Server(dsn, protected)

    def plan(self, resource_id: uuid.UUID, generation: uuid.UUID) -> Plan:
        """See the Protocol; the name contains the resource's UUID, whole."""
        return create.plan(self._server, resource_id, generation)

    def provision(self, manifest: Json, credentials: Json) -> Json:  # noqa: ARG002 - they hold no secret
        """See the Protocol."""
        return create.provision(self._server, manifest)

    def adopt(self, manifest: Json, generation: uuid.UUID) -> Json:
        """See the Protocol."""
        return create.adopt(self._server, manifest, generation)

    def inspect(self, manifest: Json) -> Observation:
        """See the Protocol."""
        return identity.inspect(self._server, manifest)

    def quarantine(self, manifest: Json, still: Still = always) -> None:
        """See the Protocol."""
        quarantine.quarantine(self._server, manifest, still)

    def release(self, manifest: Json, still: Still = always) -> None:
        """See the Protocol."""
        quarantine.release(self._server, manifest, still)

    def teardown(self, manifest: Json, fence: int) -> Json:  # noqa: ARG002 - the tag fences here
        """See the Protocol."""
        return destroy.teardown(self._server, manifest)

    def remember(self, new: Memory, least: Moment | None = None) -> Memory | None:
        """See `worker.backends.remember`."""
        return memory.remember(self._server, new, least)

    def recall(self, installation: uuid.UUID) -> Memory | None:
        """See `worker.backends.recall`."""
        return memory.recall(self._server, installation)

    def server_identity(self) -> str | None:
        """See `worker.backends.server_identity`."""
        return identity.server_id(self._server.session())

    def installations(self) -> list[uuid.UUID]:
        """See `worker.backends.installations`."""
        return memory.installations(self._server)

    def check(self) -> list[Finding]:
        """See `worker.backends.check`."""
        return check.check(self._server)

    def objects(self) -> Iterator[MarkedObject]:
        """See `worker.backends.objects`."""
        return objects.objects(self._server)

    def unmarked(self) -> Iterator[UnmarkedObject]:
        """See `worker.backends.fleet.unmarked`."""
        return objects.unmarked(self._server)

    def adoptable(self, manifest: Json) -> list[Finding]:
        """See `worker.backends.fleet.adoptable`."""
        return create.adoptable(self._server, manifest)

    def pinned(self, manifest: Json) -> Json:
        """See `worker.backends.fleet.pinned`."""
        return create.pinned(self._server, manifest)

    def unmark(self, manifest: Json) -> Json:
        """See `worker.backends.fleet.unmark`."""
        return create.unmark(self._server, manifest)

    def locate(self, manifest: Json) -> Observation:
        """See `worker.backends.fleet.locate`."""
        return identity.locate(self._server, manifest)
