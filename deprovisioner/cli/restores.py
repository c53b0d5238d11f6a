"""`deprovisioner resources restore-all`: take back many deletes."""

import datetime as dt
from typing import Any

import click

from deprovisioner.cli.operations import digest_option, follow, say_how, show_sample
from deprovisioner.cli.resources import resources
from deprovisioner.cli.shell import WORDS, as_json_option, example, me, print_json
from outbox.errors import BadRequest


class _Time(click.ParamType[dt.datetime]):
    """A moment, with its offset from UTC."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dt.datetime:
        """`2026-11-30T14:00Z` as a datetime. Fails without an offset: the shell's time zone may not be the reader's."""
        try:
            read = value if isinstance(value, dt.datetime) else dt.datetime.fromisoformat(value)
        except ValueError:
            self.fail(f"{value!r} is not a time; write one as 2026-11-30T14:00Z", param, ctx)
        if read.tzinfo is None or not 2000 < read.year < 9000:
            self.fail(f"{value!r}: write the time with its offset, as 2026-11-30T14:00Z", param, ctx)
        return read.astimezone(dt.UTC)


_TIME = _Time()


@resources.command(
    "restore-all",
    epilog=example(
        "deprovisioner resources restore-all --tenant acme --deleted-since 2026-11-30T14:00Z --reason 'wrong tenant'",
        "deprovisioner resources restore-all --operation 7 --reason 'wrong tenant' --digest 200-3f0c…",
    ),
)
@click.option("--tenant", type=WORDS)
@click.option("--backend", type=WORDS)
@click.option("--deleted-since", type=_TIME, help="Deleted then or later; not needed with --operation.")
@click.option("--deleted-until", type=_TIME, help="Deleted before that.")
@click.option("--actor", type=WORDS, help="Who asked for the delete, as the job's first event says.")
@click.option("--operation", type=click.IntRange(1, 2**63 - 1), help="Deleted by this offboarding.")
@click.option("--reason", type=WORDS, required=True, help="Why; stored with each job.")
@click.option("--dry-run", is_flag=True, help="Only show what would be done, as without --digest.")
@digest_option
@click.option("--no-wait", is_flag=True, help="Begin, and do not wait for the end.")
@as_json_option
def resources_restore_all(
    reason: str, dry_run: bool, digest: str | None, no_wait: bool, as_json: bool, **filters: Any
) -> None:
    """Take back many deletes: first one of each backend, and when it has succeeded the others of its backend.

    Without --digest it is a dry run, which prints the command for the real run. Set a hold first: then nothing is
    destroyed meanwhile, and restores go on under it. `operations show` shows how the restores end. The exit code is 1
    when the operation was stopped, or when one of its jobs is stuck.
    """
    from deprovisioner.cli.progress import options
    from outbox import actions, db

    try:
        wanted = actions.taken_back(actions.DeleteFilter(**filters))
    except BadRequest as error:
        raise click.UsageError(str(error)) from error
    if dry_run or digest is None:
        with db.snapshot() as session:
            seen = actions.preview_restore(session, me(), wanted)
        if as_json:
            print_json(vars(seen) | {"sample": [vars(resource) for resource in seen.sample]})
            return
        click.echo(
            f"deletes that can be taken back: {seen.count}; not any more: {seen.started} being destroyed, "
            f"{seen.destroyed} destroyed, {seen.never_active} never active\n"
        )
        show_sample(seen, ("id", "tenant", "backend", "name", "deleted_at", "purge_at"))
        if seen.unheld:
            click.echo(f"\nno hold covers {seen.unheld} of them; their destruction may start: see `hold set`")
        said = options(wanted.words(), "resources", "restore-all")
        if seen.count:
            say_how(f"restore exactly these {seen.count}", seen, *said, "--reason", reason)
        return
    with db.transaction() as session:
        begun = actions.begin_restore(session, me(), wanted, reason=reason, digest=digest)
    follow(begun, wait=not no_wait, as_json=as_json)
