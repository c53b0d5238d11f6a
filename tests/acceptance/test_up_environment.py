"""Which variables the processes of `up` get, and whose value counts when a home is started again."""

import json
from pathlib import Path

import pytest

from deprovisioner.up import environment, servers
from deprovisioner.up.home import State, backends_file
from outbox import settings
from outbox.errors import SettingsError
from tests.support.api import create, until
from tests.support.up import Running
from worker.snapshots import stores

# Imported by every Python process of `up`: it records the command and which addresses that command gets.
RECORD = """
import os, sys
with open(os.path.join(os.path.dirname(__file__), "record"), "a") as file:
    file.write(" ".join([*sys.orig_argv, *sorted(name for name in os.environ if name.endswith("_ADDRESS"))]) + "\\n")
"""

# What `up` wrote before it knew a grace.
EARLIER = """\
# Written once by `deprovisioner up`; edit it as you like. The API and the workers read it when they start.
# adoption: tenants may adopt objects on these throw-away servers; elsewhere leave that to operators.
[backends.pg-main]
kind = "postgres"
dsn = "env:PG_MAIN_SERVICE_DSN"
concurrency = 4
adoption = "tenants"
# brake = "50/10m"    # more teardowns than this within the window wait for an operator

[backends.redis-main]
kind = "redis"
dsn = "env:REDIS_MAIN_SERVICE_URL"
concurrency = 4
adoption = "tenants"
"""
REDIS = {"kind": "redis", "backend": "redis-main", "name": "cache"}


@pytest.mark.proof
def test_external_servers_are_used_by_each_run_that_names_them_and_by_no_other(
    env: dict[str, str], folder: Path
) -> None:
    home, port = folder / "home", servers.free_port()
    given = {name: value for name, value in env.items() if "BACKOFF" not in name} | {"DEPROVISIONER_MAX_ATTEMPTS": "4"}
    for _ in range(2):
        external = Running(home, port, **given).ready()
        assert {name: external.env.get(name) for name in given} == given
        with external.api() as api:
            assert api.post("/v1/resources", json=REDIS).json()["job"]["max_attempts"] == 4
        assert external.stop() == 0
        assert not (home / "control").exists()

    own = Running(home, port, DEPROVISIONER_SERVICE_PASSWORD="p@ss/w:rd").ready()
    made = own.env
    assert ":p%40ss%2Fw%3Ard@" in made["DEPROVISIONER_DATABASE_URL"]
    assert not set(given.items()) & set(made.items())
    assert "DEPROVISIONER_MAX_ATTEMPTS" not in made
    for role in ("OPERATOR", "TENANT"):  # the external control database's tokens would be rejected
        with own.api(role) as api:
            assert api.get("/v1/jobs").status_code == 200
    assert own.stop() == 0

    database = {"DEPROVISIONER_DATABASE_URL": env["DEPROVISIONER_DATABASE_URL"]}
    mixed = Running(home, port, **(made | database)).ready()
    names = ("DEPROVISIONER_BROKER_URL", "DEPROVISIONER_BACKENDS", "DEPROVISIONER_CREDENTIALS_KEY", "PG_MAIN_DSN")
    assert {name: mixed.env[name] for name in (*database, *names)} == {name: made[name] for name in names} | database
    said = mixed.log.read_text()
    assert "not starting our own: DEPROVISIONER_DATABASE_URL is set" in said
    assert said.count("not starting our own") == 1
    with mixed.api() as api:
        until(api, create(api, "redis"), "active")
    assert mixed.stop() == 0


def test_only_workers_get_the_variables_that_the_callers_backends_file_names(env: dict[str, str], folder: Path) -> None:
    backends = folder / "backends.toml"
    text = Path(env["DEPROVISIONER_BACKENDS"]).read_text()
    backends.write_text(text.replace("PG_MAIN_DSN", "DB_ADDRESS").replace("REDIS_MAIN_URL", "CACHE_ADDRESS"))
    (folder / "sitecustomize.py").write_text(RECORD)
    more = {
        "DEPROVISIONER_BACKENDS": str(backends),
        "DB_ADDRESS": env["PG_MAIN_DSN"],
        "CACHE_ADDRESS": env["REDIS_MAIN_URL"],
        "OTHER_ADDRESS": "not named in the file",
        "PYTHONPATH": f"{folder}:{Path(__file__).parents[2]}",
    }
    given = {name: value for name, value in (env | more).items() if name not in ("PG_MAIN_DSN", "REDIS_MAIN_URL")}
    running = Running(folder / "home", servers.free_port(), **given).ready()
    with running.api() as api:
        until(api, create(api, "redis"), "active")
    assert running.stop() == 0
    lines = [line.split("deprovisioner.cli ")[1].split() for line in (folder / "record").read_text().splitlines()]
    got = {line[0]: [word for word in line if word.endswith("_ADDRESS")] for line in lines if line[0] != "up"}
    assert got == {
        "migrate": [],
        "api": [],
        "token": [],
        "worker": ["CACHE_ADDRESS", "DB_ADDRESS"],
    }


def test_the_api_keeps_a_setting_that_a_backend_takes_its_address_from(tmp_path: Path) -> None:
    path = tmp_path / "backends.toml"
    path.write_text(
        '[backends.a]\nkind = "postgres"\ndsn = "env:DEPROVISIONER_DATABASE_URL"\n'
        '[backends.b]\nkind = "postgres"\ndsn = "postgresql://literal"\n'
        '[backends.c]\nkind = "redis"\ndsn = "env:C"\n'
    )
    assert environment.worker_variables(path) == {
        *("C", "PG_MAIN_DSN", "REDIS_MAIN_URL", "PG_MAIN_SERVICE_DSN", "REDIS_MAIN_SERVICE_URL")
    }
    for wrong in ("[backends.a]\nkind =", f"{path.read_text()}[tenants.acme]\nbrake = 5\n"):
        path.write_text(wrong)
        with pytest.raises(SettingsError, match=str(path)):
            environment.worker_variables(path)


def test_a_home_remembers_which_values_it_made(tmp_path: Path) -> None:
    first = State(tmp_path)
    first.remember_made("DEPROVISIONER_BROKER_URL", "redis://old-port")
    first.remember_made("DEPROVISIONER_BROKER_URL", "redis://new-port")
    again = State(tmp_path)
    callers = {"DEPROVISIONER_MAX_ATTEMPTS": "4", "DEPROVISIONER_DATABASE_URL": "postgresql://external"}
    for sourced in ("redis://old-port", "redis://new-port"):
        assert again.without_made(callers | {"DEPROVISIONER_BROKER_URL": sourced}) == callers
    elsewhere = callers | {"DEPROVISIONER_BROKER_URL": "redis://external"}
    assert again.without_made(elsewhere) == elsewhere
    same_value_of_another = callers | {"DEPROVISIONER_DATABASE_URL": "redis://new-port"}
    assert again.without_made(same_value_of_another) == same_value_of_another
    assert (tmp_path / "state.json").stat().st_mode & 0o077 == 0


def test_a_home_of_an_older_version_knows_its_own_servers_and_nothing_else(tmp_path: Path) -> None:
    """It did not record what it made; its ports and passwords say."""
    ports = {"control": 1, "broker": 2, "pg-main": 3, "redis-main": 4}
    kept = {f"{name}.port": port for name, port in ports.items()} | {f"{name}.password": name for name in ports}
    kept |= {"service.password": "service", "credentials_key": "key", "operator_token": "o", "tenant_token": "t"}
    (tmp_path / "state.json").write_text(json.dumps(kept))
    own = {
        "DEPROVISIONER_DATABASE_URL": "postgresql://deprovisioner:service@127.0.0.1:1/postgres",
        "DEPROVISIONER_BROKER_URL": "redis://:broker@127.0.0.1:2/0",
        "DEPROVISIONER_BACKENDS": f"{tmp_path}/backends.toml",
        "DEPROVISIONER_CREDENTIALS_KEY": "key",
        "PG_MAIN_DSN": "postgresql://postgres:pg-main@127.0.0.1:3/postgres",
        "REDIS_MAIN_URL": "redis://:redis-main@127.0.0.1:4/0",
    }
    assert State(tmp_path).without_made(own) == {}
    owner = {"DEPROVISIONER_DATABASE_URL": "postgresql://postgres:control@127.0.0.1:1/postgres"}
    assert State(tmp_path).without_made(owner) == {}, "as written before there was a service's role"
    external = {name: f"{value}-external" for name, value in own.items()} | {"DEPROVISIONER_LEASE_SECONDS": "20"}
    assert State(tmp_path).without_made(external) == external


def test_a_home_of_an_older_version_that_made_no_servers_forgets_nothing(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text(json.dumps({"operator_token": "o", "tenant_token": "t"}))
    external = {"DEPROVISIONER_DATABASE_URL": "postgresql://external", "DEPROVISIONER_CREDENTIALS_KEY": "k"}
    assert State(tmp_path).without_made(external) == external


def test_a_backends_file_of_an_earlier_version_is_brought_up_to_date_unless_it_was_edited(tmp_path: Path) -> None:
    path, said = tmp_path / "backends.toml", []
    path.write_text(EARLIER)
    new = backends_file(tmp_path, said.append).read_text()
    assert "grace" in new
    assert str(path) in said[0]
    for edited in (new.replace("10m", "1h"), EARLIER.replace("concurrency = 4", "concurrency = 8")):
        path.write_text(edited)
        assert backends_file(tmp_path, said.append).read_text() == edited
    assert len(said) == 1


@pytest.mark.parametrize("name", ["home", "a home, 100%", "what?#"])
def test_the_servers_of_up_keep_for_ten_minutes_and_let_a_delete_ask_for_less(tmp_path: Path, name: str) -> None:
    (home := tmp_path / name).mkdir()
    found = settings.read_backends(backends_file(home, print))
    assert {(config.grace.total_seconds(), config.min_grace.total_seconds()) for config in found.values()} == {(600, 0)}
    store = stores.of(str(found["pg-main"].snapshot_store))
    with store.writing("one") as write:
        write(b"x")
    assert (home / "snapshots" / "one").read_bytes() == b"x"
