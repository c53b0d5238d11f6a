"""Operations and their progress."""

import datetime as dt
import uuid
from collections import Counter
from dataclasses import dataclass, fields
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, text

from outbox import tables
from outbox.errors import NotFound
from outbox.holds import COVERS, Hold
from outbox.queries.pages import Page, decode_cursor, page_of
from outbox.rows import Json, Operation


@dataclass(frozen=True)
class Tally:
    """How many of an operation's items have which outcome; `waiting` have none yet.

    Of a preview, `done` are adoptable, and `failed` are refused.
    """

    total: int
    waiting: int
    done: int
    failed: int
    stopped: int
    skipped: int
    protected: int


@dataclass(frozen=True)
class Canary:
    """The job that is re-driven first on its backend. `state` is the job's present state, `outcome` the item's.

    `next_attempt_at` is until when the job waits after a failed attempt; None when it does not wait.
    """

    backend: str
    job_id: int
    state: str
    outcome: str | None
    next_attempt_at: dt.datetime | None


@dataclass(frozen=True)
class Progress:
    """How far an operation is. `jobs` counts, by present state, the jobs that it has re-driven or enqueued.

    `stuck_jobs` are the first ten of these that are stuck. `holds` are those that its waiting items wait for.
    """

    all: Tally
    backends: dict[str, Tally]
    canaries: list[Canary]
    jobs: dict[str, int]
    stuck_jobs: list[int]
    holds: list[Hold]


def list_operations(db: Connection, *, cursor: str | None = None, limit: int = 50) -> Page:
    """Newest first. Raises BadCursor."""
    query = _operations()
    if cursor is not None:
        (last,) = decode_cursor(cursor, lambda last: (int(last),))
        query = query.where(tables.operations.c.id < last)
    rows = db.execute(query.order_by(tables.operations.c.id.desc()).limit(limit + 1))
    return page_of([Operation.read(row) for row in rows], limit, lambda operation: [operation.id])


_OUTCOMES = text("""
    SELECT backend, coalesce(outcome, 'waiting') AS outcome, count(*) AS n FROM operation_items
     WHERE operation_id = :id GROUP BY 1, 2 ORDER BY 1""")
_CANARIES = text("""
    SELECT item.backend, job_id, outbox.state, outcome,
           CASE WHEN outbox.state = 'pending' AND available_at > now() THEN available_at END AS next_attempt_at
      FROM operation_items AS item JOIN outbox ON outbox.id = job_id
     WHERE operation_id = :id AND canary ORDER BY item.backend, n""")
_JOBS_NOW = text("""
    SELECT outbox.state, count(*) FROM operation_items AS item JOIN outbox ON outbox.id = job_id
     WHERE operation_id = :id AND outcome IN ('redriven', 'enqueued', 'restoring', 'failed') GROUP BY 1 ORDER BY 1""")
# Ten: as many as an operator reads one by one.
_STUCK_NOW = text("""
    SELECT outbox.id FROM operation_items AS item JOIN outbox ON outbox.id = job_id
     WHERE operation_id = :id AND outcome IN ('redriven', 'enqueued', 'restoring', 'failed') AND outbox.state = 'stuck'
     ORDER BY outbox.id LIMIT 10""")


# A restore waits for no hold, and the jobs of a re-drive show by themselves what they wait for.
_HOLDS = text(f"""
    SELECT * FROM holds
     WHERE EXISTS (SELECT FROM operations JOIN operation_items AS item ON operation_id = operations.id
                     JOIN resources ON resources.id = item.resource_id
                    WHERE operations.id = :id AND operations.kind = 'offboard' AND outcome IS NULL
                      AND {COVERS.format("resources", "'deprovision'")})
     ORDER BY id""")


def operation(db: Connection, operation_id: int) -> tuple[Operation, Progress]:
    """An operation and its progress. Raises NotFound."""
    row = db.execute(_operations().where(tables.operations.c.id == operation_id)).one_or_none()
    if row is None:
        raise NotFound(f"there is no operation {operation_id}")
    asked = {"id": operation_id}
    backends: dict[str, Counter[str]] = {}
    for backend, outcome, n in db.execute(_OUTCOMES, asked):
        backends.setdefault(backend, Counter())[outcome] = n
    return Operation.read(row), Progress(
        all=_tally(sum(backends.values(), Counter())),
        backends={backend: _tally(counts) for backend, counts in backends.items()},
        canaries=[Canary(**row._mapping) for row in db.execute(_CANARIES, asked)],
        jobs={state: n for state, n in db.execute(_JOBS_NOW, asked)},  # noqa: C416 - rows are no pairs to mypy
        stuck_jobs=list(db.execute(_STUCK_NOW, asked).scalars()),
        holds=[Hold.read(row) for row in db.execute(_HOLDS, asked)],
    )


@dataclass(frozen=True)
class Adoption:
    """An object of an adoption: what was asked, what a worker found, and what became of it.

    `line` is the list's, where a file was the list.
    """

    n: int
    line: int
    kind: str
    name: str
    tenant: str
    external_id: str | None
    labels: dict[str, str]
    manifest: Json
    outcome: str | None
    findings: list[Json] | None
    resource_id: uuid.UUID | None
    job_id: int | None
    job_state: str | None
    last_error: str | None


_ADOPTIONS = text("""
    SELECT item.n, coalesce(CAST(asked ->> 'line' AS bigint), item.n) AS line, asked ->> 'kind' AS kind,
           asked ->> 'name' AS name, asked ->> 'tenant' AS tenant, asked ->> 'external_id' AS external_id,
           asked -> 'labels' AS labels, asked -> 'manifest' AS manifest, outcome, findings,
           CASE WHEN item.job_id IS NOT NULL THEN item.resource_id END AS resource_id, item.job_id,
           outbox.state AS job_state, last_error
      FROM operations
      JOIN operation_items AS item ON item.operation_id = operations.id
      JOIN adoptions ON adoptions.operation_id = coalesce(CAST(filter ->> 'preview' AS bigint), operations.id)
                    AND adoptions.n = item.n
      LEFT JOIN outbox ON outbox.id = item.job_id
     WHERE operations.id = :id AND operations.kind IN ('adopt_preview', 'adopt') AND item.n > :after
       AND (NOT :wrong OR outcome IN ('refused', 'skipped', 'stopped') OR outbox.state IN ('stuck', 'cancelled'))
     ORDER BY item.n LIMIT :most""")


def list_adoptions(
    db: Connection, operation_id: int, *, wrong: bool = False, cursor: str | None = None, limit: int = 50
) -> Page:
    """The objects of an adoption or its preview, in the list's order; `wrong`: only those that need a person.

    Empty for other operations. Raises BadCursor.
    """
    (after,) = decode_cursor(cursor, lambda last: (int(last),)) if cursor is not None else (0,)
    asked = {"id": operation_id, "after": after, "wrong": wrong, "most": limit + 1}
    rows = [Adoption(**row._mapping) for row in db.execute(_ADOPTIONS, asked)]
    return page_of(rows, limit, lambda row: [row.n])


def _operations() -> "sa.Select[Any]":
    return sa.select(*(tables.operations.c[f.name] for f in fields(Operation)))


def _tally(counts: "Counter[str]") -> Tally:
    return Tally(
        total=counts.total(),
        done=sum(counts[name] for name in ("redriven", "enqueued", "restoring", "adoptable")),
        failed=counts["failed"] + counts["refused"],
        **{name: counts[name] for name in ("waiting", "stopped", "skipped", "protected")},
    )
