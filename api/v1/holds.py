"""Routes of holds: for operators only."""

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Query

from api.deps import Operator, ask, ask_once, edge
from api.schemas.fields import Number, Reason
from api.schemas.holds import HoldFilter, HoldOut, HoldPage, NewHold
from api.turns import in_turn
from outbox import actions, queries

router = APIRouter(prefix="/v1/holds", tags=["holds"])


@router.get("")
def list_holds(_: Operator, wanted: Annotated[HoldFilter, Query()]) -> HoldPage:
    """The holds in force, or with `released=true` all holds; newest first."""
    page = ask(lambda session: queries.list_holds(session, **wanted.model_dump()))
    return HoldPage(items=[HoldOut.of(row) for row in page.items], next_cursor=page.next_cursor)


@router.post("", status_code=201)
def hold(body: NewHold, who: Operator) -> HoldOut:
    """Let no job in the scope start from now on. A teardown that has started runs to its end."""
    # Not repeated on a lost connection: a second hold would be made, and forgotten at the release.
    made = ask_once(lambda session: actions.hold(session, who, body.scope, body.subject, reason=body.reason))
    return HoldOut.of(made)


@router.post("/{hold_id}/release")
async def release(hold_id: Number, body: Reason, who: Operator) -> HoldOut:
    """End this hold. Another hold over the same scope stays in force."""
    act = partial(actions.release, edge, who, hold_id, reason=body.reason)
    return HoldOut.of(await in_turn(("hold", hold_id), act))
