"""() -> pending: a DELETE that wins. Every other DELETE gets the winner's job."""

import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Executable, text

from outbox import holds, settings
from outbox.commits import CONFIRM
from outbox.db import prepared
from outbox.errors import (
    Conflict,
    DeletionProtected,
    IdempotencyKeyReused,
    NotFound,
    OutOfManagement,
    Restoring,
    VersionMismatch,
)
from outbox.events import Event
from outbox.jobs._sql import _WAIT, _skip_locked
from outbox.resources import check_retention
from outbox.rows import Job, Json, Resource, columns, read
from outbox.states import ResourceStatus, SnapshotPolicy


@dataclass(frozen=True)
class Delete:
    """One caller's request. `tenant` None means an operator; `detail` is kept with the event.

    A caller that lost the answer repeats the request with the same `request_id` and learns whether it had won; after a
    restore that request deletes nothing more. `grace` (seconds) and `snapshot`: instead of the resource's or the
    backend's. Only who `may_purge` may ask for less than the backend's `min_grace`, and nobody alone where a purge
    takes two operators. `version`: the resource must have it.
    """

    resource_id: uuid.UUID
    actor: str
    tenant: str | None = None
    reason: str | None = None
    detail: Json = field(default_factory=dict)
    request_id: uuid.UUID = field(default_factory=uuid.uuid4)
    grace: float | None = None
    snapshot: SnapshotPolicy | None = None
    may_purge: bool = False
    version: int | None = None


@dataclass(frozen=True)
class Enqueued:
    """The result of a DELETE: `won` is True for the one call that set the status to `deleting`."""

    resource: Resource
    job: Job
    won: bool


# What this process's backends file says of the resource's backend; one that it does not have keeps as long as the one
# that keeps longest.
_CONFIG = "CAST(:backends AS jsonb) -> resources.backend"
_GRACE = f"coalesce(CAST({_CONFIG} ->> 'grace' AS float8), :longest)"
_LEAST = f"coalesce(CAST({_CONFIG} ->> 'min_grace' AS float8), :longest)"
_MAY_PURGE = f"(asked.may_purge AND coalesce({_CONFIG} ->> 'purge', :strictest) = '{settings.ONE}')"
# What never was active has nothing to keep.
_KEPT_SECONDS = f"""
               CASE WHEN activated_at IS NULL THEN 0
                    WHEN asked.grace IS NOT NULL THEN asked.grace
                    WHEN {_MAY_PURGE} THEN coalesce(grace_seconds, {_GRACE})
                    ELSE greatest(coalesce(grace_seconds, {_GRACE}), {_LEAST}) END"""
_NEEDS_SNAPSHOT = f"""
               activated_at IS NOT NULL
               AND coalesce(asked.snapshot, resources.snapshot, {_CONFIG} ->> 'snapshot', 'off') = 'required'"""
# Less grace than the backend's least, or no snapshot where it takes one, is for those who may purge.
_MAY_HAVE_LESS = f"""
         ({_MAY_PURGE} OR activated_at IS NULL
          OR (coalesce(asked.grace >= {_LEAST}, true)
              AND NOT (asked.snapshot = 'off'
                       AND coalesce(resources.snapshot, {_CONFIG} ->> 'snapshot', 'off') = 'required')
                  IS TRUE))"""
# A snapshot that cannot be stored would leave the job stuck.
_CAN_SNAPSHOT = f"coalesce(NOT (asked.snapshot = 'required' AND {_CONFIG} ->> 'stores' = 'false'), true)"


def _enqueue(asked: str, which: str) -> str:
    return f"""
    WITH asked AS ({asked}
    ), resource AS (
        UPDATE resources
           SET status = 'deleting', deleted_at = now(), purge_at = now() + interval '1 second' * ({_KEPT_SECONDS})
          FROM asked
         WHERE resources.id = asked.id AND NOT protected AND {_MAY_HAVE_LESS} AND {_CAN_SNAPSHOT} AND {which}
     RETURNING resources.*, asked.request_id, asked.actor, asked.reason, asked.detail,
               {_NEEDS_SNAPSHOT} AS needs_snapshot
    ), job AS (
        INSERT INTO outbox (kind, resource_id, backend, max_attempts, request_id, step, needs_snapshot)
        SELECT 'deprovision', id, backend, :max_attempts, request_id,
               CASE WHEN purge_at > now() OR needs_snapshot THEN 'quarantine' ELSE 'destroy' END, needs_snapshot
          FROM resource
     RETURNING *
    ), noted AS (
        INSERT INTO events (job_id, resource_id, fence, event, actor, reason, detail)
        SELECT job.id, resource_id, fence, '{Event.ENQUEUED}', actor, reason,
               CASE WHEN purge_at > now()
                    THEN coalesce(CAST(detail AS jsonb), jsonb_build_object())
                         || jsonb_build_object('purge_at', purge_at)
                    ELSE CAST(detail AS jsonb) END
          FROM job JOIN resource ON resource.id = resource_id
         ORDER BY resource_id
    )
    SELECT {columns(Resource, "resource")}, {columns(Job, "job")}, job.request_id AS request_id
      FROM resource JOIN job ON job.resource_id = resource.id"""


# For a resource's next teardown.
_NO_HOLD = f"""NOT EXISTS (SELECT FROM holds WHERE {holds.COVERS.format("resources", "'deprovision'")})"""
# Rows are locked in order of id, so DELETEs and operations over the same resources cannot deadlock. LATERAL keeps
# that order, and finds each row by its key even where the plan was made while the table was small.
_ENQUEUE_TEMPLATE = _enqueue(
    """
        SELECT asked.*
          FROM (SELECT *
                  FROM unnest(CAST(:ids AS uuid[]), CAST(:tenants AS text[]), CAST(:request_ids AS uuid[]),
                              CAST(:actors AS text[]), CAST(:reasons AS text[]), CAST(:details AS text[]),
                              CAST(:graces AS float8[]), CAST(:snapshots AS text[]), CAST(:may_purge AS boolean[]),
                              CAST(:versions AS bigint[]))
                       AS asked (id, tenant, request_id, actor, reason, detail, grace, snapshot, may_purge, version)
                 ORDER BY id) AS asked
         CROSS JOIN LATERAL (SELECT FROM resources WHERE resources.id = asked.id {lock}) AS locked""",
    """(asked.tenant IS NULL OR asked.tenant = resources.tenant) AND status IN ('active', 'provisioning')
           AND coalesce(asked.version = resources.version, true)
           AND NOT EXISTS (SELECT FROM outbox AS before
                            WHERE before.resource_id = asked.id AND before.request_id = asked.request_id){also}""",
)
_ENQUEUE = prepared(_ENQUEUE_TEMPLATE.format(lock=_WAIT, also=""))
_ENQUEUE_SKIPPING = prepared(_ENQUEUE_TEMPLATE.format(lock=_skip_locked("asked.id"), also=""))
# A hold that is answered while this waits for a lock keeps the resource: the second statement reads the holds.
_ENQUEUE_UNHELD = text(
    f"""
    SELECT pg_advisory_xact_lock(hashtextextended(CAST(id AS text), 0))
      FROM (SELECT asked.id
              FROM (SELECT * FROM unnest(CAST(:ids AS uuid[])) AS asked (id) ORDER BY id) AS asked
             CROSS JOIN LATERAL (SELECT FROM resources WHERE resources.id = asked.id {_WAIT}) AS locked) AS locked
     ORDER BY id;"""
    + _ENQUEUE_TEMPLATE.format(lock=_WAIT, also=f"\n           AND {_NO_HOLD}")
)

# What the request asked for that enqueued a job.
_ASKED = f"""
               (SELECT jsonb_build_object('reason', reason, 'detail', detail) FROM events
                 WHERE job_id = {{}} AND event = '{Event.ENQUEUED}' ORDER BY id LIMIT 1)"""
_ENQUEUED_BEFORE = text(f"""
    SELECT {columns(Resource, "resource")}, {columns(Job, "job")}, job.request_id AS request_id,
           CASE WHEN job.request_id = CAST(:request_id AS uuid) THEN {_ASKED.format("job.id")} END AS asked,
           {CONFIRM}
      FROM resources AS resource
      LEFT JOIN LATERAL (
           SELECT * FROM outbox
            WHERE resource_id = resource.id AND kind = 'deprovision'
              AND (state <> 'cancelled' OR request_id = CAST(:request_id AS uuid))
            ORDER BY request_id = CAST(:request_id AS uuid) DESC LIMIT 1) AS job ON true
     WHERE resource.id = :id AND (CAST(:tenant AS text) IS NULL OR resource.tenant = :tenant)""")


def enqueue_all(db: Connection, asked: Sequence[Delete], *, waits: bool = True) -> dict[uuid.UUID, Enqueued]:
    """() -> pending, for each request that wins; returns these by `request_id`.

    One statement sets the status and inserts the job. Of several requests for one resource, one wins. Unless it
    `waits`, it skips what another transaction has locked.
    """
    return _enqueued(db, _ENQUEUE if waits else _ENQUEUE_SKIPPING, asked)


def enqueue_unheld(db: Connection, asked: Sequence[Delete]) -> dict[uuid.UUID, Enqueued]:
    """`enqueue_all`, except for resources that a hold covers: these stay as they are. `db` must be a transaction."""
    return _enqueued(db, _ENQUEUE_UNHELD, asked)


def _enqueued(db: Connection, statement: Executable, asked: Sequence[Delete]) -> dict[uuid.UUID, Enqueued]:
    rows = db.execute(
        statement,
        {
            "ids": [a.resource_id for a in asked],
            "tenants": [a.tenant for a in asked],
            "request_ids": [a.request_id for a in asked],
            "actors": [a.actor for a in asked],
            "reasons": [a.reason for a in asked],
            "details": [json.dumps(a.detail | {"request_id": str(a.request_id)}) for a in asked],
            "graces": [a.grace for a in asked],
            "snapshots": [a.snapshot for a in asked],
            "may_purge": [a.may_purge for a in asked],
            "versions": [a.version for a in asked],
            "max_attempts": settings.get().max_attempts,
        }
        | _config(),
    )
    return {row.request_id: Enqueued(read(Resource, "resource", row), read(Job, "job", row), won=True) for row in rows}


def _config() -> Json:
    configured, unknown = settings.backends(), settings.strictest()
    return {
        "backends": json.dumps(
            {
                name: {
                    "grace": config.grace.total_seconds(),
                    "min_grace": config.min_grace.total_seconds(),
                    "snapshot": config.snapshot,
                    "purge": config.purge,
                    "stores": config.snapshot_store is not None,
                }
                for name, config in configured.items()
            }
        ),
        "longest": unknown.grace.total_seconds(),
        "strictest": unknown.purge,
    }


def enqueue(db: Connection, resource_id: uuid.UUID, **words: Any) -> Enqueued:
    """() -> pending, for one resource, with the `words` of a Delete; a caller that does not win gets the winner's job.

    Raises what `enqueued_before` raises.
    """
    asked = Delete(resource_id, **words)
    return enqueue_all(db, [asked]).get(asked.request_id) or enqueued_before(db, asked)


def enqueued_before(db: Connection, asked: Delete) -> Enqueued:
    """The result of a DELETE that changed no row: the winner's job, which is its own where only the answer was lost.

    A request that had won before a restore gets that job. Raises NotFound, IdempotencyKeyReused, VersionMismatch,
    Restoring, OutOfManagement, DeletionProtected, Forbidden, BadRequest.
    """
    for _ in range(3):  # after a restore between the two statements, this one sees an active resource
        known = {"id": asked.resource_id, "tenant": asked.tenant, "request_id": asked.request_id}
        row = db.execute(_ENQUEUED_BEFORE, known).one_or_none()
        if row is None:
            raise NotFound(f"there is no resource {asked.resource_id}")
        if row.job_id is not None and row.request_id == asked.request_id:
            refuse_other(row.asked, asked.reason, asked.detail)
            return Enqueued(read(Resource, "resource", row), read(Job, "job", row), won=True)
        if asked.version not in (None, row.resource_version):
            raise VersionMismatch(asked.resource_id, row.resource_version)
        if row.resource_status in (ResourceStatus.DELETING, ResourceStatus.DELETED, ResourceStatus.ABANDONED):
            if row.job_id is not None:
                return Enqueued(read(Resource, "resource", row), read(Job, "job", row), won=False)
            raise Conflict(
                f"resource {asked.resource_id} is {row.resource_status}, and its deprovision job is missing; "
                "see `deprovisioner doctor` (deleting_without_job) and docs/runbook.md"
            )
        if row.resource_status == ResourceStatus.RESTORING:
            raise Restoring(f"resource {asked.resource_id} is being restored; delete it again when it is active")
        if row.resource_status in (ResourceStatus.RELEASING, ResourceStatus.RELEASED):
            raise OutOfManagement(
                f"resource {asked.resource_id} is {row.resource_status}: it is out of management, and stays as it is"
            )
        if row.resource_protected:
            raise DeletionProtected(f"resource {asked.resource_id} is protected; set `protected` to false first")
        check_retention(
            row.resource_backend,
            may_purge=asked.may_purge,
            grace=asked.grace,
            snapshot=asked.snapshot,
            own=row.resource_snapshot,
        )
        if won_now := enqueue_all(db, [asked]):
            return won_now[asked.request_id]
    raise Conflict(f"resource {asked.resource_id} changes faster than it can be read; try again")


def refuse_other(before: Json | None, reason: str | None, detail: Json) -> None:
    """Raise IdempotencyKeyReused where the request of that id was `before` made for another reason or detail."""
    kept = (before or {}).get("detail") or {}
    asked = {name: value for name, value in kept.items() if name not in ("request_id", "purge_at")}
    if before is not None and (before["reason"], asked) != (reason, detail):
        raise IdempotencyKeyReused("this Idempotency-Key came before with other parameters; take a new key")


# The resource goes back to where its restore found it, with a new teardown and a new grace.
_ABANDON = text(
    f"""
    WITH cancelled AS (
        UPDATE outbox SET state = 'cancelled', stuck_reason = NULL, finished_at = now()
         WHERE id = :id AND fence = :fence AND state = 'stuck' AND kind = 'restore'
           AND EXISTS (SELECT FROM resources
                        WHERE resources.id = resource_id AND status = 'restoring' AND NOT protected)
     RETURNING *
    ), resolved AS (
        INSERT INTO events (job_id, resource_id, fence, event, actor, reason, detail)
        SELECT id, resource_id, fence, '{Event.RESOLVED}', :actor, :reason, jsonb_build_object('state', state)
          FROM cancelled
    ),"""
    + _enqueue(
        """
        SELECT resource_id AS id, CAST(:actor AS text) AS actor, CAST(:reason AS text) AS reason,
               CAST(:request_id AS uuid) AS request_id, CAST(NULL AS text) AS detail, CAST(NULL AS float8) AS grace,
               CAST(NULL AS text) AS snapshot, false AS may_purge
          FROM cancelled""",
        "status = 'restoring'",
    )
    .lstrip()
    .removeprefix("WITH")
)


def abandon(db: Connection, job_id: int, *, fence: int, actor: str, reason: str) -> Job | None:
    """stuck -> cancelled, for a restore that is given up; its resource is `deleting` again. None where it is not so."""
    asked = {"id": job_id, "fence": fence, "actor": actor, "reason": reason, "request_id": uuid.uuid4()}
    asked |= {"max_attempts": settings.get().max_attempts}
    row = db.execute(_ABANDON, asked | _config()).one_or_none()
    return None if row is None else read(Job, "job", row)
