"""An operation as a person reads it: its progress, what went wrong, and what to run next.

It never says "succeeded": an operation only makes jobs pending, and each job tells how it ended.
"""

import shlex
from collections.abc import Iterator
from typing import assert_never

import click

from deprovisioner.cli.shell import UNITS, cell, print_fields, print_table
from outbox.queries import Canary, Progress
from outbox.rows import Json, Operation
from outbox.states import ItemOutcome, JobState, OperationKind, OperationState

_OPTIONS = {
    "reason": "--reason-was",
    "resource_id": "--resource",
}  # other options are named like their fields


def tell(operation: Operation, progress: Progress) -> None:
    """Print the operation, its numbers by backend, and what a person has to do next."""
    print_fields(words(operation))
    click.echo("\nprogress")
    tallies = {**progress.backends, "(all)": progress.all}
    done = _done(operation.kind)
    named = {"done": done, "failed": "refused" if operation.kind is OperationKind.ADOPT_PREVIEW else "failed"}
    counts = [{named.get(name, name): n for name, n in vars(tally).items()} for tally in tallies.values()]
    rows = [{"backend": name} | count for name, count in zip(tallies, counts, strict=True)]
    print_table(rows, tuple(rows[-1]))
    if progress.canaries:
        click.echo(f"\n{done} first")
        columns = ("backend", "job_id", "state", "outcome", "next_attempt_at")
        print_table([vars(canary) for canary in progress.canaries], columns)
    if progress.jobs:
        click.echo("\nits jobs now")
        print_fields(progress.jobs)
    click.echo()
    for line in _next(operation, progress):
        click.echo(line)


def words(operation: Operation) -> Json:
    """The operation; `state` says what has succeeded."""
    state = _ended_well(operation.kind) if operation.state is OperationState.SUCCEEDED else operation.state
    return vars(operation) | {"state": state}


def _ended_well(kind: OperationKind) -> str:
    match kind:
        case OperationKind.REDRIVE:
            return "re-driven"
        case OperationKind.OFFBOARD:
            return "deletes enqueued"
        case OperationKind.RESTORE:
            return "restores enqueued"
        case OperationKind.ADOPT_PREVIEW:
            return "inspected"
        case OperationKind.ADOPT:
            return "adoptions enqueued"
        case never:
            assert_never(never)


def _done(kind: OperationKind) -> str:
    match kind:
        case OperationKind.REDRIVE:
            return "re-driven"
        case OperationKind.OFFBOARD:
            return "enqueued"
        case OperationKind.RESTORE:
            return "restoring"
        case OperationKind.ADOPT_PREVIEW:
            return "adoptable"
        case OperationKind.ADOPT:
            return "enqueued"
        case never:
            assert_never(never)


def options(filter: Json, *command: str) -> list[str]:
    """The command that previews the bulk work on what the filter finds now."""
    said = [*command]
    for name, value in filter.items():
        if name == "older_than_seconds":
            said += ["--older-than", _age(value)]
        else:
            said += [_OPTIONS.get(name, f"--{name.replace('_', '-')}"), *([] if value is True else [str(value)])]
    return said


def _age(seconds: int) -> str:
    """Seconds as `--older-than` takes them: in the shortest unit that needs at most five digits."""
    unit, size = next((u, n) for u, n in UNITS.items() if seconds // n <= 99_999)
    return f"{seconds // size}{unit}"


def waits(progress: Progress) -> str:
    """What the operation waits for, for the line of the progress bar: holds, and the next attempts of canaries."""
    waiting = [f"waits for the release of {hold}" for hold in progress.holds]
    waiting += [_first(canary) for canary in progress.canaries if canary.next_attempt_at is not None]
    return f": {'; '.join(waiting)}" if waiting else ""


_BEGUN = (ItemOutcome.REDRIVEN, ItemOutcome.RESTORING)


def tell_first(progress: Progress) -> str:
    """The canaries that the other jobs of their backends still wait for."""
    return "; ".join(_first(c) for c in progress.canaries if c.outcome in _BEGUN and c.state != JobState.SUCCEEDED)


def _first(canary: Canary) -> str:
    at = f"waits for its next attempt at {cell(canary.next_attempt_at)}" if canary.next_attempt_at else ""
    return f"job {canary.job_id}, the first of {canary.backend}, {at or f'is {canary.state}'}"


def _next(operation: Operation, progress: Progress) -> Iterator[str]:
    running, tally = operation.state is OperationState.RUNNING, progress.all
    if running:
        yield f"it is running{waits(progress)}; to stop it:"
        yield f"  deprovisioner operations stop {operation.id} --reason …"
    if stuck := progress.jobs.get(JobState.STUCK, 0):
        more = ", …" if stuck > len(progress.stuck_jobs) else ""
        yield f"{_of_its_jobs(stuck)} stuck ({', '.join(map(str, progress.stuck_jobs))}{more}); to see what each needs:"
        yield f"  deprovisioner jobs show {progress.stuck_jobs[0]}"
        if operation.kind == OperationKind.OFFBOARD:
            yield f"  deprovisioner jobs list --state stuck --tenant {shlex.quote(operation.filter['tenant'])}"
    coming = sum(progress.jobs.get(state, 0) for state in (JobState.PENDING, JobState.RUNNING))
    if coming and not running:
        yield f"{_of_its_jobs(coming)} not done yet; to see them later:"
        yield f"  deprovisioner operations show {operation.id}"
    if tally.protected and not running:
        yield f"{tally.protected} protected and not deleted: to delete them, lift their protection and offboard again"
    if tally.stopped and not running:
        yield f"{tally.stopped} not started; once the cause is mended, preview what is left:"
        yield f"  deprovisioner {shlex.join(_again(operation))} --reason …"


def _again(operation: Operation) -> list[str]:
    """The command that previews what the operation would find now."""
    match operation.kind:
        case OperationKind.REDRIVE:
            return options(operation.filter, "jobs", "redrive-all")
        case OperationKind.OFFBOARD:
            return ["tenants", "offboard", operation.filter["tenant"]]
        case OperationKind.RESTORE:
            return options(operation.filter, "resources", "restore-all")
        case OperationKind.ADOPT_PREVIEW | OperationKind.ADOPT:
            return ["adopt", "--backend", operation.filter["backend"], "--from", "FILE"]
        case never:
            assert_never(never)


def _of_its_jobs(n: int) -> str:
    return f"{n} of its jobs {'is' if n == 1 else 'are'}"
