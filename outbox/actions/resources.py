"""Create, change and delete a resource, and read its credentials."""

import datetime as dt
import uuid
from collections.abc import Sequence
from dataclasses import replace

from sqlalchemy import Connection

from outbox import jobs, kinds, resources, settings
from outbox.actions.caller import Caller, Edge, own_tenant
from outbox.errors import BadRequest, Forbidden, NoCredentials, NotActive, UnknownBackend, UnknownKind
from outbox.jobs import Delete, Enqueued
from outbox.resources import NewResource
from outbox.rows import Job, Json, Resource
from outbox.states import ResourceStatus


def create(
    edge: Edge,
    who: Caller,
    new: NewResource,
    *,
    idempotency_key: str | None = None,
    request_digest: str | None = None,
) -> tuple[Resource, Job]:
    """Provision a resource, or adopt the object that its manifest names.

    Without an `idempotency_key` a call that is repeated makes a second resource: lend an edge that does not repeat.
    Raises BadRequest, UnknownKind, UnknownBackend, Forbidden, QuotaExceeded, IdempotencyKeyReused,
    AlreadyManaged.
    """
    tenant = own_tenant(who, new.tenant)
    if tenant is None:
        raise BadRequest("tenant: an operator must name the tenant that the resource is for")
    manifest = None if new.manifest is None else kinds.check(new.kind, new.manifest)
    _refuse_unknown_kind(new)
    _refuse_adoption(who, new)
    new = replace(new, tenant=tenant, manifest=manifest)
    made = edge.ask(
        lambda db: resources.register(
            db, new, actor=who.actor, idempotency_key=idempotency_key, request_digest=request_digest
        )
    )
    edge.ring()
    return made


def _refuse_unknown_kind(new: NewResource) -> None:
    configured = settings.backends()
    served = sorted({config.kind for config in configured.values()})
    if new.kind not in served:
        raise UnknownKind(f"kind {new.kind!r} is unknown; known: {', '.join(served)}")
    if new.backend not in configured:
        raise UnknownBackend(f"backend {new.backend!r} is unknown; known: {', '.join(sorted(configured))}")
    if configured[new.backend].kind != new.kind:
        fitting = sorted(name for name, config in configured.items() if config.kind == new.kind)
        raise UnknownKind(f"backend {new.backend!r} is not a {new.kind} backend; those are: {', '.join(fitting)}")


def _refuse_adoption(who: Caller, new: NewResource) -> None:
    """Who adopts an object may then delete it: on most backends that is an operator's decision."""
    if new.manifest is not None and who.tenant is not None and settings.backends()[new.backend].adoption != "tenants":
        raise Forbidden(f"on backend {new.backend!r} only operators adopt objects that exist")


def change(
    db: Connection,
    who: Caller,
    resource_id: uuid.UUID,
    *,
    protected: bool | None = None,
    sets_expiry: bool = False,
    expires_at: dt.datetime | None = None,
) -> Resource:
    """Set or lift the protection, and with `sets_expiry` the expiry. Raises NotFound, NotActive, BadRequest."""
    return resources.change(
        db, resource_id, tenant=who.tenant, protected=protected, sets_expiry=sets_expiry, expires_at=expires_at
    )


def show_credentials(db: Connection, who: Caller, resource_id: uuid.UUID) -> Json:
    """How to log in, while the resource is active. Raises NotFound, NotActive, NoCredentials."""
    from outbox import credentials  # noqa: PLC0415 - commands that need no cryptography start without it

    resource, sealed = resources.find(db, resource_id, tenant=who.tenant)
    if resource.status is not ResourceStatus.ACTIVE:
        raise NotActive(f"resource {resource_id} is {resource.status}; it has credentials only while it is active")
    if sealed is None:
        raise NoCredentials(f"resource {resource_id} was adopted: this service never knew its credentials")
    return credentials.unseal(sealed)


def wanted_delete(who: Caller, resource_id: uuid.UUID, *, reason: str | None = None) -> Delete:
    """One caller's DELETE. Asked again after a lost answer, the same one still learns whether it won."""
    return Delete(resource_id, who.actor, who.tenant, reason)


def delete(edge: Edge, who: Caller, resource_id: uuid.UUID, *, reason: str | None = None) -> Enqueued:
    """Delete a resource; of all calls for one resource exactly one wins. Raises NotFound, DeletionProtected."""
    wanted = wanted_delete(who, resource_id, reason=reason)
    done = edge.ask(
        lambda db: jobs.enqueue(
            db,
            resource_id,
            actor=wanted.actor,
            tenant=wanted.tenant,
            reason=reason,
            request_id=wanted.request_id,
        )
    )
    edge.ring()
    return done


def delete_batch(edge: Edge, wanted: Sequence[Delete]) -> list[Enqueued | None]:
    """`delete` of many in one statement that waits for no locked row; None for each that must ask alone."""
    won = edge.ask(lambda db: jobs.enqueue_all(db, wanted, waits=False))
    if won:
        edge.ring()
    return [won.get(each.request_id) for each in wanted]


def delete_alone(edge: Edge, wanted: Delete) -> Enqueued:
    """`delete` of one that a batch did not settle; waits for a locked row. Raises NotFound, DeletionProtected."""
    done = edge.ask(lambda db: jobs.enqueued_before(db, wanted))
    if done.won:
        edge.ring()
    return done
