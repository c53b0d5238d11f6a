"""Routes of jobs."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from threading import BoundedSemaphore
from typing import Annotated

from fastapi import APIRouter, Query, Response
from fastapi.concurrency import run_in_threadpool

from api.deps import Anyone, Operator, ask, edge
from api.problems import Problem
from api.schemas.fields import Number
from api.schemas.jobs import (
    Abandon,
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
from api.turns import in_turn
from outbox import actions, queries
from outbox.actions import Proposed as ProposedAction
from outbox.rows import Job

# How long a request waits for a worker's inspection. Two sweeps at their default: with a dead broker a worker inspects
# at its next sweep. Proxies wait longer.
OBSERVE_SECONDS = 10
# A request that waits keeps one of the process's 40 threads. At most a fifth of them wait; the rest serve others.
WAITING = 8
_seats = BoundedSemaphore(WAITING)

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])


@router.get("")
def list_jobs(who: Anyone, wanted: Annotated[JobListing, Query()]) -> JobPage:
    """Jobs, newest first; a tenant sees its own."""
    meant = actions.within(who, wanted.meant())
    page = ask(lambda session: queries.list_jobs(session, meant, cursor=wanted.cursor, limit=wanted.limit))
    return JobPage(items=[JobOut.of(row) for row in page.items], next_cursor=page.next_cursor)


@router.get("/counts")
def count_jobs(who: Anyone, wanted: Annotated[JobFilterIn, Query()]) -> JobCountsOut:
    """How many jobs the filters find, by state, reason and backend; a tenant counts its own."""
    meant = actions.within(who, wanted.meant())
    return JobCountsOut(**vars(ask(lambda session: queries.count_jobs(session, meant))))


@router.get("/{job_id}")
def show(job_id: Number, who: Anyone) -> JobStoryOut:
    """One job with its attempts and events."""
    story = ask(lambda session: queries.job_story(session, job_id, tenant=who.tenant))
    return JobStoryOut.of_story(story, to_operator=who.tenant is None)


@router.post("/{job_id}/redrive", responses={202: {"model": Proposed}})
async def redrive(job_id: Number, body: Redrive, who: Operator, response: Response) -> JobOut | Proposed:
    """Give a stuck job fresh attempts: it inspects the backend before it acts.

    With `force_outcome_unknown` it acts though nothing can tell what the last attempt did; that takes two operators.
    """
    force = body.force_outcome_unknown
    act = partial(actions.redrive, edge, who, job_id, fence=body.fence, reason=body.reason, force=force)
    return _decided(await in_turn(job_id, act), response)


@router.post("/{job_id}/observe")
def observe(job_id: Number, who: Operator) -> ObservationOut:
    """Have a worker inspect the backend of a stuck teardown; changes nothing."""
    with _a_seat():
        return ObservationOut.of(actions.observe(edge, who, job_id, seconds=OBSERVE_SECONDS))


@router.post("/{job_id}/resolve", responses={202: {"model": Proposed}})
async def resolve(job_id: Number, body: Resolve, who: Operator, response: Response) -> JobOut | Proposed:
    """End a stuck job as succeeded, after a worker has inspected the backend and the object is gone.

    With `force` the word of two operators takes the place of the inspection.
    """
    act = partial(
        actions.resolve,
        edge,
        who,
        job_id,
        fence=body.fence,
        reason=body.reason,
        force=body.force,
        seconds=OBSERVE_SECONDS,
    )
    if body.force:
        return _decided(await in_turn(job_id, act), response)
    with _a_seat():
        return _decided(await run_in_threadpool(act), response)


@router.post("/{job_id}/abandon", responses={202: {"model": Proposed}})
async def abandon(job_id: Number, body: Abandon, who: Operator, response: Response) -> JobOut | Proposed:
    """End a teardown whose backend is retired as abandoned, never as deleted; that takes two operators."""
    act = partial(actions.abandon, edge, who, job_id, fence=body.fence, reason=body.reason)
    return _decided(await in_turn(job_id, act), response)


@contextmanager
def _a_seat() -> Iterator[None]:
    """One of the threads that may wait for a worker; 503 at once when all of them do."""
    if not _seats.acquire(blocking=False):
        detail = f"{WAITING} requests wait for workers already: try again, or use `deprovisioner jobs observe`"
        raise Problem(503, "busy", detail, headers={"Retry-After": str(OBSERVE_SECONDS)})
    try:
        yield
    finally:
        _seats.release()


def _decided(done: Job | ProposedAction, response: Response) -> JobOut | Proposed:
    if isinstance(done, Job):
        return JobOut.of(done)
    response.status_code = 202
    return Proposed.of(done)
