"""Routes of resources."""

import hashlib
from collections.abc import Sequence
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Header, Query, Response
from fastapi.concurrency import run_in_threadpool

from api.deps import Anyone, Caller, ask
from api.problems import Problem
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
from outbox import credentials, db, jobs, kinds, queries, resources, settings
from outbox.batching import GroupCommit
from outbox.doorbell import bell
from outbox.errors import BadRequest, NoCredentials, NotActive, UnknownBackend, UnknownKind
from outbox.jobs import Delete, Enqueued
from outbox.resources import NewResource
from outbox.states import ResourceStatus

router = APIRouter(prefix="/v1/resources", tags=["resources"])


@router.post("", status_code=202)
def create(body: CreateResource, who: Anyone, idempotency_key: Annotated[Word | None, Header()] = None) -> Created:
    """Make a resource, or adopt the object that `manifest` names. Poll the job, or the resource until `active`."""
    new = NewResource(
        tenant=_tenant(body, who),
        kind=body.kind,
        backend=body.backend,
        name=body.name,
        protected=body.protected,
        manifest=None if body.manifest is None else kinds.check(body.kind, body.manifest),
        expires_at=body.expires_at,
    )
    _known(new)
    _may_adopt(new, who)
    digest = hashlib.sha256(body.model_dump_json().encode()).hexdigest()
    # Not repeated on a lost connection: without a key, the second try could make a second resource.
    with db.statement() as session:
        resource, job = resources.register(
            session, new, actor=who.actor, idempotency_key=idempotency_key, request_digest=digest
        )
    bell.ring()
    return Created(resource=ResourceOut.of(resource), job=JobOut.of(job))


@router.get("")
def list_resources(who: Anyone, wanted: Annotated[ResourceFilter, Query()]) -> ResourcePage:
    """Newest first."""
    page = ask(lambda session: queries.list_resources(session, tenant=who.tenant, **wanted.model_dump()))
    return ResourcePage(items=[ResourceOut.of(row) for row in page.items], next_cursor=page.next_cursor)


@router.get("/{resource_id}")
def show(resource_id: ResourceId, who: Anyone) -> ResourceOut:
    """One resource."""
    resource, _ = ask(lambda session: resources.find(session, resource_id, tenant=who.tenant))
    return ResourceOut.of(resource)


@router.patch("/{resource_id}")
def change(resource_id: ResourceId, body: ChangeResource, who: Anyone) -> ResourceOut:
    """Protect from deletion or lift the protection; set or lift the expiry."""
    changed = ask(
        lambda session: resources.change(
            session,
            resource_id,
            tenant=who.tenant,
            protected=body.protected,
            sets_expiry="expires_at" in body.model_fields_set,
            expires_at=body.expires_at,
        )
    )
    return ResourceOut.of(changed)


@router.get("/{resource_id}/credentials")
def show_credentials(resource_id: ResourceId, who: Anyone, response: Response) -> Credentials:
    """How to log in, while the resource is active."""
    resource, sealed = ask(lambda session: resources.find(session, resource_id, tenant=who.tenant))
    if resource.status is not ResourceStatus.ACTIVE:
        raise NotActive(f"resource {resource_id} is {resource.status}; credentials are given out while it is active")
    if sealed is None:
        raise NoCredentials(f"resource {resource_id} was adopted: its credentials were never known here")
    response.headers["Cache-Control"] = "no-store"
    return credentials.unseal(sealed)


def _delete_all(asked: Sequence[Delete]) -> list[Enqueued | None]:
    with db.statement() as session:
        won = jobs.enqueue_all(session, asked, waits=False)
    if won:
        bell.ring()
    return [won.get(each.request_id) for each in asked]


def _delete_alone(asked: Delete) -> Enqueued:
    """The batch did not make this DELETE the winner, or its answer was lost."""
    done = ask(partial(jobs.enqueued_before, asked=asked))
    if done.won:
        bell.ring()
    return done


_deletes = GroupCommit("deletes", _delete_all)


@router.delete("/{resource_id}", responses={202: {"model": Deleted}})
async def delete(resource_id: ResourceId, who: Anyone, response: Response) -> Deleted:
    """Delete: 202 for the one call that did it, 200 for every other; all name the same job."""
    wanted = Delete(resource_id, who.actor, who.tenant)
    done = await _deletes.do_async(wanted, alone=partial(run_in_threadpool, _delete_alone, wanted))
    if done.won:
        response.status_code = 202
    return Deleted(
        already_deleted=not done.won,
        resource=ResourceOut.of(done.resource),
        job=JobRef(id=done.job.id, state=done.job.state, url=job_url(done.job)),
    )


def _tenant(body: CreateResource, who: Caller) -> str:
    if who.tenant is None:
        if body.tenant is None:
            raise BadRequest("tenant: an operator must say for which tenant")
        return body.tenant
    if body.tenant not in (None, who.tenant):
        raise BadRequest(f"tenant: this token is {who.tenant!r}'s")
    return who.tenant


def _may_adopt(new: NewResource, who: Caller) -> None:
    if new.manifest is not None and who.tenant is not None and settings.backends()[new.backend].adoption != "tenants":
        raise Problem(403, "forbidden", f"on backend {new.backend!r} only operators adopt what exists")


def _known(new: NewResource) -> None:
    configured = settings.backends()
    kinds = sorted({config.kind for config in configured.values()})
    if new.kind not in kinds:
        raise UnknownKind(f"kind {new.kind!r} is unknown; known: {', '.join(kinds)}")
    if new.backend not in configured:
        raise UnknownBackend(f"backend {new.backend!r} is unknown; known: {', '.join(sorted(configured))}")
    if configured[new.backend].kind != new.kind:
        fitting = sorted(name for name, config in configured.items() if config.kind == new.kind)
        raise UnknownKind(f"backend {new.backend!r} is not a {new.kind} backend; those are: {', '.join(fitting)}")
