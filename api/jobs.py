"""Routes of jobs."""

from typing import Annotated

from fastapi import APIRouter, Query

from api.deps import Anyone, Operator, ask
from api.schemas import Cursor, JobId, JobOut, JobPage, JobStoryOut, Limit, Redrive, Word
from outbox import jobs, queries
from outbox.doorbell import bell
from outbox.states import JobKind, JobState, StuckReason

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])


@router.get("")
def list_jobs(
    who: Anyone,
    state: Annotated[JobState | None, Query()] = None,
    kind: Annotated[JobKind | None, Query()] = None,
    backend: Annotated[Word | None, Query()] = None,
    reason: Annotated[StuckReason | None, Query()] = None,
    cursor: Cursor = None,
    limit: Limit = 50,
) -> JobPage:
    """Newest first; a tenant sees its own."""
    page = ask(
        lambda session: queries.list_jobs(
            session,
            tenant=who.tenant,
            state=state,
            kind=kind,
            backend=backend,
            reason=reason,
            cursor=cursor,
            limit=limit,
        )
    )
    return JobPage(items=[JobOut.of(row) for row in page.items], next_cursor=page.next_cursor)


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
