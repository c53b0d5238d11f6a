"""Reads for the API and the CLI. Never writes.

- `pages`                   one page of a listing, and its cursor
- `resources`, `jobs`, `stops`, `operations`   listings and counts
- `story`                   one job with its attempts, its events and what it waits for
- `attempts`                a job's attempts, made from its events
- `abandoned`               what may have leaked with a server that is gone
- `acts`                    what people did beside jobs
"""

from outbox.approvals import Approval
from outbox.holds import Hold, known
from outbox.holds import over as holds_over
from outbox.observations import Observation
from outbox.queries.abandoned import Abandoned, abandoned
from outbox.queries.acts import Act, changes_of, list_acts
from outbox.queries.attempts import Attempt, Course, Seen, attempts
from outbox.queries.jobs import EVERY_JOB, JobCounts, JobFilter, ListedJob, count_jobs, list_jobs, with_tenants
from outbox.queries.operations import Adoption, Canary, Progress, Tally, list_adoptions, list_operations, operation
from outbox.queries.pages import Page
from outbox.queries.resources import (
    EVERY_RESOURCE,
    ListedResource,
    ResourceFilter,
    list_resources,
    resource,
    with_steps,
)
from outbox.queries.stops import Breaker, list_breakers, list_holds
from outbox.queries.story import JobStory, Request, job_story

__all__ = [
    "EVERY_JOB",
    "EVERY_RESOURCE",
    "Abandoned",
    "Act",
    "Adoption",
    "Approval",
    "Attempt",
    "Breaker",
    "Canary",
    "Course",
    "Hold",
    "JobCounts",
    "JobFilter",
    "JobStory",
    "ListedJob",
    "ListedResource",
    "Observation",
    "Page",
    "Progress",
    "Request",
    "ResourceFilter",
    "Seen",
    "Tally",
    "abandoned",
    "attempts",
    "changes_of",
    "count_jobs",
    "holds_over",
    "job_story",
    "known",
    "list_acts",
    "list_adoptions",
    "list_breakers",
    "list_holds",
    "list_jobs",
    "list_operations",
    "list_resources",
    "operation",
    "resource",
    "with_steps",
    "with_tenants",
]
