"""Offboarding: a DELETE of all that a tenant has, but for what is protected."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, text

from outbox import holds, jobs, tables
from outbox.errors import DigestMismatch, NotFound
from outbox.operations.selection import BATCH, SAMPLE, attribution, confirm, insert, summarize
from outbox.rows import Operation, Resource, columns, read
from outbox.states import HoldScope, OperationKind, ResourceStatus


@dataclass(frozen=True)
class OffboardPreview:
    """The living resources of a tenant. `protected` of them would be left; `deleting` are on their way already."""

    count: int
    protected: int
    deleting: int
    backends: dict[str, int]
    statuses: dict[str, int]
    sample: list[Resource]
    digest: str


_SAMPLE_OF_RESOURCES = text(f"""
    SELECT {columns(Resource, "resource")} FROM resources AS resource
     WHERE tenant = :tenant AND status IN ('provisioning', 'active') ORDER BY id LIMIT {SAMPLE}""")


def preview_offboard(db: Connection, tenant: str) -> OffboardPreview:
    """What an offboarding would delete; `db` is a snapshot's, so that all of it is of one moment.

    Raises NotFound when the tenant has never had a resource or a token.
    """
    _refuse_unknown_tenant(db, tenant)
    living = _living(tenant).subquery()
    found = summarize(db, OperationKind.OFFBOARD, {"tenant": tenant}, living, living.c.id, living.c.protected)
    protected = db.execute(sa.select(sa.func.count()).select_from(living).where(living.c.protected)).scalar_one()
    mine = tables.resources.c
    grouped = sa.select(mine.status, sa.func.count()).where(mine.tenant == tenant).group_by(mine.status)
    statuses: dict[str, int] = {row[0]: row[1] for row in db.execute(grouped.order_by(mine.status))}
    return OffboardPreview(
        count=found.count,
        protected=protected,
        deleting=statuses.get(ResourceStatus.DELETING, 0),
        backends=found.backends,
        statuses=statuses,
        sample=[read(Resource, "resource", row) for row in db.execute(_SAMPLE_OF_RESOURCES, {"tenant": tenant})],
        digest=found.digest,
    )


def begin_offboard(
    db: Connection, tenant: str, *, expected_count: int, reason: str, actor: str, digest: str
) -> Operation:
    """Write down the tenant's living resources for the workers to delete; what is protected is left.

    What the tenant makes later is not part of it. `db` is a transaction's. Raises NotFound, DigestMismatch.
    """
    _refuse_unknown_tenant(db, tenant)
    operation = insert(db, OperationKind.OFFBOARD, {"tenant": tenant}, reason=reason, actor=actor, digest=digest)
    living = _living(tenant).subquery()
    place = sa.func.row_number().over(order_by=living.c.id)
    left = sa.case((living.c.protected, "protected"))
    listed = sa.select(sa.literal(operation), place, living.c.backend, living.c.id, left)
    into = ("operation_id", "n", "backend", "resource_id", "outcome")
    db.execute(sa.insert(tables.operation_items).from_select(into, listed))
    item = tables.operation_items.c
    protected = item.outcome.is_not(None)
    begun = confirm(db, operation, OperationKind.OFFBOARD, {"tenant": tenant}, digest, item.resource_id, protected)
    if begun.total != expected_count:
        raise DigestMismatch(f"you expected {expected_count} resources, and there are {begun.total}; preview again")
    return begun


def _refuse_unknown_tenant(db: Connection, tenant: str) -> None:
    if not holds.known(db, HoldScope.TENANT, tenant):
        raise NotFound(f"there is no tenant {tenant!r}")


def _living(tenant: str) -> "sa.Select[Any]":
    resource = tables.resources.c
    alive = resource.status.in_([ResourceStatus.PROVISIONING, ResourceStatus.ACTIVE])
    return sa.select(resource.id, resource.protected, resource.backend).where(resource.tenant == tenant, alive)


_TO_DELETE = text("""
    SELECT n, resource_id FROM operation_items
     WHERE operation_id = :id AND outcome IS NULL
     ORDER BY canary DESC, n LIMIT :batch""")
_DELETED = text("""
    UPDATE operation_items AS item
       SET job_id = done.job_id,
           outcome = CASE WHEN done.job_id IS NOT NULL THEN 'enqueued'
                          WHEN protected THEN 'protected'
                          ELSE 'skipped' END
      FROM unnest(CAST(:resources AS uuid[]), CAST(:jobs AS bigint[])) AS done (resource_id, job_id)
      LEFT JOIN resources ON resources.id = done.resource_id
     WHERE operation_id = :id AND item.resource_id = done.resource_id AND outcome IS NULL""")


def offboard_step(db: Connection, operation: sa.Row[Any], worker: str) -> tuple[int, float]:
    """One step of an offboarding; how many it enqueued. What slows teardowns is no business of this."""
    listed: Sequence[uuid.UUID] = [
        item.resource_id for item in db.execute(_TO_DELETE, {"id": operation.id, "batch": BATCH})
    ]
    by = {"tenant": operation.filter["tenant"]} | attribution(operation, worker)
    enqueued = jobs.enqueue_all(db, [jobs.Delete(resource, **by) for resource in listed])
    done = {each.resource.id: each.job.id for each in enqueued.values()}
    db.execute(
        _DELETED,
        {"id": operation.id, "resources": list(listed), "jobs": [done.get(resource) for resource in listed]},
    )
    return len(done), 0.0
