"""The platform's own provisioner, over HTTP: signed requests to it, one path a verb. docs/backends.md is the contract.

The provisioner says who it is and what it can do in a capabilities document. It keeps the generation with each object,
and compares it before it acts; this kind compares what the provisioner shows with the manifest all the same.

- `endpoint`    the dsn
- `client`      signed requests, bounded answers
- `provisioner` the capabilities, and what each answer means
- `verbs`       plan, provision, adopt, inspect, quarantine, release, prove, teardown
- `inventory`   all objects, objects on a server that moved, adoption beforehand, unmarking
- `check`       what is not as it should be
"""

import uuid
from collections.abc import Iterator

from outbox.rows import Json
from worker.backends import Finding, MarkedObject, Observation, Plan, Still, always
from worker.backends.webhook import check, endpoint, inventory, verbs
from worker.backends.webhook.provisioner import Provisioner


class Webhook:
    """One provisioner; `dsn` is its address with `?secret=whsec_…`, the secret of the signatures."""

    def __init__(self, dsn: str, *, protected: frozenset[str] = frozenset()) -> None:
        self._provisioner = Provisioner(endpoint.parse(dsn), protected)

    @property
    def observable(self) -> bool:
        """See the Protocol: it declares `inspect`, or status URLs."""
        return self._provisioner.document().observable

    def plan(self, resource_id: uuid.UUID, generation: uuid.UUID) -> Plan:
        """See the Protocol; the name contains the resource's UUID, whole."""
        return verbs.plan(self._provisioner, resource_id, generation)

    def provision(self, manifest: Json, credentials: Json) -> Json:
        """See the Protocol."""
        return verbs.provision(self._provisioner, manifest, credentials)

    def adopt(self, manifest: Json, generation: uuid.UUID) -> Json:
        """See the Protocol."""
        return verbs.adopt(self._provisioner, manifest, generation)

    def inspect(self, manifest: Json) -> Observation:
        """See the Protocol."""
        return verbs.inspect(self._provisioner, manifest)

    def quarantine(self, manifest: Json, still: Still = always) -> None:
        """See the Protocol."""
        verbs.quarantine(self._provisioner, manifest, still)

    def release(self, manifest: Json, still: Still = always) -> None:
        """See the Protocol."""
        verbs.release(self._provisioner, manifest, still)

    def prove(self, manifest: Json, credentials: Json | None) -> Json:
        """See `worker.backends.prove`."""
        return verbs.prove(self._provisioner, manifest, credentials)

    def teardown(self, manifest: Json, fence: int) -> Json:
        """See the Protocol."""
        return verbs.teardown(self._provisioner, manifest, fence)

    def server_identity(self) -> str | None:
        """See `worker.backends.server_identity`."""
        return self._provisioner.document().server

    def check(self) -> list[Finding]:
        """See `worker.backends.check`."""
        return check.check(self._provisioner)

    def objects(self) -> Iterator[MarkedObject]:
        """See `worker.backends.objects`."""
        return inventory.objects(self._provisioner)

    def locate(self, manifest: Json) -> Observation:
        """See `worker.backends.fleet.locate`."""
        return inventory.locate(self._provisioner, manifest)

    def adoptable(self, manifest: Json) -> list[Finding]:
        """See `worker.backends.fleet.adoptable`."""
        return inventory.adoptable(self._provisioner, manifest)

    def unmark(self, manifest: Json) -> Json:
        """See `worker.backends.fleet.unmark`."""
        return inventory.unmark(self._provisioner, manifest)
