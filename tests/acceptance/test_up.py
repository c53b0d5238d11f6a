"""`deprovisioner up` as a new user meets it, and the commands beside it."""

import datetime as dt
import json
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import psycopg2
import pytest
import redis

from deprovisioner.demo.witnesses import Holding, contents, fill
from deprovisioner.up import servers
from tests.support.api import create, until
from tests.support.processes import descendants
from tests.support.up import Running
from tests.support.witness import PgServer, eventually

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user runs all of it as itself")
# Becomes another user, and prints what it can do.
_TRIES = """
import os, pwd, sys
home, *pids = sys.argv[1:]
nobody = pwd.getpwnam("nobody")
os.setgroups([])
os.setgid(nobody.pw_gid)
os.setuid(nobody.pw_uid)
for name in ("env", "state.json", "backends.toml", "log", "control", "pg-main/postgresql.conf", "redis-main/users.acl"):
    try:
        os.stat(f"{home}/{name}")
        print("saw", name)
    except PermissionError:
        pass
for pid in map(int, pids):
    for what, do in (("signal", lambda: os.kill(pid, 0)), ("environ", lambda: open(f"/proc/{pid}/environ").read())):
        try:
            do()
            print(what, pid)
        except PermissionError:
            pass
"""


@pytest.fixture(scope="module")
def up() -> Iterator[Running]:
    folder = Path(tempfile.mkdtemp(prefix="deprovisioner-up-"))
    running = Running(folder / "home", servers.free_port(), SECRET_OF_THE_SHELL="hunter2").ready()
    yield running
    running.stop()
    shutil.rmtree(folder, ignore_errors=True)


def test_up_serves_and_writes_an_env_that_works(up: Running) -> None:
    names = ["DATABASE_URL", "BROKER_URL", "API_URL", "API_PORT", "OPERATOR_TOKEN", "TENANT_TOKEN"]
    addresses = {"PG_MAIN_DSN", "PG_MAIN_SERVICE_DSN", "REDIS_MAIN_URL", "REDIS_MAIN_SERVICE_URL"}
    assert {f"DEPROVISIONER_{name}" for name in names} | addresses <= set(up.env)
    assert (up.home / "env").stat().st_mode & 0o077 == 0, "it holds secrets"
    sourced = subprocess.run(
        ["sh", "-c", f". {up.home}/env && echo $DEPROVISIONER_API_URL"], capture_output=True, text=True, check=True
    )
    assert sourced.stdout.strip() == up.env["DEPROVISIONER_API_URL"]
    with up.api() as api:
        for kind in ("postgres", "redis"):
            resource = until(api, create(api, kind), "active")
            assert api.delete(f"/v1/resources/{resource['id']}?grace=0s").status_code == 202
            until(api, resource, "deleted")
    pg = PgServer(up.env["PG_MAIN_DSN"], up.home / "log" / "pg-main.log")
    assert sum(pg.drops().values()) == 1, "pg-main logs what is dropped"
    assert redis.Redis.from_url(up.env["REDIS_MAIN_SERVICE_URL"]).ping()
    assert redis.Redis.from_url(up.env["REDIS_MAIN_URL"]).config_get("appendonly") == {"appendonly": "yes"}
    assert up.env["PG_MAIN_DSN"] != up.env["DEPROVISIONER_DATABASE_URL"]
    said = up.log.read_text()
    assert said.count("curl -sS") == 4
    assert up.env["DEPROVISIONER_TENANT_TOKEN"] in said


def test_the_printed_curl_lines_work(up: Running) -> None:
    lines = [line.strip() for line in up.log.read_text().splitlines() if line.strip().startswith("curl")]
    made = json.loads(subprocess.run(["sh", "-c", lines[0]], capture_output=True, text=True, check=True).stdout)
    with up.api() as api:
        until(api, made["resource"], "active")
    for line in lines[1:]:
        answer = subprocess.run(
            ["sh", "-c", line.replace("/ID", f"/{made['resource']['id']}")], capture_output=True, text=True, check=True
        )
        assert "code" not in json.loads(answer.stdout), answer.stdout


@pytest.mark.parametrize("kind", ["postgres", "redis"])
def test_a_delete_cuts_the_customer_off_and_a_restore_gives_everything_back(up: Running, kind: str) -> None:
    with up.api() as api:
        resource = until(api, create(api, kind), "active")
        path = f"/v1/resources/{resource['id']}"
        login = api.get(f"{path}/credentials").json()
        holding = Holding(kind, resource["manifest"], login.get("dsn") or login["url"], resource["id"])
        fill(holding)
        before = contents(holding)
        deleted = api.delete(path).json()["resource"]
        kept = dt.datetime.fromisoformat(deleted["purge_at"]) - dt.datetime.fromisoformat(deleted["deleted_at"])
        assert kept == dt.timedelta(minutes=10)
        eventually(lambda: contents(holding) is None)
        assert api.post(f"{path}/restore", json={"reason": "a mistake"}).status_code == 202
        until(api, resource, "active")
        assert api.get(f"{path}/credentials").json() == login
    assert before
    assert contents(holding) == before


def test_a_second_up_on_the_same_home_is_refused(up: Running) -> None:
    second = Running(up.home, servers.free_port())
    assert second.popen.wait(30) == 1
    assert f"another `deprovisioner up` (pid {up.popen.pid}) runs on {up.home}" in second.log.read_text()
    assert httpx.get(f"{up.env['DEPROVISIONER_API_URL']}/healthz").status_code == 200


def test_a_taken_port_is_named_and_nothing_is_left(up: Running, folder: Path) -> None:
    port = int(up.env["DEPROVISIONER_API_URL"].rsplit(":", 1)[1])
    second = Running(folder / "other", port)
    assert second.popen.wait(30) == 1
    assert f"port {port} on 127.0.0.1 is taken" in second.log.read_text()
    assert not (folder / "other").exists()


def test_other_users_of_the_machine_cannot_read_or_connect(up: Running) -> None:
    assert not [p for p in up.home.rglob("*") if p.is_file() and p.stat().st_mode & 0o077]
    assert up.home.stat().st_mode & 0o067 == 0
    for url in (up.env["REDIS_MAIN_URL"], up.env["DEPROVISIONER_BROKER_URL"]):
        with pytest.raises(redis.AuthenticationError):
            redis.Redis.from_url(f"redis://{url.rsplit('@', 1)[1]}").ping()
    state = json.loads((up.home / "state.json").read_text())
    for server in ("control", "pg-main"):
        dsn = servers.postgres_dsn(state[f"{server}.port"], state[f"{server}.password"])
        rules = PgServer(dsn, up.log).query("SELECT DISTINCT auth_method FROM pg_hba_file_rules")
        assert rules == [("scram-sha-256",)], "of sockets, the loopback and replication"
        with pytest.raises(psycopg2.OperationalError, match="no password supplied"):
            psycopg2.connect(dsn.replace(f":{state[f'{server}.password']}@", "@"), passfile="/dev/null")


def test_servers_get_an_empty_environment_and_nothing_gets_the_shell_s_secrets(up: Running) -> None:
    found = [(p.name(), Path(f"/proc/{p.pid}/environ").read_bytes()) for p in psutil.Process(up.popen.pid).children()]
    servers = [environ for name, environ in found if name in ("postgres", "valkey-server")]
    assert len(servers) == 4
    assert not [environ for environ in servers if b"=" in environ]
    assert not [name for name, environ in found if b"hunter2" in environ]
    (read,) = PgServer(up.env["PG_MAIN_DSN"], up.log).query("SELECT pg_read_file('/proc/self/environ')")[0]
    assert "=" not in read


@as_root
def test_as_root_each_server_has_a_user_of_its_own_without_a_name(up: Running) -> None:
    users = {}
    for process in psutil.Process(up.popen.pid).children():
        if process.name() in ("postgres", "valkey-server"):
            users[process.pid] = (process.uids().real, process.uids().effective, process.gids().real)
        else:
            assert process.uids().effective == 0
    assert len(set(users.values())) == 4
    for pid, (uid, effective, gid) in users.items():
        assert uid == effective == gid
        (groups,) = re.findall(r"^Groups:\t(.*)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
        assert groups.split() == [str(up.home.stat().st_gid)]
        with pytest.raises(KeyError):
            pwd.getpwuid(uid)
    owners = {name: (up.home / name).stat() for name in ("control", "pg-main", "broker", "redis-main")}
    assert {(o.st_uid, o.st_uid, o.st_gid) for o in owners.values()} == set(users.values())
    assert {o.st_mode & 0o777 for o in owners.values()} == {0o700}


@as_root
def test_as_root_what_a_superuser_of_pg_main_runs_reaches_no_other_server(up: Running) -> None:
    control = int((up.home / "control" / "postmaster.pid").read_text().split()[0])
    pg = PgServer(up.env["PG_MAIN_DSN"], up.log)
    pg.query("CREATE TABLE said (line text)")
    for tried in (
        f"cat {up.home}/env",
        f"cat {up.home}/state.json",
        f"cat {up.home}/redis-main.conf",
        f"ls {up.home}",
        f"touch {up.home}/control/global",
        f"ls {up.home}/redis-main",
        f"cat /proc/{up.popen.pid}/environ",
        f"cat /proc/{control}/environ",
        f"kill -0 {control}",
        f"echo >> {up.home}/redis-main.conf",
    ):
        pg.query(f"COPY said FROM PROGRAM '({tried}) 2>&1 || true'")
        (said,) = [line for (line,) in pg.query("DELETE FROM said RETURNING line") if line]
        assert re.search("[Pp]ermission denied|not permitted", said), tried
    pg.query("DROP TABLE said")


@as_root
def test_another_user_of_the_machine_can_read_and_signal_nothing(up: Running) -> None:
    pids = [p.pid for p in psutil.Process(up.popen.pid).children()]
    done = subprocess.run(
        [sys.executable, "-c", _TRIES, str(up.home), *map(str, pids)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "", done.stderr


@pytest.mark.proof
def test_up_says_which_server_it_did_not_start_itself(up: Running, folder: Path) -> None:
    given = {name: up.env[name] for name in ("DEPROVISIONER_DATABASE_URL", "DEPROVISIONER_CREDENTIALS_KEY")}
    second = Running(folder / "second", servers.free_port(), **given).ready()
    assert second.stop() == 0
    said = second.log.read_text()
    assert "not starting our own: DEPROVISIONER_DATABASE_URL is set to postgresql://…@" in said
    assert up.env["DEPROVISIONER_DATABASE_URL"] not in said


def test_the_role_in_env_cannot_change_or_remove_events(up: Running) -> None:
    with psycopg2.connect(up.env["DEPROVISIONER_DATABASE_URL"]) as connection:
        for statement in ("UPDATE events SET reason = 'x'", "DELETE FROM events", "TRUNCATE events"):
            with pytest.raises(psycopg2.errors.InsufficientPrivilege, match="permission denied"):
                connection.cursor().execute(statement)
            connection.rollback()
    connection.close()


@pytest.mark.parametrize("role", ["OPERATOR", "TENANT"])
def test_tokens_have_their_roles(up: Running, role: str) -> None:
    with up.api(role) as api:
        answer = api.post("/v1/jobs/1/redrive", json={"reason": "r", "fence": 0})
        assert answer.status_code == (409 if role == "OPERATOR" else 403)


def test_commands_speak_json_and_use_their_exit_codes(up: Running) -> None:
    with up.api() as api:
        resource = until(api, create(api), "active")
    id = resource["id"]
    deleted = up.cli("resources", "delete", id, "--grace", "0s", "--reason", "ticket 811", "--json")
    assert json.loads(deleted.stdout)["already_deleted"] is False
    assert json.loads(up.cli("resources", "delete", id, "--json").stdout)["already_deleted"] is True
    job = json.loads(deleted.stdout)["job"]["id"]
    eventually(lambda: json.loads(up.cli("resources", "show", id, "--json").stdout)["status"] == "deleted")
    story = json.loads(up.cli("jobs", "show", str(job), "--json").stdout)
    assert (story["state"], story["events"][0]["reason"]) == ("succeeded", "ticket 811")
    assert story["events"][0]["actor"].startswith("cli:")
    listed = json.loads(up.cli("jobs", "list", "--state", "succeeded", "--json").stdout)
    assert job in [item["id"] for item in listed["items"]]
    assert id in [item["id"] for item in json.loads(up.cli("resources", "list", "--json").stdout)["items"]]
    for table in (("jobs", "list"), ("jobs", "show", str(job)), ("resources", "list"), ("token", "list")):
        assert up.cli(*table).returncode == 0
    made = json.loads(up.cli("token", "create", "--role", "tenant", "--tenant", "x", "--json").stdout)
    assert up.cli("token", "revoke", str(made["id"])).returncode == 0
    assert made["token"] not in up.cli("token", "list", "--json").stdout
    for words, code in [
        (("jobs", "show", "999999"), 1),
        (("resources", "show", "00000000-0000-4000-8000-000000000000"), 1),
        (("jobs", "redrive", str(job), "--fence", "1", "--reason", "r"), 1),
        (("token", "revoke", "999999"), 1),
        (("jobs", "show", "x"), 2),
        (("resources", "delete", "x"), 2),
        (("token", "create", "--role", "tenant"), 2),
        (("nonsense",), 2),
    ]:
        answer = up.cli(*words)
        assert answer.returncode == code, (words, answer)
        assert answer.stderr
        assert "Traceback" not in answer.stderr


def test_a_delete_at_a_shell_names_the_commands_that_take_it_back_and_destroy_it(up: Running) -> None:
    with up.api() as api:
        id = until(api, create(api), "active")["id"]
    said = up.cli("resources", "delete", id).stdout
    commands = [line.split()[1:4] for line in said.splitlines() if line.startswith("  deprovisioner ")]
    assert commands == [["resources", "restore", id], ["resources", "purge", id]]
    restore, purge = commands
    assert up.cli(*restore, "--reason", "a mistake").returncode == 0
    eventually(lambda: json.loads(up.cli("resources", "show", id, "--json").stdout)["status"] == "active")
    up.cli("resources", "delete", id)
    assert up.cli(*purge, "--reason", "no mistake").returncode == 0
    eventually(lambda: json.loads(up.cli("resources", "show", id, "--json").stdout)["status"] == "deleted")


def test_the_doctor_finds_nothing_broken_where_work_was_done(up: Running) -> None:
    with up.api() as api:
        for kind in ("postgres", "redis"):
            resource = until(api, create(api, kind), "active")
            api.delete(f"/v1/resources/{resource['id']}?grace=0s")
            until(api, resource, "deleted")
    assert up.cli("backends", "check").stdout == "ok         pg-main\nok         redis-main\n"
    answer = up.cli("doctor")
    assert answer.returncode == 0, answer.stdout
    assert "ok         deleted_without_evidence" in answer.stdout
    assert "ok         backend_unsafe" in answer.stdout


def test_a_child_that_dies_is_started_again_and_named(up: Running) -> None:
    (worker,) = [p for p in descendants(up.popen.pid) if p.line.endswith("deprovisioner.cli worker")]
    os.kill(worker.pid, signal.SIGKILL)
    eventually(lambda: "worker-1 ended (SIGKILL); starting it again" in up.log.read_text())
    with up.api() as api:
        until(api, create(api), "active")


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="reads /proc/PID/environ")
def test_only_workers_have_the_backends_addresses_in_their_environment(up: Running) -> None:
    names = ("PG_MAIN_DSN", "REDIS_MAIN_URL", "PG_MAIN_SERVICE_DSN", "REDIS_MAIN_SERVICE_URL")
    addresses = {f"{name}={up.env[name]}".encode() for name in names}
    given = {f"{name}={up.env[name]}".encode() for name in ("PG_MAIN_SERVICE_DSN", "REDIS_MAIN_SERVICE_URL")}
    found: dict[str, list[set[bytes]]] = {"api": [], "worker": [], "server": []}
    for process in psutil.Process(up.popen.pid).children():
        word = process.cmdline()[-1]
        environ = Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
        found[word if word in found else "server"].append(addresses & set(environ))
    assert found == {"api": [set()], "worker": [given], "server": [set()] * 4}
