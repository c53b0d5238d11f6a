"""The ends of an attempt, from advance to sweep; and waking parked jobs."""

import json
from collections.abc import Sequence

from sqlalchemy import Connection, text

from outbox import settings
from outbox.db import prepared
from outbox.events import Event
from outbox.jobs._sql import (
    _EVENT,
    _EVENT_EACH,
    _LOCK_JOB,
    _MARK,
    _OF_INSTALLATION,
    _OURS_TEMPLATE,
    _WAIT,
    _confirm_landed,
    _event,
    _key,
    _mark,
    _skip_locked,
    _still_ours,
)
from outbox.jobs.claim import LANES
from outbox.rows import Claim, Json, StartMark
from outbox.states import StuckReason

_COMPLETE_TEMPLATE = f"""
    WITH {_OURS_TEMPLATE}, resource AS (
        SELECT ours.id AS job_id, detail
          FROM (SELECT * FROM ours ORDER BY resource_id) AS ours
         CROSS JOIN LATERAL (
               SELECT FROM resources WHERE resources.id = resource_id AND status = 'deleting'
                  {{lock}}) AS locked
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
 RETURNING job.id, job.fence"""
_COMPLETE = prepared(_COMPLETE_TEMPLATE.format(lock=_WAIT))
_COMPLETE_SKIPPING = prepared(_COMPLETE_TEMPLATE.format(lock=_skip_locked("resource_id")))


def complete_all(
    db: Connection, ended: Sequence[tuple[Claim, Json, Json | None]], *, worker: str, waits: bool = True
) -> set[tuple[int, int]]:
    """running -> succeeded, for each of these teardowns that `complete` would complete; returns these by job and fence.

    `ended` has each claim with `seen` and `did`, as `complete` takes them. Unless it `waits`, it skips what another
    transaction has locked.
    """
    noted = [(claim, {"seen": seen} | ({"did": did} if did else {})) for claim, seen, did in ended]
    statement = _COMPLETE if waits else _COMPLETE_SKIPPING
    return {(row.id, row.fence) for row in db.execute(statement, _still_ours(noted) | _event(Event.COMPLETED, worker))}


def complete(db: Connection, claim: Claim, *, worker: str, seen: Json, did: Json | None = None) -> None:
    """running -> succeeded; the resource is deleted in the same statement.

    `seen` is the evidence that the object is absent, `did` what this attempt did. Raises ClaimLost.
    """
    if not complete_all(db, [(claim, seen, did)], worker=worker):
        _confirm_landed(db, claim, _key(claim) | _event(Event.COMPLETED, worker))


# A snapshot may take hours: its lane leaves half of the backend's slots to others.
# The lock comes first: a purge before it is seen by the second statement, and one after it finds the job at `wait`.
_ADVANCE = text(f"""{_LOCK_JOB}
    WITH job AS (
        UPDATE outbox
           SET state = 'pending', claimed_by = NULL, lease_expires_at = NULL, last_error = NULL, attempts = 0,
               step = CASE WHEN step = 'quarantine' AND needs_snapshot THEN 'snapshot' ELSE 'wait' END,
               available_at = CASE WHEN step = 'quarantine' AND needs_snapshot THEN now()
                                   ELSE greatest(now(), purge_at) END,
               lane = CASE WHEN step = 'quarantine' AND needs_snapshot THEN {LANES - 1} ELSE lane END
          FROM resources
         WHERE outbox.id = :id AND fence = :fence AND state = 'running' AND outbox.kind = 'deprovision'
           AND step = :step AND started_fence = fence AND step IN ('quarantine', 'snapshot')
           AND resources.id = resource_id
           AND (step = 'quarantine' OR EXISTS (
                SELECT FROM snapshots WHERE job_id = outbox.id AND verified_at IS NOT NULL))
     RETURNING outbox.*
    ), noted AS ({_EVENT}
    )
    SELECT id FROM job""")


def advance(db: Connection, claim: Claim, *, worker: str, event: Event, seen: Json, did: Json | None = None) -> None:
    """running -> pending, at the next step: quarantine or snapshot was done, and the job has fresh attempts.

    It is due at once, or at `purge_at` where it only waits. Raises ClaimLost.
    """
    noted = _event(event, worker, detail={"seen": seen} | ({"did": did} if did else {}))
    asked = _key(claim) | noted | {"step": claim.step}
    if db.execute(_ADVANCE, asked).one_or_none() is None:
        _confirm_landed(db, claim, asked)


# Refused once the resource is `deleted`: then the worker must undo what it made, and the job must not succeed.
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
    """running -> succeeded, for a provision: stores the manifest with the object's identity; the resource is active.

    A resource that got a DELETE meanwhile stays `deleting`: its deprovision job comes next. Raises ClaimLost.
    """
    event = _event(Event.ACTIVATED, worker, detail={"manifest": manifest})
    asked = _key(claim) | event | {"manifest": json.dumps(manifest)}
    if db.execute(_ACTIVATE, asked).one_or_none() is None:
        _confirm_landed(db, claim, asked)


_GIVE_BACK = text(f"""
    WITH job AS (
        UPDATE outbox
           SET state = 'succeeded', claimed_by = NULL, lease_expires_at = NULL, finished_at = now(), last_error = NULL
         WHERE id = :id AND fence = :fence AND state = 'running' AND kind = 'restore' AND started_fence = fence
           AND EXISTS (SELECT FROM resources WHERE resources.id = resource_id AND status = 'restoring')
     RETURNING *
    ), noted AS ({_EVENT}
    )
    UPDATE resources SET status = 'active'
      FROM job WHERE resources.id = job.resource_id AND status = 'restoring'
 RETURNING job.id""")


def give_back(db: Connection, claim: Claim, *, worker: str, seen: Json) -> None:
    """running -> succeeded, for a restore: the resource is active, since `seen` shows that it can be used again.

    Raises ClaimLost.
    """
    asked = _key(claim) | _event(Event.RESTORED, worker, detail={"seen": seen})
    if db.execute(_GIVE_BACK, asked).one_or_none() is None:
        _confirm_landed(db, claim, asked)


# Full jitter: a random delay up to the exponential bound, so that jobs that failed together do not return together.
_RETRY = text(f"""
    WITH job AS (
        UPDATE outbox
           SET state = 'pending', claimed_by = NULL, lease_expires_at = NULL, last_error = :error,
               attempts = attempts - CASE WHEN :free THEN 1 ELSE 0 END,
               available_at = now() + random() * least(:cap, :base * 2 ^ least(attempts - 1, 30)) * interval '1 second'
         WHERE id = :id AND fence = :fence AND state = 'running' AND (:free OR attempts < max_attempts)
     RETURNING *
    ), noted AS ({_EVENT}
    )
    SELECT id FROM job""")


def retry(db: Connection, claim: Claim, *, worker: str, error: str, free: bool = False) -> None:
    """running -> pending, due later: exponential backoff with full jitter and a cap. Raises ClaimLost.

    `free`: it uses up no attempt, since the server itself answered that it does no work now.
    """
    asked = _key(claim) | _event(Event.RETRIED, worker, reason=error) | {"error": error, "free": free}
    if db.execute(_RETRY, asked | _backoff()).one_or_none() is None:
        _confirm_landed(db, claim, asked)


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
    """running -> pending, without using up an attempt, since nothing was started; `delay` is in seconds.

    With a `hold`, unless that was released meanwhile, the job is parked until `wake`. Raises ClaimLost.
    """
    event = _event(Event.DEFERRED, worker, reason=error, detail=None if hold is None else {"hold": hold})
    asked = _key(claim) | event | {"error": error, "delay": delay, "hold": hold}
    if db.execute(_DEFER, asked).one_or_none() is None:
        _confirm_landed(db, claim, asked)


# The next sweep wakes a job that was parked at the very moment of a release. The recursion hops over the index from
# one hold with parked jobs to the next: its cost depends neither on released holds nor on parked jobs that stay parked.
# `>= hold AND <= hold` is `= hold`, written as a range so that only the index gives the order that is asked for.
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


# A batch of this size locks its rows for some tens of milliseconds.
WAKE_BATCH = 1_000


def wake(db: Connection, *, batch: int = WAKE_BATCH) -> int:
    """No arrow: at most `batch` jobs that wait for a released hold may be claimed again; returns how many."""
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


def stick(
    db: Connection,
    claim: Claim,
    *,
    worker: str,
    why: StuckReason,
    error: str,
    seen: Json | None = None,
    did: Json | None = None,
) -> None:
    """running -> stuck(why): only an operator moves it on. `did`: what was done before. Raises ClaimLost."""
    detail = {"stuck_reason": why, "seen": seen} | ({"did": did} if did else {})
    asked = _key(claim) | _event(Event.STUCK, worker, reason=error, detail=detail)
    if db.execute(_STICK, asked | {"why": why, "error": error}).one_or_none() is None:
        _confirm_landed(db, claim, asked)


# An adopted object existed before its resource: an adoption that fails must never destroy it.
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
        SELECT id, resource_id, fence, '{Event.ENQUEUED}', :actor, 'the provision failed' FROM undo
    )
    SELECT id FROM job""")


def rollback(db: Connection, claim: Claim, *, worker: str, error: str) -> None:
    """running -> cancelled, for a provision that failed or is no longer wanted; a deprovision job removes what it made.

    Raises ClaimLost.
    """
    asked = _key(claim) | _event(Event.ROLLED_BACK, worker, reason=error) | {"error": error}
    if db.execute(_ROLLBACK, asked).one_or_none() is None:
        _confirm_landed(db, claim, asked)


# A provision or a restore goes back to pending even when its attempts are spent: the runner then rolls the one back, or
# shuts the other's object again.
# Jobs that were lost together more than once become due one after the other: one of them may kill its worker, and must
# not use up the attempts of the others.
_SWEEP = text(f"""
    WITH lost AS (
        SELECT id, claimed_by, kind = 'deprovision' AND attempts >= max_attempts AS spent FROM outbox
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
        SELECT id, resource_id, fence, '{Event.SWEPT}', :actor, last_error, jsonb_build_object('state', state) FROM job
         ORDER BY resource_id
    )
    SELECT id, state FROM job""")


def sweep(db: Connection, *, actor: str, batch: int = 100) -> int:
    """running -> pending, or stuck when the attempts are spent, for jobs whose lease has passed; returns how many."""
    return len(db.execute(_SWEEP, {"actor": actor, "batch": batch} | _backoff()).all())


_LATE = text(f"""
    WITH job AS (SELECT * FROM outbox WHERE id = :id), noted AS ({_EVENT} RETURNING id, hash)
    SELECT {_MARK} FROM noted {_OF_INSTALLATION}""")


def note_late(db: Connection, claim: Claim, *, worker: str, news: Json) -> StartMark | None:
    """No arrow: keep as evidence what a worker reports after it lost its claim; nothing else changes.

    The event is the mark of what the worker may then undo; None where there is no such job any more.
    """
    asked = {"id": claim.id} | _event(Event.LATE, worker, detail=news | {"fence": claim.fence})
    row = db.execute(_LATE, asked).one_or_none()
    return None if row is None else _mark(row)


def _backoff() -> Json:
    return {"base": settings.get().backoff_base_seconds, "cap": settings.get().backoff_max_seconds}
