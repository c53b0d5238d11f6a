"""`deprovisioner recover`: what a person does after the control database, or a backend, went back in time."""

import datetime as dt
import re
import shlex
from typing import TYPE_CHECKING, Any

import click

from deprovisioner.cli.shell import (
    WORDS,
    as_json_option,
    cell,
    edge_of_a_recovery,
    example,
    main,
    me,
    operate,
    print_fields,
    print_json,
    print_table,
)
from outbox.errors import BadRequest, NotFound

if TYPE_CHECKING:
    from outbox.actions import Recovered, Survey

_DECISION = re.compile(r"([a-z_]+)=([a-z]+)")


def _decisions(_: click.Context, __: click.Parameter, value: tuple[str, ...]) -> list[tuple[str, str]]:
    """Each `CLASS=DECISION`, apart."""
    parts = [(one, _DECISION.fullmatch(one)) for one in value]
    if wrong := [one for one, match in parts if match is None]:
        raise click.BadParameter(f"{wrong[0]!r} is not CLASS=DECISION, such as teardowns=leave")
    return [(match[1], match[2]) for _, match in parts if match is not None]


def _digest(_: click.Context, __: click.Parameter, value: str | None) -> str | None:
    from outbox.actions import DIGEST

    if value is not None and not re.fullmatch(DIGEST, value):
        raise click.BadParameter(f"{value!r} is not a digest: copy all of the digest that the survey printed")
    return value


def _moment(_: click.Context, __: click.Parameter, value: str | None) -> dt.datetime | None:
    """An RFC 3339 time."""
    if value is None:
        return None
    try:
        moment = dt.datetime.fromisoformat(value)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise click.BadParameter(f"{value!r} is not a time with its zone, such as 2026-11-30T08:00:00Z")
    return moment


@main.command(
    "recover",
    epilog=example(
        "deprovisioner recover",
        "deprovisioner recover --digest 7-3f0c… --decide expiries_due=cancel --reason 'the dump of 08:00 is restored'",
        "deprovisioner recover --announce --reason 'restoring the dump of 08:00'",
    ),
)
@click.option(
    "--digest",
    callback=_digest,
    help="The digest that the survey printed. Without it, this command only makes a survey.",
)
@click.option(
    "--decide",
    "decided",
    callback=_decisions,
    multiple=True,
    metavar="CLASS=DECISION",
    help="The decision for a class: confirm, cancel or leave. Each class that has items needs one.",
)
@click.option("--reason", type=WORDS, help="Why; stored in the events. Needed with --digest and with --announce.")
@click.option(
    "--without", type=WORDS, multiple=True, metavar="BACKEND", help="Go on without a backend that could not be read."
)
@click.option("--tenant", type=WORDS, help="The tenant of unknown objects whose tenant no note names.")
@click.option(
    "--revoke-tokens-before",
    "revoke_before",
    callback=_moment,
    metavar="TIME",
    help="Revoke every token that was made before TIME, such as 2026-11-30T08:00:00Z.",
)
@click.option(
    "--backend", type=WORDS, metavar="NAME", help="Compare only this backend, which itself went back in time."
)
@click.option("--announce", is_flag=True, help="Before a planned restore: start nothing, here or in a copy.")
@as_json_option
def recover(
    digest: str | None,
    decided: list[tuple[str, str]],
    reason: str | None,
    without: tuple[str, ...],
    tenant: str | None,
    revoke_before: dt.datetime | None,
    backend: str | None,
    announce: bool,
    as_json: bool,
) -> None:
    """Compare the control database with the backends after a restore, and carry out what you decide.

    Without --digest it makes a survey: it stores what may be wrong, by class, changes nothing else, and prints the
    command of the real run. If the real run is killed, run the same command again: it goes on. The command needs the
    backends file and the addresses in it, as a worker does. It exits with 1 when it was refused, or when a decision
    could not be carried out for an item.
    """
    from outbox import actions, settings
    from worker.survey import Places

    operate()
    configured = settings.backends()
    if backend is not None and backend not in configured:
        raise NotFound(f"there is no backend {backend!r} in the backends file; it has: {', '.join(sorted(configured))}")
    if announce:
        if digest or decided or backend or without or tenant or revoke_before:
            raise click.UsageError("--announce takes only --reason; leave out the other options")
        untold = actions.announce(edge_of_a_recovery(), me(), Places(configured), _tell, reason=_reason(reason))
        _announced(untold, as_json)
        return
    if backend is not None:
        configured = {backend: configured[backend]}
    if digest is None:
        if decided or without or tenant or revoke_before or reason:
            raise click.UsageError(
                "decisions need --digest: copy it from the survey that `deprovisioner recover` printed"
            )
        seen = actions.survey(edge_of_a_recovery(), me(), Places(configured), _tell, backend=backend)
        _show_survey(seen, as_json)
        return
    try:
        wanted = actions.wanted_recovery(
            digest,
            decided,
            reason=_reason(reason),
            backend=backend,
            without=without,
            tenant=tenant,
            revoke_before=revoke_before,
        )
        done = actions.recover(edge_of_a_recovery(), me(), Places(configured), _tell, wanted)
    except BadRequest as error:
        raise click.UsageError(str(error)) from error
    _show_end(done, as_json)


def _reason(given: str | None) -> str:
    if given is None:
        raise click.UsageError("say why with --reason: it is stored in the events")
    return given


def _tell(words: str) -> None:
    """Progress goes to stderr: stdout may be JSON."""
    click.echo(words, err=True)


def _announced(untold: dict[str, str], as_json: bool) -> None:
    if as_json:
        print_json({"announced": True, "untold": untold})
    else:
        click.echo(
            "announced: workers start nothing, in this database or in a copy of it, until you have run `deprovisioner "
            "recover` and decided"
        )
        for place, why in untold.items():
            click.echo(f"{place} was not told, so its workers may miss the announcement after a restore: {why}")
    if untold:
        raise SystemExit(1)


def _show_survey(seen: "Survey", as_json: bool) -> None:
    from outbox.actions import CLASSES

    classes = [one for one in CLASSES if one.name in seen.counts]
    if as_json:
        print_json(vars(seen) | {"command": _command(seen)})
        return
    where = f"backend {seen.backend}" if seen.backend else "the control database"
    click.echo(f"survey {seen.id} of {where}, at {cell(seen.created_at)}")
    click.echo(f"what differs: {seen.verdict or 'no backend shows that the database went back in time'}")
    click.echo(f"backends read: {', '.join(seen.surveyed) or '(none)'}\n")
    print_fields({one.name: seen.counts[one.name] for one in classes})
    for one in classes:
        if not seen.counts[one.name]:
            continue
        click.echo(f"\n{one.name}: {one.about}")
        rows = [_row(item) for item in seen.samples[one.name]]
        print_table(rows, tuple(rows[0]))
        if seen.counts[one.name] > len(rows):
            click.echo(f"and {seen.counts[one.name] - len(rows)} more")
        for decision, (what, _) in one.does.items():
            click.echo(f"  --decide {one.name}={decision:<8} {what}")
    for name, why in seen.errors.items():
        click.echo(f"\nERROR: backend {name} could not be read, so its objects are in no class: {why}")
    click.echo(
        "\nnothing was changed. To decide, replace each … in this command (by a decision, or your reason) and run it:\n"
        f"  deprovisioner {_command(seen)}"
    )


# The fields of an item's detail that the table shows.
_SHOWN = (
    "tenant",
    "name",
    "status",
    "state",
    "step",
    "expires_at",
    "purge_at",
    "found",
    "set",
    "since",
    "parts",
    "why",
)


def _row(item: dict[str, Any]) -> dict[str, Any]:
    """An item as a line of the table."""
    detail = item["detail"]
    row = {"key": item["key"], "backend": item["backend"]}
    named = {name: detail[name] for name in _SHOWN if name in detail}
    return row | (named or detail)


def _command(seen: "Survey") -> str:
    """The command of the real run, with … in the place of each decision and of the reason."""
    said = ["recover", "--digest", seen.digest]
    for name, count in seen.counts.items():
        if count:
            said += ["--decide", f"{name}=…"]
    for name in seen.errors:
        said += ["--without", name]
    if seen.backend:
        said += ["--backend", seen.backend]
    return shlex.join([*said, "--reason", "…"]).replace("'", "")


def _show_end(done: "Recovered", as_json: bool) -> None:
    if as_json:
        print_json({"survey": vars(done.survey), "refused": done.refused, "unwritten": done.unwritten})
    else:
        click.echo(f"recovery {done.survey.id} has ended: workers start jobs again")
        if done.refused:
            click.echo("\nnot carried out, and left for you (`said` has the reason):")
            print_table(done.refused, ("class", "key", "backend", "job_id", "resource_id", "said"))
        for place, why in done.unwritten.items():
            click.echo(f"{place} has not taken the new epoch; a worker will write it later: {why}")
    if done.survey.refused:
        raise SystemExit(1)
