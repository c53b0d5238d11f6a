"""A stuck job in words: why it is stuck, what an inspection found, and which command to run next.

`docs/runbook.md` has the long form, and names the same commands.
"""

import json
import uuid
from typing import Any, assert_never

from outbox.approvals import Approval
from outbox.rows import Job, Json
from outbox.states import ForcedAction, Found, JobKind, StuckReason

# When to run a command, and the command. What stands in braces is the job's; the operator replaces WHY.
Step = tuple[str, str]
_REDRIVE = "deprovisioner jobs redrive {id} --fence {fence} --reason 'WHY'"
_RESOLVE = "deprovisioner jobs resolve {id} --fence {fence} --reason 'WHY'"
_OBSERVE = "deprovisioner jobs observe {id}"
_RESTORE = "deprovisioner resources restore {resource_id} --reason 'WHY'"
_DELETE = "deprovisioner resources delete {resource_id} --reason 'WHY'"
# A stuck restore has left its object in quarantine; to resolve it is to give the restore up.
_STEPS_OF_A_RESTORE: tuple[Step, ...] = (
    ("once the cause is mended", _REDRIVE),
    ("if it cannot be given back: its resource is deleted again, with a new grace", _RESOLVE),
)
_STEPS_OF_A_RELEASE: tuple[Step, ...] = (
    ("once the cause is mended", _REDRIVE),
    ("if a person has taken the mark off, or will: the resource is out of management at once", _RESOLVE),
)
# A stuck provision has no object to inspect, and cannot be resolved while its resource is wanted.
_STEPS_OF_A_PROVISION: tuple[Step, ...] = (
    ("once the cause is mended", _REDRIVE),
    ("if the resource is no longer wanted, delete it", _DELETE),
    ("and then", _RESOLVE),
)
_NOTHING: tuple[Any, ...] = (None, "", [], {})


def means(reason: StuckReason) -> str:
    """Why the job is stuck, for the person who has to move it on."""
    match reason:
        case StuckReason.ATTEMPTS_EXHAUSTED:
            return (
                "every attempt failed, and the last error says why. Once the cause is mended, a re-drive is safe: each "
                "new attempt inspects the backend before it acts"
            )
        case StuckReason.REFUSED:
            return (
                "the worker or its server refused to act: the object under this name is not the one that was deleted, "
                "a rule forbids it, or the service's account lacks a right; the last error says which. Find out whose "
                "object it is before you do anything else"
            )
        case StuckReason.OUTCOME_UNKNOWN:
            return (
                "an attempt may have acted, and backends of this kind cannot be inspected: only a person can tell "
                "whether it happened"
            )
        case StuckReason.SNAPSHOT_FAILED:
            return (
                "no snapshot of it could be taken, or the one that was taken could not be restored; the last error "
                "says why. It is in quarantine, and nothing is destroyed"
            )
        case never:
            assert_never(never)


def steps(reason: StuckReason) -> tuple[Step, ...]:
    """What moves a stuck teardown on: when, and the command with the job's fields in braces."""
    match reason:
        case StuckReason.ATTEMPTS_EXHAUSTED:
            return (("once the cause is mended", _REDRIVE),)
        case StuckReason.REFUSED:
            return (
                ("see what is there now", _OBSERVE),
                ("if a right or the ownership is missing: grant it to the service's account, and then", _REDRIVE),
                ("if it is the object that was deleted after all (the right server, its own name)", _REDRIVE),
                (
                    "if it was renamed or its mark was changed: find its owner; only when the owner says that it may "
                    "go, undo that, and inspect again",
                    _OBSERVE,
                ),
                ("if it is gone (a worker inspects the backend first, and must find nothing)", _RESOLVE),
                (
                    "if its server lost its data for good (a second operator must confirm)",
                    _forced(ForcedAction.RESOLVE),
                ),
            )
        case StuckReason.OUTCOME_UNKNOWN:
            return (
                ("if it happened (a second operator must confirm)", _forced(ForcedAction.RESOLVE)),
                ("if it did not happen (a second operator must confirm)", _forced(ForcedAction.REDRIVE)),
            )
        case StuckReason.SNAPSHOT_FAILED:
            return (("once the cause is mended", _REDRIVE), ("if it was deleted by mistake", _RESTORE))
        case never:
            assert_never(never)


def next_steps(job: Job) -> list[Step]:
    """What moves this job on: when, and the command; empty for a job that is not stuck."""
    if job.stuck_reason is None:
        return []
    match job.kind:
        case JobKind.DEPROVISION:
            found = steps(job.stuck_reason)
        case JobKind.PROVISION:
            found = _STEPS_OF_A_PROVISION
        case JobKind.RESTORE:
            found = _STEPS_OF_A_RESTORE
        case JobKind.RELEASE:
            found = _STEPS_OF_A_RELEASE
        case never:
            assert_never(never)
    return [(when, command.format(**vars(job))) for when, command in found]


# How an operator gets a token; a forced action needs two operators, each with their own.
CREATE_COMMAND = "deprovisioner token create --role operator --name NAME"


def to_approve(approval: Approval) -> str:
    """The command by which the second operator approves."""
    return f"{_forced(approval.action)} --token TOKEN".format(id=approval.job_id, fence=approval.fence)


def to_restore(resource_id: uuid.UUID) -> str:
    """The command that takes a deletion back."""
    return _RESTORE.format(resource_id=resource_id)


def to_purge(resource_id: uuid.UUID) -> str:
    """The command that lets a destruction begin before its time."""
    return f"deprovisioner resources purge {resource_id} --reason 'WHY'"


def to_release(hold_id: int) -> str:
    """The command that ends a hold."""
    return f"deprovisioner hold release {hold_id} --reason 'WHY'"


def _forced(action: ForcedAction) -> str:
    match action:
        case ForcedAction.ABANDON:
            return "deprovisioner jobs abandon {id} --fence {fence} --reason 'EVIDENCE'"
        case ForcedAction.RESOLVE:
            return f"{_RESOLVE} --force"
        case ForcedAction.REDRIVE:
            return f"{_REDRIVE} --force-outcome-unknown"
        case ForcedAction.PURGE:
            return "deprovisioner resources purge --job {id} --reason 'WHY'"
        case never:
            assert_never(never)


def seen_in_words(found: Found, seen: Json | None) -> str:
    """What an inspection found. The first words tell the five outcomes apart; the rest says what was seen."""
    seen = seen or {}
    missing = missing_parts(seen)
    there = "; ".join(f"{name} {_plain(value)}" for name, value in seen.items() if name not in missing)
    match found:
        case Found.ABSENT if "never_made" in seen:
            return "there is nothing to look for: it was never made"
        case Found.ABSENT:
            return "it is gone: the worker inspected the server that had it, and did not find it"
        case Found.SAME if missing:
            return f"part of it is still there: {there} (gone: {', '.join(missing)})"
        case Found.SAME:
            return f"it is still there: {there}"
        case Found.DIFFERENT:
            return f"it may still exist: {seen.get('why', 'something else is there')}"
        case Found.UNAVAILABLE:
            return f"the backend could not be inspected: {seen.get('error', 'no answer')}"
        case Found.UNOBSERVABLE:
            return "backends of this kind cannot be inspected"
        case never:
            assert_never(never)


def missing_parts(seen: Json) -> list[str]:
    """What an inspection did not find of an object, of which it found another part."""
    return [name for name, value in seen.items() if value in _NOTHING]


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_plain, value))
    return value if isinstance(value, str) else json.dumps(value)
