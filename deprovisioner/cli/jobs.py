"""`deprovisioner jobs`: reading the outbox, and moving on what is stuck."""

import dataclasses
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import click

from deprovisioner.cli.shell import (
    AGE,
    WORDS,
    Choice,
    as_json_option,
    cell,
    example,
    main,
    me,
    operate,
    print_fields,
    print_json,
    ring,
    show_page,
)
from outbox.states import JobKind, JobState, StuckReason


@main.group()
def jobs() -> None:
    """Read the outbox, and move on what is stuck."""
    operate()


def filter_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options that say which jobs are meant; together they are the words of `queries.JobFilter`."""
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
@click.option("--cursor", type=WORDS, help="`next_cursor` of the page before.")
@as_json_option
def jobs_list(counts: bool, cursor: str | None, limit: int, as_json: bool, **filters: Any) -> None:
    """Jobs, newest first."""
    from outbox import db, queries

    wanted = queries.JobFilter(**filters)
    if counts:
        if cursor is not None:
            raise click.UsageError("--counts counts every page: it takes no --cursor")
        with db.statement() as session:
            found = vars(queries.count_jobs(session, wanted))
        print_json(found) if as_json else _show_counts(found)
        return
    with db.statement() as session:
        page = queries.with_tenants(session, queries.list_jobs(session, wanted, cursor=cursor, limit=limit))
    columns = ("id", "kind", "state", "stuck_reason", "tenant", "resource_id", "backend", "fence", "attempts")
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
    """One job's whole story: why it stands there, what to run next, who asked, every attempt, every event."""
    from deprovisioner.cli.story import tell
    from outbox import db, queries

    with db.statement() as session:
        story = queries.job_story(session, job_id)
    if as_json:
        told = dataclasses.asdict(story)
        told["approvals"] = [_proposal(approval) for approval in story.approvals]
        told["last_look"] = story.last_look and _looked(story.last_look)
        print_json(told.pop("job") | {"attempt_history": told.pop("attempts")} | told)
    else:
        tell(story)


_job = click.argument("job_id", type=click.IntRange(1, 2**63 - 1))
_fence = click.option("--fence", type=click.IntRange(0), required=True, help="The fence that `jobs show` told you.")
_reason = click.option("--reason", type=WORDS, required=True, help="Why; kept with the job.")
_token = click.option(
    "--token",
    type=WORDS,
    envvar="DEPROVISIONER_OPERATOR_TOKEN",
    show_envvar=True,
    help="Your own operator's token: who forces must be known. Two are needed, for the same job and fence within an "
    "hour; each has a reason of their own.",
)
_wait = click.option(
    "--wait", type=click.FloatRange(0, 600), default=30, show_default=True, help="Seconds to wait for a worker's look."
)


@jobs.command("redrive", epilog=example("deprovisioner jobs redrive 42 --fence 7 --reason 'disk was full, is not now'"))
@_job
@_fence
@_reason
@click.option(
    "--force-outcome-unknown", "force", is_flag=True, help="Act again where nobody can look. Takes two operators."
)
@_token
@as_json_option
def jobs_redrive(job_id: int, fence: int, reason: str, force: bool, token: str | None, as_json: bool) -> None:
    """Give a stuck job fresh attempts. It looks at the backend before it acts."""
    from outbox import db
    from outbox import jobs as transitions
    from outbox.approvals import Approval

    actor = _operator(token) if force else me()
    act = transitions.redrive_forced if force else transitions.redrive
    with db.statement() as session:
        done = act(session, job_id, fence=fence, actor=actor, reason=reason)
    if isinstance(done, Approval):
        return _show_proposal(done, as_json)
    ring()
    print_json(vars(done)) if as_json else click.echo(f"job {done.id} is pending again")
    return None


@jobs.command("observe", epilog=example("deprovisioner jobs observe 42"))
@_job
@_wait
@as_json_option
def jobs_observe(job_id: int, wait: float, as_json: bool) -> None:
    """Have a worker look at the backend of a stuck teardown. Changes nothing.

    absent: it is gone. same: it is there, or part of it. different: another one has its name, it was renamed, or this
    is another server. Where the backend could not be asked (unavailable), or its kind cannot tell (unobservable),
    the exit code is 1.
    """
    from outbox.states import Found

    look = _look(job_id, None, wait)
    print_json(_looked(look)) if as_json else print_fields(_looked(look))
    if look.found in (Found.UNAVAILABLE, Found.UNOBSERVABLE):
        raise SystemExit(1)


@jobs.command(
    "resolve", epilog=example("deprovisioner jobs resolve 42 --fence 7 --reason 'dropped by hand, ticket 811'")
)
@_job
@_fence
@_reason
@_wait
@click.option("--force", is_flag=True, help="Whatever a look says, or without one. Takes two operators.")
@_token
@as_json_option
def jobs_resolve(
    job_id: int, fence: int, reason: str, wait: float, force: bool, token: str | None, as_json: bool
) -> None:
    """It did happen: end a stuck job well, after a worker has seen the backend without the object."""
    from outbox import db
    from outbox import jobs as transitions
    from outbox.approvals import Approval
    from outbox.errors import NotATeardown

    actor = _operator(token) if force else me()
    with suppress(NotATeardown):
        if not force:
            _look(job_id, fence, wait)
    act = transitions.resolve_forced if force else transitions.resolve
    with db.statement() as session:
        done = act(session, job_id, fence=fence, actor=actor, reason=reason)
    if isinstance(done, Approval):
        return _show_proposal(done, as_json)
    print_json(vars(done)) if as_json else click.echo(f"job {done.id} is {done.state}")
    return None


def _look(job_id: int, fence: int | None, seconds: float) -> Any:
    from outbox import db, events, observations

    events.configure()  # a bell that fails is a log line on stderr

    def run(act: Any) -> Any:
        with db.statement() as session:
            return act(session)

    asked = run(lambda session: observations.ask(session, job_id, actor=me(), fence=fence))
    click.echo(f"waiting for a worker to look, at most {seconds:g} s", err=True)
    look = observations.wait_for(run, asked, seconds=seconds)
    click.echo(f"{look.observed_by} looked: {look.found}", err=True)
    return look


def _looked(look: Any) -> dict[str, Any]:
    names = ("job_id", "fence", "found", "means", "seen", "observed_at", "observed_by")
    return {name: getattr(look, name) for name in names}


def _operator(token: str | None) -> str:
    """The actor of an operator's token: at a shell, a user's name proves nothing."""
    from outbox import db, tokens
    from outbox.errors import NotFound

    if not token:
        raise click.UsageError(
            "what is forced needs your own operator's token: --token, or DEPROVISIONER_OPERATOR_TOKEN"
        )
    with db.statement() as session:
        found = tokens.find(session, token)
    if found is None or found.role != "operator":
        raise NotFound("this token is unknown, was revoked, or is no operator's")
    return found.actor


def _show_proposal(approval: Any, as_json: bool) -> None:
    """The first of two has spoken: what the second one must run, and what there is to know before."""
    from outbox import advice, db, observations

    with db.statement() as session:
        look = observations.last(session, approval.job_id, fence=approval.fence)
    if as_json:
        print_json({"approval": _proposal(approval), "new": approval.new, "last_look": look and _looked(look)})
        return
    stands = "" if approval.new else f" at {cell(approval.proposed_at)} already ({approval.reason})"
    click.echo(f"proposed by {approval.proposed_by}{stands}; nothing is done yet")
    click.echo(
        f"another operator must run, with a token and a reason of their own, before {cell(approval.expires_at)}:"
    )
    click.echo(f"  {advice.to_approve(approval)}")
    if look is not None:
        click.echo(f"last look, by {look.observed_by} at {cell(look.observed_at)}: {look.means}")


def _proposal(approval: Any) -> dict[str, Any]:
    return {name: value for name, value in vars(approval).items() if name != "new"}
