"""Bulk work at a shell: `jobs redrive-all`, `tenants offboard`, and `operations` to see how far it is."""

import dataclasses
import shlex
import sys
import time
from typing import Any

import click

from outbox.cli.jobs import jobs
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

# Between two looks at how far it is: counting 100,000 items takes some tens of milliseconds.
LOOK_SECONDS = 0.5
# Any worker takes a step within a few seconds; a canary may be at work for longer.
PATIENCE_SECONDS = 30
DIGEST = "What the dry run printed; without it nothing is done."
COLUMNS = ("id", "kind", "state", "total", "rate", "actor", "reason", "created_at", "finished_at", "error")


@jobs.command(
    "redrive-all",
    epilog=example(
        "deprovisioner jobs redrive-all --backend pg-main --older-than 1h --reason 'disk was full, is not now'",
        "deprovisioner jobs redrive-all --all --reason 'network is back' --digest 12-3f0c… --rate 5",
    ),
)
@click.option("--backend")
@click.option("--reason-was", "was", type=click.Choice(["attempts_exhausted", "refused", "outcome_unknown"]))
@click.option("--kind", type=click.Choice(["provision", "deprovision", "restore"]))
@click.option("--tenant")
@click.option("--error", metavar="TEXT", help="What the last error contains, in any case; no wildcards.")
@click.option("--older-than", type=AGE, metavar="AGE", help="Asked for that long ago: 90s, 15m, 2h, 3d.")
@click.option("--all", "every", is_flag=True, help="Every stuck job; instead of the options above.")
@click.option("--reason", required=True, help="Why; kept with each job.")
@click.option("--dry-run", is_flag=True, help="Only show what it would be, as without --digest.")
@click.option("--digest", help=DIGEST)
@click.option("--rate", type=click.IntRange(1, 1000), default=50, show_default=True, help="Jobs a second, at most.")
@click.option("--no-wait", is_flag=True, help="Begin, and do not wait for the end.")
@as_json_option
def jobs_redrive_all(
    was: str | None,
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
    command is gone. Exit code 1 when it was stopped by a job that failed again.
    """
    from outbox import db, operations, queries  # noqa: PLC0415

    if every == any(value is not None for value in (was, *filters.values())):
        raise click.UsageError("say which jobs, or --all for every stuck one; not both")
    wanted = queries.JobFilter(reason=was, **filters)  # type: ignore[arg-type]  # a word that click has checked
    if dry_run or digest is None:
        with db.snapshot() as session:
            seen = operations.preview_redrive(session, wanted)
        if as_json:
            print_json(vars(seen) | {"sample": [vars(job) for job in seen.sample]})
            return
        click.echo(f"{seen.count} stuck jobs\n")
        _show_sample(seen, ("id", "kind", "stuck_reason", "backend", "fence", "last_error"))
        options = {"--reason-was": was, **{f"--{k.replace('_', '-')}": v for k, v in filters.items()}}
        if filters["older_than"] is not None:
            options["--older-than"] = f"{int(filters['older_than'].total_seconds())}s"
        said = [word for name, value in options.items() if value is not None for word in (name, str(value))]
        _say_how(
            seen, ["jobs", "redrive-all", *(["--all"] if every else said), "--reason", reason, "--rate", str(rate)]
        )
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
@click.argument("tenant")
@click.option("--reason", required=True, help="Why; kept with each job.")
@click.option("--dry-run", is_flag=True, help="Only show what it would be, as without --digest.")
@click.option("--expect", type=click.IntRange(0), help="How many resources the dry run counted.")
@click.option("--digest", help=DIGEST)
@click.option("--no-wait", is_flag=True, help="Begin, and do not wait for the end.")
@as_json_option
def tenants_offboard(
    tenant: str, reason: str, dry_run: bool, expect: int | None, digest: str | None, no_wait: bool, as_json: bool
) -> None:
    """Delete all that a tenant has, but for what is protected.

    Without --digest it is a dry run, and prints the command that does it. What the tenant makes later is not part of
    it: revoke its tokens first. Done means that all is on its way; `operations show` counts the teardowns.
    """
    from outbox import db, operations  # noqa: PLC0415

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
        _say_how(seen, ["tenants", "offboard", tenant, "--reason", reason, "--expect", str(seen.count)])
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
@click.option("--cursor", help="`next_cursor` of the page before.")
@as_json_option
def operations_list(limit: int, cursor: str | None, as_json: bool) -> None:
    """Operations, newest first."""
    from outbox import db, queries  # noqa: PLC0415

    with db.statement() as session:
        page = queries.list_operations(session, cursor=cursor, limit=limit)
    show_page(page, COLUMNS, as_json)


@operations_.command("show", epilog=example("deprovisioner operations show 7"))
@click.argument("operation_id", type=click.IntRange(1, 2**63 - 1))
@as_json_option
def operations_show(operation_id: int, as_json: bool) -> None:
    """One operation, and how far it is. Exit code 1 when it was stopped."""
    _show(operation_id, as_json)


def _show_sample(seen: Any, columns: tuple[str, ...]) -> None:
    if seen.backends:
        print_fields(seen.backends)
        click.echo()
    print_table([vars(row) for row in seen.sample], columns)
    if seen.count > len(seen.sample):
        click.echo(f"and {seen.count - len(seen.sample)} more")


def _say_how(seen: Any, words: list[str]) -> None:
    if seen.count:
        click.echo(f"\nnothing was done. To do it to exactly these {seen.count}:")
        click.echo(f"  deprovisioner {shlex.join([*words, '--digest', seen.digest])}")


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
    from outbox import db, queries  # noqa: PLC0415

    shown, moved_at, said = 0, time.monotonic(), False
    with click.progressbar(length=begun.total, label=f"operation {begun.id}", file=sys.stderr) as bar:
        while True:
            with db.statement() as session:
                now, progress = queries.operation(session, begun.id)
            settled = progress.all.total - progress.all.waiting
            if settled > shown:
                bar.update(settled - shown)
                shown, moved_at, said = settled, time.monotonic(), False
            if now.state != "running":
                return
            if not said and time.monotonic() - moved_at > PATIENCE_SECONDS:
                said = True
                click.echo(f"\nnothing has moved for {PATIENCE_SECONDS} s: {_waits_for(progress)}", err=True)
            time.sleep(LOOK_SECONDS)


def _waits_for(progress: Any) -> str:
    waiting = [
        f"job {canary.job_id} of {canary.backend}, which goes first, is {canary.state}"
        for canary in progress.canaries
        if canary.outcome == "redriven" and canary.state != "succeeded"
    ]
    return "; ".join(waiting) or "is a worker running?"


def _show(operation_id: int, as_json: bool) -> None:
    from outbox import db, queries  # noqa: PLC0415

    with db.statement() as session:
        operation, progress = queries.operation(session, operation_id)
    if as_json:
        told = dataclasses.asdict(progress)
        print_json(vars(operation) | {"progress": told.pop("all") | told})
    else:
        print_fields(vars(operation))
        click.echo("\nprogress")
        tallies = {**progress.backends, "(all)": progress.all}
        rows = [{"backend": name} | vars(tally) for name, tally in tallies.items()]
        print_table(rows, ("backend", *vars(progress.all)))
        if progress.canaries:
            click.echo("\nwhat goes first")
            print_table([vars(canary) for canary in progress.canaries], ("backend", "job_id", "state", "outcome"))
        if progress.jobs:
            click.echo("\nits jobs now")
            print_fields(progress.jobs)
    if operation.state == "stopped":
        raise SystemExit(1)
