"""Bulk work: previews, operations, progress."""

import dataclasses
import datetime as dt
import uuid
from typing import Annotated, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    model_validator,
)

from api.schemas.fields import Cursor, Digest, Limit, Time, Word, _In
from api.schemas.holds import HoldOut
from api.schemas.jobs import JobFilterIn, JobOut
from api.schemas.resources import ResourceOut
from outbox import operations
from outbox.operations import DeleteFilter
from outbox.queries import Progress
from outbox.rows import Json, Operation
from outbox.states import (
    ItemOutcome,
    JobState,
    OperationKind,
    OperationState,
    ResourceStatus,
)

# What fits in the longest body; at a shell it may be ten times as many.
MOST_OBJECTS = 5_000


class BulkFilter(JobFilterIn):
    """Which stuck jobs a bulk re-drive means; for every stuck job, `{"all": true}`."""

    all: bool = False


class RedriveMany(_In):
    """A bulk re-drive: first a dry run, then the real run with the dry run's digest."""

    filter: BulkFilter
    reason: Word
    dry_run: bool = True
    digest: Digest | None = None
    rate: Annotated[int, Field(ge=1, le=operations.MAX_RATE, description="jobs a second")] = operations.RATE

    @model_validator(mode="after")
    def _previewed(self) -> Self:
        if not self.dry_run and self.digest is None:
            raise ValueError("`dry_run` is false: send the `digest` that the dry run answered")
        return self


class Offboard(_In):
    """Delete what a tenant has: first a dry run, then the real run with the dry run's count and digest."""

    reason: Word
    dry_run: bool = True
    expected_count: Annotated[int | None, Field(ge=0, le=2**63 - 1)] = None
    digest: Digest | None = None

    @model_validator(mode="after")
    def _previewed(self) -> Self:
        if not self.dry_run and (self.digest is None or self.expected_count is None):
            raise ValueError("`dry_run` is false: send the `expected_count` and the `digest` that the dry run answered")
        return self


class DeleteFilterIn(_In):
    """Which deletes a bulk restore means: of a tenant or a backend since a moment, or those of an offboarding.

    `actor` asked for the delete, as the `enqueued` event of its job says.
    """

    tenant: Word | None = None
    backend: Word | None = None
    deleted_since: Time | None = None
    deleted_until: Time | None = None
    actor: Word | None = None
    operation: Annotated[int | None, Field(ge=1, le=2**63 - 1)] = None

    def meant(self) -> DeleteFilter:
        """As the action takes it."""
        return DeleteFilter(**dict(self))


class RestoreMany(_In):
    """A bulk restore: first a dry run, then the real run with the dry run's digest."""

    filter: DeleteFilterIn
    reason: Word
    dry_run: bool = True
    digest: Digest | None = None

    @model_validator(mode="after")
    def _previewed(self) -> Self:
        if not self.dry_run and self.digest is None:
            raise ValueError("`dry_run` is false: send the `digest` that the dry run answered")
        return self


class AdoptMany(_In):
    """An adoption in bulk: first a list, which workers inspect; then the real run, with that `preview` and its digest.

    An object is `{tenant, manifest, name?, external_id?, labels?, protected?}`.
    """

    reason: Word
    dry_run: bool = True
    backend: Word | None = None
    objects: Annotated[list[Json], Field(max_length=MOST_OBJECTS)] | None = None
    preview: Annotated[int | None, Field(ge=1, le=2**63 - 1)] = None
    digest: Digest | None = None
    rate: Annotated[int, Field(ge=1, le=operations.MAX_RATE, description="adoptions a second")] = operations.RATE

    @model_validator(mode="after")
    def _previewed(self) -> Self:
        if self.dry_run and (self.backend is None or self.objects is None or self.preview or self.digest):
            raise ValueError("a dry run takes `backend` and `objects`")
        if not self.dry_run and (self.preview is None or self.digest is None or self.objects or self.backend):
            raise ValueError("`dry_run` is false: send the `preview` and the `digest` of the dry run, and no objects")
        return self


class ObjectFilter(_In):
    """Which objects of an adoption to list; `wrong`: those that need a person."""

    wrong: bool = False
    cursor: Cursor = None
    limit: Limit = 50


class ObjectOut(BaseModel):
    """An object of an adoption: what was asked, what a worker found, and what became of it."""

    model_config = ConfigDict(from_attributes=True)

    n: int
    name: str
    tenant: str
    external_id: str | None
    labels: dict[str, str]
    manifest: Json
    outcome: ItemOutcome | None
    findings: list[dict[str, str]] | None
    resource_id: uuid.UUID | None
    job_id: int | None
    job_state: JobState | None
    last_error: str | None


class ObjectPage(BaseModel):
    """One page of objects; with the digest of the adoptable ones, once all were inspected."""

    items: list[ObjectOut]
    next_cursor: str | None
    digest: str | None


class OperationFilter(_In):
    """Which page of operations."""

    cursor: Cursor = None
    limit: Limit = 50


class RedrivePreview(BaseModel):
    """The jobs that a bulk re-drive would work on: their number, by backend; the first twenty; the digest of all."""

    count: int
    backends: dict[str, int]
    sample: list[JobOut]
    digest: str

    @classmethod
    def of(cls, seen: operations.Preview) -> "RedrivePreview":
        """From the action's answer."""
        return cls(**vars(seen) | {"sample": [JobOut.of(job) for job in seen.sample]})


class OffboardPreview(BaseModel):
    """What an offboarding would delete: `count` resources that are not deleted yet, but for the `protected` ones."""

    count: int
    protected: int
    deleting: int
    backends: dict[str, int]
    statuses: dict[ResourceStatus, int]
    sample: list[ResourceOut]
    digest: str

    @classmethod
    def of(cls, seen: operations.OffboardPreview) -> "OffboardPreview":
        """From the action's answer."""
        return cls(**vars(seen) | {"sample": [ResourceOut.of(resource) for resource in seen.sample]})


class RestorePreview(BaseModel):
    """The deletes that a bulk restore would take back: their number, by backend; the first twenty; the digest of all.

    `unheld` of them are covered by no hold, so their destruction may start meanwhile. `started`, `destroyed` and
    `never_active` count what can not be taken back.
    """

    count: int
    backends: dict[str, int]
    unheld: int
    started: int
    destroyed: int
    never_active: int
    sample: list[ResourceOut]
    digest: str

    @classmethod
    def of(cls, seen: operations.RestorePreview) -> "RestorePreview":
        """From the action's answer."""
        return cls(**vars(seen) | {"sample": [ResourceOut.of(resource) for resource in seen.sample]})


class OperationOut(BaseModel):
    """Bulk work that the workers carry on; `rate` is in jobs a second.

    `digest` of an `adopt_preview` is the one that its real run takes; null before all its objects are inspected.
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
    url: str

    @classmethod
    def of(cls, row: Operation) -> "OperationOut":
        """From its row."""
        return cls(**vars(row), url=f"/v1/operations/{row.id}")


class TallyOut(BaseModel):
    """The items by outcome so far. After a `failed` canary the rest of its backend is `stopped`."""

    total: int
    waiting: int
    done: int
    failed: int
    stopped: int
    skipped: int
    protected: int


class CanaryOut(BaseModel):
    """The job that goes first on its backend. Before its turn, `job_id` of a restore is still the teardown."""

    backend: str
    job_id: int
    state: JobState
    outcome: ItemOutcome | None
    next_attempt_at: dt.datetime | None


class ProgressOut(TallyOut):
    """The progress of an operation. `jobs` counts its jobs by their state now; `stuck_jobs` names the first ten.

    `holds` are the holds that waiting deletes wait for.
    """

    backends: dict[str, TallyOut]
    canaries: list[CanaryOut]
    jobs: dict[JobState, int]
    stuck_jobs: list[int]
    holds: list[HoldOut]


class OperationStoryOut(OperationOut):
    """An operation and its progress."""

    progress: ProgressOut

    @classmethod
    def of_story(cls, row: Operation, progress: Progress) -> "OperationStoryOut":
        """From its rows."""
        parts = dataclasses.asdict(progress)
        return cls(**OperationOut.of(row).model_dump(), progress=ProgressOut(**parts.pop("all") | parts))


class Begun(BaseModel):
    """The answer to a real run: the operation that workers now carry on."""

    operation: OperationOut


class OperationPage(BaseModel):
    """One page of operations."""

    items: list[OperationOut]
    next_cursor: str | None
