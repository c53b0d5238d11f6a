"""A backend whose server moved, as the outbox sees it: a server that is a dictionary, and a rebind of it."""

import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from outbox import actions
from outbox.actions import At, Comparison, Look, Move, Rebound
from outbox.memory import Memory
from outbox.rows import Json
from outbox.states import Found
from tests.support.recoveries import EDGE, ME

GONE = "shut down: CHG-42"


@dataclass
class Servers:
    """The new server: which object it has under each generation; what it remembers."""

    identity: str | None = "new/1"
    has: dict[str, Json] = field(default_factory=dict)  # manifests on the new server, by generation
    differs: dict[str, str] = field(default_factory=dict)  # why, by generation
    absent: Json | None = field(default_factory=lambda: {"system_identifier": 2})
    away: str = ""
    memory: Memory | None = None
    before: Callable[[], object] = lambda: None

    def locate(self, name: str, manifest: Json) -> Look:
        self.before()
        generation = manifest["generation"]
        if self.away:
            return Look(Found.UNAVAILABLE, {"error": self.away})
        if generation in self.differs:
            return Look(Found.DIFFERENT, {"why": self.differs[generation]})
        if generation in self.has:
            return Look(Found.SAME, {"manifest": self.has[generation]})
        return Look(Found.ABSENT, {} if self.absent is None else {"manifest": manifest | self.absent})

    def server(self, name: str, installation: uuid.UUID) -> At:
        return At(self.identity, self.memory, keeps_memory=True)

    def remember(self, memory: Memory) -> dict[str, str | None]:
        self.memory = memory
        return {"pg-main": None, "pg-eu": None}

    def take(self, manifest: Json, **numbers: Any) -> Json:
        """The object is there, with these numbers."""
        self.has[manifest["generation"]] = now = manifest | {"system_identifier": 2} | numbers
        return now


PG_MAIN = Move("pg-main", "postgres")


def dry_run(servers: Servers, move: Move = PG_MAIN) -> Comparison:
    return actions.compare(EDGE, ME, servers, lambda _: None, move)


def rebound(
    servers: Servers,
    move: Move = PG_MAIN,
    *,
    digest: str | None = None,
    old_server: str | None = GONE,
) -> Rebound:
    """The real run of a dry run."""
    digest = digest or dry_run(servers, move).digest
    return actions.rebind(EDGE, ME, servers, lambda _: None, move, digest=digest, reason="moved", old_server=old_server)
