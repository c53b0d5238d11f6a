"""`deprovisioner up` as a new user meets it, and the commands beside it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import psycopg2
import pytest
import redis

from deprovisioner.up import servers as embedded
from outbox.settings import read_env
from tests.support.api import create, until
from tests.support.processes import client, descendants
from tests.support.witness import PgServer, eventually

CLI = [sys.executable, "-m", "deprovisioner.cli"]


def clean_environment(**more: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("DEPROVISIONER_", "PG_MAIN", "REDIS_MAIN"))}
    return kept | {"PYTHONUNBUFFERED": "1"} | more


class Running:
    """An `up` process with its home."""

    def __init__(self, home: Path, port: int, **env: str) -> None:
        self.home = home
        self.log = home.with_name(f"{home.name}-{time.monotonic_ns()}.log")
        with self.log.open("ab") as log:
            self.popen = subprocess.Popen(
                [*CLI, "up", "--home", str(home), "--port", str(port)],
                env=clean_environment(**env),
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def ready(self) -> "Running":
        eventually(lambda: self.popen.poll() is not None or "Ctrl-C" in self.log.read_text(), 60, "up is up")
        assert self.popen.poll() is None, self.log.read_text()
        return self

    @property
    def env(self) -> dict[str, str]:
        return read_env(self.home / "env")

    def cli(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*CLI, *words], check=False, env=clean_environment(**self.env), capture_output=True, text=True, timeout=60
        )

    def api(self, role: str = "TENANT") -> httpx.Client:
        return client(self.env["DEPROVISIONER_API_URL"], self.env[f"DEPROVISIONER_{role}_TOKEN"])

    def stop(self, number: int = signal.SIGTERM) -> int:
        if self.popen.poll() is None:
            self.popen.send_signal(number)
        return self.popen.wait(60)


@pytest.fixture(scope="module")
def up() -> Iterator[Running]:
    folder = Path(tempfile.mkdtemp(prefix="deprovisioner-up-"))
    running = Running(folder / "home", embedded.free_port()).ready()
    yield running
    running.stop()
    shutil.rmtree(folder, ignore_errors=True)


def test_up_serves_and_writes_an_env_that_works(up: Running) -> None:
    names = ["DATABASE_URL", "BROKER_URL", "API_URL", "OPERATOR_TOKEN", "TENANT_TOKEN"]
    assert {f"DEPROVISIONER_{name}" for name in names} | {"PG_MAIN_DSN", "REDIS_MAIN_URL"} <= set(up.env)
    assert (up.home / "env").stat().st_mode & 0o077 == 0, "it holds secrets"
    sourced = subprocess.run(
        ["sh", "-c", f". {up.home}/env && echo $DEPROVISIONER_API_URL"], capture_output=True, text=True, check=True
    )
    assert sourced.stdout.strip() == up.env["DEPROVISIONER_API_URL"]
    with up.api() as api:
        for kind in ("postgres", "redis"):
            resource = until(api, create(api, kind), "active")
            assert api.delete(f"/v1/resources/{resource['id']}").status_code == 202
            until(api, resource, "deleted")
    pg = PgServer(up.env["PG_MAIN_DSN"], up.home / "log" / "pg-main.log")
    assert sum(pg.drops().values()) == 1, "pg-main logs what is dropped"
    assert redis.Redis.from_url(up.env["REDIS_MAIN_URL"]).ping()
    assert up.env["PG_MAIN_DSN"] != up.env["DEPROVISIONER_DATABASE_URL"]
    said = up.log.read_text()
    assert said.count("curl -sS") == 3
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


def test_a_second_up_on_the_same_home_is_refused(up: Running) -> None:
    second = Running(up.home, embedded.free_port())
    assert second.popen.wait(30) == 1
    assert f"another `deprovisioner up` (pid {up.popen.pid}) runs on {up.home}" in second.log.read_text()
    assert httpx.get(f"{up.env['DEPROVISIONER_API_URL']}/healthz").status_code == 200


def test_a_taken_port_is_named_and_nothing_is_left(up: Running, folder: Path) -> None:
    port = int(up.env["DEPROVISIONER_API_URL"].rsplit(":", 1)[1])
    second = Running(folder / "other", port)
    assert second.popen.wait(30) == 1
    assert f"port {port} on 127.0.0.1 is taken" in second.log.read_text()
    assert not (folder / "other" / "env").exists()


def test_nobody_else_on_the_machine_reads_or_enters(up: Running) -> None:
    open_files = [p for p in up.home.rglob("*") if p.is_file() and p.stat().st_mode & 0o077]
    assert {p.name for p in open_files} <= {"lock", "backends.toml"}
    for url in (up.env["REDIS_MAIN_URL"], up.env["DEPROVISIONER_BROKER_URL"]):
        with pytest.raises(redis.AuthenticationError):
            redis.Redis.from_url(f"redis://{url.rsplit('@', 1)[1]}").ping()


def test_a_server_of_somebody_else_s_is_said_aloud(up: Running, folder: Path) -> None:
    given = {name: up.env[name] for name in ("DEPROVISIONER_DATABASE_URL", "DEPROVISIONER_CREDENTIALS_KEY")}
    second = Running(folder / "second", embedded.free_port(), **given).ready()
    assert second.stop() == 0
    said = second.log.read_text()
    assert "not starting our own: DEPROVISIONER_DATABASE_URL is set to postgresql://…@" in said
    assert up.env["DEPROVISIONER_DATABASE_URL"] not in said


def test_what_env_names_may_add_to_history_and_not_change_it(up: Running) -> None:
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
    deleted = up.cli("resources", "delete", id, "--reason", "ticket 811", "--json")
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


def test_the_doctor_finds_nothing_broken_where_work_was_done(up: Running) -> None:
    with up.api() as api:
        for kind in ("postgres", "redis"):
            resource = until(api, create(api, kind), "active")
            api.delete(f"/v1/resources/{resource['id']}")
            until(api, resource, "deleted")
    answer = up.cli("doctor")
    assert answer.returncode == 0, answer.stdout
    assert "ok         deleted_without_evidence" in answer.stdout


def test_a_wrong_setting_is_a_usage_error_that_names_it(up: Running) -> None:
    for words in (("jobs", "list"), ("worker",), ("api",), ("up",)):
        answer = subprocess.run(
            [*CLI, *words],
            check=False,
            env=clean_environment(DEPROVISIONER_LEASE="1"),
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert answer.returncode == 2
        assert "DEPROVISIONER_LEASE is not a setting; did you mean DEPROVISIONER_LEASE_SECONDS?" in answer.stderr


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["up"],
        ["jobs"],
        ["jobs", "list"],
        ["breakers", "list"],
        ["resources", "delete"],
        ["token", "create"],
        ["demo"],
        ["doctor"],
        ["audit", "checkpoint"],
        ["audit", "export"],
    ],
)
def test_help_shows_an_example(words: list[str]) -> None:
    answer = subprocess.run(
        [*CLI, *words, "--help"], check=False, env=clean_environment(), capture_output=True, text=True
    )
    assert answer.returncode == 0
    assert "Example" in answer.stdout or words in (["jobs"],)


def test_the_demo_kills_a_worker_and_keeps_its_promise() -> None:
    words = ["demo", "--resources", "6", "--deletes", "4", "--json"]
    answer = subprocess.run([*CLI, *words], check=False, env=clean_environment(), capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout)["kept"] is True


def test_a_child_that_dies_is_started_again_and_said(up: Running) -> None:
    (worker,) = [p for p in descendants(up.popen.pid) if p.line.endswith("deprovisioner.cli worker")]
    os.kill(worker.pid, signal.SIGKILL)
    eventually(lambda: "worker-1 ended (SIGKILL); starting it again" in up.log.read_text())
    with up.api() as api:
        until(api, create(api), "active")


def test_stopped_it_leaves_no_process_and_started_again_it_has_its_data(folder: Path) -> None:
    home, port = folder / "home", embedded.free_port()
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
    second = Running(home, port).ready()
    try:
        assert second.env == read_env(home / "env")
        with second.api() as api:
            assert api.get(f"/v1/resources/{resource['id']}").json()["status"] == "active"
            again = api.get(f"/v1/resources/{resource['id']}/credentials").json()
            with psycopg2.connect(again["dsn"]) as connection:
                cursor = connection.cursor()
                cursor.execute("SELECT n FROM t")
                assert cursor.fetchone() == (7,)
            connection.close()
            api.delete(f"/v1/resources/{resource['id']}")
            until(api, resource, "deleted")
    finally:
        assert second.stop() == 0


def test_a_home_from_before_the_service_s_role_starts(folder: Path) -> None:
    home, port = folder / "home", embedded.free_port()
    first = Running(home, port).ready()
    service = first.env["DEPROVISIONER_DATABASE_URL"]
    assert first.stop() == 0
    state = json.loads((home / "state.json").read_text())
    del state["service.password"]
    (home / "state.json").write_text(json.dumps(state))
    owner = embedded.postgres_dsn(state["control.port"], state["control.password"])
    (home / "env").write_text((home / "env").read_text().replace(service, owner))
    second = Running(home, port, DEPROVISIONER_DATABASE_URL=owner).ready()
    assert second.env["DEPROVISIONER_DATABASE_URL"] not in (service, owner)
    with second.api() as api:
        until(api, create(api), "active")
    assert second.stop() == 0


def test_killed_it_takes_its_children_with_it_and_starts_again(folder: Path) -> None:
    home, port = folder / "home", embedded.free_port()
    first = Running(home, port).ready()
    family = [p.pid for p in descendants(first.popen.pid)]
    first.popen.kill()
    first.popen.wait()
    eventually(lambda: not [pid for pid in family if _runs(pid)], 30, "no process is left")
    second = Running(home, port).ready()
    assert second.stop() == 0


def test_up_may_be_stopped_while_it_starts_and_then_starts_again(folder: Path) -> None:
    for wait in (0.5, 2.0, 4.0):
        running = Running(folder / f"home{wait}", embedded.free_port())
        time.sleep(wait)  # not for a race: any moment of the start will do
        family = [p.pid for p in descendants(running.popen.pid)] if running.popen.poll() is None else []
        running.stop()
        eventually(lambda: not [pid for pid in family if _runs(pid)], 10, "no process is left")  # noqa: B023
        again = Running(folder / f"home{wait}", embedded.free_port()).ready()
        assert again.stop() == 0


_SIGNALLED_IN_A_DEL = """
import os, signal, sys
from pathlib import Path
from deprovisioner.up import servers as embedded, supervisor

class Ring:
    def __del__(self):  # what a signal raises here, Python drops
        os.kill(os.getpid(), signal.SIGTERM)

asked = embedded.port_is_free
def port_is_free(host, port):
    Ring()
    return asked(host, port)
embedded.port_is_free = port_is_free
supervisor.Up(Path(sys.argv[1]), "127.0.0.1", int(sys.argv[2]), 1, os.environ).run()
"""


def test_a_signal_that_python_drops_stops_up_all_the_same(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _SIGNALLED_IN_A_DEL, str(folder / "home"), str(embedded.free_port())],
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "Exception ignored in: <function Ring.__del__" in done.stderr
    assert done.returncode == 0
    assert "up: stopping" in done.stdout
    assert "Ctrl-C stops everything" not in done.stdout, "it never got that far"


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
