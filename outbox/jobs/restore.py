"""Taking a teardown back, and bringing its destruction forward.

A restore and a start at `destroy` meet on the job's row: the start marks it, the restore cancels it while it has no
mark, and each waits for the other's lock. So one of them wins.
"""

import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, text

from outbox import approvals, holds, settings
from outbox.approvals import Approval
from outbox.commits import CONFIRM
from outbox.errors import (
    Conflict,
    FenceMismatch,
    NotDeleting,
    NotFound,
    NothingToRestore,
    OutOfManagement,
    TeardownStarted,
    VersionMismatch,
)
from outbox.events import ENDS_DELETION, Event, quoted
from outbox.jobs.enqueue import _ASKED, refuse_other
from outbox.rows import Job, Json, Resource, columns, read
from outbox.states import ForcedAction, JobKind, ResourceStatus

# Whether a teardown can still be taken back. Before revision 0011 a start did not say its step: it destroyed.
NOT_STARTED = "started_step IS DISTINCT FROM 'destroy' AND (step IS NOT NULL OR started_fence IS NULL)"
# Jobs, then resources, then chains, each in the order in which workers and DELETEs lock them.
_LOCK = """
    SELECT FROM outbox
     WHERE resource_id = ANY(CAST(:ids AS uuid[])) AND kind = 'deprovision' AND state <> 'cancelled'
     ORDER BY id FOR NO KEY UPDATE;
    SELECT pg_advisory_xact_lock(hashtextextended(CAST(id AS text), 0))
      FROM (SELECT id FROM resources WHERE id = ANY(CAST(:ids AS uuid[])) ORDER BY id FOR NO KEY UPDATE) AS locked
     ORDER BY id;"""
# Each request of a restore.
_ASKED_FOR = """WITH asked AS (
        SELECT * FROM unnest(CAST(:ids AS uuid[]), CAST(:request_ids AS uuid[]), CAST(:details AS text[]))
               AS asked (id, request_id, detail)
    )"""
_RESTORE = text(f"""{_LOCK}
    {_ASKED_FOR}, job AS (
        UPDATE outbox
           SET state = 'cancelled', stuck_reason = NULL, claimed_by = NULL, lease_expires_at = NULL, held_by = NULL,
               finished_at = now()
          FROM asked JOIN resources ON resources.id = asked.id
         WHERE resource_id = asked.id AND outbox.kind = 'deprovision' AND state IN ('pending', 'running', 'stuck')
           AND {NOT_STARTED} AND resources.status = 'deleting' AND activated_at IS NOT NULL
           AND (CAST(:tenant AS text) IS NULL OR tenant = :tenant)
           AND (CAST(:version AS bigint) IS NULL OR version = :version)
           AND NOT EXISTS (SELECT FROM holds WHERE {holds.RETIRED} AND subject = resources.backend)
           AND NOT EXISTS (SELECT FROM outbox AS before
                            WHERE before.resource_id = asked.id AND before.request_id = asked.request_id
                              AND before.kind = 'restore')
     RETURNING outbox.*
    ), noted AS (
        INSERT INTO events (job_id, resource_id, fence, event, actor, reason, detail)
        SELECT id, resource_id, fence, '{Event.CANCELLED}', :actor, :reason, jsonb_build_object('step', step)
          FROM job ORDER BY resource_id
    )
    SELECT id FROM job""")
# A statement of its own: the trigger that lets the status leave `deleting` must find the teardown cancelled.
_RESTORE_RESOURCES = text(f"""
    {_ASKED_FOR}, resource AS (
        UPDATE resources
           SET status = 'restoring', deleted_at = NULL, purge_at = NULL,
               expires_at = CASE WHEN expires_at > now() THEN expires_at END
          FROM asked, outbox AS cancelled
         WHERE resources.id = asked.id AND status = 'deleting' AND cancelled.id = ANY(CAST(:cancelled AS bigint[]))
           AND cancelled.resource_id = asked.id
     RETURNING resources.*, asked.request_id, detail
    ), job AS (
        INSERT INTO outbox (kind, resource_id, backend, max_attempts, request_id)
        SELECT 'restore', id, backend, :max_attempts, request_id FROM resource
     RETURNING *
    ), noted AS (
        INSERT INTO events (job_id, resource_id, fence, event, actor, reason, detail)
        SELECT job.id, resource_id, fence, '{Event.ENQUEUED}', :actor, :reason, CAST(detail AS jsonb)
          FROM job JOIN resource ON resource.id = resource_id ORDER BY resource_id
    )
    SELECT {columns(Resource, "resource")}, {columns(Job, "job")}, job.request_id AS request_id
      FROM resource JOIN job ON job.resource_id = resource.id""")
_NOW = text(f"""
    SELECT {columns(Resource, "resource")}, {columns(Job, "job")}, resource.activated_at,
           job.request_id AS request_id, job.kind AS job_kind,
           CASE WHEN job.request_id = CAST(:request_id AS uuid) THEN {_ASKED.format("job.id")} END AS asked, {CONFIRM}
      FROM resources AS resource
      LEFT JOIN LATERAL (
           SELECT * FROM outbox
            WHERE resource_id = resource.id AND (kind = 'deprovision' OR kind = 'restore') AND
                  (kind = 'restore' OR state <> 'cancelled')
            ORDER BY request_id = CAST(:request_id AS uuid) DESC, id DESC LIMIT 1) AS job ON true
     WHERE resource.id = :id AND (CAST(:tenant AS text) IS NULL OR resource.tenant = :tenant)""")


@dataclass(frozen=True)
class Restored:
    """The result of a restore: its job, None where the resource is active and was never restored.

    `won` is True for the one call that took the teardown back.
    """

    resource: Resource
    job: Job | None
    won: bool


def restore_all(
    db: Connection,
    asked: Sequence[tuple[uuid.UUID, uuid.UUID]],
    *,
    actor: str,
    reason: str,
    tenant: str | None = None,
    version: int | None = None,
    detail: Json | None = None,
) -> dict[uuid.UUID, Restored]:
    """Cancel the teardown of each resource, and enqueue a job that gives it back; returns what moved, by resource.

    `asked` has each resource with its request's id. Until its destruction starts each is restored, whatever the
    teardown's state, and under holds too. An expiry that has passed is lifted. `db` must be a transaction.
    """
    words = {
        "ids": [resource for resource, _ in asked],
        "request_ids": [request for _, request in asked],
        "details": [json.dumps((detail or {}) | {"request_id": str(request)}) for _, request in asked],
        "actor": actor,
        "reason": reason,
        "tenant": tenant,
        "version": version,
        "max_attempts": settings.get().max_attempts,
    }
    cancelled = list(db.execute(_RESTORE, words).scalars())
    rows = db.execute(_RESTORE_RESOURCES, words | {"cancelled": cancelled}) if cancelled else ()
    return {row.resource_id: Restored(read(Resource, "resource", row), read(Job, "job", row), won=True) for row in rows}


def restore(
    db: Connection,
    resource_id: uuid.UUID,
    *,
    actor: str,
    reason: str,
    tenant: str | None = None,
    version: int | None = None,
    request_id: uuid.UUID | None = None,
) -> Restored:
    """`restore_all` of one resource. One that is active, or being restored, stays as it is.

    Raises NotFound, IdempotencyKeyReused, VersionMismatch, OutOfManagement, TeardownStarted, NothingToRestore,
    BackendRetired.
    """
    request_id = request_id or uuid.uuid4()
    for _ in range(3):  # a DELETE or the end of a restore may come between the two statements
        if moved := restore_all(
            db, [(resource_id, request_id)], actor=actor, reason=reason, tenant=tenant, version=version
        ):
            return moved[resource_id]
        row = db.execute(_NOW, {"id": resource_id, "tenant": tenant, "request_id": request_id}).one_or_none()
        if row is None:
            raise NotFound(f"there is no resource {resource_id}")
        resource = read(Resource, "resource", row)
        job = None if row.job_id is None else read(Job, "job", row)
        if job is not None and row.request_id == request_id:
            refuse_other(row.asked, reason, {})
            return Restored(resource, job, won=True)
        if version not in (None, resource.version):
            raise VersionMismatch(resource_id, resource.version)
        if resource.status in (ResourceStatus.ACTIVE, ResourceStatus.RESTORING):
            return Restored(resource, job if row.job_kind == JobKind.RESTORE else None, won=False)
        if resource.status in (ResourceStatus.RELEASING, ResourceStatus.RELEASED):
            raise OutOfManagement(f"resource {resource_id} is {resource.status}: it was never cut off")
        holds.refuse_retired(db, resource.backend)
        if row.activated_at is None:
            raise NothingToRestore(f"resource {resource_id} was never active: there is nothing to give back")
        if _has_started(db, resource_id):
            raise TeardownStarted(f"resource {resource_id}: its destruction has started, and cannot be taken back")
        if resource.status is ResourceStatus.DELETED:
            raise TeardownStarted(
                f"resource {resource_id}: its object is not there, and no destruction of ours had started: "
                f"{_ended(db, resource_id)}; find out who removed it"
            )
    raise Conflict(f"resource {resource_id} changes faster than it can be read; try again")


def _has_started(db: Connection, resource_id: uuid.UUID) -> bool:
    asked = f"""
        SELECT EXISTS (SELECT FROM outbox
                        WHERE resource_id = :id AND kind = 'deprovision' AND state <> 'cancelled'
                          AND NOT ({NOT_STARTED}))"""
    return bool(db.execute(text(asked), {"id": resource_id}).scalar_one())


def _ended(db: Connection, resource_id: uuid.UUID) -> str:
    """How a deletion ended that destroyed nothing, in words."""
    asked = f"""
        SELECT event, actor, to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS') AS at FROM events
         WHERE resource_id = :id AND event IN ({quoted(*ENDS_DELETION)}) ORDER BY id DESC LIMIT 1"""
    row = db.execute(text(asked), {"id": resource_id}).one_or_none()
    if row is None:
        return "no event says who ended its deletion"
    did = "found it absent" if row.event == Event.COMPLETED else "ended its teardown"
    return f"{row.actor} {did} at {row.at} UTC"


# A purge of this request, with its job as it is now.
_PURGED_BEFORE = text(f"""
    SELECT {columns(Resource, "resource")}, {columns(Job, "job")},
           jsonb_build_object('reason', events.reason) AS asked, {CONFIRM}
      FROM events JOIN outbox AS job ON job.id = job_id JOIN resources AS resource ON resource.id = events.resource_id
     WHERE events.resource_id = :id AND event = '{Event.PURGE_ORDERED}' AND detail ->> 'request_id' = :request_id""")
_LOCK_TEARDOWN = text(_LOCK)
_DELETING = text(f"""
    SELECT {columns(Resource, "resource")}, {columns(Job, "job")}, resource.purge_at > now() AS early
      FROM resources AS resource
      LEFT JOIN outbox AS job
             ON job.resource_id = resource.id AND job.kind = 'deprovision' AND job.state <> 'cancelled'
     WHERE resource.id = :id""")
_APPROVE = text(f"""
    UPDATE approvals SET approved_by = :actor, approved_at = now()
     WHERE action = :action AND job_id = :id AND fence = :fence AND approved_at IS NULL AND proposed_by <> :actor
       AND proposed_at > now() - :life AND NOT {approvals.REVOKED.format("approvals")}
 RETURNING jsonb_build_object('proposed_by', proposed_by, 'approved_by', approved_by)""")
# The event comes first, in a statement of its own: the trigger that lets `purge_at` be lowered looks for it.
_ORDER = text(f"""
    INSERT INTO events (job_id, resource_id, fence, event, actor, reason, detail)
    SELECT outbox.id, resource_id, fence, '{Event.PURGE_ORDERED}', :actor, :reason,
           CAST(:detail AS jsonb) || jsonb_build_object('purge_at', purge_at)
      FROM outbox JOIN resources ON resources.id = resource_id
     WHERE resource_id = :id AND outbox.kind = 'deprovision' AND state IN ('pending', 'running', 'stuck')
       AND status = 'deleting' AND purge_at > now()
 RETURNING job_id""")
_PURGE = text(f"""
    WITH resource AS (
        UPDATE resources SET purge_at = now() WHERE id = :id AND status = 'deleting' AND purge_at > now()
     RETURNING *
    ), job AS (
        UPDATE outbox SET available_at = CASE WHEN step = 'wait' AND state = 'pending' THEN now() ELSE available_at END
          FROM resource
         WHERE resource_id = resource.id AND outbox.kind = 'deprovision' AND state <> 'cancelled'
     RETURNING outbox.*
    )
    SELECT {columns(Resource, "resource")}, {columns(Job, "job")} FROM resource JOIN job ON true""")


def purge(
    db: Connection,
    resource_id: uuid.UUID,
    *,
    actor: str,
    reason: str,
    version: int | None = None,
    two: bool = False,
    request_id: uuid.UUID | None = None,
) -> tuple[Resource, Job] | Approval:
    """Let the destruction start now; the earlier steps are still done first. One whose time has come stays as it is.

    Where it takes `two` operators, the first one's call returns an Approval. `db` must be a transaction. Raises
    NotFound, IdempotencyKeyReused, NotDeleting, VersionMismatch, FenceMismatch.
    """
    request_id = request_id or uuid.uuid4()
    db.execute(_LOCK_TEARDOWN, {"ids": [resource_id]})  # what is read below stays so
    before = db.execute(_PURGED_BEFORE, {"id": resource_id, "request_id": str(request_id)}).one_or_none()
    if before is not None:
        refuse_other(before.asked, reason, {})
        return read(Resource, "resource", before), read(Job, "job", before)
    row = db.execute(_DELETING, {"id": resource_id}).one_or_none()
    if row is None:
        raise NotFound(f"there is no resource {resource_id}")
    resource = read(Resource, "resource", row)
    if version not in (None, resource.version):
        raise VersionMismatch(resource_id, resource.version)
    if resource.status is not ResourceStatus.DELETING or row.job_id is None:
        raise NotDeleting(f"resource {resource_id} is {resource.status}: only what is being deleted can be purged")
    job = read(Job, "job", row)
    if not row.early:
        return resource, job
    detail: Json = {"request_id": str(request_id)}
    if two:
        proposal = approvals.propose(db, ForcedAction.PURGE, job.id, fence=job.fence, actor=actor, reason=reason)
        if proposal is not None and proposal.proposed_by == actor:
            return proposal
        by = {"id": job.id, "fence": job.fence, "actor": actor, "action": ForcedAction.PURGE, "life": approvals.LIFE}
        detail |= db.execute(_APPROVE, by).scalar_one_or_none() or {}
        if "approved_by" not in detail:
            raise FenceMismatch(f"job {job.id} has moved on; read it again")
    asked = {"id": resource_id, "actor": actor, "reason": reason}
    db.execute(_ORDER, asked | {"detail": json.dumps(detail)}).one()
    row = db.execute(_PURGE, asked).one()
    return read(Resource, "resource", row), read(Job, "job", row)
