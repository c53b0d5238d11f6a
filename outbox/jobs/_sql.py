"""What the statements of all transitions share: the event beside the change, the claims that are still ours."""

import json
from collections.abc import Sequence

from sqlalchemy import Connection, text

from outbox.errors import ClaimLost
from outbox.events import Event
from outbox.rows import Claim, Json

# What every transition writes beside its change; `job` is the CTE that made it. In the order of resources: each
# event locks its resource's chain until commit, and statements that lock several must do so in one order.
_EVENT_OF = """
    INSERT INTO events (job_id, resource_id, fence, event, actor, reason, detail)
    SELECT id, resource_id, fence, :event, :actor, {reason}, CAST({detail} AS jsonb) FROM job
     ORDER BY resource_id"""
_EVENT = _EVENT_OF.format(reason="CAST(:reason AS text)", detail=":detail")
_EVENT_EACH = _EVENT_OF.format(reason="NULL", detail="detail")  # where each row has brought its own


# What a template's `{lock}` becomes: the statement waits for a row that another transaction holds,
_WAIT = "FOR NO KEY UPDATE"


def _skip_locked(resource: str) -> str:
    """or it leaves the row out, and the row of a `resource` whose chain of events another transaction holds."""
    chain = f"pg_try_advisory_xact_lock(hashtextextended(CAST({resource} AS text), 0))"  # as its trigger takes it
    return f"AND {chain} FOR NO KEY UPDATE SKIP LOCKED"


# Of these claims, those that are still ours, locked in one order as above: heartbeats, starts and completions of the
# same jobs wait in no circle. By the CHECK only a running job has a `claimed_by`; asked for its `state`, the planner
# may walk the index of leases, dead entries and all.
_OURS_TEMPLATE = """
    ours AS (
        SELECT job.id, resource_id, detail
          FROM (SELECT *
                  FROM unnest(CAST(:ids AS bigint[]), CAST(:fences AS bigint[]), CAST(:details AS text[]))
                       AS asked (id, fence, detail)
                 ORDER BY id) AS asked
         CROSS JOIN LATERAL (
               SELECT id, resource_id FROM outbox
                WHERE outbox.id = asked.id AND outbox.fence = asked.fence AND claimed_by IS NOT NULL
                  {lock}) AS job
    )"""
_OURS = _OURS_TEMPLATE.format(lock=_WAIT)


def _still_ours(asked: Sequence[tuple[Claim, Json | None]]) -> Json:
    return {
        "ids": [claim.id for claim, _ in asked],
        "fences": [claim.fence for claim, _ in asked],
        "details": [None if detail is None else json.dumps(detail) for _, detail in asked],
    }


def _key(claim: Claim) -> Json:
    return {"id": claim.id, "fence": claim.fence, "resource_id": claim.resource_id}


def _event(event: Event, actor: str, *, reason: str | None = None, detail: Json | None = None) -> Json:
    return {
        "event": event,
        "actor": actor,
        "reason": reason,
        "detail": None if detail is None else json.dumps(detail),
    }


_NOTED = text("""
    SELECT state, fence, EXISTS (SELECT FROM events WHERE job_id = :id AND fence = :fence AND event = :event) AS noted
      FROM outbox WHERE id = :id""")


def _confirm_landed(db: Connection, claim: Claim, asked: Json) -> None:
    """Return when our own write had landed and only its answer was lost; else raise ClaimLost."""
    row = db.execute(_NOTED, asked).one()
    if not row.noted:
        raise ClaimLost(f"job {claim.id}: fence {claim.fence} is no longer ours (now {row.state}, fence {row.fence})")
