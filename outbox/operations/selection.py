"""The set that an operation works on: its digest, its row, and the check that it is what was previewed."""

import hashlib
import json
from dataclasses import dataclass, fields
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, text

from outbox import tables
from outbox.errors import AlreadyRunning, DigestMismatch
from outbox.rows import Json, Operation
from outbox.states import OperationKind

# Rows a step: their locks are held for some tens of milliseconds, and a DELETE among them waits no longer.
BATCH = 100
# As many as a person reads before they say yes.
SAMPLE = 20
# Between two looks at canaries that are not done yet, and at the most between two steps.
POLL_SECONDS = 1.0
# How a digest is written: the count, and SHA-256 in hexadecimal.
DIGEST = r"[0-9]{1,19}-[0-9a-f]{64}"
# Two sums of hashes with different seeds: order does not matter, and the database needs no memory for them.
_SEEDS = (0, 1)


@dataclass(frozen=True)
class Selection:
    """How many rows a filter selects, how many of each backend, and the digest of exactly these rows."""

    count: int
    backends: dict[str, int]
    digest: str


def summarize(
    db: Connection, kind: OperationKind, filter: Json, rows: "sa.FromClause", *key: "sa.ColumnElement[Any]"
) -> Selection:
    """How many rows there are, and the digest of their keys and the filter."""
    word = sa.func.concat_ws(":", *key)
    sums = [sa.func.sum(sa.cast(sa.func.hashtextextended(word, seed), sa.Numeric)) for seed in _SEEDS]
    backend = rows.c.backend
    groups = db.execute(sa.select(backend, sa.func.count(), *sums).group_by(backend).order_by(backend)).all()
    count = sum(group[1] for group in groups)
    numbers = [str(sum(group[2 + place] for group in groups)) for place in range(len(_SEEDS))]
    said = json.dumps([kind, filter, count, *numbers], sort_keys=True)
    digest = f"{count}-{hashlib.sha256(said.encode()).hexdigest()}"  # the count, so that a refusal can tell both
    return Selection(count, {group[0]: group[1] for group in groups}, digest)


_INSERT = text("""
    INSERT INTO operations (kind, filter, reason, actor, digest, rate)
    VALUES (:kind, CAST(:filter AS jsonb), :reason, :actor, :digest, :rate)
        ON CONFLICT (kind, digest) WHERE finished_at IS NULL DO NOTHING
 RETURNING id""")


def insert(
    db: Connection, kind: OperationKind, filter: Json, *, reason: str, actor: str, digest: str, rate: int | None = None
) -> int:
    """Insert the operation's row and return its id. Raises AlreadyRunning when one with this digest is running."""
    said = {"kind": kind, "filter": json.dumps(filter), "reason": reason, "actor": actor, "digest": digest}
    id = db.execute(_INSERT, said | {"rate": rate}).scalar_one_or_none()
    if id is None:
        raise AlreadyRunning("an operation on this very set is running: `deprovisioner operations list` has it")
    return int(id)


# What else a digest is of than the count.
_NOUNS = {
    OperationKind.REDRIVE: "jobs (or at other fences)",
    OperationKind.OFFBOARD: "resources (or protected otherwise)",
}


def confirm(
    db: Connection, id: int, kind: OperationKind, filter: Json, digest: str, *key: "sa.ColumnElement[Any]"
) -> Operation:
    """The operation, when what was written down is what the digest was made of."""
    items = tables.operation_items
    listed = sa.select(items.c.backend, *(k.label(f"key_{n}") for n, k in enumerate(key))).where(
        items.c.operation_id == id
    )
    mine = listed.subquery()
    now = summarize(db, kind, filter, mine, *(mine.c[f"key_{n}"] for n in range(len(key))))
    if now.digest != digest:
        then = digest.partition("-")[0]
        told = f"there were {then} then, and are {now.count} now"
        if then == str(now.count):
            told = f"there are {now.count}, as then, but other {_NOUNS[kind]} than then, or it is a mistyped digest"
        raise DigestMismatch(f"this is not what was previewed: {told}; preview again")
    columns = [tables.operations.c[f.name] for f in fields(Operation)]
    total = sa.update(tables.operations).where(tables.operations.c.id == id).values(total=now.count)
    return Operation(**db.execute(total.returning(*columns)).one()._mapping)


def attribution(operation: sa.Row[Any], worker: str) -> Json:
    """Whose doing it is: the operator's who began it, by the hand of this worker."""
    return {
        "actor": operation.actor,
        "reason": operation.reason,
        "detail": {"operation": operation.id, "worker": worker},
    }
