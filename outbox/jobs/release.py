"""Out of management: a job that takes the mark off an object, and changes nothing else of it. Never a teardown.

A release and a DELETE meet on the resource's row: each changes its status from `active`, so one of them wins.
"""

import uuid
from dataclasses import dataclass

from sqlalchemy import Connection, text

from outbox import settings
from outbox.commits import CONFIRM
from outbox.errors import Conflict, DeletionProtected, NotActive, NotFound, VersionMismatch
from outbox.events import Event
from outbox.jobs._sql import _EVENT, _confirm_landed, _event, _key
from outbox.jobs.enqueue import _ASKED, refuse_other
from outbox.rows import Claim, Job, Json, Resource, columns, read
from outbox.states import ResourceStatus

_RELEASE = text(f"""
    WITH resource AS (
        UPDATE resources SET status = 'releasing'
         WHERE id = :id AND status = 'active' AND NOT protected
           AND (CAST(:version AS bigint) IS NULL OR version = :version)
           AND NOT EXISTS (SELECT FROM outbox WHERE resource_id = :id AND request_id = :request_id)
     RETURNING *
    ), job AS (
        INSERT INTO outbox (kind, resource_id, backend, max_attempts, request_id)
        SELECT 'release', id, backend, :max_attempts, :request_id FROM resource
     RETURNING *
    ), noted AS (
        INSERT INTO events (job_id, resource_id, fence, event, actor, reason, detail)
        SELECT id, resource_id, fence, '{Event.ENQUEUED}', :actor, :reason,
               jsonb_build_object('request_id', request_id) FROM job
    )
    SELECT {columns(Resource, "resource")}, {columns(Job, "job")}
      FROM resource JOIN job ON resource_id = resource.id""")
_RELEASED_BEFORE = text(f"""
    SELECT {columns(Resource, "resource")}, {columns(Job, "job")}, job.request_id AS request_id,
           {_ASKED.format("job.id")} AS asked, {CONFIRM}
      FROM resources AS resource
      LEFT JOIN outbox AS job ON job.resource_id = resource.id AND job.kind = 'release' AND job.state <> 'cancelled'
     WHERE resource.id = :id""")


@dataclass(frozen=True)
class Released:
    """The result of a release: its job. `won` is True for the one call that began it."""

    resource: Resource
    job: Job
    won: bool


def release(
    db: Connection,
    resource_id: uuid.UUID,
    *,
    actor: str,
    reason: str,
    version: int | None = None,
    request_id: uuid.UUID | None = None,
) -> Released:
    """() -> pending: the resource is `releasing`, and its job takes the mark off its object.

    One that is being released, or was, stays as it is. Raises NotFound, IdempotencyKeyReused, VersionMismatch,
    DeletionProtected, NotActive.
    """
    request_id = request_id or uuid.uuid4()
    asked = {"id": resource_id, "actor": actor, "reason": reason, "version": version, "request_id": request_id}
    asked |= {"max_attempts": settings.get().max_attempts}
    for _ in range(3):  # what forbade it may end between the two statements
        if (row := db.execute(_RELEASE, asked).one_or_none()) is not None:
            return Released(read(Resource, "resource", row), read(Job, "job", row), won=True)
        row = db.execute(_RELEASED_BEFORE, {"id": resource_id}).one_or_none()
        if row is None:
            raise NotFound(f"there is no resource {resource_id}")
        resource = read(Resource, "resource", row)
        if row.job_id is not None:
            if own := row.request_id == request_id:
                refuse_other(row.asked, reason, {})
            return Released(resource, read(Job, "job", row), won=own)
        if version not in (None, resource.version):
            raise VersionMismatch(resource_id, resource.version)
        if resource.status is not ResourceStatus.ACTIVE:
            raise NotActive(f"resource {resource_id} is {resource.status}; only an active one can be released")
        if resource.protected:
            raise DeletionProtected(f"resource {resource_id} is protected; set `protected` to false first")
    raise Conflict(f"resource {resource_id} changes faster than it can be read; try again")


_OUT = """
    UPDATE resources SET status = 'released', credentials = NULL
      FROM job WHERE resources.id = job.resource_id AND status = 'releasing'"""
_LET_GO = text(f"""
    WITH job AS (
        UPDATE outbox
           SET state = 'succeeded', claimed_by = NULL, lease_expires_at = NULL, finished_at = now(), last_error = NULL
         WHERE id = :id AND fence = :fence AND state = 'running' AND kind = 'release'
           AND EXISTS (SELECT FROM resources WHERE resources.id = resource_id AND status = 'releasing')
     RETURNING *
    ), noted AS ({_EVENT}
    ){_OUT}
 RETURNING job.id""")


def let_go(db: Connection, claim: Claim, *, worker: str, seen: Json) -> None:
    """running -> succeeded, for a release: the resource is out of management, and its credentials are forgotten.

    `seen` is the evidence of what was taken off. Raises ClaimLost.
    """
    asked = _key(claim) | _event(Event.RELEASED, worker, detail={"seen": seen})
    if db.execute(_LET_GO, asked).one_or_none() is None:
        _confirm_landed(db, claim, asked)


_LET_GO_BY_HAND = text(f"""
    WITH job AS (
        UPDATE outbox SET state = 'succeeded', stuck_reason = NULL, finished_at = now()
         WHERE id = :id AND fence = :fence AND state = 'stuck' AND kind = 'release'
           AND EXISTS (SELECT FROM resources WHERE resources.id = resource_id AND status = 'releasing')
     RETURNING *
    ), noted AS (
        INSERT INTO events (job_id, resource_id, fence, event, actor, reason, detail)
        SELECT id, resource_id, fence, '{Event.RESOLVED}', :actor, :reason, jsonb_build_object('state', state) FROM job
    ), out AS ({_OUT}
    )
    SELECT {columns(Job, "job")} FROM job""")


def let_go_by_hand(db: Connection, job_id: int, *, fence: int, actor: str, reason: str) -> Job | None:
    """stuck -> succeeded, for a release whose mark a person sees to. None where it is not so."""
    row = db.execute(_LET_GO_BY_HAND, {"id": job_id, "fence": fence, "actor": actor, "reason": reason}).one_or_none()
    return None if row is None else read(Job, "job", row)
