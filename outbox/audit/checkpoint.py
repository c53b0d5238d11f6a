"""Checkpoints: the heads of all chains that have grown, kept in one hash."""

import datetime as dt
from dataclasses import dataclass

from sqlalchemy import Connection, text

from outbox.logs import log

# Events that no checkpoint covers yet can be forged unseen: at most an hour of them. A checkpoint costs very little.
CHECKPOINT_EVERY = dt.timedelta(hours=1)
# A transaction may still commit an event with a lower id than existing ones; none of the product's lives this long.
SETTLES = dt.timedelta(minutes=5)
# The first checkpoint of a long history sorts all of it; later ones take an hour's events.
CHECKPOINT_TIMEOUT_SECONDS = 60


# A checkpoint's hash covers its columns and its heads, in order of resource.
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

# Of two checkpoints made at once, the unique index on `previous` lets in one. A last checkpoint with a future time (a
# wrong clock, or forged) does not count as recent: otherwise no worker would make a checkpoint until that time.
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
    """Store the heads of the chains that have grown, and log the hash. None when no chain has grown or it is too early.

    The last checkpoint must be older than `every`. `db` must be a transaction: the statement gets a timeout of its own.
    """
    db.execute(text(f"SET LOCAL statement_timeout = '{CHECKPOINT_TIMEOUT_SECONDS}s'"))
    row = db.execute(_CHECKPOINT, {"every": every, "settles": SETTLES}).one_or_none()
    if row is None:
        return None
    made = Checkpoint(**row._mapping)
    log.info("audit_checkpoint", checkpoint=made.id, hash=made.hash, heads=made.heads, actor=actor)
    return made


def last_checkpoint(db: Connection) -> Checkpoint | None:
    """The newest checkpoint; None before the first."""
    row = db.execute(
        text(f"SELECT {_CHECKPOINT_COLUMNS} FROM audit_checkpoints ORDER BY id DESC LIMIT 1")
    ).one_or_none()
    return None if row is None else Checkpoint(**row._mapping)
