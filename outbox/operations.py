"""Bulk work of operators as rows that workers advance: a closed laptop or a dead API stops nothing.

A preview tells how many there are, and a digest of exactly which. `begin_…` writes that very set down, or refuses when
it is another by now. `advance` makes one step of one operation in one short transaction; it holds the operation's row
meanwhile, so that workers take turns and none does a step twice.
"""

import hashlib
import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, text

from outbox import holds, jobs, tables
from outbox.errors import AlreadyFinished, AlreadyRunning, BadRequest, DigestMismatch, NotFound
from outbox.queries import JobFilter
from outbox.rows import Job, Json, Operation, Resource, columns, read
from outbox.states import HoldScope, JobState, OperationKind, ResourceStatus

# Jobs a second that an operation re-drives: about what one worker's hands get done with fast backends.
RATE, MAX_RATE = 50, 1000
# Rows a step: their locks are held for some tens of milliseconds, and a DELETE among them waits no longer.
BATCH = 100
# As many as a person reads before they say yes.
SAMPLE = 20
# Between two looks at canaries that are not done yet, and at the most between two steps.
LOOK_SECONDS = 1.0
# How a digest is written: the count, and SHA-256 in hexadecimal.
DIGEST = r"[0-9]{1,19}-[0-9a-f]{64}"
# Two sums of hashes with different seeds: order does not matter, and the database needs no memory for them.
_SEEDS = (0, 1)


@dataclass(frozen=True)
class Preview:
    """The stuck jobs that a filter means: how many, of which backends, the first of them, and their digest."""

    count: int
    backends: dict[str, int]
    sample: list[Job]
    digest: str


@dataclass(frozen=True)
class OffboardPreview:
    """The living resources of a tenant. `protected` of them would be left; `deleting` are on their way already."""

    count: int
    protected: int
    deleting: int
    backends: dict[str, int]
    statuses: dict[str, int]
    sample: list[Resource]
    digest: str


@dataclass(frozen=True)
class _Set:
    count: int
    backends: dict[str, int]
    digest: str


_SAMPLE_OF_JOBS = text(f"SELECT {columns(Job, 'job')} FROM outbox AS job WHERE id = ANY(:ids) ORDER BY id")


def preview_redrive(db: Connection, wanted: JobFilter) -> Preview:
    """What a bulk re-drive would work on; `db` is a snapshot's, so that all of it is of one moment.

    Raises BadRequest when nobody knows the filter's backend or tenant.
    """
    _refuse_unknown(db, wanted)
    stuck = _stuck(wanted).subquery()
    found = _told(db, OperationKind.REDRIVE, words(wanted), stuck, stuck.c.id, stuck.c.fence)
    first = db.execute(sa.select(stuck.c.id).order_by(stuck.c.id).limit(SAMPLE)).scalars().all()
    sample = [read(Job, "job", row) for row in db.execute(_SAMPLE_OF_JOBS, {"ids": first})]
    return Preview(found.count, found.backends, sample, found.digest)


def begin_redrive(
    db: Connection, wanted: JobFilter, *, reason: str, actor: str, digest: str, rate: int = RATE
) -> Operation:
    """Write down the previewed jobs for the workers to re-drive, at most `rate` a second.

    The first of each backend goes alone, and the others when it has succeeded. `db` is a transaction's.
    Raises AlreadyRunning, and DigestMismatch when the filter finds other jobs, or the same at other fences; and what
    a preview raises.
    """
    _refuse_unknown(db, wanted)
    operation = _insert(db, OperationKind.REDRIVE, words(wanted), reason=reason, actor=actor, digest=digest, rate=rate)
    stuck, number = _stuck(wanted).subquery(), sa.func.row_number()
    # A teardown where there is one: a birth may rightly end cancelled, and proves nothing by that.
    place_of_backend = number.over(partition_by=stuck.c.backend, order_by=(stuck.c.kind != "deprovision", stuck.c.id))
    place = number.over(order_by=stuck.c.id)
    listed = sa.select(sa.literal(operation), place, stuck.c.backend, stuck.c.id, stuck.c.fence, place_of_backend == 1)
    into = ("operation_id", "n", "backend", "job_id", "fence", "canary")
    db.execute(sa.insert(tables.operation_items).from_select(into, listed))
    item = tables.operation_items.c
    return _begun(db, operation, OperationKind.REDRIVE, words(wanted), digest, item.job_id, item.fence)


_SAMPLE_OF_RESOURCES = text(f"""
    SELECT {columns(Resource, "resource")} FROM resources AS resource
     WHERE tenant = :tenant AND status IN ('provisioning', 'active') ORDER BY id LIMIT {SAMPLE}""")


def preview_offboard(db: Connection, tenant: str) -> OffboardPreview:
    """What an offboarding would delete; `db` is a snapshot's, so that all of it is of one moment.

    Raises NotFound when the tenant has never had a resource or a token.
    """
    _refuse_stranger(db, tenant)
    living = _living(tenant).subquery()
    found = _told(db, OperationKind.OFFBOARD, {"tenant": tenant}, living, living.c.id, living.c.protected)
    protected = db.execute(sa.select(sa.func.count()).select_from(living).where(living.c.protected)).scalar_one()
    mine = tables.resources.c
    grouped = sa.select(mine.status, sa.func.count()).where(mine.tenant == tenant).group_by(mine.status)
    statuses: dict[str, int] = {row[0]: row[1] for row in db.execute(grouped.order_by(mine.status))}
    return OffboardPreview(
        count=found.count,
        protected=protected,
        deleting=statuses.get(ResourceStatus.DELETING, 0),
        backends=found.backends,
        statuses=statuses,
        sample=[read(Resource, "resource", row) for row in db.execute(_SAMPLE_OF_RESOURCES, {"tenant": tenant})],
        digest=found.digest,
    )


def begin_offboard(
    db: Connection, tenant: str, *, expected_count: int, reason: str, actor: str, digest: str
) -> Operation:
    """Write down the tenant's living resources for the workers to delete; what is protected is left.

    What the tenant makes later is not part of it. `db` is a transaction's. Raises NotFound, DigestMismatch.
    """
    _refuse_stranger(db, tenant)
    operation = _insert(db, OperationKind.OFFBOARD, {"tenant": tenant}, reason=reason, actor=actor, digest=digest)
    living = _living(tenant).subquery()
    place = sa.func.row_number().over(order_by=living.c.id)
    left = sa.case((living.c.protected, "protected"))
    listed = sa.select(sa.literal(operation), place, living.c.backend, living.c.id, left)
    into = ("operation_id", "n", "backend", "resource_id", "outcome")
    db.execute(sa.insert(tables.operation_items).from_select(into, listed))
    item = tables.operation_items.c
    protected = item.outcome.is_not(None)
    begun = _begun(db, operation, OperationKind.OFFBOARD, {"tenant": tenant}, digest, item.resource_id, protected)
    if begun.total != expected_count:
        raise DigestMismatch(f"you expected {expected_count} resources, and there are {begun.total}; preview again")
    return begun


def words(wanted: JobFilter) -> Json:
    """A filter as it is stored and shown; all stuck jobs are `{"all": true}`."""
    said: Json = {f.name: value for f in fields(wanted) if (value := getattr(wanted, f.name)) is not None}
    said.pop("state", None)
    if "older_than" in said:
        said["older_than_seconds"] = int(said.pop("older_than").total_seconds())
    return json.loads(json.dumps(said, default=str)) or {"all": True}


def _refuse_unknown(db: Connection, wanted: JobFilter) -> None:
    """A typing error finds nothing, and nothing to do looks like all is well."""
    for scope, subject in ((HoldScope.BACKEND, wanted.backend), (HoldScope.TENANT, wanted.tenant)):
        if subject is not None and not holds.known(db, scope, subject):
            raise BadRequest(f"there is no {scope} {subject!r} here: this filter would find nothing")


def _refuse_stranger(db: Connection, tenant: str) -> None:
    if not holds.known(db, HoldScope.TENANT, tenant):
        raise NotFound(f"there is no tenant {tenant!r}")


def _stuck(wanted: JobFilter) -> "sa.Select[Any]":
    if wanted.state not in (None, JobState.STUCK):
        raise BadRequest(f"state: only stuck jobs can be re-driven, not {wanted.state}")
    job = tables.outbox.c
    return sa.select(job.id, job.fence, job.backend, job.kind).where(*replace(wanted, state=JobState.STUCK).clauses())


def _living(tenant: str) -> "sa.Select[Any]":
    resource = tables.resources.c
    alive = resource.status.in_([ResourceStatus.PROVISIONING, ResourceStatus.ACTIVE])
    return sa.select(resource.id, resource.protected, resource.backend).where(resource.tenant == tenant, alive)


def _told(
    db: Connection, kind: OperationKind, filter: Json, rows: "sa.FromClause", *key: "sa.ColumnElement[Any]"
) -> _Set:
    """How many rows there are, and the digest of their keys and the filter."""
    word = sa.func.concat_ws(":", *key)
    sums = [sa.func.sum(sa.cast(sa.func.hashtextextended(word, seed), sa.Numeric)) for seed in _SEEDS]
    backend = rows.c.backend
    groups = db.execute(sa.select(backend, sa.func.count(), *sums).group_by(backend).order_by(backend)).all()
    count = sum(group[1] for group in groups)
    numbers = [str(sum(group[2 + place] for group in groups)) for place in range(len(_SEEDS))]
    said = json.dumps([kind, filter, count, *numbers], sort_keys=True)
    digest = f"{count}-{hashlib.sha256(said.encode()).hexdigest()}"  # the count, so that a refusal can tell both
    return _Set(count, {group[0]: group[1] for group in groups}, digest)


_INSERT = text("""
    INSERT INTO operations (kind, filter, reason, actor, digest, rate)
    VALUES (:kind, CAST(:filter AS jsonb), :reason, :actor, :digest, :rate)
        ON CONFLICT (kind, digest) WHERE finished_at IS NULL DO NOTHING
 RETURNING id""")


def _insert(
    db: Connection, kind: OperationKind, filter: Json, *, reason: str, actor: str, digest: str, rate: int | None = None
) -> int:
    said = {"kind": kind, "filter": json.dumps(filter), "reason": reason, "actor": actor, "digest": digest}
    id = db.execute(_INSERT, said | {"rate": rate}).scalar_one_or_none()
    if id is None:
        raise AlreadyRunning("an operation on this very set is running: `deprovisioner operations list` has it")
    return int(id)


# What else a digest is of than the count.
_NOUNS = {
    OperationKind.REDRIVE: "jobs (or at other fences)",
    OperationKind.OFFBOARD: "resources (or protected otherwise)",
}


def _begun(
    db: Connection, id: int, kind: OperationKind, filter: Json, digest: str, *key: "sa.ColumnElement[Any]"
) -> Operation:
    """The operation, when what was written down is what the digest was made of."""
    items = tables.operation_items
    listed = sa.select(items.c.backend, *(k.label(f"key_{n}") for n, k in enumerate(key))).where(
        items.c.operation_id == id
    )
    mine = listed.subquery()
    now = _told(db, kind, filter, mine, *(mine.c[f"key_{n}"] for n in range(len(key))))
    if now.digest != digest:
        then = digest.partition("-")[0]
        told = f"there were {then} then, and are {now.count} now"
        if then == str(now.count):
            told = f"there are {now.count}, as then, but other {_NOUNS[kind]} than then, or it is a mistyped digest"
        raise DigestMismatch(f"this is not what was previewed: {told}; preview again")
    columns = [tables.operations.c[f.name] for f in fields(Operation)]
    total = sa.update(tables.operations).where(tables.operations.c.id == id).values(total=now.count)
    return Operation(**db.execute(total.returning(*columns)).one()._mapping)


_COLUMNS = ", ".join(f"operations.{f.name}" for f in fields(Operation))
# A step that is under way comes first, for it has the row; what it has done stays done.
_STOP = text(f"""
    WITH ended AS (
        UPDATE operations SET finished_at = now(), error = concat_ws('; ', error, CAST(:why AS text))
         WHERE id = :id AND finished_at IS NULL
     RETURNING {_COLUMNS}
    ), others AS (
        UPDATE operation_items AS item SET outcome = 'stopped'
          FROM ended WHERE item.operation_id = ended.id AND item.outcome IS NULL
    )
    SELECT * FROM ended""")


def stop(db: Connection, operation_id: int, *, actor: str, reason: str) -> Operation:
    """Have workers leave alone what an operation has not done yet; it ends `stopped`, and its error says who and why.

    What it has done goes on: only a hold stops jobs. Raises NotFound, AlreadyFinished.
    """
    row = db.execute(_STOP, {"id": operation_id, "why": f"stopped by {actor}: {reason}"}).one_or_none()
    if row is not None:
        return Operation(**row._mapping)
    state = db.execute(text("SELECT state FROM operations WHERE id = :id"), {"id": operation_id}).scalar_one_or_none()
    if state is None:
        raise NotFound(f"there is no operation {operation_id}")
    raise AlreadyFinished(f"operation {operation_id} has ended already: {state}")


# One that fails at each try must not stand before the others for ever: hence any of those that are due.
_TAKE = text("""
    SELECT id, kind, filter, reason, actor, rate FROM operations
     WHERE finished_at IS NULL AND next_at <= now()
     ORDER BY random() LIMIT 1
       FOR UPDATE SKIP LOCKED""")
# Until its canaries have succeeded, an operation has not ended well, even when there is nothing else to do.
_PACE = text("""
    UPDATE operations
       SET next_at = now() + :pause * interval '1 second',
           finished_at = CASE WHEN NOT EXISTS (
                                   SELECT FROM operation_items WHERE operation_id = :id AND outcome IS NULL)
                               AND NOT EXISTS (
                                   SELECT FROM operation_items AS canary JOIN outbox ON outbox.id = canary.job_id
                                    WHERE operation_id = :id AND canary AND outcome = 'redriven'
                                      AND outbox.state <> 'succeeded')
                         THEN now() END
     WHERE id = :id""")
_NEXT = text("""
    SELECT CAST(extract(epoch FROM min(next_at) - clock_timestamp()) AS float) FROM operations
     WHERE finished_at IS NULL""")


def advance(db: Connection, *, worker: str) -> tuple[int, float | None]:
    """One step of one operation that is due; how many jobs it made pending, and the seconds until the next step.

    None while no operation runs. `db` is a transaction's: the step is done as a whole, or not at all.
    """
    operation, moved = db.execute(_TAKE).one_or_none(), 0
    if operation is not None:
        match OperationKind(operation.kind):
            case OperationKind.REDRIVE:
                moved, pause = _redrive(db, operation, worker)
            case OperationKind.OFFBOARD:
                moved, pause = _offboard(db, operation, worker)
        db.execute(_PACE, {"id": operation.id, "pause": pause})
    wait = db.execute(_NEXT).scalar_one()
    return moved, None if wait is None else min(max(wait, 0.0), LOOK_SECONDS)


# A canary that ended otherwise than well: its backend's others are left alone, the other backends' go on.
_JUDGE = text("""
    WITH bad AS (
        UPDATE operation_items AS item SET outcome = 'failed'
          FROM outbox
         WHERE operation_id = :id AND canary AND outcome = 'redriven'
           AND outbox.id = item.job_id AND outbox.state IN ('stuck', 'cancelled')
     RETURNING item.backend, item.job_id, outbox.state AS ended, outbox.last_error
    ), others AS (
        UPDATE operation_items AS item SET outcome = 'stopped'
          FROM bad
         WHERE item.operation_id = :id AND item.backend = bad.backend AND item.outcome IS NULL
    )
    UPDATE operations
       SET error = concat_ws('; ', error, (
               SELECT string_agg(format('backend %s: job %s, re-driven first, ended %s: %s', backend, job_id, ended,
                                        coalesce(last_error, 'no error was recorded')), '; ' ORDER BY backend)
                 FROM bad))
     WHERE id = :id AND EXISTS (SELECT FROM bad)""")
# A canary that somebody else had moved on proves nothing: the next that is as it was listed takes its place.
# Where none is, all of that backend have moved on.
_REPLACE = text("""
    WITH lost AS (
        SELECT backend FROM operation_items
         WHERE operation_id = :id AND canary
         GROUP BY backend HAVING bool_and(outcome IS NOT DISTINCT FROM 'skipped')
    ), successor AS (
        SELECT DISTINCT ON (item.backend) item.backend, n
          FROM operation_items AS item
          JOIN lost ON lost.backend = item.backend
          JOIN outbox ON outbox.id = item.job_id AND outbox.fence = item.fence AND outbox.state = 'stuck'
         WHERE operation_id = :id AND outcome IS NULL
         ORDER BY item.backend, n
    )
    UPDATE operation_items AS item
       SET canary = successor.n IS NOT NULL,
           outcome = CASE WHEN successor.n IS NULL THEN 'skipped' END
      FROM lost LEFT JOIN successor ON successor.backend = lost.backend
     WHERE operation_id = :id AND item.backend = lost.backend AND outcome IS NULL
       AND item.n = coalesce(successor.n, item.n)""")
_REDRIVABLE = text("""
    SELECT n, job_id, fence FROM operation_items
     WHERE operation_id = :id AND outcome IS NULL
       AND (canary OR backend IN (
            SELECT item.backend FROM operation_items AS item JOIN outbox ON outbox.id = item.job_id
             WHERE operation_id = :id AND canary AND outcome = 'redriven' AND outbox.state = 'succeeded'))
     ORDER BY canary DESC, n LIMIT :batch""")
_REDRIVEN = text("""
    UPDATE operation_items SET outcome = CASE WHEN job_id = ANY(:done) THEN 'redriven' ELSE 'skipped' END
     WHERE operation_id = :id AND n = ANY(:places) AND outcome IS NULL""")


def _redrive(db: Connection, operation: sa.Row[Any], worker: str) -> tuple[int, float]:
    """One step of a bulk re-drive; how many it re-drove, and the pause that keeps it to its rate."""
    mine = {"id": operation.id}
    db.execute(_JUDGE, mine)
    db.execute(_REPLACE, mine)
    listed = db.execute(_REDRIVABLE, mine | {"batch": min(BATCH, operation.rate)}).all()
    if not listed:
        return 0, LOOK_SECONDS
    done = jobs.redrive_all(db, [(item.job_id, item.fence) for item in listed], **_by(operation, worker))
    db.execute(_REDRIVEN, mine | {"places": [item.n for item in listed], "done": list(done)})
    return len(done), len(done) / operation.rate


_TO_DELETE = text("""
    SELECT n, resource_id FROM operation_items
     WHERE operation_id = :id AND outcome IS NULL
     ORDER BY canary DESC, n LIMIT :batch""")
_DELETED = text("""
    UPDATE operation_items AS item
       SET job_id = done.job_id,
           outcome = CASE WHEN done.job_id IS NOT NULL THEN 'enqueued'
                          WHEN protected THEN 'protected'
                          ELSE 'skipped' END
      FROM unnest(CAST(:resources AS uuid[]), CAST(:jobs AS bigint[])) AS done (resource_id, job_id)
      LEFT JOIN resources ON resources.id = done.resource_id
     WHERE operation_id = :id AND item.resource_id = done.resource_id AND outcome IS NULL""")


def _offboard(db: Connection, operation: sa.Row[Any], worker: str) -> tuple[int, float]:
    """One step of an offboarding; how many it enqueued. What slows teardowns is no business of this."""
    listed: Sequence[uuid.UUID] = [
        item.resource_id for item in db.execute(_TO_DELETE, {"id": operation.id, "batch": BATCH})
    ]
    by = {"tenant": operation.filter["tenant"]} | _by(operation, worker)
    enqueued = jobs.enqueue_all(db, [jobs.Delete(resource, **by) for resource in listed])
    done = {each.resource.id: each.job.id for each in enqueued.values()}
    db.execute(
        _DELETED,
        {"id": operation.id, "resources": list(listed), "jobs": [done.get(resource) for resource in listed]},
    )
    return len(done), 0.0


def _by(operation: sa.Row[Any], worker: str) -> Json:
    """Whose doing it is: the operator's who began it, by the hand of this worker."""
    return {
        "actor": operation.actor,
        "reason": operation.reason,
        "detail": {"operation": operation.id, "worker": worker},
    }
