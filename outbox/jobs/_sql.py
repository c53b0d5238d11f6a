"""What the statements of the transitions share: writing the event, and locking the claims that are still ours."""

import json
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Row, text

from outbox.errors import ClaimLost
from outbox.events import Event
from outbox.rows import Claim, Json, StartMark

# The event that every transition writes; `job` is the CTE that changed the job. Sorted by resource: each event locks
# its resource's chain until commit, so statements that lock several chains must take them in one order.
_EVENT_OF = """
    INSERT INTO events (job_id, resource_id, fence, event, actor, reason, detail)
    SELECT id, resource_id, fence, :event, :actor, {reason}, CAST({detail} AS jsonb) FROM job
     ORDER BY resource_id"""
_EVENT = _EVENT_OF.format(reason="CAST(:reason AS text)", detail=":detail")
_EVENT_EACH = _EVENT_OF.format(reason="NULL", detail="detail")  # each row of `job` has its own detail
# Of the events of `noted`, as a StartMark has them.
_MARK = """noted.id AS event, encode(noted.hash, 'hex') AS hash, installation.id AS installation, installation.epoch"""
_OF_INSTALLATION = "LEFT JOIN installation ON installation.compared_under IS NOT NULL"


def _mark(row: Row[Any]) -> StartMark:
    return StartMark(row.event, row.hash, row.installation, row.epoch)


# For a template's `{lock}`: the statement waits for a row that another transaction has locked.
_WAIT = "FOR NO KEY UPDATE"


def _skip_locked(resource: str) -> str:
    """For a template's `{lock}`: skip a row that another transaction has locked, or whose `resource`'s chain it has."""
    chain = f"pg_try_advisory_xact_lock(hashtextextended(CAST({resource} AS text), 0))"  # the chain trigger's own lock
    return f"AND {chain} FOR NO KEY UPDATE SKIP LOCKED"


# The claims that are still ours, locked in order of id: so heartbeats, starts and completions of the same jobs cannot
# deadlock. `claimed_by IS NOT NULL` means running (a CHECK); with `state = 'running'` the planner may scan the index
# of leases with all its dead entries.
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
# A statement sees the database as it was when the statement began, before it waited for a lock. So a statement whose
# guard reads other tables follows one that takes its locks, in the same message: one round trip, one transaction.
_CHAIN_LOCK = "SELECT pg_advisory_xact_lock(hashtextextended(CAST(resource_id AS text), 0))"
_LOCK_JOB = f"""
    {_CHAIN_LOCK} FROM (SELECT resource_id FROM outbox JOIN resources ON resources.id = resource_id
                         WHERE outbox.id = :id FOR NO KEY UPDATE) AS locked;"""


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
    """Return when our own write was committed and only its answer was lost; else raise ClaimLost."""
    row = db.execute(_NOTED, asked).one()
    if not row.noted:
        raise ClaimLost(
            f"job {claim.id}: the claim with fence {claim.fence} is lost; the job is {row.state} at fence {row.fence}"
        )
