"""What every command shares: the group, its errors, its options, and how it prints."""

import datetime as dt
import getpass
import importlib
import json
import os
import re
import shutil
import sys
import uuid
from collections.abc import Callable, Iterable, Sequence
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import click

from outbox.errors import DeprovisionerError, SettingsError
from outbox.rows import storable

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from outbox.actions import Edge, Operator

T = TypeVar("T")

# The modules of this package that define a command. A command loads its own; `--help` loads them all.
_MODULES = {
    "adopt": ["adopt"],
    "api": ["serve"],
    "audit": ["audit", "retirement"],
    "backends": ["backends", "rebind", "retirement"],
    "breakers": ["breakers"],
    "demo": ["serve"],
    "doctor": ["doctor"],
    "hold": ["holds"],
    "jobs": ["jobs", "retirement", "operations"],
    "migrate": ["serve"],
    "operations": ["operations", "adopt"],
    "reconcile": ["reconcile"],
    "recover": ["recover"],
    "resources": ["resources", "restores"],
    "snapshots": ["snapshots"],
    "tenants": ["operations"],
    "token": ["tokens"],
    "up": ["serve"],
    "worker": ["serve"],
}


class _Command(click.Command):
    """A list of commands has the whole first sentence of each; click would cut it in the middle."""

    def get_short_help_str(self, limit: int = 45) -> str:  # noqa: ARG002 - click's signature
        """The first sentence."""
        return super().get_short_help_str(limit=1000)


class _Group(click.Group):
    command_class = _Command

    def get_short_help_str(self, limit: int = 45) -> str:  # noqa: ARG002 - click's signature
        """The first sentence."""
        return super().get_short_help_str(limit=1000)


class _Main(_Group):
    group_class = _Group

    """Loads only the modules of the command. Prints our errors, and a lost database, as one line on stderr."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Their names, in order."""
        return sorted(_MODULES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, after its modules have added it."""
        for module in _MODULES.get(cmd_name, []):
            importlib.import_module(f"deprovisioner.cli.{module}")
        return super().get_command(ctx, cmd_name)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except SettingsError as error:
            raise _Failed(str(error), code=2) from error
        except DeprovisionerError as error:
            raise _Failed(str(error)) from error
        except (click.ClickException, click.exceptions.Exit):
            raise  # without SQLAlchemy, which a help text must not load
        except Exception as error:
            from sqlalchemy.exc import SQLAlchemyError

            if not isinstance(error, SQLAlchemyError):
                raise
            text = str(getattr(error, "orig", None) or error).strip()
            hint = " (run `deprovisioner migrate` first?)" if "does not exist" in text else ""
            if "permission denied" in text or "must be owner" in text:
                hint = " (the service's role has no right to do this: run it as the owner of the tables)"
            if "Connection refused" in text:
                hint = " (is it running? `deprovisioner up` starts its own)"
                if ctx.invoked_subcommand == "hold":
                    hint += (
                        "; no hold was set or released: workers start no job while they cannot reach the database; to "
                        "keep them stopped after that, stop their processes"
                    )
            raise _Failed(f"control database: {text.splitlines()[0]}{hint}") from error


class _Failed(click.ClickException):
    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = code  # type: ignore[misc]  # click declares it for the class


def example(*lines: str) -> str:
    """The epilog of a command: lines that can be typed as they are."""
    return "\b\nExample:\n" + "\n".join(f"  {line}" for line in lines)


as_json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of a table.")


# The units of a span of time, in seconds; the shortest first.
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


class _Age(click.ParamType[dt.timedelta]):
    """A span of time as people write it."""

    name = "age"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dt.timedelta:
        """`2h` as a timedelta; at most 99999d, which PostgreSQL's calendar can subtract from now."""
        if isinstance(value, dt.timedelta):
            return value
        written = re.fullmatch(r"(\d{1,5})([smhd])", value, re.ASCII)
        if written is None:
            self.fail(f"{value!r} is not an age; write one as 90s, 15m, 2h or 3d", param, ctx)
        return dt.timedelta(seconds=int(written[1]) * UNITS[written[2]])


AGE = _Age()


class _Span(click.ParamType[int]):
    """A time to keep something for."""

    name = "span"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """`10m` in seconds."""
        from outbox import settings

        try:
            return value if isinstance(value, int) else int(settings.span(value).total_seconds())
        except ValueError as error:
            self.fail(str(error), param, ctx)


SPAN = _Span()


class _Words(click.ParamType[str]):
    """A name or a reason: stored, and shown to other people."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The text as it is. Fails when it is blank, or cannot be stored."""
        if not value.strip():
            self.fail("it is blank", param, ctx)
        if not storable(value):
            self.fail("it contains control characters, or is not UTF-8", param, ctx)
        return str(value)


WORDS = _Words()


E = TypeVar("E", bound=StrEnum)


class Choice(click.Choice[E]):
    """One member of an enum, chosen by its value; click's own class would offer the members' names."""

    def normalize_choice(self, choice: Any, ctx: click.Context | None) -> str:  # noqa: ARG002 - click's signature
        """A member, or what the person typed, as its value."""
        return str(choice)


@click.group(cls=_Main, epilog=example("deprovisioner up", "deprovisioner jobs list --state stuck"))
@click.version_option(package_name="deprovisioner")
def main() -> None:
    """Tears down what customers delete: exactly once, or visibly stuck."""


def operate() -> None:
    """Where the environment names no database, use the installation of `deprovisioner up` in this folder."""
    from outbox import settings

    env_file = settings.load().home / "env"
    if not os.environ.get("DEPROVISIONER_DATABASE_URL") and env_file.exists():
        for name, value in settings.read_env(env_file).items():
            os.environ.setdefault(name, value)


def me() -> "Operator":
    """The person at this shell, as an operator."""
    from outbox import actions

    return actions.operator_at_a_shell(getpass.getuser())


def edge() -> "Edge":
    """What a command lends to actions: sessions, and the doorbell."""
    from outbox.actions import Edge

    return Edge(_ask, _transact, _ring)


def edge_of_a_recovery() -> "Edge":
    """The same for a recovery, which alone changes something after a rewind."""
    from outbox.actions import Edge

    return Edge(partial(_ask, recovering=True), partial(_transact, recovering=True), _ring)


def _ask(act: "Callable[[Connection], T]", *, recovering: bool = False) -> "T":
    from outbox import db

    with db.statement() as session:
        if not recovering:
            _refuse_rewound(session)
        return act(session)


def _transact(act: "Callable[[Connection], T]", *, recovering: bool = False) -> "T":
    from outbox import db

    with db.transaction() as session:
        if not recovering:
            _refuse_rewound(session)
        return act(session)


def _refuse_rewound(session: "Connection") -> None:
    """A shell changes nothing after a rewind, as the API does not."""
    from outbox import rewinds
    from outbox.errors import Rewound

    if rewinds.rewound(session):
        raise Rewound


def _ring() -> None:
    """Wake the workers. A broker that cannot be reached is a log line on stderr: stdout may be JSON."""
    from outbox import doorbell, logs

    logs.configure()
    doorbell.ring_now()


def must_exist(session: "Connection", **named: str | None) -> None:
    """Raises NotFound for a `backend`, `tenant` or `kind` that exists nowhere: a typing error, and no empty listing."""
    from outbox import queries
    from outbox.errors import NotFound
    from outbox.states import HoldScope

    for scope, subject in named.items():
        if subject is not None and not queries.known(session, HoldScope(scope), subject):
            raise NotFound(f"there is no {scope} {subject!r} here: this filter would find nothing; check the name")


def show_page(
    page: Any, columns: Sequence[str], as_json: bool, *, describe: Callable[[Any], dict[str, Any]] = vars
) -> None:
    """Print a page of a listing; `describe` makes a row of the table from an item."""
    if as_json:
        print_json({"items": [vars(row) for row in page.items], "next_cursor": page.next_cursor})
        return
    print_table([describe(row) for row in page.items], columns, cut=True)
    if page.next_cursor:
        click.echo(f"more: --cursor {page.next_cursor}", err=True)


def print_json(value: Any) -> None:
    """Print one JSON document."""
    click.echo(as_text(value, indent=None if not sys.stdout.isatty() else 2))


def as_text(value: Any, indent: int | None = None) -> str:
    """A value as JSON."""
    return json.dumps(value, default=_plain, indent=indent)


def _plain(value: Any) -> Any:
    if isinstance(value, dt.datetime):
        return value.astimezone(dt.UTC).isoformat().replace("+00:00", "Z")
    if isinstance(value, uuid.UUID):
        return str(value)
    raise TypeError(f"no JSON for {type(value)}")


def print_fields(fields: dict[str, Any]) -> None:
    """Print one thing, a field a line."""
    width = max(map(len, fields))
    for name, value in fields.items():
        click.echo(f"{name:<{width}}  {cell(value)}")


def print_table(rows: Iterable[dict[str, Any]], columns: Sequence[str], *, cut: bool = False) -> None:
    """Print many things, one a line. `cut` cuts lines to the width of a terminal, and never into a file or a pipe."""
    table = [[" ".join(cell(row[column]).splitlines()) for column in columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(columns, *table, strict=True)]
    width_limit = shutil.get_terminal_size().columns if cut and sys.stdout.isatty() else None
    for line in ([*columns], *table):
        shown = "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        click.echo(shown if width_limit is None or len(shown) <= width_limit else shown[: width_limit - 1] + "…")
    if not table:
        click.echo("(none)")


def cell(value: Any) -> str:
    """A value as a table shows it."""
    if value is None:
        return "-"
    if isinstance(value, dt.datetime):
        return value.astimezone(dt.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return as_text(value) if isinstance(value, dict) else str(value)
