"""`deprovisioner token`: make, list and revoke bearer tokens."""

import click

from deprovisioner.cli.shell import (
    WORDS,
    Choice,
    as_json_option,
    cell,
    example,
    main,
    me,
    operate,
    print_json,
    print_table,
)
from outbox.errors import BadRequest
from outbox.states import TokenRole


@main.group()
def token() -> None:
    """Make, list and revoke bearer tokens of the API."""
    operate()


@token.command("create", epilog=example("deprovisioner token create --role tenant --tenant acme --name ci"))
@click.option("--role", type=Choice(TokenRole), required=True)
@click.option("--tenant", type=WORDS, help="The tenant that the token is for; only with --role tenant.")
@click.option("--name", type=WORDS, help="A name to know it by; events show it.")
@click.option("--reason", type=WORDS, help="Why; stored with the event.")
@as_json_option
def token_create(role: TokenRole, tenant: str | None, name: str | None, reason: str | None, as_json: bool) -> None:
    """Make a token. It is shown only now: the database keeps its hash."""
    from outbox import db, tokens

    try:
        with db.statement() as session:
            made, secret = tokens.create(
                session, role=role, tenant=tenant, name=name or "", actor=me().actor, reason=reason
            )
    except BadRequest as error:
        raise click.UsageError(str(error)) from error
    if as_json:
        print_json(vars(made) | {"token": secret})
    else:
        click.echo(f"token {made.id}; it is shown only now:", err=True)
        click.echo(secret)


@token.command("list", epilog=example("deprovisioner token list"))
@as_json_option
def token_list(as_json: bool) -> None:
    """All tokens, without their secrets."""
    from outbox import db, tokens

    with db.statement() as session:
        rows = [vars(row) for row in tokens.list_all(session)]
    print_json({"items": rows, "next_cursor": None}) if as_json else print_table(
        rows, ("id", "name", "role", "tenant", "created_at", "revoked_at")
    )


@token.command("revoke", epilog=example("deprovisioner token revoke 3 --reason 'it was in a log'"))
@click.argument("token_id", type=click.IntRange(1, 2**63 - 1))
@click.option("--reason", type=WORDS, help="Why; stored with the event.")
@as_json_option
def token_revoke(token_id: int, reason: str | None, as_json: bool) -> None:
    """Revoke a token. API processes that have just seen it still accept it for up to two seconds."""
    from outbox import db, tokens

    with db.statement() as session:
        revoked = tokens.revoke(session, token_id, actor=me().actor, reason=reason)
    print_json(vars(revoked)) if as_json else click.echo(
        f"token {revoked.id} is revoked since {cell(revoked.revoked_at)}"
    )
