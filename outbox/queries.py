"""Reads for the API and the CLI. Never writes."""

import base64
import binascii
import dataclasses
import datetime as dt
import json
import uuid
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, text

from outbox import tables
from outbox.errors import BadCursor, NotFound
from outbox.holds import Hold
from outbox.rows import Event, Job, Resource, columns, read


@dataclass(frozen=True)
class Page:
    """One page of a listing; `next_cursor` is None on the last."""

    items: list[Any]
    next_cursor: str | None


@dataclass(frozen=True)
class Attempt:
    """One claim of a job, told from its events. `outcome` is None while it runs."""

    fence: int
    worker: str
    claimed_at: dt.datetime
    started_at: dt.datetime | None
    finished_at: dt.datetime | None
    outcome: str | None
    error: str | None


@dataclass(frozen=True)
class JobStory:
    """A job with all that happened to it."""

    job: Job
    tenant: str
    attempts: list[Attempt]
    events: list[Event]


def list_resources(
    db: Connection,
    *,
    tenant: str | None = None,
    status: str | None = None,
    kind: str | None = None,
    cursor: str | None = None,
    limit: int = 50,
) -> Page:
    """Newest first; `tenant` None means all tenants. Raises BadCursor."""
    table = tables.resources
    query = _select(Resource, table, "resource", tenant=tenant, status=status, kind=kind)
    query = query.order_by(table.c.created_at.desc(), table.c.id.desc()).limit(limit + 1)
    if cursor is not None:
        at, last = _decode(cursor, lambda at, last: (dt.datetime.fromisoformat(at), uuid.UUID(last)))
        query = query.where(sa.tuple_(table.c.created_at, table.c.id) < sa.tuple_(sa.literal(at), sa.literal(last)))
    rows = [read(Resource, "resource", row) for row in db.execute(query)]
    return _page(rows, limit, lambda r: [r.created_at.isoformat(), str(r.id)])


def list_jobs(
    db: Connection,
    *,
    tenant: str | None = None,
    state: str | None = None,
    kind: str | None = None,
    backend: str | None = None,
    reason: str | None = None,
    resource_id: uuid.UUID | None = None,
    cursor: str | None = None,
    limit: int = 50,
) -> Page:
    """Newest first; `tenant` None means all tenants. Raises BadCursor."""
    table = tables.outbox
    query = _select(
        Job, table, "job", state=state, kind=kind, backend=backend, stuck_reason=reason, resource_id=resource_id
    )
    if tenant is not None:
        query = query.join(tables.resources).where(tables.resources.c.tenant == tenant)
    if cursor is not None:
        (last,) = _decode(cursor, lambda last: (int(last),))
        query = query.where(table.c.id < last)
    rows = [read(Job, "job", row) for row in db.execute(query.order_by(table.c.id.desc()).limit(limit + 1))]
    return _page(rows, limit, lambda job: [job.id])


def list_holds(db: Connection, *, released: bool = False, cursor: str | None = None, limit: int = 50) -> Page:
    """Those in force, or with `released` all that ever were; newest first. Raises BadCursor."""
    query = sa.select(*(tables.holds.c[field.name] for field in dataclasses.fields(Hold)))
    if not released:
        query = query.where(tables.holds.c.released_at.is_(None))
    if cursor is not None:
        (last,) = _decode(cursor, lambda last: (int(last),))
        query = query.where(tables.holds.c.id < last)
    rows = [Hold.read(row) for row in db.execute(query.order_by(tables.holds.c.id.desc()).limit(limit + 1))]
    return _page(rows, limit, lambda hold: [hold.id])


_STORY = text(f"""
    SELECT {columns(Job, "job")}, resources.tenant FROM outbox AS job JOIN resources ON resources.id = job.resource_id
     WHERE job.id = :id AND (CAST(:tenant AS text) IS NULL OR resources.tenant = :tenant)""")
_EVENTS = text(f"SELECT {columns(Event, 'event')} FROM events AS event WHERE job_id = :id ORDER BY id")


def job_story(db: Connection, job_id: int, *, tenant: str | None = None) -> JobStory:
    """The job, its attempts and its events. Raises NotFound."""
    row = db.execute(_STORY, {"id": job_id, "tenant": tenant}).one_or_none()
    if row is None:
        raise NotFound(f"there is no job {job_id}")
    events = [read(Event, "event", event) for event in db.execute(_EVENTS, {"id": job_id})]
    return JobStory(read(Job, "job", row), row.tenant, _attempts(events), events)


_ENDINGS = {"completed", "activated", "retried", "deferred", "stuck", "rolled_back", "swept"}


def _attempts(events: list[Event]) -> list[Attempt]:
    attempts = []
    for fence, group in groupby((e for e in events if e.fence > 0), key=lambda e: e.fence):
        by_name = {e.event: e for e in group}
        claimed, started = by_name.get("claimed"), by_name.get("started")
        if claimed is None:
            continue
        ended = next((e for name, e in by_name.items() if name in _ENDINGS), None)
        attempts.append(
            Attempt(
                fence=fence,
                worker=claimed.actor,
                claimed_at=claimed.at,
                started_at=started.at if started else None,
                finished_at=ended.at if ended else None,
                outcome=ended.event if ended else None,
                error=ended.reason if ended else None,
            )
        )
    return attempts


def _select(cls: type, table: sa.Table, alias: str, **equal: Any) -> "sa.Select[Any]":
    query = sa.select(*(table.c[name].label(f"{alias}_{name}") for name in cls.__dataclass_fields__))  # type: ignore[attr-defined]
    return query.where(*(table.c[name] == value for name, value in equal.items() if value is not None))


def _page(rows: list[Any], limit: int, key: Any) -> Page:
    more = len(rows) > limit
    rows = rows[:limit]
    return Page(rows, base64.urlsafe_b64encode(json.dumps(key(rows[-1])).encode()).decode() if more else None)


def _decode(cursor: str, parse: Any) -> Any:
    try:
        return parse(*json.loads(base64.urlsafe_b64decode(cursor)))
    except (binascii.Error, ValueError, TypeError, OverflowError, AttributeError) as error:
        raise BadCursor("the cursor is none that this listing gave out; start again without one") from error
