"""Rows as frozen dataclasses. Field names are column names: `columns` makes a SELECT list from a class."""

import datetime as dt
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Protocol, TypeVar

from outbox.states import (
    Found,
    JobKind,
    JobState,
    OperationKind,
    OperationState,
    ResourceStatus,
    SnapshotPolicy,
    Step,
    StuckReason,
)

Json = dict[str, Any]
T = TypeVar("T")


@dataclass(frozen=True)
class Resource:
    """A customer's resource. `manifest` is None until a worker has planned its names.

    `purge_at`: never destroyed before; None while it is not being deleted. `grace_seconds` and `snapshot` are its own,
    None where its backend's count. `version` rises with each change of the row. `external_id` and `labels` are the
    caller's words for it; `adopted`: the object was there before the resource.
    """

    id: uuid.UUID
    tenant: str
    kind: str
    backend: str
    name: str
    status: ResourceStatus
    protected: bool
    manifest: Json | None
    created_at: dt.datetime
    deleted_at: dt.datetime | None
    purged_at: dt.datetime | None
    expires_at: dt.datetime | None
    purge_at: dt.datetime | None
    grace_seconds: int | None
    snapshot: SnapshotPolicy | None
    version: int
    external_id: str | None
    labels: dict[str, str]
    adopted: bool


@dataclass(frozen=True)
class Job:
    """A row of the outbox, as API and CLI show it. `step` is a teardown's; None for other jobs."""

    id: int
    kind: JobKind
    state: JobState
    step: Step | None
    stuck_reason: StuckReason | None
    resource_id: uuid.UUID
    backend: str
    fence: int
    attempts: int
    max_attempts: int
    available_at: dt.datetime
    created_at: dt.datetime
    finished_at: dt.datetime | None
    last_error: str | None


@dataclass(frozen=True)
class Claim:
    """A worker's right to act on a job, until another claim raises the fence or the lease passes.

    `started_fence` is the fence of the last attempt that may have acted, None if no attempt has started.
    `forced_fence`: two operators decided that the outcome of attempts up to this fence no longer matters; else None.
    `probing`: the backend's breaker is half-open, and this job is its probe. `contended`: another job of the resource
    was running when this one was claimed. `step` is a teardown's; `destroying` once it has started at `destroy`.
    """

    id: int
    kind: JobKind
    step: Step | None
    destroying: bool
    resource_id: uuid.UUID
    backend: str
    fence: int
    attempts: int
    max_attempts: int
    started_fence: int | None
    available_at: dt.datetime
    lane: int
    tenant: str
    forced_fence: int | None
    generation: uuid.UUID
    adopted: bool
    activated: bool
    manifest: Json | None
    probing: bool
    contended: bool


@dataclass(frozen=True)
class StartMark:
    """The event of a durable start, as places outside the control database remember it; `hash` is in hex.

    `installation` is None before the first comparison with any place.
    """

    event: int
    hash: str
    installation: uuid.UUID | None
    epoch: int | None


@dataclass(frozen=True)
class Evidence:
    """One event of the evidence; the table is append-only. `job_id` is None for an act that is no job's."""

    id: int
    at: dt.datetime
    job_id: int | None
    resource_id: uuid.UUID
    fence: int
    event: str
    actor: str
    reason: str | None
    detail: Json | None


@dataclass(frozen=True)
class Operation:
    """Bulk work that an operator began; `rate` is in jobs a second.

    `digest` of an `adopt_preview` is that of its adoptable objects; None before it has succeeded.
    """

    id: int
    kind: OperationKind
    state: OperationState
    filter: Json
    reason: str
    actor: str
    digest: str | None
    rate: int | None
    total: int
    created_at: dt.datetime
    finished_at: dt.datetime | None
    error: str | None

    @classmethod
    def read(cls, row: "_Row") -> "Operation":
        """From its row."""
        kind, state = OperationKind(row._mapping["kind"]), OperationState(row._mapping["state"])
        found = kind is not OperationKind.ADOPT_PREVIEW or state is OperationState.SUCCEEDED
        return cls(
            **{**row._mapping, "kind": kind, "state": state, "digest": row._mapping["digest"] if found else None}
        )


def storable(words: str) -> bool:
    """Whether a text can be stored and logged.

    PostgreSQL's text takes neither NUL nor surrogates, which is how Python decodes bytes that are not UTF-8. Control
    characters would garble logs.
    """
    return not any(ord(c) < 32 or ord(c) == 127 or 0xD800 <= ord(c) <= 0xDFFF for c in words)


class _Row(Protocol):
    @property
    def _mapping(self) -> Mapping[Any, Any]: ...


_ENUMS = {
    "state": JobState,
    "step": Step,
    "stuck_reason": StuckReason,
    "status": ResourceStatus,
    "snapshot": SnapshotPolicy,
    "found": Found,
}


def columns(cls: type, alias: str) -> str:
    """The SELECT list of `cls` from `alias`, each column named `alias_column`."""
    return ", ".join(f"{alias}.{f.name} AS {alias}_{f.name}" for f in fields(cls))


def read(cls: type[T], alias: str, row: _Row) -> T:
    """An instance of `cls` from a row that was selected with `columns(cls, alias)`."""
    values = {f.name: row._mapping[f"{alias}_{f.name}"] for f in fields(cls)}  # type: ignore[arg-type]
    return cls(**{name: _typed(cls, name, value) for name, value in values.items()})


def _typed(cls: type, name: str, value: Any) -> Any:
    if value is None:
        return None
    if name == "kind" and cls is not Resource:  # a resource's kind is its backend's kind, not a JobKind
        return JobKind(value)
    return _ENUMS[name](value) if name in _ENUMS else value
