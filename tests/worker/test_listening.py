"""Listening: which workers a wake-up reaches, and who passes it on."""

import threading
from typing import Any

import pytest
import redis
import sqlalchemy as sa
from sqlalchemy import Connection
from structlog.testing import capture_logs

from outbox import doorbell, jobs
from tests.support.factories import a_job, job
from tests.support.pools import failures, pool
from tests.support.witness import eventually
from worker.pool import Pool


@pytest.fixture
def broker(settled: dict[str, str]) -> "redis.Redis":
    client = redis.Redis.from_url(settled["DEPROVISIONER_BROKER_URL"])
    for key in client.keys(f"{doorbell.BELL}*"):
        client.delete(key)
    return client


def listeners(broker: "redis.Redis") -> int:
    ours = str(broker.get_connection_kwargs()["db"])
    return sum(
        client["cmd"] == "bzpopmin" and "b" in client["flags"] and client["db"] == ours
        for client in broker.client_list()
    )


def listen(broker: "redis.Redis", *those: Pool) -> None:
    """Start them one after the other: each has swept once, and waits at the doorbell."""
    for number, each in enumerate(those, 1):
        each.start()
        eventually(lambda wanted=number: listeners(broker) == wanted, what="it waits at the doorbell")


def test_one_wake_up_reaches_as_many_workers_as_there_is_work_for(db: Connection, broker: "redis.Redis") -> None:
    with pool({"pg-main": 8}, slots=1) as one, pool({"pg-main": 8}, slots=1, worker="w2") as two:
        listen(broker, one, two)
        ids = [a_job(db) for _ in range(3)]
        assert doorbell.ring_now()
        eventually(
            lambda: {job(db, id).claimed_by for id in ids} == {"w1", "w2", None}, what="each worker claims one job"
        )
        eventually(lambda: broker.zcard(doorbell.BELL) == 1, what="the wake-up waits for a third worker")
        eventually(lambda: listeners(broker) == 0, what="the two full workers no longer wait for it")


def test_a_worker_passes_the_wake_up_on_for_a_backend_without_capacity(db: Connection, broker: "redis.Redis") -> None:
    concurrency = {"pg-main": 1, "other": 1}
    with pool(concurrency, slots=2) as one, pool(concurrency, slots=2, worker="w2") as two:
        listen(broker, one, two)
        ids = [a_job(db) for _ in range(3)]
        assert doorbell.ring_now()
        eventually(
            lambda: {job(db, id).claimed_by for id in ids} == {"w1", "w2", None}, what="each worker claims one job"
        )
        eventually(
            lambda: broker.exists(f"{doorbell.BELL}:pg-main") and listeners(broker) == 2,
            what="the wake-up waits for a third worker, and these two wait for the other backend only",
        )
        other = a_job(db, backend="other")
        assert doorbell.ring_now()
        eventually(lambda: job(db, other).claimed_by, what="a worker hears of the backend that it has capacity for")


def test_a_wake_up_during_a_claim_that_fills_the_worker_is_passed_on(
    db: Connection, broker: "redis.Redis", monkeypatch: pytest.MonkeyPatch
) -> None:
    released, asked, honest = threading.Event(), threading.Event(), jobs.claim

    def slow(*words: Any, **more: Any) -> Any:
        asked.set()
        assert released.wait(20)
        return honest(*words, **more)

    with pool({"pg-main": 8}, slots=1) as made:
        listen(broker, made)
        monkeypatch.setattr(jobs, "claim", slow)
        claiming = threading.Thread(target=made.drain)
        claiming.start()
        assert asked.wait(20)
        ids = [a_job(db) for _ in range(2)]
        assert doorbell.ring_now()
        eventually(lambda: not broker.exists(doorbell.BELL), what="the worker has heard it")
        released.set()
        claiming.join()
        eventually(lambda: broker.exists(doorbell.BELL), what="the worker has passed it on")
        assert sorted(job(db, id).state for id in ids) == ["pending", "running"]


def test_a_worker_that_cannot_reach_the_database_passes_the_wake_up_on(
    db: Connection, broker: "redis.Redis", monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = jobs.claim

    def blind(*words: Any, worker: str, **more: Any) -> Any:
        if worker == "w1":
            raise sa.exc.OperationalError("unreachable", {}, Exception())
        return honest(*words, worker=worker, **more)

    with (
        capture_logs() as logged,
        pool({"pg-main": 8}, slots=8) as one,
        pool({"pg-main": 8}, slots=8, worker="w2") as two,
    ):
        listen(broker, one, two)
        monkeypatch.setattr(jobs, "claim", blind)
        id = a_job(db)
        assert doorbell.ring_now()
        eventually(lambda: job(db, id).claimed_by == "w2", 4, what="the second worker hears it")
    assert failures(logged) <= {"claim_failed"}


def test_a_stopped_worker_passes_the_wake_up_on(db: Connection, broker: "redis.Redis") -> None:
    with pool({"pg-main": 8}, slots=1) as made:
        listen(broker, made)
        made.stop()
        id = a_job(db)
        assert doorbell.ring_now()
        eventually(
            lambda: listeners(broker) == 0 and broker.zcard(doorbell.BELL) == 1, what="the worker has passed it on"
        )
        assert job(db, id).state == "pending"
