"""The routes of reconciliations. They only show: a run needs the backends' addresses, which the API does not have."""

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Query

from api.deps import Operator, ask
from api.schemas.reconcile import FindingListing, ObjectFindingOut, ObjectFindingPage, ReconciliationsOut
from outbox import actions

router = APIRouter(prefix="/v1/reconcile", tags=["reconcile"])


@router.get("")
def show_reconciliations(who: Operator) -> ReconciliationsOut:
    """The last run of each backend, how many differences it found by code, and what is left behind."""
    runs = ask(partial(actions.reconciled, who=who))
    return ReconciliationsOut.of(runs, ask(partial(actions.left_behind, who=who)))


@router.get("/findings")
def list_findings(who: Operator, wanted: Annotated[FindingListing, Query()]) -> ObjectFindingPage:
    """Differences between backends and resources, the oldest first; by default those that stand."""
    page = ask(lambda session: actions.object_findings(session, who, **wanted.meant()))
    return ObjectFindingPage(items=[ObjectFindingOut(**vars(one)) for one in page.items], next_cursor=page.next_cursor)
