"""Claiming: how many jobs of which backend a pool takes, in which order, and when it takes none."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Connection, text
from structlog.testing import capture_logs

from outbox import jobs, observations
from tests.support.factories import a_job, job
from tests.support.pools import fails, failures, pool, running, wait_for, wanted
from tests.support.shelf import Shelf
from tests.support.witness import eventually
from worker import claiming
from worker.backends import Absent, Same
from worker.pool import Pool, ServedBackend


def test_a_backend_gets_no_more_slots_than_its_concurrency(db: Connection) -> None:
    for _ in range(5):
        a_job(db)
    with pool({"pg-main": 2, "other": 8}, slots=8) as made:
        made.drain()
        assert running(db) == {"pg-main": 2}


def test_a_backend_that_hangs_leaves_a_slot_for_the_others(db: Connection) -> None:
    for _ in range(5):
        a_job(db)
    with pool({"pg-main": 8, "other": 8}, slots=3) as made:
        made.drain()
        assert running(db) == {"pg-main": 2}
        a_job(db, backend="other")
        made.drain()
        assert running(db) == {"pg-main": 2, "other": 1}


def test_a_pool_claims_no_more_jobs_than_slots_are_free(db: Connection) -> None:
    for _ in range(5):
        a_job(db, backend="a")
        a_job(db, backend="b")
    with pool({"a": 8, "b": 8}, slots=3) as made:
        for _ in range(3):
            made.drain()
            assert sum(running(db).values()) == 3


def test_a_stopped_pool_claims_nothing(db: Connection) -> None:
    id = a_job(db)
    with pool({"pg-main": 8}, slots=3) as made:
        made.stop()
        made.drain()
        assert job(db, id).state == "pending"


def test_a_claim_whose_answer_was_lost_is_read_back_by_the_next_claim(
    db: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    id = a_job(db)
    honest = jobs.claim

    def lost(*words: Any, **more: Any) -> None:
        honest(*words, **more)
        monkeypatch.setattr(jobs, "claim", honest)
        raise sa.exc.OperationalError("the answer was lost", {}, Exception())

    monkeypatch.setattr(jobs, "claim", lost)
    with pool({"pg-main": 8}, slots=3) as made:
        with pytest.raises(sa.exc.OperationalError):
            made.drain()
        made.drain()
    assert (job(db, id).state, job(db, id).fence) == ("succeeded", 1)


@pytest.mark.parametrize("lane", [0, 3], ids=["a lane that was left behind", "a lane that was found empty"])
def test_a_sweep_resets_the_claim_cursor(db: Connection, lane: int) -> None:
    one_more = threading.Semaphore(0)
    shelf = Shelf(does=lambda: _acquire(one_more), sees=[Same({}), Absent({})] * 4)
    served = {"pg-main": ServedBackend(shelf, 1)}
    made = Pool(served, worker="w1", slots=1, lease_seconds=30, sweep_seconds=60)
    _, second, third = (a_job(db, lane=lane) for _ in range(3))
    made.drain()
    front = a_job(db, lane=0)
    db.execute(text("UPDATE outbox SET available_at = '2020-01-01' WHERE id = :id"), {"id": front})
    one_more.release()
    eventually(lambda: job(db, second).state == "running", what="the next claim begins behind the first")
    made.sweep()
    one_more.release()
    eventually(lambda: job(db, front).state == "running", what="the first claim after the sweep begins at the front")
    assert job(db, third).state == "pending"
    one_more.release(2)
    eventually(lambda: job(db, third).state == "succeeded", what="all are done")
    made.stop()
    assert made.join(20)


@pytest.mark.parametrize(
    ("found", "first", "crowd", "empty"),
    [
        ({}, 0, 4, set()),
        ({0: 2}, 0, 4, {-1}),
        ({1: 2}, 0, 4, {-1, 0}),
        ({3: 2}, 0, 4, {-1, 0, 1, 2}),
        ({0: 1, 2: 1}, 0, 4, {-1, 1}),
        ({3: 2, 0: 1}, 3, 4, {-1, 1, 2, 4}),
        ({3: 2, 0: 1}, 3, 2, {-1, 1}),  # what stands behind lane 3 was not looked at
    ],
)
def test_a_claim_tells_which_lanes_it_found_empty(
    found: dict[int, int], first: int, crowd: int, empty: set[int]
) -> None:
    assert claiming.passed_by(found, first, crowd) == empty


def test_a_claim_that_runs_out_resets_the_claim_cursor(db: Connection) -> None:
    a_job(db)
    with pool({"pg-main": 2}, slots=3) as made:
        made.drain()
        front = a_job(db)
        db.execute(text("UPDATE outbox SET available_at = '2020-01-01' WHERE id = :id"), {"id": front})
        made.drain()
        assert running(db) == {"pg-main": 2}


def test_a_wake_up_for_a_job_before_the_cursor_waits_for_no_sweep(db: Connection) -> None:
    one_more = threading.Semaphore(0)
    shelf = Shelf(does=lambda: _acquire(one_more), sees=[Same({}), Absent({})] * 2)
    made = Pool({"pg-main": ServedBackend(shelf, 1)}, worker="w1", slots=1, lease_seconds=30, sweep_seconds=60)
    a_job(db)
    made.drain()
    front = a_job(db)
    db.execute(text("UPDATE outbox SET available_at = '2020-01-01' WHERE id = :id"), {"id": front})
    made.drain()
    one_more.release(2)
    eventually(lambda: job(db, front).state == "succeeded", what="the slot that is free takes it")
    made.stop()
    assert made.join(20)


def test_a_sweep_during_a_claim_resets_the_cursor_of_the_next_claim(
    db: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    def swept(*words: Any, honest: Callable[..., Any] = jobs.claim, **more: Any) -> Any:
        claims = honest(*words, **more)
        monkeypatch.setattr(jobs, "claim", honest)
        made.sweep()
        return claims

    first, front, last = (a_job(db) for _ in range(3))
    db.execute(text("UPDATE outbox SET available_at = 'infinity' WHERE id = :id"), {"id": front})
    one_more = threading.Semaphore(0)
    shelf = Shelf(does=lambda: _acquire(one_more), sees=[Same({}), Absent({})] * 3)
    made = Pool({"pg-main": ServedBackend(shelf, 1)}, worker="w1", slots=1, lease_seconds=30, sweep_seconds=60)
    monkeypatch.setattr(jobs, "claim", swept)
    made.drain()
    assert job(db, first).state == "running"
    db.execute(text("UPDATE outbox SET available_at = '2020-01-01' WHERE id = :id"), {"id": front})
    one_more.release()
    eventually(lambda: "running" in (job(db, front).state, job(db, last).state), what="the next is claimed")
    assert (job(db, front).state, job(db, last).state) == ("running", "pending")
    one_more.release(2)
    made.stop()
    assert made.join(20)


def test_a_claim_that_fails_after_a_job_is_logged(db: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    one_more = threading.Semaphore(0)
    served = {"pg-main": ServedBackend(Shelf(does=lambda: _acquire(one_more)), 1)}
    made = Pool(served, worker="w1", slots=1, lease_seconds=30, sweep_seconds=60)
    for _ in range(2):
        a_job(db)
    made.drain()
    monkeypatch.setattr(jobs, "claim", fails)
    with capture_logs() as logged:
        one_more.release()
        eventually(lambda: failures(logged), what="the slot that is free claims")
    assert failures(logged) == {"claim_failed"}
    made.stop()
    assert made.join(20)


def _acquire(one_more: threading.Semaphore) -> None:
    assert one_more.acquire(timeout=30)


def found(db: Connection, look: int) -> str | None:
    seen = observations.find(db, look)
    assert seen is not None
    return seen.found


def test_an_inspection_is_taken_at_a_message_and_at_a_sweep(db: Connection) -> None:
    with pool({"pg-main": 2}, slots=2) as made:
        for come in (made.observe, made.sweep):
            look = wanted(db)
            come()
            assert eventually(lambda look=look: found(db, look)) == "same"  # type: ignore[misc]
    assert db.execute(text("SELECT count(*) FROM outbox WHERE state <> 'stuck'")).scalar_one() == 0


def test_inspections_take_only_free_slots_and_come_before_the_next_claim(db: Connection) -> None:
    for _ in range(4):
        a_job(db)
    gate, inspecting = threading.Event(), threading.Semaphore(0)

    class Slow(Shelf):
        def inspect(self, manifest: Any) -> Any:
            inspecting.release()
            wait_for(gate)
            return super().inspect(manifest)

    work = threading.Event()
    served = {"pg-main": ServedBackend(Shelf(does=lambda: wait_for(work)), 8), "other": ServedBackend(Slow(), 8)}
    made = Pool(served, worker="w1", slots=3, lease_seconds=30, sweep_seconds=60)
    try:
        looks = [wanted(db, backend="other") for _ in range(3)]
        made.drain()
        assert running(db) == {"pg-main": 2}
        made.observe()
        assert inspecting.acquire(timeout=20), "the free slot inspects"
        a_job(db, backend="other")
        made.drain()
        taken = db.execute(text("SELECT count(*) FROM observations WHERE taken_until IS NOT NULL")).scalar_one()
        assert (taken, running(db)) == (1, {"pg-main": 2}), "there is no slot for another inspection or job"
        work.set()
        for _ in looks[1:]:
            gate.set()
            assert inspecting.acquire(timeout=20), "a slot that is free takes an inspection before a job"
        assert all(eventually(lambda look=look: found(db, look)) for look in looks)  # type: ignore[misc]
    finally:
        made.stop()
        work.set()
        gate.set()
        assert made.join(20)


def test_a_stopped_pool_takes_no_inspection(db: Connection) -> None:
    look = wanted(db)
    with pool({"pg-main": 2}, slots=2) as made:
        made.stop()
        made.observe()
    assert found(db, look) is None


def test_a_request_during_a_claim_makes_the_claiming_thread_do_one_more_round(
    db: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    claiming, released, honest = threading.Event(), threading.Event(), jobs.claim

    def slow(*words: Any, **more: Any) -> Any:
        claiming.set()
        wait_for(released)
        return honest(*words, **more)

    monkeypatch.setattr(jobs, "claim", slow)
    with pool({"pg-main": 2}, slots=2) as made:
        first = threading.Thread(target=made.drain)
        first.start()
        wait_for(claiming)
        inspection = wanted(db)
        observing = threading.Thread(target=made.observe)
        observing.start()
        observing.join(10)
        waits = observing.is_alive()
        released.set()
        first.join(20)
        assert not waits, "a request does not wait for the claim"
        assert eventually(lambda: found(db, inspection)) == "same"


def test_stopping_a_pool_takes_no_lock() -> None:
    """A signal handler stops it, in a thread that may hold the lock."""
    made = Pool({}, worker="w1", slots=1, lease_seconds=30, sweep_seconds=60)
    with made._state._round_ended:
        stopping = threading.Thread(target=made.stop, daemon=True)
        stopping.start()
        stopping.join(5)
        assert not stopping.is_alive()
