"""A provisioner behind API and workers, as a platform runs them; the provisioner's own log counts what was done."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from deprovisioner.up import servers as embedded
from tests.support.api import at_once, until
from tests.support.processes import ROOT, System
from tests.support.provisioners import ACTIONS, SECRET, VERBS, App, Meddle, Served, after, before, only
from tests.support.witness import eventually
from tests.worker.backends.webhook.conftest import Serve

BACKEND = """
[backends.hook]
kind = "webhook"
dsn = "env:HOOK_DSN"
"""
SHORT = {"DEPROVISIONER_LEASE_SECONDS": "2"}
# What a teardown asks for, in this order.
POSTS = ("/inspect", "/deprovision", "/inspect", "/objects")


@pytest.fixture
def env(env: dict[str, str]) -> dict[str, str]:
    """With a backend of the kind; its address is not set yet."""
    with Path(env["DEPROVISIONER_BACKENDS"]).open("a") as backends:
        backends.write(BACKEND)
    return env


@pytest.fixture
def at(system: System) -> Callable[[Served], Served]:
    """The address of the backend, for all processes that start from now on."""

    def set_address(served: Served) -> Served:
        system.env["HOOK_DSN"] = served.dsn(timeout=5)
        return served

    return set_address


At = Callable[[Served], Served]


def create(acme: httpx.Client, **words: Any) -> dict[str, Any]:
    asked = {"kind": "webhook", "backend": "hook", "name": "orders"} | words
    answer = acme.post("/v1/resources", json=asked)
    assert answer.status_code == 202, answer.text
    return until(acme, answer.json()["resource"], "active")


def story(acme: httpx.Client, resource: dict[str, Any]) -> dict[str, Any]:
    answer = acme.delete(f"/v1/resources/{resource['id']}")
    return acme.get(answer.json()["job"]["url"]).json()


def test_sixteen_deletes_destroy_once_and_the_customer_is_out(
    at: At, served: Served, acme: httpx.Client, system: System
) -> None:
    at(served)
    system.worker()
    system.worker()
    resource = create(acme)
    login = acme.get(f"/v1/resources/{resource['id']}/credentials").json()
    notebook = f"{served.url}/notebooks/{login['user']}"
    with httpx.Client(auth=(login["user"], login["password"])) as customer:
        assert customer.put(notebook, content="mine").text == "mine"
        answers = at_once(16, lambda _: acme.delete(f"/v1/resources/{resource['id']}"))
        assert sorted(answer.status_code for answer in answers) == [200] * 15 + [202]
        until(acme, resource, "deleted")
        assert customer.get(notebook).status_code == 401
    assert served.effects(login["user"]) == ["provision", "deprovision"]
    assert [one["event"] for one in story(acme, resource)["events"]] == ["enqueued", "claimed", "started", "completed"]


def test_an_object_is_adopted_cut_off_given_back_and_destroyed(
    at: At, served: Served, acme: httpx.Client, system: System, operator: str
) -> None:
    at(served)
    system.worker()
    password = served.by_hand("orders-7")
    as_operator = httpx.Client(base_url=acme.base_url, headers={"Authorization": f"Bearer {operator}"})
    asked = {"kind": "webhook", "backend": "hook", "name": "orders", "tenant": "acme"}
    with as_operator, httpx.Client(auth=("orders-7", password)) as customer:
        notebook = f"{served.url}/notebooks/orders-7"
        answer = as_operator.post("/v1/resources", json=asked | {"manifest": {"external": "orders-7"}})
        resource = until(acme, answer.json()["resource"], "active")
        assert acme.delete(f"/v1/resources/{resource['id']}?grace=1h").status_code == 202
        eventually(lambda: customer.get(notebook).status_code == 401, what="it is cut off")
        assert acme.post(f"/v1/resources/{resource['id']}/restore", json={"reason": "oops"}).status_code == 202
        until(acme, resource, "active")
        assert customer.get(notebook).status_code == 200
        acme.delete(f"/v1/resources/{resource['id']}")
        until(acme, resource, "deleted")
    assert served.effects() == ["adopt", "quarantine", "release", "deprovision"]


@pytest.mark.proof
def test_a_provisioner_that_moved_is_compared_and_rebound_and_deletes_go_on(
    at: At, served: Served, serve: Serve, acme: httpx.Client, system: System
) -> None:
    """The new one has the objects of the old one, and an identity of its own."""
    at(served)
    worker = system.worker()
    kept, gone = create(acme), create(acme)
    worker.teardown()
    served.query("DELETE FROM notebooks WHERE external = ?", gone["manifest"]["external"])
    new = at(serve())
    with closing(sqlite3.connect(new.notebooks.file, isolation_level=None)) as db:
        db.execute("ATTACH ? AS old", (str(served.notebooks.file),))
        db.execute("INSERT INTO notebooks SELECT * FROM old.notebooks")
    system.worker()
    job = acme.delete(f"/v1/resources/{kept['id']}").json()["job"]["url"]
    eventually(lambda: acme.get(job).json()["state"] == "stuck", what="it is the wrong server")

    def rebind(*words: str) -> Any:
        return json.loads(system.cli("backends", "rebind", "hook", "--json", *words).stdout)

    seen = rebind("--dry-run")
    assert {name: n for name, n in seen["counts"].items() if n} == {"rebind": 1, "missing": 1}
    rebind("--digest", seen["digest"], "--old-server", "CHG-42", "--reason", "moved")
    told = acme.get(job).json()
    assert (
        system.cli("jobs", "redrive", str(told["id"]), "--reason", "moved", "--fence", str(told["fence"])).returncode
        == 0
    )
    until(acme, kept, "deleted")
    assert new.effects() == ["deprovision"]
    found = json.loads(system.cli("reconcile", "--backend", "hook", "--json").stdout)
    assert found["backends"][0]["error"] is None


def test_what_cannot_be_cut_off_is_restored_and_deleted_without_a_grace(
    at: At, serve: Serve, acme: httpx.Client, system: System
) -> None:
    """The way out that docs/backends.md gives."""
    served = at(serve(verbs=tuple({*VERBS} - {"quarantine", "release"})))
    system.worker()
    resource = create(acme)
    job = acme.delete(f"/v1/resources/{resource['id']}?grace=1h").json()["job"]["url"]
    eventually(lambda: acme.get(job).json()["state"] == "stuck", what="it is stuck")
    assert acme.get(job).json()["stuck_reason"] == "refused"
    assert acme.post(f"/v1/resources/{resource['id']}/restore", json={"reason": "no way"}).status_code == 202
    until(acme, resource, "active")
    acme.delete(f"/v1/resources/{resource['id']}?grace=0s")
    until(acme, resource, "deleted")
    assert served.effects() == ["provision", "deprovision"]


@pytest.mark.proof
def test_work_that_takes_several_leases_is_one_attempt(
    at: At, serve: Serve, acme: httpx.Client, system: System
) -> None:
    served = at(serve(seconds=1.5))
    system.worker(DEPROVISIONER_LEASE_SECONDS="1")
    resource = create(acme)
    acme.delete(f"/v1/resources/{resource['id']}")
    until(acme, resource, "deleted")
    assert [one["outcome"] for one in story(acme, resource)["attempt_history"]] == ["completed"]
    assert served.effects() == ["provision", "deprovision"]


@pytest.mark.parametrize(
    "verbs",
    [pytest.param(VERBS, id="observable", marks=pytest.mark.proof), pytest.param(ACTIONS, id="not observable")],
)
def test_a_worker_killed_as_the_work_was_done(
    at: At, serve: Serve, acme: httpx.Client, system: System, verbs: tuple[str, ...]
) -> None:
    served = at(serve(verbs=verbs))
    resource = _killed(acme, system, served, lambda kill: only("/deprovision", after(kill), times=1))
    if verbs == ACTIONS:
        eventually(lambda: story(acme, resource)["state"] == "stuck", what="it is stuck")
        assert story(acme, resource)["stuck_reason"] == "outcome_unknown"
    else:
        until(acme, resource, "deleted")
    assert served.effects() == ["provision", "deprovision"]
    assert served.asked()["/deprovision"] == 1


@pytest.mark.proof
@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("nth", range(len(POSTS)))
def test_a_worker_killed_at_each_request(
    at: At, served: Served, acme: httpx.Client, system: System, nth: int, moment: str
) -> None:
    """The provisioner itself kills it: as the request has come, or as the work is done and not answered."""
    at(served)

    def meddle(kill: Callable[[], None]) -> Meddle:
        asked = 0
        kills = before(kill) if moment == "before" else after(kill)

        def chosen(environ: dict[str, Any], start: Any, honest: App) -> Iterable[bytes]:
            nonlocal asked
            if environ["REQUEST_METHOD"] == "POST":
                asked += 1
                if asked - 1 == nth:
                    assert environ["PATH_INFO"] == POSTS[nth]
                    return kills(environ, start, honest)
            return honest(environ, start)

        return chosen

    resource = _killed(acme, system, served, meddle)
    until(acme, resource, "deleted")
    assert served.effects() == ["provision", "deprovision"]


@pytest.mark.proof
def test_a_worker_killed_while_it_asks_a_status_url(at: At, serve: Serve, acme: httpx.Client, system: System) -> None:
    served = at(serve(verbs=ACTIONS, seconds=3))

    def meddle(kill: Callable[[], None]) -> Meddle:
        left = iter(range(1))

        def chosen(environ: dict[str, Any], start: Any, honest: App) -> Iterable[bytes]:
            if environ["PATH_INFO"].startswith("/status/") and next(left, None) is not None:
                kill()
            return honest(environ, start)

        return chosen

    resource = _killed(acme, system, served, meddle)
    until(acme, resource, "deleted")
    assert served.effects() == ["provision", "deprovision"]
    assert served.asked()["/deprovision"] == 2, "under one key"


def _killed(
    acme: httpx.Client, system: System, served: Served, meddle: Callable[[Callable[[], None]], Meddle]
) -> dict[str, Any]:
    """A resource that is being deleted: one worker was killed by the provisioner, and another one lives."""
    worker = system.worker(**SHORT)
    pid = int(worker.container._container.pid)
    resource = create(acme)
    served.meddle = meddle(lambda: os.kill(pid, signal.SIGKILL))
    assert acme.delete(f"/v1/resources/{resource['id']}").status_code == 202
    eventually(lambda: worker.container._container.status == "exited", what="the worker's death")
    system.worker(**SHORT)
    return resource


def test_the_example_runs_as_its_readme_says(system: System, tmp_path: Path) -> None:
    port, home = embedded.free_port(), tmp_path / "provisioner"
    argv = [sys.executable, "-m", "examples.provisioner", "--home", str(home), "--port", str(port)]
    env = {"PATH": os.environ["PATH"], "PROVISIONER_SECRET": SECRET, "PYTHONPATH": str(ROOT)}
    system.env["HOOK_DSN"] = f"http://127.0.0.1:{port}/?secret={SECRET}"
    with (tmp_path / "log").open("w") as log:
        running = subprocess.Popen(argv, cwd=ROOT, env=env, stdout=log, stderr=log)

    def found() -> list[str] | None:
        answer = json.loads(system.cli("backends", "check", "hook", "--json").stdout)
        (told,) = answer["backends"]
        assert answer["ok"] is (told["error"] is None), "a note of the kind is no fault"
        return None if told["error"] else [finding["code"] for finding in told["findings"]]

    try:
        assert eventually(found, what=(tmp_path / "log").read_text()) == ["no_memory"]
        assert (home / "provisioner.sqlite").exists()
    finally:
        running.terminate()
        running.wait(30)
