"""What comes in and goes out: the contract, checked at the edge."""

import dataclasses
import datetime as dt
import uuid
from typing import Annotated, Any, Literal, Self

from fastapi import Path
from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from outbox import operations
from outbox.approvals import Approval
from outbox.errors import BadRequest
from outbox.holds import Hold
from outbox.observations import Observation
from outbox.queries import JobFilter, JobStory, Progress
from outbox.rows import Job, Json, Operation, Resource, storable
from outbox.states import (
    Found,
    HoldCause,
    HoldScope,
    ItemOutcome,
    JobKind,
    JobState,
    OperationKind,
    ResourceStatus,
    StuckReason,
)


def _storable(value: str) -> str:
    if not storable(value):
        raise ValueError("must not contain control characters")
    return value


def _said(value: str) -> str:
    if not value.strip():
        raise ValueError("must not be blank")
    return value


def _text(value: object) -> object:
    """A number would be read as seconds since 1970: somebody's "in an hour" would be long past."""
    if value is not None and not isinstance(value, str | dt.datetime):
        raise ValueError("must be a time such as 2030-01-31T12:00:00Z")
    return value


def _in_the_calendar(value: dt.datetime) -> dt.datetime:
    if not 2000 < value.year < 9000:  # at the edges of the calendar, other time zones fall out of it
        raise ValueError("must be in a year that has a calendar")
    return value


# Whether it is still to come, the database's clock decides.
Time = Annotated[AwareDatetime, BeforeValidator(_text), AfterValidator(_in_the_calendar)]
Word = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_storable), AfterValidator(_said)]
ResourceId = Annotated[uuid.UUID, Path(description="the resource's UUID")]
JobId = Annotated[int, Path(ge=1, le=2**63 - 1, description="the job's number")]
Cursor = Annotated[str | None, Field(max_length=500, description="`next_cursor` of the page before")]
Limit = Annotated[int, Field(ge=1, le=200, description="rows a page")]
# A hundred years: subtracted from now, it stays in PostgreSQL's calendar.
MAX_AGE_SECONDS = 100 * 366 * 86_400
# A name of PostgreSQL's: longer ones it would cut, and a cut name is another name.
PgName = Annotated[str, Field(min_length=1, max_length=63), AfterValidator(_storable)]


class _In(BaseModel):
    model_config = ConfigDict(extra="forbid")


class PostgresManifest(_In):
    """An existing database to adopt; what is left out is observed."""

    database: PgName
    role: PgName | None = None
    oid: Annotated[int | None, Field(ge=1, le=2**32 - 1)] = None
    system_identifier: Annotated[int | None, Field(ge=1, le=2**64 - 1)] = None
    generation: uuid.UUID | None = None


class RedisManifest(_In):
    """An existing ACL user and key prefix to adopt."""

    user: Word
    prefix: Annotated[Word, Field(pattern=r".:$", description="ends with ':', or it would match its neighbours' keys")]
    generation: uuid.UUID | None = None
    server: Word | None = None


_MANIFESTS: dict[str, type[BaseModel]] = {"postgres": PostgresManifest, "redis": RedisManifest}


def manifest_of(kind: str, manifest: Json) -> Json:
    """The manifest as it is stored; BadRequest names the wrong field. Third parties' kinds check their own."""
    if kind not in _MANIFESTS:
        return manifest
    try:
        return _MANIFESTS[kind].model_validate(manifest).model_dump(mode="json")
    except ValidationError as error:
        wrong = (f"manifest.{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise BadRequest("; ".join(wrong)) from error


class CreateResource(_In):
    """A resource to make, or with `manifest` to adopt. Only an operator names the `tenant`."""

    kind: Word
    backend: Word
    name: Word
    tenant: Word | None = None
    manifest: Annotated[Json | None, Field(max_length=20)] = None
    protected: bool = False
    expires_at: Time | None = None


class ChangeResource(_In):
    """What may change while a resource lives; what is left out stays."""

    protected: bool | None = None
    expires_at: Time | None = None


class ResourceFilter(_In):
    """Which resources to list. An unknown filter is an error: ignored, it would list what was not meant."""

    status: ResourceStatus | None = None
    kind: Word | None = None
    cursor: Cursor = None
    limit: Limit = 50


class JobFilterIn(_In):
    """Which jobs are meant: `error` is a part of the last error, `tenant` another's for operators only."""

    state: JobState | None = None
    kind: JobKind | None = None
    backend: Word | None = None
    reason: StuckReason | None = None
    tenant: Word | None = None
    error: Word | None = None
    older_than_seconds: Annotated[int | None, Field(ge=0, le=MAX_AGE_SECONDS)] = None
    resource_id: uuid.UUID | None = None

    def seen_by(self, tenant: str | None) -> JobFilter:
        """The filter, within what the caller may see; `tenant` None is an operator. Raises BadRequest."""
        if tenant is not None and self.tenant not in (None, tenant):
            raise BadRequest(f"tenant: this token is {tenant!r}'s")
        age = None if self.older_than_seconds is None else dt.timedelta(seconds=self.older_than_seconds)
        same = self.model_dump(include={"state", "kind", "backend", "reason", "error", "resource_id"})
        return JobFilter(**same, tenant=tenant or self.tenant, older_than=age)


class JobListing(JobFilterIn):
    """Which jobs to list, and from where."""

    cursor: Cursor = None
    limit: Limit = 50


class _Decision(_In):
    """`fence` is the one the operator saw: a job that has moved since is left alone."""

    reason: Word
    fence: Annotated[int, Field(ge=0, le=2**63 - 1)]


class NewHold(_In):
    """What to stop. `subject` names the backend, tenant or kind; a global hold has none."""

    scope: HoldScope
    subject: Word | None = None
    reason: Word


class Reason(_In):
    """Why; kept for ever."""

    reason: Word


class HoldFilter(_In):
    """Which holds to list."""

    released: bool = False
    cursor: Cursor = None
    limit: Limit = 50


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


Digest = Annotated[
    str, Field(pattern=f"^{operations.DIGEST}$", description="`digest` of the dry run: the very same set, or 409")
]


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


class Redrive(_Decision):
    """`force_outcome_unknown`: act again though an attempt may have acted, and nobody can look. It takes two."""

    force_outcome_unknown: bool = False


class Resolve(_Decision):
    """`force`: whatever a look says, or without one. It takes two operators."""

    force: bool = False


class ResourceOut(BaseModel):
    """A resource."""

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

    @classmethod
    def of(cls, row: Resource) -> "ResourceOut":
        """From its row."""
        return cls(**vars(row))


class JobOut(BaseModel):
    """A job."""

    id: int
    kind: JobKind
    state: JobState
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
    url: str

    @classmethod
    def of(cls, row: Job) -> "JobOut":
        """From its row."""
        return cls(**vars(row), url=job_url(row))


class ObservationOut(BaseModel):
    """What a worker saw at a stuck job's backend; `means` says it in words."""

    job_id: int
    fence: int
    found: Found
    means: str
    seen: Json | None
    observed_at: dt.datetime
    observed_by: str

    @classmethod
    def of(cls, look: Observation) -> "ObservationOut":
        """From its row."""
        return cls.model_validate(dataclasses.asdict(look) | {"means": look.means})


class ApprovalOut(BaseModel):
    """A forced action that waits for a second operator: the same of this job and fence, before `expires_at`."""

    action: str
    job_id: int
    fence: int
    reason: str
    proposed_by: str
    proposed_at: dt.datetime
    expires_at: dt.datetime

    @classmethod
    def of(cls, approval: Approval) -> "ApprovalOut":
        """From its row."""
        return cls(**vars(approval))


class Proposed(BaseModel):
    """The answer to the first of two operators: nothing was done yet. `new` is false when it had proposed before."""

    approval: ApprovalOut
    new: bool
    last_look: ObservationOut | None

    @classmethod
    def of(cls, approval: Approval, look: Observation | None) -> "Proposed":
        """From its row, and what the last look saw."""
        seen = None if look is None else ObservationOut.of(look)
        return cls(approval=ApprovalOut.of(approval), new=approval.new, last_look=seen)


class JobRef(BaseModel):
    """A job, as much as a DELETE needs to say."""

    id: int
    state: JobState
    url: str


class RequestOut(BaseModel):
    """Who asked for a job, when, and why."""

    actor: str
    at: dt.datetime
    reason: str | None
    request_id: uuid.UUID


class SeenOut(BaseModel):
    """What an attempt saw of the backend before it acted, and when it had."""

    before: Json | None
    after: Json | None


class AttemptOut(BaseModel):
    """One claim of a job."""

    fence: int
    worker: str
    claimed_at: dt.datetime
    started_at: dt.datetime | None
    finished_at: dt.datetime | None
    outcome: str | None
    error: str | None
    seen: SeenOut


class EventOut(BaseModel):
    """One line of evidence."""

    id: int
    at: dt.datetime
    event: str
    fence: int
    actor: str
    reason: str | None
    detail: Json | None


class JobStoryOut(JobOut):
    """A job with all that happened to it."""

    tenant: str
    resource_name: str
    request: RequestOut | None
    attempt_history: list[AttemptOut]
    events: list[EventOut]
    holds: Annotated[list["HoldOut"], Field(description="what keeps it from starting; for operators only")]
    breaker: Annotated["BreakerOut | None", Field(description="its backend's, while it waits; for operators only")]
    due_seconds: int | None
    stuck_since: dt.datetime | None
    approvals: Annotated[list[ApprovalOut], Field(description="what waits for a second operator; for operators only")]
    last_look: Annotated[ObservationOut | None, Field(description="at the fence it is stuck at; for operators only")]

    @classmethod
    def told(cls, story: JobStory, *, to_operator: bool) -> "JobStoryOut":
        """From its rows."""
        return cls(
            **vars(story.job),
            url=job_url(story.job),
            tenant=story.tenant,
            resource_name=story.resource_name,
            request=None if story.request is None else RequestOut(**vars(story.request)),
            attempt_history=[AttemptOut.model_validate(dataclasses.asdict(attempt)) for attempt in story.attempts],
            events=[EventOut.model_validate(dataclasses.asdict(event)) for event in story.events],
            holds=[HoldOut.of(hold) for hold in story.holds if to_operator],
            breaker=BreakerOut(**vars(story.breaker)) if story.breaker and to_operator else None,
            due_seconds=story.due_seconds,
            stuck_since=story.stuck_since,
            approvals=[ApprovalOut.of(approval) for approval in story.approvals if to_operator],
            last_look=ObservationOut.of(story.last_look) if story.last_look and to_operator else None,
        )


class Created(BaseModel):
    """The answer to a POST: not there yet, but it will be."""

    resource: ResourceOut
    job: JobOut


class Deleted(BaseModel):
    """The answer to a DELETE: winner and losers name the same job."""

    ok: bool = True
    already_deleted: bool
    resource: ResourceOut
    job: JobRef


class HoldOut(BaseModel):
    """A hold; in force until `released_at`."""

    id: int
    scope: HoldScope
    subject: str | None
    cause: HoldCause
    reason: str
    actor: str
    created_at: dt.datetime
    released_at: dt.datetime | None
    released_by: str | None
    release_reason: str | None

    @classmethod
    def of(cls, row: Hold) -> "HoldOut":
        """From its row."""
        return cls(**vars(row))


class HoldPage(BaseModel):
    """One page of holds."""

    items: list[HoldOut]
    next_cursor: str | None


class ResourcePage(BaseModel):
    """One page of resources."""

    items: list[ResourceOut]
    next_cursor: str | None


class JobPage(BaseModel):
    """One page of jobs."""

    items: list[JobOut]
    next_cursor: str | None


class JobCountsOut(BaseModel):
    """How many jobs a filter finds; `by_reason` counts the stuck ones. What has none is left out."""

    total: int
    by_state: dict[JobState, int]
    by_reason: dict[StuckReason, int]
    by_backend: dict[str, int]


class BreakerOut(BaseModel):
    """A backend out of reach: since when, why, and how many jobs wait for it."""

    backend: str
    state: Literal["open", "half_open"]
    since: dt.datetime
    why: str
    failures: int
    retry_at: dt.datetime
    waiting: int


class BreakerPage(BaseModel):
    """All of them: there are no more than backends."""

    items: list[BreakerOut]
    next_cursor: None = None


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
    state: Literal["running", "succeeded", "stopped"]
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


def job_url(job: Job) -> str:
    """Where the job is read."""
    return f"/v1/jobs/{job.id}"


Credentials = dict[str, Any]
