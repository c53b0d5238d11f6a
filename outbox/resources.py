"""Register a resource, and change what may be changed while it lives."""

import datetime as dt
import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Row, text
from sqlalchemy.exc import IntegrityError

from outbox import holds, labels, settings
from outbox.commits import CONFIRM
from outbox.errors import (
    AlreadyManaged,
    BadRequest,
    ExternalIdTaken,
    Forbidden,
    IdempotencyKeyReused,
    NotActive,
    NotFound,
    QuotaExceeded,
    VersionMismatch,
)
from outbox.events import Event
from outbox.rows import Job, Json, Resource, columns, read
from outbox.settings import TenantConfig
from outbox.states import ResourceStatus, SnapshotPolicy

_PAST = "expires_at: must be in the future, by the clock of the control database"

# The creates of a tenant with a quota take turns until their commit, so that two cannot pass together. The count is a
# statement of its own, after the lock: it sees what came before. Counting stops at the limit.
# States are left to the columns' defaults: provisioning, pending.
_REGISTER = text(f"""
    SELECT pg_advisory_xact_lock(hashtextextended('quota:' || CAST(:tenant AS text), 0))
     WHERE CAST(:max_resources AS int) IS NOT NULL OR CAST(:max_pending AS int) IS NOT NULL;
    WITH used AS (
        SELECT (SELECT count(*) FROM (
                       SELECT FROM resources WHERE tenant = :tenant
                          AND status NOT IN ('deleted', 'released', 'abandoned')
                        LIMIT coalesce(CAST(:max_resources AS int), 0)) AS counted) AS resources,
               (SELECT count(*) FROM (
                       SELECT FROM resources WHERE tenant = :tenant AND status IN ('provisioning', 'deleting')
                        LIMIT coalesce(CAST(:max_pending AS int), 0)) AS counted) AS pending
    ), resource AS (
        INSERT INTO resources (id, tenant, kind, backend, name, protected, adopted, generation, manifest,
                               expires_at, grace_seconds, snapshot, idempotency_key, request_digest,
                               external_id, labels)
        SELECT :id, :tenant, :kind, :backend, :name, :protected, :adopted, :generation, CAST(:manifest AS jsonb),
               :expires_at, :grace_seconds, :snapshot, :idempotency_key, :request_digest, :external_id,
               CAST(:labels AS jsonb)
          FROM used
         WHERE (CAST(:expires_at AS timestamptz) IS NULL OR CAST(:expires_at AS timestamptz) > now())
           AND NOT EXISTS (SELECT FROM holds WHERE {holds.RETIRED} AND subject = :backend)
           AND (:again OR NOT EXISTS (SELECT FROM resources WHERE generation = :generation AND status = 'deleted'))
           AND (CAST(:max_resources AS int) IS NULL OR used.resources < :max_resources)
           AND (CAST(:max_pending AS int) IS NULL OR used.pending < :max_pending)
            ON CONFLICT (tenant, idempotency_key) WHERE idempotency_key IS NOT NULL DO NOTHING
     RETURNING *
    ), job AS (
        INSERT INTO outbox (kind, resource_id, backend, max_attempts, request_id)
        SELECT 'provision', id, backend, :max_attempts, :request_id FROM resource
     RETURNING *
    ), noted AS (
        INSERT INTO events (job_id, resource_id, fence, event, actor, detail)
        SELECT job.id, resource_id, fence, '{Event.ENQUEUED}', :actor,
               CAST(:detail AS jsonb) || jsonb_build_object('request_id', request_id)
               || CASE WHEN manifest IS NULL THEN '{{}}' ELSE jsonb_build_object('manifest', manifest) END
          FROM job JOIN resource ON resource.id = resource_id
    )
    SELECT used.resources AS used_resources, used.pending AS used_pending,
           {columns(Resource, "resource")}, {columns(Job, "job")}
      FROM used LEFT JOIN resource ON true LEFT JOIN job ON true""")

_ANOTHERS = "this generation is another resource's: one object belongs to one resource"
_WAS_ANOTHERS = text("SELECT EXISTS (SELECT FROM resources WHERE generation = :generation AND status = 'deleted')")
_REGISTERED_BEFORE = text(f"""
    SELECT {columns(Resource, "resource")}, {columns(Job, "job")}, resource.request_digest AS request_digest,
           {CONFIRM}
      FROM resources AS resource
      JOIN LATERAL (SELECT * FROM outbox WHERE resource_id = resource.id AND kind = 'provision'
                     ORDER BY id DESC LIMIT 1) AS job ON true
     WHERE resource.tenant = :tenant AND resource.idempotency_key = :idempotency_key""")


@dataclass(frozen=True)
class NewResource:
    """The resource that a caller asks for.

    With a `manifest` the object that it names is adopted; without one a worker provisions an object. `tenant` None is
    the caller's own, which `actions.create` fills in. `grace_seconds` and `snapshot` None are the backend's.
    """

    tenant: str | None
    kind: str
    backend: str
    name: str
    protected: bool = False
    manifest: Json | None = None
    expires_at: dt.datetime | None = None
    grace_seconds: int | None = None
    snapshot: SnapshotPolicy | None = None
    external_id: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)


def register(
    db: Connection,
    new: NewResource,
    *,
    actor: str,
    idempotency_key: str | None = None,
    request_digest: str | None = None,
    resource_id: uuid.UUID | None = None,
    again: bool = False,
    detail: Json | None = None,
) -> tuple[Resource, Job]:
    """() -> provisioning, with its provision job, in one statement.

    A recovery gives the `resource_id` that the object's resource had. `again`: a deleted resource may have had the
    object, as a recovery or a reconciliation has seen it. `detail` is kept with the event.

    The same `idempotency_key` of a tenant returns what it made the first time; with another
    `request_digest` it raises IdempotencyKeyReused. A manifest with another resource's generation raises
    AlreadyManaged, another resource's external id ExternalIdTaken, an `expires_at` that has passed BadRequest, and a
    tenant that has as much as it may have QuotaExceeded; one on a backend that is retired BackendRetired.
    """
    if new.tenant is None:
        raise BadRequest("tenant: a resource belongs to a tenant")
    quota = settings.tenant(new.tenant)
    adopted = new.manifest is not None
    generation = uuid.UUID(str((new.manifest or {}).get("generation") or uuid.uuid4()))
    manifest = None if new.manifest is None else new.manifest | {"generation": str(generation)}
    asked = {
        "id": resource_id or uuid.uuid4(),
        "tenant": new.tenant,
        "kind": new.kind,
        "backend": new.backend,
        "name": new.name,
        "protected": new.protected,
        "adopted": adopted,
        "generation": generation,
        "manifest": None if manifest is None else json.dumps(manifest),
        "expires_at": new.expires_at,
        "grace_seconds": new.grace_seconds,
        "snapshot": new.snapshot,
        "external_id": labels.check_external_id(new.external_id),
        "labels": json.dumps(labels.check(new.labels)),
        "idempotency_key": idempotency_key,
        "request_digest": request_digest,
        "max_attempts": settings.get().max_attempts,
        "request_id": uuid.uuid4(),
        "actor": actor,
        "detail": json.dumps(detail or {}),
        "again": again,
        "max_resources": quota.max_resources,
        "max_pending": quota.max_pending,
    }
    try:
        row = db.execute(_REGISTER, asked).one()
    except IntegrityError as error:
        if "resources_external_id" in str(error):
            raise ExternalIdTaken(
                f"tenant {new.tenant!r} has another resource with the external_id {new.external_id!r}"
            ) from error
        if "resources_generation" not in str(error):
            raise
        raise AlreadyManaged(_ANOTHERS) from error
    if row.resource_id is None:
        before = {"tenant": new.tenant, "idempotency_key": idempotency_key}
        used, found = row, db.execute(_REGISTERED_BEFORE, before).one_or_none()
        if found is None:
            if not again and db.execute(_WAS_ANOTHERS, {"generation": generation}).scalar_one():
                raise AlreadyManaged(_ANOTHERS)
            holds.refuse_retired(db, new.backend)
            _refuse_above_quota(new.tenant, quota, used)
            raise BadRequest(_PAST)
        row = found
        if row.request_digest != request_digest:
            raise IdempotencyKeyReused(
                f"Idempotency-Key {idempotency_key!r} came before with another body; take a new key"
            )
    return read(Resource, "resource", row), read(Job, "job", row)


def _refuse_above_quota(tenant: str, quota: TenantConfig, used: Row[Any]) -> None:
    if quota.max_resources is not None and used.used_resources >= quota.max_resources:
        raise QuotaExceeded(
            f"tenant {tenant!r} has {used.used_resources} resources, and may have no more (max_resources); delete "
            "some, or ask an operator for a higher limit",
            "max_resources",
            quota.max_resources,
        )
    if quota.max_pending is not None and used.used_pending >= quota.max_pending:
        raise QuotaExceeded(
            f"tenant {tenant!r} has {used.used_pending} resources that are being provisioned or deleted, and may have "
            "no more (max_pending); ask again when some of them are done. A DELETE is always accepted",
            "max_pending",
            quota.max_pending,
        )


def check_retention(
    backend: str, *, may_purge: bool, grace: float | None, snapshot: str | None, own: str | None = None
) -> None:
    """Raise Forbidden for less grace than the backend's least, or no snapshot where one is required.

    Only who may purge may ask for it, and nobody alone where that takes two operators. `own` is what the resource
    itself says of snapshots. Raises BadRequest for a snapshot that cannot be stored.
    """
    configured = settings.backends().get(backend)
    if snapshot == SnapshotPolicy.REQUIRED and configured and configured.snapshot_store is None:
        raise BadRequest(
            f"snapshot: backend {backend!r} has no `snapshot_store` in the backends file, so it takes none"
        )
    kept = configured or settings.strictest()
    if may_purge and kept.purge == settings.ONE:
        return
    least = int(kept.min_grace.total_seconds())
    if grace is not None and grace < least:
        raise Forbidden(
            f"grace: at least {settings.spell(least)} on backend {backend!r} (min_grace); less is a purge, which is "
            f"for {kept.purge}"
        )
    if snapshot == SnapshotPolicy.OFF and (own or kept.snapshot) == SnapshotPolicy.REQUIRED:
        raise Forbidden(f"snapshot: one is required; to leave it out is for {kept.purge}, as a purge is")


# What may be changed. None of the first is no change; of the others it is "never", or "as the backend has it".
CHANGEABLE = ("protected", "expires_at", "grace_seconds", "snapshot")

# Its event has the values before and after of what differs; where nothing differs, there is none.
_CHANGE = text(f"""
    WITH before AS (
        SELECT id, {", ".join(CHANGEABLE)} FROM resources
         WHERE id = :id AND (CAST(:tenant AS text) IS NULL OR tenant = :tenant) AND status IN ('provisioning', 'active')
           AND (CAST(:expires_at AS timestamptz) IS NULL OR CAST(:expires_at AS timestamptz) > now())
           AND (CAST(:version AS bigint) IS NULL OR version = :version)
           FOR NO KEY UPDATE
    ), resource AS (
        UPDATE resources
           SET protected = COALESCE(CAST(:protected AS boolean), before.protected),
               expires_at = CASE WHEN 'expires_at' = ANY(:sets) THEN :expires_at ELSE before.expires_at END,
               grace_seconds = CASE WHEN 'grace_seconds' = ANY(:sets) THEN :grace_seconds
                                    ELSE before.grace_seconds END,
               snapshot = CASE WHEN 'snapshot' = ANY(:sets) THEN :snapshot ELSE before.snapshot END
          FROM before WHERE resources.id = before.id
     RETURNING resources.*
    ), noted AS (
        INSERT INTO events (resource_id, fence, event, actor, detail)
        SELECT resource.id, 0, '{Event.CHANGED}', :actor,
               jsonb_build_object('old', jsonb_object_agg(key, old.value), 'new', jsonb_object_agg(key, new.value))
          FROM resource JOIN before ON before.id = resource.id
         CROSS JOIN LATERAL jsonb_each(to_jsonb(before)) AS old
          JOIN LATERAL jsonb_each(to_jsonb(resource)) AS new USING (key)
         WHERE old.value <> new.value
         GROUP BY resource.id
    )
    SELECT {columns(Resource, "resource")} FROM resource""")

_FIND = text(f"""
    SELECT {columns(Resource, "resource")}, credentials FROM resources AS resource
     WHERE id = :id AND (CAST(:tenant AS text) IS NULL OR tenant = :tenant)""")


def change(
    db: Connection,
    resource_id: uuid.UUID,
    *,
    changes: Mapping[str, Any],
    actor: str,
    tenant: str | None = None,
    version: int | None = None,
) -> Resource:
    """Set those fields of CHANGEABLE that `changes` has. `version`: the resource must have it.

    Raises NotFound, VersionMismatch, NotActive once it is being deleted, or BadRequest when `expires_at` has passed.
    """
    asked = {"id": resource_id, "tenant": tenant, "version": version, "sets": list(changes), "actor": actor}
    row = db.execute(_CHANGE, asked | dict.fromkeys(CHANGEABLE) | dict(changes)).one_or_none()
    if row is None:
        resource, _ = find(db, resource_id, tenant=tenant)
        if version not in (None, resource.version):
            raise VersionMismatch(resource_id, resource.version)
        if resource.status in (ResourceStatus.PROVISIONING, ResourceStatus.ACTIVE):
            raise BadRequest(_PAST)
        raise NotActive(f"resource {resource_id} is {resource.status}: it can no longer be changed")
    return read(Resource, "resource", row)


def find(db: Connection, resource_id: uuid.UUID, *, tenant: str | None = None) -> tuple[Resource, bytes | None]:
    """The resource and its encrypted credentials; `tenant` None means an operator. Raises NotFound."""
    row = db.execute(_FIND, {"id": resource_id, "tenant": tenant}).one_or_none()
    if row is None:
        raise NotFound(f"there is no resource {resource_id}")
    return read(Resource, "resource", row), None if row.credentials is None else bytes(row.credentials)
