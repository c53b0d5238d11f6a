"""Offboarding: a DELETE of each of a tenant's resources, except the protected ones."""

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
    """The resources of a tenant that are provisioning or active. `protected` of them would be kept.

    `deleting` counts the tenant's resources that got a DELETE before.
    """

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
    """What an offboarding would delete; `db` must be a snapshot, so that all numbers are of one moment.

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
    """Store the tenant's provisioning and active resources as items for workers to delete; protected ones are kept.

    Resources that the tenant makes later are not part of it. `db` must be a transaction. Raises NotFound,
    AlreadyRunning, DigestMismatch.
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
        raise DigestMismatch(f"you expected {expected_count} resources, but there are {begun.total}; preview again")
    return begun


def _refuse_unknown_tenant(db: Connection, tenant: str) -> None:
    if not holds.known(db, HoldScope.TENANT, tenant):
        raise NotFound(f"there is no tenant {tenant!r}")


def _living(tenant: str) -> "sa.Select[Any]":
    resource = tables.resources.c
    alive = resource.status.in_([ResourceStatus.PROVISIONING, ResourceStatus.ACTIVE])
    return sa.select(resource.id, resource.protected, resource.backend).where(resource.tenant == tenant, alive)


# An item that a hold covers waits for its release.
_TO_DELETE = text(f"""
    SELECT resource_id FROM operation_items AS item JOIN resources ON resources.id = resource_id
     WHERE operation_id = :id AND outcome IS NULL
       AND NOT EXISTS (SELECT FROM holds WHERE {holds.COVERS.format("resources", "'deprovision'")})
     ORDER BY canary DESC, n LIMIT :batch""")
# Of the resources that the same transaction has locked, those that a hold kept still have nothing of these.
_DELETED = text("""
    UPDATE operation_items AS item
       SET job_id = done.job_id,
           outcome = CASE WHEN done.job_id IS NOT NULL THEN 'enqueued'
                          WHEN protected THEN 'protected'
                          ELSE 'skipped' END
      FROM unnest(CAST(:resources AS uuid[]), CAST(:jobs AS bigint[])) AS done (resource_id, job_id)
      LEFT JOIN resources ON resources.id = done.resource_id
     WHERE operation_id = :id AND item.resource_id = done.resource_id AND outcome IS NULL
       AND (done.job_id IS NOT NULL OR protected OR tenant <> :tenant OR status NOT IN ('provisioning', 'active'))""")
_WAITS = text("SELECT EXISTS (SELECT FROM operation_items WHERE operation_id = :id AND outcome IS NULL)")
# Between two looks whether a hold was released: with 100,000 items under holds a look takes tenths of a second.
HELD_SECONDS = 5.0


def offboard_step(db: Connection, operation: sa.Row[Any], worker: str) -> tuple[int, float]:
    """Do one step of an offboarding; returns how many jobs it enqueued, and how long it waits for a hold's release.

    Without a hold it makes no pause: a brake limits the teardowns.
    """
    mine = {"id": operation.id, "tenant": operation.filter["tenant"]}
    listed: Sequence[uuid.UUID] = db.execute(_TO_DELETE, mine | {"batch": BATCH}).scalars().all()
    if not listed:
        return 0, HELD_SECONDS if db.execute(_WAITS, mine).scalar_one() else 0.0
    by = {"tenant": mine["tenant"]} | attribution(operation, worker)
    enqueued = jobs.enqueue_unheld(db, [jobs.Delete(resource, **by) for resource in listed])
    done = {each.resource.id: each.job.id for each in enqueued.values()}
    words = {"resources": list(listed), "jobs": [done.get(resource) for resource in listed]}
    db.execute(_DELETED, mine | words)
    return len(done), 0.0
