"""A command imports only the heavy libraries that it needs."""

import json
import os
import subprocess
import sys

import click
import pytest
from sqlalchemy import Connection

from deprovisioner.cli import main
from tests.support.factories import a_job, a_resource

# Runs the command as `deprovisioner` does, then tells what this process has loaded.
SPY = """
import sys
from deprovisioner.cli import main
try:
    main(sys.argv[1:])
finally:
    print("\\n" + " ".join({name.partition(".")[0] for name in sys.modules}), file=sys.stderr)
"""
HEAVY = {"sqlalchemy", "psycopg2", "celery", "redis", "fastapi", "pydantic", "alembic", "cryptography", "structlog"}


def loaded(env: dict[str, str], *words: str) -> set[str]:
    """Which of the heavy packages a command has imported by its end."""
    argv = [sys.executable, "-c", SPY, *words]
    done = subprocess.run(argv, env=os.environ | env, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done
    assert done.stdout
    return HEAVY & set(done.stderr.splitlines()[-1].split())


@pytest.mark.parametrize("words", ["--help", "jobs --help", "jobs list --help", "up --help", "token --help"])
def test_help_loads_nothing_heavy(env: dict[str, str], words: str) -> None:
    assert loaded(env, *words.split()) == set()


@pytest.mark.parametrize(
    "words",
    [
        "jobs list",
        "jobs list --counts --json",
        "jobs show 1",
        "resources list",
        "hold list",
        "hold set --global",
        "breakers list",
        "operations list",
        "token list",
    ],
)
def test_a_command_that_uses_the_database_loads_only_the_database_libraries(
    db: Connection, env: dict[str, str], words: str
) -> None:
    assert a_job(db) == 1
    assert loaded(env, *words.split()) == {"sqlalchemy", "psycopg2"}


def test_a_command_that_rings_the_doorbell_loads_only_its_brokers_client(db: Connection, env: dict[str, str]) -> None:
    """So that the tests above cannot pass because nothing is ever seen to be loaded."""
    rings = loaded(env, "resources", "delete", str(a_resource(db)))
    assert {"redis", "structlog"} <= rings
    assert "celery" not in rings
    elsewhere = env | {"DEPROVISIONER_BROKER_URL": "memory://"}
    assert "celery" in loaded(elsewhere, "resources", "delete", str(a_resource(db)))


def test_a_command_answers_though_the_broker_is_dead(db: Connection, env: dict[str, str]) -> None:
    unreachable = env | {"DEPROVISIONER_BROKER_URL": "redis://127.0.0.1:1/0"}
    argv = [sys.executable, "-m", "deprovisioner.cli", "resources", "delete", "--json", str(a_resource(db))]
    done = subprocess.run(argv, env=os.environ | unreachable, capture_output=True, text=True, check=False, timeout=60)
    assert json.loads(done.stdout)["ok"] is True
    assert json.loads(done.stderr)["event"] == "doorbell_failed"


def test_every_command_is_found_by_its_name() -> None:
    context = click.Context(main)
    names = main.list_commands(context)
    assert all(main.get_command(context, name) is not None for name in names)
    assert sorted(main.commands) == names, "a command that no name leads to"
