"""Survey after a rewind, decide, and announce a restore: only for an operator at a shell, not with a token.

A restored database takes tokens for valid that were revoked since. So over HTTP a recovery is only shown.
"""

import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

from sqlalchemy import Connection

from outbox import db as database
from outbox import jobs, recovery, rewinds
from outbox.actions.caller import Edge, Operator
from outbox.errors import BadRequest, NotFound
from outbox.memory import Memory
from outbox.recovery import CLASSES, Look, Looked, Seen, Survey, Wanted
from outbox.rows import Json
from outbox.states import Decision

Tell = Callable[[str], object]


class Places(Protocol):
    """The backends and the broker, as only a process with their addresses reaches them (`worker.survey`)."""

    def look(
        self, installation: UUID, keep: Callable[[str, Sequence[Seen]], object], tell: Tell
    ) -> Mapping[str, Looked]:
        """Read each place's memory, and all marked objects, page by page."""

    def inspect(self, name: str, manifest: Json) -> Look:
        """What a backend shows of one object now."""

    def remember(self, memory: Memory) -> Mapping[str, str | None]:
        """Write a memory to each place that keeps one; by place, why it was not kept."""


@dataclass(frozen=True)
class Recovered:
    """The end of a recovery: its survey with what was refused, and the places that did not take the new memory."""

    survey: Survey
    refused: list[Json]
    unwritten: dict[str, str]


def survey(edge: Edge, who: Operator, places: Places, tell: Tell, *, backend: str | None = None) -> Survey:
    """Compare this database with what the backends and their memories know; stores that, and changes nothing else.

    `backend`: only this one, which went back in time. Raises Conflict, NotFound.
    """
    with database.statement() as held, recovery.one_at_a_time(held):
        id, installation = edge.transact(lambda db: recovery.begin_survey(db, backend=backend, actor=who.actor))

        def keep(place: str, seen: Sequence[Seen]) -> None:
            edge.transact(lambda db: recovery.keep_objects(db, id, place, seen))

        looked = places.look(installation, keep, tell)
        tell("comparing")
        edge.transact(lambda db: recovery.end_survey(db, id, looked))
        return _last(edge)


def _last(edge: Edge) -> Survey:
    found = edge.transact(recovery.last)
    if found is None:
        raise NotFound("there is no survey yet: `deprovisioner recover` makes one")
    return found


def recover(edge: Edge, who: Operator, places: Places, tell: Tell, wanted: Wanted) -> Recovered:
    """Carry out what was decided about the last survey, or go on where a run of it stopped, and end the rewind.

    Raises BadRequest, DigestMismatch, Conflict.
    """
    with database.statement() as held, recovery.one_at_a_time(held):
        begun = edge.transact(lambda db: recovery.begin(db, wanted, actor=who.actor))
        for one in CLASSES:
            if begun.finished_at is None and one.name in begun.decisions:
                _work_off(edge, places, tell, begun.id, one, looks=one.looks and begun.decisions[one.name] == "confirm")
        while begun.finished_at is None and (revoked := edge.transact(lambda db: recovery.revoke_tokens(db, begun.id))):
            tell(f"revoked {revoked} tokens")
        edge.transact(lambda db: recovery.finish(db, begun.id))
        unwritten = _remember(edge, places, tell, still=False)
        edge.transact(jobs.wake)
        edge.ring()
        return Recovered(_last(edge), edge.ask(lambda db: recovery.refusals(db, begun.id)), unwritten)


def _work_off(edge: Edge, places: Places, tell: Tell, id: int, one: recovery.ItemClass, *, looks: bool) -> None:
    """Batch after batch. No transaction is open while a backend is asked."""
    done = 0
    while True:
        seen = None
        if looks:
            items = edge.ask(lambda db: recovery.waiting(db, id, one.name))
            seen = {item.n: places.inspect(item.backend, item.detail["manifest"]) for item in items}
        moved = edge.transact(lambda db: recovery.step(db, id, one.name, seen))  # noqa: B023 - called at once
        if not moved:
            return
        done += moved
        tell(f"{one.name}: {done} done")


def _remember(edge: Edge, places: Places, tell: Tell, *, still: bool) -> dict[str, str]:
    """Write where this database is now to all places; returns those that did not take it, which workers then write."""
    memory = edge.transact(lambda db: recovery.memory(db, still=still))
    unwritten = {}
    for place, why in places.remember(memory).items():
        if why is None:
            edge.ask(lambda db: rewinds.wrote(db, place, memory))  # noqa: B023 - called at once
        else:
            unwritten[place] = why
            tell(f"{place} did not take the memory: {why}")
    return unwritten


def announce(edge: Edge, who: Operator, places: Places, tell: Tell, *, reason: str) -> dict[str, str]:
    """Before a planned restore: hold everything, and tell every place to keep still, whichever copy a worker sees.

    Returns the places that could not be told, and why.
    """
    edge.transact(lambda db: recovery.announce(db, actor=who.actor, reason=reason))
    return _remember(edge, places, tell, still=True)


def wanted(
    digest: str,
    decisions: Sequence[tuple[str, str]],
    *,
    reason: str,
    backend: str | None = None,
    without: Sequence[str] = (),
    tenant: str | None = None,
    revoke_before: dt.datetime | None = None,
) -> Wanted:
    """What a person said. Raises BadRequest for a class that is decided twice, or a word that is no decision."""
    chosen: dict[str, Decision] = {}
    for name, word in decisions:
        if name in chosen:
            raise BadRequest(f"--decide {name}: is given twice")
        if word not in list(Decision):
            raise BadRequest(f"--decide {name}={word}: a decision is {', '.join(Decision)}")
        chosen[name] = Decision(word)
    return Wanted(digest, chosen, reason, backend, frozenset(without), tenant, revoke_before)


@dataclass(frozen=True)
class Rewind:
    """Whether the database is rewound, and the last survey. `epoch` is raised by each recovery."""

    rewound: bool
    since: dt.datetime | None
    reason: str | None
    announced_at: dt.datetime | None
    epoch: int | None
    survey: Survey | None


def rewind(db: Connection, who: Operator) -> Rewind:  # noqa: ARG001 - operators only
    """Whether the database is rewound, why, and what the last survey found; `db` is a snapshot."""
    return Rewind(**recovery.state(db), survey=recovery.last(db))
