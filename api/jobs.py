"""Routes of jobs."""

from typing import Annotated

from fastapi import APIRouter, Query

from api.deps import Anyone, Operator, ask
from api.schemas import JobCountsOut, JobFilterIn, JobId, JobListing, JobOut, JobPage, JobStoryOut, Redrive
from outbox import jobs, queries
from outbox.doorbell import bell

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
    return JobStoryOut.told(ask(lambda session: queries.job_story(session, job_id, tenant=who.tenant)))


@router.post("/{job_id}/redrive")
def redrive(job_id: JobId, body: Redrive, who: Operator) -> JobOut:
    """Give a stuck job fresh attempts; it observes before it acts."""
    job = ask(lambda session: jobs.redrive(session, job_id, fence=body.fence, actor=who.actor, reason=body.reason))
    bell.ring()
    return JobOut.of(job)
