"""Rows in a wanted state, made by plain SQL: what the product would have made, without the way there."""

import json
import uuid
from typing import Any

from sqlalchemy import Connection, text

from outbox import db as database
from outbox import jobs, operations
from outbox.queries import EVERY_JOB, JobFilter
from outbox.rows import Claim, Job, Operation
from outbox.states import JobKind, Step


def unguarded(db: Connection, sql: str, **words: object) -> int:
    """A write that no trigger sees; how many rows it touched."""
    db.execute(text("SET session_replication_role = replica"))
    try:
        return db.execute(text(sql), words).rowcount
    finally:
        db.execute(text("RESET session_replication_role"))


def a_resource(
    db: Connection,
    *,
    status: str = "active",
    tenant: str = "acme",
    backend: str = "pg-main",
    protected: bool = False,
    expires: str = "NULL",
) -> uuid.UUID:
    id, generation = uuid.uuid4(), uuid.uuid4()
    manifest = {"database": f"db_{id.hex}", "role": f"usr_{id.hex}", "generation": str(generation)}
    db.execute(
        text(f"""
        INSERT INTO resources (id, tenant, kind, backend, name, status, protected, generation, manifest,
                               activated_at, deleted_at, purged_at, expires_at)
        VALUES (:id, :tenant, 'postgres', :backend, 'orders', :status, :protected, :generation,
                CAST(:manifest AS jsonb),
                CASE WHEN :status <> 'provisioning' THEN now() END,
                CASE WHEN :status IN ('deleting', 'deleted', 'abandoned') THEN now() END,
                CASE WHEN :status = 'deleted' THEN now() END, {expires})"""),
        {
            "id": id,
            "tenant": tenant,
            "backend": backend,
            "status": status,
            "protected": protected,
            "generation": generation,
            "manifest": json.dumps(manifest),
        },
    )
    return id


def a_job(
    db: Connection,
    *,
    state: str = "pending",
    kind: str = "deprovision",
    status: str | None = None,
    tenant: str = "acme",
    backend: str = "pg-main",
    attempts: int = 0,
    max_attempts: int = 10,
    lease: str = "30 s",
    lane: int | None = None,
    step: str | None = None,
    started: bool = False,
) -> int:
    """A job in `state`; a running one has fence 1 or more and a lease that ends in `lease`.

    `started`: the attempt with fence 1 has started, at `step` where there is one.
    """
    wanted = {"deprovision": "deleting", "restore": "restoring", "release": "releasing"}
    status = status or wanted.get(kind, "provisioning")
    if state == "succeeded" and kind == "deprovision":
        status = "deleted"
    if state == "abandoned":
        status = "abandoned"
    resource = a_resource(db, status=status, tenant=tenant, backend=backend)
    id = db.execute(
        text("""
        INSERT INTO outbox (kind, state, stuck_reason, resource_id, backend, fence, attempts, max_attempts,
                            claimed_by, lease_expires_at, request_id, finished_at, step, started_fence, started_step)
        VALUES (:kind, :state, CASE WHEN :state = 'stuck' THEN 'refused' END, :resource, :backend,
                greatest(:attempts, CASE WHEN :state = 'pending' THEN 0 ELSE 1 END), :attempts, :max_attempts,
                CASE WHEN :state = 'running' THEN 'w0' END,
                CASE WHEN :state = 'running' THEN now() + CAST(:lease AS interval) END, gen_random_uuid(),
                CASE WHEN :state IN ('succeeded', 'cancelled', 'abandoned') THEN now() END, :step,
                CASE WHEN :started THEN 1 END, CASE WHEN :started THEN :step END)
        RETURNING id"""),
        {
            "step": step,
            "started": started,
            "kind": kind,
            "state": state,
            "resource": resource,
            "backend": backend,
            "attempts": attempts,
            "max_attempts": max_attempts,
            "lease": lease,
        },
    ).scalar_one()
    if lane is not None:
        db.execute(text("UPDATE outbox SET lane = :lane WHERE id = :id"), {"id": id, "lane": lane})
    return id


def last_event(db: Connection, job_id: int) -> Any:
    """The job's last event, whole."""
    return db.execute(
        text("SELECT event, fence, actor, reason, detail FROM events WHERE job_id = :id ORDER BY id DESC LIMIT 1"),
        {"id": job_id},
    ).one()


def claims(db: Connection, n: int = 1, backend: str = "pg-main", worker: str = "w1") -> list[Claim]:
    return jobs.claim(db, {backend: n}, slots=n, worker=worker)


def a_claim(db: Connection, **words: object) -> Claim:
    a_job(db, **words)  # type: ignore[arg-type]
    return claims(db)[0]


def claim_of(db: Connection, job_id: int, *, fence: int | None = None) -> Claim:
    """A claim of any job as a worker would hold it, whatever the job's state is."""
    row = db.execute(
        text("""
        SELECT outbox.id, outbox.kind, step, started_step IS NOT DISTINCT FROM 'destroy' AS destroying, resource_id,
               outbox.backend, fence, attempts, max_attempts, started_fence,
               forced_fence, available_at, lane, tenant, generation, adopted, activated_at IS NOT NULL AS activated,
               manifest, false AS probing, false AS contended
          FROM outbox JOIN resources ON resources.id = resource_id WHERE outbox.id = :id"""),
        {"id": job_id},
    ).one()
    kind, step = JobKind(row.kind), row.step and Step(row.step)
    return Claim(**{**row._mapping, "kind": kind, "step": step, **({} if fence is None else {"fence": fence})})


def status_of(db: Connection, resource: uuid.UUID) -> str:
    return db.execute(text("SELECT status FROM resources WHERE id = :id"), {"id": resource}).scalar_one()


def job(db: Connection, id: int):
    return db.execute(text("SELECT * FROM outbox WHERE id = :id"), {"id": id}).one()


def events_of(db: Connection, id: int) -> list[str]:
    return list(db.execute(text("SELECT event FROM events WHERE job_id = :id ORDER BY id"), {"id": id}).scalars())


def a_look(db: Connection, id: int, found: str = "absent", *, fence: int | None = None, ago: str = "0 s") -> int:
    """What a worker saw at the job's backend, so long ago."""
    return db.execute(
        text("""
        INSERT INTO observations (job_id, fence, asked_by, observed_at, observed_by, found, seen)
        SELECT id, COALESCE(:fence, fence), 'op', now() - CAST(:ago AS interval), 'w', :found, '{"looked": true}'
          FROM outbox WHERE id = :id RETURNING id"""),
        {"id": id, "found": found, "fence": fence, "ago": ago},
    ).scalar_one()


def resolved(db: Connection, id: int) -> Job:
    return jobs.resolve(db, id, fence=job(db, id).fence, actor="op", reason="r")


def a_stuck_job(db: Connection, *, tenant: str = "acme", error: str = "boom", hours: int = 0, **words: str) -> int:
    """A stuck job of a tenant, with its error and age."""
    reason = words.pop("reason", "refused")
    id = a_job(db, state="stuck", tenant=tenant, **words)  # type: ignore[arg-type]
    db.execute(
        text("""UPDATE outbox SET stuck_reason = :reason, last_error = :error,
                created_at = now() - :hours * interval '1 hour' WHERE id = :id"""),
        {"id": id, "reason": reason, "error": error, "hours": hours},
    )
    return id


def stuck_jobs(db: Connection, *backends: str) -> list[int]:
    """A stuck teardown on each of these backends."""
    return [a_job(db, state="stuck", backend=backend) for backend in backends or ("pg-main",)]


def begun_redrive(wanted: JobFilter = EVERY_JOB, **words: Any) -> Operation:
    """An operation on what its own preview found."""
    with database.snapshot() as session:
        digest = operations.preview_redrive(session, wanted).digest
    with database.transaction() as session:
        return operations.begin_redrive(
            session, wanted, **{"reason": "mended", "actor": "op", "digest": digest} | words
        )
