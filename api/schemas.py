"""What comes in and goes out: the contract, checked at the edge."""

import dataclasses
import datetime as dt
import uuid
from typing import Annotated, Any

from fastapi import Path
from pydantic import AfterValidator, AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from outbox.approvals import Approval
from outbox.errors import BadRequest
from outbox.observations import Observation
from outbox.queries import JobStory
from outbox.rows import Job, Json, Resource
from outbox.states import Found, JobKind, JobState, ResourceStatus, StuckReason


def _storable(value: str) -> str:
    """PostgreSQL's text takes neither NUL nor half a surrogate pair, and no log is served by control characters."""
    if any(ord(c) < 32 or ord(c) == 127 or 0xD800 <= ord(c) <= 0xDFFF for c in value):
        raise ValueError("must not contain control characters")
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
Word = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_storable)]
ResourceId = Annotated[uuid.UUID, Path(description="the resource's UUID")]
JobId = Annotated[int, Path(ge=1, le=2**63 - 1, description="the job's number")]
Cursor = Annotated[str | None, Field(max_length=500, description="`next_cursor` of the page before")]
Limit = Annotated[int, Field(ge=1, le=200, description="rows a page")]
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


class JobFilter(_In):
    """Which jobs to list."""

    state: JobState | None = None
    kind: JobKind | None = None
    backend: Word | None = None
    reason: StuckReason | None = None
    cursor: Cursor = None
    limit: Limit = 50


class _Decision(_In):
    """`fence` is the one the operator saw: a job that has moved since is left alone."""

    reason: Word
    fence: Annotated[int, Field(ge=0, le=2**63 - 1)]


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
    """What a worker saw at a stuck job's backend."""

    job_id: int
    fence: int
    found: Found
    seen: Json | None
    observed_at: dt.datetime
    observed_by: str

    @classmethod
    def of(cls, look: Observation) -> "ObservationOut":
        """From its row."""
        return cls.model_validate(dataclasses.asdict(look))


class ApprovalOut(BaseModel):
    """A forced action that waits for a second operator, who says the same before `expires_at`."""

    action: str
    job_id: int
    fence: int
    proposed_by: str
    proposed_at: dt.datetime
    expires_at: dt.datetime


class Proposed(BaseModel):
    """The answer to the first of two operators: nothing was done yet."""

    approval: ApprovalOut

    @classmethod
    def of(cls, approval: Approval) -> "Proposed":
        """From its row."""
        return cls(approval=ApprovalOut(**vars(approval)))


class JobRef(BaseModel):
    """A job, as much as a DELETE needs to say."""

    id: int
    state: JobState
    url: str


class AttemptOut(BaseModel):
    """One claim of a job."""

    fence: int
    worker: str
    claimed_at: dt.datetime
    started_at: dt.datetime | None
    finished_at: dt.datetime | None
    outcome: str | None
    error: str | None


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
    attempt_history: list[AttemptOut]
    events: list[EventOut]

    @classmethod
    def told(cls, story: JobStory) -> "JobStoryOut":
        """From its rows."""
        return cls(
            **vars(story.job),
            url=job_url(story.job),
            tenant=story.tenant,
            attempt_history=[AttemptOut(**vars(attempt)) for attempt in story.attempts],
            events=[EventOut.model_validate(dataclasses.asdict(event)) for event in story.events],
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


class ResourcePage(BaseModel):
    """One page of resources."""

    items: list[ResourceOut]
    next_cursor: str | None


class JobPage(BaseModel):
    """One page of jobs."""

    items: list[JobOut]
    next_cursor: str | None


def job_url(job: Job) -> str:
    """Where the job is read."""
    return f"/v1/jobs/{job.id}"


Credentials = dict[str, Any]
