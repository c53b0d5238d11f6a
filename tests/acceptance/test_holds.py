"""The operator's stop, through the real command line and HTTP, on real servers."""

import json
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import Connection, text

from deprovisioner.up import servers as embedded
from tests.support.api import create, until
from tests.support.processes import System, client
from tests.support.servers import Servers
from tests.support.witness import eventually


def test_the_kill_switch_stops_new_starts_within_a_second_with_broker_and_api_dead(
    env: dict[str, str], system: System, servers: Servers, tenant: str, db: Connection, folder: Path
) -> None:
    port = embedded.free_port()
    broker = embedded.valkey(folder, "broker", port, durable=False)
    env["DEPROVISIONER_BROKER_URL"] = system.env["DEPROVISIONER_BROKER_URL"] = url = embedded.valkey_url(port)
    broker.spawn()
    broker.wait_until(lambda: embedded.valkey_ready(url))
    try:
        with client(system.api(), tenant) as acme:
            worker = system.worker(DEPROVISIONER_WORKER_SLOTS="2")
            made = [until(acme, r, "active") for r in [create(acme) for _ in range(40)]]
            system.cli("hold", "set", "--backend", "redis-main", "--reason", "bystander")
            for resource in made:
                acme.delete(f"/v1/resources/{resource['id']}")
            eventually(lambda: _started(db), what="the drain is under way")
        broker.process.kill()
        broker.process.wait()
        system.apis[0].stop()
        told = system.cli("hold", "set", "--global")
        assert told.returncode == 0, told.stderr
        assert "hold 2 on everything: kill switch" in told.stdout
        late = """SELECT count(*) FROM events JOIN holds ON holds.id = 2
                   WHERE event = 'started' AND events.at > holds.created_at + interval '1 s'"""
        eventually(lambda: not _running(db), what="what had started has ended")
        dropped = servers.pg.drops()
        assert worker.container.status == "running"
        before = _sweeps(db)
        eventually(lambda: _sweeps(db) > before + 3, what="the worker looked again, more than once")
        assert db.execute(text(late)).scalar_one() == 0
        assert servers.pg.drops() == dropped
        waiting = db.execute(text("SELECT attempts, count(*) FROM outbox WHERE state = 'pending' GROUP BY 1")).all()
        assert [attempts for attempts, _ in waiting] == [0], "nothing burnt an attempt"
        assert waiting[0][1] > 0, "it was stopped in the middle"
        assert system.cli("hold", "release", "2", "--reason", "all clear").returncode == 0
        drained = "SELECT count(*) FROM outbox WHERE state IN ('pending', 'running')"
        eventually(lambda: not db.execute(text(drained)).scalar_one(), what="the rest goes on by itself")
        assert [servers.pg.drops_of(resource["manifest"]) for resource in made] == [1] * 40
    finally:
        broker.stop()


def _started(db: Connection) -> int:
    return db.execute(text("SELECT count(*) FROM events WHERE event = 'started' AND detail ? 'seen'")).scalar_one()


def _running(db: Connection) -> int:
    return db.execute(text("SELECT count(*) FROM outbox WHERE state = 'running'")).scalar_one()


def _sweeps(db: Connection) -> int:
    """Statements of others since: a worker that looks makes them, and no counter of ours tells."""
    mine = "SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()"
    db.execute(text("SELECT pg_stat_clear_snapshot()"))
    return db.execute(text(mine)).scalar_one()


def test_holds_are_set_listed_and_released_over_http_by_operators(
    system: System, acme: httpx.Client, operator: str
) -> None:
    assert acme.get("/v1/holds").json()["code"] == "forbidden"
    with client(str(acme.base_url), operator) as ops:
        made = ops.post("/v1/holds", json={"scope": "tenant", "subject": "acme", "reason": "fraud case 8"})
        assert made.status_code == 201
        assert made.json()["actor"].startswith("token:")
        hold = made.json()["id"]
        assert [h["id"] for h in ops.get("/v1/holds").json()["items"]] == [hold]
        for body, code in (
            ({"scope": "tenant", "subject": "acne", "reason": "x"}, "invalid_request"),
            ({"scope": "global", "subject": "acme", "reason": "x"}, "invalid_request"),
            ({"scope": "planet", "reason": "x"}, "invalid_request"),
            ({"scope": "global"}, "invalid_request"),
        ):
            refused = ops.post("/v1/holds", json=body)
            assert (refused.status_code, refused.json()["code"]) == (422, code)
        assert acme.delete("/v1/holds").status_code == 405
        system.worker()
        resource = create(acme)
        waiting = acme.get("/v1/jobs?kind=provision").json()["items"][0]
        eventually(lambda: acme.get(waiting["url"]).json()["fence"] == 1, what="it was claimed, and parked")
        eventually(lambda: acme.get(waiting["url"]).json()["state"] == "pending", what="it waits")
        told = acme.get(waiting["url"])
        assert told.json()["last_error"] == f"hold {hold} on tenant acme is in force"
        assert "fraud" not in told.text, "the reason is the operators'"
        assert [h["reason"] for h in ops.get(waiting["url"]).json()["holds"]] == ["fraud case 8"]
        assert "hold 1 on tenant acme: fraud case 8 (by token:" in system.cli("jobs", "show", str(waiting["id"])).stdout
        released = ops.post(f"/v1/holds/{hold}/release", json={"reason": "closed"})
        assert (released.status_code, released.json()["release_reason"]) == (200, "closed")
        until(acme, resource, "active")
        again = ops.post(f"/v1/holds/{hold}/release", json={"reason": "twice"})
        assert (again.status_code, again.json()["code"]) == (409, "already_released")
        assert ops.post("/v1/holds/99/release", json={"reason": "x"}).status_code == 404
        assert ops.get("/v1/holds").json()["items"] == []
        assert [h["id"] for h in ops.get("/v1/holds?released=true").json()["items"]] == [hold]


def test_the_hold_command_says_what_is_wrong_and_what_to_do(system: System, acme: httpx.Client) -> None:
    for words, code, told in (
        (("set",), 2, "say one of --global"),
        (("set", "--global", "--tenant", "acme"), 2, "say one of --global"),
        (("set", "--tenant", "acme"), 2, "--reason"),
        (("set", "--tenant", "acne", "--reason", "x"), 1, "would stop nothing"),
        (("release", "1", "--reason", "x"), 1, "there is no hold 1"),
    ):
        done = system.cli("hold", *words)
        assert (done.returncode, told in done.stderr) == (code, True), done.stderr
    made = json.loads(system.cli("hold", "set", "--kind", "redis", "--reason", "CVE", "--json").stdout)
    assert (made["scope"], made["subject"], made["cause"]) == ("kind", "redis", "operator")
    (listed,) = json.loads(system.cli("hold", "list", "--json").stdout)["items"]
    assert listed == made
    system.cli("hold", "set", "--global")
    done = system.cli("hold", "release", str(made["id"]), "--reason", "patched")
    assert "still in force: hold 2 on everything: kill switch" in done.stdout


def test_four_worker_processes_and_a_brake_of_ten_drop_exactly_ten_databases(
    env: dict[str, str], system: System, servers: Servers, acme: httpx.Client, db: Connection
) -> None:
    path = Path(env["DEPROVISIONER_BACKENDS"])
    births = system.worker()
    made = [until(acme, r, "active") for r in [create(acme) for _ in range(30)]]
    births.teardown()
    path.write_text(path.read_text().replace('kind = "postgres"', 'kind = "postgres"\nbrake = "10/1h"'))
    for resource in made:
        acme.delete(f"/v1/resources/{resource['id']}")
    for _ in range(4):
        system.worker()
    settled = "SELECT count(*) FROM outbox WHERE kind = 'deprovision' AND (state = 'succeeded' OR held_by IS NOT NULL)"
    eventually(lambda: db.execute(text(settled)).scalar_one() == 30, what="ten are done and twenty wait")
    drops: Any = [servers.pg.drops_of(resource["manifest"]) for resource in made]
    assert sum(drops) == 10
    (hold,) = json.loads(system.cli("hold", "list", "--json").stdout)["items"]
    assert (hold["scope"], hold["subject"], hold["cause"]) == ("backend", "pg-main", "brake")
    assert "brake 10/1h of backend pg-main: 10 teardowns have started" in hold["reason"]
    assert system.cli("hold", "release", str(hold["id"]), "--reason", "it was an offboarding").returncode == 0
    eventually(
        lambda: sum(servers.pg.drops_of(resource["manifest"]) for resource in made) == 20, 60, "ten more, and no more"
    )
    eventually(lambda: db.execute(text(settled)).scalar_one() == 30, what="the brake has caught the rest again")
    assert sum(servers.pg.drops_of(resource["manifest"]) for resource in made) == 20
