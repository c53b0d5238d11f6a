"""`deprovisioner hold`: stopping what would start, and letting it go on."""

import click

from deprovisioner.cli.shell import WORDS, as_json_option, example, main, me, operate, print_json, ring, show_page


@main.group()
def hold() -> None:
    """Stop what would start: everything, or one backend, tenant or kind."""
    operate()


@hold.command(
    "set",
    epilog=example(
        "deprovisioner hold set --global",
        "deprovisioner hold set --backend pg-main --reason 'disk is filling up'",
    ),
)
@click.option("--global", "everything", is_flag=True, help="Everything: the kill switch.")
@click.option("--backend", type=WORDS, help="Only this backend's jobs.")
@click.option("--tenant", type=WORDS, help="Only this tenant's jobs.")
@click.option("--kind", type=WORDS, help="Only jobs on backends of this kind.")
@click.option("--reason", type=WORDS, help="Why; kept for ever. Only --global goes without.")
@as_json_option
def hold_set(
    everything: bool, backend: str | None, tenant: str | None, kind: str | None, reason: str | None, as_json: bool
) -> None:
    """Let nothing in the scope start from now on, births included. What is inside a teardown ends it.

    Talks to the control database alone: neither API nor broker need be alive. Nothing burns attempts meanwhile.
    """
    from outbox import db, holds
    from outbox.states import HoldScope

    named = {HoldScope.BACKEND: backend, HoldScope.TENANT: tenant, HoldScope.KIND: kind}
    chosen = [(scope, subject) for scope, subject in named.items() if subject is not None]
    if len(chosen) + everything != 1:
        raise click.UsageError("say one of --global, --backend, --tenant, --kind")
    if reason is None and not everything:
        raise click.UsageError("say why: --reason")
    scope, subject = chosen[0] if chosen else (HoldScope.GLOBAL, None)
    with db.statement() as session:
        made = holds.engage(session, scope, subject, actor=me(), reason=reason or "kill switch")
    if as_json:
        print_json(vars(made))
    else:
        click.echo(f"{made}\nuntil: deprovisioner hold release {made.id} --reason …")


@hold.command("list", epilog=example("deprovisioner hold list", "deprovisioner hold list --all --json"))
@click.option("--all", "released", is_flag=True, help="Those released, too.")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True)
@click.option("--cursor", type=WORDS, help="`next_cursor` of the page before.")
@as_json_option
def hold_list(released: bool, limit: int, cursor: str | None, as_json: bool) -> None:
    """Holds in force, newest first."""
    from outbox import db, queries

    with db.statement() as session:
        page = queries.list_holds(session, released=released, limit=limit, cursor=cursor)
    columns = ["id", "scope", "subject", "cause", "created_at", "actor", "reason"]
    show_page(page, columns + ["released_at", "released_by", "release_reason"] * released, as_json)


@hold.command("release", epilog=example("deprovisioner hold release 7 --reason 'disk was made larger'"))
@click.argument("hold_id", type=click.IntRange(1, 2**63 - 1))
@click.option("--reason", type=WORDS, required=True, help="Why it is safe now; kept for ever.")
@as_json_option
def hold_release(hold_id: int, reason: str, as_json: bool) -> None:
    """End one hold. A brake that engaged it begins to count anew."""
    from contextlib import suppress

    from sqlalchemy.exc import SQLAlchemyError

    from outbox import db, holds, jobs, queries

    with db.statement() as session:
        released = holds.release(session, hold_id, actor=me(), reason=reason)
        others = queries.list_holds(session).items
    with suppress(SQLAlchemyError), db.statement() as session:
        jobs.wake(session)  # a first batch; it is released, and the sweeps see to the rest
    ring()
    if as_json:
        print_json(vars(released))
        return
    click.echo(f"hold {released.id} is released")
    for other in others:
        click.echo(f"still in force: {other}")
