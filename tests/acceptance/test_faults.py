"""Workers killed, brokers dead, backends dead: eventually, once."""

import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
from celery import Celery

from deprovisioner.up import servers as embedded
from outbox import doorbell
from tests.support import accounts
from tests.support.api import create, until
from tests.support.processes import System, client
from tests.support.servers import Servers
from tests.support.witness import eventually, slowness

LEASE, SWEEP = 3.0, 0.5  # of the worker that is killed; of all workers


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_worker_killed_around_the_drop_leaves_one_drop_and_a_finished_job(
    acme: httpx.Client, system: System, servers: Servers, moment: str
) -> None:
    births = system.worker()
    resource = until(acme, create(acme), "active")
    births.teardown()
    crashing = system.worker(CRASH_AT=f"{moment}:DROP DATABASE", DEPROVISIONER_LEASE_SECONDS=str(LEASE))
    job = acme.delete(f"/v1/resources/{resource['id']}").json()["job"]
    eventually(lambda: crashing.container.status == "exited", what="the worker killed itself")
    killed = time.monotonic()
    assert servers.pg.drops_of(resource["manifest"]) == (moment == "after")
    system.worker()
    until(acme, resource, "deleted")
    assert time.monotonic() - killed < LEASE + SWEEP + 5 * slowness()
    assert servers.pg.drops_of(resource["manifest"]) == 1
    assert not servers.pg.bears(resource["manifest"])
    story = acme.get(job["url"]).json()
    assert story["state"] == "succeeded"
    assert [e["event"] for e in story["events"]][:4] == ["enqueued", "claimed", "started", "swept"]


def test_a_worker_told_to_stop_lets_its_teardown_end(acme: httpx.Client, system: System, servers: Servers) -> None:
    births = system.worker()
    resource = until(acme, create(acme), "active")
    births.teardown()
    system.worker(CRASH_AT="before:DROP DATABASE", CRASH_SIGNAL="SIGTERM")
    acme.delete(f"/v1/resources/{resource['id']}")
    until(acme, resource, "deleted")
    eventually(lambda: system.workers[-1].container.status == "exited", what="it stopped by itself")
    job = acme.get("/v1/jobs?kind=deprovision").json()["items"][0]
    assert (job["fence"], job["attempts"]) == (1, 1), "no other worker had to take over"


@pytest.fixture
def own_broker(env: dict[str, str], folder: Path):
    """A broker of this test's own, to be killed."""
    port = embedded.free_port()
    child = embedded.valkey(folder, "broker", port, durable=False)
    env["DEPROVISIONER_BROKER_URL"] = url = embedded.valkey_url(port)

    def start() -> None:
        child.spawn()
        child.wait_until(lambda: embedded.valkey_ready(url))

    start()
    child.start = start  # type: ignore[attr-defined]
    yield child
    child.stop()


def test_with_the_broker_dead_a_delete_is_accepted_fast_and_done_after_its_return(
    own_broker: Any, system: System, servers: Servers, tenant: str
) -> None:
    with client(system.api(), tenant) as acme:
        system.worker()
        made = [create(acme) for _ in range(10)]
        alive = [until(acme, resource, "active") for resource in made]
        with_the_broker = sorted(seconds_of_delete(acme, until(acme, create(acme), "active")) for _ in range(5))[2]
        own_broker.process.kill()
        own_broker.process.wait()
        times = sorted(seconds_of_delete(acme, resource) for resource in made)
        assert times[len(times) // 2] < max(0.1, 3 * with_the_broker), (times, with_the_broker)
        own_broker.start()
        for resource in alive:
            until(acme, resource, "deleted")
            assert servers.pg.drops_of(resource["manifest"]) == 1


def seconds_of_delete(api: httpx.Client, resource: dict[str, Any]) -> float:
    began = time.monotonic()
    assert api.delete(f"/v1/resources/{resource['id']}").status_code == 202
    return time.monotonic() - began


def test_a_worker_started_while_the_broker_is_dead_works_all_the_same(
    own_broker: Any, system: System, servers: Servers, tenant: str
) -> None:
    own_broker.process.kill()
    own_broker.process.wait()
    with client(system.api(), tenant) as acme:
        system.worker()
        until(acme, create(acme), "active")


def test_a_worker_hears_the_doorbell_again_after_the_broker_was_away(
    own_broker: Any, system: System, tenant: str
) -> None:
    with client(system.api(), tenant) as acme:
        system.worker(DEPROVISIONER_SWEEP_SECONDS="600")
        until(acme, create(acme), "active")
        own_broker.process.kill()
        own_broker.process.wait()
        own_broker.start()
        # No sweep helps here for ten minutes: only a bell that was heard.
        broker = redis.Redis.from_url(system.env["DEPROVISIONER_BROKER_URL"])
        eventually(lambda: _listens(broker, "bzpopmin"), what="the worker listens again")
        until(acme, create(acme), "active")


@pytest.mark.proof
def test_a_broker_that_dies_over_unanswered_messages_does_not_take_the_worker_along(
    own_broker: Any, system: System, connect: Callable[[], Any]
) -> None:
    worker = system.worker()
    url = system.env["DEPROVISIONER_BROKER_URL"]
    broker = redis.Redis.from_url(url)
    sender = Celery("bells", broker=url, set_as_current=False)
    sender.conf.update(doorbell.CONFIG)
    for _ in range(6):  # which of the worker's two connections learns of it first is luck
        session = connect()
        session.cursor().execute("LOCK TABLE resources, outbox")
        for _ in range(3):  # two that the pool's threads have begun, and are kept at, and one that waits for them
            sender.send_task(doorbell.SWEEP, ignore_result=True)
        eventually(lambda: not broker.llen(doorbell.QUEUE) and _listens(broker), what="all three were read")
        own_broker.process.kill()
        own_broker.process.wait()
        own_broker.start()
        session.rollback()
        eventually(lambda: worker.container.status == "exited" or _listens(broker), what="the worker listens again")
        assert worker.container.status == "running"


def _listens(broker: "redis.Redis", how: str = "brpop") -> bool:
    return any(how in client["cmd"] and "b" in client["flags"] for client in broker.client_list())


def test_a_dead_backend_s_jobs_wait_without_burning_attempts_and_others_go_on(
    env: dict[str, str], system: System, servers: Servers, tenant: str, folder: Path
) -> None:
    port = embedded.free_port()
    mortal = embedded.postgres(folder, "mortal", port, "secret", {"fsync": "off", "log_statement": "ddl"})
    dsn = embedded.postgres_dsn(port, "secret")

    def start() -> None:
        mortal.spawn()
        mortal.wait_until(lambda: embedded.postgres_ready(dsn))

    start()
    try:
        system.env["PG_MAIN_DSN"] = accounts.postgres(dsn)
        with client(system.api(), tenant) as acme:
            system.worker()
            databases = [until(acme, create(acme), "active") for _ in range(5)]
            namespaces = [until(acme, create(acme, "redis"), "active") for _ in range(5)]
            mortal.stop()
            for resource in databases + namespaces:
                assert acme.delete(f"/v1/resources/{resource['id']}").status_code == 202
            for resource in namespaces:
                until(acme, resource, "deleted")
            waiting = acme.get("/v1/jobs?backend=pg-main&kind=deprovision").json()["items"]
            eventually(lambda: any(j["last_error"] for j in acme.get("/v1/jobs?backend=pg-main").json()["items"]))
            waiting = acme.get("/v1/jobs?backend=pg-main&kind=deprovision").json()["items"]
            assert [(job["state"] in ("pending", "running")) for job in waiting] == [True] * 5
            start()
            for resource in databases:
                until(acme, resource, "deleted")
            done = acme.get("/v1/jobs?backend=pg-main&kind=deprovision").json()["items"]
            assert [(job["state"], job["attempts"]) for job in done] == [("succeeded", 1)] * 5
    finally:
        mortal.stop()


@pytest.mark.proof
def test_the_control_database_restarts_and_everything_goes_on(
    env: dict[str, str], system: System, servers: Servers, tenant: str
) -> None:
    with client(system.api(), tenant) as acme:
        system.worker()
        resource = until(acme, create(acme), "active")
        name = env["DEPROVISIONER_DATABASE_URL"].rsplit("/", 1)[1]
        servers.control.query(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s AND pid <> pg_backend_pid()",
            name,
        )
        assert acme.delete(f"/v1/resources/{resource['id']}").status_code == 202
        until(acme, resource, "deleted")
        assert servers.pg.drops_of(resource["manifest"]) == 1


def test_a_dead_control_database_is_said_and_nothing_is_half_done(
    system: System, servers: Servers, tenant: str, env: dict[str, str]
) -> None:
    with client(system.api(), tenant) as acme:
        name = env["DEPROVISIONER_DATABASE_URL"].rsplit("/", 1)[1]
        resource = create(acme)
        servers.control.query(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        servers.control.query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", name)
        answer = acme.delete(f"/v1/resources/{resource['id']}")
        assert answer.status_code in (503, 500)
        assert answer.json()["code"] in ("database_unavailable", "internal_error")
        servers.control.query(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
        assert acme.delete(f"/v1/resources/{resource['id']}").status_code == 202


def test_a_birth_that_fails_half_way_leaves_nothing_on_the_server(
    acme: httpx.Client, system: System, servers: Servers
) -> None:
    only_roles = accounts.fresh(servers.pg, f"only_roles_{uuid.uuid4().hex}", lacking="CREATEDB")
    roles, databases = servers.pg.roles(), servers.pg.databases()
    system.worker(PG_MAIN_DSN=only_roles)
    resource = create(acme)
    gone = until(acme, resource, "deleted")
    assert gone["manifest"]["role"] is not None
    assert f'CREATE ROLE "{gone["manifest"]["role"]}"' in servers.pg.log.read_text(), "the role had been made"
    assert (servers.pg.roles(), servers.pg.databases()) == (roles, databases)
    kinds = [(j["kind"], j["state"]) for j in acme.get("/v1/jobs").json()["items"]]
    assert kinds == [("deprovision", "succeeded"), ("provision", "cancelled")]


@pytest.mark.parametrize("kind", ["postgres", pytest.param("redis", marks=pytest.mark.proof)])
def test_a_delete_while_still_provisioning_leaves_nothing_on_the_server(
    acme: httpx.Client, system: System, servers: Servers, kind: str
) -> None:
    system.worker()
    gone = []
    for _ in range(10):  # so that the DELETE comes at different moments of the provision
        resource = create(acme, kind)
        answer = acme.delete(f"/v1/resources/{resource['id']}")
        assert answer.status_code == 202
        gone.append(until(acme, resource, "deleted"))
    witness = servers.pg if kind == "postgres" else servers.redis
    assert not any(witness.bears(resource["manifest"]) for resource in gone if resource["manifest"])


def test_an_adopted_database_is_dropped_once(
    acme: httpx.Client, system: System, servers: Servers, operator: str
) -> None:
    body = {"kind": "postgres", "backend": "pg-main", "name": "old", "manifest": {"database": "legacy_orders"}}
    refused = acme.post("/v1/resources", json=body)
    assert (refused.status_code, refused.json()["code"]) == (403, "forbidden"), "a tenant must not name its way to it"
    servers.pg.query("DROP DATABASE IF EXISTS legacy_orders")
    accounts.adoptable(servers.pg, "legacy_orders")
    system.worker()
    boss = {"Authorization": f"Bearer {operator}"}
    made = acme.post("/v1/resources", json=body | {"tenant": "acme"}, headers=boss).json()["resource"]
    resource = until(acme, made, "active")
    assert resource["manifest"]["oid"]
    answer = acme.get(f"/v1/resources/{resource['id']}/credentials")
    assert (answer.status_code, answer.json()["code"]) == (409, "no_credentials")
    acme.delete(f"/v1/resources/{resource['id']}")
    until(acme, resource, "deleted")
    assert servers.pg.drops_of(resource["manifest"]) == 1
