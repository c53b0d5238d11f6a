"""A server that lost its data for good under a resource that is being deleted: the runbook's way to the end."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import Connection

from deprovisioner.up import servers as embedded
from outbox import tokens
from tests.support import accounts, redis_servers, runbook
from tests.support.api import create, until
from tests.support.processes import System, client, shell
from tests.support.servers import server_folder
from tests.support.witness import RedisServer, eventually

Json = dict[str, Any]
(FORCED,) = (
    command
    for part in runbook.parts()
    if part.names == ["refused"]
    for block in part.blocks
    for command, _ in block
    if "--force" in command
)


@pytest.fixture
def at_hand(env: dict[str, str], db: Connection) -> dict[str, str]:
    """The environment of an operator's shell."""
    return env | {"DEPROVISIONER_OPERATOR_TOKEN": _operator(db)}


@pytest.fixture
def own(tmp_path: Path) -> Iterator[RedisServer]:
    """A Valkey of the test's own, with the documented account."""
    with redis_servers.running("valkey", tmp_path / "own") as server:
        server.service_dsn = accounts.valkey(server.url)
        yield server


@contextmanager
def _rebuilding() -> Iterator[tuple[str, Callable[[], None]]]:
    """A PostgreSQL cluster with the documented account, and what makes a new one at its address."""
    port = embedded.free_port()
    dsn = embedded.postgres_dsn(port, "secret")
    started: list[embedded.Child] = []
    homes: list[Path] = []

    def build() -> str:
        for child in started:
            child.stop()
        homes.append(server_folder("lost"))
        child = embedded.postgres(homes[-1], "lost", port, "secret", {"fsync": "off"})
        started.append(child)
        child.spawn()
        child.wait_until(lambda: embedded.postgres_ready(dsn))
        return accounts.postgres(dsn)

    try:
        yield build(), lambda: bool(build())
    finally:
        started[-1].stop()
        for home in homes:
            shutil.rmtree(home, ignore_errors=True)


def _operator(db: Connection) -> str:
    return tokens.create(db, actor="op", role="operator", tenant=None, name="op")[1]


def _refused(acme: httpx.Client, boss: httpx.Client, resource: Json) -> Json:
    """The job of its DELETE, once it is stuck."""
    url = acme.delete(f"/v1/resources/{resource['id']}").json()["job"]["url"]
    eventually(lambda: boss.get(url).json()["state"] == "stuck", what="the job is stuck")
    job = boss.get(url).json()
    assert job["stuck_reason"] == "refused", job
    return job


def _ends_by_the_runbook(db: Connection, acme: httpx.Client, resource: Json, words: dict[str, str], means: str) -> None:
    with client(str(acme.base_url), words["DEPROVISIONER_OPERATOR_TOKEN"]) as boss:
        job = _refused(acme, boss, resource)
        words = words | {"JOB": str(job["id"]), "FENCE": str(job["fence"])}
        looked = shell(words, "jobs", "observe", words["JOB"])
        assert (looked.returncode, means in looked.stdout) == (0, True), looked.stdout
        alone = shell(words, "jobs", "resolve", words["JOB"], "--fence", words["FENCE"], "--reason", "lost")
        assert (alone.returncode, means in alone.stderr) == (1, True), alone.stderr
        first = runbook.run(words, FORCED)
        assert (first.returncode, "another operator must run" in first.stdout) == (1, True), first
        assert means in first.stdout, "the second operator reads what was observed"
        assert acme.get(f"/v1/resources/{resource['id']}").json()["status"] == "deleting"
        second = runbook.run(words | {"DEPROVISIONER_OPERATOR_TOKEN": _operator(db)}, FORCED)
        assert second.returncode == 0, second.stderr
        assert acme.get(f"/v1/resources/{resource['id']}").json()["status"] == "deleted"
        events = boss.get(f"/v1/jobs/{job['id']}").json()["events"]
        last = events[-1]
        assert (last["event"], last["detail"]["forced"]) == ("resolved", True)
        observed = [event for event in events if event["event"] == "observed"][-1]
        assert observed["detail"]["found"] == "different"
        assert means in observed["detail"]["seen"]["why"]
        assert last["detail"].get("seen", {}).get("why") == observed["detail"]["seen"]["why"]


def test_a_valkey_that_lost_its_data_and_its_users_is_given_up_by_two_operators(
    db: Connection, acme: httpx.Client, system: System, at_hand: dict[str, str], own: RedisServer
) -> None:
    system.worker(REDIS_MAIN_URL=own.service_dsn)
    resource = until(acme, create(acme, "redis"), "active")
    own.client.acl_deluser(*(own.users() - {"default", accounts.NAME}))
    own.client.flushall()
    _ends_by_the_runbook(db, acme, resource, at_hand, "nothing of this resource is on this server")


def test_a_valkey_that_lost_its_keys_alone_ends_the_job_by_itself(
    acme: httpx.Client, system: System, own: RedisServer
) -> None:
    system.worker(REDIS_MAIN_URL=own.service_dsn)
    resource = until(acme, create(acme, "redis"), "active")
    own.client.flushall()
    acme.delete(f"/v1/resources/{resource['id']}")
    assert until(acme, resource, "deleted")["status"] == "deleted"
    assert not own.bears(resource["manifest"])


@pytest.mark.proof
def test_a_postgresql_that_was_rebuilt_is_given_up_by_two_operators(
    db: Connection, acme: httpx.Client, system: System, at_hand: dict[str, str]
) -> None:
    with _rebuilding() as (dsn, rebuild):
        system.worker(PG_MAIN_DSN=dsn)
        resource = until(acme, create(acme), "active")
        rebuild()
        _ends_by_the_runbook(db, acme, resource, at_hand, "the wrong server")
