"""`deprovisioner up` stopped, killed and started again: no process is left, and nothing is lost."""

import json
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import psutil
import psycopg2
import pytest
import redis

from deprovisioner.up import accounts, servers, users
from deprovisioner.up.home import State, backends_file
from tests.support.api import create, until
from tests.support.processes import descendants
from tests.support.up import CLI, CLI_IGNORING_SIGINT, Running, clean_environment
from tests.support.witness import PgServer, RedisServer, eventually

_NOBODY = pwd.getpwnam("nobody")


def test_stopped_it_leaves_no_process_and_started_again_it_has_its_data(folder: Path) -> None:
    home, port = folder / "home", servers.free_port()
    first = Running(home, port).ready()
    with first.api() as api:
        resource = until(api, create(api), "active")
        login = api.get(f"/v1/resources/{resource['id']}/credentials").json()
    connection = psycopg2.connect(login["dsn"])
    connection.cursor().execute("CREATE TABLE t AS SELECT 7 AS n")
    connection.commit()
    connection.close()
    family = [p.pid for p in descendants(first.popen.pid)]
    assert len(family) > 5
    assert first.stop(signal.SIGINT) == 0
    assert not [pid for pid in family if psutil.pid_exists(pid)]
    written = first.env
    second = Running(home, port, **written).ready()  # at a shell that sourced `env`
    try:
        assert second.env == written
        with second.api() as api:
            assert api.get(f"/v1/resources/{resource['id']}").json()["status"] == "active"
            again = api.get(f"/v1/resources/{resource['id']}/credentials").json()
            with psycopg2.connect(again["dsn"]) as connection:
                cursor = connection.cursor()
                cursor.execute("SELECT n FROM t")
                assert cursor.fetchone() == (7,)
            connection.close()
            api.delete(f"/v1/resources/{resource['id']}?grace=0s")
            until(api, resource, "deleted")
    finally:
        assert second.stop() == 0


@pytest.mark.proof
def test_a_home_whose_workers_were_superusers_is_taken_over(folder: Path) -> None:
    """What they made and adopted is torn down by the service's account; a stranger's database stays."""
    home, port = folder / "home", servers.free_port()
    home.mkdir(mode=0o700)
    state = State(home)
    admin = servers.postgres_dsn(state.port("pg-main"), state.password("pg-main"))
    root = servers.valkey_url(state.port("redis-main"), state.password("redis-main"))
    text = backends_file(home, print).read_text()
    old = text.replace("env:PG_MAIN_SERVICE_DSN", admin).replace("env:REDIS_MAIN_SERVICE_URL", root)
    (home / "backends.toml").write_text(old)
    first = Running(home, port).ready()
    pg, valkey = PgServer(admin, home / "log" / "pg-main.log"), RedisServer(root)
    for statement in ("CREATE ROLE app LOGIN", "CREATE DATABASE theirs OWNER app", "CREATE DATABASE stranger"):
        pg.query(statement)
    with first.api() as api:
        adopted = {"manifest": {"database": "theirs", "role": "app"}}
        made = [create(api), create(api, "redis", name="cache"), create(api, name="theirs", **adopted)]
        made = [until(api, resource, "active") for resource in made]
    for statement in (  # that version knew none of these
        f"DROP DATABASE {accounts.NAME} WITH (FORCE)",
        f"REVOKE CONNECT ON DATABASE postgres, template1 FROM {accounts.NAME}",
        "GRANT CONNECT ON DATABASE postgres, template1 TO PUBLIC",
        f"DROP ROLE {accounts.NAME}",
    ):
        pg.query(statement)
    valkey.client.execute_command("ACL", "DELUSER", accounts.NAME)
    valkey.client.execute_command("ACL", "SETUSER", "default", "nopass")
    valkey.client.execute_command("ACL", "SAVE")
    sourced = first.env | {"PG_MAIN_DSN": admin, "REDIS_MAIN_URL": root}
    assert first.stop() == 0
    _open_as_an_older_version_did(home)
    (home / "backends.toml").write_text(text)
    kept = json.loads((home / "state.json").read_text())
    for key in ("made", "pg-main.service.password", "redis-main.service.password"):
        del kept[key]
    (home / "state.json").write_text(json.dumps(kept))

    second = Running(home, port, **sourced).ready()
    try:
        assert "not using your" not in second.log.read_text(), "these are the home's own"
        assert (second.env["PG_MAIN_DSN"], second.env["REDIS_MAIN_URL"]) == (admin, root)
        assert f"//{accounts.NAME}:" in second.env["PG_MAIN_SERVICE_DSN"]
        with second.api() as api:
            for resource in made:
                assert api.delete(f"/v1/resources/{resource['id']}?grace=0s").status_code == 202
            for resource in made:
                until(api, resource, "deleted")
        assert pg.databases() == {"postgres", "template0", "template1", "stranger", accounts.NAME}
        assert pg.query("SELECT rolname FROM pg_roles WHERE rolname !~ '^pg_' ORDER BY 1") == [
            (accounts.NAME,),
            ("postgres",),
        ]
        assert pg.query("SELECT datdba::regrole::text FROM pg_database WHERE datname = 'stranger'") == [("postgres",)]
        assert not valkey.bears(made[1]["manifest"])
        open_files = [path for path in (home, *home.rglob("*")) if path.is_file() and path.stat().st_mode & 0o077]
        assert not open_files
        with pytest.raises(redis.AuthenticationError):
            redis.Redis.from_url(f"redis://{root.rsplit('@', 1)[1]}").ping()
        for name in ("control", "pg-main", "broker", "redis-main"):
            (owner,) = {path.lstat().st_uid for path in (home / name, *(home / name).rglob("*"))}
            assert owner in users.NUMBERS if os.geteuid() == 0 else owner == os.geteuid()
    finally:
        assert second.stop() == 0
    restarted = servers.valkey(home, "redis-main", state.port("redis-main"), durable=True)
    try:
        restarted.spawn()
        restarted.wait_until(lambda: servers.valkey_ready(second.env["REDIS_MAIN_URL"]))
    finally:
        restarted.stop()


def _open_as_an_older_version_did(home: Path) -> None:
    """PostgreSQL ran as `nobody` and Valkey as root, with a file of ACL users and a configuration of its own."""
    home.chmod(0o711)
    (home / "backends.toml").chmod(0o644)
    (home / "redis-main" / "valkey.conf").write_text("requirepass plain")
    if os.geteuid() == 0:
        os.chown(home, 0, 0)
        for name, owner in (("control", "nobody"), ("pg-main", "nobody"), ("broker", "root"), ("redis-main", "root")):
            for path in (home / name, *(home / name).rglob("*")):
                shutil.chown(path, owner, pwd.getpwnam(owner).pw_gid)


@pytest.mark.proof
def test_a_home_from_before_the_service_s_role_starts(folder: Path) -> None:
    home, port = folder / "home", servers.free_port()
    first = Running(home, port).ready()
    service = first.env["DEPROVISIONER_DATABASE_URL"]
    assert first.stop() == 0
    state = json.loads((home / "state.json").read_text())
    del state["service.password"], state["made"]
    (home / "state.json").write_text(json.dumps(state))
    owner = servers.postgres_dsn(state["control.port"], state["control.password"])
    (home / "env").write_text((home / "env").read_text().replace(service, owner))
    second = Running(home, port, **first.env).ready()
    assert second.env["DEPROVISIONER_DATABASE_URL"] not in (service, owner)
    with second.api() as api:
        until(api, create(api), "active")
    assert second.stop() == 0


@pytest.mark.proof
def test_killed_and_started_again_at_once_it_keeps_its_ports_and_every_credential(folder: Path) -> None:
    home, port = folder / "home", servers.free_port()
    first = Running(home, port).ready()
    logins = _logins(first)
    family = [p.pid for p in descendants(first.popen.pid)]
    kept = _ports(home)
    first.popen.kill()
    first.popen.wait()
    second = Running(home, port, command=CLI_IGNORING_SIGINT).ready()  # its old servers may still be ending
    assert not [pid for pid in family if _runs(pid)], "the killed one took its children with it"
    assert _ports(home) == kept
    assert second.env == first.env
    for login in logins:
        assert login() == 1
    assert second.stop(signal.SIGTERM) == 0


@pytest.mark.proof
def test_a_foreign_program_on_a_server_s_port_is_named_and_nothing_moves(folder: Path) -> None:
    home, port = folder / "home", servers.free_port()
    first = Running(home, port).ready()
    logins = _logins(first)
    assert first.stop() == 0
    kept, written = _ports(home), (home / "env").read_bytes()
    with subprocess.Popen(
        [sys.executable, "-c", _LISTENS, str(kept["pg-main.port"])], stdout=subprocess.PIPE, text=True
    ) as foreign:
        assert foreign.stdout is not None
        foreign.stdout.readline()
        refused = Running(home, port, command=[sys.executable, "-c", _WAITS_BRIEFLY])
        assert refused.popen.wait(60) == 1
        assert re.search(
            rf"port {kept['pg-main.port']} of pg-main on 127\.0\.0\.1 is taken by '\S+' \(pid {foreign.pid}\)\. "
            r".*end that program, then start `up` again",
            refused.log.read_text(),
        )
        foreign.kill()
    assert (_ports(home), (home / "env").read_bytes()) == (kept, written)
    again = Running(home, port).ready()
    for login in logins:
        assert login() == 1
    assert again.stop() == 0


_LISTENS = """
import socket, sys, time
held = socket.create_server(("127.0.0.1", int(sys.argv[1])))
print("listens", flush=True)
time.sleep(600)
"""
_WAITS_BRIEFLY = """
import runpy
from deprovisioner.up import ports
ports.WAIT_SECONDS = 0.5
runpy.run_module("deprovisioner.cli", run_name="__main__")
"""


def _ports(home: Path) -> dict[str, int]:
    kept = json.loads((home / "state.json").read_text())
    return {key: value for key, value in kept.items() if key.endswith(".port")}


def _logins(running: Running) -> list[Callable[[], int]]:
    """For a database and a cache user: a login with the credentials as they were given, which returns 1."""
    with running.api() as api:
        made = [until(api, create(api, kind=kind), "active") for kind in ("postgres", "redis")]
        database, cache = (api.get(f"/v1/resources/{one['id']}/credentials").json() for one in made)

    def to_database() -> int:
        with closing(psycopg2.connect(database["dsn"])) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT 1")
            return int(cursor.fetchone()[0])

    def to_cache() -> int:
        with redis.Redis.from_url(cache["url"]) as client:
            return int(client.incr(f"{cache['prefix']}{uuid.uuid4()}"))

    return [to_database, to_cache]


@pytest.mark.proof
@pytest.mark.parametrize("wait", [0.5, 2.0, 4.0])
def test_up_may_be_stopped_while_it_starts_and_then_starts_again(folder: Path, wait: float) -> None:
    running = Running(folder / "home", servers.free_port())
    time.sleep(wait)  # not for a race: any moment of the start will do
    family = [p.pid for p in descendants(running.popen.pid)] if running.popen.poll() is None else []
    running.stop()
    eventually(lambda: not [pid for pid in family if _runs(pid)], 10, "no process is left")
    again = Running(folder / "home", servers.free_port()).ready()
    assert again.stop() == 0


_SIGNALLED_IN_A_DEL = """
import os, signal, sys
from pathlib import Path
from deprovisioner.up import servers, supervisor

class Ring:
    def __del__(self):  # what a signal handler raised here, Python would drop
        os.kill(os.getpid(), signal.SIGTERM)

asked = servers.free_port
def free_port():
    Ring()
    return asked()
servers.free_port = free_port
supervisor.Up(Path(sys.argv[1]), "127.0.0.1", int(sys.argv[2]), 1, os.environ).run()
"""


@pytest.mark.proof
def test_a_signal_inside_a_del_raises_nothing_there_and_stops_up(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _SIGNALLED_IN_A_DEL, str(folder / "home"), str(servers.free_port())],
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stderr == "", "nothing was raised where Python would have dropped it"
    assert done.returncode == 0
    assert "up: stopping" in done.stdout
    assert "Ctrl-C stops everything" not in done.stdout, "it never got that far"


_INITDB_THAT_DOES_NOT_END = """
import os, sys
from pathlib import Path
from deprovisioner.up import servers, supervisor
servers._postgres_bin = lambda: Path(sys.argv[1])
supervisor.Up(Path(sys.argv[2]), "127.0.0.1", int(sys.argv[3]), 1, os.environ).run()
"""


def test_a_signal_ends_up_while_initdb_runs(folder: Path) -> None:
    initdb = folder / "initdb"
    initdb.write_text("#!/bin/sh\necho $$ > $2/pid\nexec sleep 600\n")
    initdb.chmod(0o755)
    home = folder / "home"
    words = [str(folder), str(home), str(servers.free_port())]
    with subprocess.Popen([sys.executable, "-c", _INITDB_THAT_DOES_NOT_END, *words], env=clean_environment()) as up:
        eventually((home / ".control.partial" / "pid").exists, 30, "initdb runs")
        pid = int((home / ".control.partial" / "pid").read_text())
        up.send_signal(signal.SIGTERM)
        assert up.wait(10) == 0
    assert not _runs(pid)
    assert not (home / ".control.pw").exists()


@pytest.mark.proof
@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv"), reason="only root may become another user")
def test_an_ordinary_user_runs_all_of_it_as_itself_and_another_s_home_is_refused(folder: Path) -> None:
    home, own, port = folder / "home", folder / "own" / "home", servers.free_port()
    folder.chmod(0o711)
    home.mkdir()
    own.parent.mkdir()
    shutil.chown(own.parent, "nobody")
    refused = Running(home, port, command=_AS_NOBODY)
    assert refused.popen.wait(60) == 1
    assert f"{home} cannot be closed to other users" in refused.log.read_text()
    assert "Traceback" not in refused.log.read_text()
    running = Running(own, port, command=_AS_NOBODY).ready()
    try:
        children = psutil.Process(running.popen.pid).children()
        assert {process.uids().effective for process in children} == {_NOBODY.pw_uid}
        assert own.stat().st_mode & 0o777 == 0o700
        assert not [path for path in own.rglob("*") if path.is_file() and path.stat().st_mode & 0o077]
        started = [process.pid for process in children if process.name() in ("postgres", "valkey-server")]
        assert len(started) == 4
        assert not [pid for pid in started if b"=" in Path(f"/proc/{pid}/environ").read_bytes()]
    finally:
        assert running.stop() == 0


# The one right that it keeps is to read, since the tests' Python may be in root's folder.
_AS_NOBODY = [
    *("setpriv", f"--reuid={_NOBODY.pw_uid}", f"--regid={_NOBODY.pw_gid}", "--clear-groups"),
    *("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search", *CLI),
]


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
