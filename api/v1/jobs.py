"""Routes of jobs."""

from contextlib import suppress
from threading import BoundedSemaphore
from typing import Annotated

from fastapi import APIRouter, Query, Response

from api.deps import Anyone, Caller, Operator, ask
from api.problems import Problem
from api.schemas.fields import JobId
from api.schemas.jobs import (
    JobCountsOut,
    JobFilterIn,
    JobListing,
    JobOut,
    JobPage,
    JobStoryOut,
    ObservationOut,
    Proposed,
    Redrive,
    Resolve,
)
from outbox import jobs, observations, queries
from outbox.approvals import Approval
from outbox.doorbell import bell
from outbox.errors import NotATeardown
from outbox.observations import Observation

# Two sweeps at their default: a look comes at a worker's next one though the broker is dead. Proxies wait longer.
LOOK_SECONDS = 10
# Who waits keeps one of the process's 40 threads; a fifth of them, so that everybody else is served.
WAITING = 8
_room = BoundedSemaphore(WAITING)

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])


@router.get("")
def list_jobs(who: Anyone, wanted: Annotated[JobListing, Query()]) -> JobPage:
    """Newest first; a tenant sees its own."""
    meant = wanted.seen_by(who.tenant)
    page = ask(lambda session: queries.list_jobs(session, meant, cursor=wanted.cursor, limit=wanted.limit))
    return JobPage(items=[JobOut.of(row) for row in page.items], next_cursor=page.next_cursor)


@router.get("/counts")
def count_jobs(who: Anyone, wanted: Annotated[JobFilterIn, Query()]) -> JobCountsOut:
    """How many the same filters find, by state, reason and backend; a tenant counts its own."""
    meant = wanted.seen_by(who.tenant)
    return JobCountsOut(**vars(ask(lambda session: queries.count_jobs(session, meant))))


@router.get("/{job_id}")
def show(job_id: JobId, who: Anyone) -> JobStoryOut:
    """One job with its attempts and events."""
    story = ask(lambda session: queries.job_story(session, job_id, tenant=who.tenant))
    return JobStoryOut.told(story, to_operator=who.tenant is None)


@router.post("/{job_id}/redrive", responses={202: {"model": Proposed}})
def redrive(job_id: JobId, body: Redrive, who: Operator, response: Response) -> JobOut | Proposed:
    """Give a stuck job fresh attempts; it observes before it acts, unless two operators force what nobody can see."""
    act = jobs.redrive_forced if body.force_outcome_unknown else jobs.redrive
    done = ask(lambda session: act(session, job_id, fence=body.fence, actor=who.actor, reason=body.reason))
    if isinstance(done, Approval):
        return _proposed(done, response)
    bell.ring()
    return JobOut.of(done)


@router.post("/{job_id}/observe")
def observe(job_id: JobId, who: Operator) -> ObservationOut:
    """Have a worker look at the backend of a stuck teardown; changes nothing."""
    return ObservationOut.of(_look(job_id, who))


@router.post("/{job_id}/resolve", responses={202: {"model": Proposed}})
def resolve(job_id: JobId, body: Resolve, who: Operator, response: Response) -> JobOut | Proposed:
    """It did happen: a worker looks, and the job ends well if the object is gone; or two operators force it."""
    with suppress(NotATeardown):
        if not body.force:
            _look(job_id, who, fence=body.fence)
    act = jobs.resolve_forced if body.force else jobs.resolve
    done = ask(lambda session: act(session, job_id, fence=body.fence, actor=who.actor, reason=body.reason))
    return _proposed(done, response) if isinstance(done, Approval) else JobOut.of(done)


def _look(job_id: int, who: Caller, *, fence: int | None = None) -> Observation:
    """What a worker sees, waited for; 503 at once while so many wait already that others would not be served."""
    if not _room.acquire(blocking=False):
        detail = f"{WAITING} requests wait for workers' looks already: ask again, or use `deprovisioner jobs observe`"
        raise Problem(503, "busy", detail, headers={"Retry-After": str(LOOK_SECONDS)})
    try:
        return observations.look(ask, job_id, actor=who.actor, fence=fence, seconds=LOOK_SECONDS)
    finally:
        _room.release()


def _proposed(approval: Approval, response: Response) -> Proposed:
    response.status_code = 202
    look = ask(lambda session: observations.last(session, approval.job_id, fence=approval.fence))
    return Proposed.of(approval, look)
