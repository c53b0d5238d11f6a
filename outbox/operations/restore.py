"""Bulk restore: takes back the deletes that a filter selects; one of each backend first."""

import datetime as dt
import uuid
from dataclasses import dataclass, fields
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, text

from outbox import holds, jobs, tables
from outbox.errors import BadRequest
from outbox.events import Event
from outbox.operations import canaries
from outbox.operations.selection import (
    BATCH,
    POLL_SECONDS,
    SAMPLE,
    attribution,
    confirm,
    insert,
    refuse_unknown_scope,
    summarize,
)
from outbox.rows import Json, Operation, Resource, columns, read
from outbox.states import ItemOutcome, JobKind, JobState, OperationKind, ResourceStatus


@dataclass(frozen=True)
class DeleteFilter:
    """Selects deletes of resources; a field that is None does not filter.

    `actor` asked for the delete; `operation` is the offboarding that did. `deleted_until` itself is not included.
    """

    tenant: str | None = None
    backend: str | None = None
    deleted_since: dt.datetime | None = None
    deleted_until: dt.datetime | None = None
    actor: str | None = None
    operation: int | None = None

    def words(self) -> Json:
        """As it is stored and shown."""
        said = {f.name: value for f in fields(self) if (value := getattr(self, f.name)) is not None}
        times = {name: at.astimezone(dt.UTC).isoformat() for name, at in said.items() if isinstance(at, dt.datetime)}
        return said | times


@dataclass(frozen=True)
class RestorePreview:
    """The deletes that a filter selects and that can be taken back: how many, of which backends, the first of them.

    `unheld` of them are covered by no hold, so their destruction may start meanwhile. What cannot be taken back any
    more: `started` is being destroyed, `destroyed` is, and `never_active` has nothing to give back.
    """

    count: int
    backends: dict[str, int]
    unheld: int
    started: int
    destroyed: int
    never_active: int
    sample: list[Resource]
    digest: str


_SAMPLE_OF_RESOURCES = text(f"""
    SELECT {columns(Resource, "resource")} FROM resources AS resource WHERE id = ANY(:ids) ORDER BY deleted_at, id""")


def preview_restore(db: Connection, wanted: DeleteFilter) -> RestorePreview:
    """What a bulk restore would take back; `db` must be a snapshot, so that all numbers are of one moment.

    Raises BadRequest when the filter's backend, tenant or operation is unknown.
    """
    _refuse_unknown(db, wanted)
    found = _restorable(wanted).subquery()
    seen = summarize(db, OperationKind.RESTORE, wanted.words(), found, found.c.id, found.c.job_id)
    first = db.execute(sa.select(found.c.id).order_by(found.c.deleted_at, found.c.id).limit(SAMPLE)).scalars().all()
    return RestorePreview(
        count=seen.count,
        backends=seen.backends,
        unheld=_count(db, _restorable(wanted).where(_UNHELD)),
        started=_count(db, _deleting(wanted).where(_ONCE_ACTIVE, sa.not_(_NOT_STARTED))),
        destroyed=_count(db, _destroyed(wanted)),
        never_active=_count(db, _deleting(wanted).where(sa.not_(_ONCE_ACTIVE))),
        sample=[read(Resource, "resource", row) for row in db.execute(_SAMPLE_OF_RESOURCES, {"ids": first})],
        digest=seen.digest,
    )


def begin_restore(db: Connection, wanted: DeleteFilter, *, reason: str, actor: str, digest: str) -> Operation:
    """Store the previewed deletes as items for workers to take back.

    Workers restore one resource of each backend first, the canary, and the others when it has succeeded. `db` must be a
    transaction. Raises BadRequest, AlreadyRunning, and DigestMismatch when the filter selects other deletes than the
    preview.
    """
    _refuse_unknown(db, wanted)
    said = wanted.words()
    operation = insert(db, OperationKind.RESTORE, said, reason=reason, actor=actor, digest=digest)
    found, number = _restorable(wanted).subquery(), sa.func.row_number()
    place = number.over(order_by=(found.c.deleted_at, found.c.id))
    place_of_backend = number.over(partition_by=found.c.backend, order_by=(found.c.deleted_at, found.c.id))
    listed = sa.select(sa.literal(operation), place, found.c.backend, found.c.id, found.c.job_id, place_of_backend == 1)
    into = ("operation_id", "n", "backend", "resource_id", "job_id", "canary")
    db.execute(sa.insert(tables.operation_items).from_select(into, listed))
    item = tables.operation_items.c
    return confirm(db, operation, OperationKind.RESTORE, said, digest, item.resource_id, item.job_id)


_OFFBOARDING = text("SELECT kind = 'offboard' FROM operations WHERE id = :id")


def _refuse_unknown(db: Connection, wanted: DeleteFilter) -> None:
    refuse_unknown_scope(db, wanted.backend, wanted.tenant)
    if wanted.operation is not None and not db.execute(_OFFBOARDING, {"id": wanted.operation}).scalar_one_or_none():
        raise BadRequest(f"operation {wanted.operation} is not an offboarding, or does not exist: it deleted nothing")


_RESOURCE, _JOB = tables.resources.c, tables.outbox.c
_ONCE_ACTIVE = _RESOURCE.activated_at.is_not(None)
_NOT_STARTED = sa.and_(
    _JOB.state.in_([JobState.PENDING, JobState.RUNNING, JobState.STUCK]), sa.text(f"({jobs.NOT_STARTED})")
)
_UNHELD = sa.text(f"NOT EXISTS (SELECT FROM holds WHERE {holds.COVERS.format('resources', 'outbox.kind')})")


def _restorable(wanted: DeleteFilter) -> "sa.Select[Any]":
    return _deleting(wanted).where(_ONCE_ACTIVE, _NOT_STARTED)


def _deleting(wanted: DeleteFilter) -> "sa.Select[Any]":
    return _deletes(wanted).where(_RESOURCE.status == ResourceStatus.DELETING)


def _destroyed(wanted: DeleteFilter) -> "sa.Select[Any]":
    found = _deletes(wanted).where(_RESOURCE.status == ResourceStatus.DELETED)
    # Nothing is destroyed before it is deleted; by this the rows are found by an index.
    return found if wanted.deleted_since is None else found.where(_RESOURCE.purged_at >= wanted.deleted_since)


def _deletes(wanted: DeleteFilter) -> "sa.Select[Any]":
    """Each resource with its teardown; its id, its backend and when it was deleted, and the teardown's id."""
    event, item = tables.events.c, tables.operation_items.c
    found = (
        sa.select(_RESOURCE.id, _RESOURCE.backend, _RESOURCE.deleted_at, _JOB.id.label("job_id"))
        .join_from(tables.resources, tables.outbox, _JOB.resource_id == _RESOURCE.id)
        .where(_JOB.kind == JobKind.DEPROVISION, _JOB.state != JobState.CANCELLED)
    )
    if wanted.tenant is not None:
        found = found.where(_RESOURCE.tenant == wanted.tenant)
    if wanted.backend is not None:
        found = found.where(_RESOURCE.backend == wanted.backend)
    if wanted.deleted_since is not None:
        found = found.where(_RESOURCE.deleted_at >= wanted.deleted_since)
    if wanted.deleted_until is not None:
        found = found.where(_RESOURCE.deleted_at < wanted.deleted_until)
    if wanted.actor is not None:
        asked = sa.select(event.job_id).where(
            event.job_id == _JOB.id, event.event == Event.ENQUEUED, event.actor == wanted.actor
        )
        found = found.where(asked.exists())
    if wanted.operation is not None:
        enqueued = sa.select(item.job_id).where(
            item.operation_id == wanted.operation, item.outcome == ItemOutcome.ENQUEUED
        )
        found = found.where(_JOB.id.in_(enqueued))
    return found


def _count(db: Connection, rows: "sa.Select[Any]") -> int:
    return db.execute(sa.select(sa.func.count()).select_from(rows.subquery())).scalar_one()


_AS_LISTED = f"outbox.state IN ('pending', 'running', 'stuck') AND {jobs.NOT_STARTED}"
# The lock keeps each listed teardown as it is until the restore has cancelled it: a resource that was restored and
# deleted again since the preview has another.
_LOCK = text(f"""
    SELECT resource_id FROM outbox
     WHERE id = ANY(:jobs) AND {_AS_LISTED}
     ORDER BY id FOR NO KEY UPDATE""")
_RESTORED = text("""
    UPDATE operation_items AS item
       SET job_id = coalesce(done.job_id, item.job_id),
           outcome = CASE WHEN done.job_id IS NOT NULL THEN 'restoring' ELSE 'skipped' END
      FROM unnest(CAST(:places AS bigint[]), CAST(:jobs AS bigint[])) AS done (n, job_id)
     WHERE operation_id = :id AND item.n = done.n AND outcome IS NULL""")


def restore_step(db: Connection, operation: sa.Row[Any], worker: str) -> tuple[int, float]:
    """Do one step of a bulk restore; returns how many restores it enqueued, and the pause while it waits for canaries.

    A hold does not stop it.
    """
    listed = canaries.eligible(db, operation.id, as_listed=_AS_LISTED, batch=BATCH)
    if not listed:
        return 0, POLL_SECONDS
    unchanged = db.execute(_LOCK, {"jobs": [item.job_id for item in listed]}).scalars().all()
    asked = [(resource, uuid.uuid4()) for resource in unchanged]
    done = jobs.restore_all(db, asked, **attribution(operation, worker)) if asked else {}
    begun = {resource: restored.job.id for resource, restored in done.items() if restored.job is not None}
    places = {"places": [item.n for item in listed], "jobs": [begun.get(item.resource_id) for item in listed]}
    db.execute(_RESTORED, {"id": operation.id} | places)
    return len(begun), 0.0
