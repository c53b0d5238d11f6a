"""`deprovisioner jobs show`: a job's whole story, the most important first."""

from typing import assert_never

import click

from deprovisioner.cli.shell import cell, print_fields, print_table
from outbox import advice
from outbox.queries import Approval, Attempt, Hold, JobStory
from outbox.rows import Json
from outbox.snapshots import Snapshot
from outbox.states import BreakerState, ForcedAction, JobState, Step

# Longer than the longest pause between two sweeps, which are 5 s apart by default.
OVERDUE_SECONDS = 7
_WORDS = {
    ForcedAction.RESOLVE: "a resolve by force",
    ForcedAction.REDRIVE: "a redrive by force",
    ForcedAction.PURGE: "a purge",
    ForcedAction.ABANDON: "an abandonment",
}


def tell(story: JobStory) -> None:
    """What the job is, why it waits, what to run next, who asked for it, every attempt, every event."""
    job = story.job
    click.echo(f"job {job.id}: {job.kind} of {story.resource_name!r} of tenant {story.tenant} on {job.backend}")
    click.echo(_state(story))
    if job.state is not JobState.PENDING:
        for hold in story.holds:
            click.echo(f"does not start while there is {_hold_in_words(hold)}")
    for one in story.snapshots:
        _tell_snapshot(one)
    for approval in story.approvals:
        _tell_approval(approval)
    if story.last_look is not None:
        look = story.last_look
        click.echo(f"last inspection, by {look.observed_by} at {cell(look.observed_at)}: {look.means}")
    click.echo()
    for when, command in advice.next_steps(job):
        click.echo(f"next, {when}:\n  {command}")
    if job.step is Step.WAIT:
        click.echo(f"next, if it was deleted by mistake:\n  {advice.to_restore(job.resource_id)}")
    for hold in story.holds:
        click.echo(f"next, when the cause of hold {hold.id} is gone:\n  {advice.to_release(hold.id)}")
    if job.stuck_reason is not None:
        click.echo(f"more: docs/runbook.md, {job.stuck_reason}\n")
    redriven = next((e.at for e in reversed(story.events) if e.event == "redriven"), None)
    attempts = job.attempts if redriven is None else f"{job.attempts} since it was re-driven, at {cell(redriven)}"
    earlier = "of an earlier attempt: " if job.state is JobState.RUNNING and job.last_error else ""
    print_fields(vars(job) | {"attempts": attempts, "last_error": job.last_error and f"{earlier}{job.last_error}"})
    _tell_request(story)
    click.echo("\nattempts")
    for attempt in story.attempts:
        _tell_attempt(attempt)
    if not story.attempts:
        click.echo("(none)")
    click.echo("\nevents")
    print_table([vars(event) for event in story.events], ("at", "event", "fence", "actor", "reason", "detail"))


def _so_far(progress: Json) -> str:
    of = "" if progress["total"] is None else f" of {progress['total']:,}"
    return f"{progress['done']:,}{of} {progress['what']}"


def _tell_snapshot(one: Snapshot) -> None:
    size = f"{(one.bytes or 0) / 1e6:.1f} MB"
    if one.verified_at is not None:
        click.echo(f"snapshot {one.id}: {size}, verified at {cell(one.verified_at)}, kept until {cell(one.expires_at)}")
    else:
        click.echo(f"snapshot {one.id}: {size} stored so far, not verified")


def _state(story: JobStory) -> str:
    job = story.job
    match job.state:
        case JobState.PENDING:
            return f"pending: {_quarantine(story)}{_waits_for(story)}"
        case JobState.RUNNING:
            came = story.progress if story.progress and story.progress["fence"] == job.fence else None
            far = "" if came is None else f" It has come to {_so_far(came)}."
            return (
                f"running, with fence {job.fence}; the last attempt below names the worker. Its lease lasts until "
                f"{cell(story.lease_expires_at)}, the worker extends it; after that another worker takes the job over."
                f"{far}"
            )
        case JobState.STUCK:
            why = "" if job.stuck_reason is None else f", {job.stuck_reason}: {advice.means(job.stuck_reason)}"
            return f"stuck since {cell(story.stuck_since)}{why}"
        case JobState.SUCCEEDED | JobState.CANCELLED | JobState.ABANDONED:
            return f"{job.state} at {cell(job.finished_at)}"
        case never:
            assert_never(never)


def _quarantine(story: JobStory) -> str:
    if story.job.step is not Step.WAIT:
        return ""
    return f"its resource is in quarantine, and is not destroyed before {cell(story.purge_at)}; "


def _waits_for(story: JobStory) -> str:
    """Why a pending job does not run yet: holds first, then its backend's breaker, then its time."""
    job, breaker, due = story.job, story.breaker, story.due_seconds
    if story.holds:
        return f"it does not start while there is {' and '.join(map(_hold_in_words, story.holds))}"
    if breaker is not None:
        probe = (
            f"the next probe is due at {cell(breaker.retry_at)}"
            if breaker.state is BreakerState.OPEN
            else "a probe is due"
        )
        return f"{job.backend} is out of reach since {cell(breaker.since)} ({breaker.why}); {probe}"
    if due is None:
        return f"a worker claims it once it is due, at {cell(job.available_at)}"
    if due < OVERDUE_SECONDS:
        return "it is due; a worker claims it within seconds"
    return f"due for {due} s, and no worker has claimed it: is a worker running that serves {job.backend}?"


def _hold_in_words(hold: Hold) -> str:
    return f"{hold} (by {hold.actor}, {cell(hold.created_at)})"


def _tell_approval(approval: Approval) -> None:
    click.echo(
        f"{_WORDS[approval.action]} was proposed by {approval.proposed_by} at {cell(approval.proposed_at)}: "
        f"{approval.reason}"
    )
    click.echo(f"to approve it, another operator runs, with a token of their own, before {cell(approval.expires_at)}:")
    click.echo(f"  {advice.to_approve(approval)}\nto make a token: {advice.CREATE_COMMAND}")


def _tell_request(story: JobStory) -> None:
    click.echo("\nasked for")
    if story.request is None:
        click.echo("(not recorded: the job's first event is missing)")
    else:
        print_fields(vars(story.request))


def _tell_attempt(attempt: Attempt) -> None:
    click.echo(f"fence {attempt.fence}, by {attempt.worker}")
    times = {"claimed": attempt.claimed_at, "started": attempt.started_at, "ended": attempt.finished_at}
    told = {
        "step": attempt.step,
        "times": ", ".join(f"{word} {cell(at)}" for word, at in times.items()),
        "seen before": attempt.seen.before,
        "seen after": attempt.seen.after,
        "outcome": attempt.outcome,
        "error": attempt.error,
    }
    for name, value in told.items():
        click.echo(f"  {name:<11}  {cell(value)}")
