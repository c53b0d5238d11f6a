"""Servers that are gone: `backends retire`, `unretire`, `abandon`, and the ledger `audit abandoned`."""

import click

from deprovisioner.cli.audit import audit
from deprovisioner.cli.backends import backends
from deprovisioner.cli.decisions import operator_of, token_option
from deprovisioner.cli.jobs import _fence, _job, _show_decision, jobs
from deprovisioner.cli.recover import _tell
from deprovisioner.cli.shell import WORDS, as_json_option, edge, example, me, print_json, print_table

_LEDGER = ("resource_id", "tenant", "backend", "abandoned_at", "names", "proposed_reason", "approved_reason")


@backends.command("retire", epilog=example("deprovisioner backends retire pg-old --reason 'the rack burned: INC-7'"))
@click.argument("name", type=WORDS)
@click.option("--reason", type=WORDS, required=True, help="Why; stored for good.")
@as_json_option
def retire(name: str, reason: str, as_json: bool) -> None:
    """Say that a backend's server is gone for good: nothing is made, torn down or restored there any more.

    A DELETE is still accepted. Two operators then end its teardown with `backends abandon`; it is never called deleted.
    """
    from outbox import actions

    hold = edge().transact(lambda db: actions.retire(db, me(), name, reason=reason))
    print_json(vars(hold)) if as_json else click.echo(f"backend {name} is retired ({hold})")


@backends.command("unretire", epilog=example("deprovisioner backends unretire pg-old --reason 'its disks were saved'"))
@click.argument("name", type=WORDS)
@click.option("--reason", type=WORDS, required=True, help="Why; stored for good.")
@as_json_option
def unretire(name: str, reason: str, as_json: bool) -> None:
    """Take a retirement back, and wake the jobs that waited. Refused once anything on the backend was abandoned."""
    from outbox import actions

    hold = actions.unretire(edge(), me(), name, reason=reason)
    print_json(vars(hold)) if as_json else click.echo(f"backend {name} is not retired any more; its jobs go on")


@backends.command(
    "abandon", epilog=example("deprovisioner backends abandon pg-old --reason 'disks shredded: certificate 4711'")
)
@click.argument("name", type=WORDS)
@click.option(
    "--reason",
    type=WORDS,
    required=True,
    help="The evidence that its objects are gone, such as a ticket or a certificate; stored with each.",
)
@token_option
@as_json_option
def abandon(name: str, reason: str, token: str | None, as_json: bool) -> None:
    """End every teardown of a retired backend as abandoned. Takes two operators, each with evidence of their own.

    The first operator's command proposes; the second's, within an hour, ends what was proposed. Exit code 1 while
    anything waits for the second operator, or was refused.
    """
    from outbox import actions

    ended, waiting, refused = actions.abandon_all(edge(), operator_of(token), name, reason=reason, tell=_tell)
    if as_json:
        print_json({"abandoned": ended, "proposed": waiting, "refused": refused})
    else:
        click.echo(f"{ended} teardowns abandoned")
        if waiting:
            click.echo(f"{waiting} wait for a second operator, who runs the same command within an hour")
        for job, why in refused.items():
            click.echo(f"refused: job {job}: {why}")
    if waiting or refused:
        raise SystemExit(1)


@jobs.command("abandon", epilog=example("deprovisioner jobs abandon 42 --fence 7 --reason 'certificate 4711'"))
@_job
@_fence
@click.option("--reason", type=WORDS, required=True, help="The evidence that its object is gone; stored for good.")
@token_option
@as_json_option
def jobs_abandon(job_id: int, fence: int, reason: str, token: str | None, as_json: bool) -> None:
    """End one teardown of a retired backend as abandoned. Takes two operators."""
    from outbox import actions

    _show_decision(actions.abandon(edge(), operator_of(token), job_id, fence=fence, reason=reason), as_json)


@audit.command("abandoned", epilog=example("deprovisioner audit abandoned --backend pg-old --json"))
@click.option("--backend", type=WORDS, help="Only objects of this backend.")
@click.option("--tenant", type=WORDS, help="Only this tenant's.")
@as_json_option
def abandoned(backend: str | None, tenant: str | None, as_json: bool) -> None:
    """List what may have leaked: the objects that were abandoned with their server, and who gave them up, and why."""
    from outbox import db, queries

    with db.statement() as session:
        rows = [vars(row) for row in queries.abandoned(session, backend=backend, tenant=tenant)]
    if as_json:
        print_json({"items": rows})
        return
    shown = [row | {"names": ", ".join(f"{k}={v}" for k, v in (row["manifest"] or {}).items() if v)} for row in rows]
    print_table(shown, _LEDGER)
