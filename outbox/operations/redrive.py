"""Bulk re-drive: one job of each backend first; the backend's other jobs, at a rate, when that one has succeeded."""

import json
from dataclasses import dataclass, fields, replace
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, text

from outbox import jobs, tables
from outbox.errors import BadRequest
from outbox.operations import canaries
from outbox.operations.selection import (
    BATCH,
    POLL_SECONDS,
    SAMPLE,
    attribution,
    confirm,
    insert,
    refuse_unknown_scope,
    summarize,
)
from outbox.queries import JobFilter
from outbox.rows import Job, Json, Operation, columns, read
from outbox.states import JobState, OperationKind

# Jobs a second that an operation re-drives: about as many as one worker's threads complete on fast backends.
RATE, MAX_RATE = 50, 1000


@dataclass(frozen=True)
class Preview:
    """The stuck jobs that a filter selects: how many, of which backends, the first of them, and their digest."""

    count: int
    backends: dict[str, int]
    sample: list[Job]
    digest: str


_SAMPLE_OF_JOBS = text(f"SELECT {columns(Job, 'job')} FROM outbox AS job WHERE id = ANY(:ids) ORDER BY id")


def preview_redrive(db: Connection, wanted: JobFilter) -> Preview:
    """What a bulk re-drive would work on; `db` must be a snapshot, so that all numbers are of one moment.

    Raises BadRequest when the filter's backend or tenant is unknown.
    """
    refuse_unknown_scope(db, wanted.backend, wanted.tenant)
    stuck = _stuck(wanted).subquery()
    found = summarize(db, OperationKind.REDRIVE, words(wanted), stuck, stuck.c.id, stuck.c.fence)
    first = db.execute(sa.select(stuck.c.id).order_by(stuck.c.id).limit(SAMPLE)).scalars().all()
    sample = [read(Job, "job", row) for row in db.execute(_SAMPLE_OF_JOBS, {"ids": first})]
    return Preview(found.count, found.backends, sample, found.digest)


def begin_redrive(
    db: Connection, wanted: JobFilter, *, reason: str, actor: str, digest: str, rate: int = RATE
) -> Operation:
    """Store the previewed jobs as items for workers to re-drive, at most `rate` a second.

    Workers re-drive one job of each backend first, the canary, and the others when it has succeeded. `db` must be a
    transaction. Raises BadRequest, AlreadyRunning, and DigestMismatch when the filter selects other jobs than the
    preview, or the same jobs at other fences.
    """
    refuse_unknown_scope(db, wanted.backend, wanted.tenant)
    operation = insert(db, OperationKind.REDRIVE, words(wanted), reason=reason, actor=actor, digest=digest, rate=rate)
    stuck, number = _stuck(wanted).subquery(), sa.func.row_number()
    # The canary is a teardown where there is one: a provision may rightly end `cancelled`, which proves nothing.
    place_of_backend = number.over(partition_by=stuck.c.backend, order_by=(stuck.c.kind != "deprovision", stuck.c.id))
    place = number.over(order_by=stuck.c.id)
    listed = sa.select(sa.literal(operation), place, stuck.c.backend, stuck.c.id, stuck.c.fence, place_of_backend == 1)
    into = ("operation_id", "n", "backend", "job_id", "fence", "canary")
    db.execute(sa.insert(tables.operation_items).from_select(into, listed))
    item = tables.operation_items.c
    return confirm(db, operation, OperationKind.REDRIVE, words(wanted), digest, item.job_id, item.fence)


def words(wanted: JobFilter) -> Json:
    """A filter as it is stored and shown; all stuck jobs are `{"all": true}`."""
    said: Json = {f.name: value for f in fields(wanted) if (value := getattr(wanted, f.name)) is not None}
    said.pop("state", None)
    if "older_than" in said:
        said["older_than_seconds"] = int(said.pop("older_than").total_seconds())
    return json.loads(json.dumps(said, default=str)) or {"all": True}


def _stuck(wanted: JobFilter) -> "sa.Select[Any]":
    if wanted.state not in (None, JobState.STUCK):
        raise BadRequest(f"state: only stuck jobs can be re-driven, not {wanted.state} ones")
    job = tables.outbox.c
    return sa.select(job.id, job.fence, job.backend, job.kind).where(*replace(wanted, state=JobState.STUCK).clauses())


_AS_LISTED = "outbox.fence = item.fence AND outbox.state = 'stuck'"
_REDRIVEN = text("""
    UPDATE operation_items SET outcome = CASE WHEN job_id = ANY(:done) THEN 'redriven' ELSE 'skipped' END
     WHERE operation_id = :id AND n = ANY(:places) AND outcome IS NULL""")


def redrive_step(db: Connection, operation: sa.Row[Any], worker: str) -> tuple[int, float]:
    """Do one step of a bulk re-drive; returns how many jobs it re-drove, and the pause that keeps it to its rate."""
    listed = canaries.eligible(db, operation.id, as_listed=_AS_LISTED, batch=min(BATCH, operation.rate))
    if not listed:
        return 0, POLL_SECONDS
    done = jobs.redrive_all(db, [(item.job_id, item.fence) for item in listed], **attribution(operation, worker))
    db.execute(_REDRIVEN, {"id": operation.id, "places": [item.n for item in listed], "done": list(done)})
    return len(done), len(done) / operation.rate
