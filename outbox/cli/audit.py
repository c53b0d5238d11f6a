"""`deprovisioner audit`: checkpoints over the evidence, and proofs of deletion."""

import datetime as dt
import re
import uuid
from itertools import chain, islice
from typing import Any

import click

from outbox.cli.shell import as_json_option, as_text, cell, example, main, me, operate, print_fields, print_json

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def _since(_: click.Context, __: click.Parameter, value: str | None) -> dt.datetime | dt.timedelta | None:
    if value is None:
        return None
    if duration := re.fullmatch(r"(\d{1,6})([smhd])", value):
        return dt.timedelta(**{_UNITS[duration[2]]: int(duration[1])})
    try:
        at = dt.datetime.fromisoformat(value)
    except ValueError as error:
        wanted = "a time (2026-03-01, 2026-03-01T12:00:00Z) or a duration (90m, 24h, 7d)"
        raise click.BadParameter(f"{value!r} is not {wanted}") from error
    return at if at.tzinfo else at.replace(tzinfo=dt.UTC)


@main.group()
def audit() -> None:
    """Vouch for the evidence, and export proofs of deletion."""
    operate()


@audit.command("checkpoint", epilog=example("deprovisioner audit checkpoint --json"))
@as_json_option
def audit_checkpoint(as_json: bool) -> None:
    """Keep the heads of all chains of events now, and print the hash to keep elsewhere."""
    from outbox import audit as evidence  # noqa: PLC0415
    from outbox import db, events  # noqa: PLC0415

    events.configure()  # its log line goes to stderr
    with db.transaction() as session:
        made = evidence.checkpoint(session, actor=me(), every=dt.timedelta(0))
    with db.statement() as session:
        last = made or evidence.last_checkpoint(session)
    if as_json:
        print_json({"made": made is not None, "checkpoint": vars(last) if last else None})
    elif last is None:
        click.echo("there are no events yet, so there is nothing to vouch for")
    else:
        print_fields(vars(last) | ({} if made else {"note": "no new events: this is the last one"}))


@audit.command(
    "export",
    epilog=example(
        "deprovisioner audit export --since 30d --json > deletions.json",
        "deprovisioner audit export --resource 7d1f4c1e-0f5e-4c59-9d0a-3a3f0b6f6a52",
    ),
)
@click.option("--since", metavar="TIME|DURATION", callback=_since, help="Deletions that ended since then.")
@click.option("--resource", "resource_id", type=click.UUID, help="Only this resource's.")
@as_json_option
def audit_export(since: dt.datetime | dt.timedelta | None, resource_id: uuid.UUID | None, as_json: bool) -> None:
    """Proofs of deletion: who asked, what was seen, what was done, how absence was verified."""
    from outbox import audit as evidence  # noqa: PLC0415

    if since is None and resource_id is None:
        raise click.UsageError("--since or --resource is needed")
    found = evidence.proofs(dt.datetime.min.replace(tzinfo=dt.UTC) if since is None else since, resource_id)
    first = list(islice(found, 1))  # what fails, fails before anything is said
    if as_json:
        click.echo('{"items": [', nl=False)
        for number, proof in enumerate(chain(first, found)):
            click.echo((", " if number else "") + as_text(_told(proof)), nl=False)
        click.echo("]}")
        return
    for proof in chain(first, found):
        _show(_told(proof))
    if not first:
        click.echo("(none)")


def _told(proof: Any) -> dict[str, Any]:
    asked, ended = proof.asked, proof.ended
    told = (ended.detail if ended else None) or {}
    return {
        "resource": vars(proof.resource),
        "asked": asked
        and {
            "at": asked.at,
            "actor": asked.actor,
            "reason": asked.reason,
            "request_id": proof.request_id,
            "job_id": asked.job_id,
        },
        "attempts": [vars(attempt) for attempt in proof.attempts],
        "verified": ended
        and {
            "at": ended.at,
            "by": ended.actor,
            "how": ended.event,
            "fence": ended.fence,
            "seen": told.get("seen"),
            "forced_by": [told["proposed_by"], told["approved_by"]] if told.get("forced") else None,
        },
        "chain": vars(proof.chain),
        "checkpoint": proof.checkpoint and vars(proof.checkpoint),
        "events": [vars(event) for event in proof.events],
    }


def _show(told: dict[str, Any]) -> None:
    resource, asked, gone, links = (told[part] for part in ("resource", "asked", "verified", "chain"))
    click.echo(
        f"{resource['id']}  {resource['name']} of {resource['tenant']} on {resource['backend']}, {resource['kind']}"
    )
    lines = {"deleted": cell(resource["purged_at"]), "asked": "NOT RECORDED"}
    if asked:
        lines["asked"] = f"{cell(asked['at'])} by {asked['actor']}, reason {cell(asked['reason'])}"
        lines["request"] = f"{asked['request_id']}, job {asked['job_id']}"
    for attempt in told["attempts"]:
        lines[f"attempt {attempt['fence']}"] = (
            f"{cell(attempt['at'])} by {attempt['worker']}: saw {cell(attempt['saw'])}, did {cell(attempt['did'])}, "
            f"{attempt['outcome'] or 'no outcome'}{': ' + attempt['error'] if attempt['error'] else ''}"
        )
    lines["verified"] = f"{cell(gone['at'])} by {gone['by']}: saw {cell(gone['seen'])}" if gone else "NOT RECORDED"
    if gone and gone["forced_by"]:
        lines["verified"] = f"{cell(gone['at'])}: NOT SEEN, forced by {' and '.join(gone['forced_by'])}"
    lines["chain"] = f"{links['seq']} events, head {links['hash']}, {'verified' if links['verified'] else 'BROKEN'}"
    covered = told["checkpoint"]
    lines["checkpoint"] = f"{covered['id']} of {cell(covered['at'])}, {covered['hash']}" if covered else "none yet"
    print_fields({f"  {name}": line for name, line in lines.items()})
    click.echo()
