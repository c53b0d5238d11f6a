"""running -> running: the durable start mark. From then on the worker may have acted on the backend."""

import json
from collections.abc import Sequence

from sqlalchemy import Connection, text

from outbox import brakes, holds, rewinds
from outbox.db import prepared
from outbox.errors import Busy, ClaimLost, Early, Held, Unwanted
from outbox.events import Event
from outbox.jobs._sql import (
    _CHAIN_LOCK,
    _EVENT_EACH,
    _MARK,
    _OF_INSTALLATION,
    _OURS,
    _OURS_TEMPLATE,
    _WAIT,
    _event,
    _mark,
    _skip_locked,
    _still_ours,
)
from outbox.jobs.restore import NOT_STARTED
from outbox.rows import Claim, Json, StartMark
from outbox.settings import Brake
from outbox.states import JobKind, JobState, ResourceStatus, Step

# A resource's jobs run one at a time: of two claims, the one that was committed last sees the other as running.
# `clock_timestamp()`, since `now()` is from before any wait for a lock.
# A trigger says the same of whatever program writes.
_MAY_DESTROY = """
                (outbox.kind <> 'deprovision'
                 OR (coalesce(purge_at <= clock_timestamp(), true)
                     AND (NOT needs_snapshot
                          OR EXISTS (SELECT FROM snapshots WHERE job_id = outbox.id AND verified_at IS NOT NULL))))"""
_START = f"""
    job AS (
        UPDATE outbox
           SET started_fence = fence,
               step = CASE step WHEN 'wait' THEN 'destroy' ELSE step END,
               started_step = CASE WHEN outbox.kind <> 'deprovision' THEN NULL
                                   WHEN step IN ('quarantine', 'snapshot') THEN step ELSE 'destroy' END
          FROM resource
         WHERE outbox.id = job_id AND lease_expires_at > clock_timestamp() AND started_fence IS DISTINCT FROM fence
           AND resource.status = CASE outbox.kind WHEN 'deprovision' THEN 'deleting' WHEN 'restore' THEN 'restoring'
                                                  WHEN 'release' THEN 'releasing' ELSE 'provisioning' END
           AND ({_MAY_DESTROY} IS TRUE OR step IN ('quarantine', 'snapshot'))
           AND NOT EXISTS (SELECT FROM holds WHERE {holds.COVERS.format("resource", "outbox.kind")})
           AND {rewinds.GOES_ON_AT.format("outbox.backend")}
           AND NOT EXISTS (SELECT FROM outbox AS other
                            WHERE other.resource_id = outbox.resource_id AND other.id <> outbox.id
                              AND other.claimed_by IS NOT NULL)
     RETURNING outbox.*, detail
    )"""
# What an inspection found that the manifest lacks, as older versions stored it.
_COMPLETES = "CAST(detail AS jsonb) -> 'seen' -> 'completes'"
_START_TEMPLATE = f"""
    WITH {_OURS_TEMPLATE}, resource AS (
        SELECT resources.*, ours.id AS job_id, detail FROM ours JOIN resources ON resources.id = resource_id
    ), {_START}, noted AS ({_EVENT_EACH}
     RETURNING id, job_id, hash
    ), completed AS (
        UPDATE resources
           SET manifest = manifest || ({_COMPLETES})
          FROM job WHERE resources.id = job.resource_id AND {_COMPLETES} IS NOT NULL
    )
    SELECT job.id, job.fence, {_MARK}
      FROM job JOIN noted ON noted.job_id = job.id {_OF_INSTALLATION}"""
# A hold that is answered while this waits for a lock stops the start: the second statement reads the holds. So the
# first takes every lock that the second needs: job, chain, and the row of a resource whose manifest is completed.
_LOCK_OURS = f"""
    WITH {_OURS} {_CHAIN_LOCK}
      FROM (SELECT * FROM ours ORDER BY resource_id) AS ours
      LEFT JOIN LATERAL (
           SELECT FROM resources WHERE resources.id = resource_id AND {_COMPLETES} IS NOT NULL
              FOR NO KEY UPDATE) AS locked ON true;"""
_START_DEPROVISION = prepared(_LOCK_OURS + _START_TEMPLATE.format(lock=_WAIT))
_START_SKIPPING = prepared(_START_TEMPLATE.format(lock=_skip_locked("resource_id")))
# The row lock: a concurrent DELETE comes before and is seen here, or comes after and sees the manifest.
# The first attempt stores the plan of the object before it is made; a second attempt makes the very same object. Each
# start records the stored plan: a trigger compares the two.
_PLAN = "COALESCE(resources.manifest, CAST(:manifest AS jsonb))"
_START_PROVISION = text(f"""
    WITH {_OURS} {_CHAIN_LOCK} FROM (
         SELECT resource_id FROM ours JOIN resources ON resources.id = resource_id FOR NO KEY UPDATE OF resources
         ) AS locked;
    WITH {_OURS}, resource AS (
        SELECT resources.*, ours.id AS job_id, jsonb_build_object('manifest', {_PLAN}) AS detail
          FROM ours JOIN resources ON resources.id = resource_id
    ), {_START}, noted AS ({_EVENT_EACH}
    )
    UPDATE resources
       SET manifest = {_PLAN},
           credentials = COALESCE(credentials, CAST(:credentials AS bytea))
      FROM job WHERE resources.id = job.resource_id
 RETURNING resources.manifest, resources.credentials""")


def start_all(
    db: Connection, seen: Sequence[tuple[Claim, Json | None]], *, worker: str, waits: bool = True
) -> dict[tuple[int, int], StartMark]:
    """running -> running, for each of these teardowns that `start` would let start; their marks, by job and fence.

    `seen` has each claim with what the worker saw when it inspected the backend; fields under `completes` are added to
    the resource's manifest, which an older version wrote without them. Unless it `waits`, it skips what
    another transaction has locked, and claims with `completes`, which may wait for the resource's row.
    """
    asked = [(claim, before) for claim, before in seen if waits or "completes" not in (before or {})]
    noted = [(claim, None if before is None else {"seen": before}) for claim, before in asked]
    statement = _START_DEPROVISION if waits else _START_SKIPPING
    rows = db.execute(statement, _still_ours(noted) | _event(Event.STARTED, worker))
    return {(row.id, row.fence): _mark(row) for row in rows}


_WANTED = {JobKind.RESTORE: ResourceStatus.RESTORING, JobKind.RELEASE: ResourceStatus.RELEASING}


def start(
    db: Connection, claim: Claim, *, worker: str, seen: Json | None = None, under: Sequence[Brake] = ()
) -> StartMark:
    """running -> running, with the durable start mark: from then on the worker may have acted on the backend.

    `seen` is what the worker saw when it inspected the backend. With brakes (`under`), `db` must be a transaction: it
    counts the teardown and starts it. Also starts a restore or a release. Raises ClaimLost, Busy, Held, BrakeHit,
    Early, Unwanted; then the worker must not act.
    """
    wanted = _WANTED.get(claim.kind, ResourceStatus.DELETING)
    if under and not _has_started(db, claim, wanted):
        brakes.take(db, claim, under)  # only a job that may start is counted, so only such a job can hit a brake
    if mark := start_all(db, [(claim, seen)], worker=worker).get((claim.id, claim.fence)):
        return mark
    _start_refused(db, claim, wanted)
    return _mark(db.execute(_MARKED, {"id": claim.id, "fence": claim.fence}).one())


# Of a start whose answer was lost.
_MARKED = text(f"""
    SELECT {_MARK} FROM events AS noted {_OF_INSTALLATION}
     WHERE job_id = :id AND fence = :fence AND event = '{Event.STARTED}'""")


# What was active has its data, which only a destruction that has started may take.
_MAY_UNDO = text(f"""
    SELECT EXISTS (
           SELECT FROM resources
            WHERE id = :id AND NOT adopted AND status IN ('deleting', 'deleted')
              AND (status = 'deleted' OR activated_at IS NULL
                   OR EXISTS (SELECT FROM outbox
                               WHERE resource_id = resources.id AND kind = 'deprovision' AND state <> 'cancelled'
                                 AND NOT ({NOT_STARTED})))
              AND NOT EXISTS (SELECT FROM holds WHERE {holds.COVERS.format("resources", "'deprovision'")})
              AND {rewinds.GOES_ON_AT.format("backend")})""")


def may_undo(db: Connection, claim: Claim) -> bool:
    """Whether a provision that lost its claim may remove what it made: not under a hold, nor what can be restored.

    Where it may not, the resource's teardown removes it, if it is still to come.
    """
    return bool(db.execute(_MAY_UNDO, {"id": claim.resource_id}).scalar_one())


def start_provision(
    db: Connection, claim: Claim, *, worker: str, manifest: Json, credentials: bytes | None
) -> tuple[Json, bytes | None]:
    """running -> running, for a provision: stores the planned manifest and encrypted credentials, once.

    Returns the stored ones, which are the first attempt's. Raises ClaimLost, Busy, Held, Unwanted.
    """
    asked = _still_ours([(claim, None)]) | _event(Event.STARTED, worker)
    row = db.execute(
        _START_PROVISION, asked | {"manifest": json.dumps(manifest), "credentials": credentials}
    ).one_or_none()
    if row is None:
        _start_refused(db, claim, ResourceStatus.PROVISIONING)
        row = db.execute(
            text("SELECT manifest, credentials FROM resources WHERE id = :id"), {"id": claim.resource_id}
        ).one()
    return row.manifest, None if row.credentials is None else bytes(row.credentials)


# A read of the start mark does not wait for standbys; the commit of a write does, and confirms what came before it.
_CONFIRM = text("UPDATE outbox SET lease_expires_at = lease_expires_at WHERE id = :id AND fence = :fence")


def _start_refused(db: Connection, claim: Claim, wanted: ResourceStatus) -> None:
    if _has_started(db, claim, wanted):
        db.execute(_CONFIRM, {"id": claim.id, "fence": claim.fence})
    else:
        raise Busy(f"job {claim.id}: it could not start, and what prevented it has just ended; try again")


_HAS_STARTED = text(f"""
    SELECT outbox.fence, outbox.state, outbox.started_fence, lease_expires_at > now() AS alive, resources.status,
           EXISTS (SELECT FROM outbox AS other
                    WHERE other.resource_id = outbox.resource_id AND other.id <> outbox.id
                      AND other.claimed_by IS NOT NULL) AS contended,
           extract(epoch FROM resources.purge_at - clock_timestamp()) AS early,
           {rewinds.GOES_ON_AT.format("outbox.backend")} AS goes_on
      FROM outbox JOIN resources ON resources.id = outbox.resource_id
     WHERE outbox.id = :id""")


def _has_started(db: Connection, claim: Claim, wanted: ResourceStatus) -> bool:
    """Raise what keeps the job from starting; True when it has started, and only the answer was lost."""
    row = db.execute(_HAS_STARTED, {"id": claim.id}).one()
    if row.fence != claim.fence or row.state != JobState.RUNNING or not row.alive:
        raise ClaimLost(f"job {claim.id}: the claim with fence {claim.fence} is lost")
    if row.started_fence == claim.fence:
        return True
    if row.status != wanted:
        raise Unwanted(f"job {claim.id}: its resource is {row.status}, not {wanted}")
    if over := holds.over(db, claim.id):
        raise Held(f"{over[0].name} is in force", over[0].id)
    if not row.goes_on:
        raise Busy(
            f"job {claim.id}: backend {claim.backend!r} is not compared yet with what it remembers of this database"
        )
    if row.contended:
        raise Busy(f"job {claim.id}: another job of its resource is running")
    if claim.step in (None, Step.WAIT, Step.DESTROY) and (row.early or 0) > 0:
        raise Early(f"job {claim.id}: its resource is not destroyed before `purge_at`", float(row.early))
    return False
