"""What a worker makes of its places while they hang, answer late, or are written by several threads at once."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, text
from structlog.testing import capture_logs

from deprovisioner.up import servers as embedded
from outbox import doorbell, jobs, rewinds
from outbox.errors import ClaimLost, Unavailable
from outbox.memory import Memory, Moment
from outbox.rewinds import BROKER
from outbox.rows import StartMark
from tests.support import redis_servers
from tests.support.factories import a_claim, a_job, a_resource, claims, events_of, status_of
from tests.support.shelf import Remembering
from worker.backends.redis import Redis
from worker.memory import Memories
from worker.run import Run

PLACES = ["pg-main", BROKER]


class Slow(Remembering):
    """Calls `meanwhile` once, just before an answer to a write is given, and waits for `open` before each reading."""

    def __init__(self) -> None:
        super().__init__()
        self.meanwhile: Callable[[], Any] | None = None
        self.open = threading.Event()
        self.open.set()

    def remember(self, new: Memory, least: Moment | None = None) -> Memory | None:
        answer = super().remember(new, least)
        if meanwhile := self.meanwhile:
            self.meanwhile = None
            meanwhile()
        return answer

    def recall(self, installation: Any) -> Memory | None:
        assert self.open.wait(30)
        return super().recall(installation)


@pytest.fixture
def slow() -> Iterator[Slow]:
    made = Slow()
    yield made
    made.open.set()


def started(db: Connection) -> StartMark:
    """The mark of a start."""
    claim = a_claim(db)
    return jobs.start(db, claim, worker="w1")


def another_server(db: Connection) -> None:
    """As if the server had been restarted since the last comparison."""
    db.execute(text("UPDATE installation SET compared_under = 'an older one'"))
    db.execute(text("UPDATE memories SET compared_under = 'an older one'"))


def behind(db: Connection) -> list[str]:
    return list(db.execute(text("SELECT place FROM memories WHERE behind_since IS NOT NULL")).scalars())


def due(db: Connection) -> None:
    """As if a minute had passed."""
    db.execute(text("UPDATE memories SET compared_at = now() - interval '61 s'"))


def test_what_another_thread_writes_while_a_backend_answers_is_no_going_back(db: Connection, slow: Slow) -> None:
    """Once in 900 destructions by four workers."""
    memories, other = Memories({"pg-main": slow}, worker="w1"), Memories({"pg-main": slow}, worker="w2")
    memories.compare()
    first, second = started(db), started(db)
    other.before_destroy("pg-main", second)
    started(db)

    def meanwhile() -> None:
        due(db)
        memories.compare()

    slow.meanwhile = meanwhile
    memories.before_destroy("pg-main", first)
    assert slow.meanwhile is None
    assert behind(db) == []


def test_a_backend_that_hangs_keeps_no_other_waiting_and_is_compared_when_it_answers(
    db: Connection, slow: Slow
) -> None:
    memories = Memories({"hung": slow, "pg-main": Remembering()}, worker="w1")
    memories.compare()
    another_server(db)
    slow.open.clear()
    a_job(db, backend="hung")
    a_job(db)
    with capture_logs() as logged:
        memories.compare()
    assert [(line["event"], line["place"]) for line in logged] == [("memory_slow", "hung")]
    assert len(claims(db, 5)) == 1
    assert claims(db, 5, "hung") == []
    memories.compare()
    slow.open.set()
    memories._asked["hung"].result(10)
    memories.compare()
    assert len(claims(db, 5, "hung")) == 1


def test_a_late_answer_is_judged_too(db: Connection, slow: Slow) -> None:
    memories = Memories({"hung": slow, "pg-main": Remembering()}, worker="w1")
    memories.compare()
    (kept,) = slow.keeps.values()
    slow.keeps[kept.installation] = Memory(kept.installation, 1, 10**6, "ab", notes=())
    another_server(db)
    slow.open.clear()
    memories.compare()
    assert not rewinds.rewound(db)
    slow.open.set()
    memories._asked["hung"].result(10)
    memories.compare()
    assert rewinds.rewound(db)


def test_nothing_expires_after_a_restart_until_a_place_has_told_what_it_remembers(db: Connection) -> None:
    """The broker has lost what it had, and no backend answers: then nothing at all was compared."""
    backend = Remembering()
    Memories({"pg-main": backend}, worker="w1").compare()
    resource = a_resource(db, expires="now() - interval '1 s'")
    another_server(db)
    doorbell.ask("FLUSHDB")
    backend.away = Unavailable("connection refused")
    anew = Memories({"pg-main": backend}, worker="w2")
    anew.compare()
    assert jobs.expire(db, actor="w2") == 0
    assert status_of(db, resource) == "active"
    backend.away = None
    anew.compare()
    assert jobs.expire(db, actor="w2") == 1


def test_a_worker_that_lived_through_a_restart_is_a_place_that_tells(db: Connection) -> None:
    backend = Remembering()
    memories = Memories({"pg-main": backend}, worker="w1")
    memories.compare()
    a_resource(db, expires="now() - interval '1 s'")
    another_server(db)
    backend.away = Unavailable("connection refused")
    memories.compare()
    assert jobs.expire(db, actor="w1") == 1


@pytest.mark.parametrize("over", ["epoch = epoch + 1", "compared_under = compared_under"])
def test_a_verdict_on_what_is_over_holds_nothing(db: Connection, slow: Slow, over: str) -> None:
    """A worker that slept between its question and its verdict, while a recovery ended or the database was replaced."""
    memories = Memories({"pg-main": slow}, worker="w1")
    memories.compare()
    here = rewinds.here(db, PLACES)
    db.execute(text(f"UPDATE installation SET {over}"))
    if "epoch" not in over:
        here = replace(here, incarnation="an older one")
    assert not rewinds.engage(db, actor="w1", reason="r", epoch=here.epoch, incarnation=here.incarnation)
    assert not rewinds.rewound(db)


def test_a_place_is_due_at_once_where_the_clock_was_set_back(db: Connection) -> None:
    Memories({"pg-main": Remembering()}, worker="w1").compare()
    db.execute(text("UPDATE memories SET compared_at = now() + interval '1 h' WHERE place = 'pg-main'"))
    assert rewinds.here(db, PLACES).due == {"pg-main"}


def test_jobs_are_claimed_as_soon_as_they_may_go_on(db: Connection) -> None:
    """By the worker that compares, and by another that finds it done."""
    backend, told = Remembering(), []
    first, second = (
        Memories({"pg-main": backend}, worker=name, go_on=lambda name=name: told.append(name))  # type: ignore[misc]
        for name in ("w1", "w2")
    )
    first.compare()
    second.compare()
    told.clear()
    another_server(db)
    first.compare()
    assert told == ["w1"]
    second._incarnation = "an older one"
    second.compare()
    second.compare()
    assert told == ["w1", "w2"]


def test_a_valkey_without_dumps_that_is_killed_has_not_gone_back(db: Connection, tmp_path: Path) -> None:
    """It keeps no keys by its settings; its users are written whenever the control database is told of a write."""
    a_claim(db)
    port = str(embedded.free_port())
    with redis_servers.running("valkey", tmp_path / "own", "--port", port) as server:
        memories = Memories({"pg-main": Redis(server.service_dsn)}, worker="w1")
        memories.compare()
        for _ in range(2):  # within a minute of the first
            a_claim(db)
            due(db)
            memories.compare()
        memories.before_destroy("pg-main", started(db))  # and it is killed before the destruction
    with redis_servers.running("valkey", tmp_path / "own", "--port", port):
        due(db)
        memories.compare()
        assert behind(db) == []
        memories.before_destroy("pg-main", started(db))
    assert behind(db) == []


def test_a_valkey_that_has_less_than_before_a_destruction_went_back(db: Connection, tmp_path: Path) -> None:
    port = str(embedded.free_port())
    with redis_servers.running("valkey", tmp_path / "own", "--port", port) as server:
        memories = Memories({"pg-main": Redis(server.service_dsn)}, worker="w1")
        memories.compare()
        mark = started(db)
        memories.before_destroy("pg-main", mark)
        memories.destroyed("pg-main", mark)  # the teardown has written the users, which the file has lost
    with (
        redis_servers.running("valkey", tmp_path / "own", "--port", port),
        pytest.raises(ClaimLost, match="went back in time"),
    ):
        memories.before_destroy("pg-main", started(db))
    assert behind(db) == ["pg-main"]


def test_a_destruction_that_ended_is_what_a_backend_must_not_forget(db: Connection) -> None:
    backend = Remembering()
    memories = Memories({"pg-main": backend}, worker="w1")
    memories.compare()
    before = dict(backend.keeps)
    claim = a_claim(db)
    Run(claim, backend, worker="w1", memories=memories)()
    assert events_of(db, claim.id)[-1] == "completed"
    backend.keeps = before
    backend.torn = []
    Run(a_claim(db), backend, worker="w1", memories=memories)()
    assert (backend.torn, behind(db)) == ([], ["pg-main"])
