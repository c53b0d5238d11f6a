"""Create, change and delete a resource, and read its credentials."""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection

from outbox import holds, jobs, kinds, resources, settings
from outbox.actions.caller import Caller, Edge, own_tenant, request_of
from outbox.errors import BadRequest, Forbidden, NoCredentials, NotActive, UnknownBackend, UnknownKind
from outbox.jobs import Delete, Enqueued
from outbox.resources import NewResource
from outbox.rows import Job, Json, Resource
from outbox.states import ResourceStatus, SnapshotPolicy


def create(
    edge: Edge,
    who: Caller,
    new: NewResource,
    *,
    idempotency_key: str | None = None,
    request_digest: str | None = None,
    again: bool = False,
) -> tuple[Resource, Job]:
    """Provision a resource, or adopt the object that its manifest names; `again` what a deleted resource had.

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
    resources.check_retention(new.backend, may_purge=who.tenant is None, grace=new.grace_seconds, snapshot=new.snapshot)
    new = replace(new, tenant=tenant, manifest=manifest)
    made = edge.ask(
        lambda db: resources.register(
            db,
            new,
            actor=who.actor,
            idempotency_key=idempotency_key,
            request_digest=request_digest,
            again=again,
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
    db: Connection, who: Caller, resource_id: uuid.UUID, changes: Mapping[str, Any], *, version: int | None = None
) -> Resource:
    """Change what `resources.CHANGEABLE` names.

    Raises NotFound, VersionMismatch, NotActive, BadRequest, Forbidden.
    """
    if {"grace_seconds", "snapshot"} & set(changes):
        backend = resources.find(db, resource_id, tenant=who.tenant)[0].backend  # it never changes
        grace, snapshot = changes.get("grace_seconds"), changes.get("snapshot")
        resources.check_retention(backend, may_purge=who.tenant is None, grace=grace, snapshot=snapshot)
    return resources.change(db, resource_id, changes=changes, actor=who.actor, tenant=who.tenant, version=version)


def show_credentials(db: Connection, who: Caller, resource_id: uuid.UUID) -> Json:
    """How to log in, while the resource is active. Raises NotFound, NotActive, NoCredentials, BackendRetired."""
    from outbox import credentials  # noqa: PLC0415 - commands that need no cryptography start without it

    resource, sealed = resources.find(db, resource_id, tenant=who.tenant)
    if resource.status is not ResourceStatus.ACTIVE:
        raise NotActive(f"resource {resource_id} is {resource.status}; it has credentials only while it is active")
    holds.refuse_retired(db, resource.backend)
    if sealed is None:
        raise NoCredentials(f"resource {resource_id} was adopted: this service never knew its credentials")
    return credentials.unseal(sealed)


def wanted_delete(
    who: Caller,
    resource_id: uuid.UUID,
    *,
    reason: str | None = None,
    on_behalf_of: str | None = None,
    grace_seconds: int | None = None,
    snapshot: SnapshotPolicy | None = None,
    version: int | None = None,
    idempotency_key: str | None = None,
) -> Delete:
    """One caller's DELETE. Asked again after a lost answer, the same one still learns whether it won.

    With an `idempotency_key` another call is the same one: what it asks for is kept in its event, and compared.
    """
    asked = {"on_behalf_of": on_behalf_of, "grace_seconds": grace_seconds, "snapshot": snapshot}
    return Delete(
        resource_id,
        who.actor,
        who.tenant,
        reason,
        {name: value for name, value in asked.items() if value is not None},
        request_of(who, "delete", resource_id, idempotency_key),
        grace=grace_seconds,
        snapshot=snapshot,
        may_purge=who.tenant is None,
        version=version,
    )


def delete(edge: Edge, wanted: Delete) -> Enqueued:
    """Delete a resource; of all calls for one resource exactly one wins.

    Raises NotFound, IdempotencyKeyReused, VersionMismatch, Restoring, OutOfManagement, DeletionProtected,
    Forbidden, BadRequest.
    """
    done = edge.ask(lambda db: jobs.enqueue(db, **vars(wanted)))
    edge.ring()
    return done


def delete_batch(edge: Edge, wanted: Sequence[Delete]) -> list[Enqueued | None]:
    """`delete` of many in one statement that waits for no locked row; None for each that must ask alone."""
    first = {each.request_id: each for each in reversed(wanted)}  # others of the same key are compared with it
    won = edge.ask(lambda db: jobs.enqueue_all(db, list(first.values()), waits=False))
    if won:
        edge.ring()
    return [won.get(each.request_id) if first[each.request_id] is each else None for each in wanted]


def delete_alone(edge: Edge, wanted: Delete) -> Enqueued:
    """`delete` of one that a batch did not settle; waits for a locked row. Raises what `delete` raises."""
    done = edge.ask(lambda db: jobs.enqueued_before(db, wanted))
    if done.won:
        edge.ring()
    return done
