"""All verbs of a backend, for what is true of each."""

import uuid
from collections.abc import Callable
from typing import Any

from outbox.memory import Memory
from worker.backends import Backend, installations, keeps_memory, objects, prove, recall, remember


def every_verb(backend: Backend, manifest: dict[str, Any], credentials: dict[str, Any]) -> list[Callable[[], Any]]:
    """Each verb of the Protocol, to be called on this object."""
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
        lambda: list(objects(backend)),
        *(memory if keeps_memory(backend) else ()),
        lambda: backend.teardown(manifest, 1),
    ]
