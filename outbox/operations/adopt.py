"""Adoption in bulk: a list of objects that exist, inspected by workers, then adopted at a rate by the ordinary door.

The preview is an operation of its own, since only workers reach a backend: they inspect each object,
and change nothing. The real run names the preview, and adopts exactly the objects that it found adoptable.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection, text

from outbox import kinds, resources, settings, tables
from outbox.errors import (
    AlreadyManaged,
    AlreadyRunning,
    BadRequest,
    DigestMismatch,
    ExternalIdTaken,
    NotFound,
    QuotaExceeded,
    UnknownBackend,
)
from outbox.operations.selection import BATCH, POLL_SECONDS, begin, insert, summarize
from outbox.resources import NewResource
from outbox.rows import Json, Operation
from outbox.states import ItemOutcome, OperationKind, OperationState

RATE, MAX_RATE = 50, 1000  # adoptions a second; on two cores a worker carries out about as many

_INSERT_ITEMS = text("""
    INSERT INTO operation_items (operation_id, n, backend, resource_id)
    SELECT :id, n, :backend, gen_random_uuid() FROM generate_series(1, :count) AS n""")
_INSERT = text("""
    INSERT INTO adoptions (operation_id, n, asked)
    SELECT :id, n, asked FROM jsonb_array_elements(CAST(:objects AS jsonb)) WITH ORDINALITY AS listed (asked, n)""")
_RUNNING = sa.select(tables.operations.c.id).where(tables.operations.c.finished_at.is_(None))


def begin_preview(db: Connection, backend: str, objects: Sequence[Json], *, reason: str, actor: str) -> Operation:
    """Store the objects, checked by `adoptions.check`, for workers to inspect. `db` must be a transaction.

    The same list again, while its preview runs, is that preview. Raises UnknownBackend, BadRequest.
    """
    if backend not in settings.backends():
        raise UnknownBackend(f"backend {backend!r} is unknown; known: {', '.join(sorted(settings.backends()))}")
    if not objects:
        raise BadRequest("the list has no object")
    said = {"backend": backend, "objects": len(objects)}
    content = json.dumps([backend, objects], sort_keys=True)
    digest = f"{len(objects)}-{hashlib.sha256(content.encode()).hexdigest()}"
    try:
        id = insert(db, OperationKind.ADOPT_PREVIEW, said, reason=reason, actor=actor, digest=digest)
    except AlreadyRunning:
        same = (tables.operations.c.kind == OperationKind.ADOPT_PREVIEW) & (tables.operations.c.digest == digest)
        return _operation(db, db.execute(_RUNNING.where(same)).scalar_one())
    db.execute(_INSERT_ITEMS, {"id": id, "backend": backend, "count": len(objects)})
    db.execute(_INSERT, {"id": id, "objects": json.dumps(objects)})
    return begin(db, id, len(objects))


def preview_step(db: Connection, operation: "sa.Row[Any]") -> tuple[bool, float]:
    """Whether all objects are inspected; then its digest, until now the list's, becomes that of the adoptable ones.

    Workers inspect the objects beside it, outside of any transaction (`worker/adoptions.py`).
    """
    item = tables.operation_items.c
    waiting = sa.exists().where(item.operation_id == operation.id, item.outcome.is_(None))
    if db.execute(sa.select(waiting)).scalar_one():
        return False, POLL_SECONDS
    digest = _adoptable(db, _operation(db, operation.id)).digest
    db.execute(sa.update(tables.operations).where(tables.operations.c.id == operation.id).values(digest=digest))
    return True, POLL_SECONDS


@dataclass(frozen=True)
class AdoptPreview:
    """What a preview found, and the digest of the adoptable objects; None before it has succeeded."""

    adoptable: int
    refused: int
    digest: str | None


def previewed(db: Connection, preview: int) -> AdoptPreview:
    """Of an `adopt_preview` operation. Raises NotFound, BadRequest for an operation of another kind."""
    operation = _operation(db, preview)
    if operation.kind is not OperationKind.ADOPT_PREVIEW:
        raise BadRequest(f"preview: operation {preview} is a {operation.kind}, and no preview of an adoption")
    item = tables.operation_items.c
    mine = sa.select(item.outcome, sa.func.count()).where(item.operation_id == preview).group_by(item.outcome)
    counts: dict[str, int] = {row[0]: row[1] for row in db.execute(mine)}
    return AdoptPreview(counts.get(ItemOutcome.ADOPTABLE, 0), counts.get(ItemOutcome.REFUSED, 0), operation.digest)


def begin_adopt(
    db: Connection,
    preview: int,
    *,
    reason: str,
    actor: str,
    digest: str,
    rate: int = RATE,
    backend: str | None = None,
) -> Operation:
    """Store the previewed objects as items for workers to adopt, at most `rate` a second. `db` must be a transaction.

    A preview that has been carried out, or is, answers with that operation; one that was stopped may be begun again.
    Raises NotFound, AlreadyRunning, DigestMismatch, and BadRequest for a preview of another backend than `backend`.
    """
    seen, shown = previewed(db, preview), _operation(db, preview)
    said = _said(shown)
    if backend not in (None, said["backend"]):
        raise BadRequest(f"preview: operation {preview} is of backend {said['backend']!r}, and not of {backend!r}")
    if seen.digest is None:
        why = (
            "was stopped: preview again" if shown.finished_at else "has not inspected all its objects; wait for its end"
        )
        raise BadRequest(f"preview: operation {preview} {why}")
    if seen.digest != digest:
        raise DigestMismatch(f"this is not the digest of preview {preview}: `operations show {preview}` shows that")
    if (first := _begun(db, preview)) is not None:
        return first
    operation = insert(db, OperationKind.ADOPT, said, reason=reason, actor=actor, digest=digest, rate=rate)
    item = tables.operation_items.c
    listed = sa.select(sa.literal(operation), item.n, item.backend, item.resource_id).where(*_chosen(preview))
    into = ("operation_id", "n", "backend", "resource_id")
    db.execute(sa.insert(tables.operation_items).from_select(into, listed))
    return begin(db, operation, seen.adoptable)


def _begun(db: Connection, preview: int) -> Operation | None:
    """The operation that carries the preview out, or has done so."""
    is_of_preview = tables.operations.c.filter["preview"].as_string() == str(preview)
    begun = sa.select(tables.operations.c.id).where(
        tables.operations.c.kind == OperationKind.ADOPT,
        tables.operations.c.state != OperationState.STOPPED,
        is_of_preview,
    )
    id = db.execute(begun.limit(1)).scalar_one_or_none()
    return None if id is None else _operation(db, id)


def _said(preview: Operation) -> Json:
    return {"backend": preview.filter["backend"], "preview": preview.id}


def _chosen(preview: int) -> tuple["sa.ColumnElement[bool]", ...]:
    item = tables.operation_items.c
    return item.operation_id == preview, item.outcome == ItemOutcome.ADOPTABLE


def _adoptable(db: Connection, preview: Operation) -> Any:
    item = tables.operation_items.c
    found = sa.select(item.backend, item.n, item.resource_id).where(*_chosen(preview.id)).subquery()
    return summarize(db, OperationKind.ADOPT, _said(preview), found, found.c.n, found.c.resource_id)


def _operation(db: Connection, id: int) -> Operation:
    columns = (tables.operations.c[name] for name in Operation.__dataclass_fields__)
    row = db.execute(sa.select(*columns).where(tables.operations.c.id == id)).one_or_none()
    if row is None:
        raise NotFound(f"there is no operation {id}")
    return Operation.read(row)


# A resource of the item's id is there where an earlier run on the same preview made it.
_NEXT = text("""
    SELECT item.n, item.backend, item.resource_id, asked, resources.id IS NOT NULL AS made
      FROM operation_items AS item
      JOIN adoptions ON adoptions.operation_id = :preview AND adoptions.n = item.n
      LEFT JOIN resources ON resources.id = item.resource_id
     WHERE item.operation_id = :id AND item.outcome IS NULL
     ORDER BY item.n LIMIT :batch""")
_SETTLED = text("""
    UPDATE operation_items SET outcome = :outcome, job_id = :job
     WHERE operation_id = :id AND n = :n AND outcome IS NULL""")
_SAY = text("""
    UPDATE adoptions
       SET findings = findings || jsonb_build_array(jsonb_build_object('code', 'refused', 'what', CAST(:what AS text),
                                                                       'mend', ''))
     WHERE operation_id = :preview AND n = :n""")


def adopt_step(db: Connection, operation: "sa.Row[Any]", worker: str) -> tuple[int, float]:
    """Register the next objects as resources; returns how many, and the pause that keeps it to its rate."""
    preview = int(operation.filter["preview"])
    mine = {"id": operation.id, "preview": preview}
    listed, done = db.execute(_NEXT, mine | {"batch": min(BATCH, operation.rate)}).all(), 0
    for item in listed:
        job, why = None, "an earlier run has adopted it"
        if not item.made:
            job, why = _register(db, operation, item, worker)
        outcome = ItemOutcome.SKIPPED if job is None else ItemOutcome.ENQUEUED
        db.execute(_SETTLED, mine | {"n": item.n, "outcome": outcome, "job": job})
        if job is None:
            db.execute(_SAY, mine | {"n": item.n, "what": why})
        done += job is not None
    return done, done / operation.rate


def _register(db: Connection, operation: "sa.Row[Any]", item: "sa.Row[Any]", worker: str) -> tuple[int | None, str]:
    """The provision job of the object's new resource; or None and why there is none."""
    asked: Json = item.asked
    new = NewResource(
        tenant=asked["tenant"],
        kind=asked["kind"],
        backend=item.backend,
        name=asked["name"],
        protected=asked["protected"],
        manifest=kinds.check(asked["kind"], asked["manifest"]),
        external_id=asked["external_id"],
        labels=asked["labels"],
    )
    try:
        with db.begin_nested():  # what the database refuses must not undo the step's other objects
            _, job = resources.register(
                db,
                new,
                actor=operation.actor,
                resource_id=item.resource_id,
                detail={"operation": operation.id, "reason": operation.reason, "worker": worker},
            )
    except (AlreadyManaged, ExternalIdTaken, QuotaExceeded) as error:
        return None, str(error)
    return job.id, ""
