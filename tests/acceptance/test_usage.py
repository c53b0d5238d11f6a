"""What a person types at a shell is looked at before anything is done: a usage error is exit code 2, no traceback."""

import os
import subprocess
import sys
from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner
from sqlalchemy import Connection, text

from deprovisioner.cli import main
from deprovisioner.cli.shell import WORDS
from outbox import tokens
from tests.support.factories import a_job, a_resource
from tests.support.processes import System, client

ID = "7d1f4c1e-0f5e-4c59-9d0a-3a3f0b6f6a52"
# Each is complete but for the words at its end.
COMMANDS = [
    "hold set --global --reason",
    "hold set --global --backend",
    "hold set --reason r --tenant",
    "hold set --reason r --kind",
    "hold release 1 --reason",
    "hold list --cursor",
    "jobs redrive 1 --fence 1 --reason",
    "jobs resolve 1 --fence 1 --reason",
    "jobs resolve 1 --fence 1 --force --reason r --token",
    "jobs redrive-all --all --reason",
    "jobs redrive-all --reason r --backend",
    "jobs redrive-all --reason r --error",
    "operations stop 1 --reason",
    "jobs list --error",
    "jobs list --tenant",
    "tenants offboard acme --reason",
    "tenants offboard --reason r",
    "resources list --kind",
    f"resources delete {ID} --reason",
    "token create --role tenant --tenant",
    "token create --role operator --name",
    "migrate --service-role",
]


def commands(group: click.Group) -> Iterator[click.Command]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands(command)
        else:
            yield command


def test_every_option_that_takes_text_checks_it() -> None:
    free = [
        f"{command.name} {parameter.name}"
        for command in commands(main)
        for parameter in command.params
        if parameter.type is click.STRING and parameter.callback is None
    ]
    assert free == []
    assert any(parameter.type is WORDS for command in commands(main) for parameter in command.params)


@pytest.mark.parametrize(
    "said", ["", " \t", "a\x1b[2J", "a\nb", "\udcff"], ids=["empty", "blank", "escape", "line", "bytes"]
)
@pytest.mark.parametrize("command", COMMANDS)
def test_text_that_is_blank_or_cannot_be_stored_is_a_usage_error(
    settled: dict[str, str], command: str, said: str
) -> None:
    answer = CliRunner().invoke(main, [*command.split(), said])
    assert answer.exit_code == 2, answer
    assert "it is blank" in answer.stderr or "control characters" in answer.stderr


@pytest.mark.parametrize("since", ["999999d", "-1d", "\udcff", "yesterday"])
def test_a_time_outside_the_calendar_is_a_usage_error(settled: dict[str, str], since: str) -> None:
    assert CliRunner().invoke(main, ["audit", "export", f"--since={since}"]).exit_code == 2


def test_the_longest_duration_is_accepted(db: Connection) -> None:
    for since in ("99999d", "0001-01-01"):
        assert CliRunner().invoke(main, ["audit", "export", f"--since={since}"]).exit_code == 0


def test_bytes_that_are_not_utf_8_are_refused_in_one_line(db: Connection, env: dict[str, str]) -> None:
    a_job(db)
    argv = [sys.executable.encode(), b"-m", b"deprovisioner.cli", b"hold", b"set", b"--global", b"--reason", b"\xff"]
    answer = subprocess.run(argv, env=os.environ | env, capture_output=True, text=True, check=False, timeout=60)
    assert answer.returncode == 2
    assert "UTF-8" in answer.stderr
    assert "Traceback" not in answer.stderr
    assert db.execute(text("SELECT count(*) FROM holds")).scalar_one() == 0


@pytest.mark.parametrize("name", ["a/b", "/a//b/", "x/offboard", "ü & ?"])
def test_a_tenant_with_any_name_is_offboarded(db: Connection, system: System, operator: str, name: str) -> None:
    a_resource(db, tenant=name)
    tokens.create(db, actor="op", role="tenant", tenant=name, name="t")
    path = "".join(f"%{byte:02X}" for byte in name.encode())
    with client(system.api(), operator) as api:
        answer = api.post(f"/v1/tenants/{path}/offboard", json={"reason": "left"})
        assert (answer.status_code, answer.json()["count"]) == (200, 1)
        assert api.post(f"/v1/tenants/{path}/offboard", json={"reason": "  "}).status_code == 422
