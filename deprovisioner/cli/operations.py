"""Bulk work at a shell: `jobs redrive-all`, `tenants offboard`, and `operations` to see how far it is, and stop it."""

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
from outbox.states import JobKind, OperationState, StuckReason

# Between two looks at how far it is: counting 100,000 items takes some tens of milliseconds.
LOOK_SECONDS = 0.5
# Any worker takes a step within a few seconds; a canary may be at work for longer.
PATIENCE_SECONDS = 30
COLUMNS = ("id", "kind", "state", "total", "rate", "actor", "reason", "created_at", "finished_at", "error")


def _digest(_: click.Context, __: click.Parameter, value: str | None) -> str | None:
    from outbox.operations import DIGEST

    if value is not None and not re.fullmatch(DIGEST, value):
        raise click.BadParameter(f"{value!r} is no digest: copy the one that the dry run printed, whole")
    return value


_digest_option = click.option(
    "--digest", callback=_digest, help="What the dry run printed; without it nothing is done."
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
@click.option("--older-than", type=AGE, metavar="AGE", help="Asked for that long ago: 90s, 15m, 2h, 3d.")
@click.option("--resource", "resource_id", type=click.UUID)
@click.option("--all", "every", is_flag=True, help="Every stuck job; instead of the options above.")
@click.option("--reason", type=WORDS, required=True, help="Why; kept with each job.")
@click.option("--dry-run", is_flag=True, help="Only show what it would be, as without --digest.")
@_digest_option
@click.option("--rate", type=click.IntRange(1, 1000), default=50, show_default=True, help="Jobs a second, at most.")
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
    """Re-drive stuck jobs, many at once: one of each backend first, and the others when it has succeeded.

    Without --digest it is a dry run, and prints the command that does it. Workers do the work: it goes on when this
    command is gone. Re-driven means pending again: `operations show` tells how the jobs end. Exit code 1 when it was
    stopped, or when a job of it is stuck again by then.
    """
    from deprovisioner.cli.progress import options
    from outbox import db, operations, queries

    if every == any(value is not None for value in (was, *filters.values())):
        raise click.UsageError("say which jobs, or --all for every stuck one; not both")
    wanted = queries.JobFilter(reason=was, **filters)
    if dry_run or digest is None:
        with db.snapshot() as session:
            seen = operations.preview_redrive(session, wanted)
        if as_json:
            print_json(vars(seen) | {"sample": [vars(job) for job in seen.sample]})
            return
        click.echo(f"{seen.count} stuck jobs\n")
        _show_sample(seen, ("id", "kind", "stuck_reason", "backend", "fence", "last_error"))
        said = options(operations.words(wanted))
        if seen.count:
            _say_how(f"re-drive exactly these {seen.count}", seen, *said, "--reason", reason, "--rate", str(rate))
        return
    with db.transaction() as session:
        begun = operations.begin_redrive(session, wanted, reason=reason, actor=me(), digest=digest, rate=rate)
    _follow(begun, wait=not no_wait, as_json=as_json)


@main.group()
def tenants() -> None:
    """What concerns all that a tenant has."""
    operate()


@tenants.command(
    "offboard",
    epilog=example(
        "deprovisioner tenants offboard acme --reason 'contract ended, ticket 811'",
        "deprovisioner tenants offboard acme --reason 'contract ended, ticket 811' --expect 312 --digest 312-9be1…",
    ),
)
@click.argument("tenant", type=WORDS)
@click.option("--reason", type=WORDS, required=True, help="Why; kept with each job.")
@click.option("--dry-run", is_flag=True, help="Only show what it would be, as without --digest.")
@click.option("--expect", type=click.IntRange(0), help="How many resources the dry run counted.")
@_digest_option
@click.option("--no-wait", is_flag=True, help="Begin, and do not wait for the end.")
@as_json_option
def tenants_offboard(
    tenant: str, reason: str, dry_run: bool, expect: int | None, digest: str | None, no_wait: bool, as_json: bool
) -> None:
    """Delete all that a tenant has, but for what is protected.

    Without --digest it is a dry run, and prints the command that does it. What the tenant makes later is not part of
    it: revoke its tokens first. At the end its deletes are enqueued; `operations show` tells how the teardowns end.
    Exit code 1 when it was stopped, or when a job of it is stuck by then.
    """
    from outbox import db, operations

    if (expect is None) != (digest is None):
        raise click.UsageError("--expect and --digest go together; the dry run prints both")
    if dry_run or digest is None or expect is None:
        with db.snapshot() as session:
            seen = operations.preview_offboard(session, tenant)
        if as_json:
            print_json(vars(seen) | {"sample": [vars(resource) for resource in seen.sample]})
            return
        click.echo(
            f"{seen.count} resources of {tenant}, of which {seen.protected} are protected and stay; "
            f"{seen.deleting} more are being deleted already\n"
        )
        _show_sample(seen, ("id", "kind", "backend", "name", "status", "protected"))
        if doomed := seen.count - seen.protected:
            what = f"delete {doomed} and leave {seen.protected} protected" if seen.protected else ""
            said = ("tenants", "offboard", tenant, "--reason", reason, "--expect", str(seen.count))
            _say_how(what or f"delete exactly these {doomed}", seen, *said)
        else:
            click.echo("\nthere is nothing to delete")
        return
    with db.transaction() as session:
        begun = operations.begin_offboard(
            session, tenant, expected_count=expect, reason=reason, actor=me(), digest=digest
        )
    _follow(begun, wait=not no_wait, as_json=as_json)


@main.group("operations")
def operations_() -> None:
    """Bulk work: what there is, and how far it is."""
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
    """One operation, how far it is, and what to do next. Exit code 1 when it was stopped, or a job of it is stuck."""
    _show(operation_id, as_json)


@operations_.command("stop", epilog=example("deprovisioner operations stop 7 --reason 'wrong tenant'"))
@click.argument("operation_id", type=click.IntRange(1, 2**63 - 1))
@click.option("--reason", type=WORDS, required=True, help="Why; kept with the operation.")
@as_json_option
def operations_stop(operation_id: int, reason: str, as_json: bool) -> None:
    """Leave alone what it has not done yet. What it has done goes on: `hold set` stops that."""
    from deprovisioner.cli.progress import tell
    from outbox import db, operations, queries

    with db.statement() as session:
        ended = operations.stop(session, operation_id, actor=me(), reason=reason)
    if as_json:
        print_json(vars(ended))
        return
    with db.statement() as session:
        tell(*queries.operation(session, operation_id))


def _show_sample(seen: Any, columns: tuple[str, ...]) -> None:
    if seen.backends:
        print_fields(seen.backends)
        click.echo()
    print_table([vars(row) for row in seen.sample], columns)
    if seen.count > len(seen.sample):
        click.echo(f"and {seen.count - len(seen.sample)} more")


def _say_how(what: str, seen: Any, *said: str) -> None:
    click.echo(f"\nnothing was done. To {what}:\n  deprovisioner {shlex.join([*said, '--digest', seen.digest])}")


def _follow(begun: Any, *, wait: bool, as_json: bool) -> None:
    """Wait for the end, unless nobody wants to; then show it. It does not need us."""
    later = f"deprovisioner operations show {begun.id}"
    if not wait:
        print_json(vars(begun)) if as_json else click.echo(f"operation {begun.id} is running: {later}")
        return
    try:
        click.echo(f"operation {begun.id} is running; Ctrl-C leaves it so", err=True)
        _watch(begun)
    except KeyboardInterrupt:
        click.echo(f"\noperation {begun.id} goes on without you: {later}", err=True)
        return
    _show(begun.id, as_json)


def _watch(begun: Any) -> None:
    """A bar on stderr until it ends."""
    from deprovisioner.cli.progress import tell_first, waits
    from outbox import db, queries

    shown, moved_at, said = 0, time.monotonic(), False
    with click.progressbar(length=begun.total, label=f"operation {begun.id}", file=sys.stderr) as bar:
        while True:
            with db.statement() as session:
                now, progress = queries.operation(session, begun.id)
            settled = progress.all.total - progress.all.waiting
            if settled > shown:
                bar.update(settled - shown)
                shown, moved_at, said = settled, time.monotonic(), False
            if now.state is not OperationState.RUNNING:
                return
            if (label := f"operation {begun.id}{waits(progress)}") != bar.label:
                bar.label = label
                bar.render_progress()
            if not said and time.monotonic() - moved_at > PATIENCE_SECONDS:
                said = True
                why = tell_first(progress) or "is a worker running?"
                click.echo(f"\nnothing has moved for {PATIENCE_SECONDS} s: {why}", err=True)
            time.sleep(LOOK_SECONDS)


def _show(operation_id: int, as_json: bool) -> None:
    from deprovisioner.cli.progress import tell
    from outbox import db, queries

    with db.statement() as session:
        operation, progress = queries.operation(session, operation_id)
    if as_json:
        told = dataclasses.asdict(progress)
        print_json(vars(operation) | {"progress": told.pop("all") | told})
    else:
        tell(operation, progress)
    if operation.state is OperationState.STOPPED or progress.stuck_jobs:
        raise SystemExit(1)
