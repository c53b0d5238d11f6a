"""A backend whose server is a Python set: a kind that a third party might have written."""

import uuid
from collections.abc import Callable
from typing import Any

from outbox.memory import Memory, Moment, nothing, offered
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


class Remembering(Shelf):
    """A shelf that remembers, by the rule that all places have."""

    def __init__(self, **words: Any) -> None:
        super().__init__(**words)
        self.keeps: dict[uuid.UUID, Memory] = {}
        self.away: Exception | None = None
        self.writes = 0
        self.server: str | None = "s1"

    def remember(self, new: Memory, least: Moment | None = None) -> Memory | None:
        self.writes += 1
        there = self.recall(new.installation)
        left, kept = offered(there, new, least)
        if left is not None:
            self.keeps[new.installation] = left
        return None if kept else left or nothing(new.installation)

    def recall(self, installation: uuid.UUID) -> Memory | None:
        if self.away:
            raise self.away
        return self.keeps.get(installation)

    def installations(self) -> list[uuid.UUID]:
        return [*self.keeps]

    def server_identity(self) -> str | None:
        return self.server


def fail(error: Exception) -> Callable[[], None]:
    """What a backend does when it raises `error`."""

    def raising() -> None:
        raise error

    return raising
