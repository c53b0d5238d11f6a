"""Hosts whose clocks are a day wrong, in both directions: only the control database's clock matters."""

import datetime as dt
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from pytest_celery import CeleryTestWorker
from sqlalchemy import Connection, text

from tests.support.api import create, until
from tests.support.processes import START_SECONDS, System, client
from tests.support.servers import Servers
from tests.support.witness import eventually, slowness
from worker.backends.postgres.session import Server

LEASE, SWEEP = 3.0, 0.5
DAY = 86_400
AHEAD, BEHIND = {"SKEW_SECONDS": str(DAY)}, {"SKEW_SECONDS": str(-DAY)}


LEASE_ENDS = text("SELECT lease_expires_at FROM outbox WHERE state = 'running'")


@pytest.fixture
def workers(system: System) -> tuple[CeleryTestWorker, CeleryTestWorker]:
    """One a day ahead, one a day behind."""
    system.env["DEPROVISIONER_LEASE_SECONDS"] = str(LEASE)
    both = [system.worker("-m", "tests.support.clock_skew", "worker", ready=False, **skew) for skew in (AHEAD, BEHIND)]
    for worker in both:
        worker.wait_for_log('"worker_ready"', timeout=START_SECONDS)
    return both[0], both[1]


@pytest.mark.parametrize(
    "skew", [pytest.param(AHEAD, id="ahead"), pytest.param(BEHIND, id="behind", marks=pytest.mark.proof)]
)
def test_an_api_with_a_wrong_clock_stamps_and_judges_by_the_databases(
    system: System, db: Connection, tenant: str, skew: dict[str, str]
) -> None:
    now = db.execute(text("SELECT now()")).scalar_one()
    with client(system.api("-m", "tests.support.clock_skew", "api", **skew), tenant) as acme:
        made = create(acme, expires_at=(now + dt.timedelta(hours=1)).isoformat())
        assert abs(dt.datetime.fromisoformat(made["created_at"]) - now) < dt.timedelta(minutes=5)
        body = {
            "kind": "redis",
            "backend": "redis-main",
            "name": "late",
            "expires_at": str(now - dt.timedelta(hours=1)),
        }
        refused = acme.post("/v1/resources", json=body)
        assert (refused.status_code, refused.json()["code"]) == (422, "invalid_request")
        path = f"/v1/resources/{made['id']}"
        assert acme.patch(path, json={"expires_at": body["expires_at"]}).status_code == 422
        assert acme.patch(path, json={"expires_at": str(now + dt.timedelta(hours=2))}).status_code == 200
        deleted = acme.delete(path).json()["resource"]["deleted_at"]
        assert abs(dt.datetime.fromisoformat(deleted) - now) < dt.timedelta(minutes=5)


@pytest.mark.proof
def test_workers_with_wrong_clocks_expire_what_is_due_and_nothing_else(
    system: System, workers: Any, db: Connection, tenant: str, servers: Servers
) -> None:
    with client(system.api(), tenant) as acme:
        now = db.execute(text("SELECT now()")).scalar_one()
        soon, later = now + dt.timedelta(seconds=4), now + dt.timedelta(hours=1)
        made = {expiry: create(acme, "redis", expires_at=expiry.isoformat()) for expiry in (soon, later)}
        resources = {expiry: until(acme, resource, "active") for expiry, resource in made.items()}
        gone = until(acme, resources[soon], "deleted")
        deleted = dt.datetime.fromisoformat(gone["deleted_at"])
        assert soon <= deleted < soon + dt.timedelta(seconds=2 * SWEEP + 2 * slowness())
        assert acme.get(f"/v1/resources/{resources[later]['id']}").json()["status"] == "active"
        assert not servers.redis.bears(gone["manifest"])


@pytest.mark.proof
def test_leases_of_workers_with_wrong_clocks_live_and_pass_by_the_databases(
    system: System, workers: Any, db: Connection, tenant: str, servers: Servers
) -> None:
    ahead, behind = workers

    def claims() -> list[str]:
        asked = "SELECT event FROM events JOIN outbox ON outbox.id = job_id WHERE resource_id = :id AND kind = :kind"
        asked = asked.replace("resource_id =", "outbox.resource_id =") + " ORDER BY events.id"
        return list(db.execute(text(asked), {"id": resource["id"], "kind": "deprovision"}).scalars())

    @contextmanager
    def at_work(one: CeleryTestWorker, other: CeleryTestWorker) -> Iterator[None]:
        """`one` is inside the teardown, and cannot go on while this lasts; `other` looks on."""
        with Server(servers.pg.service_dsn, frozenset()).connect() as session:
            session.lock(resource["manifest"]["database"])
            other.container.kill("SIGSTOP")
            assert acme.delete(f"/v1/resources/{resource['id']}").status_code == 202
            eventually(lambda: claims()[-1:] == ["started"], what="it has started")
            other.container.kill("SIGCONT")
            yield

    with client(system.api(), tenant) as acme:
        for one, other in ((ahead, behind), (behind, ahead)):
            resource = until(acme, create(acme), "active")
            with at_work(one, other):
                first = db.execute(LEASE_ENDS).scalar_one()
                past = text("SELECT now() > CAST(:first AS timestamptz) + :half * interval '1 s'")
                eventually(lambda: db.execute(past, {"first": first, "half": LEASE / 2}).scalar_one(), every=0.1)  # noqa: B023
                assert claims() == ["enqueued", "claimed", "started"], (
                    "the heartbeat keeps it; no other worker claims it"
                )
            until(acme, resource, "deleted")
            assert servers.pg.drops_of(resource["manifest"]) == 1
            assert claims().count("claimed") == 1
        resource = until(acme, create(acme), "active")
        with at_work(ahead, behind):
            ahead.container.kill("SIGKILL")
            killed = time.monotonic()
            eventually(
                lambda: claims().count("claimed") == 2, LEASE + 2 * SWEEP + 3 * slowness(), "the one behind takes over"
            )
            assert time.monotonic() - killed > LEASE / 3, "not before the lease had passed"
        until(acme, resource, "deleted")
        assert servers.pg.drops_of(resource["manifest"]) == 1
