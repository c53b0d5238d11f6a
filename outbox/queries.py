"""Reads for the API and the CLI. Never writes."""

import base64
import binascii
import datetime as dt
import json
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from itertools import groupby
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy import Connection, text

from outbox import approvals, observations, tables
from outbox.approvals import Approval
from outbox.errors import BadCursor, NotFound
from outbox.holds import Hold, over
from outbox.observations import Observation
from outbox.rows import Event, Job, Json, Operation, Resource, columns, read
from outbox.states import JobKind, JobState, StuckReason


@dataclass(frozen=True)
class Page:
    """One page of a listing; `next_cursor` is None on the last."""

    items: list[Any]
    next_cursor: str | None


@dataclass(frozen=True)
class Seen:
    """What an attempt saw of the backend before it acted, and when it had; None where it did not look."""

    before: Json | None
    after: Json | None


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
    seen: Seen


@dataclass(frozen=True)
class Request:
    """Who asked for a job, when and why, and under which request id."""

    actor: str
    at: dt.datetime
    reason: str | None
    request_id: uuid.UUID


@dataclass(frozen=True)
class JobStory:
    """A job with all that happened to it. `request` is None where its first event is missing.

    `holds` are those in force that cover it: while there is one, it does not start. `breaker` is its backend's, and
    `due_seconds` how long it has been due by the database's clock, while it is pending. `stuck_since`, the proposals
    that wait for a second operator, and the last look at this fence, while it is stuck.
    """

    job: Job
    tenant: str
    resource_name: str
    request: Request | None
    attempts: list[Attempt]
    events: list[Event]
    holds: list[Hold]
    breaker: "Breaker | None"
    due_seconds: int | None
    stuck_since: dt.datetime | None
    approvals: list[Approval]
    last_look: Observation | None


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


@dataclass(frozen=True)
class JobFilter:
    """Which jobs are meant; a field that is None asks for nothing. One for every listing, count and bulk action.

    `error` is a part of `last_error`, in any case; `older_than` is the job's age by the database's clock.
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
        """The conditions on `tables.outbox`, to be joined by AND; none when all jobs are meant."""
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
            asked.append(job.state == JobState.STUCK)  # a CHECK says so; said here too, the stuck jobs' index serves
        if self.state == JobState.PENDING:
            # True of every job; said in words, the indexes of what is claimable and of what is held serve together.
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
    query = _select(Job, table, "job").where(*wanted.clauses())
    if cursor is not None:
        (last,) = _decode(cursor, lambda last: (int(last),))
        query = query.where(table.c.id < last)
    rows = [read(Job, "job", row) for row in db.execute(query.order_by(table.c.id.desc()).limit(limit + 1))]
    return _page(rows, limit, lambda job: [job.id])


@dataclass(frozen=True)
class ListedJob(Job):
    """A job, and whose it is, for those who see every tenant's."""

    tenant: str


def with_tenants(db: Connection, page: Page) -> Page:
    """The same page of jobs, with the tenants: asked for these alone, lest the planner join first and choose then."""
    resource = tables.resources.c
    asked = sa.select(resource.id, resource.tenant).where(resource.id.in_({job.resource_id for job in page.items}))
    tenants = {row.id: row.tenant for row in db.execute(asked)}
    return replace(page, items=[ListedJob(**vars(job), tenant=tenants[job.resource_id]) for job in page.items])


def list_holds(db: Connection, *, released: bool = False, cursor: str | None = None, limit: int = 50) -> Page:
    """Those in force, or with `released` all that ever were; newest first. Raises BadCursor."""
    query = sa.select(*(tables.holds.c[field.name] for field in fields(Hold)))
    if not released:
        query = query.where(tables.holds.c.released_at.is_(None))
    if cursor is not None:
        (last,) = _decode(cursor, lambda last: (int(last),))
        query = query.where(tables.holds.c.id < last)
    rows = [Hold.read(row) for row in db.execute(query.order_by(tables.holds.c.id.desc()).limit(limit + 1))]
    return _page(rows, limit, lambda hold: [hold.id])


@dataclass(frozen=True)
class JobCounts:
    """How many jobs a filter finds; `by_reason` counts the stuck ones."""

    total: int
    by_state: dict[str, int]
    by_reason: dict[str, int]
    by_backend: dict[str, int]


def count_jobs(db: Connection, wanted: JobFilter = EVERY_JOB) -> JobCounts:
    """All that the filter finds, in one pass; groups without jobs are left out."""
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


_STORY = text(f"""
    SELECT {columns(Job, "job")}, job.request_id, resources.tenant, resources.name,
           CASE WHEN job.state = 'pending' AND available_at <= now()
                THEN CAST(floor(extract(epoch FROM now() - available_at)) AS bigint) END AS due_seconds
      FROM outbox AS job JOIN resources ON resources.id = job.resource_id
     WHERE job.id = :id AND (CAST(:tenant AS text) IS NULL OR resources.tenant = :tenant)""")
_EVENTS = text(f"SELECT {columns(Event, 'event')} FROM events AS event WHERE job_id = :id ORDER BY id")


def job_story(db: Connection, job_id: int, *, tenant: str | None = None) -> JobStory:
    """The job, its attempts and its events; to a `tenant`, operators are nameless and wordless. Raises NotFound."""
    row = db.execute(_STORY, {"id": job_id, "tenant": tenant}).one_or_none()
    if row is None:
        raise NotFound(f"there is no job {job_id}")
    job = read(Job, "job", row)
    events = [read(Event, "event", event) for event in db.execute(_EVENTS, {"id": job_id})]
    if tenant is not None:
        events = _as_told_to(db, tenant, events)
    asked = next((e for e in events if e.event == "enqueued"), None)
    stuck = job.state is JobState.STUCK
    # Looks and proposals come after it, and move nothing.
    since = next((e.at for e in reversed(events) if e.event in ("stuck", "swept")), None)
    return JobStory(
        job=job,
        tenant=row.tenant,
        resource_name=row.name,
        request=None if asked is None else Request(asked.actor, asked.at, asked.reason, row.request_id),
        attempts=[_attempt(*attempt) for attempt in attempts(events)],
        events=events,
        holds=over(db, job_id) if job.finished_at is None else [],
        breaker=next(iter(list_breakers(db, job.backend)), None) if job.state is JobState.PENDING else None,
        due_seconds=row.due_seconds,
        stuck_since=since if stuck else None,
        approvals=approvals.living(db, job_id, fence=job.fence) if stuck else [],
        last_look=observations.last(db, job_id, fence=job.fence) if stuck else None,
    )


_OWN = text("""
    SELECT actor FROM (SELECT 'token:' || id || ':' || name AS actor FROM tokens WHERE tenant = :tenant) AS own
     WHERE actor = ANY(:actors)""")


def _as_told_to(db: Connection, tenant: str, events: list[Event]) -> list[Event]:
    """The events as the tenant may read them: who the operators are, and what they say and have looked at, is theirs.

    A person is known by a token or a shell; whoever else acts is a worker.
    """
    persons = [event.actor for event in events if event.actor.startswith(("token:", "cli:"))]
    others = set(persons) - set(db.execute(_OWN, {"tenant": tenant, "actors": persons}).scalars())
    return [
        replace(event, actor="operator", reason=None, detail=None)
        if event.actor in others
        else replace(event, detail=None)
        if event.event == "observed"
        else event
        for event in events
    ]


_ENDINGS = {"completed", "activated", "retried", "deferred", "stuck", "rolled_back", "swept"}


def attempts(events: list[Event]) -> Iterator[tuple[Event, Event | None, Event | None]]:
    """Of a job's events, in order: each attempt's first, which is its claim, its start and its end, as far as it came.

    What a person or a latecomer did beside an attempt is no part of it.
    """
    course = [event for event in events if event.event in {"claimed", "started", *_ENDINGS}]
    for _, group in groupby(course, key=lambda event: event.fence):
        of_attempt = list(group)
        started = next((event for event in of_attempt if event.event == "started"), None)
        ended = next((event for event in of_attempt if event.event in _ENDINGS), None)
        yield of_attempt[0], started, ended


def _attempt(claimed: Event, started: Event | None, ended: Event | None) -> Attempt:
    return Attempt(
        fence=claimed.fence,
        worker=claimed.actor,
        claimed_at=claimed.at,
        started_at=started.at if started else None,
        finished_at=ended.at if ended else None,
        outcome=ended.event if ended else None,
        error=ended.reason if ended else None,
        seen=_seen(started, ended),
    )


def _seen(started: Event | None, ended: Event | None) -> Seen:
    before, after = (((event and event.detail) or {}) for event in (started, ended))
    last = after.get("seen") or after.get("manifest")
    # Without a start nothing was done between: the one look that there was is the one before.
    return Seen(before.get("seen"), last) if started else Seen(last, None)


@dataclass(frozen=True)
class Breaker:
    """A backend out of reach. `half_open`: its pause is over, and the next claim is the probe."""

    backend: str
    state: Literal["open", "half_open"]
    since: dt.datetime
    why: str
    failures: int
    retry_at: dt.datetime
    waiting: int


_BREAKERS = text("""
    SELECT backend, CASE WHEN retry_at > now() THEN 'open' ELSE 'half_open' END AS state,
           opened_at AS since, reason AS why, failures, retry_at,
           (SELECT count(*) FROM outbox WHERE state = 'pending' AND outbox.backend = breakers.backend) AS waiting
      FROM breakers WHERE CAST(:backend AS text) IS NULL OR backend = :backend
     ORDER BY opened_at, backend""")


def list_breakers(db: Connection, backend: str | None = None) -> list[Breaker]:
    """The backends out of reach, or only this one; longest first, and how many jobs wait for each."""
    return [Breaker(**row._mapping) for row in db.execute(_BREAKERS, {"backend": backend})]


@dataclass(frozen=True)
class Tally:
    """What became of an operation's items so far."""

    total: int
    waiting: int
    done: int
    failed: int
    stopped: int
    skipped: int
    protected: int


@dataclass(frozen=True)
class Canary:
    """The job of a backend that goes first. `state` is the job's now, `outcome` the item's.

    `next_attempt_at` is until when it waits after an attempt that failed; None when it does not.
    """

    backend: str
    job_id: int
    state: str
    outcome: str | None
    next_attempt_at: dt.datetime | None


@dataclass(frozen=True)
class Progress:
    """How far an operation is. `jobs` counts the jobs of what is done by their state now.

    `stuck_jobs` are the first of those that are stuck.
    """

    all: Tally
    backends: dict[str, Tally]
    canaries: list[Canary]
    jobs: dict[str, int]
    stuck_jobs: list[int]


def list_operations(db: Connection, *, cursor: str | None = None, limit: int = 50) -> Page:
    """Newest first. Raises BadCursor."""
    query = _operations()
    if cursor is not None:
        (last,) = _decode(cursor, lambda last: (int(last),))
        query = query.where(tables.operations.c.id < last)
    rows = db.execute(query.order_by(tables.operations.c.id.desc()).limit(limit + 1))
    return _page([Operation(**row._mapping) for row in rows], limit, lambda operation: [operation.id])


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
     WHERE operation_id = :id AND outcome IN ('redriven', 'enqueued', 'failed') GROUP BY 1 ORDER BY 1""")
# Ten: as many as a person looks at one by one.
_STUCK_NOW = text("""
    SELECT outbox.id FROM operation_items AS item JOIN outbox ON outbox.id = job_id
     WHERE operation_id = :id AND outcome IN ('redriven', 'enqueued', 'failed') AND outbox.state = 'stuck'
     ORDER BY outbox.id LIMIT 10""")


def operation(db: Connection, operation_id: int) -> tuple[Operation, Progress]:
    """An operation, and how far it is. Raises NotFound."""
    row = db.execute(_operations().where(tables.operations.c.id == operation_id)).one_or_none()
    if row is None:
        raise NotFound(f"there is no operation {operation_id}")
    asked = {"id": operation_id}
    backends: dict[str, Counter[str]] = {}
    for backend, outcome, n in db.execute(_OUTCOMES, asked):
        backends.setdefault(backend, Counter())[outcome] = n
    return Operation(**row._mapping), Progress(
        all=_tally(sum(backends.values(), Counter())),
        backends={backend: _tally(counts) for backend, counts in backends.items()},
        canaries=[Canary(**row._mapping) for row in db.execute(_CANARIES, asked)],
        jobs={state: n for state, n in db.execute(_JOBS_NOW, asked)},  # noqa: C416 - rows are no pairs to mypy
        stuck_jobs=list(db.execute(_STUCK_NOW, asked).scalars()),
    )


def _operations() -> "sa.Select[Any]":
    return sa.select(*(tables.operations.c[f.name] for f in fields(Operation)))


def _tally(counts: "Counter[str]") -> Tally:
    return Tally(
        total=counts.total(),
        done=counts["redriven"] + counts["enqueued"],
        **{name: counts[name] for name in ("waiting", "failed", "stopped", "skipped", "protected")},
    )


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
