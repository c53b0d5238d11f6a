"""Jobs: filters, an operator's decisions, and a job with its story."""

import dataclasses
import datetime as dt
import uuid
from typing import Annotated

from pydantic import (
    BaseModel,
    Field,
)

from api.schemas.fields import MAX_AGE_SECONDS, Cursor, Limit, Word, _In
from api.schemas.holds import BreakerOut, HoldOut
from outbox import actions
from outbox.approvals import Approval
from outbox.observations import Observation
from outbox.queries import JobFilter, JobStory
from outbox.rows import Job, Json
from outbox.snapshots import Snapshot
from outbox.states import (
    ForcedAction,
    Found,
    JobKind,
    JobState,
    Step,
    StuckReason,
)


class JobFilterIn(_In):
    """Which jobs are meant. `error` is a part of the last error, in any case. A tenant may name only itself."""

    state: JobState | None = None
    kind: JobKind | None = None
    backend: Word | None = None
    reason: StuckReason | None = None
    tenant: Word | None = None
    error: Word | None = None
    older_than_seconds: Annotated[int | None, Field(ge=0, le=MAX_AGE_SECONDS)] = None
    resource_id: uuid.UUID | None = None

    def meant(self) -> JobFilter:
        """The filter as the outbox takes it."""
        age = None if self.older_than_seconds is None else dt.timedelta(seconds=self.older_than_seconds)
        same = self.model_dump(include={"state", "kind", "backend", "reason", "tenant", "error", "resource_id"})
        return JobFilter(**same, older_than=age)


class JobListing(JobFilterIn):
    """Which jobs to list, and the page."""

    cursor: Cursor = None
    limit: Limit = 50


class _Decision(_In):
    """`fence` is the job's fence as the operator read it: a job that has moved since then is left alone."""

    reason: Word
    fence: Annotated[int, Field(ge=0, le=2**63 - 1)]


class Redrive(_Decision):
    """`force_outcome_unknown`: act again although the last attempt may have acted. It takes two operators."""

    force_outcome_unknown: bool = False


class Resolve(_Decision):
    """`force`: resolve without an inspection, or against it. It takes two operators."""

    force: bool = False


class Abandon(_Decision):
    """`reason`: the evidence that the object is gone with its server, such as a ticket or a certificate."""


class JobOut(BaseModel):
    """A job. `step` is a teardown's: at `wait` its resource is in quarantine until `purge_at`."""

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
    url: str

    @classmethod
    def of(cls, row: Job) -> "JobOut":
        """From its row."""
        return cls(**vars(row), url=job_url(row))


class ObservationOut(BaseModel):
    """What a worker found when it inspected a stuck job's backend; `means` says it in words."""

    job_id: int
    fence: int
    found: Found
    means: str
    seen: Json | None
    observed_at: dt.datetime
    observed_by: str

    @classmethod
    def of(cls, row: Observation) -> "ObservationOut":
        """From its row."""
        return cls.model_validate(dataclasses.asdict(row) | {"means": row.means})


class ApprovalOut(BaseModel):
    """A forced action that waits for a second operator, who must ask for the same before `expires_at`."""

    action: ForcedAction
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
    """The answer to the first of two operators: nothing was done yet. `new` is false when the proposal is older."""

    approval: ApprovalOut
    new: bool
    last_look: ObservationOut | None

    @classmethod
    def of(cls, proposed: actions.Proposed) -> "Proposed":
        """From the action's answer."""
        seen = None if proposed.last_look is None else ObservationOut.of(proposed.last_look)
        return cls(approval=ApprovalOut.of(proposed.approval), new=proposed.approval.new, last_look=seen)


class JobRef(BaseModel):
    """The job of a DELETE, in short."""

    id: int
    state: JobState
    url: str


class RequestOut(BaseModel):
    """Who asked for a job, when, why, and for whom."""

    actor: str
    at: dt.datetime
    reason: str | None
    on_behalf_of: str | None
    request_id: uuid.UUID


class SeenOut(BaseModel):
    """What an attempt saw of the backend before it acted, and afterwards."""

    before: Json | None
    after: Json | None


class AttemptOut(BaseModel):
    """One claim of a job. `step` is the teardown's step that it worked on."""

    fence: int
    step: Step | None
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


class SnapshotOut(BaseModel):
    """A final snapshot. `bytes`: how many are stored so far. It counts once it is verified; see docs/snapshots.md."""

    id: int
    bytes: int | None
    created_at: dt.datetime
    verified_at: dt.datetime | None
    expires_at: dt.datetime | None

    @classmethod
    def of(cls, row: Snapshot) -> "SnapshotOut":
        """From its row. Where it is stored is for operators, at a shell."""
        return cls(**{name: getattr(row, name) for name in cls.model_fields})


class ProgressOut(BaseModel):
    """How far a verb has come: `done` of `total`, in the unit `what`, such as `keys`. An unknown `total` is null."""

    fence: Annotated[int, Field(description="which attempt's it is")]
    done: int
    total: int | None
    what: str


class JobStoryOut(JobOut):
    """A job, and everything that happened to it."""

    tenant: str
    resource_name: str
    request: RequestOut | None
    purge_at: Annotated[dt.datetime | None, Field(description="its resource is not destroyed before")]
    attempt_history: list[AttemptOut]
    events: list[EventOut]
    snapshots: Annotated[list[SnapshotOut], Field(description="what its attempts have stored")]
    holds: Annotated[list["HoldOut"], Field(description="the holds that keep it from starting; for operators only")]
    breaker: Annotated[
        "BreakerOut | None",
        Field(description="its backend's open breaker, while the job is pending; for operators only"),
    ]
    due_seconds: int | None
    lease_expires_at: Annotated[dt.datetime | None, Field(description="until when a running job's claim holds")]
    progress: Annotated[
        ProgressOut | None, Field(description="how far the verb of an attempt had come when its worker last told")
    ]
    stuck_since: dt.datetime | None
    approvals: Annotated[
        list[ApprovalOut], Field(description="forced actions that wait for a second operator; for operators only")
    ]
    last_look: Annotated[
        ObservationOut | None, Field(description="the last inspection at the fence it is stuck at; for operators only")
    ]

    @classmethod
    def of_story(cls, story: JobStory, *, to_operator: bool) -> "JobStoryOut":
        """From its rows."""
        return cls(
            **vars(story.job),
            url=job_url(story.job),
            tenant=story.tenant,
            resource_name=story.resource_name,
            request=None if story.request is None else RequestOut(**vars(story.request)),
            purge_at=story.purge_at,
            attempt_history=[AttemptOut.model_validate(dataclasses.asdict(attempt)) for attempt in story.attempts],
            events=[EventOut.model_validate(dataclasses.asdict(event)) for event in story.events],
            snapshots=[SnapshotOut.of(one) for one in story.snapshots],
            holds=[HoldOut.of(hold) for hold in story.holds if to_operator],
            breaker=BreakerOut(**vars(story.breaker)) if story.breaker and to_operator else None,
            due_seconds=story.due_seconds,
            lease_expires_at=story.lease_expires_at,
            progress=None if story.progress is None else ProgressOut(**story.progress),
            stuck_since=story.stuck_since,
            approvals=[ApprovalOut.of(approval) for approval in story.approvals if to_operator],
            last_look=ObservationOut.of(story.last_look) if story.last_look and to_operator else None,
        )


class JobPage(BaseModel):
    """One page of jobs."""

    items: list[JobOut]
    next_cursor: str | None


class JobCountsOut(BaseModel):
    """How many jobs a filter finds; `by_reason` counts the stuck ones. Groups without jobs are left out."""

    total: int
    by_state: dict[JobState, int]
    by_reason: dict[StuckReason, int]
    by_backend: dict[str, int]


def job_url(job: Job) -> str:
    """The path by which the job is read."""
    return f"/v1/jobs/{job.id}"
