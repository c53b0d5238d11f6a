"""The rows that an operation works on: their digest, and the check that they are the ones that were previewed."""

import hashlib
import json
from dataclasses import dataclass, fields
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, text

from outbox import acts, holds, tables
from outbox.errors import AlreadyRunning, BadRequest, DigestMismatch
from outbox.events import Event
from outbox.rows import Json, Operation
from outbox.states import HoldScope, OperationKind

# Rows in one step: the step locks them for some tens of milliseconds, and a DELETE of one of them waits no longer.
BATCH = 100
# As many rows as an operator reads before confirming.
SAMPLE = 20
# The pause between two polls of canaries that have not ended, and the longest pause between two steps.
POLL_SECONDS = 1.0
# The format of a digest: the count, and SHA-256 in hexadecimal.
DIGEST = r"[0-9]{1,19}-[0-9a-f]{64}"
# Two sums of hashes with different seeds: the order of rows does not matter, and the database need not sort them.
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
    """The counts of `rows`, and the digest of their keys and the filter."""
    row_key = sa.func.concat_ws(":", *key)
    sums = [sa.func.sum(sa.cast(sa.func.hashtextextended(row_key, seed), sa.Numeric)) for seed in _SEEDS]
    backend = rows.c.backend
    groups = db.execute(sa.select(backend, sa.func.count(), *sums).group_by(backend).order_by(backend)).all()
    count = sum(group[1] for group in groups)
    numbers = [str(sum(group[2 + place] for group in groups)) for place in range(len(_SEEDS))]
    content = json.dumps([kind, filter, count, *numbers], sort_keys=True)
    digest = f"{count}-{hashlib.sha256(content.encode()).hexdigest()}"  # with the count, for the message of a refusal
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
    row = {"kind": kind, "filter": json.dumps(filter), "reason": reason, "actor": actor, "digest": digest, "rate": rate}
    id = db.execute(_INSERT, row).scalar_one_or_none()
    if id is None:
        raise AlreadyRunning("an operation on the same set is running; see `deprovisioner operations list`")
    return int(id)


# What has changed when the digest differs and the count does not.
_NOUNS = {
    OperationKind.REDRIVE: "jobs (or at other fences)",
    OperationKind.OFFBOARD: "resources (or protected otherwise)",
    OperationKind.RESTORE: "resources (or deleted again)",
}

_OPERATION = ", ".join(field.name for field in fields(Operation))
# What tells of an operation in its events; its detail goes on with `more`.
_WHICH = "jsonb_build_object('operation', id, 'kind', kind, 'total', total)"


def noted(act: str, event: Event, *, actor: str, reason: str, more: str = "'{}'") -> str:
    """The CTEs that write the event of the operation in the CTE `act`; `more` is added to its detail."""
    return acts.noted(act, f"'{event}'", actor=actor, reason=reason, detail=f"{_WHICH} || {more}")


_BEGIN = text(f"""
    WITH begun AS (
        UPDATE operations SET total = :total WHERE id = :id
     RETURNING {_OPERATION}
    ), {noted("begun", Event.OPERATION_BEGUN, actor="actor", reason="reason")}
    SELECT {_OPERATION} FROM begun""")


def confirm(
    db: Connection, id: int, kind: OperationKind, filter: Json, digest: str, *key: "sa.ColumnElement[Any]"
) -> Operation:
    """The operation, begun, when its items are the rows that the digest was made of. Raises DigestMismatch.

    Its event comes last: until this transaction has committed, other acts wait.
    """
    items = tables.operation_items
    listed = sa.select(items.c.backend, *(k.label(f"key_{n}") for n, k in enumerate(key))).where(
        items.c.operation_id == id
    )
    mine = listed.subquery()
    now = summarize(db, kind, filter, mine, *(mine.c[f"key_{n}"] for n in range(len(key))))
    if now.digest != digest:
        then = digest.partition("-")[0]
        change = f"the preview found {then}, and now there are {now.count}"
        if then == str(now.count):
            change = f"there are {now.count}, as before, but other {_NOUNS[kind]}, or the digest is mistyped"
        raise DigestMismatch(f"this is not what was previewed: {change}; preview again")
    return begin(db, id, now.count)


def begin(db: Connection, id: int, total: int) -> Operation:
    """The operation, begun, with its event."""
    return Operation.read(db.execute(_BEGIN, {"id": id, "total": total}).one())


def refuse_unknown_scope(db: Connection, backend: str | None, tenant: str | None) -> None:
    """Raise BadRequest: with a typing error a filter selects nothing, which would look as if there were nothing."""
    for scope, subject in ((HoldScope.BACKEND, backend), (HoldScope.TENANT, tenant)):
        if subject is not None and not holds.known(db, scope, subject):
            raise BadRequest(f"there is no {scope} {subject!r} here: this filter would find nothing; check the name")


def attribution(operation: sa.Row[Any], worker: str) -> Json:
    """Actor, reason and detail of the events of a step: the operator who began the operation, and this worker."""
    return {
        "actor": operation.actor,
        "reason": operation.reason,
        "detail": {"operation": operation.id, "worker": worker},
    }
