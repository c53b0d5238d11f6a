"""The hands of one worker: how many jobs they take, how they keep them, and when they take none."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
import redis
import sqlalchemy as sa
from sqlalchemy import Connection, text

from outbox import doorbell, jobs, observations, operations
from tests.support.factories import a_job, a_resource, job, status_of
from tests.support.factories import begun_redrive as redrive
from tests.support.factories import stuck_jobs as stuck
from tests.support.shelf import Shelf
from tests.support.witness import eventually
from worker.backends import Absent, Same
from worker.hands import Hands, Served


@contextmanager
def hands(concurrency: dict[str, int], *, slots: int, sweep_seconds: float = 60, worker: str = "w1") -> Iterator[Hands]:
    """Hands whose teardowns all wait until the block ends."""
    gate = threading.Event()
    served = {name: Served(Shelf(does=lambda: _pass(gate)), most) for name, most in concurrency.items()}
    made = Hands(served, worker=worker, slots=slots, lease_seconds=0.3, sweep_seconds=sweep_seconds)
    try:
        yield made
    finally:
        made.stop()
        gate.set()
        assert made.join(20)


def _pass(gate: threading.Event) -> None:
    assert gate.wait(30)


def running(db: Connection) -> dict[str, int]:
    counted = db.execute(text("SELECT backend, count(*) FROM outbox WHERE state = 'running' GROUP BY 1"))
    return dict(counted.all())


def test_no_backend_gets_more_hands_than_its_concurrency(db: Connection) -> None:
    for _ in range(5):
        a_job(db)
    with hands({"pg-main": 2, "other": 8}, slots=8) as made:
        made.drain()
        assert running(db) == {"pg-main": 2}


def test_a_backend_that_does_not_answer_leaves_a_hand_for_the_others(db: Connection) -> None:
    for _ in range(5):
        a_job(db)
    with hands({"pg-main": 8, "other": 8}, slots=3) as made:
        made.drain()
        assert running(db) == {"pg-main": 2}
        a_job(db, backend="other")
        made.drain()
        assert running(db) == {"pg-main": 2, "other": 1}


def test_no_more_is_claimed_than_hands_are_free(db: Connection) -> None:
    for _ in range(5):
        a_job(db, backend="a")
        a_job(db, backend="b")
    with hands({"a": 8, "b": 8}, slots=3) as made:
        for _ in range(3):
            made.drain()
            assert sum(running(db).values()) == 3


def test_hands_that_were_stopped_claim_nothing(db: Connection) -> None:
    id = a_job(db)
    with hands({"pg-main": 8}, slots=3) as made:
        made.stop()
        made.drain()
        assert job(db, id).state == "pending"


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


def listen(broker: "redis.Redis", *those: Hands) -> None:
    """Start them, one after the other: each has looked once, and waits at the bell."""
    for number, each in enumerate(those, 1):
        each.start()
        eventually(lambda wanted=number: listeners(broker) == wanted, what="it waits at the bell")


def test_one_bell_brings_as_many_workers_as_there_is_work_for_and_none_that_is_full(
    db: Connection, broker: "redis.Redis"
) -> None:
    with hands({"pg-main": 8}, slots=1) as one, hands({"pg-main": 8}, slots=1, worker="w2") as two:
        listen(broker, one, two)
        ids = [a_job(db) for _ in range(3)]
        assert doorbell.ring_now()
        eventually(lambda: {job(db, id).claimed_by for id in ids} == {"w1", "w2", None}, what="each takes one")
        eventually(lambda: broker.zcard(doorbell.BELL) == 1, what="it waits for a third")
        eventually(lambda: listeners(broker) == 0, what="and those two no longer wait for it")


def test_what_a_worker_has_no_room_for_it_leaves_to_others(db: Connection, broker: "redis.Redis") -> None:
    rooms = {"pg-main": 1, "other": 1}
    with hands(rooms, slots=2) as one, hands(rooms, slots=2, worker="w2") as two:
        listen(broker, one, two)
        ids = [a_job(db) for _ in range(3)]
        assert doorbell.ring_now()
        eventually(lambda: {job(db, id).claimed_by for id in ids} == {"w1", "w2", None}, what="each takes one")
        eventually(
            lambda: broker.exists(f"{doorbell.BELL}:pg-main") and listeners(broker) == 2,
            what="a third may have the last: they wait for what they have room for, and not for that",
        )
        other = a_job(db, backend="other")
        assert doorbell.ring_now()
        eventually(lambda: job(db, other).claimed_by, what="and they hear what they have room for")


def test_a_bell_that_comes_while_the_worker_claims_is_passed_on_when_that_has_filled_it(
    db: Connection, broker: "redis.Redis", monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, asked, honest = threading.Event(), threading.Event(), jobs.claim

    def slow(*words: Any, **more: Any) -> Any:
        asked.set()
        assert gate.wait(20)
        return honest(*words, **more)

    with hands({"pg-main": 8}, slots=1) as made:
        listen(broker, made)
        monkeypatch.setattr(jobs, "claim", slow)
        claiming = threading.Thread(target=made.drain)
        claiming.start()
        assert asked.wait(20)
        ids = [a_job(db) for _ in range(2)]
        assert doorbell.ring_now()
        eventually(lambda: not broker.exists(doorbell.BELL), what="it has heard")
        gate.set()
        claiming.join()
        eventually(lambda: broker.exists(doorbell.BELL), what="it has rung for others")
        assert sorted(job(db, id).state for id in ids) == ["pending", "running"]


def test_a_worker_that_cannot_reach_the_database_leaves_the_bell_to_others(
    db: Connection, broker: "redis.Redis", monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = jobs.claim

    def blind(*words: Any, worker: str, **more: Any) -> Any:
        if worker == "w1":
            raise sa.exc.OperationalError("unreachable", {}, Exception())
        return honest(*words, worker=worker, **more)

    with hands({"pg-main": 8}, slots=8) as one, hands({"pg-main": 8}, slots=8, worker="w2") as two:
        listen(broker, one, two)
        monkeypatch.setattr(jobs, "claim", blind)
        id = a_job(db)
        assert doorbell.ring_now()
        eventually(lambda: job(db, id).claimed_by == "w2", 4, what="the second heard")


def test_a_worker_that_was_told_to_stop_gives_the_bell_back(db: Connection, broker: "redis.Redis") -> None:
    with hands({"pg-main": 8}, slots=1) as made:
        listen(broker, made)
        made.stop()
        id = a_job(db)
        assert doorbell.ring_now()
        eventually(lambda: listeners(broker) == 0 and broker.zcard(doorbell.BELL) == 1, what="it gave it back")
        assert job(db, id).state == "pending"


def test_a_long_teardown_keeps_its_lease(db: Connection) -> None:
    id = a_job(db)
    with hands({"pg-main": 8}, slots=3) as made:
        made.start()
        first = eventually(lambda: job(db, id).lease_expires_at, what="it is claimed by the first sweep")
        eventually(lambda: job(db, id).lease_expires_at > first, 10, "its lease is extended")
    assert job(db, id).state == "succeeded"


def test_a_claim_whose_answer_was_lost_is_taken_up_at_the_next_look(
    db: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    id = a_job(db)
    honest = jobs.claim

    def lost(*words: Any, **more: Any) -> None:
        honest(*words, **more)
        monkeypatch.setattr(jobs, "claim", honest)
        raise sa.exc.OperationalError("the answer was lost", {}, Exception())

    monkeypatch.setattr(jobs, "claim", lost)
    with hands({"pg-main": 8}, slots=3) as made:
        with pytest.raises(sa.exc.OperationalError):
            made.drain()
        made.drain()
    assert (job(db, id).state, job(db, id).fence) == ("succeeded", 1)


def test_what_is_put_in_front_of_a_full_row_of_claims_is_found_by_the_next_sweep(db: Connection) -> None:
    one_more = threading.Semaphore(0)
    shelf = Shelf(does=lambda: _acquire(one_more), sees=[Same({}), Absent({})] * 4)
    served = {"pg-main": Served(shelf, 1)}
    made = Hands(served, worker="w1", slots=1, lease_seconds=30, sweep_seconds=60)
    _, second, third = (a_job(db) for _ in range(3))
    made.drain()
    front = a_job(db)
    db.execute(text("UPDATE outbox SET available_at = '2020-01-01' WHERE id = :id"), {"id": front})
    one_more.release()
    eventually(lambda: job(db, second).state == "running", what="the next claim goes on behind the first")
    made.sweep()
    one_more.release()
    eventually(lambda: job(db, front).state == "running", what="the sweep looked at the front again")
    assert job(db, third).state == "pending"
    one_more.release(2)
    eventually(lambda: job(db, third).state == "succeeded", what="all are done")
    made.stop()
    assert made.join(20)


def test_after_a_claim_that_came_short_the_front_is_looked_at_again(db: Connection) -> None:
    a_job(db)
    with hands({"pg-main": 2}, slots=3) as made:
        made.drain()
        front = a_job(db)
        db.execute(text("UPDATE outbox SET available_at = '2020-01-01' WHERE id = :id"), {"id": front})
        made.drain()
        assert running(db) == {"pg-main": 2}


def test_a_bell_for_what_was_put_in_front_of_a_full_row_of_claims_waits_for_no_sweep(db: Connection) -> None:
    one_more = threading.Semaphore(0)
    shelf = Shelf(does=lambda: _acquire(one_more), sees=[Same({}), Absent({})] * 2)
    made = Hands({"pg-main": Served(shelf, 1)}, worker="w1", slots=1, lease_seconds=30, sweep_seconds=60)
    a_job(db)
    made.drain()
    front = a_job(db)
    db.execute(text("UPDATE outbox SET available_at = '2020-01-01' WHERE id = :id"), {"id": front})
    made.drain()
    one_more.release(2)
    eventually(lambda: job(db, front).state == "succeeded", what="the hand that was free took it")
    made.stop()
    assert made.join(20)


def test_a_claim_that_was_under_way_at_a_sweep_keeps_no_later_one_from_the_front(
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
    made = Hands({"pg-main": Served(shelf, 1)}, worker="w1", slots=1, lease_seconds=30, sweep_seconds=60)
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


def _acquire(one_more: threading.Semaphore) -> None:
    assert one_more.acquire(timeout=30)


def test_a_sweep_puts_back_and_expires(db: Connection) -> None:
    lost = a_job(db, state="running", attempts=1, lease="-1 s")
    expired = a_resource(db, expires="now() - interval '1 s'")
    with hands({}, slots=3) as made:
        made.sweep()
    assert job(db, lost).state == "pending"
    assert status_of(db, expired) == "deleting"


def test_a_step_of_a_sweep_that_fails_keeps_no_other_from_being_done(
    db: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> int:
        raise sa.exc.OperationalError("canceling statement due to statement timeout", {}, Exception())

    id = a_job(db)
    for step in ("expire", "sweep", "wake"):
        monkeypatch.setattr(jobs, step, fails)
    with hands({"pg-main": 1}, slots=1) as made:
        with suppress(sa.exc.OperationalError):
            made.sweep()
        assert running(db) == {"pg-main": 1}
    assert job(db, id).state == "succeeded"


def test_an_operation_goes_on_between_the_sweeps(db: Connection) -> None:
    ids = stuck(db, "a", "b", "c")
    redrive(rate=1)
    with hands({"a": 1}, slots=3, sweep_seconds=60) as made:
        made.start()
        eventually(lambda: all(job(db, id).state != "stuck" for id in ids), 15, "a step a second")
        assert job(db, ids[0]).state == "running", "what was re-driven is looked at at once"


def test_an_operation_that_cannot_go_on_stops_neither_sweep_nor_later_steps(
    db: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    (id,) = stuck(db)
    redrive()
    failed = threading.Event()
    honest = operations.advance

    def failing(session: Connection, *, worker: str) -> Any:
        if not failed.is_set():
            failed.set()
            raise RuntimeError("a bug")
        return honest(session, worker=worker)

    monkeypatch.setattr(operations, "advance", failing)
    with hands({}, slots=3, sweep_seconds=0.1) as made:
        made.start()
        assert failed.wait(10)
        lost = a_job(db, state="running", attempts=1, lease="-1 s")
        eventually(lambda: job(db, lost).state == "pending", what="it sweeps")
        eventually(lambda: job(db, id).state == "pending", what="a later step is done")


def wanted(db: Connection, *, backend: str = "pg-main") -> int:
    """A look that an operator waits for."""
    return observations.ask(db, a_job(db, state="stuck", backend=backend), actor="op").id


def found(db: Connection, look: int) -> str | None:
    seen = observations.find(db, look)
    assert seen is not None
    return seen.found


def test_a_look_that_an_operator_waits_for_is_taken_at_the_message_and_at_the_sweep(db: Connection) -> None:
    with hands({"pg-main": 2}, slots=2) as made:
        for come in (made.observe, made.sweep):
            look = wanted(db)
            come()
            assert eventually(lambda look=look: found(db, look)) == "same"  # type: ignore[misc]
    assert db.execute(text("SELECT count(*) FROM outbox WHERE state <> 'stuck'")).scalar_one() == 0


def test_looks_take_no_more_hands_than_are_free_and_come_before_the_next_claim(db: Connection) -> None:
    for _ in range(4):
        a_job(db)
    gate, looking = threading.Event(), threading.Semaphore(0)

    class Slow(Shelf):
        def inspect(self, manifest: Any) -> Any:
            looking.release()
            _pass(gate)
            return super().inspect(manifest)

    work = threading.Event()
    served = {"pg-main": Served(Shelf(does=lambda: _pass(work)), 8), "other": Served(Slow(), 8)}
    made = Hands(served, worker="w1", slots=3, lease_seconds=30, sweep_seconds=60)
    try:
        looks = [wanted(db, backend="other") for _ in range(3)]
        made.drain()
        assert running(db) == {"pg-main": 2}
        made.observe()
        assert looking.acquire(timeout=20), "one hand is free, and looks"
        a_job(db, backend="other")
        made.drain()
        taken = db.execute(text("SELECT count(*) FROM observations WHERE taken_until IS NOT NULL")).scalar_one()
        assert (taken, running(db)) == (1, {"pg-main": 2}), "the hand that looks takes nothing more"
        work.set()
        for _ in looks[1:]:
            gate.set()
            assert looking.acquire(timeout=20), "a hand that is free looks before it claims"
        assert all(eventually(lambda look=look: found(db, look)) for look in looks)  # type: ignore[misc]
    finally:
        made.stop()
        work.set()
        gate.set()
        assert made.join(20)


def test_hands_that_were_stopped_do_not_look(db: Connection) -> None:
    look = wanted(db)
    with hands({"pg-main": 2}, slots=2) as made:
        made.stop()
        made.observe()
    assert found(db, look) is None
