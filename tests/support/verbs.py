"""All verbs of a backend, for what is true of each."""

import uuid
from collections.abc import Callable
from typing import Any

from worker.backends import Backend, objects, prove


def every_verb(backend: Backend, manifest: dict[str, Any], credentials: dict[str, Any]) -> list[Callable[[], Any]]:
    """Each verb of the Protocol, to be called on this object."""
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
        lambda: backend.teardown(manifest, 1),
    ]
