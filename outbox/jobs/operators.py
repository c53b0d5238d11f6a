"""What operators do with stuck jobs: redrive and resolve, by one operator or by two, and redrive many at once."""

import datetime as dt
from collections.abc import Sequence
from typing import Any, assert_never

from sqlalchemy import Connection, Row, TextClause, text

from outbox import advice, approvals
from outbox.approvals import Approval
from outbox.errors import (
    Conflict,
    FenceMismatch,
    JobNotStuck,
    NotFound,
    NothingToForce,
    NotObserved,
    StillThere,
    StillWanted,
)
from outbox.events import Event
from outbox.jobs._sql import _EVENT, _LOCK_JOB, _event
from outbox.jobs.enqueue import abandon
from outbox.jobs.release import let_go_by_hand
from outbox.rows import Job, Json, columns, read
from outbox.states import ForcedAction, Found, JobKind, JobState, ResourceStatus, StuckReason

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
    """stuck -> pending with fresh attempts; fence and history stay, and the next attempt inspects before it acts.

    `fence` is the one the operator saw. Raises NotFound, JobNotStuck, FenceMismatch.
    """
    row = db.execute(
        _REDRIVE, {"id": job_id, "fence": fence} | _event(Event.REDRIVEN, actor, reason=reason)
    ).one_or_none()
    if row is not None:
        return read(Job, "job", row)
    stuck_or_refuse(db, job_id, fence=fence)
    raise _changed_meanwhile(job_id)


# Another operator's proposal that is neither approved nor expired, and whose token is not revoked. The evidence has
# what a worker saw last under this fence, however long ago.
_PROPOSED = f"""
    proof AS (
        SELECT id AS approval, jsonb_build_object('forced', true, 'proposed_by', proposed_by,
                                                  'approved_by', CAST(:actor AS text)) || COALESCE(
               (SELECT jsonb_build_object('found', look.found, 'seen', look.seen, 'observed_by', look.observed_by,
                                          'observed_at', look.observed_at)
                  FROM observations AS look
                 WHERE (look.job_id, look.fence) = (:id, :fence) AND look.observed_at IS NOT NULL
                 ORDER BY look.observed_at DESC, look.id DESC LIMIT 1), '{{}}') AS evidence
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
_REDRIVE_FORCED = text(f"""{_LOCK_JOB}
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
    """stuck -> pending, though an attempt may have acted and the backend cannot be inspected: two operators decide it.

    The first operator's call returns an Approval, which waits for the second's. Only a teardown with an unknown outcome
    can be forced. Raises NotFound, JobNotStuck, FenceMismatch, NothingToForce.
    """
    done = _with_second_operator(
        db, _REDRIVE_FORCED, Event.REDRIVEN, ForcedAction.REDRIVE, job_id, fence=fence, actor=actor, reason=reason
    )
    if done is not None:
        return done
    now = stuck_or_refuse(db, job_id, fence=fence)
    if now.kind != JobKind.DEPROVISION or now.stuck_reason != StuckReason.OUTCOME_UNKNOWN:
        why = f"the outcome of job {job_id} is not unknown: it is a {now.kind}, and stuck as {now.stuck_reason}"
        raise NothingToForce(f"{why}; re-drive it without force; its worker inspects the backend before it acts")
    raise _changed_meanwhile(job_id)


# An operator may not resolve on an older inspection. Longer than a command waits for one, and too short for much to
# change meanwhile.
FRESH = dt.timedelta(seconds=60)
# The last inspection under this fence, so that an operator cannot pick an earlier one.
_LAST_OBSERVATION = """
        SELECT found, seen, observed_by, observed_at, observed_at > now() - :fresh AS fresh FROM observations
         WHERE job_id = :id AND fence = :fence AND observed_at IS NOT NULL
         ORDER BY observed_at DESC, id DESC LIMIT 1"""
_SEEN_ABSENT = f"""
    proof AS (
        SELECT jsonb_build_object('seen', seen, 'observed_by', observed_by) AS evidence
          FROM ({_LAST_OBSERVATION}) AS last WHERE found = 'absent' AND fresh
    )"""


def _resolve(proof: str, approved: str) -> str:
    """A teardown needs proof. A provision does not: its resource is `deleting` or `deleted`, so no work is left."""
    return f"""{_LOCK_JOB}
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
    """stuck -> succeeded, "it did happen": a worker has just seen the object absent. A provision -> cancelled.

    A teardown's resource is deleted in the same statement. A provision needs no inspection, but a resource that is
    `deleting` or `deleted`. A restore is given up: the job returned is its resource's new teardown. A release ends: a
    person sees to the mark. Raises NotFound, JobNotStuck, FenceMismatch, StillThere,
    NotObserved, StillWanted.
    """
    asked = {"id": job_id, "fence": fence, "fresh": FRESH}
    row = db.execute(_RESOLVE, asked | _event(Event.RESOLVED, actor, reason=reason)).one_or_none()
    if row is not None:
        return read(Job, "job", row)
    now = _resolvable_or_refuse(db, job_id, fence)
    if job := _given_up(db, now, job_id, fence=fence, actor=actor, reason=reason):
        return job
    last = db.execute(text(_LAST_OBSERVATION), asked).one_or_none()
    if last is None or not last.fresh:
        raise NotObserved(
            f"no worker has inspected the backend of job {job_id} in the last {FRESH.seconds} s; start a worker that "
            f"serves {now.backend}, or have two operators force it"
        )
    words = advice.seen_in_words(Found(last.found), last.seen)
    match Found(last.found):
        case Found.SAME:
            raise StillThere(f"job {job_id}: {words}; re-drive the job to tear it down", last.seen)
        case Found.DIFFERENT:
            raise StillThere(f"job {job_id}: {words}; see `refused` in docs/runbook.md", last.seen)
        case Found.UNAVAILABLE:
            raise NotObserved(f"job {job_id}, {now.backend}: {words}")
        case Found.UNOBSERVABLE:
            raise NotObserved(f"job {job_id}, {now.backend}: {words}; only two operators can force it")
        case Found.ABSENT:
            raise _changed_meanwhile(job_id)
        case never:
            assert_never(never)


def resolve_forced(db: Connection, job_id: int, *, fence: int, actor: str, reason: str) -> Job | Approval:
    """stuck -> succeeded, whatever an inspection found: two operators decide it. A provision -> cancelled.

    The first operator's call returns an Approval, which waits for the second's; a provision needs only one operator.
    Raises NotFound, JobNotStuck, FenceMismatch, StillWanted.
    """
    done = _with_second_operator(
        db, _RESOLVE_FORCED, Event.RESOLVED, ForcedAction.RESOLVE, job_id, fence=fence, actor=actor, reason=reason
    )
    if done is not None:
        return done
    now = _resolvable_or_refuse(db, job_id, fence)
    if job := _given_up(db, now, job_id, fence=fence, actor=actor, reason=reason):
        return job
    raise _changed_meanwhile(job_id)


def _given_up(db: Connection, now: Row[Any], job_id: int, **by: Any) -> Job | None:
    """What destroys nothing needs no proof: a restore is given up, and a released object's mark left to a person."""
    if now.kind == JobKind.RESTORE:
        return abandon(db, job_id, **by)
    return let_go_by_hand(db, job_id, **by) if now.kind == JobKind.RELEASE else None


def _resolvable_or_refuse(db: Connection, job_id: int, fence: int) -> Row[Any]:
    """Raise why a resolve changed no row; return the job when only its proof can be the reason."""
    now = stuck_or_refuse(db, job_id, fence=fence)
    if now.kind == JobKind.PROVISION and now.status not in (ResourceStatus.DELETING, ResourceStatus.DELETED):
        raise StillWanted(f"job {job_id}: its resource {now.resource_id} is {now.status}; DELETE the resource first")
    return now


def _with_second_operator(
    db: Connection,
    statement: TextClause,
    event: Event,
    action: ForcedAction,
    job_id: int,
    *,
    fence: int,
    actor: str,
    reason: str,
) -> Job | Approval | None:
    """The moved job, where another operator has proposed the action; else this operator's proposal; else None."""
    asked = {"id": job_id, "fence": fence, "action": action, "life": approvals.LIFE}
    for _ in range(3):  # when two operators propose at once, the later one's next round approves the earlier proposal
        row = db.execute(statement, asked | _event(event, actor, reason=reason)).one_or_none()
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
    """The job as it is now, if it is stuck at this fence; call it when an operator's statement changed no row.

    `fence` None accepts any. Raises NotFound, JobNotStuck, FenceMismatch.
    """
    now = db.execute(_STUCK, {"id": job_id}).one_or_none()
    if now is None:
        raise NotFound(f"there is no job {job_id}")
    if now.state != JobState.STUCK:
        raise JobNotStuck(f"job {job_id} is {now.state}; only a stuck job can be observed, re-driven or resolved")
    if fence not in (None, now.fence):
        raise FenceMismatch(f"job {job_id} has moved on: its fence is {now.fence}, not {fence}; read the job again")
    return now


def _changed_meanwhile(job_id: int) -> Conflict:
    return Conflict(f"job {job_id} changes faster than it can be read; read the job and try again")


# The inner SELECT takes the locks in order of id, so that two operations over the same jobs cannot deadlock.
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
    """stuck -> pending, for each listed (job, fence) that `redrive` would move; returns the ids of these jobs."""
    rows = db.execute(
        _REDRIVE_ALL,
        _event(Event.REDRIVEN, actor, reason=reason, detail=detail)
        | {"ids": [id for id, _ in listed], "fences": [fence for _, fence in listed]},
    )
    return set(rows.scalars())
