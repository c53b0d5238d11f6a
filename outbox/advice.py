"""What a job's state and a look's find mean, in words for whoever is paged, and what to run next.

`docs/runbook.md` has the long form, and says the same.
"""

import json
from typing import Any, assert_never

from outbox.approvals import Action, Approval
from outbox.rows import Job, Json
from outbox.states import Found, JobKind, StuckReason

MEANS = {
    StuckReason.ATTEMPTS_EXHAUSTED: "it failed at each of its attempts; the last error says at what. It is safe to try "
    "again once the cause is mended: a new attempt looks before it acts",
    StuckReason.REFUSED: "the backend was asked and it must not be done: what bears the name is not what was deleted, "
    "or a rule forbids it. Find out whose it is before anything else",
    StuckReason.OUTCOME_UNKNOWN: "an attempt may have acted, and this kind of backend cannot be looked at: only a "
    "person can tell whether it happened",
}

# What stands in braces is the job's; the reason is the operator's to say.
_REDRIVE = "deprovisioner jobs redrive {id} --fence {fence} --reason 'WHY'"
_RESOLVE = "deprovisioner jobs resolve {id} --fence {fence} --reason 'WHY'"
_OBSERVE = "deprovisioner jobs observe {id}"
_DELETE = "deprovisioner resources delete {resource_id} --reason 'WHY'"
_FORCED: dict[Action, str] = {"resolve": f"{_RESOLVE} --force", "redrive": f"{_REDRIVE} --force-outcome-unknown"}

NEXT = {
    StuckReason.ATTEMPTS_EXHAUSTED: (("once the cause is mended", _REDRIVE),),
    StuckReason.REFUSED: (
        ("see what is there now", _OBSERVE),
        ("once it is what was deleted again (the right server, its own name)", _REDRIVE),
        ("if it is gone (a worker looks, and only then)", _RESOLVE),
    ),
    StuckReason.OUTCOME_UNKNOWN: (
        ("if it did happen (a second operator must say so too)", _FORCED["resolve"]),
        ("if it did not (a second operator must say so too)", _FORCED["redrive"]),
    ),
}
# A birth leaves nothing to look at, or to resolve while somebody wants it.
NEXT_OF_BIRTH = (
    ("once the cause is mended", _REDRIVE),
    ("if nobody wants it any more: delete its resource", _DELETE),
    ("and then", _RESOLVE),
)


_NOTHING: tuple[Any, ...] = (None, "", [], {})


def next_steps(job: Job) -> list[tuple[str, str]]:
    """When, and the command for it with the job's id and fence; none for a job that needs nobody."""
    if job.stuck_reason is None:
        return []
    steps = NEXT[job.stuck_reason] if job.kind is JobKind.DEPROVISION else NEXT_OF_BIRTH
    return [(when, command.format(**vars(job))) for when, command in steps]


def to_approve(approval: Approval) -> str:
    """The command of the second operator."""
    return _FORCED[approval.action].format(id=approval.job_id, fence=approval.fence)


def seen_in_words(found: Found, seen: Json | None) -> str:
    """What a look came to: the first words say which of the five, the others what was seen."""
    seen = seen or {}
    missing = [name for name, value in seen.items() if value in _NOTHING]
    there = "; ".join(f"{name} {_plain(value)}" for name, value in seen.items() if name not in missing)
    match found:
        case Found.ABSENT if "never_made" in seen:
            return "there is nothing to look for: it was never made"
        case Found.ABSENT:
            return "it is gone: it was looked for on its own server, and is not there"
        case Found.SAME if missing:
            return f"part of it is still there: {there} (gone: {', '.join(missing)})"
        case Found.SAME:
            return f"it is still there: {there}"
        case Found.DIFFERENT:
            return f"it was not seen gone: {seen.get('why', 'something else is there')}"
        case Found.UNAVAILABLE:
            return f"the backend did not let itself be looked at: {seen.get('error', 'no answer')}"
        case Found.UNOBSERVABLE:
            return "no look can tell on this kind of backend"
        case never:
            assert_never(never)


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_plain, value))
    return value if isinstance(value, str) else json.dumps(value)
