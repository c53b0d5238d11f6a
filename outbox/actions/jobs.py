"""What operators do with one stuck job: observe, redrive, resolve; and which jobs a caller may see."""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TypeVar

from outbox import jobs, observations
from outbox.actions.caller import Caller, Edge, Operator, named_operator, own_tenant
from outbox.approvals import Approval
from outbox.errors import NotATeardown, NotObserved
from outbox.observations import Observation
from outbox.queries import JobFilter, ResourceFilter
from outbox.rows import Job

Filter = TypeVar("Filter", JobFilter, ResourceFilter)

# An operator waits, and the database answers six small queries a second for each who does.
POLL_SECONDS = 0.15


def _silent(_: str) -> None:
    """No person waits at this edge."""


@dataclass(frozen=True)
class Proposed:
    """The answer to the first of two operators: what waits for the second, and what was last seen of the backend."""

    approval: Approval
    last_look: Observation | None


def within(who: Caller, wanted: Filter) -> Filter:
    """A filter, narrowed to the jobs or resources that the caller may see. Raises BadRequest."""
    return replace(wanted, tenant=own_tenant(who, wanted.tenant))


def redrive(edge: Edge, who: Operator, job_id: int, *, fence: int, reason: str, force: bool = False) -> Job | Proposed:
    """Give a stuck job fresh attempts. `force` acts again though the outcome is unknown, and takes two operators.

    Raises NotFound, JobNotStuck, FenceMismatch, NothingToForce, Forbidden.
    """
    if force:
        named_operator(who)
    act = jobs.redrive_forced if force else jobs.redrive
    done = edge.ask(lambda db: act(db, job_id, fence=fence, actor=who.actor, reason=reason))
    if isinstance(done, Approval):
        return proposed(edge, done)
    edge.ring()
    return done


def resolve(
    edge: Edge,
    who: Operator,
    job_id: int,
    *,
    fence: int,
    reason: str,
    seconds: float,
    force: bool = False,
    tell: Callable[[str], object] = _silent,
) -> Job | Proposed:
    """End a stuck job well: a worker inspects the backend first, and must not find the object.

    `force` takes the word of two operators instead. A stuck provision needs no inspection. Raises what `observe`
    raises but for NotATeardown, and StillThere, StillWanted, Forbidden.
    """
    if force:
        named_operator(who)
        done = edge.ask(lambda db: jobs.resolve_forced(db, job_id, fence=fence, actor=who.actor, reason=reason))
        return proposed(edge, done) if isinstance(done, Approval) else done
    with suppress(NotATeardown):
        observe(edge, who, job_id, fence=fence, seconds=seconds, tell=tell)
    return edge.ask(lambda db: jobs.resolve(db, job_id, fence=fence, actor=who.actor, reason=reason))


def proposed(edge: Edge, approval: Approval) -> Proposed:
    """The answer to the first of two operators."""
    last = edge.ask(lambda db: observations.last(db, approval.job_id, fence=approval.fence))
    return Proposed(approval, last)


def observe(
    edge: Edge,
    who: Operator,
    job_id: int,
    *,
    seconds: float,
    fence: int | None = None,
    tell: Callable[[str], object] = _silent,
) -> Observation:
    """Have a worker inspect the backend of a stuck teardown, and wait at most `seconds` for it; changes nothing.

    `fence` None is the job's own. `tell` gets a line for the person who waits. No transaction is open meanwhile.
    Raises NotFound, JobNotStuck, FenceMismatch, NotATeardown, NotObserved.
    """
    from outbox import doorbell  # noqa: PLC0415 - commands that ring no doorbell start without it

    asked = edge.ask(lambda db: observations.ask(db, job_id, actor=who.actor, fence=fence))
    doorbell.ring_to_observe()
    tell(f"waiting for a worker to inspect the backend, at most {seconds:g} s")
    deadline = time.monotonic() + seconds
    now: Observation | None = asked
    while now is not None and now.found is None and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
        now = edge.ask(lambda db: observations.find(db, asked.id))
    if now is None or now.found is None:
        raise NotObserved(
            f"no worker has inspected the backend of job {job_id} within {seconds:g} s: start a worker that serves it, "
            "or have two operators force a resolve"
        )
    tell(f"{now.observed_by} inspected it: {now.found}")
    return now
