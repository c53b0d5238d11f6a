"""Every transition of a job, its SQL above its function. Nothing else writes a state.

Each is one statement: the guard is in its WHERE, its event in the same transaction. Called on
`db.statement()` it is one round trip. Functions take `db` first and never commit. Zero rows means
that the guard did not hold; `_landed` then tells an answer that was lost from a claim that was.
"""

import datetime as dt
import json
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, assert_never

from sqlalchemy import Connection, Row, TextClause, text

from outbox import advice, approvals, brakes, holds, settings
from outbox.approvals import Action, Approval
from outbox.db import prepared
from outbox.errors import (
    Busy,
    ClaimLost,
    Conflict,
    DeletionProtected,
    FenceMismatch,
    Held,
    JobNotStuck,
    NotFound,
    NothingToForce,
    NotObserved,
    StillThere,
    StillWanted,
    Unwanted,
)
from outbox.rows import Claim, Job, Json, Resource, columns, read
from outbox.settings import Brake
from outbox.states import Found, JobKind, JobState, ResourceStatus, StuckReason

# What every transition writes beside its change; `job` is the CTE that made it. In the order of resources: each
# event locks its resource's chain until commit, and statements that lock several must do so in one order.
_EVENT_OF = """
    INSERT INTO events (job_id, resource_id, fence, event, actor, reason, detail)
    SELECT id, resource_id, fence, :event, :actor, {reason}, CAST({detail} AS jsonb) FROM job
     ORDER BY resource_id"""
_EVENT = _EVENT_OF.format(reason="CAST(:reason AS text)", detail=":detail")
_EVENT_EACH = _EVENT_OF.format(reason="NULL", detail="detail")  # where each row has brought its own


@dataclass(frozen=True)
class Delete:
    """What one caller asks for. `tenant` None means an operator; `detail` is kept with the event.

    A caller that lost the answer asks with the same `request_id` again and learns whether it was the winner.
    """

    resource_id: uuid.UUID
    actor: str
    tenant: str | None = None
    reason: str | None = None
    detail: Json = field(default_factory=dict)
    request_id: uuid.UUID = field(default_factory=uuid.uuid4)


@dataclass(frozen=True)
class Enqueued:
    """What a DELETE came to: `won` is True for the one call that flipped the status."""

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
        SELECT job.id, resource_id, fence, 'enqueued', actor, reason, CAST(detail AS jsonb)
          FROM job JOIN resource ON resource.id = resource_id
         ORDER BY resource_id
    )
    SELECT {columns(Resource, "resource")}, {columns(Job, "job")}, job.request_id AS request_id
      FROM resource JOIN job ON job.resource_id = resource.id"""


def _if_free(statement: TextClause, resource: str) -> TextClause:
    """The same, but what somebody else holds is left out, not waited for: the rows, and the chain of the `resource`."""
    chain = f"pg_try_advisory_xact_lock(hashtextextended(CAST({resource} AS text), 0))"  # as its trigger will take it
    return prepared(statement.text.replace("FOR NO KEY UPDATE", f"AND {chain} FOR NO KEY UPDATE SKIP LOCKED"))


# Rows are locked in one order: DELETEs and operations over the same resources wait for each other, never in a circle.
# LATERAL keeps that order, and has the row looked up by its key however small the table was when the plan was made.
_ENQUEUE = prepared(
    _enqueue(
        """
        SELECT asked.*
          FROM (SELECT *
                  FROM unnest(CAST(:ids AS uuid[]), CAST(:tenants AS text[]), CAST(:request_ids AS uuid[]),
                              CAST(:actors AS text[]), CAST(:reasons AS text[]), CAST(:details AS text[]))
                       AS asked (id, tenant, request_id, actor, reason, detail)
                 ORDER BY id) AS asked
         CROSS JOIN LATERAL (SELECT FROM resources WHERE resources.id = asked.id FOR NO KEY UPDATE) AS locked""",
        "(asked.tenant IS NULL OR asked.tenant = resources.tenant) AND status IN ('active', 'provisioning')",
    )
)
_ENQUEUE_IF_FREE = _if_free(_ENQUEUE, "asked.id")

_ENQUEUED_BEFORE = text(f"""
    SELECT {columns(Resource, "resource")}, {columns(Job, "job")}, job.request_id AS request_id
      FROM resources AS resource
      LEFT JOIN outbox AS job
             ON job.resource_id = resource.id AND job.kind = 'deprovision' AND job.state <> 'cancelled'
     WHERE resource.id = :id AND (CAST(:tenant AS text) IS NULL OR resource.tenant = :tenant)""")


def enqueue_all(db: Connection, asked: Sequence[Delete], *, waits: bool = True) -> dict[uuid.UUID, Enqueued]:
    """() -> pending, for each that a DELETE may win, by `request_id`: the flip and the outbox row are one statement.

    Of several for one resource one wins. Unless it `waits`, those whose resource somebody holds are left out.
    """
    rows = db.execute(
        _ENQUEUE if waits else _ENQUEUE_IF_FREE,
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
    """() -> pending, of one resource; every other caller learns of the winner's job.

    Raises NotFound, DeletionProtected.
    """
    asked = Delete(resource_id, actor, tenant, reason, request_id=request_id or uuid.uuid4())
    return enqueue_all(db, [asked]).get(asked.request_id) or enqueued_before(db, asked)


def enqueued_before(db: Connection, asked: Delete) -> Enqueued:
    """What a DELETE that did not win comes to: the winner's job, which may be its own, of an answer that was lost.

    Raises NotFound, DeletionProtected.
    """
    for _ in range(3):  # a restore between the two statements makes this one see an active resource
        row = db.execute(_ENQUEUED_BEFORE, {"id": asked.resource_id, "tenant": asked.tenant}).one_or_none()
        if row is None:
            raise NotFound(f"there is no resource {asked.resource_id}")
        if row.resource_status in (ResourceStatus.DELETING, ResourceStatus.DELETED):
            if row.job_id is not None:
                won = row.request_id == asked.request_id
                return Enqueued(read(Resource, "resource", row), read(Job, "job", row), won=won)
            raise Conflict(
                f"resource {asked.resource_id} is {row.resource_status}, and its deprovision job is missing: "
                "`deprovisioner doctor` (deleting_without_job) and docs/runbook.md tell what to do"
            )
        if row.resource_protected:
            raise DeletionProtected(f"resource {asked.resource_id} is protected: set `protected` to false first")
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
    """() -> pending, for every active resource past its `expires_at`; how many."""
    asked = {"actor": actor, "max_attempts": settings.get().max_attempts, "request_id": uuid.uuid4(), "batch": batch}
    return len(db.execute(_EXPIRE, asked).all())


# Not `other.state = 'running'`, which is the same, by a CHECK: with few jobs running the planner would take the index
# of the leases for it, and read all that vacuum has not removed there, for each job.
_CLAIMS = """
    SELECT job.id, job.kind, job.resource_id, job.backend, job.fence, job.attempts, job.max_attempts,
           job.started_fence, job.forced_fence, job.available_at, resources.tenant, resources.generation,
           resources.adopted, resources.activated_at IS NOT NULL AS activated, resources.manifest,
           breakers.backend IS NOT NULL AS probing,
           EXISTS (SELECT FROM outbox AS other
                    WHERE other.resource_id = job.resource_id AND other.id <> job.id
                      AND other.claimed_by IS NOT NULL) AS contended
      FROM job
      JOIN resources ON resources.id = job.resource_id
      LEFT JOIN breakers ON breakers.backend = job.backend
     ORDER BY job.available_at, job.id"""

# By backend and in the callers' order: what one backend has waiting costs the others nothing.
# A half-open breaker lets one job through in all, as its probe, which keeps the next one away for a lease; probes
# go first, so that the slots cannot run out between the breaker and its job.
# The outer guard is less than the index of pending jobs says, or the planner might look the ids up in that.
_CLAIM = prepared(f"""
    WITH served AS (
        SELECT asked.*
          FROM unnest(CAST(:backends AS text[]), CAST(:kinds AS text[]), CAST(:rooms AS int[]),
                      CAST(:since AS text[]), CAST(:after AS bigint[]))
               WITH ORDINALITY AS asked (backend, kind, room, since, after, place)
         WHERE NOT EXISTS (SELECT FROM holds
                            WHERE released_at IS NULL AND cause = 'operator'
                              AND (scope = 'global' OR (scope = 'backend' AND subject = asked.backend)
                                   OR (scope = 'kind' AND subject = asked.kind)))
    ), probe AS (
        UPDATE breakers SET retry_at = now() + :lease
         WHERE backend = ANY(ARRAY(
               SELECT breakers.backend FROM breakers JOIN served USING (backend)
                WHERE retry_at <= now()
                  AND EXISTS (SELECT FROM outbox
                               WHERE state = 'pending' AND held_by IS NULL AND outbox.backend = breakers.backend
                                 AND available_at <= now())
                LIMIT :slots
                  FOR UPDATE OF breakers SKIP LOCKED))
     RETURNING backend
    ), job AS (
        UPDATE outbox
           SET state = 'running', fence = fence + 1, attempts = attempts + 1,
               claimed_by = :actor, lease_expires_at = now() + :lease
         WHERE state = 'pending' AND id = ANY(ARRAY(
               SELECT due.id
                 FROM (SELECT served.backend, CASE WHEN probe.backend IS NULL THEN served.room ELSE 1 END AS room,
                              CAST(since AS timestamptz) AS since, after
                         FROM served
                         LEFT JOIN probe ON probe.backend = served.backend
                         LEFT JOIN breakers ON breakers.backend = served.backend
                        WHERE breakers.backend IS NULL OR probe.backend IS NOT NULL
                        ORDER BY probe.backend IS NULL, served.place) AS open
                CROSS JOIN LATERAL (
                      SELECT id FROM outbox
                       WHERE state = 'pending' AND held_by IS NULL AND outbox.backend = open.backend
                         AND available_at <= now() AND (available_at, id) > (open.since, open.after)
                       ORDER BY available_at, id
                       LIMIT open.room
                         FOR UPDATE SKIP LOCKED) AS due
                LIMIT :slots))
     RETURNING *
    ), noted AS ({_EVENT}
    )
    {_CLAIMS}""")


def claim(
    db: Connection, rooms: Mapping[str, int], *, slots: int, worker: str, passed: Mapping[str, Claim] | None = None
) -> list[Claim]:
    """pending -> running: at most `slots` due jobs, at most `rooms[backend]` of each backend, in that order.

    None of a backend that is held as a whole; what a hold on its tenant or a brake covers is refused by `start`.
    Of a backend in `passed`, only what comes after that claim's place in the order.
    """
    configured = settings.backends()
    last = [(passed or {}).get(name) for name in rooms]
    rows = db.execute(
        _CLAIM,
        _note("claimed", worker)
        | {
            "backends": list(rooms),
            "kinds": [configured[name].kind if name in configured else None for name in rooms],
            "rooms": list(rooms.values()),
            "since": [str(claim.available_at) if claim else "-infinity" for claim in last],
            "after": [claim.id if claim else 0 for claim in last],
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


# Of these claims, those that are still ours, locked in one order as above: heartbeats, starts and completions of the
# same jobs wait in no circle. By the CHECK only a running job has a `claimed_by`; asked for its `state`, the planner
# may walk the index of leases, dead entries and all.
_OURS = """
    ours AS (
        SELECT job.id, resource_id, detail
          FROM (SELECT *
                  FROM unnest(CAST(:ids AS bigint[]), CAST(:fences AS bigint[]), CAST(:details AS text[]))
                       AS asked (id, fence, detail)
                 ORDER BY id) AS asked
         CROSS JOIN LATERAL (
               SELECT id, resource_id FROM outbox
                WHERE outbox.id = asked.id AND outbox.fence = asked.fence AND claimed_by IS NOT NULL
                  FOR NO KEY UPDATE) AS job
    )"""


def _ours(asked: Sequence[tuple[Claim, Json | None]]) -> Json:
    return {
        "ids": [claim.id for claim, _ in asked],
        "fences": [claim.fence for claim, _ in asked],
        "details": [None if detail is None else json.dumps(detail) for _, detail in asked],
    }


_HEARTBEAT = prepared(f"""
    WITH {_OURS}
    UPDATE outbox
       SET lease_expires_at = now() + :lease
      FROM ours WHERE outbox.id = ours.id
 RETURNING outbox.id""")


def heartbeat(db: Connection, claims: Sequence[Claim]) -> set[int]:
    """Extend the leases of what this process runs, in one statement; the ids that are still ours."""
    rows = db.execute(_HEARTBEAT, _ours([(claim, None) for claim in claims]) | {"lease": settings.get().lease})
    return set(rows.scalars())


# The resource's jobs run one at a time: whichever of two claims committed last sees the other running.
_START = f"""
    job AS (
        UPDATE outbox
           SET started_fence = fence
          FROM resource
         WHERE outbox.id = job_id AND lease_expires_at > now() AND started_fence IS DISTINCT FROM fence
           AND NOT EXISTS (SELECT FROM holds WHERE {holds.COVERS.format("resource", "outbox.kind")})
           AND NOT EXISTS (SELECT FROM outbox AS other
                            WHERE other.resource_id = outbox.resource_id AND other.id <> outbox.id
                              AND other.claimed_by IS NOT NULL)
     RETURNING outbox.*, detail
    )"""
_START_DEPROVISION = prepared(f"""
    WITH {_OURS}, resource AS (
        SELECT resources.*, ours.id AS job_id, detail FROM ours JOIN resources ON resources.id = resource_id
         WHERE status = 'deleting'
    ), {_START}, noted AS ({_EVENT_EACH}
    )
    SELECT id, fence FROM job""")
_START_IF_FREE = _if_free(_START_DEPROVISION, "resource_id")
# The row lock: a DELETE at this moment comes before, and is seen here, or after, and then sees the manifest.
# What is about to be made is written down first, once: a second attempt makes the very same thing.
_START_PROVISION = text(f"""
    WITH {_OURS}, resource AS (
        SELECT resources.*, ours.id AS job_id, detail FROM ours JOIN resources ON resources.id = resource_id
         WHERE status = 'provisioning' FOR NO KEY UPDATE OF resources
    ), {_START}, noted AS ({_EVENT_EACH}
    )
    UPDATE resources
       SET manifest = CASE WHEN adopted OR manifest IS NULL THEN CAST(:manifest AS jsonb) ELSE manifest END,
           credentials = COALESCE(credentials, CAST(:credentials AS bytea))
      FROM job WHERE resources.id = job.resource_id
 RETURNING resources.manifest, resources.credentials""")


def start_all(
    db: Connection, seen: Sequence[tuple[Claim, Json | None]], *, worker: str, waits: bool = True
) -> set[tuple[int, int]]:
    """running -> running, for each of these teardowns that `start` would let start; by job and fence.

    With each claim, what was looked at before. Unless it `waits`, those that somebody holds are left out.
    """
    noted = [(claim, None if before is None else {"seen": before}) for claim, before in seen]
    statement = _START_DEPROVISION if waits else _START_IF_FREE
    return {(row.id, row.fence) for row in db.execute(statement, _ours(noted) | _note("started", worker))}


def start(db: Connection, claim: Claim, *, worker: str, seen: Json | None = None, under: Sequence[Brake] = ()) -> None:
    """running -> running, with the durable mark that from now on the backend may have been touched.

    `seen` is what was looked at before. `under` brakes, `db` is a transaction, in which the teardown is counted
    and started. Raises ClaimLost, Busy, Held, BrakeHit, Unwanted; then nothing may be done.
    """
    if under and not _has_started(db, claim, ResourceStatus.DELETING):
        brakes.take(db, claim, under)  # only what may start is judged, and so can hit it
    if not start_all(db, [(claim, seen)], worker=worker):
        _start_refused(db, claim, ResourceStatus.DELETING)


def start_provision(
    db: Connection, claim: Claim, *, worker: str, manifest: Json, credentials: bytes | None
) -> tuple[Json, bytes | None]:
    """running -> running, for a birth: stores the planned manifest and encrypted credentials, once.

    Returns those in force, which are the first attempt's. Raises ClaimLost, Busy, Held, Unwanted.
    """
    asked = _ours([(claim, None)]) | _note("started", worker)
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
    if not _has_started(db, claim, wanted):
        raise Busy(f"job {claim.id}: what kept it from starting has just passed")


_HAS_STARTED = text("""
    SELECT outbox.fence, outbox.state, outbox.started_fence, lease_expires_at > now() AS alive, resources.status,
           EXISTS (SELECT FROM outbox AS other
                    WHERE other.resource_id = outbox.resource_id AND other.id <> outbox.id
                      AND other.claimed_by IS NOT NULL) AS contended
      FROM outbox JOIN resources ON resources.id = outbox.resource_id
     WHERE outbox.id = :id""")


def _has_started(db: Connection, claim: Claim, wanted: ResourceStatus) -> bool:
    """Raise what keeps it from starting; True when it has started, and only the answer was lost."""
    row = db.execute(_HAS_STARTED, {"id": claim.id}).one()
    if row.fence != claim.fence or row.state != JobState.RUNNING or not row.alive:
        raise ClaimLost(f"job {claim.id}: the claim with fence {claim.fence} is no longer ours")
    if row.started_fence == claim.fence:
        return True
    if row.status != wanted:
        raise Unwanted(f"job {claim.id}: its resource is {row.status}, not {wanted}")
    if over := holds.over(db, claim.id):
        raise Held(f"{over[0].name} is in force", over[0].id)
    if row.contended:
        raise Busy(f"job {claim.id}: another job of its resource is running")
    return False


_COMPLETE = prepared(f"""
    WITH {_OURS}, resource AS (
        SELECT ours.id AS job_id, detail
          FROM (SELECT * FROM ours ORDER BY resource_id) AS ours
         CROSS JOIN LATERAL (
               SELECT FROM resources WHERE resources.id = resource_id AND status = 'deleting'
                  FOR NO KEY UPDATE) AS locked
    ), job AS (
        UPDATE outbox
           SET state = 'succeeded', claimed_by = NULL, lease_expires_at = NULL, finished_at = now(), last_error = NULL
          FROM resource
         WHERE outbox.id = job_id AND kind = 'deprovision'
     RETURNING outbox.*, detail
    ), noted AS ({_EVENT_EACH}
    )
    UPDATE resources SET status = 'deleted', purged_at = now(), credentials = NULL
      FROM job WHERE resources.id = job.resource_id
 RETURNING job.id, job.fence""")
_COMPLETE_IF_FREE = _if_free(_COMPLETE, "resource_id")


def complete_all(
    db: Connection, ended: Sequence[tuple[Claim, Json, Json | None]], *, worker: str, waits: bool = True
) -> set[tuple[int, int]]:
    """running -> succeeded, for each of these teardowns that `complete` would take; by job and fence.

    With each claim, what was `seen` of the object's absence, and what this attempt `did`. Unless it `waits`, those that
    somebody holds are left out.
    """
    noted = [(claim, {"seen": seen} | ({"did": did} if did else {})) for claim, seen, did in ended]
    statement = _COMPLETE if waits else _COMPLETE_IF_FREE
    return {(row.id, row.fence) for row in db.execute(statement, _ours(noted) | _note("completed", worker))}


def complete(db: Connection, claim: Claim, *, worker: str, seen: Json, did: Json | None = None) -> None:
    """running -> succeeded; the resource is deleted in the same statement.

    `seen` is the evidence that the object was seen to be absent, `did` what this attempt did. Raises ClaimLost.
    """
    if not complete_all(db, [(claim, seen, did)], worker=worker):
        _landed(db, claim, _of(claim) | _note("completed", worker))


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
               attempts = attempts - 1, available_at = greatest(available_at, now() + :delay * interval '1 second'),
               held_by = (SELECT id FROM holds WHERE id = :hold AND released_at IS NULL)
         WHERE id = :id AND fence = :fence AND state = 'running' AND started_fence IS DISTINCT FROM fence
     RETURNING *
    ), noted AS ({_EVENT}
    )
    SELECT id FROM job""")


def defer(db: Connection, claim: Claim, *, worker: str, error: str, delay: float = 0, hold: int | None = None) -> None:
    """running -> pending, the attempt given back, since nothing was started; `delay` in seconds.

    Under a `hold`, unless that was released meanwhile, it waits to be woken. Raises ClaimLost.
    """
    note = _note("deferred", worker, reason=error, detail=None if hold is None else {"hold": hold})
    asked = _of(claim) | note | {"error": error, "delay": delay, "hold": hold}
    if db.execute(_DEFER, asked).one_or_none() is None:
        _landed(db, claim, asked)


# Whatever was parked at the very moment of a release is found by the next sweep. From what is parked to the holds, by
# hops over the index: neither many released holds nor many parked jobs cost more than what is woken. The range is one
# hold; written so, only the index has the order that is asked for.
_WAKE = text("""
    WITH RECURSIVE parked AS (
        SELECT min(held_by) AS hold FROM outbox WHERE held_by IS NOT NULL
         UNION ALL
        SELECT (SELECT min(held_by) FROM outbox WHERE held_by > parked.hold) FROM parked WHERE parked.hold IS NOT NULL
    )
    UPDATE outbox SET held_by = NULL
     WHERE id = ANY(ARRAY(
           SELECT woken.id
             FROM parked JOIN holds ON holds.id = parked.hold
            CROSS JOIN LATERAL (
                  SELECT outbox.id FROM outbox WHERE held_by >= parked.hold AND held_by <= parked.hold
                   ORDER BY held_by LIMIT :batch FOR UPDATE SKIP LOCKED) AS woken
            WHERE released_at IS NOT NULL
            LIMIT :batch))
 RETURNING id""")


# Each batch locks its rows for some tens of milliseconds.
WAKE_BATCH = 1_000


def wake(db: Connection, *, batch: int = WAKE_BATCH) -> int:
    """No arrow: jobs parked under a hold that was released may be claimed again; how many, at most `batch`."""
    return len(db.execute(_WAKE, {"batch": batch}).all())


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
    stuck_or_refuse(db, job_id, fence=fence)
    raise _unsteady(job_id)


# What another operator has proposed, while it stands.
_PROPOSED = f"""
    proof AS (
        SELECT id AS approval, jsonb_build_object('forced', true, 'proposed_by', proposed_by,
                                                  'approved_by', CAST(:actor AS text)) AS evidence
          FROM approvals
         WHERE action = :action AND job_id = :id AND fence = :fence AND approved_at IS NULL
           AND proposed_by <> :actor AND proposed_at > now() - :life
           AND NOT {approvals.REVOKED.format("approvals")}
    )"""
_APPROVED = """
    approved AS (
        UPDATE approvals SET approved_by = :actor, approved_at = now()
          FROM job, proof WHERE approvals.id = proof.approval
    ),"""
_REDRIVE_FORCED = text(f"""
    WITH {_PROPOSED}, job AS (
        UPDATE outbox
           SET state = 'pending', stuck_reason = NULL, attempts = 0, available_at = now(), forced_fence = fence
         WHERE id = :id AND fence = :fence AND state = 'stuck' AND kind = 'deprovision'
           AND stuck_reason = 'outcome_unknown' AND EXISTS (SELECT FROM proof)
     RETURNING *
    ), {_APPROVED} noted AS (
        INSERT INTO events (job_id, resource_id, fence, event, actor, reason, detail)
        SELECT id, resource_id, fence, :event, :actor, :reason, evidence FROM job, proof
    )
    SELECT {columns(Job, "job")} FROM job""")


def redrive_forced(db: Connection, job_id: int, *, fence: int, actor: str, reason: str) -> Job | Approval:
    """stuck -> pending, though what an attempt did is unknown and can't be looked at: two operators answer for it.

    The first one's call is an Approval, which waits for the other's. Only a teardown's unknown outcome is forced.
    Raises NotFound, JobNotStuck, FenceMismatch, NothingToForce.
    """
    done = _by_two(db, _REDRIVE_FORCED, "redriven", "redrive", job_id, fence=fence, actor=actor, reason=reason)
    if done is not None:
        return done
    now = stuck_or_refuse(db, job_id, fence=fence)
    if now.kind != JobKind.DEPROVISION or now.stuck_reason != StuckReason.OUTCOME_UNKNOWN:
        why = f"job {job_id} is a {now.kind}, stuck for {now.stuck_reason}"
        raise NothingToForce(f"{why}: re-drive it without force; it looks before it acts")
    raise _unsteady(job_id)


# Nobody may resolve on an older look: longer than a command waits for one, too short for much to happen meanwhile.
FRESH = dt.timedelta(seconds=60)
# The last look under this fence, not an earlier one that pleased more.
_LAST_LOOK = """
        SELECT found, seen, observed_by, observed_at, observed_at > now() - :fresh AS fresh FROM observations
         WHERE job_id = :id AND fence = :fence AND observed_at IS NOT NULL
         ORDER BY observed_at DESC, id DESC LIMIT 1"""
_SEEN_ABSENT = f"""
    proof AS (
        SELECT jsonb_build_object('seen', seen, 'observed_by', observed_by) AS evidence
          FROM ({_LAST_LOOK}) AS last WHERE found = 'absent' AND fresh
    )"""


def _resolve(proof: str, approved: str) -> str:
    """A teardown needs proof; of a birth whose resource is deleted, or being deleted, nothing is left to do."""
    return f"""
    WITH {proof}, resource AS (
        SELECT resources.id, status FROM resources JOIN outbox ON resource_id = resources.id
         WHERE outbox.id = :id AND status IN ('deleting', 'deleted')
    ), job AS (
        UPDATE outbox
           SET state = CASE kind WHEN 'deprovision' THEN 'succeeded' ELSE 'cancelled' END,
               stuck_reason = NULL, finished_at = now()
          FROM resource
         WHERE outbox.id = :id AND fence = :fence AND state = 'stuck' AND resource.id = resource_id
           AND (kind = 'provision' OR (kind = 'deprovision' AND status = 'deleting' AND EXISTS (SELECT FROM proof)))
     RETURNING outbox.*
    ), {approved} noted AS (
        INSERT INTO events (job_id, resource_id, fence, event, actor, reason, detail)
        SELECT id, resource_id, fence, :event, :actor, :reason,
               jsonb_build_object('state', state) || COALESCE(evidence, '{{}}')
          FROM job LEFT JOIN proof ON kind = 'deprovision'
    ), purged AS (
        UPDATE resources SET status = 'deleted', purged_at = now(), credentials = NULL
          FROM job WHERE resources.id = job.resource_id AND job.kind = 'deprovision'
    )
    SELECT {columns(Job, "job")} FROM job"""


_RESOLVE = text(_resolve(_SEEN_ABSENT, ""))
_RESOLVE_FORCED = text(_resolve(_PROPOSED, _APPROVED))


def resolve(db: Connection, job_id: int, *, fence: int, actor: str, reason: str) -> Job:
    """stuck -> succeeded, "it did happen": the backend was just seen without the object. A birth -> cancelled.

    The resource is deleted in the same statement. A birth needs no look, and a resource that is deleted or being
    deleted. Raises NotFound, JobNotStuck, FenceMismatch, StillThere, NotObserved, StillWanted.
    """
    asked = {"id": job_id, "fence": fence, "fresh": FRESH}
    row = db.execute(_RESOLVE, asked | _note("resolved", actor, reason=reason)).one_or_none()
    if row is not None:
        return read(Job, "job", row)
    now = _resolvable(db, job_id, fence)
    look = db.execute(text(_LAST_LOOK), asked).one_or_none()
    if look is None or not look.fresh:
        raise NotObserved(
            f"no worker has looked at job {job_id} in the last {FRESH.seconds} s: start one that serves {now.backend}, "
            "or have two operators force it"
        )
    words = advice.seen_in_words(Found(look.found), look.seen)
    match Found(look.found):
        case Found.SAME:
            raise StillThere(f"job {job_id}: {words}; re-drive the job to tear it down", look.seen)
        case Found.DIFFERENT:
            raise StillThere(f"job {job_id}: {words}; docs/runbook.md, refused, tells what to do", look.seen)
        case Found.UNAVAILABLE:
            raise NotObserved(f"job {job_id}, {now.backend}: {words}")
        case Found.UNOBSERVABLE:
            raise NotObserved(f"job {job_id}, {now.backend}: {words}; only two operators can force it")
        case Found.ABSENT:
            raise _unsteady(job_id)
        case never:
            assert_never(never)


def resolve_forced(db: Connection, job_id: int, *, fence: int, actor: str, reason: str) -> Job | Approval:
    """stuck -> succeeded, whatever a look says: two operators answer for it. A birth -> cancelled.

    The first one's call is an Approval, which waits for the other's; a birth needs only one. Raises NotFound,
    JobNotStuck, FenceMismatch, StillWanted.
    """
    done = _by_two(db, _RESOLVE_FORCED, "resolved", "resolve", job_id, fence=fence, actor=actor, reason=reason)
    if done is not None:
        return done
    _resolvable(db, job_id, fence)
    raise _unsteady(job_id)


def _resolvable(db: Connection, job_id: int, fence: int) -> Row[Any]:
    """Why a resolve found no row, but for the proof; the job as it is, when that was not the reason."""
    now = stuck_or_refuse(db, job_id, fence=fence)
    if now.kind != JobKind.DEPROVISION and now.status not in (ResourceStatus.DELETING, ResourceStatus.DELETED):
        raise StillWanted(f"job {job_id}: its resource {now.resource_id} is {now.status}; DELETE the resource first")
    return now


def _by_two(
    db: Connection,
    statement: TextClause,
    event: str,
    action: Action,
    job_id: int,
    *,
    fence: int,
    actor: str,
    reason: str,
) -> Job | Approval | None:
    """The transition, when another operator has proposed it; else this one's proposal; None where neither may be."""
    asked = {"id": job_id, "fence": fence, "action": action, "life": approvals.LIFE}
    for _ in range(3):  # of two first calls at once, the one that comes second is the approval
        row = db.execute(statement, asked | _note(event, actor, reason=reason)).one_or_none()
        if row is not None:
            return read(Job, "job", row)
        proposal = approvals.propose(db, action, job_id, fence=fence, actor=actor, reason=reason)
        if proposal is not None and proposal.proposed_by == actor:
            return proposal
        stuck_or_refuse(db, job_id, fence=fence)
    return None


_STUCK = text("""
    SELECT state, fence, outbox.kind, stuck_reason, outbox.backend, resource_id, status
      FROM outbox JOIN resources ON resources.id = resource_id WHERE outbox.id = :id""")


def stuck_or_refuse(db: Connection, job_id: int, *, fence: int | None) -> Row[Any]:
    """Why a person's statement found no row; the job as it is, when that was not the reason.

    `fence` None is the job's own. Raises NotFound, JobNotStuck, FenceMismatch.
    """
    now = db.execute(_STUCK, {"id": job_id}).one_or_none()
    if now is None:
        raise NotFound(f"there is no job {job_id}")
    if now.state != JobState.STUCK:
        raise JobNotStuck(f"job {job_id} is {now.state}; only a stuck job can be observed, re-driven or resolved")
    if fence not in (None, now.fence):
        raise FenceMismatch(f"job {job_id} has moved on: its fence is {now.fence}, not {fence}; look at it again")
    return now


def _unsteady(job_id: int) -> Conflict:
    return Conflict(f"job {job_id} changes faster than it can be read; look at it again")


# The inner SELECT only takes the locks in one order, so that two operations over the same jobs never wait in a circle.
_REDRIVE_ALL = text(f"""
    WITH job AS (
        UPDATE outbox
           SET state = 'pending', stuck_reason = NULL, attempts = 0, available_at = now()
          FROM (SELECT id, listed.fence
                  FROM outbox JOIN unnest(CAST(:ids AS bigint[]), CAST(:fences AS bigint[])) AS listed (id, fence)
                 USING (id) ORDER BY id FOR UPDATE OF outbox) AS listed
         WHERE outbox.id = listed.id AND outbox.fence = listed.fence AND state = 'stuck'
     RETURNING outbox.*
    ), noted AS ({_EVENT}
    )
    SELECT id FROM job""")


def redrive_all(
    db: Connection, listed: Sequence[tuple[int, int]], *, actor: str, reason: str, detail: Json
) -> set[int]:
    """stuck -> pending, for each of these (job, fence as it was listed) that `redrive` would take; their ids."""
    rows = db.execute(
        _REDRIVE_ALL,
        _note("redriven", actor, reason=reason, detail=detail)
        | {"ids": [id for id, _ in listed], "fences": [fence for _, fence in listed]},
    )
    return set(rows.scalars())


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
