"""What takes two operators, at a shell: whose token it is, and what the second one must run."""

from typing import TYPE_CHECKING, Any, NoReturn

import click

from deprovisioner.cli.shell import WORDS, cell, print_json

if TYPE_CHECKING:
    from outbox.actions import Operator, Proposed
    from outbox.queries import Approval, Observation

token_option = click.option(
    "--token",
    type=WORDS,
    envvar="DEPROVISIONER_OPERATOR_TOKEN",
    show_envvar=True,
    help="Your own operator's token, for what takes two operators: the second one runs the same command for the same "
    "job and fence, with a token and a reason of their own, within an hour. Until then nothing is done, and the exit "
    "code is 1.",
)


def operator_of(token: str | None) -> "Operator":
    """The operator that has this token: at a shell, a user's name proves nothing."""
    from outbox import actions, advice, db
    from outbox.errors import NotFound

    if not token:
        raise click.UsageError(
            "a forced action needs your own operator's token, with --token or in DEPROVISIONER_OPERATOR_TOKEN; to make "
            f"one: {advice.CREATE_COMMAND}"
        )
    with db.statement() as session:
        found = actions.caller(session, token)
    if found is None:
        raise NotFound("this token is unknown or was revoked")
    return actions.operator(found)


def show_proposal(proposed: "Proposed", as_json: bool) -> NoReturn:
    """The first of two operators has proposed: print what the second must run, what was last seen; and exit with 1."""
    from outbox import advice

    approval, seen = proposed.approval, proposed.last_look
    if as_json:
        print_json({"approval": as_approval(approval), "new": approval.new, "last_look": seen and as_observation(seen)})
        raise SystemExit(1)
    again = "" if approval.new else "you are the operator who proposed it: "
    already = "" if approval.new else f" at {cell(approval.proposed_at)} already ({approval.reason})"
    click.echo(f"{again}proposed by {approval.proposed_by}{already}; nothing is done yet")
    click.echo(
        f"another operator must run, with a token and a reason of their own, before {cell(approval.expires_at)}:"
    )
    click.echo(f"  {advice.to_approve(approval)}\nto make a token: {advice.CREATE_COMMAND}")
    if seen is not None:
        click.echo(f"last inspection, by {seen.observed_by} at {cell(seen.observed_at)}: {seen.means}")
    raise SystemExit(1)


def as_observation(seen: "Observation") -> dict[str, Any]:
    """An inspection, for JSON."""
    names = ("job_id", "fence", "found", "means", "seen", "observed_at", "observed_by")
    return {name: getattr(seen, name) for name in names}


def as_approval(approval: "Approval") -> dict[str, Any]:
    """A proposal, for JSON."""
    return {name: value for name, value in vars(approval).items() if name != "new"}
