"""The proof of a deletion: who asked for it, what workers saw and did, and how they verified the absence."""

import datetime as dt
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from typing import Any

from sqlalchemy import Connection, Row, text

from outbox import db as database
from outbox.audit.chain import LINKS, Chain
from outbox.audit.checkpoint import Checkpoint
from outbox.errors import Conflict
from outbox.events import ENDS_DELETION, Event, quoted
from outbox.queries import Course, attempts
from outbox.resources import find
from outbox.rows import Evidence, Json, Resource, columns, read
from outbox.states import ResourceStatus, Step

# Resources in one page of an export: a page takes some megabytes, however long the history is.
PAGE = 200


@dataclass(frozen=True)
class Attempt:
    """One attempt at a step of the teardown: what it saw before it acted, what it did, how it saw the object absent."""

    fence: int
    step: Step | None
    worker: str
    at: dt.datetime
    started_at: dt.datetime | None
    saw: Json | None
    did: Json | None
    seen_gone: Json | None
    outcome: str | None
    outcome_at: dt.datetime | None
    error: str | None


@dataclass(frozen=True)
class Proof:
    """How one resource was deleted; a field is None where nothing is recorded.

    `ended` is the event `completed`, or `resolved` where an operator resolved the job after an inspection, or two
    operators forced it. `redriven` are the operators' re-drives between attempts: one at fence 2 came after attempt 2.
    `purged` are the orders of operators to destroy it before its time.

    `checkpoint` is the first that covers the end of the teardown, None until there is one.
    """

    resource: Resource
    request_id: uuid.UUID | None
    asked: Evidence | None
    attempts: list[Attempt]
    redriven: list[Evidence]
    purged: list[Evidence]
    ended: Evidence | None
    chain: Chain
    checkpoint: Checkpoint | None
    events: list[Evidence]


_DELETED = text(f"""
    SELECT {columns(Resource, "resource")} FROM resources AS resource
     WHERE status = 'deleted' AND (purged_at, id) > (CAST(:since AS timestamptz), CAST(:after_id AS uuid))
       AND (CAST(:only AS uuid) IS NULL OR id = :only)
     ORDER BY purged_at, id LIMIT :page""")
_CHAINS = text(f"""
    SELECT {columns(Evidence, "link")}, seq, encode(hash, 'hex') AS hash, holds
      FROM ({LINKS.format(which="WHERE resource_id = ANY(CAST(:ids AS uuid[]))")}) AS link
     ORDER BY resource_id, seq""")
# The job that deleted the resource; the first checkpoint with a head at or after that job's end; and whether for each
# head of each checkpoint there is still an event with that hash.
_ENDS = text(f"""
    SELECT outbox.resource_id, outbox.id AS job, request_id, step, checkpoint.*,
           NOT EXISTS (SELECT FROM audit_heads AS told
                         LEFT JOIN events AS event ON event.resource_id = told.resource_id AND event.seq = told.seq
                        WHERE told.resource_id = outbox.resource_id
                          AND event.hash IS DISTINCT FROM told.hash) AS borne
      FROM outbox
      LEFT JOIN LATERAL (
           SELECT audit_checkpoints.id, audit_checkpoints.at, heads, encode(audit_checkpoints.hash, 'hex') AS hash
             FROM audit_heads JOIN audit_checkpoints ON audit_checkpoints.id = checkpoint_id
            WHERE audit_heads.resource_id = outbox.resource_id
              AND audit_heads.seq >= (SELECT max(seq) FROM events WHERE events.resource_id = outbox.resource_id
                                                                    AND event IN ({quoted(*ENDS_DELETION)}))
            ORDER BY audit_checkpoints.id LIMIT 1) AS checkpoint ON true
     WHERE outbox.resource_id = ANY(CAST(:ids AS uuid[])) AND kind = 'deprovision' AND state = 'succeeded'""")


def proofs(since: dt.datetime | dt.timedelta, resource_id: uuid.UUID | None = None) -> Iterator[Proof]:
    """The proof of each deletion that ended since a time (or within an interval), oldest first; or of one resource.

    Reads page by page, each page in one snapshot. Raises NotFound, and Conflict when the one resource is not deleted.
    """
    after_id = uuid.UUID(int=0)
    with database.snapshot() as db:
        if isinstance(since, dt.timedelta):
            since = db.execute(text("SELECT now() - CAST(:ago AS interval)"), {"ago": since}).scalar_one()
        if resource_id is not None and (one := find(db, resource_id)[0]).status != ResourceStatus.DELETED:
            raise Conflict(f"resource {resource_id} is {one.status}; there is no proof of deletion until it is deleted")
    while True:
        with database.snapshot() as db:
            asked = {"since": since, "after_id": after_id, "only": resource_id, "page": PAGE}
            deleted = [read(Resource, "resource", row) for row in db.execute(_DELETED, asked)]
            page = _proofs(db, deleted)
        yield from page
        if len(deleted) < PAGE:
            return
        assert deleted[-1].purged_at is not None  # noqa: S101 - a CHECK says so
        since, after_id = deleted[-1].purged_at, deleted[-1].id


def _proofs(db: Connection, deleted: list[Resource]) -> list[Proof]:
    asked = {"ids": [resource.id for resource in deleted]}
    chains = {id: list(rows) for id, rows in groupby(db.execute(_CHAINS, asked), key=attrgetter("link_resource_id"))}
    ends = {row.resource_id: row for row in db.execute(_ENDS, asked)}
    return [_proof(resource, chains.get(resource.id, []), ends.get(resource.id)) for resource in deleted]


def _proof(resource: Resource, links: list[Row[Any]], end: Row[Any] | None) -> Proof:
    events = [read(Evidence, "link", link) for link in links]
    story = [event for event in events if end is not None and event.job_id == end.job]
    named = {event.event: event for event in story}
    whole = bool(links) and all(link.holds for link in links) and end is not None and end.borne
    return Proof(
        resource=resource,
        request_id=end.request_id if end else None,
        asked=named.get(Event.ENQUEUED),
        attempts=[_attempt(course) for course in attempts(story, end and end.step and Step(end.step))],
        redriven=[event for event in story if event.event == Event.REDRIVEN],
        purged=[event for event in story if event.event == Event.PURGE_ORDERED],
        ended=named.get(Event.COMPLETED) or named.get(Event.RESOLVED),
        chain=Chain(links[-1].seq if links else 0, links[-1].hash if links else None, whole),
        checkpoint=Checkpoint(end.id, end.at, end.heads, end.hash) if end and end.id else None,
        events=events,
    )


def _attempt(course: Course) -> Attempt:
    claimed, started, ended = course.claimed, course.started, course.ended
    detail = (ended.detail if ended else None) or {}
    gone = ended is not None and ended.event == Event.COMPLETED
    return Attempt(
        fence=claimed.fence,
        step=course.step,
        worker=claimed.actor,
        at=claimed.at,
        started_at=started.at if started else None,
        saw=(started.detail or {}).get("seen") if started else None if gone else detail.get("seen"),
        did=detail.get("did"),
        seen_gone=detail.get("seen") if gone else None,
        outcome=ended.event if ended else None,
        outcome_at=ended.at if ended else None,
        error=ended.reason if ended else None,
    )
