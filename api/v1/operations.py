"""Routes of bulk work: each a dry run first, then an operation that workers advance."""

from typing import Annotated

from fastapi import APIRouter, Path, Query, Response

from api.deps import Operator, ask
from api.schemas.fields import Reason, Word
from api.schemas.operations import (
    Begun,
    Offboard,
    OffboardPreview,
    OperationFilter,
    OperationOut,
    OperationPage,
    OperationStoryOut,
    RedriveMany,
    RedrivePreview,
)
from outbox import db, operations, queries

router = APIRouter(prefix="/v1", tags=["operations"])

OperationId = Annotated[int, Path(ge=1, le=2**63 - 1, description="the operation's number")]


@router.post("/jobs/redrive", responses={202: {"model": Begun}})
def redrive_many(body: RedriveMany, who: Operator, response: Response) -> RedrivePreview | Begun:
    """Re-drive all stuck jobs that the filter finds: 200 with what it would be, or 202 with the operation.

    One job of each backend goes first; the others follow, at `rate`, when it has succeeded.
    """
    wanted = body.filter.seen_by(None)
    if body.dry_run:
        with db.snapshot() as session:
            return RedrivePreview.of(operations.preview_redrive(session, wanted))
    with db.transaction() as session:
        begun = operations.begin_redrive(
            session, wanted, reason=body.reason, actor=who.actor, digest=body.digest or "", rate=body.rate
        )
    response.status_code = 202
    return Begun(operation=OperationOut.of(begun))


# As a path: a tenant's name may have a slash in it.
@router.post("/tenants/{tenant:path}/offboard", responses={202: {"model": Begun}})
def offboard(tenant: Word, body: Offboard, who: Operator, response: Response) -> OffboardPreview | Begun:
    """Delete all that a tenant has: 200 with what it would be, or 202 with the operation.

    Protected resources are left, and reported. What the tenant makes after the dry run is not part of it: made before
    the real run it is a 409, made later it stays. Revoke the tenant's tokens first.
    """
    if body.dry_run:
        with db.snapshot() as session:
            return OffboardPreview.of(operations.preview_offboard(session, tenant))
    with db.transaction() as session:
        begun = operations.begin_offboard(
            session,
            tenant,
            expected_count=-1 if body.expected_count is None else body.expected_count,
            reason=body.reason,
            actor=who.actor,
            digest=body.digest or "",
        )
    response.status_code = 202
    return Begun(operation=OperationOut.of(begun))


@router.get("/operations")
def list_operations(_: Operator, wanted: Annotated[OperationFilter, Query()]) -> OperationPage:
    """Newest first."""
    page = ask(lambda session: queries.list_operations(session, cursor=wanted.cursor, limit=wanted.limit))
    return OperationPage(items=[OperationOut.of(row) for row in page.items], next_cursor=page.next_cursor)


@router.get("/operations/{operation_id}")
def show(operation_id: OperationId, _: Operator) -> OperationStoryOut:
    """One operation, and how far it is."""
    return OperationStoryOut.told(*ask(lambda session: queries.operation(session, operation_id)))


@router.post("/operations/{operation_id}/stop")
def stop(operation_id: OperationId, body: Reason, who: Operator) -> OperationOut:
    """Leave alone what it has not done yet; what it has done goes on. One that has ended is a 409."""
    ended = ask(lambda session: operations.stop(session, operation_id, actor=who.actor, reason=body.reason))
    return OperationOut.of(ended)
