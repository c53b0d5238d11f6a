"""All verbs of a backend, for what is true of each."""

import uuid
from collections.abc import Callable
from typing import Any

from deprovisioner.sdk import Backend, Json, Memory, objects, prove
from worker.backends import installations, keeps_memory, recall, remember


def every_verb(backend: Backend, manifest: Json, credentials: Json) -> list[Callable[[], Any]]:
    """Each verb of the Protocol, and each optional one that the backend has, to be called on this object."""
    remembered = Memory(uuid.uuid4(), 1, 1, "aa")
    memory: list[Callable[[], Any]] = [
        lambda: remember(backend, remembered),
        lambda: recall(backend, remembered.installation),
        lambda: installations(backend),
    ]
    return [
        lambda: backend.plan(uuid.uuid4(), uuid.uuid4()),
        lambda: backend.provision(manifest, credentials),
        lambda: backend.adopt(manifest, uuid.UUID(manifest["generation"])),
        lambda: backend.inspect(manifest),
        lambda: backend.quarantine(manifest),
        lambda: backend.release(manifest),
        lambda: prove(backend, manifest, credentials),
        lambda: prove(backend, manifest, None),
        *([lambda: list(objects(backend))] if hasattr(backend, "objects") else ()),
        *(memory if keeps_memory(backend) else ()),
        lambda: backend.teardown(manifest, 1),
    ]


def acting_verbs(backend: Backend) -> list[Callable[[Json], Any]]:
    """The verbs that change an existing object."""
    return [backend.quarantine, backend.release, lambda manifest: backend.teardown(manifest, 1)]
