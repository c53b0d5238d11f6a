"""() -> pending: a DELETE that wins, or an expiry. Every other DELETE gets the winner's job."""

import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field

from sqlalchemy import Connection, text

from outbox import settings
from outbox.commits import CONFIRM
from outbox.db import prepared
from outbox.errors import Conflict, DeletionProtected, NotFound
from outbox.events import Event
from outbox.jobs._sql import _WAIT, _skip_locked
from outbox.rows import Job, Json, Resource, columns, read
from outbox.states import ResourceStatus


@dataclass(frozen=True)
class Delete:
    """One caller's request. `tenant` None means an operator; `detail` is kept with the event.

    A caller that lost the answer repeats the request with the same `request_id` and learns whether it had won.
    """

    resource_id: uuid.UUID
    actor: str
    tenant: str | None = None
    reason: str | None = None
    detail: Json = field(default_factory=dict)
    request_id: uuid.UUID = field(default_factory=uuid.uuid4)


@dataclass(frozen=True)
class Enqueued:
    """The result of a DELETE: `won` is True for the one call that set the status to `deleting`."""

    resource: Resource
    job: Job
    won: bool


def _enqueue(asked: str, which: str) -> str:
    return f"""
    WITH asked AS ({asked}
    ), resource AS (
        UPDATE resources
           SET status = 'deleting', deleted_at = now()
          FROM asked
         WHERE resources.id = asked.id AND NOT protected AND {which}
     RETURNING resources.*, asked.request_id, asked.actor, asked.reason, asked.detail
    ), job AS (
        INSERT INTO outbox (kind, resource_id, backend, max_attempts, request_id)
        SELECT 'deprovision', id, backend, :max_attempts, request_id FROM resource
     RETURNING *
    ), noted AS (
        INSERT INTO events (job_id, resource_id, fence, event, actor, reason, detail)
        SELECT job.id, resource_id, fence, '{Event.ENQUEUED}', actor, reason, CAST(detail AS jsonb)
          FROM job JOIN resource ON resource.id = resource_id
         ORDER BY resource_id
    )
    SELECT {columns(Resource, "resource")}, {columns(Job, "job")}, job.request_id AS request_id
      FROM resource JOIN job ON job.resource_id = resource.id"""


# Rows are locked in order of id, so DELETEs and operations over the same resources cannot deadlock. LATERAL keeps
# that order, and finds each row by its key even where the plan was made while the table was small.
_ENQUEUE_TEMPLATE = _enqueue(
    """
        SELECT asked.*
          FROM (SELECT *
                  FROM unnest(CAST(:ids AS uuid[]), CAST(:tenants AS text[]), CAST(:request_ids AS uuid[]),
                              CAST(:actors AS text[]), CAST(:reasons AS text[]), CAST(:details AS text[]))
                       AS asked (id, tenant, request_id, actor, reason, detail)
                 ORDER BY id) AS asked
         CROSS JOIN LATERAL (SELECT FROM resources WHERE resources.id = asked.id {lock}) AS locked""",
    "(asked.tenant IS NULL OR asked.tenant = resources.tenant) AND status IN ('active', 'provisioning')",
)
_ENQUEUE = prepared(_ENQUEUE_TEMPLATE.format(lock=_WAIT))
_ENQUEUE_SKIPPING = prepared(_ENQUEUE_TEMPLATE.format(lock=_skip_locked("asked.id")))

_ENQUEUED_BEFORE = text(f"""
    SELECT {columns(Resource, "resource")}, {columns(Job, "job")}, job.request_id AS request_id,
           {CONFIRM}
      FROM resources AS resource
      LEFT JOIN outbox AS job
             ON job.resource_id = resource.id AND job.kind = 'deprovision' AND job.state <> 'cancelled'
     WHERE resource.id = :id AND (CAST(:tenant AS text) IS NULL OR resource.tenant = :tenant)""")


def enqueue_all(db: Connection, asked: Sequence[Delete], *, waits: bool = True) -> dict[uuid.UUID, Enqueued]:
    """() -> pending, for each request that wins; returns these by `request_id`.

    One statement sets the status and inserts the job. Of several requests for one resource, one wins. Unless it
    `waits`, it skips what another transaction has locked.
    """
    rows = db.execute(
        _ENQUEUE if waits else _ENQUEUE_SKIPPING,
        {
            "ids": [a.resource_id for a in asked],
            "tenants": [a.tenant for a in asked],
            "request_ids": [a.request_id for a in asked],
            "actors": [a.actor for a in asked],
            "reasons": [a.reason for a in asked],
            "details": [json.dumps(a.detail | {"request_id": str(a.request_id)}) for a in asked],
            "max_attempts": settings.get().max_attempts,
        },
    )
    return {row.request_id: Enqueued(read(Resource, "resource", row), read(Job, "job", row), won=True) for row in rows}


def enqueue(
    db: Connection,
    resource_id: uuid.UUID,
    *,
    actor: str,
    tenant: str | None = None,
    reason: str | None = None,
    request_id: uuid.UUID | None = None,
) -> Enqueued:
    """() -> pending, for one resource; a caller that does not win gets the winner's job.

    Raises NotFound, DeletionProtected.
    """
    asked = Delete(resource_id, actor, tenant, reason, request_id=request_id or uuid.uuid4())
    return enqueue_all(db, [asked]).get(asked.request_id) or enqueued_before(db, asked)


def enqueued_before(db: Connection, asked: Delete) -> Enqueued:
    """The result of a DELETE that changed no row: the winner's job, which is its own where only the answer was lost.

    Raises NotFound, DeletionProtected.
    """
    for _ in range(3):  # after a restore between the two statements, this one sees an active resource
        row = db.execute(_ENQUEUED_BEFORE, {"id": asked.resource_id, "tenant": asked.tenant}).one_or_none()
        if row is None:
            raise NotFound(f"there is no resource {asked.resource_id}")
        if row.resource_status in (ResourceStatus.DELETING, ResourceStatus.DELETED):
            if row.job_id is not None:
                won = row.request_id == asked.request_id
                return Enqueued(read(Resource, "resource", row), read(Job, "job", row), won=won)
            raise Conflict(
                f"resource {asked.resource_id} is {row.resource_status}, and its deprovision job is missing; "
                "see `deprovisioner doctor` (deleting_without_job) and docs/runbook.md"
            )
        if row.resource_protected:
            raise DeletionProtected(f"resource {asked.resource_id} is protected; set `protected` to false first")
        if won_now := enqueue_all(db, [asked]):
            return won_now[asked.request_id]
    raise Conflict(f"resource {asked.resource_id} changes faster than it can be read; try again")


_EXPIRE = text(
    _enqueue(
        """
        SELECT id, CAST(:actor AS text) AS actor, 'expired' AS reason, CAST(:request_id AS uuid) AS request_id,
               CAST(NULL AS text) AS detail
          FROM resources
         WHERE status = 'active' AND expires_at <= now() AND NOT protected
         ORDER BY expires_at LIMIT :batch
           FOR UPDATE SKIP LOCKED""",
        "status = 'active'",
    )
)


def expire(db: Connection, *, actor: str, batch: int = 100) -> int:
    """() -> pending, for at most `batch` active resources past their `expires_at`; returns how many."""
    asked = {"actor": actor, "max_attempts": settings.get().max_attempts, "request_id": uuid.uuid4(), "batch": batch}
    return len(db.execute(_EXPIRE, asked).all())
