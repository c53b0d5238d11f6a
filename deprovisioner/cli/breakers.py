"""`deprovisioner breakers`: the backends out of reach."""

from deprovisioner.cli.shell import as_json_option, example, main, operate, print_json, print_table


@main.group()
def breakers() -> None:
    """See which backends are out of reach."""
    operate()


@breakers.command("list", epilog=example("deprovisioner breakers list"))
@as_json_option
def breakers_list(as_json: bool) -> None:
    """The backends that workers could not reach, since when, and why. Their jobs wait."""
    from outbox import db, queries

    with db.statement() as session:
        rows = [vars(row) for row in queries.list_breakers(session)]
    print_json({"items": rows, "next_cursor": None}) if as_json else print_table(
        rows, ("backend", "state", "since", "failures", "retry_at", "waiting", "why"), cut=True
    )
