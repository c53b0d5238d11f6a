"""What a stuck job means, in words for whoever is paged, and what to run next. `docs/runbook.md` has the long form."""

from outbox.rows import Job
from outbox.states import StuckReason

MEANS = {
    StuckReason.ATTEMPTS_EXHAUSTED: "it failed at each of its attempts; the last error says at what. It is safe to try "
    "again once the cause is mended: a new attempt looks before it acts",
    StuckReason.REFUSED: "the backend was asked and it must not be done: what bears the name is not what was deleted, "
    "or a rule forbids it. Find out whose it is before anything else",
    StuckReason.OUTCOME_UNKNOWN: "an attempt may have acted, and this kind of backend cannot be looked at: only a "
    "person can tell whether it happened",
}

# ID and FENCE are the job's; the reason is the operator's to say.
_REDRIVE = "deprovisioner jobs redrive {id} --fence {fence} --reason 'WHY'"
_RESOLVE = "deprovisioner jobs resolve {id} --fence {fence} --reason 'WHY'"
_OBSERVE = "deprovisioner jobs observe {id}"

NEXT = {
    StuckReason.ATTEMPTS_EXHAUSTED: (("once the cause is mended", _REDRIVE),),
    StuckReason.REFUSED: (
        ("see what is there now", _OBSERVE),
        ("once it is what was deleted again, or gone", _REDRIVE),
    ),
    StuckReason.OUTCOME_UNKNOWN: (
        ("if it did happen (a second operator must say so too)", _RESOLVE + " --force"),
        ("if it did not (a second operator must say so too)", _REDRIVE + " --force-outcome-unknown"),
    ),
}


def next_steps(job: Job) -> list[tuple[str, str]]:
    """When, and the command for it with the job's id and fence; none for a job that needs nobody."""
    if job.stuck_reason is None:
        return []
    return [(when, command.format(id=job.id, fence=job.fence)) for when, command in NEXT[job.stuck_reason]]
