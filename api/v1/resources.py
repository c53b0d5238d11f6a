"""Routes of resources."""

import asyncio
import hashlib
import uuid
from functools import partial
from typing import Annotated
from weakref import WeakValueDictionary

from fastapi import APIRouter, Header, Query, Response
from fastapi.concurrency import run_in_threadpool

from api.deps import Anyone, ask, edge, edge_once
from api.problems import busy
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
from outbox import actions, db, queries
from outbox.actions import Delete, Enqueued, NewResource
from outbox.batching import GroupCommit

router = APIRouter(prefix="/v1/resources", tags=["resources"])


@router.post("", status_code=202)
def create(body: CreateResource, who: Anyone, idempotency_key: Annotated[Word | None, Header()] = None) -> Created:
    """Make a resource, or adopt the object that `manifest` names. Poll the job, or the resource until it is `active`.

    With an `Idempotency-Key` the request may be sent again: it is answered with what it made the first time.
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
def change(resource_id: ResourceId, body: ChangeResource, who: Anyone) -> ResourceOut:
    """Protect the resource from deletion or lift the protection; set or lift the expiry."""
    changed = ask(
        lambda session: actions.change(
            session,
            who,
            resource_id,
            protected=body.protected,
            sets_expiry="expires_at" in body.model_fields_set,
            expires_at=body.expires_at,
        )
    )
    return ResourceOut.of(changed)


@router.get("/{resource_id}/credentials")
def show_credentials(resource_id: ResourceId, who: Anyone, response: Response) -> Credentials:
    """How to log in, while the resource is active."""
    found = ask(lambda session: actions.show_credentials(session, who, resource_id))
    response.headers["Cache-Control"] = "no-store"
    return found


# Callers that wait for locked rows: one for each row, and so many in all, keep a thread and a connection. The others
# wait in the event loop, which keeps nothing.
LOCK_WAITERS = 8
_seats = asyncio.Semaphore(LOCK_WAITERS)
_turns: WeakValueDictionary[uuid.UUID, asyncio.Lock] = WeakValueDictionary()


async def _alone(wanted: Delete) -> Enqueued:
    turn = _turns.setdefault(wanted.resource_id, asyncio.Lock())
    try:
        async with asyncio.timeout(db.LOCK_TIMEOUT_MS / 1000):
            await turn.acquire()
    except TimeoutError as error:
        raise busy("other requests wait for this resource already; ask again") from error
    try:
        try:
            async with asyncio.timeout(db.LOCK_TIMEOUT_MS / 1000):
                await _seats.acquire()
        except TimeoutError as error:
            raise busy("too many requests wait for locked resources; ask again") from error
        try:
            return await run_in_threadpool(actions.delete_alone, edge, wanted)
        finally:
            _seats.release()
    finally:
        turn.release()


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
