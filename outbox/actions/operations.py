"""Bulk work: preview it, begin exactly what was previewed, stop it."""

from collections.abc import Sequence
from typing import NewType

from sqlalchemy import Connection

from outbox import operations
from outbox.actions.caller import Operator
from outbox.errors import BadRequest
from outbox.operations import AdoptPreview, DeleteFilter, OffboardPreview, Preview, RestorePreview
from outbox.queries import JobFilter
from outbox.rows import Json, Operation

# A filter that `chosen` has let through.
BulkFilter = NewType("BulkFilter", JobFilter)


def chosen(wanted: JobFilter, *, every: bool) -> BulkFilter:
    """The stuck jobs that a bulk action means; all of them only when the caller says so. Raises BadRequest."""
    if every == (wanted != JobFilter(state=wanted.state)):
        raise BadRequest("say which stuck jobs are meant, or all of them (--all; over HTTP `all`), and not both")
    return BulkFilter(wanted)


def preview_redrive(db: Connection, who: Operator, wanted: BulkFilter) -> Preview:  # noqa: ARG001 - operators only
    """What a bulk re-drive would work on; `db` is a snapshot. Raises BadRequest."""
    return operations.preview_redrive(db, wanted)


def begin_redrive(
    db: Connection, who: Operator, wanted: BulkFilter, *, reason: str, digest: str, rate: int = operations.RATE
) -> Operation:
    """Begin the bulk re-drive that was previewed; `db` is a transaction. Raises DigestMismatch, AlreadyRunning."""
    return operations.begin_redrive(db, wanted, reason=reason, actor=who.actor, digest=digest, rate=rate)


def preview_offboard(db: Connection, who: Operator, tenant: str) -> OffboardPreview:  # noqa: ARG001 - operators only
    """What the offboarding of a tenant would delete; `db` is a snapshot. Raises NotFound."""
    return operations.preview_offboard(db, tenant)


def begin_offboard(
    db: Connection, who: Operator, tenant: str, *, expected_count: int, reason: str, digest: str
) -> Operation:
    """Begin the offboarding that was previewed; `db` is a transaction. Raises NotFound, DigestMismatch."""
    return operations.begin_offboard(
        db, tenant, expected_count=expected_count, reason=reason, actor=who.actor, digest=digest
    )


# A filter that `taken_back` has let through.
RestoreFilter = NewType("RestoreFilter", DeleteFilter)


def taken_back(wanted: DeleteFilter) -> RestoreFilter:
    """The deletes that a bulk restore means. Raises BadRequest for a filter that is not bounded."""
    if wanted.tenant is None and wanted.backend is None and wanted.operation is None:
        raise BadRequest("say whose deletes are meant: of a tenant, of a backend, or of an offboarding (operation)")
    if wanted.deleted_since is None and wanted.operation is None:
        raise BadRequest("say since when (deleted_since), or by which offboarding (operation) the deletes were made")
    if wanted.deleted_since and wanted.deleted_until and wanted.deleted_since >= wanted.deleted_until:
        raise BadRequest("deleted_since must be before deleted_until")
    return RestoreFilter(wanted)


def preview_restore(db: Connection, who: Operator, wanted: RestoreFilter) -> RestorePreview:  # noqa: ARG001 - operators only
    """What a bulk restore would take back; `db` is a snapshot. Raises BadRequest."""
    return operations.preview_restore(db, wanted)


def begin_restore(db: Connection, who: Operator, wanted: RestoreFilter, *, reason: str, digest: str) -> Operation:
    """Begin the bulk restore that was previewed; `db` is a transaction. Raises DigestMismatch, AlreadyRunning."""
    return operations.begin_restore(db, wanted, reason=reason, actor=who.actor, digest=digest)


def preview_adopt(db: Connection, who: Operator, backend: str, objects: Sequence[Json], *, reason: str) -> Operation:
    """Have workers inspect the objects of a list, which `adoptions.check` has checked; `db` is a transaction."""
    return operations.begin_preview(db, backend, objects, reason=reason, actor=who.actor)


def previewed_adopt(db: Connection, who: Operator, preview: int) -> AdoptPreview:  # noqa: ARG001 - operators only
    """What a preview found, and the digest of the adoptable objects once it has ended. Raises NotFound, BadRequest."""
    return operations.previewed(db, preview)


def begin_adopt(
    db: Connection,
    who: Operator,
    preview: int,
    *,
    reason: str,
    digest: str,
    rate: int = operations.RATE,
    backend: str | None = None,
) -> Operation:
    """Begin the adoption that was previewed, once; `db` is a transaction. Raises NotFound, BadRequest, DigestMismatch.

    With a `backend` the preview must be of that one.
    """
    return operations.begin_adopt(
        db, preview, reason=reason, actor=who.actor, digest=digest, rate=rate, backend=backend
    )


def stop(db: Connection, who: Operator, operation_id: int, *, reason: str) -> Operation:
    """Stop an operation: what it has not done yet is left alone. Raises NotFound, AlreadyFinished."""
    return operations.stop(db, operation_id, actor=who.actor, reason=reason)
