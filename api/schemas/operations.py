"""Bulk work: previews, operations, progress."""

import dataclasses
import datetime as dt
from typing import Annotated, Self

from pydantic import (
    BaseModel,
    Field,
    model_validator,
)

from api.schemas.fields import Cursor, Digest, Limit, Word, _In
from api.schemas.jobs import JobFilterIn, JobOut
from api.schemas.resources import ResourceOut
from outbox import operations
from outbox.queries import Progress
from outbox.rows import Json, Operation
from outbox.states import (
    ItemOutcome,
    JobState,
    OperationKind,
    OperationState,
    ResourceStatus,
)


class BulkFilter(JobFilterIn):
    """Which stuck jobs a bulk re-drive means. All of them must be said aloud: `{"all": true}`."""

    all: bool = False

    @model_validator(mode="after")
    def _said_aloud(self) -> Self:
        asked = self.model_fields_set - {"all", "state"}
        if self.state not in (None, JobState.STUCK):
            raise ValueError("only stuck jobs can be re-driven: leave `state` out")
        if self.all and asked:
            raise ValueError(f"`all` means every stuck job, and contradicts {', '.join(sorted(asked))}")
        if not self.all and not any(getattr(self, name) is not None for name in asked):
            raise ValueError('say which jobs, or {"all": true}')
        return self


class RedriveMany(_In):
    """A bulk re-drive: first a dry run, then the real one with the dry run's digest."""

    filter: BulkFilter
    reason: Word
    dry_run: bool = True
    digest: Digest | None = None
    rate: Annotated[int, Field(ge=1, le=operations.MAX_RATE, description="jobs a second")] = operations.RATE

    @model_validator(mode="after")
    def _previewed(self) -> Self:
        if not self.dry_run and self.digest is None:
            raise ValueError("`dry_run`: false needs the `digest` of a dry run")
        return self


class Offboard(_In):
    """The end of a tenant: first a dry run, then the real one with the dry run's count and digest."""

    reason: Word
    dry_run: bool = True
    expected_count: Annotated[int | None, Field(ge=0, le=2**63 - 1)] = None
    digest: Digest | None = None

    @model_validator(mode="after")
    def _previewed(self) -> Self:
        if not self.dry_run and (self.digest is None or self.expected_count is None):
            raise ValueError("`dry_run`: false needs the `expected_count` and the `digest` of a dry run")
        return self


class OperationFilter(_In):
    """Which page of operations."""

    cursor: Cursor = None
    limit: Limit = 50


class RedrivePreview(BaseModel):
    """What a bulk re-drive would work on: how many, of which backends, the first twenty, and the digest of all."""

    count: int
    backends: dict[str, int]
    sample: list[JobOut]
    digest: str

    @classmethod
    def of(cls, seen: operations.Preview) -> "RedrivePreview":
        """From what was seen."""
        return cls(**vars(seen) | {"sample": [JobOut.of(job) for job in seen.sample]})


class OffboardPreview(BaseModel):
    """What an offboarding would delete: `count` living resources, of which `protected` are left."""

    count: int
    protected: int
    deleting: int
    backends: dict[str, int]
    statuses: dict[ResourceStatus, int]
    sample: list[ResourceOut]
    digest: str

    @classmethod
    def of(cls, seen: operations.OffboardPreview) -> "OffboardPreview":
        """From what was seen."""
        return cls(**vars(seen) | {"sample": [ResourceOut.of(resource) for resource in seen.sample]})


class OperationOut(BaseModel):
    """Bulk work that goes on by itself; `rate` is in jobs a second."""

    id: int
    kind: OperationKind
    state: OperationState
    filter: Json
    reason: str
    actor: str
    digest: str
    rate: int | None
    total: int
    created_at: dt.datetime
    finished_at: dt.datetime | None
    error: str | None
    url: str

    @classmethod
    def of(cls, row: Operation) -> "OperationOut":
        """From its row."""
        return cls(**vars(row), url=f"/v1/operations/{row.id}")


class TallyOut(BaseModel):
    """What became of the items so far: `failed` canaries stop the rest of their backend."""

    total: int
    waiting: int
    done: int
    failed: int
    stopped: int
    skipped: int
    protected: int


class CanaryOut(BaseModel):
    """The job that was re-driven first on its backend."""

    backend: str
    job_id: int
    state: JobState
    outcome: ItemOutcome | None
    next_attempt_at: dt.datetime | None


class ProgressOut(TallyOut):
    """How far it is; `jobs` counts the jobs of what is done by their state now, `stuck_jobs` names ten of the stuck."""

    backends: dict[str, TallyOut]
    canaries: list[CanaryOut]
    jobs: dict[JobState, int]
    stuck_jobs: list[int]


class OperationStoryOut(OperationOut):
    """An operation and how far it is."""

    progress: ProgressOut

    @classmethod
    def told(cls, row: Operation, progress: Progress) -> "OperationStoryOut":
        """From its rows."""
        told = dataclasses.asdict(progress)
        return cls(**OperationOut.of(row).model_dump(), progress=ProgressOut(**told.pop("all") | told))


class Begun(BaseModel):
    """The answer to a real run: not done yet, but workers are at it."""

    operation: OperationOut


class OperationPage(BaseModel):
    """One page of operations."""

    items: list[OperationOut]
    next_cursor: str | None
