"""`deprovisioner jobs show`: a job's whole story, what matters first."""

import click

from outbox import advice
from outbox.cli.shell import cell, print_fields, print_table
from outbox.queries import Attempt, JobStory
from outbox.states import JobState


def tell(story: JobStory) -> None:
    """What it is and why it stands there, what to run next, who asked, every attempt, every event."""
    job = story.job
    click.echo(f"job {job.id}: {job.kind} of {story.resource_name!r} of tenant {story.tenant} on {job.backend}")
    click.echo(f"{_state(story)}\n")
    for hold in story.holds:
        click.echo(f"does not start while there is {hold} (by {hold.actor}, {cell(hold.created_at)})")
    for when, command in advice.next_steps(job):
        click.echo(f"next, {when}:\n  {command}")
    if job.stuck_reason is not None:
        click.echo(f"more: docs/runbook.md, {job.stuck_reason}\n")
    print_fields(vars(job))
    _tell_request(story)
    click.echo("\nattempts")
    for attempt in story.attempts:
        _tell_attempt(attempt)
    if not story.attempts:
        click.echo("(none)")
    click.echo("\nevents")
    print_table([vars(event) for event in story.events], ("at", "event", "fence", "actor", "reason", "detail"))


def _state(story: JobStory) -> str:
    job = story.job
    if job.stuck_reason is not None:
        since = story.events[-1].at if story.events else None
        return f"stuck since {cell(since)}, {job.stuck_reason}: {advice.MEANS[job.stuck_reason]}"
    if job.state is JobState.RUNNING:
        return f"running, with fence {job.fence}; its last attempt below says where"
    if job.state is JobState.PENDING:
        return f"pending: a worker takes it once it is due, at {cell(job.available_at)}"
    return f"{job.state} at {cell(job.finished_at)}"


def _tell_request(story: JobStory) -> None:
    click.echo("\nasked for")
    if story.request is None:
        click.echo("(nobody knows by whom: its first event is missing)")
    else:
        print_fields(vars(story.request))


def _tell_attempt(attempt: Attempt) -> None:
    click.echo(f"fence {attempt.fence}, by {attempt.worker}")
    times = {"claimed": attempt.claimed_at, "started": attempt.started_at, "ended": attempt.finished_at}
    told = {
        "times": ", ".join(f"{word} {cell(at)}" for word, at in times.items()),
        "seen before": attempt.seen.before,
        "seen after": attempt.seen.after,
        "outcome": attempt.outcome,
        "error": attempt.error,
    }
    for name, value in told.items():
        click.echo(f"  {name:<11}  {cell(value)}")
