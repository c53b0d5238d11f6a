"""Routes of resources."""

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from sqlalchemy import Connection

from api import problems
from api.deps import Anyone, Operator, ask, edge, edge_once
from api.schemas.fields import Credentials, IdempotencyKey, IfMatch, Reason, ResourceId
from api.schemas.jobs import JobOut, JobRef, Proposed, job_url
from api.schemas.resources import (
    ChangeResource,
    Created,
    CreateResource,
    Deleted,
    DeleteResource,
    Purged,
    Released,
    ResourceFilter,
    ResourceOut,
    ResourcePage,
    Restored,
)
from api.turns import in_turn
from outbox import actions, logins, queries
from outbox.actions import Delete, Enqueued, NewResource
from outbox.batching import GroupCommit
from outbox.logins import LoginAttempts
from outbox.rows import Resource

router = APIRouter(prefix="/v1/resources", tags=["resources"])


@router.post("", status_code=202, responses=problems.responses(429))
def create(body: CreateResource, who: Anyone, response: Response, idempotency_key: IdempotencyKey = None) -> Created:
    """Make a resource, or adopt the object that `manifest` names. Poll the job, or the resource until it is `active`.

    With an `Idempotency-Key` the request may be sent again: it is answered with what it made the first time. A tenant
    that has as much as it may have gets 429: `quota` and `limit` say what, `detail` what to do.
    """
    new = NewResource(
        tenant=body.tenant,
        kind=body.kind,
        backend=body.backend,
        name=body.name,
        protected=body.protected,
        manifest=body.manifest,
        expires_at=body.expires_at,
        grace_seconds=body.grace,
        snapshot=body.snapshot,
        external_id=body.external_id,
        labels=body.labels,
    )
    # Not repeated on a lost connection: without a key, the second try could make a second resource.
    resource, job = actions.create(edge_once, who, new, idempotency_key=idempotency_key, request_digest=body.digest())
    _tag(response, resource)
    return Created(resource=ResourceOut.of(resource), job=JobOut.of(job))


@router.get("")
def list_resources(who: Anyone, wanted: Annotated[ResourceFilter, Query()]) -> ResourcePage:
    """Resources, newest first; a tenant sees its own."""
    meant = actions.within(who, wanted.meant())
    page = ask(lambda session: queries.list_resources(session, meant, cursor=wanted.cursor, limit=wanted.limit))
    return ResourcePage(items=[ResourceOut.of(row) for row in page.items], next_cursor=page.next_cursor)


@router.get("/{resource_id}")
def show(resource_id: ResourceId, who: Anyone, response: Response) -> ResourceOut:
    """One resource. While it is in quarantine, `login_attempts` says who still tries to log in, as far as known."""

    def act(session: Connection) -> tuple[Resource, LoginAttempts | None]:
        found = queries.resource(session, resource_id, tenant=who.tenant)
        return found, logins.of(session, resource_id) if found.deleted_at else None

    found, attempts = ask(act)
    _tag(response, found)
    return ResourceOut.of(found, attempts)


def _tag(response: Response, resource: Resource) -> None:
    response.headers["ETag"] = f'"{resource.version}"'


@router.patch("/{resource_id}", responses=problems.responses(412))
async def change(
    resource_id: ResourceId, body: ChangeResource, who: Anyone, response: Response, if_match: IfMatch = None
) -> ResourceOut:
    """Protect the resource from deletion or lift the protection; set its expiry, its grace, its snapshot."""
    changes = body.changes()
    act = partial(ask, lambda session: actions.change(session, who, resource_id, changes, version=if_match))
    changed = await in_turn(resource_id, act)
    _tag(response, changed)
    return ResourceOut.of(changed)


@router.get("/{resource_id}/credentials")
def show_credentials(resource_id: ResourceId, who: Anyone, response: Response) -> Credentials:
    """How to log in, while the resource is active."""
    found = ask(lambda session: actions.show_credentials(session, who, resource_id))
    response.headers["Cache-Control"] = "no-store"
    return found


async def _alone(wanted: Delete) -> Enqueued:
    return await in_turn(wanted.resource_id, partial(actions.delete_alone, edge, wanted))


_deletes = GroupCommit("deletes", partial(actions.delete_batch, edge_once))


@router.delete("/{resource_id}", responses={202: {"model": Deleted}, **problems.responses(412)})
async def delete(
    request: Request,
    resource_id: ResourceId,
    who: Anyone,
    response: Response,
    wanted: Annotated[DeleteResource, Query()],
    if_match: IfMatch = None,
    idempotency_key: IdempotencyKey = None,
) -> Deleted:
    """Delete: 202 for the one call that did it, 200 for every other; all name the same job.

    The resource is cut off at once, and destroyed from `purge_at` on; until then it can be restored. Less grace than
    the backend's `min_grace`, or no snapshot where one is required, is for operators (403).
    """
    if await request.body():
        raise problems.invalid("body: a DELETE has none; what it may say is in its query, such as `?grace=0s`")
    asked = actions.wanted_delete(
        who,
        resource_id,
        reason=wanted.reason,
        on_behalf_of=wanted.on_behalf_of,
        grace_seconds=wanted.grace,
        snapshot=wanted.snapshot,
        version=if_match,
        idempotency_key=idempotency_key,
    )
    done = await _deletes.do_async(asked, alone=partial(_alone, asked))
    if done.won:
        response.status_code = 202
    _tag(response, done.resource)
    return Deleted(
        already_deleted=not done.won,
        resource=ResourceOut.of(done.resource),
        job=JobRef(id=done.job.id, state=done.job.state, url=job_url(done.job)),
    )


@router.post("/{resource_id}/restore", responses={202: {"model": Restored}, **problems.responses(412)})
async def restore(
    resource_id: ResourceId,
    body: Reason,
    who: Anyone,
    response: Response,
    if_match: IfMatch = None,
    idempotency_key: IdempotencyKey = None,
) -> Restored:
    """Give a deleted resource back: 202 with the job that does it, 200 when it is active or being given back.

    409 `teardown_started` once its destruction has started.
    """
    act = partial(
        actions.restore,
        edge,
        who,
        resource_id,
        reason=body.reason,
        version=if_match,
        idempotency_key=idempotency_key,
    )
    done = await in_turn(resource_id, act)
    if done.won:
        response.status_code = 202
    _tag(response, done.resource)
    return Restored.of(done)


@router.post("/{resource_id}/purge", responses={202: {"model": Proposed}, **problems.responses(412)})
async def purge(
    resource_id: ResourceId,
    body: Reason,
    who: Operator,
    response: Response,
    if_match: IfMatch = None,
    idempotency_key: IdempotencyKey = None,
) -> Purged | Proposed:
    """Let the destruction of a deleted resource begin now, before `purge_at`.

    Where the backend says that it takes two operators, the first one's call is only recorded, and answered 202.
    """
    act = partial(
        actions.purge,
        edge,
        who,
        resource_id,
        reason=body.reason,
        version=if_match,
        idempotency_key=idempotency_key,
    )
    done = await in_turn(resource_id, act)
    if isinstance(done, actions.Proposed):
        response.status_code = 202
        return Proposed.of(done)
    resource, job = done
    _tag(response, resource)
    return Purged.of(resource, job)


@router.post("/{resource_id}/release", responses={202: {"model": Released}, **problems.responses(412)})
async def release(
    resource_id: ResourceId,
    body: Reason,
    who: Operator,
    response: Response,
    if_match: IfMatch = None,
    idempotency_key: IdempotencyKey = None,
) -> Released:
    """Take an active resource out of management: 202 for the call that does it, 200 for every other.

    Its object stays as it is, but for our mark, which a worker takes off. A DELETE is refused from here on.
    """
    act = partial(
        actions.release_resource,
        edge,
        who,
        resource_id,
        reason=body.reason,
        version=if_match,
        idempotency_key=idempotency_key,
    )
    done = await in_turn(resource_id, act)
    if done.won:
        response.status_code = 202
    _tag(response, done.resource)
    return Released.of(done)
