"""Bulk re-drive: one job of each backend first; the backend's other jobs, at a rate, when that one has succeeded."""

import json
from dataclasses import dataclass, fields, replace
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, text

from outbox import holds, jobs, tables
from outbox.errors import BadRequest
from outbox.operations.selection import BATCH, POLL_SECONDS, SAMPLE, attribution, confirm, insert, summarize
from outbox.queries import JobFilter
from outbox.rows import Job, Json, Operation, columns, read
from outbox.states import HoldScope, JobState, OperationKind

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
    _refuse_unknown_scope(db, wanted)
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
    _refuse_unknown_scope(db, wanted)
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


def _refuse_unknown_scope(db: Connection, wanted: JobFilter) -> None:
    """With a typing error the filter selects no jobs, which would look as if no job were stuck."""
    for scope, subject in ((HoldScope.BACKEND, wanted.backend), (HoldScope.TENANT, wanted.tenant)):
        if subject is not None and not holds.known(db, scope, subject):
            raise BadRequest(f"there is no {scope} {subject!r} here: this filter would find nothing; check the name")


def _stuck(wanted: JobFilter) -> "sa.Select[Any]":
    if wanted.state not in (None, JobState.STUCK):
        raise BadRequest(f"state: only stuck jobs can be re-driven, not {wanted.state} ones")
    job = tables.outbox.c
    return sa.select(job.id, job.fence, job.backend, job.kind).where(*replace(wanted, state=JobState.STUCK).clauses())


# When a canary has ended without success, the other jobs of its backend are left alone; other backends go on.
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
# A canary that was skipped (an operator had moved its job on) proves nothing: the backend's next job that is still
# as it was listed becomes the canary. If there is none, all items of the backend are skipped.
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


def redrive_step(db: Connection, operation: sa.Row[Any], worker: str) -> tuple[int, float]:
    """Do one step of a bulk re-drive; returns how many jobs it re-drove, and the pause that keeps it to its rate."""
    mine = {"id": operation.id}
    db.execute(_JUDGE, mine)
    db.execute(_REPLACE, mine)
    listed = db.execute(_REDRIVABLE, mine | {"batch": min(BATCH, operation.rate)}).all()
    if not listed:
        return 0, POLL_SECONDS
    done = jobs.redrive_all(db, [(item.job_id, item.fence) for item in listed], **attribution(operation, worker))
    db.execute(_REDRIVEN, mine | {"places": [item.n for item in listed], "done": list(done)})
    return len(done), len(done) / operation.rate
