"""A rewound database, places that are dictionaries, and a recovery from its survey to its end."""

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, text

from outbox import actions, rewinds
from outbox import db as database
from outbox.actions import Edge, Look, Looked, Recovered, Seen, Survey
from outbox.events import Event
from outbox.memory import Memory, Note
from outbox.states import Found

ME = actions.operator_at_a_shell("op")


def _ask(act: Callable[[Connection], Any]) -> Any:
    with database.statement() as session:
        return act(session)


def _transact(act: Callable[[Connection], Any]) -> Any:
    with database.transaction() as session:
        return act(session)


EDGE = Edge(_ask, _transact, lambda: None)


@dataclass
class Places:
    """Servers that are dictionaries: what they remember, what bears a mark on them, and what an inspection finds."""

    memories: dict[str, Memory] = field(default_factory=dict)
    objects: dict[str, list[Seen]] = field(default_factory=lambda: {"pg-main": [], "redis-main": []})
    shared: set[str] = field(default_factory=set)
    away: dict[str, str] = field(default_factory=dict)
    found: dict[str, Found] = field(default_factory=dict)  # by generation; absent where it has none
    inspected: list[str] = field(default_factory=list)
    before_inspection: Callable[[], object] = lambda: None

    def look(
        self, installation: uuid.UUID, keep: Callable[[str, Sequence[Seen]], object], tell: Callable[[str], object]
    ) -> Mapping[str, Looked]:
        tell("looking")
        looked = {rewinds.BROKER: Looked(self.memories.get(rewinds.BROKER))}
        for place, seen in self.objects.items():
            if place in self.away:
                looked[place] = Looked(error=self.away[place])
                continue
            for at in range(0, len(seen), 500):
                keep(place, seen[at : at + 500])
            looked[place] = Looked(self.memories.get(place), place in self.shared)
        return looked

    def inspect(self, name: str, manifest: dict[str, Any]) -> Look:
        self.before_inspection()
        self.inspected.append(name)
        return Look(self.found.get(manifest["generation"], Found.ABSENT), {"looked": name})

    def remember(self, memory: Memory) -> dict[str, str | None]:
        """As the real ones: a place that is away does not take it."""
        for place in [*self.objects, rewinds.BROKER]:
            if place not in self.away:
                self.memories[place] = memory
        return {place: self.away.get(place) for place in [*self.objects, rewinds.BROKER]}


def rewind(db: Connection) -> int:
    """Engage the hold of a rewind, as a worker does that noticed it; the hold's id."""
    rewinds.here(db, [])
    rewinds.engage(db, actor="w", reason="pg-main remembers event 9")
    return db.execute(text("SELECT id FROM holds WHERE cause = 'rewound' AND released_at IS NULL")).scalar_one()


def seen_of(db: Connection, resource: uuid.UUID, **words: Any) -> Seen:
    """A resource's object, as a survey sees it."""
    row = db.execute(text("SELECT generation, manifest FROM resources WHERE id = :id"), {"id": resource}).one()
    return an_object(str(row.generation), **{"names": row.manifest, "resource_id": resource} | words)


def an_object(generation: str | None = None, **words: Any) -> Seen:
    mark = generation or str(uuid.uuid4())
    names = {"database": f"db_{mark[:8]}", "role": f"usr_{mark[:8]}", "generation": mark}
    told = {"names": names, "parts": ("database",), "resource_id": None, "quarantined": False, "why": ""}
    return Seen(mark=mark, **told | words)


def remembering(db: Connection, *notes: tuple[Event | str, uuid.UUID | None, dict[str, Any]]) -> Memory:
    """What a place has that this database has not: these events, one after the other."""
    here = rewinds.here(db, [])
    at = db.execute(text("SELECT now()")).scalar_one()
    made = tuple(
        Note(10**6 + n, f"{n:016x}", at, str(what), resource, detail)
        for n, (what, resource, detail) in enumerate(notes)
    )
    return Memory(here.installation, here.epoch, 10**6 + len(made), "ab" * 32, False, made)


def surveyed(places: Places, *, backend: str | None = None) -> Survey:
    return actions.survey(EDGE, ME, places, lambda _: None, backend=backend)


def decided(places: Places, survey: Survey, *, reason: str = "restored", **said: Any) -> Recovered:
    """Carry out decisions, given as words by class; any other word is the command's."""
    words = {name: said.pop(name) for name in ("without", "tenant", "revoke_before") if name in said}
    wanted = actions.wanted_recovery(survey.digest, list(said.items()), reason=reason, backend=survey.backend, **words)
    return actions.recover(EDGE, ME, places, lambda _: None, wanted)


def recovered(places: Places, **said: Any) -> Recovered:
    """A survey, and these decisions about it."""
    return decided(places, surveyed(places), **said)


def still_held(db: Connection) -> bool:
    return bool(rewinds.rewound(db))
