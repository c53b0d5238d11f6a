"""A backend's server moved: compare, and rebind. It needs the server's address, so only a shell has it."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol
from uuid import UUID

from sqlalchemy import Connection

from outbox import db as database
from outbox import holds, jobs, moves, rewinds
from outbox.actions.caller import Edge, Operator
from outbox.actions.holds import release
from outbox.errors import BadRequest, Conflict, DigestMismatch
from outbox.memory import Memory
from outbox.moves import REWRITTEN, At, Item, Verdict
from outbox.recovery import Look
from outbox.rows import Json
from outbox.states import Found, HoldCause

Tell = Callable[[str], object]
# The memory that the new server has taken, and the server; None where it took none.
Remembered = tuple[Memory, str | None] | None
# A job that had started before the hold may run so long before the rebind gives up; its operator tries again later.
QUIET_SECONDS = 60.0
_POLL_SECONDS = 0.2


class Server(Protocol):
    """The backends of a process that has their addresses (`worker.survey`)."""

    def locate(self, name: str, manifest: Json) -> Look:
        """Where a backend has one object now."""

    def server(self, name: str, installation: UUID) -> At:
        """Which server a backend is on now."""

    def remember(self, memory: Memory) -> Mapping[str, str | None]:
        """Write a memory to each place; by place, why it was not kept."""


@dataclass(frozen=True)
class Move:
    """What is to be rebound: the backend, its kind, and the name that its rows have where that was another one."""

    backend: str
    kind: str
    before: str | None = None

    @property
    def names(self) -> list[str]:
        """The backends whose rows are meant, the new name first."""
        return [self.backend, *([self.before] if self.before else [])]


@dataclass(frozen=True)
class Comparison:
    """What the backend's server shows of all objects, and the digest of what would be rewritten.

    `server_was`: where workers wrote their last memory. `behind`: the server remembers less than was written.
    """

    move: Move
    server: str | None
    server_was: str | None
    remembers: bool
    keeps_memory: bool
    behind: bool
    items: list[Item]
    digest: str

    @property
    def counts(self) -> dict[Verdict, int]:
        """How many objects have each verdict."""
        return {verdict: sum(item.verdict is verdict for item in self.items) for verdict in Verdict}

    @property
    def changed(self) -> list[Item]:
        """What is to be rewritten."""
        return [item for item in self.items if item.verdict in REWRITTEN]

    @property
    def moved(self) -> bool:
        """Whether any object gets another identity, and not only another name of its backend."""
        return any(item.was != item.now for item in self.changed)


@dataclass(frozen=True)
class Rebound:
    """The end of a rebind: what was compared under its hold, and why the server's memory was not written, if so."""

    comparison: Comparison
    unwritten: str


def compare(edge: Edge, who: Operator, servers: Server, tell: Tell, move: Move) -> Comparison:  # noqa: ARG001 - operators only
    """Compare every object of a backend with its server, by mark and generation; changes nothing.

    Raises BadRequest, Conflict where an object could not be read: an error is no finding.
    """
    edge.ask(lambda db: moves.refuse_unfit(db, move.backend, move.kind, move.before))
    here = edge.transact(lambda db: rewinds.here(db, []))
    at = servers.server(move.backend, here.installation)
    if at.error:
        raise Conflict(f"backend {move.backend!r} could not be read, so nothing was compared: {at.error}")
    items: list[Item] = []
    while rows := edge.ask(lambda db: moves.page(db, move.names, items[-1].id if items else None)):
        for row in rows:
            look = servers.locate(move.backend, row.manifest)
            if look.found is Found.UNAVAILABLE:
                raise Conflict(f"resource {row.id} could not be compared, so nothing was: {look.seen['error']}")
            items.append(moves.judge(row, move.backend, look.found, look.seen))
        tell(f"compared {len(items)} objects")
    return Comparison(
        move=move,
        server=at.server,
        server_was=here.servers.get(move.backend) or here.servers.get(move.before or ""),
        remembers=at.memory is not None,
        keeps_memory=at.keeps_memory,
        behind=any(moves.behind(here, name, at) for name in move.names),
        items=items,
        digest=moves.digest(move.backend, at.server, items),
    )


def rebind(
    edge: Edge,
    who: Operator,
    servers: Server,
    tell: Tell,
    move: Move,
    *,
    digest: str,
    reason: str,
    old_server: str | None,
) -> Rebound:
    """Give every object that was found whole its new identity, under a hold of its backend.

    After a kill, the same call goes on.
    `old_server`: how the operator knows that the old server is gone. Raises BadRequest without it, DigestMismatch where
    the comparison is not the one of the dry run, Conflict where a job runs on too long.
    """
    with database.statement() as held, moves.one_at_a_time(held):
        edge.ask(lambda db: moves.refuse_unfit(db, move.backend, move.kind, move.before))
        edge.transact(lambda db: _hold(db, move, actor=who.actor, reason=f"rebind {digest}: {reason}"))
        try:
            _quiet(edge, move.names, tell)
            now = compare(edge, who, servers, tell, move)
            _refuse(now, digest, old_server)
        except (BadRequest, Conflict):
            _let_go(edge, who, move, said="refused: nothing was rewritten")
            raise
        detail = {"digest": digest, "server": now.server, "old_server": old_server}
        _rewrite(edge, who, tell, now, reason=reason, detail=detail)
        remembered, unwritten = _remember(edge, servers, now)
        said = f"rebound {len(now.changed)} objects, digest {digest}: {reason}"
        _let_go(edge, who, move, said=said, remembered=remembered)
        return Rebound(now, unwritten)


def _let_go(edge: Edge, who: Operator, move: Move, *, said: str, remembered: Remembered = None) -> None:
    """Take the new server's memory for the backend's, and release the holds, which wakes what waited for them."""
    edge.transact(lambda db: moves.settle(db, move.names, remembered))
    for name in move.names:
        if hold := edge.ask(partial(holds.of_backend, cause=HoldCause.REBIND, backend=name)):
            release(edge, who, hold.id, reason=said)


def _hold(db: Connection, move: Move, *, actor: str, reason: str) -> None:
    for name in move.names:
        holds.engage_cause(db, HoldCause.REBIND, name, actor=actor, reason=reason)


def _quiet(edge: Edge, backends: Sequence[str], tell: Tell) -> None:
    """Wait for what had started before the hold. Raises Conflict."""
    deadline, told = time.monotonic() + QUIET_SECONDS, None
    while (job := edge.ask(lambda db: moves.at_work(db, backends))) is not None:
        if job.id != told:
            tell(f"waiting for job {job.id}, which runs under a lease until {job.lease_expires_at:%H:%M:%S}")
            told = job.id
        if time.monotonic() > deadline:
            raise Conflict(f"job {job.id} still runs: nothing was rewritten; run the command again after its end")
        time.sleep(_POLL_SECONDS)


def _refuse(now: Comparison, digest: str, old_server: str | None) -> None:
    if now.digest != digest:
        raise DigestMismatch(
            f"this is not what the dry run showed (it would bind {digest.partition('-')[0]} objects, and now "
            f"{now.digest.partition('-')[0]}): nothing was rewritten; set a hold on the "
            "backend, and make another dry run"
        )
    if now.moved and old_server is None:
        raise BadRequest(
            "--old-server: say how you know that the old server is gone, or closed for good; it is stored for each "
            "object"
        )


def _rewrite(edge: Edge, who: Operator, tell: Tell, now: Comparison, *, reason: str, detail: Json) -> None:
    """Batch after batch, each in a transaction of its own. Raises Conflict; then the holds stay for the next run."""
    changed, done = now.changed, 0
    for at in range(0, len(changed), moves.PAGE):
        bound = {item.id: (item.was, item.now or {}) for item in changed[at : at + moves.PAGE]}
        rewritten = edge.transact(
            partial(jobs.rebind, bound=bound, backend=now.move.backend, actor=who.actor, reason=reason, detail=detail)
        )
        done += len(rewritten)
        if left := sorted(bound.keys() - rewritten):
            raise Conflict(
                f"resource {left[0]} has changed, its job runs, or the hold was released: {done} objects were "
                "rewritten, and the others are as they were; run the command again"
            )
        tell(f"rewrote {done} of {len(changed)}")


def _remember(edge: Edge, servers: Server, now: Comparison) -> tuple[Remembered, str]:
    """Have the new server remember where this database is; what it took, and why it did not."""
    if not now.keeps_memory or now.behind:
        return None, ""
    memory = edge.ask(lambda db: replace(rewinds.here(db, []).memory(), notes=rewinds.notes(db)))
    why = servers.remember(memory).get(now.move.backend)
    return ((memory, now.server), "") if why is None else (None, why)
