"""`deprovisioner hold`: keep jobs from starting, and let them start again."""

import click

from deprovisioner.cli.shell import WORDS, as_json_option, edge, example, main, me, operate, print_json, show_page


@main.group()
def hold() -> None:
    """Keep jobs from starting: all of them, or those of one backend, tenant or kind."""
    operate()


@hold.command(
    "set",
    epilog=example(
        "deprovisioner hold set --global",
        "deprovisioner hold set --backend pg-main --reason 'disk is filling up'",
    ),
)
@click.option("--global", "everything", is_flag=True, help="All jobs: the kill switch.")
@click.option("--backend", type=WORDS, help="Only this backend's jobs.")
@click.option("--tenant", type=WORDS, help="Only this tenant's jobs.")
@click.option("--kind", type=WORDS, help="Only jobs on backends of this kind.")
@click.option("--reason", type=WORDS, help="Why; stored for good. Only --global does without.")
@as_json_option
def hold_set(
    everything: bool, backend: str | None, tenant: str | None, kind: str | None, reason: str | None, as_json: bool
) -> None:
    """Let no job in the scope start from now on. A teardown that has started runs to its end.

    Needs only the control database: the API and the broker may be down. Held jobs use up no attempts.
    """
    from outbox import actions, advice, db
    from outbox.states import HoldScope

    named = {HoldScope.BACKEND: backend, HoldScope.TENANT: tenant, HoldScope.KIND: kind}
    chosen = [(scope, subject) for scope, subject in named.items() if subject is not None]
    if len(chosen) + everything != 1:
        raise click.UsageError("say one of --global, --backend, --tenant, --kind, and only one; set a hold for each")
    if reason is None and not everything:
        raise click.UsageError("say why: --reason")
    scope, subject = chosen[0] if chosen else (HoldScope.GLOBAL, None)
    with db.statement() as session:
        made = actions.hold(session, me(), scope, subject, reason=reason or "kill switch")
    if as_json:
        print_json(vars(made))
    else:
        click.echo(f"{made}\nto end it: {advice.to_release(made.id)}")


@hold.command("list", epilog=example("deprovisioner hold list", "deprovisioner hold list --all --json"))
@click.option("--all", "released", is_flag=True, help="Released holds too.")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True)
@click.option("--cursor", type=WORDS, help="`next_cursor` of the page before.")
@as_json_option
def hold_list(released: bool, limit: int, cursor: str | None, as_json: bool) -> None:
    """Holds in force, newest first."""
    from outbox import advice, db, queries

    with db.statement() as session:
        page = queries.list_holds(session, released=released, limit=limit, cursor=cursor)
    columns = ["id", "scope", "subject", "cause", "created_at", "actor", "reason"]
    show_page(page, columns + ["released_at", "released_by", "release_reason"] * released, as_json)
    ends = next((made for made in page.items if made.released_at is None), None)
    if ends and not as_json:
        click.echo(f"\nto end one, when its cause is gone:\n  {advice.to_release(ends.id)}")


@hold.command("release", epilog=example("deprovisioner hold release 7 --reason 'disk was made larger'"))
@click.argument("hold_id", type=click.IntRange(1, 2**63 - 1))
@click.option("--reason", type=WORDS, required=True, help="Why it is safe now; stored for good.")
@as_json_option
def hold_release(hold_id: int, reason: str, as_json: bool) -> None:
    """End one hold, and wake the jobs that waited for it. The brake that set the hold starts to count again at zero."""
    from outbox import actions, db, queries

    released = actions.release(edge(), me(), hold_id, reason=reason)
    if as_json:
        print_json(vars(released))
        return
    click.echo(f"hold {released.id} is released")
    with db.statement() as session:
        for other in queries.list_holds(session).items:
            click.echo(f"still in force: {other}")
