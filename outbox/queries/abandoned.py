"""The ledger of what may have leaked: objects whose server was given up for gone, and which nobody saw absent."""

import datetime as dt
import uuid
from dataclasses import dataclass

from sqlalchemy import Connection, text

from outbox import kinds
from outbox.rows import Json


@dataclass(frozen=True)
class Abandoned:
    """One object, by its manifest's names; and the words of the two operators who gave it up."""

    resource_id: uuid.UUID
    tenant: str
    kind: str
    backend: str
    name: str
    manifest: Json | None
    job_id: int
    abandoned_at: dt.datetime
    proposed_by: str
    proposed_reason: str
    approved_by: str
    approved_reason: str


_LEDGER = text("""
    SELECT resource.id AS resource_id, tenant, resource.kind, resource.backend, name, manifest, event.job_id,
           event.at AS abandoned_at, event.detail ->> 'proposed_by' AS proposed_by,
           event.detail ->> 'proposed_reason' AS proposed_reason, event.actor AS approved_by,
           event.reason AS approved_reason
      FROM resources AS resource
      JOIN LATERAL (SELECT * FROM events WHERE resource_id = resource.id AND event = 'abandoned'
                     ORDER BY id DESC LIMIT 1) AS event ON true
     WHERE status = 'abandoned' AND (CAST(:backend AS text) IS NULL OR resource.backend = :backend)
       AND (CAST(:tenant AS text) IS NULL OR tenant = :tenant)
     ORDER BY event.id""")


def abandoned(db: Connection, *, backend: str | None = None, tenant: str | None = None) -> list[Abandoned]:
    """All abandoned objects, oldest first; secrets of a manifest are left out."""
    rows = [Abandoned(**row._mapping) for row in db.execute(_LEDGER, {"backend": backend, "tenant": tenant})]
    return [_shown(row) for row in rows]


def _shown(row: Abandoned) -> Abandoned:
    if row.manifest is None:
        return row
    return Abandoned(**{**vars(row), "manifest": kinds.redacted(row.kind, row.manifest)})
