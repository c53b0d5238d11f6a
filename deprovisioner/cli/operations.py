"""Bulk work: `jobs redrive-all`, `tenants offboard`, and `operations` to follow and stop it."""

import dataclasses
import re
import shlex
import sys
import time
from typing import Any

import click

from deprovisioner.cli.jobs import jobs
from deprovisioner.cli.shell import (
    AGE,
    WORDS,
    Choice,
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
from outbox.errors import BadRequest
from outbox.states import JobKind, OperationState, StuckReason

# Between two polls of the progress: counting 100,000 items takes some tens of milliseconds.
POLL_SECONDS = 0.5
# A worker makes a step within a few seconds; only a canary may take longer.
PATIENCE_SECONDS = 30
COLUMNS = ("id", "kind", "state", "total", "rate", "actor", "reason", "created_at", "finished_at", "error")


def _digest(_: click.Context, __: click.Parameter, value: str | None) -> str | None:
    from outbox.actions import DIGEST

    if value is not None and not re.fullmatch(DIGEST, value):
        raise click.BadParameter(f"{value!r} is not a digest: copy all of the digest that the dry run printed")
    return value


digest_option = click.option(
    "--digest", callback=_digest, help="The digest that the dry run printed; without it nothing is done."
)


@jobs.command(
    "redrive-all",
    epilog=example(
        "deprovisioner jobs redrive-all --backend pg-main --older-than 1h --reason 'disk was full, is not now'",
        "deprovisioner jobs redrive-all --all --reason 'network is back' --digest 12-3f0c… --rate 5",
    ),
)
@click.option("--backend", type=WORDS)
@click.option("--reason-was", "was", type=Choice(StuckReason))
@click.option("--kind", type=Choice(JobKind))
@click.option("--tenant", type=WORDS)
@click.option("--error", type=WORDS, metavar="TEXT", help="What the last error contains, in any case; no wildcards.")
@click.option("--older-than", type=AGE, metavar="AGE", help="Created at least that long ago: 90s, 15m, 2h, 3d.")
@click.option("--resource", "resource_id", type=click.UUID)
@click.option("--all", "every", is_flag=True, help="Every stuck job, instead of the options above.")
@click.option("--reason", type=WORDS, required=True, help="Why; stored with each job.")
@click.option("--dry-run", is_flag=True, help="Only show what would be done, as without --digest.")
@digest_option
@click.option(
    "--rate", type=click.IntRange(1, 1000), default=50, show_default=True, help="At most so many jobs a second."
)
@click.option("--no-wait", is_flag=True, help="Begin, and do not wait for the end.")
@as_json_option
def jobs_redrive_all(
    was: StuckReason | None,
    every: bool,
    reason: str,
    dry_run: bool,
    digest: str | None,
    rate: int,
    no_wait: bool,
    as_json: bool,
    **filters: Any,
) -> None:
    """Re-drive many stuck jobs: first one of each backend, and when it has succeeded the others of its backend.

    Without --digest it is a dry run, which prints the command for the real run. Workers do the work: it goes on when
    this command ends. A re-driven job is pending again; `operations show` shows how the jobs end. The exit code is 1
    when the operation was stopped, or when one of its jobs is stuck again.
    """
    from deprovisioner.cli.progress import options
    from outbox import actions, db, queries

    try:
        wanted = actions.chosen(queries.JobFilter(reason=was, **filters), every=every)
    except BadRequest as error:
        raise click.UsageError(str(error)) from error
    if dry_run or digest is None:
        with db.snapshot() as session:
            seen = actions.preview_redrive(session, me(), wanted)
        if as_json:
            print_json(vars(seen) | {"sample": [vars(job) for job in seen.sample]})
            return
        click.echo(f"{seen.count} stuck job{'s' * (seen.count != 1)}\n")
        show_sample(seen, ("id", "kind", "stuck_reason", "backend", "fence", "last_error"))
        said = options(actions.words(wanted), "jobs", "redrive-all")
        if seen.count:
            say_how(f"re-drive exactly these {seen.count}", seen, *said, "--reason", reason, "--rate", str(rate))
        return
    with db.transaction() as session:
        begun = actions.begin_redrive(session, me(), wanted, reason=reason, digest=digest, rate=rate)
    follow(begun, wait=not no_wait, as_json=as_json)


@main.group()
def tenants() -> None:
    """Act on everything that a tenant has."""
    operate()


@tenants.command(
    "offboard",
    epilog=example(
        "deprovisioner tenants offboard acme --reason 'contract ended, ticket 811'",
        "deprovisioner tenants offboard acme --reason 'contract ended, ticket 811' --expect 312 --digest 312-9be1…",
    ),
)
@click.argument("tenant", type=WORDS)
@click.option("--reason", type=WORDS, required=True, help="Why; stored with each job.")
@click.option("--dry-run", is_flag=True, help="Only show what would be done, as without --digest.")
@click.option("--expect", type=click.IntRange(0), help="How many resources the dry run counted.")
@digest_option
@click.option("--no-wait", is_flag=True, help="Begin, and do not wait for the end.")
@as_json_option
def tenants_offboard(
    tenant: str, reason: str, dry_run: bool, expect: int | None, digest: str | None, no_wait: bool, as_json: bool
) -> None:
    """Delete every resource of a tenant, except protected ones.

    Without --digest it is a dry run, which prints the command for the real run. Revoke the tenant's tokens first: what
    it makes after the dry run is not deleted. The operation ends when all deletes are enqueued; `operations show` shows
    how the teardowns end. The exit code is 1 when the operation was stopped, or when one of its jobs is stuck.
    """
    from outbox import actions, db

    if (expect is None) != (digest is None):
        raise click.UsageError("--expect and --digest go together; the dry run prints both")
    if dry_run or digest is None or expect is None:
        with db.snapshot() as session:
            seen = actions.preview_offboard(session, me(), tenant)
        if as_json:
            print_json(vars(seen) | {"sample": [vars(resource) for resource in seen.sample]})
            return
        click.echo(
            f"resources of {tenant}: {seen.count}, of them protected, which stay: {seen.protected}; "
            f"being deleted already: {seen.deleting}\n"
        )
        show_sample(seen, ("id", "kind", "backend", "name", "status", "protected"))
        if doomed := seen.count - seen.protected:
            what = f"delete {doomed} and leave {seen.protected} protected" if seen.protected else ""
            said = ("tenants", "offboard", tenant, "--reason", reason, "--expect", str(seen.count))
            say_how(what or f"delete exactly these {doomed}", seen, *said)
        else:
            click.echo("\nthere is nothing to delete")
        return
    with db.transaction() as session:
        begun = actions.begin_offboard(session, me(), tenant, expected_count=expect, reason=reason, digest=digest)
    follow(begun, wait=not no_wait, as_json=as_json)


@main.group("operations")
def operations_() -> None:
    """List, follow and stop bulk work."""
    operate()


@operations_.command("list", epilog=example("deprovisioner operations list --json"))
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True)
@click.option("--cursor", type=WORDS, help="`next_cursor` of the page before.")
@as_json_option
def operations_list(limit: int, cursor: str | None, as_json: bool) -> None:
    """Operations, newest first."""
    from deprovisioner.cli.progress import words
    from outbox import db, queries

    with db.statement() as session:
        page = queries.list_operations(session, cursor=cursor, limit=limit)
    show_page(page, COLUMNS, as_json, describe=words)


@operations_.command("show", epilog=example("deprovisioner operations show 7"))
@click.argument("operation_id", type=click.IntRange(1, 2**63 - 1))
@as_json_option
def operations_show(operation_id: int, as_json: bool) -> None:
    """One operation, its progress, and what to do next. Exit code 1 when it was stopped or a job of it is stuck."""
    _show(operation_id, as_json)


@operations_.command("stop", epilog=example("deprovisioner operations stop 7 --reason 'wrong tenant'"))
@click.argument("operation_id", type=click.IntRange(1, 2**63 - 1))
@click.option("--reason", type=WORDS, required=True, help="Why; stored with the operation.")
@as_json_option
def operations_stop(operation_id: int, reason: str, as_json: bool) -> None:
    """Stop an operation: it starts no more jobs. Those that it has started go on, unless `hold set` stops them."""
    from deprovisioner.cli.progress import tell
    from outbox import actions, db, queries

    with db.statement() as session:
        ended = actions.stop(session, me(), operation_id, reason=reason)
    if as_json:
        print_json(vars(ended))
        return
    with db.statement() as session:
        tell(*queries.operation(session, operation_id))


def show_sample(seen: Any, columns: tuple[str, ...]) -> None:
    """Print a preview: how many of each backend, and the first rows."""
    if seen.backends:
        print_fields(seen.backends)
        click.echo()
    print_table([vars(row) for row in seen.sample], columns)
    if seen.count > len(seen.sample):
        click.echo(f"and {seen.count - len(seen.sample)} more")


def say_how(what: str, seen: Any, *said: str) -> None:
    """Print the command that does what was previewed."""
    click.echo(f"\nnothing was done. To {what}:\n  deprovisioner {shlex.join([*said, '--digest', seen.digest])}")


def follow(begun: Any, *, wait: bool, as_json: bool) -> None:
    """Wait for the end, if the caller wants to, and show it. The operation goes on without this command."""
    later = f"deprovisioner operations show {begun.id}"
    running = begun.state is OperationState.RUNNING
    if not wait:
        how = "is running" if running else "has ended"
        print_json(vars(begun)) if as_json else click.echo(f"operation {begun.id} {how}: {later}")
        return
    try:
        how = "is running; Ctrl-C leaves it running" if running else "has carried it out already"
        click.echo(f"operation {begun.id} {how}", err=True)
        watch(begun)
    except KeyboardInterrupt:
        click.echo(f"\noperation {begun.id} is still running: {later}", err=True)
        return
    _show(begun.id, as_json)


def watch(begun: Any) -> None:
    """Show a bar on stderr until the operation ends."""
    from deprovisioner.cli.progress import tell_first, waits
    from outbox import db, queries

    shown, moved_at, warned = 0, time.monotonic(), False
    with click.progressbar(length=begun.total, label=f"operation {begun.id}", file=sys.stderr) as bar:
        while True:
            with db.statement() as session:
                now, progress = queries.operation(session, begun.id)
            settled = progress.all.total - progress.all.waiting
            if settled > shown:
                bar.update(settled - shown)
                shown, moved_at, warned = settled, time.monotonic(), False
            if now.state is not OperationState.RUNNING:
                return
            if (label := f"operation {begun.id}{waits(progress)}") != bar.label:
                bar.label = label
                bar.render_progress()
            if not warned and time.monotonic() - moved_at > PATIENCE_SECONDS:
                warned = True
                why = tell_first(progress) or waits(progress).removeprefix(": ") or "is a worker running?"
                click.echo(f"\nno progress for {PATIENCE_SECONDS} s: {why}", err=True)
            time.sleep(POLL_SECONDS)


def _show(operation_id: int, as_json: bool) -> None:
    from deprovisioner.cli.progress import tell
    from outbox import db, queries

    with db.statement() as session:
        operation, progress = queries.operation(session, operation_id)
    if as_json:
        parts = dataclasses.asdict(progress)
        print_json(vars(operation) | {"progress": parts.pop("all") | parts})
    else:
        tell(operation, progress)
    if operation.state is OperationState.STOPPED or progress.stuck_jobs:
        raise SystemExit(1)
