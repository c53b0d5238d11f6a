"""The route of recoveries. It only shows: a token that was revoked since the backup is valid again after a rewind."""

from functools import partial

from fastapi import APIRouter

from api.deps import Operator, ask
from api.schemas.recovery import RecoveryOut
from outbox import actions

router = APIRouter(prefix="/v1/recovery", tags=["recovery"])


@router.get("")
def show_recovery(who: Operator) -> RecoveryOut:
    """Whether the control database went back in time, and what the last survey found and what was decided about it."""
    return RecoveryOut.of(ask(partial(actions.rewind, who=who)))
