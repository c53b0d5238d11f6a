"""Two operators give up a teardown whose server is gone for good: it ends abandoned, and is never called deleted."""

from sqlalchemy import Connection, text

from outbox import approvals, holds
from outbox.approvals import Approval
from outbox.errors import Conflict, FenceMismatch, NotATeardown, NotFound, NotRetired
from outbox.events import Event
from outbox.jobs._sql import _LOCK_JOB, _event
from outbox.jobs.operators import _APPROVED, _PROPOSED
from outbox.rows import Job, columns, read
from outbox.states import ForcedAction, JobKind, JobState

_RETIRED = f"{holds.RETIRED} AND subject = outbox.backend"
# The hold's row, then the job's: the end of a retirement waits for this, or is seen here. The event has the words of
# both operators, and the object's manifest: the ledger of what may still be somewhere.
_ABANDON = text(f"""
    SELECT FROM holds WHERE {holds.RETIRED} AND subject = (SELECT backend FROM outbox WHERE id = :id) FOR SHARE;
    {_LOCK_JOB}
    WITH {_PROPOSED}, resource AS (
        SELECT resources.id, manifest FROM resources JOIN outbox ON resource_id = resources.id
         WHERE outbox.id = :id AND status = 'deleting'
    ), job AS (
        UPDATE outbox SET state = 'abandoned', stuck_reason = NULL, held_by = NULL, finished_at = now()
          FROM resource
         WHERE outbox.id = :id AND fence = :fence AND state IN ('pending', 'stuck') AND kind = 'deprovision'
           AND resource.id = resource_id AND EXISTS (SELECT FROM proof)
           AND EXISTS (SELECT FROM holds WHERE {_RETIRED})
     RETURNING outbox.*, manifest
    ), {_APPROVED} noted AS (
        INSERT INTO events (job_id, resource_id, fence, event, actor, reason, detail)
        SELECT job.id, resource_id, job.fence, :event, :actor, :reason,
               evidence || jsonb_build_object('proposed_reason', approvals.reason, 'manifest', manifest)
          FROM job, proof JOIN approvals ON approvals.id = proof.approval
    ), gone AS (
        UPDATE resources SET status = 'abandoned', credentials = NULL FROM job WHERE resources.id = job.resource_id
    )
    SELECT {columns(Job, "job")} FROM job""")
_NOW = text(f"""
    SELECT state, fence, outbox.kind, backend, EXISTS (SELECT FROM holds WHERE {_RETIRED}) AS retired
      FROM outbox WHERE id = :id""")


def abandon(db: Connection, job_id: int, *, fence: int, actor: str, reason: str) -> Job | Approval:
    """pending, stuck -> abandoned, and so is its resource: its backend is retired, and two operators say why.

    The first operator's call returns an Approval, which waits for the second's. Each gives the evidence that the object
    is gone with its server, such as a ticket or a certificate, as the reason. Raises NotFound, NotATeardown,
    NotRetired, FenceMismatch, Conflict.
    """
    asked = {"id": job_id, "fence": fence, "action": ForcedAction.ABANDON, "life": approvals.LIFE}
    for _ in range(3):  # as for a forced resolve
        row = db.execute(_ABANDON, asked | _event(Event.ABANDONED, actor, reason=reason)).one_or_none()
        if row is not None:
            return read(Job, "job", row)
        _refuse(db, job_id, fence)
        proposal = approvals.propose(db, ForcedAction.ABANDON, job_id, fence=fence, actor=actor, reason=reason)
        if proposal is not None and proposal.proposed_by == actor:
            return proposal
    raise Conflict(f"job {job_id} changes faster than it can be read; read the job and try again")


def _refuse(db: Connection, job_id: int, fence: int) -> None:
    now = db.execute(_NOW, {"id": job_id}).one_or_none()
    if now is None:
        raise NotFound(f"there is no job {job_id}")
    if now.kind != JobKind.DEPROVISION:
        raise NotATeardown(f"job {job_id} is a {now.kind}; only a teardown is abandoned: DELETE its resource first")
    if not now.retired:
        raise NotRetired(f"backend {now.backend!r} is not retired (`deprovisioner backends retire`): its jobs go on")
    if fence != now.fence:
        raise FenceMismatch(f"job {job_id} has moved on: its fence is {now.fence}, not {fence}; read the job again")
    if now.state not in (JobState.PENDING, JobState.STUCK):
        raise Conflict(f"job {job_id} is {now.state}; only a teardown that waits or is stuck is abandoned")
