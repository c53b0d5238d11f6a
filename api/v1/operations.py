"""Routes of bulk work: first a dry run, then an operation that workers advance."""

from typing import Annotated

from fastapi import APIRouter, Query, Response
from sqlalchemy import Connection

from api.deps import Operator, ask
from api.schemas.fields import Number, Reason, Word
from api.schemas.operations import (
    AdoptMany,
    Begun,
    ObjectFilter,
    ObjectOut,
    ObjectPage,
    Offboard,
    OffboardPreview,
    OperationFilter,
    OperationOut,
    OperationPage,
    OperationStoryOut,
    RedriveMany,
    RedrivePreview,
    RestoreMany,
    RestorePreview,
)
from outbox import actions, adoptions, db, queries
from outbox.states import OperationKind

router = APIRouter(prefix="/v1", tags=["operations"])


@router.post("/jobs/redrive", responses={202: {"model": Begun}})
def redrive_many(body: RedriveMany, who: Operator, response: Response) -> RedrivePreview | Begun:
    """Re-drive the stuck jobs that the filter finds: 200 with the dry run, or 202 with the operation.

    One job of each backend is re-driven first. When it has succeeded, the others of its backend follow at `rate`.
    """
    wanted = actions.chosen(body.filter.meant(), every=body.filter.all)
    if body.dry_run:
        with db.snapshot() as session:
            return RedrivePreview.of(actions.preview_redrive(session, who, wanted))
    with db.transaction() as session:
        begun = actions.begin_redrive(
            session, who, wanted, reason=body.reason, digest=body.digest or "", rate=body.rate
        )
    response.status_code = 202
    return Begun(operation=OperationOut.of(begun))


# A path parameter of several segments: a tenant's name may have a slash in it.
@router.post("/tenants/{tenant:path}/offboard", responses={202: {"model": Begun}})
def offboard(tenant: Word, body: Offboard, who: Operator, response: Response) -> OffboardPreview | Begun:
    """Delete every resource of a tenant: 200 with the dry run, or 202 with the operation.

    Protected resources are reported, and not deleted. Revoke the tenant's tokens first: when the tenant makes another
    resource before the real run, the answer is 409, and a resource that it makes later is not deleted.
    """
    if body.dry_run:
        with db.snapshot() as session:
            return OffboardPreview.of(actions.preview_offboard(session, who, tenant))
    with db.transaction() as session:
        begun = actions.begin_offboard(
            session,
            who,
            tenant,
            expected_count=-1 if body.expected_count is None else body.expected_count,
            reason=body.reason,
            digest=body.digest or "",
        )
    response.status_code = 202
    return Begun(operation=OperationOut.of(begun))


@router.post("/resources/restore", responses={202: {"model": Begun}})
def restore_many(body: RestoreMany, who: Operator, response: Response) -> RestorePreview | Begun:
    """Take back the deletes that the filter finds: 200 with the dry run, or 202 with the operation.

    One resource of each backend is restored first. When its restore has succeeded, the others of its backend follow. No
    hold stops them.
    """
    wanted = actions.taken_back(body.filter.meant())
    if body.dry_run:
        with db.snapshot() as session:
            return RestorePreview.of(actions.preview_restore(session, who, wanted))
    with db.transaction() as session:
        begun = actions.begin_restore(session, who, wanted, reason=body.reason, digest=body.digest or "")
    response.status_code = 202
    return Begun(operation=OperationOut.of(begun))


@router.post("/resources:adopt", status_code=202)
def adopt_many(body: AdoptMany, who: Operator) -> Begun:
    """Adopt objects that exist: first a dry run in which workers inspect each, then exactly those that can be adopted.

    Both are operations. `GET /v1/operations/{id}/objects` has what was found, and the digest for the real run.
    """
    if body.objects is not None and body.backend is not None:
        objects = adoptions.check(body.backend, enumerate(body.objects, 1), noun="object")
        with db.transaction() as session:
            begun = actions.preview_adopt(session, who, body.backend, objects, reason=body.reason)
    else:
        with db.transaction() as session:
            begun = actions.begin_adopt(
                session, who, body.preview or 0, reason=body.reason, digest=body.digest or "", rate=body.rate
            )
    return Begun(operation=OperationOut.of(begun))


@router.get("/operations/{operation_id}/objects")
def list_objects(operation_id: Number, who: Operator, wanted: Annotated[ObjectFilter, Query()]) -> ObjectPage:
    """The objects of an adoption or its dry run, in the list's order; 404 for an operation that does not exist."""

    def act(session: Connection) -> ObjectPage:
        operation, _ = queries.operation(session, operation_id)
        page = queries.list_adoptions(
            session, operation_id, wrong=wanted.wrong, cursor=wanted.cursor, limit=wanted.limit
        )
        preview = operation.kind is OperationKind.ADOPT_PREVIEW
        return ObjectPage(
            items=[ObjectOut.model_validate(row) for row in page.items],
            next_cursor=page.next_cursor,
            digest=actions.previewed_adopt(session, who, operation_id).digest if preview else None,
        )

    return ask(act)


@router.get("/operations")
def list_operations(_: Operator, wanted: Annotated[OperationFilter, Query()]) -> OperationPage:
    """Operations, newest first."""
    page = ask(lambda session: queries.list_operations(session, cursor=wanted.cursor, limit=wanted.limit))
    return OperationPage(items=[OperationOut.of(row) for row in page.items], next_cursor=page.next_cursor)


@router.get("/operations/{operation_id}")
def show(operation_id: Number, _: Operator) -> OperationStoryOut:
    """One operation, and its progress."""
    return OperationStoryOut.of_story(*ask(lambda session: queries.operation(session, operation_id)))


@router.post("/operations/{operation_id}/stop")
def stop(operation_id: Number, body: Reason, who: Operator) -> OperationOut:
    """Stop the operation: it starts no more jobs, and those that it has started go on. 409 when it has ended."""
    ended = ask(lambda session: actions.stop(session, who, operation_id, reason=body.reason))
    return OperationOut.of(ended)
