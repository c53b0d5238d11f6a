"""For which job a verb is called. A runner says it once; a backend that passes it on to its server asks for it.

The pair of job id and fence rises with each attempt at a resource: jobs of one resource run one at a time, later jobs
have greater ids, and each claim of a job has a greater fence. So a server that keeps the greatest pair it has seen of
an object knows late words of a worker that stood still.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True)
class Caller:
    """The job, and the fence of the attempt at it."""

    job_id: int
    fence: int


_caller: ContextVar[Caller | None] = ContextVar("caller", default=None)


def caller() -> Caller | None:
    """For a backend, in the thread of the verb: whose attempt it is; None outside of jobs, as for a person's look."""
    return _caller.get()


@contextmanager
def calling(job_id: int, fence: int) -> Iterator[None]:
    """Verbs that this thread calls meanwhile are those of an attempt at this job."""
    token = _caller.set(Caller(job_id, fence))
    try:
        yield
    finally:
        _caller.reset(token)
