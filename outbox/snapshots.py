"""Final snapshots: recorded before their first byte, counted once they were restored, kept until they expire."""

import datetime as dt
import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from sqlalchemy import Connection, text

from outbox import holds, rewinds
from outbox.errors import ClaimLost, NotFound
from outbox.events import Event
from outbox.rows import Claim, Json


@dataclass(frozen=True)
class Snapshot:
    """A row of `snapshots`. `verified_at`: it was restored, and equal to its frozen source; only then it counts.

    `bytes`: how many are stored so far, encrypted. `expires_at` counts once its job has ended.
    """

    id: int
    job_id: int
    resource_id: uuid.UUID
    fence: int
    tenant: str
    kind: str
    backend: str
    location: str
    bytes: int | None
    detail: Json | None
    created_at: dt.datetime
    verified_at: dt.datetime | None
    expires_at: dt.datetime | None
    removed_at: dt.datetime | None

    @classmethod
    def read(cls, row: Any) -> "Snapshot":
        """From its row."""
        values: Mapping[str, Any] = row._mapping
        return cls(**{field.name: values[field.name] for field in fields(cls)})


_COLUMNS = ", ".join(f"snapshots.{field.name}" for field in fields(Snapshot))
# Due for removal from now on, as soon as its job has ended: unless it is verified.
_BEGIN = text("""
    INSERT INTO snapshots (job_id, resource_id, fence, tenant, kind, backend, location, expires_at)
    SELECT outbox.id, resource_id, fence, tenant, resources.kind, outbox.backend, :location, now()
      FROM outbox JOIN resources ON resources.id = resource_id
     WHERE outbox.id = :job_id AND fence = :fence AND state = 'running' AND started_step = 'snapshot'
 RETURNING id""")


def begin(db: Connection, claim: Claim, location: str) -> int:
    """Record a snapshot before its first byte is stored; its id. Raises ClaimLost."""
    asked = {"job_id": claim.id, "fence": claim.fence, "location": location}
    row = db.execute(_BEGIN, asked).one_or_none()
    if row is None:
        raise ClaimLost(f"job {claim.id}: the claim with fence {claim.fence} is lost")
    return int(row.id)


def progress(db: Connection, id: int, size: int) -> None:
    """Record how many bytes are stored so far."""
    db.execute(
        text("UPDATE snapshots SET bytes = :size WHERE id = :id AND verified_at IS NULL"), {"id": id, "size": size}
    )


_VERIFIED = text("""
    UPDATE snapshots
       SET verified_at = now(), bytes = :size, detail = CAST(:detail AS jsonb),
           expires_at = greatest(now(), purge_at) + :keep
      FROM outbox JOIN resources ON resources.id = outbox.resource_id
     WHERE snapshots.id = :id AND removed_at IS NULL AND outbox.id = job_id
       AND outbox.fence = :fence AND state = 'running' AND started_step = 'snapshot'
 RETURNING snapshots.id""")


def verified(db: Connection, claim: Claim, id: int, *, size: int, detail: Json, keep: dt.timedelta) -> None:
    """Record that the snapshot was restored, and equal to its source. Raises ClaimLost."""
    asked = {"id": id, "fence": claim.fence, "size": size, "detail": json.dumps(detail), "keep": keep}
    if db.execute(_VERIFIED, asked).one_or_none() is None:
        raise ClaimLost(f"job {claim.id}: the claim with fence {claim.fence} is lost")


def of_job(db: Connection, job_id: int) -> list[Snapshot]:
    """What the attempts of a job have stored, and nobody has removed, newest first."""
    asked = text(f"SELECT {_COLUMNS} FROM snapshots WHERE job_id = :id AND removed_at IS NULL ORDER BY id DESC")
    return [Snapshot.read(row) for row in db.execute(asked, {"id": job_id})]


def find(db: Connection, id: int) -> Snapshot:
    """One snapshot. Raises NotFound."""
    row = db.execute(text(f"SELECT {_COLUMNS} FROM snapshots WHERE id = :id"), {"id": id}).one_or_none()
    if row is None:
        raise NotFound(f"there is no snapshot {id}")
    return Snapshot.read(row)


_LIST = text(f"""
    SELECT {_COLUMNS} FROM snapshots
     WHERE (CAST(:resource AS uuid) IS NULL OR resource_id = :resource)
       AND (CAST(:tenant AS text) IS NULL OR tenant = :tenant)
       AND (:every OR (removed_at IS NULL AND verified_at IS NOT NULL))
     ORDER BY id DESC LIMIT :limit""")


def found(
    db: Connection, *, resource: uuid.UUID | None = None, tenant: str | None = None, every: bool = False, limit: int
) -> list[Snapshot]:
    """Verified snapshots that are still there, newest first; `every`: also unverified and removed ones."""
    asked = {"resource": resource, "tenant": tenant, "every": every, "limit": limit}
    return [Snapshot.read(row) for row in db.execute(_LIST, asked)]


# A teardown that has not ended may need its snapshot, however long it waits. Under a hold the last copy is kept too.
_EXPIRED = text(f"""
    SELECT {_COLUMNS} FROM snapshots
     WHERE removed_at IS NULL AND expires_at <= now() AND (CAST(:id AS bigint) IS NULL OR snapshots.id = :id)
       AND NOT EXISTS (SELECT FROM outbox WHERE outbox.id = job_id AND state IN ('pending', 'running', 'stuck'))
       AND NOT EXISTS (SELECT FROM holds WHERE {holds.COVERS.format("snapshots", "'deprovision'")})
       AND {rewinds.GOES_ON}
     ORDER BY expires_at LIMIT :limit""")


def expired(db: Connection, *, limit: int, id: int | None = None) -> list[Snapshot]:
    """What is to be removed from its store: past its time, or never verified, its job has ended, and no hold covers it.

    `id`: only this one.
    """
    return [Snapshot.read(row) for row in db.execute(_EXPIRED, {"limit": limit, "id": id})]


_REMOVED = text(f"""
    WITH gone AS (
        UPDATE snapshots SET removed_at = now() WHERE id = :id AND removed_at IS NULL RETURNING *
    )
    INSERT INTO events (job_id, resource_id, fence, event, actor, reason, detail)
    SELECT job_id, resource_id, fence, '{Event.SNAPSHOT_REMOVED}', :actor, :reason,
           jsonb_build_object('snapshot', id, 'verified_at', verified_at, 'expires_at', expires_at)
      FROM gone
 RETURNING job_id""")


def removed(db: Connection, id: int, *, actor: str, reason: str) -> bool:
    """Record that the store does not have it any more, with an event; whether this call has recorded it."""
    return db.execute(_REMOVED, {"id": id, "actor": actor, "reason": reason}).one_or_none() is not None
