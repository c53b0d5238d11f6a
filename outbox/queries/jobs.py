"""Jobs by filter: one filter for every listing, count and bulk action."""

import datetime as dt
import uuid
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from outbox import tables
from outbox.queries.pages import Page, decode_cursor, page_of, select_columns
from outbox.rows import Job, read
from outbox.states import JobKind, JobState, StuckReason


@dataclass(frozen=True)
class JobFilter:
    """Selects jobs; a field that is None does not filter.

    `error` is a part of `last_error`, in upper or lower case; `older_than` is the job's least age, by the database's
    clock.
    """

    state: JobState | None = None
    reason: StuckReason | None = None
    kind: JobKind | None = None
    backend: str | None = None
    tenant: str | None = None
    error: str | None = None
    older_than: dt.timedelta | None = None
    resource_id: uuid.UUID | None = None

    def clauses(self) -> list["sa.ColumnElement[bool]"]:
        """The conditions on `tables.outbox`, to be joined by AND; empty when the filter selects all jobs."""
        job = tables.outbox.c
        equal = {
            job.state: self.state,
            job.stuck_reason: self.reason,
            job.kind: self.kind,
            job.backend: self.backend,
            job.resource_id: self.resource_id,
        }
        asked = [column == value for column, value in equal.items() if value is not None]
        if self.reason is not None:
            asked.append(job.state == JobState.STUCK)  # implied by a CHECK; lets the planner use the stuck jobs' index
        if self.state == JobState.PENDING:
            # True of every job; lets the planner combine the indexes of claimable and of held jobs.
            asked.append(sa.or_(job.held_by.is_(None), job.held_by.is_not(None)))
        if self.tenant is not None:
            asked.append(job.resource_id.in_(_resources_of(self.tenant)))
        if self.error is not None:
            asked.append(job.last_error.icontains(self.error, autoescape=True))
        if self.older_than is not None:
            asked.append(job.created_at <= sa.func.now() - self.older_than)
        return asked


EVERY_JOB = JobFilter()


def _resources_of(tenant: str) -> "sa.Select[Any]":
    return sa.select(tables.resources.c.id).where(tables.resources.c.tenant == tenant)


def list_jobs(db: Connection, wanted: JobFilter = EVERY_JOB, *, cursor: str | None = None, limit: int = 50) -> Page:
    """Newest first. Raises BadCursor."""
    table = tables.outbox
    query = select_columns(Job, table, "job").where(*wanted.clauses())
    if cursor is not None:
        (last,) = decode_cursor(cursor, lambda last: (int(last),))
        query = query.where(table.c.id < last)
    rows = [read(Job, "job", row) for row in db.execute(query.order_by(table.c.id.desc()).limit(limit + 1))]
    return page_of(rows, limit, lambda job: [job.id])


@dataclass(frozen=True)
class ListedJob(Job):
    """A job and its tenant, for operators, who see the jobs of all tenants."""

    tenant: str


def with_tenants(db: Connection, page: Page) -> Page:
    """The same page with each job's tenant, read by a second query: in one, the planner might join all rows first."""
    resource = tables.resources.c
    asked = sa.select(resource.id, resource.tenant).where(resource.id.in_({job.resource_id for job in page.items}))
    tenants = {row.id: row.tenant for row in db.execute(asked)}
    return replace(page, items=[ListedJob(**vars(job), tenant=tenants[job.resource_id]) for job in page.items])


@dataclass(frozen=True)
class JobCounts:
    """How many jobs a filter selects; `by_reason` counts the stuck ones."""

    total: int
    by_state: dict[str, int]
    by_reason: dict[str, int]
    by_backend: dict[str, int]


def count_jobs(db: Connection, wanted: JobFilter = EVERY_JOB) -> JobCounts:
    """Counts of all jobs that the filter selects, in one query; groups without jobs are left out."""
    job = tables.outbox.c
    groups = (job.state, job.stuck_reason, job.backend)
    rows = db.execute(sa.select(*groups, sa.func.count()).where(*wanted.clauses()).group_by(*groups)).all()

    def by(place: int) -> dict[str, int]:
        counts: Counter[str] = Counter()
        for row in rows:
            if row[place] is not None:
                counts[row[place]] += row[3]
        return dict(sorted(counts.items()))

    return JobCounts(sum(row[3] for row in rows), by(0), by(1), by(2))
