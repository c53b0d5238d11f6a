"""Hold back what would start, and release it."""

from contextlib import suppress

from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from outbox import holds, jobs
from outbox.actions.caller import Edge, Operator
from outbox.holds import Hold
from outbox.states import HoldScope


def hold(db: Connection, who: Operator, scope: HoldScope, subject: str | None, *, reason: str) -> Hold:
    """Let no job in the scope start until the hold is released. A call that is repeated makes a second hold.

    Raises BadRequest.
    """
    return holds.engage(db, scope, subject, actor=who.actor, reason=reason)


def release(edge: Edge, who: Operator, hold_id: int, *, reason: str) -> Hold:
    """End a hold, and wake the jobs that waited for it. Raises NotFound, AlreadyReleased."""
    released = edge.ask(lambda db: holds.release(db, hold_id, actor=who.actor, reason=reason))
    with suppress(SQLAlchemyError):  # the hold is released, and this wakes the first batch: the sweeps wake the rest
        edge.ask(jobs.wake)
    edge.ring()
    return released
