"""`deprovisioner jobs`: read the outbox, and move stuck jobs on."""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from deprovisioner.cli.decisions import as_approval, as_observation, operator_of, show_proposal, token_option
from deprovisioner.cli.shell import (
    AGE,
    WORDS,
    Choice,
    as_json_option,
    edge,
    example,
    main,
    me,
    must_exist,
    operate,
    print_fields,
    print_json,
    show_page,
)
from outbox.states import Found, JobKind, JobState, StuckReason

if TYPE_CHECKING:
    from outbox.actions import Edge, Proposed
    from outbox.rows import Job


@main.group()
def jobs() -> None:
    """Read the outbox, and move stuck jobs on."""
    operate()


def filter_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options that say which jobs are meant: the fields of `queries.JobFilter`."""
    for option in reversed(
        (
            click.option("--state", type=Choice(JobState)),
            click.option("--reason", type=Choice(StuckReason)),
            click.option("--kind", type=Choice(JobKind)),
            click.option("--backend", type=WORDS),
            click.option("--tenant", type=WORDS),
            click.option(
                "--error", type=WORDS, metavar="TEXT", help="What the last error contains, in any case; no wildcards."
            ),
            click.option(
                "--older-than", type=AGE, metavar="AGE", help="Created at least that long ago: 90s, 15m, 2h, 3d."
            ),
        )
    ):
        command = option(command)
    return command


@jobs.command(
    "list",
    epilog=example(
        "deprovisioner jobs list --state stuck --backend pg-main --older-than 1h",
        "deprovisioner jobs list --state stuck --error 'no space' --counts",
    ),
)
@filter_options
@click.option("--counts", is_flag=True, help="Print how many jobs there are, by state, reason and backend.")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True)
@click.option("--cursor", type=WORDS, help="`next_cursor` of the page before.")
@as_json_option
def jobs_list(counts: bool, cursor: str | None, limit: int, as_json: bool, **filters: Any) -> None:
    """Jobs, newest first."""
    from outbox import db, queries

    wanted = queries.JobFilter(**filters)
    if counts:
        if cursor is not None:
            raise click.UsageError("--counts counts the jobs of all pages: leave --cursor out")
        with db.statement() as session:
            found = vars(queries.count_jobs(session, wanted))
            if not found["total"]:
                must_exist(session, backend=wanted.backend, tenant=wanted.tenant)
        print_json(found) if as_json else _show_counts(found)
        return
    with db.statement() as session:
        page = queries.with_tenants(session, queries.list_jobs(session, wanted, cursor=cursor, limit=limit))
        if not page.items:
            must_exist(session, backend=wanted.backend, tenant=wanted.tenant)
    columns = ("id", "kind", "state", "step", "stuck_reason", "tenant", "resource_id", "backend", "fence", "attempts")
    show_page(page, (*columns, "last_error"), as_json)


def _show_counts(found: dict[str, Any]) -> None:
    click.echo(f"total  {found['total']}")
    for title in ("by_state", "by_reason", "by_backend"):
        if found[title]:
            click.echo(f"\n{title.replace('_', ' ')}")
            print_fields(found[title])


@jobs.command("show", epilog=example("deprovisioner jobs show 42"))
@click.argument("job_id", type=click.IntRange(1, 2**63 - 1))
@as_json_option
def jobs_show(job_id: int, as_json: bool) -> None:
    """One job's whole story: its state, why, what to run next, who asked for it, every attempt, every event."""
    from deprovisioner.cli.story import tell
    from outbox import db, queries

    with db.statement() as session:
        story = queries.job_story(session, job_id)
    if as_json:
        parts = dataclasses.asdict(story)
        parts["approvals"] = [as_approval(approval) for approval in story.approvals]
        parts["last_look"] = story.last_look and as_observation(story.last_look)
        print_json(parts.pop("job") | {"attempt_history": parts.pop("attempts")} | parts)
    else:
        tell(story)


_job = click.argument("job_id", type=click.IntRange(1, 2**63 - 1))
_fence = click.option("--fence", type=click.IntRange(0), required=True, help="The fence that `jobs show` printed.")
_reason = click.option("--reason", type=WORDS, required=True, help="Why; stored with the job.")
_wait = click.option(
    "--wait",
    type=click.FloatRange(0, 600),
    default=30,
    show_default=True,
    help="How many seconds to wait for a worker to inspect the backend.",
)


@jobs.command("redrive", epilog=example("deprovisioner jobs redrive 42 --fence 7 --reason 'disk was full, is not now'"))
@_job
@_fence
@_reason
@click.option(
    "--force-outcome-unknown",
    "force",
    is_flag=True,
    help="Act again although the last attempt may have acted, and nothing can tell. Takes two operators.",
)
@token_option
@as_json_option
def jobs_redrive(job_id: int, fence: int, reason: str, force: bool, token: str | None, as_json: bool) -> None:
    """Give a stuck job fresh attempts. It inspects the backend before it acts."""
    from outbox import actions

    who = operator_of(token) if force else me()
    done = actions.redrive(edge(), who, job_id, fence=fence, reason=reason, force=force)
    _show_decision(done, as_json)


@jobs.command("observe", epilog=example("deprovisioner jobs observe 42"))
@_job
@_wait
@as_json_option
def jobs_observe(job_id: int, wait: float, as_json: bool) -> None:
    """Have a worker inspect the backend of a stuck teardown. Changes nothing.

    absent: the object is gone. same: it is there, or a part of it. different: another object has its name, it was
    renamed, or this is another server. unavailable: the backend did not answer. unobservable: backends of this kind
    cannot be inspected. The exit code is 1 for the last two.
    """
    from outbox import actions

    seen = actions.observe(_edge_with_log(), me(), job_id, seconds=wait, tell=_tell)
    print_json(as_observation(seen)) if as_json else print_fields(as_observation(seen))
    if seen.found in (Found.UNAVAILABLE, Found.UNOBSERVABLE):
        raise SystemExit(1)


@jobs.command(
    "resolve", epilog=example("deprovisioner jobs resolve 42 --fence 7 --reason 'dropped by hand, ticket 811'")
)
@_job
@_fence
@_reason
@_wait
@click.option("--force", is_flag=True, help="Resolve without an inspection, or against it. Takes two operators.")
@token_option
@as_json_option
def jobs_resolve(
    job_id: int, fence: int, reason: str, wait: float, force: bool, token: str | None, as_json: bool
) -> None:
    """End a stuck job as succeeded, after a worker has inspected the backend and the object is gone."""
    from outbox import actions

    who = operator_of(token) if force else me()
    done = actions.resolve(
        _edge_with_log(), who, job_id, fence=fence, reason=reason, force=force, seconds=wait, tell=_tell
    )
    _show_decision(done, as_json)


def _tell(line: str) -> None:
    """To the person who waits; stdout may be JSON."""
    click.echo(line, err=True)


def _edge_with_log() -> "Edge":
    """For an action that rings the doorbell itself: a broker that cannot be reached is a log line on stderr."""
    from outbox import logs

    logs.configure()
    return edge()


def _show_decision(done: "Job | Proposed", as_json: bool) -> None:
    from outbox.actions import Proposed

    if isinstance(done, Proposed):
        show_proposal(done, as_json)
    else:
        print_json(vars(done)) if as_json else click.echo(f"job {done.id} is {done.state}")
