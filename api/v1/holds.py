"""Routes of holds: operators only."""

from contextlib import suppress
from typing import Annotated

from fastapi import APIRouter, Path, Query
from sqlalchemy.exc import SQLAlchemyError

from api.deps import Operator, ask
from api.schemas.fields import Reason
from api.schemas.holds import HoldFilter, HoldOut, HoldPage, NewHold
from outbox import db, holds, jobs, queries
from outbox.doorbell import bell

router = APIRouter(prefix="/v1/holds", tags=["holds"])


@router.get("")
def list_holds(_: Operator, wanted: Annotated[HoldFilter, Query()]) -> HoldPage:
    """Those in force, or with `released=true` all that ever were; newest first."""
    page = ask(lambda session: queries.list_holds(session, **wanted.model_dump()))
    return HoldPage(items=[HoldOut.of(row) for row in page.items], next_cursor=page.next_cursor)


@router.post("", status_code=201)
def engage(body: NewHold, who: Operator) -> HoldOut:
    """Stop every start in the scope: at the next `start`, wherever it is. What is inside a teardown ends it."""
    # Not repeated on a lost connection: it could make two, and one would be forgotten at the release.
    with db.statement() as session:
        made = holds.engage(session, body.scope, body.subject, actor=who.actor, reason=body.reason)
    return HoldOut.of(made)


@router.post("/{hold_id}/release")
def release(hold_id: Annotated[int, Path(ge=1, le=2**63 - 1)], body: Reason, who: Operator) -> HoldOut:
    """End this hold. Another one over the same scope stays in force."""
    released = ask(lambda session: holds.release(session, hold_id, actor=who.actor, reason=body.reason))
    with suppress(SQLAlchemyError):  # a first batch; it is released, and the sweeps see to the rest
        ask(jobs.wake)
    bell.ring()
    return HoldOut.of(released)
