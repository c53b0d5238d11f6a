"""Evidence that can be checked: chains of events, checkpoints over their heads, and the proof of a deletion.

Each event bears the hash of itself and of the event before it of the same resource; a trigger writes it. A
checkpoint keeps the heads of all chains that have grown, and its hash takes the checkpoint before it. Its
hash is logged: whoever ships the logs away has an anchor that nobody can change who owns the database.
"""

import datetime as dt
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from typing import Any

from sqlalchemy import Connection, Row, text

from outbox import db as database
from outbox.errors import Conflict
from outbox.events import log
from outbox.queries import attempts
from outbox.resources import find
from outbox.rows import Event, Json, Resource, columns, read
from outbox.states import ResourceStatus

# What nobody has anchored yet can be forged unseen: an hour of it is little, and a checkpoint costs next to nothing.
CHECKPOINT_EVERY = dt.timedelta(hours=1)
# A transaction may still add an event with a lower id than others have: none of the product's lives this long.
SETTLES = dt.timedelta(minutes=5)
# The first checkpoint of a long history sorts all of it; later ones take an hour's events.
CHECKPOINT_TIMEOUT_SECONDS = 60
# Resources in one page of an export: a page is some megabytes, whatever the history is.
PAGE = 200

# The hash that `row` must have. The trigger computes the same by text of its own (migrations/versions/0006).
LINK = """sha256(coalesce({last}, '') || convert_to(CAST(jsonb_build_array(
        {row}.id, CAST(extract(epoch FROM {row}.at) AS text), {row}.job_id, {row}.resource_id, {row}.fence,
        {row}.seq, {row}.event, {row}.actor, {row}.reason, {row}.detail) AS text), 'UTF8'))"""
# Every event with whether it follows the one before it, gaps included.
LINKS = f"""
    SELECT event.*, seq = lag(seq, 1, CAST(0 AS bigint)) OVER chain + 1
                AND hash = {LINK.format(last="lag(hash) OVER chain", row="event")} AS holds
      FROM events AS event {{which}}
    WINDOW chain AS (PARTITION BY resource_id ORDER BY seq)"""
# A checkpoint's hash is over its columns, and over its heads in order.
HEADS = "string_agg(uuid_send(resource_id) || int8send(seq) || hash, '' ORDER BY resource_id)"
SEAL = """sha256({row}.previous || convert_to(CAST(jsonb_build_array(CAST(extract(epoch FROM {row}.at) AS text),
        {row}.events_from, {row}.events_to, {row}.heads) AS text), 'UTF8') || {row}.body)"""


@dataclass(frozen=True)
class Checkpoint:
    """All chain heads at one moment, in one hash."""

    id: int
    at: dt.datetime
    heads: int
    hash: str


_CHECKPOINT_COLUMNS = "id, at, heads, encode(hash, 'hex') AS hash"

# Two at once: the unique index on `previous` lets one in, and the other makes none. One that bears a time to come, by
# a clock that went wrong or by somebody's hand, suffices for nothing: it would end all checkpoints until then.
_CHECKPOINT = text(f"""
    WITH last AS (
        SELECT * FROM audit_checkpoints ORDER BY id DESC LIMIT 1
    ), due AS (
        SELECT clock_timestamp() AS at, coalesce((SELECT events_to FROM last), 0) AS events_from,
               coalesce((SELECT hash FROM last), '') AS previous
         WHERE NOT EXISTS (SELECT FROM last WHERE at BETWEEN now() - CAST(:every AS interval) AND clock_timestamp())
    ), fresh AS (
        SELECT id, at, resource_id, seq, hash FROM events
         WHERE id > (SELECT events_from FROM due)
    ), head AS (
        SELECT DISTINCT ON (resource_id) resource_id, seq, hash FROM fresh
         WHERE NOT EXISTS (SELECT FROM audit_heads AS told
                            WHERE told.resource_id = fresh.resource_id AND told.seq >= fresh.seq)
         ORDER BY resource_id, seq DESC
    ), made AS (
        SELECT due.at, due.events_from, due.previous, settled.events_to, kept.heads, kept.body
          FROM due,
               (SELECT count(*) AS heads, {HEADS} AS body FROM head) AS kept,
               (SELECT coalesce(max(fresh.id), (SELECT events_from FROM due)) AS events_to FROM fresh
                 WHERE at < now() - CAST(:settles AS interval)) AS settled
         WHERE kept.heads > 0
    ), checkpoint AS (
        INSERT INTO audit_checkpoints (at, events_from, events_to, heads, previous, hash)
        SELECT at, events_from, events_to, heads, previous, {SEAL.format(row="made")} FROM made
            ON CONFLICT DO NOTHING
     RETURNING *
    ), noted AS (
        INSERT INTO audit_heads (checkpoint_id, resource_id, seq, hash)
        SELECT checkpoint.id, resource_id, seq, head.hash FROM checkpoint, head
    )
    SELECT {_CHECKPOINT_COLUMNS} FROM checkpoint""")


def checkpoint(db: Connection, *, actor: str, every: dt.timedelta = CHECKPOINT_EVERY) -> Checkpoint | None:
    """Keep the heads of the chains that have grown, and log the hash; None when nothing is new or it is too early.

    `every` is how long the last one suffices. `db` is `db.transaction()`'s, for a time limit of its own.
    """
    db.execute(text(f"SET LOCAL statement_timeout = '{CHECKPOINT_TIMEOUT_SECONDS}s'"))
    row = db.execute(_CHECKPOINT, {"every": every, "settles": SETTLES}).one_or_none()
    if row is None:
        return None
    made = Checkpoint(**row._mapping)
    log.info("audit_checkpoint", checkpoint=made.id, hash=made.hash, heads=made.heads, actor=actor)
    return made


def last_checkpoint(db: Connection) -> Checkpoint | None:
    """The newest one."""
    row = db.execute(
        text(f"SELECT {_CHECKPOINT_COLUMNS} FROM audit_checkpoints ORDER BY id DESC LIMIT 1")
    ).one_or_none()
    return None if row is None else Checkpoint(**row._mapping)


@dataclass(frozen=True)
class Attempt:
    """One attempt at the teardown: what it saw before it acted, what it did, and how it saw that it was gone."""

    fence: int
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
class Chain:
    """Up to where a resource's events go. `verified`: none was changed, lost or put in between."""

    seq: int
    hash: str | None
    verified: bool


@dataclass(frozen=True)
class Proof:
    """How one resource came to be deleted; None is what is not recorded.

    `ended` is the event `completed`, or `resolved` where an operator ended the job on a look's evidence, or by two.
    `redriven` are the operators' decisions between attempts: one at fence 2 came after attempt 2.

    `checkpoint` is the first that covers the end of its teardown, None while none does.
    """

    resource: Resource
    request_id: uuid.UUID | None
    asked: Event | None
    attempts: list[Attempt]
    redriven: list[Event]
    ended: Event | None
    chain: Chain
    checkpoint: Checkpoint | None
    events: list[Event]


_DELETED = text(f"""
    SELECT {columns(Resource, "resource")} FROM resources AS resource
     WHERE status = 'deleted' AND (purged_at, id) > (CAST(:since AS timestamptz), CAST(:after_id AS uuid))
       AND (CAST(:only AS uuid) IS NULL OR id = :only)
     ORDER BY purged_at, id LIMIT :page""")
_CHAINS = text(f"""
    SELECT {columns(Event, "link")}, seq, encode(hash, 'hex') AS hash, holds
      FROM ({LINKS.format(which="WHERE resource_id = ANY(CAST(:ids AS uuid[]))")}) AS link
     ORDER BY resource_id, seq""")
# The job that ended it; the checkpoint that was first to keep a head at or after that end; and whether every head
# that was ever kept is one that an event still bears.
_ENDS = text("""
    SELECT outbox.resource_id, outbox.id AS job, request_id, checkpoint.*,
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
                                                                    AND event IN ('completed', 'resolved'))
            ORDER BY audit_checkpoints.id LIMIT 1) AS checkpoint ON true
     WHERE outbox.resource_id = ANY(CAST(:ids AS uuid[])) AND kind = 'deprovision' AND state = 'succeeded'""")


def proofs(since: dt.datetime | dt.timedelta, resource_id: uuid.UUID | None = None) -> Iterator[Proof]:
    """The proof of every deletion that ended since then (or within that long), oldest first; or of one resource.

    Read page by page, each page from one moment. Raises NotFound, and Conflict when the one is not deleted.
    """
    after_id = uuid.UUID(int=0)
    with database.snapshot() as db:
        if isinstance(since, dt.timedelta):
            since = db.execute(text("SELECT now() - CAST(:ago AS interval)"), {"ago": since}).scalar_one()
        if resource_id is not None and (one := find(db, resource_id)[0]).status != ResourceStatus.DELETED:
            raise Conflict(f"resource {resource_id} is {one.status}: there is no proof of deletion before it is gone")
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
    events = [read(Event, "link", link) for link in links]
    story = [event for event in events if end is not None and event.job_id == end.job]
    named = {event.event: event for event in story}
    whole = bool(links) and all(link.holds for link in links) and end is not None and end.borne
    return Proof(
        resource=resource,
        request_id=end.request_id if end else None,
        asked=named.get("enqueued"),
        attempts=[_attempt(*attempt) for attempt in attempts(story)],
        redriven=[event for event in story if event.event == "redriven"],
        ended=named.get("completed") or named.get("resolved"),
        chain=Chain(links[-1].seq if links else 0, links[-1].hash if links else None, whole),
        checkpoint=Checkpoint(end.id, end.at, end.heads, end.hash) if end and end.id else None,
        events=events,
    )


def _attempt(claimed: Event, started: Event | None, ended: Event | None) -> Attempt:
    told = (ended.detail if ended else None) or {}
    gone = ended is not None and ended.event == "completed"
    return Attempt(
        fence=claimed.fence,
        worker=claimed.actor,
        at=claimed.at,
        started_at=started.at if started else None,
        saw=(started.detail or {}).get("seen") if started else None if gone else told.get("seen"),
        did=told.get("did"),
        seen_gone=told.get("seen") if gone else None,
        outcome=ended.event if ended else None,
        outcome_at=ended.at if ended else None,
        error=ended.reason if ended else None,
    )
