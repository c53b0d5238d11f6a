"""The route of breakers."""

from fastapi import APIRouter

from api.deps import Operator, ask
from api.schemas.holds import BreakerOut, BreakerPage
from outbox import queries

router = APIRouter(prefix="/v1/breakers", tags=["breakers"])


@router.get("")
def list_breakers(who: Operator) -> BreakerPage:  # noqa: ARG001 - operators only
    """The backends that workers cannot reach, the longest outage first."""
    return BreakerPage(items=[BreakerOut(**vars(row)) for row in ask(queries.list_breakers)])
