"""The route of breakers."""

from fastapi import APIRouter

from api.deps import Operator, ask
from api.schemas.holds import BreakerOut, BreakerPage
from outbox import queries

router = APIRouter(prefix="/v1/breakers", tags=["breakers"])


@router.get("")
def list_breakers(who: Operator) -> BreakerPage:  # noqa: ARG001 - only that it is an operator
    """The backends out of reach, longest first; a backend that is not here answers."""
    return BreakerPage(items=[BreakerOut(**vars(row)) for row in ask(queries.list_breakers)])
