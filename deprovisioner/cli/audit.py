"""`deprovisioner audit`: checkpoints of the evidence, proofs of deletion, and what people did beside jobs."""

import datetime as dt
import re
import uuid
from collections.abc import Iterator
from itertools import chain, islice
from typing import Any

import click

from deprovisioner.cli.shell import (
    WORDS,
    as_json_option,
    as_text,
    cell,
    example,
    main,
    me,
    operate,
    print_fields,
    print_json,
    show_page,
)
from outbox.events import Event
from outbox.states import Step

# The longest line of evidence that people are shown; `--json` has all of it.
LINE = 120
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def _since(_: click.Context, __: click.Parameter, value: str | None) -> dt.datetime | dt.timedelta | None:
    if value is None:
        return None
    if duration := re.fullmatch(r"(\d{1,5})([smhd])", value):  # at most 99999d: it stays in the calendar
        return dt.timedelta(**{_UNITS[duration[2]]: int(duration[1])})
    try:
        at = dt.datetime.fromisoformat(value)
    except ValueError as error:
        wanted = "a time (2026-03-01, 2026-03-01T12:00:00Z) or a duration (90m, 24h, 7d)"
        raise click.BadParameter(f"{value!r} is not {wanted}") from error
    return at if at.tzinfo else at.replace(tzinfo=dt.UTC)


@main.group()
def audit() -> None:
    """Make checkpoints of the evidence, export proofs of deletion, and list what people did beside jobs."""
    operate()


@audit.command("checkpoint", epilog=example("deprovisioner audit checkpoint --json"))
@as_json_option
def audit_checkpoint(as_json: bool) -> None:
    """Store the heads of all chains of events now, and print a hash to keep outside the database."""
    from outbox import audit as evidence
    from outbox import db, logs

    logs.configure()  # its log line goes to stderr
    with db.transaction() as session:
        made = evidence.checkpoint(session, actor=me().actor, every=dt.timedelta(0))
    with db.statement() as session:
        last = made or evidence.last_checkpoint(session)
    if as_json:
        print_json({"made": made is not None, "checkpoint": vars(last) if last else None})
    elif last is None:
        click.echo("there are no events yet, so there is no checkpoint")
    else:
        grown = f"{last.heads} chain{'s' * (last.heads != 1)} with new events since the checkpoint before"
        print_fields({"id": last.id, "at": last.at, "covers": grown, "hash": last.hash})
        if not made:
            click.echo("no new events: this is the last checkpoint")


@audit.command(
    "acts", epilog=example("deprovisioner audit acts --since 7d", "deprovisioner audit acts --json --limit 1000")
)
@click.option("--since", metavar="TIME|DURATION", callback=_since, help="Acts since then.")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True)
@click.option("--cursor", type=WORDS, help="`next_cursor` of the page before.")
@as_json_option
def audit_acts(since: dt.datetime | dt.timedelta | None, limit: int, cursor: str | None, as_json: bool) -> None:
    """Who set and released holds, made and revoked tokens, began and stopped operations; newest first.

    An older version of the service writes no such events. `deprovisioner doctor` verifies their chain.
    """
    from outbox import db, queries

    with db.statement() as session:
        page = queries.list_acts(session, since=since, cursor=cursor, limit=limit)
    show_page(page, ("at", "event", "actor", "reason", "detail"), as_json, describe=_act)


def _act(act: Any) -> dict[str, Any]:
    said = (f"{name} {cell(value)}" for name, value in (act.detail or {}).items() if value is not None)
    return {**vars(act), "detail": ", ".join(said)}


@audit.command(
    "export",
    epilog=example(
        "deprovisioner audit export --since 30d --json > deletions.json",
        "deprovisioner audit export --resource 7d1f4c1e-0f5e-4c59-9d0a-3a3f0b6f6a52",
    ),
)
@click.option("--since", metavar="TIME|DURATION", callback=_since, help="Deletions that ended since then.")
@click.option("--resource", "resource_id", type=click.UUID, help="Only the deletion of this resource.")
@as_json_option
def audit_export(since: dt.datetime | dt.timedelta | None, resource_id: uuid.UUID | None, as_json: bool) -> None:
    """Proofs of deletion: who asked and why, what workers saw and did, what operators decided, who saw it absent."""
    from outbox import audit as evidence

    if since is None and resource_id is None:
        raise click.UsageError("say which deletions: --since or --resource")
    found = evidence.proofs(dt.datetime.min.replace(tzinfo=dt.UTC) if since is None else since, resource_id)
    first = list(islice(found, 1))  # an error comes before any output
    if as_json:
        click.echo('{"items": [', nl=False)
        for number, proof in enumerate(chain(first, found)):
            click.echo((", " if number else "") + as_text(_as_json(proof)), nl=False)
        click.echo("]}")
        return
    for proof in chain(first, found):
        _show(_as_json(proof))
    if not first:
        click.echo("(none)")


def _as_json(proof: Any) -> dict[str, Any]:
    asked = proof.asked
    return {
        "resource": vars(proof.resource),
        "asked": asked
        and {
            "at": asked.at,
            "actor": asked.actor,
            "reason": asked.reason,
            "on_behalf_of": (asked.detail or {}).get("on_behalf_of"),
            "request_id": proof.request_id,
            "job_id": asked.job_id,
        },
        "attempts": [vars(attempt) for attempt in proof.attempts],
        "redriven": [
            {"at": event.at, "by": event.actor, "reason": event.reason, "fence": event.fence}
            | {"forced_by": _forced_by(event), "operation": (event.detail or {}).get("operation")}
            for event in proof.redriven
        ],
        "purged": [
            {"at": event.at, "by": event.actor, "reason": event.reason, "forced_by": _forced_by(event)}
            for event in proof.purged
        ],
        "verified": proof.ended and _verified(proof),
        "chain": vars(proof.chain),
        "checkpoint": proof.checkpoint and vars(proof.checkpoint),
        "events": [vars(event) for event in proof.events],
    }


def _verified(proof: Any) -> dict[str, Any]:
    """How the job ended: by a worker who saw the object gone, by an operator on an observation, or by two by force."""
    ended = proof.ended
    detail = ended.detail or {}
    observer = detail.get("observed_by")
    times = [
        event.at
        for event in proof.events
        if event.event == Event.OBSERVED and event.actor == observer and event.job_id == ended.job_id
    ]
    completed = ended.event == Event.COMPLETED
    return {
        "at": ended.at,
        "by": ended.actor,
        "how": ended.event,
        "reason": ended.reason,
        "fence": ended.fence,
        "seen": detail.get("seen"),
        "observed_by": ended.actor if completed else observer,
        "observed_at": ended.at if completed else times[-1] if times else None,
        "forced_by": _forced_by(ended),
    }


def _forced_by(event: Any) -> list[str] | None:
    detail = event.detail or {}
    return [detail["proposed_by"], detail["approved_by"]] if "approved_by" in detail else None


def _show(told: dict[str, Any]) -> None:
    resource, asked, links, covered = (told[part] for part in ("resource", "asked", "chain", "checkpoint"))
    click.echo(
        f"{resource['id']}  {resource['name']} of {resource['tenant']} on {resource['backend']}, {resource['kind']}"
    )
    by = (
        f"by {asked['actor']}{_on_behalf(asked)}, reason: {cell(asked['reason'])}"
        if asked
        else "by whom is NOT RECORDED"
    )
    lines = [("asked", f"{cell(resource['deleted_at'])} {by}")]
    if asked:
        lines.append(("request", f"{asked['request_id']}, job {asked['job_id']}"))
    lines += [("purged", f"{cell(order['at'])} {_decided(order)}") for order in told["purged"]]
    lines += _course(told)
    lines.append(("gone", cell(resource["purged_at"])))
    lines += _end(told["verified"])
    chain = f"{links['seq']} events, head {links['hash']}, {'verified' if links['verified'] else 'BROKEN'}"
    covers = f"{covered['id']} of {cell(covered['at'])}, {covered['hash']}" if covered else "none yet"
    for name, line in (*lines, ("chain", chain), ("checkpoint", covers)):
        click.echo(f"  {name:<10}  {line}")
    click.echo()


def _on_behalf(asked: dict[str, Any]) -> str:
    return f" on behalf of {asked['on_behalf_of']}" if asked["on_behalf_of"] else ""


def _course(told: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The attempts, and after each the re-drives that followed it."""
    for attempt in told["attempts"]:
        ended = f"{attempt['outcome'] or 'no outcome'}{': ' + attempt['error'] if attempt['error'] else ''}"
        step = "" if attempt["step"] in (None, Step.DESTROY) else f" at {attempt['step']}"
        yield f"attempt {attempt['fence']}", f"{cell(attempt['at'])}{step} by {attempt['worker']}: {ended}"
        yield "  saw", _line(attempt["saw"])
        yield "  did", _line(attempt["did"])
        for again in told["redriven"]:
            if again["fence"] == attempt["fence"]:
                yield "redriven", f"{cell(again['at'])} {_decided(again)}"


def _end(verified: dict[str, Any] | None) -> Iterator[tuple[str, str]]:
    if verified is None:
        yield "verified", "NOT RECORDED"
    elif verified["forced_by"]:
        yield "verified", "NOT SEEN"
    else:
        yield "verified", f"{cell(verified['observed_at'])} by {cell(verified['observed_by'])}, who saw:"
        yield "  saw", _line(verified["seen"])
    if verified and verified["how"] == Event.RESOLVED:
        yield "resolved", f"{cell(verified['at'])} {_decided(verified)}"


def _decided(what: dict[str, Any]) -> str:
    who = f"forced by {' and '.join(what['forced_by'])}" if what["forced_by"] else f"by {what['by']}"
    among = f" with operation {what['operation']}" if what.get("operation") else ""
    return f"{who}{among}, reason: {cell(what['reason'])}"


def _line(seen: dict[str, Any] | None) -> str:
    """Evidence in a short line; each part is cut to its share. Of a list: its length, and its DROP statements."""
    if not seen:
        return "-"
    parts, share = (_part(name.replace("_", " "), value) for name, value in seen.items()), LINE // len(seen)
    return ", ".join(part if len(part) <= share else f"{part[: share - 1]}…" for part in parts)


def _part(name: str, value: Any) -> str:
    if value is None or value == []:
        return f"no {name}"
    if not isinstance(value, list):
        return f"{name} {value}"
    telling = [str(one) for one in value if str(one).startswith("DROP ")] or [str(value[-1])]
    return f"{name} {value[0]}" if len(value) == 1 else f"{len(value)} {name}, among them {'; '.join(telling)}"
