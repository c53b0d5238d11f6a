"""A backend's server is gone for good: retire it, abandon its teardowns by two operators, or take that back."""

from collections.abc import Callable

from sqlalchemy import Connection, text

from outbox import holds, jobs
from outbox.actions.caller import Edge, Operator, named_operator
from outbox.actions.holds import release
from outbox.actions.jobs import Proposed, proposed
from outbox.approvals import Approval
from outbox.errors import BadRequest, DeprovisionerError, NotRetired
from outbox.holds import Hold
from outbox.rows import Job
from outbox.states import HoldCause, HoldScope


def retire(db: Connection, who: Operator, backend: str, *, reason: str) -> Hold:
    """Let nothing be made, torn down or restored there any more, by a hold of cause `retired`. Raises BadRequest.

    A backend that is retired stays as it is, with its first reason.
    """
    if not holds.known(db, HoldScope.BACKEND, backend):
        raise BadRequest(f"there is no backend {backend!r} here; check the name")
    holds.engage_cause(db, HoldCause.RETIRED, backend, actor=who.actor, reason=reason)
    hold = holds.of_backend(db, HoldCause.RETIRED, backend)
    assert hold is not None  # noqa: S101 - engaged above
    return hold


def unretire(edge: Edge, who: Operator, backend: str, *, reason: str) -> Hold:
    """Take a retirement back, as long as nothing there was abandoned. Raises NotRetired, HasAbandoned."""
    hold = edge.ask(lambda db: holds.of_backend(db, HoldCause.RETIRED, backend))
    if hold is None:
        raise NotRetired(f"backend {backend!r} is not retired")
    return release(edge, who, hold.id, reason=reason)


def abandon(edge: Edge, who: Operator, job_id: int, *, fence: int, reason: str) -> Job | Proposed:
    """End a teardown of a retired backend as abandoned, by two operators with tokens of their own.

    Raises Forbidden, NotFound, NotATeardown, NotRetired, FenceMismatch, Conflict.
    """
    named_operator(who)
    done = edge.ask(lambda db: jobs.abandon(db, job_id, fence=fence, actor=who.actor, reason=reason))
    return proposed(edge, done) if isinstance(done, Approval) else done


_OPEN = text("""
    SELECT id, fence FROM outbox
     WHERE backend = :backend AND kind = 'deprovision' AND state IN ('pending', 'stuck') AND id > :after
     ORDER BY id LIMIT 100""")


def abandon_all(
    edge: Edge, who: Operator, backend: str, *, reason: str, tell: Callable[[str], object]
) -> tuple[int, int, dict[int, str]]:
    """The same for each teardown of a retired backend: how many were abandoned, how many proposed, and refusals by job.

    The second operator's call abandons what the first has proposed within the hour. Raises Forbidden, NotRetired.
    """
    named_operator(who)
    if edge.ask(lambda db: holds.of_backend(db, HoldCause.RETIRED, backend)) is None:
        raise NotRetired(f"backend {backend!r} is not retired (`deprovisioner backends retire`): its jobs go on")
    ended, waiting, refused, after = 0, 0, dict[int, str](), 0
    while rows := edge.ask(lambda db: db.execute(_OPEN, {"backend": backend, "after": after}).all()):  # noqa: B023
        for row in rows:
            after = row.id
            try:
                done = abandon(edge, who, row.id, fence=row.fence, reason=reason)
            except DeprovisionerError as error:
                refused[row.id] = str(error)
                continue
            ended, waiting = (ended, waiting + 1) if isinstance(done, Proposed) else (ended + 1, waiting)
        tell(f"{ended} abandoned, {waiting} proposed")
    return ended, waiting, refused
