"""Every transition of a job, its SQL above its function. Nothing else writes a state.

Each is one statement: the guard is in its WHERE, its event in the same transaction. Called on
`db.statement()` it is one round trip. Functions take `db` first and never commit. Zero rows means
that the guard did not hold; `_landed` then tells an answer that was lost from a claim that was.
"""

import json
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, text

from outbox import settings
from outbox.errors import Busy, ClaimLost, Conflict, DeletionProtected, FenceMismatch, JobNotStuck, NotFound, Unwanted
from outbox.rows import Claim, Job, Json, Resource, columns, read
from outbox.states import JobKind, JobState, ResourceStatus, StuckReason

# What every transition writes beside its change; `job` is the CTE that made it. In the order of resources: each
# event locks its resource's chain until commit, and statements that lock several must do so in one order.
_EVENT = """
    INSERT INTO events (job_id, resource_id, fence, event, actor, reason, detail)
    SELECT id, resource_id, fence, :event, :actor, CAST(:reason AS text), CAST(:detail AS jsonb) FROM job
     ORDER BY resource_id"""


@dataclass(frozen=True)
class Enqueued:
    """What a DELETE came to: `won` is True for the one call that flipped the status."""

    resource: Resource
    job: Job
    won: bool


def _enqueue(which: str) -> str:
    return f"""
    WITH resource AS (
        UPDATE resources
           SET status = 'deleting', deleted_at = now()
         WHERE NOT protected AND {which}
     RETURNING *
    ), job AS (
        INSERT INTO outbox (kind, resource_id, backend, max_attempts, request_id)
        SELECT 'deprovision', id, backend, :max_attempts, :request_id FROM resource
     RETURNING *
    ), noted AS ({_EVENT}
    )
    SELECT {columns(Resource, "resource")}, {columns(Job, "job")}
      FROM resource JOIN job ON job.resource_id = resource.id"""


_ENQUEUE = text(
    _enqueue(
        "id = :id AND (CAST(:tenant AS text) IS NULL OR tenant = :tenant) AND status IN ('active', 'provisioning')"
    )
)

_ENQUEUED_BEFORE = text(f"""
    SELECT {columns(Resource, "resource")}, {columns(Job, "job")}, job.request_id AS request_id
      FROM resources AS resource
      LEFT JOIN outbox AS job
             ON job.resource_id = resource.id AND job.kind = 'deprovision' AND job.state <> 'cancelled'
     WHERE resource.id = :id AND (CAST(:tenant AS text) IS NULL OR resource.tenant = :tenant)""")


def enqueue(
    db: Connection,
    resource_id: uuid.UUID,
    *,
    actor: str,
    tenant: str | None = None,
    reason: str | None = None,
    request_id: uuid.UUID | None = None,
) -> Enqueued:
    """() -> pending: the flip and the outbox row are one statement, so one caller wins and none is lost.

    `tenant` None means an operator. A caller that lost the answer passes the same `request_id` again and
    learns whether it was the winner. Raises NotFound, DeletionProtected.
    """
    request_id = request_id or uuid.uuid4()
    asked = {"id": resource_id, "tenant": tenant}
    for _ in range(3):  # a restore between the two statements makes the second see an active resource
        row = db.execute(
            _ENQUEUE,
            asked
            | _note("enqueued", actor, reason=reason, detail={"request_id": str(request_id)})
            | {"max_attempts": settings.get().max_attempts, "request_id": request_id},
        ).one_or_none()
        if row is not None:
            return Enqueued(read(Resource, "resource", row), read(Job, "job", row), won=True)
        row = db.execute(_ENQUEUED_BEFORE, asked).one_or_none()
        if row is None:
            raise NotFound(f"there is no resource {resource_id}")
        if row.job_id is not None:
            won = row.request_id == request_id
            return Enqueued(read(Resource, "resource", row), read(Job, "job", row), won=won)
        if row.resource_protected:
            raise DeletionProtected(f"resource {resource_id} is protected: set `protected` to false first")
    raise Conflict(f"resource {resource_id} changes faster than it can be read; try again")


_EXPIRE = text(
    _enqueue("""id = ANY(ARRAY(
               SELECT id FROM resources
                WHERE status = 'active' AND expires_at <= now() AND NOT protected
                ORDER BY expires_at LIMIT :batch
                  FOR UPDATE SKIP LOCKED)) AND status = 'active'""")
)


def expire(db: Connection, *, actor: str, batch: int = 100) -> int:
    """() -> pending, for every active resource past its `expires_at`; how many."""
    rows = db.execute(
        _EXPIRE,
        _note("enqueued", actor, reason="expired")
        | {"max_attempts": settings.get().max_attempts, "request_id": uuid.uuid4(), "batch": batch},
    )
    return len(rows.all())


_CLAIMS = """
    SELECT job.id, job.kind, job.resource_id, job.backend, job.fence, job.attempts, job.max_attempts,
           job.started_fence, resources.generation, resources.adopted,
           resources.activated_at IS NOT NULL AS activated, resources.manifest,
           breakers.backend IS NOT NULL AS probing,
           EXISTS (SELECT FROM outbox AS other
                    WHERE other.resource_id = job.resource_id AND other.id <> job.id
                      AND other.state = 'running') AS contended
      FROM job
      JOIN resources ON resources.id = job.resource_id
      LEFT JOIN breakers ON breakers.backend = job.backend
     ORDER BY job.available_at, job.id"""

# By backend and in the callers' order: what one backend has waiting costs the others nothing.
# A half-open breaker lets one job through, as its probe.
_CLAIM = text(f"""
    WITH job AS (
        UPDATE outbox
           SET state = 'running', fence = fence + 1, attempts = attempts + 1,
               claimed_by = :actor, lease_expires_at = now() + :lease
         WHERE state = 'pending' AND id = ANY(ARRAY(
               SELECT due.id
                 FROM unnest(CAST(:backends AS text[]), CAST(:rooms AS int[])) AS served (backend, room)
                 LEFT JOIN breakers ON breakers.backend = served.backend
                CROSS JOIN LATERAL (
                      SELECT id FROM outbox
                       WHERE state = 'pending' AND outbox.backend = served.backend AND available_at <= now()
                       ORDER BY available_at, id
                       LIMIT CASE WHEN breakers.backend IS NULL THEN served.room ELSE 1 END
                         FOR UPDATE SKIP LOCKED) AS due
                WHERE breakers.retry_at IS NULL OR breakers.retry_at <= now()
                LIMIT :slots))
     RETURNING *
    ), noted AS ({_EVENT}
    )
    {_CLAIMS}""")


def claim(db: Connection, rooms: Mapping[str, int], *, slots: int, worker: str) -> list[Claim]:
    """pending -> running: at most `slots` due jobs, at most `rooms[backend]` of each backend, in that order."""
    rows = db.execute(
        _CLAIM,
        _note("claimed", worker)
        | {
            "backends": list(rooms),
            "rooms": list(rooms.values()),
            "slots": slots,
            "lease": settings.get().lease,
        },
    )
    return _claims(rows)


_CLAIMED_BEFORE = text(f"""
    WITH job AS (
        SELECT * FROM outbox
         WHERE state = 'running' AND claimed_by = :worker AND lease_expires_at > now()
           AND started_fence IS DISTINCT FROM fence
           AND (id, fence) NOT IN (SELECT * FROM unnest(CAST(:ids AS bigint[]), CAST(:fences AS bigint[])))
         LIMIT :slots
    )
    {_CLAIMS}""")


def claimed_before(db: Connection, held: Sequence[Claim], *, slots: int, worker: str) -> list[Claim]:
    """No arrow: the claims of this worker that it does not hold, for their answer was lost; at most `slots`.

    Only while nobody else claims under the name `worker`: a fence is one pair of hands'.
    """
    ids, fences = [c.id for c in held], [c.fence for c in held]
    return _claims(db.execute(_CLAIMED_BEFORE, {"worker": worker, "ids": ids, "fences": fences, "slots": slots}))


def _claims(rows: Iterable[Row[Any]]) -> list[Claim]:
    return [Claim(**{**row._mapping, "kind": JobKind(row.kind)}) for row in rows]


_HEARTBEAT = text("""
    UPDATE outbox
       SET lease_expires_at = now() + :lease
      FROM unnest(CAST(:ids AS bigint[]), CAST(:fences AS bigint[])) AS held (id, fence)
     WHERE outbox.id = held.id AND outbox.fence = held.fence AND state = 'running'
 RETURNING outbox.id""")


def heartbeat(db: Connection, claims: Sequence[Claim]) -> set[int]:
    """Extend the leases of what this process runs, in one statement; the ids that are still ours."""
    rows = db.execute(
        _HEARTBEAT,
        {"ids": [c.id for c in claims], "fences": [c.fence for c in claims], "lease": settings.get().lease},
    )
    return set(rows.scalars())


# The resource's jobs run one at a time: whichever of two claims committed last sees the other running.
_START = """
    job AS (
        UPDATE outbox
           SET started_fence = fence
         WHERE id = :id AND fence = :fence AND state = 'running' AND lease_expires_at > now()
           AND started_fence IS DISTINCT FROM fence
           AND EXISTS (SELECT FROM resource WHERE resource.id = outbox.resource_id)
           AND NOT EXISTS (SELECT FROM outbox AS other
                            WHERE other.resource_id = outbox.resource_id AND other.id <> outbox.id
                              AND other.state = 'running')
     RETURNING *
    )"""
_START_DEPROVISION = text(f"""
    WITH resource AS (
        SELECT id FROM resources WHERE id = :resource_id AND status = 'deleting'
    ), {_START}, noted AS ({_EVENT}
    )
    SELECT id FROM job""")
# The row lock: a DELETE at this moment comes before, and is seen here, or after, and then sees the manifest.
# What is about to be made is written down first, once: a second attempt makes the very same thing.
_START_PROVISION = text(f"""
    WITH resource AS (
        SELECT id FROM resources WHERE id = :resource_id AND status = 'provisioning' FOR NO KEY UPDATE
    ), {_START}, noted AS ({_EVENT}
    )
    UPDATE resources
       SET manifest = CASE WHEN adopted OR manifest IS NULL THEN CAST(:manifest AS jsonb) ELSE manifest END,
           credentials = COALESCE(credentials, CAST(:credentials AS bytea))
      FROM job WHERE resources.id = job.resource_id
 RETURNING resources.manifest, resources.credentials""")


def start(db: Connection, claim: Claim, *, worker: str, seen: Json | None = None) -> None:
    """running -> running, with the durable mark that from now on the backend may have been touched.

    `seen` is what was looked at before. Raises ClaimLost, Busy, Unwanted; then nothing may be done.
    """
    asked = _of(claim) | _note("started", worker, detail=None if seen is None else {"seen": seen})
    if db.execute(_START_DEPROVISION, asked).one_or_none() is None:
        _start_refused(db, claim, ResourceStatus.DELETING)


def start_provision(
    db: Connection, claim: Claim, *, worker: str, manifest: Json, credentials: bytes | None
) -> tuple[Json, bytes | None]:
    """running -> running, for a birth: stores the planned manifest and encrypted credentials, once.

    Returns those in force, which are the first attempt's. Raises ClaimLost, Busy, Unwanted.
    """
    asked = _of(claim) | _note("started", worker)
    row = db.execute(
        _START_PROVISION, asked | {"manifest": json.dumps(manifest), "credentials": credentials}
    ).one_or_none()
    if row is None:
        _start_refused(db, claim, ResourceStatus.PROVISIONING)
        row = db.execute(
            text("SELECT manifest, credentials FROM resources WHERE id = :id"), {"id": claim.resource_id}
        ).one()
    return row.manifest, None if row.credentials is None else bytes(row.credentials)


def _start_refused(db: Connection, claim: Claim, wanted: ResourceStatus) -> None:
    row = db.execute(
        text("""
        SELECT outbox.fence, outbox.state, outbox.started_fence, lease_expires_at > now() AS alive, resources.status
          FROM outbox JOIN resources ON resources.id = outbox.resource_id
         WHERE outbox.id = :id"""),
        {"id": claim.id},
    ).one()
    if row.fence != claim.fence or row.state != JobState.RUNNING or not row.alive:
        raise ClaimLost(f"job {claim.id}: the claim with fence {claim.fence} is no longer ours")
    if row.started_fence == claim.fence:
        return  # it had landed; only its answer was lost
    if row.status != wanted:
        raise Unwanted(f"job {claim.id}: its resource is {row.status}, not {wanted}")
    raise Busy(f"job {claim.id}: another job of its resource is running")


_COMPLETE = text(f"""
    WITH resource AS (
        SELECT id FROM resources WHERE id = :resource_id AND status = 'deleting' FOR NO KEY UPDATE
    ), job AS (
        UPDATE outbox
           SET state = 'succeeded', claimed_by = NULL, lease_expires_at = NULL, finished_at = now(), last_error = NULL
         WHERE id = :id AND fence = :fence AND state = 'running' AND kind = 'deprovision'
           AND EXISTS (SELECT FROM resource WHERE resource.id = outbox.resource_id)
     RETURNING *
    ), noted AS ({_EVENT}
    )
    UPDATE resources SET status = 'deleted', purged_at = now(), credentials = NULL
      FROM job WHERE resources.id = job.resource_id
 RETURNING job.id""")


def complete(db: Connection, claim: Claim, *, worker: str, seen: Json, did: Json | None = None) -> None:
    """running -> succeeded; the resource is deleted in the same statement.

    `seen` is the evidence that the object was seen to be absent, `did` what this attempt did. Raises ClaimLost.
    """
    asked = _of(claim) | _note("completed", worker, detail={"seen": seen} | ({"did": did} if did else {}))
    if db.execute(_COMPLETE, asked).one_or_none() is None:
        _landed(db, claim, asked)


# Not once the resource is deleted: then what was made must be unmade, and the job may not look well ended.
_ACTIVATE = text(f"""
    WITH resource AS (
        SELECT id FROM resources WHERE id = :resource_id AND status IN ('provisioning', 'deleting') FOR NO KEY UPDATE
    ), job AS (
        UPDATE outbox
           SET state = 'succeeded', claimed_by = NULL, lease_expires_at = NULL, finished_at = now(), last_error = NULL
         WHERE id = :id AND fence = :fence AND state = 'running' AND kind = 'provision'
           AND EXISTS (SELECT FROM resource WHERE resource.id = outbox.resource_id)
     RETURNING *
    ), noted AS ({_EVENT}
    )
    UPDATE resources
       SET manifest = CAST(:manifest AS jsonb),
           status = CASE status WHEN 'provisioning' THEN 'active' ELSE status END,
           activated_at = CASE status WHEN 'provisioning' THEN now() ELSE activated_at END
      FROM job WHERE resources.id = job.resource_id
 RETURNING job.id""")


def activate(db: Connection, claim: Claim, *, worker: str, manifest: Json) -> None:
    """running -> succeeded, for a birth: the manifest with its identity, and the resource active.

    A resource that was deleted meanwhile stays `deleting`: its deprovision job is next. Raises ClaimLost.
    """
    asked = _of(claim) | _note("activated", worker, detail={"manifest": manifest}) | {"manifest": json.dumps(manifest)}
    if db.execute(_ACTIVATE, asked).one_or_none() is None:
        _landed(db, claim, asked)


# Full jitter: anything up to the exponential bound, so that a crowd of failures does not come back as one.
_RETRY = text(f"""
    WITH job AS (
        UPDATE outbox
           SET state = 'pending', claimed_by = NULL, lease_expires_at = NULL, last_error = :error,
               available_at = now() + random() * least(:cap, :base * 2 ^ least(attempts - 1, 30)) * interval '1 second'
         WHERE id = :id AND fence = :fence AND state = 'running' AND attempts < max_attempts
     RETURNING *
    ), noted AS ({_EVENT}
    )
    SELECT id FROM job""")


def retry(db: Connection, claim: Claim, *, worker: str, error: str) -> None:
    """running -> pending, later: exponential backoff with full jitter and a cap, in the row. Raises ClaimLost."""
    asked = _of(claim) | _note("retried", worker, reason=error) | {"error": error}
    if db.execute(_RETRY, asked | _backoff()).one_or_none() is None:
        _landed(db, claim, asked)


_DEFER = text(f"""
    WITH job AS (
        UPDATE outbox
           SET state = 'pending', claimed_by = NULL, lease_expires_at = NULL, last_error = :error,
               attempts = attempts - 1, available_at = greatest(available_at, now() + :delay * interval '1 second')
         WHERE id = :id AND fence = :fence AND state = 'running' AND started_fence IS DISTINCT FROM fence
     RETURNING *
    ), noted AS ({_EVENT}
    )
    SELECT id FROM job""")


def defer(db: Connection, claim: Claim, *, worker: str, error: str, delay: float = 0) -> None:
    """running -> pending, the attempt given back, since nothing was started; `delay` in seconds. Raises ClaimLost."""
    asked = _of(claim) | _note("deferred", worker, reason=error) | {"error": error, "delay": delay}
    if db.execute(_DEFER, asked).one_or_none() is None:
        _landed(db, claim, asked)


_STICK = text(f"""
    WITH job AS (
        UPDATE outbox
           SET state = 'stuck', stuck_reason = :why, claimed_by = NULL, lease_expires_at = NULL, last_error = :error
         WHERE id = :id AND fence = :fence AND state = 'running'
     RETURNING *
    ), noted AS ({_EVENT}
    )
    SELECT id FROM job""")


def stick(db: Connection, claim: Claim, *, worker: str, why: StuckReason, error: str, seen: Json | None = None) -> None:
    """running -> stuck(why): a person's now. Raises ClaimLost."""
    asked = _of(claim) | _note("stuck", worker, reason=error, detail={"stuck_reason": why, "seen": seen})
    if db.execute(_STICK, asked | {"why": why, "error": error}).one_or_none() is None:
        _landed(db, claim, asked)


# An adopted object was there before us: an adoption that fails must never destroy it.
_ROLLBACK = text(f"""
    WITH job AS (
        UPDATE outbox
           SET state = 'cancelled', claimed_by = NULL, lease_expires_at = NULL, finished_at = now(), last_error = :error
         WHERE id = :id AND fence = :fence AND state = 'running' AND kind = 'provision'
           AND EXISTS (SELECT FROM resources
                        WHERE id = outbox.resource_id AND (NOT adopted OR status <> 'provisioning'))
     RETURNING *
    ), noted AS ({_EVENT}
    ), resource AS (
        UPDATE resources SET status = 'deleting', deleted_at = now()
          FROM job WHERE resources.id = job.resource_id AND status = 'provisioning'
     RETURNING resources.id, resources.backend, job.max_attempts, job.request_id
    ), undo AS (
        INSERT INTO outbox (kind, resource_id, backend, max_attempts, request_id)
        SELECT 'deprovision', id, backend, max_attempts, request_id FROM resource
     RETURNING *
    ), undo_noted AS (
        INSERT INTO events (job_id, resource_id, fence, event, actor, reason)
        SELECT id, resource_id, fence, 'enqueued', :actor, 'the provision failed' FROM undo
    )
    SELECT id FROM job""")


def rollback(db: Connection, claim: Claim, *, worker: str, error: str) -> None:
    """running -> cancelled, for a birth that failed or is no longer wanted; what there is of it goes a DELETE's way.

    Raises ClaimLost.
    """
    asked = _of(claim) | _note("rolled_back", worker, reason=error) | {"error": error}
    if db.execute(_ROLLBACK, asked).one_or_none() is None:
        _landed(db, claim, asked)


# A provision goes back to pending even when its attempts are spent: the runner rolls it back.
# Those that were lost together more than once come back one after the other: one of them may be what kills the
# workers, and must not use up the others' attempts with its own.
_SWEEP = text("""
    WITH lost AS (
        SELECT id, claimed_by, kind <> 'provision' AND attempts >= max_attempts AS spent FROM outbox
         WHERE state = 'running' AND lease_expires_at < now()
         ORDER BY lease_expires_at LIMIT :batch
           FOR UPDATE SKIP LOCKED
    ), placed AS (
        SELECT *, row_number() OVER (ORDER BY id) - 1 AS place FROM lost
    ), job AS (
        UPDATE outbox
           SET state = CASE WHEN spent THEN 'stuck' ELSE 'pending' END,
               stuck_reason = CASE WHEN spent THEN 'attempts_exhausted' END,
               last_error = 'the lease of ' || placed.claimed_by || ' passed: it died, or stood still',
               available_at = CASE WHEN attempts < 2 THEN available_at ELSE
                   now() + least(:cap, place * :base * 2 ^ least(attempts - 2, 30)) * interval '1 second' END,
               claimed_by = NULL, lease_expires_at = NULL
          FROM placed
         WHERE outbox.id = placed.id AND state = 'running' AND lease_expires_at < now()
     RETURNING outbox.*
    ), noted AS (
        INSERT INTO events (job_id, resource_id, fence, event, actor, reason, detail)
        SELECT id, resource_id, fence, 'swept', :actor, last_error, jsonb_build_object('state', state) FROM job
         ORDER BY resource_id
    )
    SELECT id, state FROM job""")


def sweep(db: Connection, *, actor: str, batch: int = 100) -> int:
    """running -> pending, or stuck when the attempts are spent, for claims whose lease has passed; how many."""
    return len(db.execute(_SWEEP, {"actor": actor, "batch": batch} | _backoff()).all())


_REDRIVE = text(f"""
    WITH job AS (
        UPDATE outbox
           SET state = 'pending', stuck_reason = NULL, attempts = 0, available_at = now()
         WHERE id = :id AND fence = :fence AND state = 'stuck'
     RETURNING *
    ), noted AS ({_EVENT}
    )
    SELECT {columns(Job, "job")} FROM job""")


def redrive(db: Connection, job_id: int, *, fence: int, actor: str, reason: str) -> Job:
    """stuck -> pending with fresh attempts; fence and history stay, and the run observes before it acts.

    `fence` is the one the operator saw. Raises NotFound, JobNotStuck, FenceMismatch.
    """
    row = db.execute(_REDRIVE, {"id": job_id, "fence": fence} | _note("redriven", actor, reason=reason)).one_or_none()
    if row is not None:
        return read(Job, "job", row)
    now = db.execute(text("SELECT state, fence FROM outbox WHERE id = :id"), {"id": job_id}).one_or_none()
    if now is None:
        raise NotFound(f"there is no job {job_id}")
    if now.state != JobState.STUCK:
        raise JobNotStuck(f"job {job_id} is {now.state}; only a stuck job can be re-driven")
    raise FenceMismatch(f"job {job_id} has moved on: its fence is {now.fence}, not {fence}; look at it again")


_LATE = text(f"WITH job AS (SELECT * FROM outbox WHERE id = :id), noted AS ({_EVENT}) SELECT id FROM job")


def note_late(db: Connection, claim: Claim, *, worker: str, news: Json) -> None:
    """No arrow: what a worker saw after its claim was gone is evidence; kept, never applied."""
    db.execute(_LATE, {"id": claim.id} | _note("late", worker, detail=news | {"fence": claim.fence}))


def _backoff() -> Json:
    return {"base": settings.get().backoff_base_seconds, "cap": settings.get().backoff_max_seconds}


def _of(claim: Claim) -> Json:
    return {"id": claim.id, "fence": claim.fence, "resource_id": claim.resource_id}


def _note(event: str, actor: str, *, reason: str | None = None, detail: Json | None = None) -> Json:
    return {
        "event": event,
        "actor": actor,
        "reason": reason,
        "detail": None if detail is None else json.dumps(detail),
    }


_NOTED = text("""
    SELECT state, fence, EXISTS (SELECT FROM events WHERE job_id = :id AND fence = :fence AND event = :event) AS noted
      FROM outbox WHERE id = :id""")


def _landed(db: Connection, claim: Claim, asked: Json) -> None:
    """Return when our own write had landed and only its answer was lost; else raise ClaimLost."""
    row = db.execute(_NOTED, asked).one()
    if not row.noted:
        raise ClaimLost(f"job {claim.id}: fence {claim.fence} is no longer ours (now {row.state}, fence {row.fence})")
