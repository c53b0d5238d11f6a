"""What a recovery does with jobs, after the control database went back in time."""

import json
import uuid
from collections.abc import Sequence

from sqlalchemy import Connection, text

from outbox import settings
from outbox.events import Event
from outbox.jobs._sql import _EVENT, _event
from outbox.rows import Job, Json, columns, read

# The inner SELECT takes the locks in order of id, as workers do.
_SET_ASIDE = text(f"""
    WITH job AS (
        UPDATE outbox
           SET state = 'stuck', stuck_reason = 'refused', claimed_by = NULL, lease_expires_at = NULL, held_by = NULL,
               last_error = :reason
          FROM (SELECT id, listed.fence
                  FROM outbox JOIN unnest(CAST(:ids AS bigint[]), CAST(:fences AS bigint[])) AS listed (id, fence)
                 USING (id) ORDER BY id FOR NO KEY UPDATE OF outbox) AS listed
         WHERE outbox.id = listed.id AND outbox.fence = listed.fence
           AND (state = 'pending' OR (state = 'running' AND lease_expires_at < clock_timestamp()))
     RETURNING outbox.*
    ), noted AS ({_EVENT}
    )
    SELECT id FROM job""")


def set_aside(
    db: Connection, listed: Sequence[tuple[int, int]], *, actor: str, reason: str, detail: Json | None = None
) -> set[int]:
    """pending, or running with a lease that has passed -> stuck(refused), for each listed (job, fence).

    Returns the ids of the jobs that it moved: a person decides about each, by a redrive or a restore.
    """
    rows = db.execute(
        _SET_ASIDE,
        _event(Event.STUCK, actor, reason=reason, detail=detail)
        | {"ids": [id for id, _ in listed], "fences": [fence for _, fence in listed]},
    )
    return set(rows.scalars())


# Chain and row are locked first, in the order of all that delete. The proof of a deletion reads both events.
_CLOSE = text(f"""
    SELECT pg_advisory_xact_lock(hashtextextended(CAST(id AS text), 0))
      FROM (SELECT id FROM resources WHERE id = :id FOR NO KEY UPDATE) AS locked;
    WITH resource AS (
        UPDATE resources SET status = 'deleted', deleted_at = now(), purged_at = now(), credentials = NULL
         WHERE id = :id AND status = 'active'
           AND NOT EXISTS (SELECT FROM outbox WHERE resource_id = :id AND state IN ('pending', 'running', 'stuck'))
     RETURNING *
    ), job AS (
        INSERT INTO outbox (kind, state, resource_id, backend, max_attempts, request_id, finished_at, step)
        SELECT 'deprovision', 'succeeded', id, backend, :max_attempts, :request_id, now(), 'destroy' FROM resource
     RETURNING *
    ), noted AS (
        INSERT INTO events (job_id, resource_id, fence, event, actor, reason, detail)
        SELECT id, resource_id, fence, event, :actor, :reason, CAST(noted AS jsonb)
          FROM job CROSS JOIN (VALUES (1, '{Event.ENQUEUED}', :asked), (2, '{Event.RESOLVED}', :proof))
                           AS each (nth, event, noted)
         ORDER BY nth
    )
    SELECT {columns(Job, "job")} FROM job""")


def close(
    db: Connection, resource_id: uuid.UUID, *, actor: str, reason: str, seen: Json, detail: Json | None = None
) -> Job | None:
    """() -> succeeded: an active resource whose object was just `seen` to be absent is deleted, with that evidence.

    None where it is not active any more, or a job of it is not done.
    """
    request = uuid.uuid4()
    asked = {
        "id": resource_id,
        "actor": actor,
        "reason": reason,
        "request_id": request,
        "max_attempts": settings.get().max_attempts,
        "asked": json.dumps((detail or {}) | {"request_id": str(request)}),
        "proof": json.dumps((detail or {}) | {"state": "succeeded", "seen": seen}),
    }
    row = db.execute(_CLOSE, asked).one_or_none()
    return None if row is None else read(Job, "job", row)
