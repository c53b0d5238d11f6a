"""Actions that take two operators: one proposes an action; the second asks for the same action, job and fence.

The second request executes the action. Each operator gives a reason; the events keep both.

An actor here is a token, `token:ID:NAME`: the name of a shell user proves nothing, and one token is one operator.
The transition's own statement marks the proposal as approved (`jobs.resolve_forced`, `jobs.redrive_forced`,
`jobs.purge`, `jobs.abandon`).
"""

import datetime as dt
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Row, text

from outbox.events import Event
from outbox.states import ForcedAction

# Both operators must judge the same situation: after an hour they must look at it again.
LIFE = dt.timedelta(hours=1)


@dataclass(frozen=True)
class Approval:
    """A proposal that waits for a second operator until `expires_at`; `new` if this call made it."""

    action: ForcedAction
    job_id: int
    fence: int
    reason: str
    proposed_by: str
    proposed_at: dt.datetime
    expires_at: dt.datetime
    new: bool = field(compare=False)


# A proposal ends when its token is revoked: the actor is the token's id and name. `{}` is the proposal.
REVOKED = """EXISTS (SELECT FROM tokens
                    WHERE revoked_at IS NOT NULL AND 'token:' || tokens.id || ':' || name = {}.proposed_by)"""

# A new proposal replaces an expired one; the events keep both. The job's row is locked, so that the event comes before
# the event of any transition of the job. The lock comes first: what the next statement reads of tokens must not be
# older than its wait. A job is stuck at one fence only once, so it needs at most one approval.
_EVENT = Event.PROPOSED
_COLUMNS = "action, job_id, fence, reason, proposed_by, proposed_at, proposed_at + :life AS expires_at"
_PROPOSE = text(f"""
    SELECT FROM outbox WHERE id = :id FOR NO KEY UPDATE;
    WITH job AS (
        SELECT id, resource_id, fence FROM outbox
         WHERE id = :id AND fence = :fence AND kind = 'deprovision'
           AND CASE :action WHEN 'purge' THEN state IN ('pending', 'running', 'stuck')
                            WHEN 'redrive' THEN state = 'stuck' AND stuck_reason = 'outcome_unknown'
                            WHEN 'abandon' THEN state IN ('pending', 'stuck')
                            ELSE state = 'stuck' END
           FOR NO KEY UPDATE
    ), proposed AS (
        INSERT INTO approvals AS before (action, job_id, fence, reason, proposed_by)
        SELECT :action, id, fence, :reason, :actor FROM job
            ON CONFLICT (action, job_id, fence) DO UPDATE
           SET reason = excluded.reason, proposed_by = excluded.proposed_by, proposed_at = now()
         WHERE before.approved_at IS NULL
           AND (before.proposed_at <= now() - :life OR {REVOKED.format("before")})
     RETURNING *
    ), noted AS (
        INSERT INTO events (job_id, resource_id, fence, event, actor, reason, detail)
        SELECT job.id, job.resource_id, job.fence, '{_EVENT}', :actor, :reason, jsonb_build_object('action', action)
          FROM job JOIN proposed ON job_id = job.id
    )
    SELECT {_COLUMNS}, true AS new FROM proposed
     UNION ALL
    SELECT {_COLUMNS}, false FROM approvals
     WHERE action = :action AND job_id = :id AND fence = :fence AND approved_at IS NULL
       AND proposed_at > now() - :life AND EXISTS (SELECT FROM job)
       AND NOT {REVOKED.format("approvals")}""")


def propose(
    db: Connection, action: ForcedAction, job_id: int, *, fence: int, actor: str, reason: str
) -> Approval | None:
    """The proposal that waits for this job and fence; where there is none, this call makes it, with its event.

    None when the job cannot be moved so at this fence, or when another operator made a proposal at this very moment.
    """
    asked = {"action": action, "id": job_id, "fence": fence, "actor": actor, "reason": reason, "life": LIFE}
    row = db.execute(_PROPOSE, asked).first()
    return None if row is None else _approval(row)


_PROPOSALS = text(f"""
    SELECT {_COLUMNS}, false AS new FROM approvals
     WHERE job_id = :id AND fence = :fence AND approved_at IS NULL AND proposed_at > now() - :life
       AND NOT {REVOKED.format("approvals")}
     ORDER BY proposed_at""")


def proposals(db: Connection, job_id: int, *, fence: int) -> list[Approval]:
    """The proposals that wait for a second operator at this fence: at most one for each action."""
    rows = db.execute(_PROPOSALS, {"id": job_id, "fence": fence, "life": LIFE})
    return [_approval(row) for row in rows]


def _approval(row: Row[Any]) -> Approval:
    return Approval(**{**row._mapping, "action": ForcedAction(row.action)})
