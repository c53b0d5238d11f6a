"""A backend whose server is a Python set: a kind that a third party might have written."""

import uuid
from collections.abc import Callable
from typing import Any

from outbox.rows import Json
from worker.backends import Absent, Observation, Plan, Same, Still, always


class Shelf:
    """A backend whose server is a Python set; `inspect` and `teardown` can be told what to do."""

    def __init__(
        self, *, observable: bool = True, sees: list[Any] | None = None, does: Callable[[], None] | None = None
    ) -> None:
        self.observable = observable
        self.sees = sees
        self.does = does or (lambda: None)
        self.torn: list[int] = []

    def plan(self, resource_id: uuid.UUID, generation: uuid.UUID) -> Plan:
        return Plan({"name": str(resource_id), "generation": str(generation)}, {"password": "p"})

    def provision(self, manifest: Json, credentials: Json) -> Json:
        self.does()
        return manifest

    def adopt(self, manifest: Json, generation: uuid.UUID) -> Json:
        self.does()
        return manifest

    def inspect(self, manifest: Json) -> Observation:
        if self.sees is not None:
            seen = self.sees.pop(0)
            if isinstance(seen, Exception):
                raise seen
            return seen
        return Absent({}) if self.torn else Same({})

    def quarantine(self, manifest: Json, still: Still = always) -> None:
        still()
        self.does()

    def release(self, manifest: Json, still: Still = always) -> None:
        still()
        self.does()

    def teardown(self, manifest: Json, fence: int) -> Json:
        self.does()
        self.torn.append(fence)
        return {"removed": 1}


def fail(error: Exception) -> Callable[[], None]:
    """What a backend does when it raises `error`."""

    def raising() -> None:
        raise error

    return raising
