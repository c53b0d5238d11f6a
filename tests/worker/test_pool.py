"""One worker's pool: heartbeats, sweeps, operations, and what it logs when they fail."""

import threading
from contextlib import suppress
from types import ModuleType
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Connection, text
from structlog.testing import capture_logs

from outbox import audit, doorbell, jobs, observations, operations
from outbox.queries import job_story
from tests.support import pools
from tests.support.factories import a_job, a_resource, job, status_of
from tests.support.factories import begun_redrive as redrive
from tests.support.factories import stuck_jobs as stuck
from tests.support.pools import fails, failures, pool, running, wanted
from tests.support.witness import eventually
from worker.backends import fleet


def test_a_heartbeat_extends_the_lease_of_a_long_teardown(db: Connection) -> None:
    id = a_job(db)
    with pool({"pg-main": 8}, slots=3) as made:
        made.start()
        first = eventually(lambda: job(db, id).lease_expires_at, what="the first sweep claims it")
        eventually(lambda: job(db, id).lease_expires_at > first, 10, "a heartbeat extends its lease")
    assert job(db, id).state == "succeeded"


def test_a_heartbeat_stores_how_far_a_verb_has_come(db: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    id = a_job(db)
    waits = pools.wait_for

    def tells(event: threading.Event) -> None:
        fleet.tell(3, 7, "keys")
        waits(event)

    monkeypatch.setattr(pools, "wait_for", tells)
    told = text("SELECT progress FROM outbox WHERE id = :id")
    with pool({"pg-main": 8}, slots=3) as made:
        made.start()
        eventually(lambda: db.execute(told, {"id": id}).scalar_one() is not None, what="a heartbeat tells")
        assert job_story(db, id).progress == {"fence": 1, "done": 3, "total": 7, "what": "keys"}
    assert job(db, id).state == "succeeded"


def test_a_sweep_resets_lost_jobs_and_deletes_expired_resources(db: Connection) -> None:
    lost = a_job(db, state="running", attempts=1, lease="-1 s")
    expired = a_resource(db, expires="now() - interval '1 s'")
    with pool({}, slots=3) as made:
        made.sweep()
    assert job(db, lost).state == "pending"
    assert status_of(db, expired) == "deleting"


def test_a_failed_sweep_step_stops_no_other_step(db: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> int:
        raise sa.exc.OperationalError("canceling statement due to statement timeout", {}, Exception())

    id = a_job(db)
    for step in ("expire", "sweep", "wake"):
        monkeypatch.setattr(jobs, step, fails)
    with pool({"pg-main": 1}, slots=1) as made:
        with suppress(sa.exc.OperationalError), capture_logs() as logged:
            made.sweep()
        assert running(db) == {"pg-main": 1}
    assert [line["event"] for line in logged if line["log_level"] == "error"] == ["sweep_failed"] * 3
    assert job(db, id).state == "succeeded"


def test_an_operation_advances_between_sweeps(db: Connection) -> None:
    ids = stuck(db, "a", "b", "c")
    redrive(rate=1)
    with pool({"a": 1}, slots=3, sweep_seconds=60) as made:
        made.start()
        eventually(lambda: all(job(db, id).state != "stuck" for id in ids), 15, "the operation redrives one a second")
        assert job(db, ids[0]).state == "running", "the pool claims a redriven job at once"


def test_a_failed_operation_step_stops_neither_sweeps_nor_later_steps(
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
    with pool({}, slots=3, sweep_seconds=0.1) as made:
        made.start()
        assert failed.wait(10)
        lost = a_job(db, state="running", attempts=1, lease="-1 s")
        eventually(lambda: job(db, lost).state == "pending", what="the pool sweeps")
        eventually(lambda: job(db, id).state == "pending", what="a later step redrives it")


@pytest.mark.parametrize(
    ("module", "name", "event"),
    [
        (jobs, "heartbeat", "heartbeat_failed"),
        (jobs, "wake", "sweep_failed"),
        (audit, "checkpoint", "sweep_failed"),
        (operations, "advance", "operation_step_failed"),
        (doorbell, "wait", "doorbell_wait_failed"),
    ],
)
def test_each_loop_logs_its_failure_under_its_own_name(
    db: Connection, monkeypatch: pytest.MonkeyPatch, module: ModuleType, name: str, event: str
) -> None:
    a_job(db)
    monkeypatch.setattr(module, name, fails)
    with capture_logs() as logged, pool({"pg-main": 2}, slots=2) as made:
        made.start()
        eventually(lambda: failures(logged), what="the loop logs")
    assert failures(logged) == {event}


def test_an_observation_that_cannot_be_recorded_is_logged(db: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted(db)
    monkeypatch.setattr(observations, "record", fails)
    with capture_logs() as logged, pool({"pg-main": 1}, slots=1) as made:
        made.observe()
    assert failures(logged) == {"observation_not_recorded"}
