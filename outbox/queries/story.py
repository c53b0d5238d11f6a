"""One job with its attempts, its events and what it waits for."""

import datetime as dt
import uuid
from dataclasses import dataclass, replace

from sqlalchemy import Connection, text

from outbox import approvals, kinds, observations, snapshots
from outbox.approvals import Approval
from outbox.errors import NotFound
from outbox.events import Event
from outbox.holds import Hold, over
from outbox.observations import Observation
from outbox.queries.attempts import Attempt, attempt_of, attempts
from outbox.queries.stops import Breaker, list_breakers
from outbox.rows import Evidence, Job, Json, columns, read
from outbox.snapshots import Snapshot
from outbox.states import JobState


@dataclass(frozen=True)
class Request:
    """Who asked for a job, when, why and for whom, and under which request id."""

    actor: str
    at: dt.datetime
    reason: str | None
    on_behalf_of: str | None
    request_id: uuid.UUID


@dataclass(frozen=True)
class JobStory:
    """A job with its attempts, its events and what it waits for. `request` is None where its first event is missing.

    `purge_at`: its resource is not destroyed before; None while the resource is not being deleted.
    `snapshots` are those of its attempts that are in their store; `bytes` of one grows while it is being taken.
    `holds` are the holds in force that cover the job: while there is one, the job does not start. `approvals` are
    the proposals that wait for a second operator. `progress`: how far the verb of an attempt has come, as its
    worker last told: `{fence, done, total, what}`. Only for a running job: `lease_expires_at`. Only for a pending
    job: `breaker`, its backend's; `due_seconds`, how long it has been due by the database's clock. Only for a stuck
    job: `stuck_since`; `last_look`, the last inspection at this fence.
    """

    job: Job
    tenant: str
    resource_name: str
    request: Request | None
    purge_at: dt.datetime | None
    attempts: list[Attempt]
    events: list[Evidence]
    snapshots: list[Snapshot]
    holds: list[Hold]
    breaker: "Breaker | None"
    due_seconds: int | None
    lease_expires_at: dt.datetime | None
    progress: Json | None
    stuck_since: dt.datetime | None
    approvals: list[Approval]
    last_look: Observation | None


_STORY = text(f"""
    SELECT {columns(Job, "job")}, job.request_id, resources.tenant, resources.name, resources.kind AS resource_kind,
           resources.purge_at,
           CASE WHEN job.state = 'pending' AND available_at <= now()
                THEN CAST(floor(extract(epoch FROM now() - available_at)) AS bigint) END AS due_seconds,
           job.lease_expires_at, job.progress
      FROM outbox AS job JOIN resources ON resources.id = job.resource_id
     WHERE job.id = :id AND (CAST(:tenant AS text) IS NULL OR resources.tenant = :tenant)""")
_EVENTS = text(f"SELECT {columns(Evidence, 'event')} FROM events AS event WHERE job_id = :id ORDER BY id")


def job_story(db: Connection, job_id: int, *, tenant: str | None = None) -> JobStory:
    """The job, its attempts and its events; a `tenant` sees neither names nor reasons of operators. Raises NotFound."""
    row = db.execute(_STORY, {"id": job_id, "tenant": tenant}).one_or_none()
    if row is None:
        raise NotFound(f"there is no job {job_id}")
    job = read(Job, "job", row)
    events = [
        _without_secrets(row.resource_kind, read(Evidence, "event", event))
        for event in db.execute(_EVENTS, {"id": job_id})
    ]
    if tenant is not None:
        events = _visible_to(db, tenant, events)
    asked = next((e for e in events if e.event == Event.ENQUEUED), None)
    stuck = job.state is JobState.STUCK
    # The last of these two: later events, inspections and proposals, move nothing.
    since = next((e.at for e in reversed(events) if e.event in (Event.STUCK, Event.SWEPT)), None)
    return JobStory(
        job=job,
        tenant=row.tenant,
        resource_name=row.name,
        request=None if asked is None else _request(asked, row.request_id),
        purge_at=row.purge_at,
        attempts=[attempt_of(course) for course in attempts(events, job.step)],
        events=events,
        snapshots=snapshots.of_job(db, job_id),
        holds=over(db, job_id) if job.finished_at is None else [],
        breaker=next(iter(list_breakers(db, job.backend)), None) if job.state is JobState.PENDING else None,
        due_seconds=row.due_seconds,
        lease_expires_at=row.lease_expires_at,
        progress=row.progress,
        stuck_since=since if stuck else None,
        approvals=approvals.proposals(db, job_id, fence=job.fence) if job.finished_at is None else [],
        last_look=observations.last(db, job_id, fence=job.fence) if stuck else None,
    )


# Where the detail of an event has a manifest, or a part of one.
_MANIFESTS = ("manifest", "provisioned", "undone", "completes")


def _without_secrets(kind: str, event: Evidence) -> Evidence:
    """The event without the values of its manifests' secret fields."""

    def shown(name: str, value: object) -> object:
        if not isinstance(value, dict):
            return value
        return kinds.redacted(kind, value) if name in _MANIFESTS else {key: shown(key, value[key]) for key in value}

    detail: Json | None = event.detail and {name: shown(name, value) for name, value in event.detail.items()}
    return replace(event, detail=detail)


def _request(asked: Evidence, request_id: uuid.UUID) -> Request:
    return Request(asked.actor, asked.at, asked.reason, (asked.detail or {}).get("on_behalf_of"), request_id)


_OWN = text("""
    SELECT actor FROM (SELECT 'token:' || id || ':' || name AS actor FROM tokens WHERE tenant = :tenant) AS own
     WHERE actor = ANY(:actors)""")


def _visible_to(db: Connection, tenant: str, events: list[Evidence]) -> list[Evidence]:
    """The events as the tenant may read them: without operators' names and reasons, and without what inspections saw.

    An actor that is neither a token nor a shell user is a worker.
    """
    persons = [event.actor for event in events if event.actor.startswith(("token:", "cli:"))]
    others = set(persons) - set(db.execute(_OWN, {"tenant": tenant, "actors": persons}).scalars())
    return [
        replace(event, actor="operator", reason=None, detail=None)
        if event.actor in others
        else replace(event, detail=None)
        if event.event == Event.OBSERVED
        else event
        for event in events
    ]
