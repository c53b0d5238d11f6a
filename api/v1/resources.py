"""Routes of resources."""

import hashlib
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Header, Query, Response
from sqlalchemy import Connection

from api import problems
from api.deps import Anyone, ask, edge, edge_once
from api.schemas.fields import Credentials, ResourceId, Word
from api.schemas.jobs import JobOut, JobRef, job_url
from api.schemas.resources import (
    ChangeResource,
    Created,
    CreateResource,
    Deleted,
    ResourceFilter,
    ResourceOut,
    ResourcePage,
)
from api.turns import in_turn
from outbox import actions, queries
from outbox.actions import Delete, Enqueued, NewResource
from outbox.batching import GroupCommit
from outbox.rows import Resource

router = APIRouter(prefix="/v1/resources", tags=["resources"])


@router.post("", status_code=202, responses=problems.responses(429))
def create(body: CreateResource, who: Anyone, idempotency_key: Annotated[Word | None, Header()] = None) -> Created:
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
    )
    digest = hashlib.sha256(body.model_dump_json().encode()).hexdigest()
    # Not repeated on a lost connection: without a key, the second try could make a second resource.
    resource, job = actions.create(edge_once, who, new, idempotency_key=idempotency_key, request_digest=digest)
    return Created(resource=ResourceOut.of(resource), job=JobOut.of(job))


@router.get("")
def list_resources(who: Anyone, wanted: Annotated[ResourceFilter, Query()]) -> ResourcePage:
    """Resources, newest first; a tenant sees its own."""
    page = ask(lambda session: queries.list_resources(session, tenant=who.tenant, **wanted.model_dump()))
    return ResourcePage(items=[ResourceOut.of(row) for row in page.items], next_cursor=page.next_cursor)


@router.get("/{resource_id}")
def show(resource_id: ResourceId, who: Anyone) -> ResourceOut:
    """One resource."""
    return ResourceOut.of(ask(lambda session: queries.resource(session, resource_id, tenant=who.tenant)))


@router.patch("/{resource_id}")
async def change(resource_id: ResourceId, body: ChangeResource, who: Anyone) -> ResourceOut:
    """Protect the resource from deletion or lift the protection; set or lift the expiry."""

    def act(session: Connection) -> Resource:
        return actions.change(
            session,
            who,
            resource_id,
            protected=body.protected,
            sets_expiry="expires_at" in body.model_fields_set,
            expires_at=body.expires_at,
        )

    return ResourceOut.of(await in_turn(resource_id, partial(ask, act)))


@router.get("/{resource_id}/credentials")
def show_credentials(resource_id: ResourceId, who: Anyone, response: Response) -> Credentials:
    """How to log in, while the resource is active."""
    found = ask(lambda session: actions.show_credentials(session, who, resource_id))
    response.headers["Cache-Control"] = "no-store"
    return found


async def _alone(wanted: Delete) -> Enqueued:
    return await in_turn(wanted.resource_id, partial(actions.delete_alone, edge, wanted))


_deletes = GroupCommit("deletes", partial(actions.delete_batch, edge_once))


@router.delete("/{resource_id}", responses={202: {"model": Deleted}})
async def delete(resource_id: ResourceId, who: Anyone, response: Response) -> Deleted:
    """Delete: 202 for the one call that did it, 200 for every other; all name the same job."""
    wanted = actions.wanted_delete(who, resource_id)
    done = await _deletes.do_async(wanted, alone=partial(_alone, wanted))
    if done.won:
        response.status_code = 202
    return Deleted(
        already_deleted=not done.won,
        resource=ResourceOut.of(done.resource),
        job=JobRef(id=done.job.id, state=done.job.state, url=job_url(done.job)),
    )
