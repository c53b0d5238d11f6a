"""The main job through real processes: exactly one DELETE wins, exactly one DROP happens."""

from collections import Counter
from contextlib import ExitStack
from typing import Any

import httpx
import psycopg2
import pytest
import redis

from tests.support.api import KINDS, at_once, create, until
from tests.support.processes import System, client
from tests.support.servers import Servers


@pytest.mark.parametrize("kind", KINDS)
def test_a_resource_is_provisioned_used_and_deleted(
    acme: httpx.Client, system: System, servers: Servers, kind: str
) -> None:
    system.worker()
    resource = until(acme, create(acme, kind), "active")
    login = acme.get(f"/v1/resources/{resource['id']}/credentials").json()
    if kind == "postgres":
        connection = psycopg2.connect(login["dsn"])
        connection.cursor().execute("CREATE TABLE t AS SELECT 1 AS n")
        connection.commit()
        connection.close()
    else:
        redis.Redis.from_url(login["url"]).set(f"{login['prefix']}a", 1)
    answer = acme.delete(f"/v1/resources/{resource['id']}")
    assert (answer.status_code, answer.json()["already_deleted"]) == (202, False)
    gone = until(acme, resource, "deleted")
    assert gone["purged_at"] >= gone["deleted_at"]
    witness = servers.pg if kind == "postgres" else servers.redis
    assert not witness.bears(resource["manifest"])
    assert acme.get(f"/v1/resources/{resource['id']}/credentials").json()["code"] == "not_active"
    later = acme.delete(f"/v1/resources/{resource['id']}")
    assert (later.status_code, later.json()["already_deleted"]) == (200, True)
    assert later.json()["job"]["id"] == answer.json()["job"]["id"]
    story = acme.get(answer.json()["job"]["url"]).json()
    assert [e["event"] for e in story["events"]] == ["enqueued", "claimed", "started", "completed"]
    assert [a["outcome"] for a in story["attempt_history"]] == ["completed"]
    started, completed = story["events"][2:]
    assert started["detail"]["seen"], "what was seen before"
    assert completed["detail"]["seen"].keys() == started["detail"]["seen"].keys(), "what was seen after"
    assert completed["detail"]["did"], "what was done between"


@pytest.mark.parametrize("n", [16, pytest.param(64, marks=pytest.mark.proof)])
def test_of_n_concurrent_deletes_on_two_api_processes_one_wins_and_one_drop_happens(
    acme: httpx.Client, system: System, servers: Servers, tenant: str, n: int
) -> None:
    system.worker()
    system.worker()
    resource = until(acme, create(acme), "active")
    urls = [str(acme.base_url), system.api()]
    with ExitStack() as stack:
        callers = [stack.enter_context(client(urls[i % 2], tenant)) for i in range(n)]
        for caller in callers:
            caller.get("/healthz")  # connected before the barrier
        answers = at_once(n, lambda i: callers[i].delete(f"/v1/resources/{resource['id']}"))
        told = Counter((a.status_code, a.json()["already_deleted"]) for a in answers)
        assert told == {(202, False): 1, (200, True): n - 1}
        (job,) = {a.json()["job"]["id"] for a in answers}
        until(acme, resource, "deleted")
        again = callers[0].delete(f"/v1/resources/{resource['id']}").json()
    assert (again["already_deleted"], again["job"]["id"]) == (True, job)
    assert [j["id"] for j in acme.get("/v1/jobs?kind=deprovision").json()["items"]] == [job]
    assert servers.pg.drops_of(resource["manifest"]) == 1
    assert not servers.pg.bears(resource["manifest"])


@pytest.mark.parametrize("n", [25, pytest.param(200, marks=pytest.mark.proof)])
def test_n_resources_with_eight_deletes_each_are_n_drops(
    acme: httpx.Client, system: System, servers: Servers, tenant: str, n: int
) -> None:
    for _ in range(2):
        system.worker(DEPROVISIONER_WORKER_SLOTS="4")
    made = [create(acme) for _ in range(n)]
    alive = [until(acme, resource, "active") for resource in made]
    urls = [str(acme.base_url), system.api()]
    with ExitStack() as stack:
        callers = [stack.enter_context(client(urls[i % 2], tenant)) for i in range(8)]

        def everything(number: int) -> Any:
            return [callers[number].delete(f"/v1/resources/{resource['id']}") for resource in made]

        answers = [answer for caller in at_once(8, everything) for answer in caller]  # type: ignore[union-attr]
    assert Counter(a.status_code for a in answers) == {202: n, 200: 7 * n}
    jobs = {a.json()["resource"]["id"]: set() for a in answers}
    for a in answers:
        jobs[a.json()["resource"]["id"]].add(a.json()["job"]["id"])
    assert all(len(ids) == 1 for ids in jobs.values())
    for resource in made:
        until(acme, resource, "deleted")
    assert [servers.pg.drops_of(resource["manifest"]) for resource in alive] == [1] * n
    assert not any(servers.pg.bears(resource["manifest"]) for resource in alive[:20])
    remaining = servers.pg.databases() | servers.pg.roles()
    assert not any({r["manifest"]["database"], r["manifest"]["role"]} & remaining for r in alive)
