"""The name belongs to somebody else now: the job is stuck for a person, and nothing of theirs is touched."""

from typing import Any

import httpx

from tests.support import accounts
from tests.support.api import create, until
from tests.support.processes import System
from tests.support.servers import Servers
from tests.support.witness import eventually


def stuck(api: httpx.Client, url: str) -> dict[str, Any]:
    def reached() -> dict[str, Any] | None:
        job = api.get(url).json()
        return job if job["state"] == "stuck" else None

    return eventually(reached, what=f"{url} is stuck")  # type: ignore[return-value]


def test_a_database_made_again_before_the_teardown_runs(acme: httpx.Client, system: System, servers: Servers) -> None:
    worker = system.worker()
    resource = until(acme, create(acme), "active")
    worker.teardown()
    job = acme.delete(f"/v1/resources/{resource['id']}").json()["job"]
    name = resource["manifest"]["database"]
    servers.pg.query(f'DROP DATABASE "{name}"')
    servers.pg.query(f'CREATE DATABASE "{name}" OWNER {accounts.NAME}')
    servers.pg.query("CREATE TABLE precious AS SELECT 42 AS n", database=name)
    system.worker()
    told = stuck(acme, job["url"])
    assert told["stuck_reason"] == "refused"
    assert name in told["last_error"]
    assert servers.pg.query("SELECT n FROM precious", database=name) == [(42,)]
    assert acme.get(f"/v1/resources/{resource['id']}").json()["status"] == "deleting", "never deleted without absence"


def test_a_foreign_generation_key_before_the_teardown_runs(
    acme: httpx.Client, system: System, servers: Servers
) -> None:
    worker = system.worker()
    resource = until(acme, create(acme, "redis"), "active")
    worker.teardown()
    job = acme.delete(f"/v1/resources/{resource['id']}").json()["job"]
    prefix = resource["manifest"]["prefix"]
    servers.redis.client.set(f"deprovisioner:gen:{prefix}", "another")
    servers.redis.client.set(f"{prefix}precious", "42")
    system.worker()
    assert stuck(acme, job["url"])["stuck_reason"] == "refused"
    assert servers.redis.client.get(f"{prefix}precious") == "42"


def test_the_wrong_server_behind_the_same_backend_name(acme: httpx.Client, system: System, servers: Servers) -> None:
    worker = system.worker()
    resource = until(acme, create(acme), "active")
    worker.teardown()
    job = acme.delete(f"/v1/resources/{resource['id']}").json()["job"]
    # Another server, as its superuser: only identity keeps the worker from it.
    system.worker(PG_MAIN_DSN=servers.control.dsn)
    told = stuck(acme, job["url"])
    assert told["stuck_reason"] == "refused"
    assert "wrong server" in told["last_error"]
    assert servers.pg.bears(resource["manifest"])


def test_the_control_database_is_never_adopted(
    acme: httpx.Client, system: System, servers: Servers, env: dict[str, str], operator: str
) -> None:
    # Another server, as its superuser: only identity keeps the worker from it.
    system.worker(PG_MAIN_DSN=servers.control.dsn)
    own = env["DEPROVISIONER_DATABASE_URL"].rsplit("/", 1)[1]
    body = {"kind": "postgres", "backend": "pg-main", "name": "x", "tenant": "acme", "manifest": {"database": own}}
    made = acme.post("/v1/resources", json=body, headers={"Authorization": f"Bearer {operator}"}).json()
    told = stuck(acme, made["job"]["url"])
    assert (told["stuck_reason"], told["last_error"]) == (
        "refused",
        f"'{own}' is protected: it is never adopted or torn down",
    )


def test_a_redriven_job_finds_its_own_again_and_ends_well(
    acme: httpx.Client, system: System, servers: Servers, operator: str
) -> None:
    worker = system.worker()
    resource = until(acme, create(acme), "active")
    worker.teardown()
    job = acme.delete(f"/v1/resources/{resource['id']}").json()["job"]
    # Another server, as its superuser: only identity keeps the worker from it.
    wrong = system.worker(PG_MAIN_DSN=servers.control.dsn)
    fence = stuck(acme, job["url"])["fence"]
    wrong.teardown()
    system.worker()
    boss = {"Authorization": f"Bearer {operator}"}
    stale = acme.post(f"{job['url']}/redrive", json={"reason": "r", "fence": fence - 1}, headers=boss)
    assert (stale.status_code, stale.json()["code"]) == (409, "fence_mismatch")
    done = acme.post(f"{job['url']}/redrive", json={"reason": "dsn was wrong", "fence": fence}, headers=boss)
    assert done.json()["state"] == "pending"
    until(acme, resource, "deleted")
    assert servers.pg.drops_of(resource["manifest"]) == 1
