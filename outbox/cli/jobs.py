"""`deprovisioner jobs`: reading the outbox, and moving on what is stuck."""

import dataclasses
from collections.abc import Callable
from typing import Any

import click

from outbox.cli.shell import (
    AGE,
    as_json_option,
    example,
    main,
    me,
    operate,
    print_fields,
    print_json,
    print_table,
    show_page,
)


@main.group()
def jobs() -> None:
    """Read the outbox, and re-drive what is stuck."""
    operate()


def filter_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options that say which jobs are meant; together they are the words of `queries.JobFilter`."""
    for option in reversed(
        (
            click.option("--state", type=click.Choice(["pending", "running", "stuck", "succeeded", "cancelled"])),
            click.option("--reason", type=click.Choice(["attempts_exhausted", "refused", "outcome_unknown"])),
            click.option("--kind", type=click.Choice(["provision", "deprovision", "restore"])),
            click.option("--backend"),
            click.option("--tenant"),
            click.option("--error", metavar="TEXT", help="What the last error contains, in any case; no wildcards."),
            click.option("--older-than", type=AGE, metavar="AGE", help="Asked for that long ago: 90s, 15m, 2h, 3d."),
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
@click.option("--counts", is_flag=True, help="How many there are, by state, reason and backend, instead of the jobs.")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True)
@click.option("--cursor", help="`next_cursor` of the page before.")
@as_json_option
def jobs_list(counts: bool, cursor: str | None, limit: int, as_json: bool, **filters: Any) -> None:
    """Jobs, newest first."""
    from outbox import db, queries  # noqa: PLC0415

    wanted = queries.JobFilter(**filters)
    if counts:
        if cursor is not None:
            raise click.UsageError("--counts counts every page: it takes no --cursor")
        with db.statement() as session:
            found = vars(queries.count_jobs(session, wanted))
        print_json(found) if as_json else _show_counts(found)
        return
    with db.statement() as session:
        page = queries.list_jobs(session, wanted, cursor=cursor, limit=limit)
    columns = ("id", "kind", "state", "stuck_reason", "resource_id", "backend", "fence", "attempts", "last_error")
    show_page(page, columns, as_json)


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
    """One job: its attempts, and every event."""
    from outbox import db, queries  # noqa: PLC0415

    with db.statement() as session:
        story = queries.job_story(session, job_id)
    if as_json:
        told = dataclasses.asdict(story)
        print_json(told.pop("job") | {"attempt_history": told.pop("attempts")} | told)
        return
    print_fields(vars(story.job) | {"tenant": story.tenant})
    click.echo("\nattempts")
    print_table(
        [vars(attempt) for attempt in story.attempts],
        ("fence", "worker", "claimed_at", "started_at", "finished_at", "outcome", "error"),
    )
    click.echo("\nevents")
    print_table([vars(event) for event in story.events], ("at", "event", "fence", "actor", "reason", "detail"))


@jobs.command("redrive", epilog=example("deprovisioner jobs redrive 42 --fence 7 --reason 'disk was full, is not now'"))
@click.argument("job_id", type=click.IntRange(1, 2**63 - 1))
@click.option("--fence", type=click.IntRange(0), required=True, help="The fence that `jobs show` told you.")
@click.option("--reason", required=True, help="Why; kept with the job.")
@as_json_option
def jobs_redrive(job_id: int, fence: int, reason: str, as_json: bool) -> None:
    """Give a stuck job fresh attempts. It looks at the backend before it acts."""
    from outbox import db, doorbell  # noqa: PLC0415
    from outbox import jobs as transitions  # noqa: PLC0415

    with db.statement() as session:
        job = transitions.redrive(session, job_id, fence=fence, actor=me(), reason=reason)
    doorbell.ring_now()
    print_json(vars(job)) if as_json else click.echo(f"job {job.id} is pending again")
