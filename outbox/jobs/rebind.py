"""The new identity of objects whose server moved: the one place that rewrites a manifest, or the name of a backend."""

import json
import uuid
from collections.abc import Mapping

from sqlalchemy import Connection, text

from outbox.events import Event
from outbox.jobs._sql import _CHAIN_LOCK
from outbox.rows import Json

# Jobs, then resources with their chains, as workers lock them. Under the hold of the rebind nothing starts; a trigger
# demands that hold, and the event with both manifests.
_REBIND = text(f"""
    SELECT FROM outbox WHERE resource_id = ANY(CAST(:ids AS uuid[])) AND finished_at IS NULL
     ORDER BY id FOR NO KEY UPDATE;
    {_CHAIN_LOCK} FROM (SELECT id AS resource_id FROM resources WHERE id = ANY(CAST(:ids AS uuid[]))
                         ORDER BY id FOR NO KEY UPDATE) AS locked;
    WITH resource AS (
        UPDATE resources SET manifest = asked.is_now, backend = :backend
          FROM jsonb_to_recordset(CAST(:asked AS jsonb)) AS asked (id uuid, was jsonb, is_now jsonb)
          JOIN resources AS before ON before.id = asked.id
         WHERE resources.id = asked.id AND resources.manifest = asked.was
           AND resources.status NOT IN ('deleted', 'released', 'abandoned')
           AND EXISTS (SELECT FROM holds
                        WHERE cause = 'rebind' AND scope = 'backend' AND subject = :backend AND released_at IS NULL)
           AND NOT EXISTS (SELECT FROM outbox
                            WHERE resource_id = resources.id AND state = 'running'
                              AND lease_expires_at > clock_timestamp())
     RETURNING resources.id, resources.backend, resources.manifest, before.backend AS was_backend,
               before.manifest AS was_manifest
    ), job AS (
        UPDATE outbox SET backend = resource.backend
          FROM resource
         WHERE resource_id = resource.id AND finished_at IS NULL AND outbox.backend <> resource.backend
    )
    INSERT INTO events (resource_id, fence, event, actor, reason, detail)
    SELECT id, 0, '{Event.REBOUND}', :actor, :reason,
           CAST(:detail AS jsonb)
           || jsonb_build_object('was', jsonb_build_object('backend', was_backend, 'manifest', was_manifest),
                                 'is', jsonb_build_object('backend', backend, 'manifest', manifest))
      FROM resource ORDER BY id
 RETURNING resource_id""")


def rebind(
    db: Connection,
    bound: Mapping[uuid.UUID, tuple[Json, Json]],
    *,
    backend: str,
    actor: str,
    reason: str,
    detail: Json,
) -> set[uuid.UUID]:
    """Moves no job: each manifest (what it is, and what it will be) is rewritten, with the event that records it.

    Their backend becomes `backend`, and that of their unfinished jobs. Returns the resources that it rewrote: none that
    has changed, is deleted, or whose job still runs, and none without the hold of a rebind on `backend`.
    """
    asked = [{"id": str(id), "was": was, "is_now": now} for id, (was, now) in bound.items()]
    words = {"ids": list(bound), "asked": json.dumps(asked), "backend": backend}
    rows = db.execute(_REBIND, words | {"actor": actor, "reason": reason, "detail": json.dumps(detail)})
    return set(rows.scalars())
