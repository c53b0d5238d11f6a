"""What a worker has its places remember: compared as it starts and sweeps, and written before each destruction."""

import uuid
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import Connection, text
from structlog.testing import capture_logs

from outbox import doorbell, rewinds
from outbox.errors import ClaimLost, MemoryForbidden, OutOfService, Unavailable
from outbox.memory import Memory
from outbox.rewinds import BROKER
from outbox.rows import StartMark
from tests.support.factories import a_claim, a_job, claims, events_of, job
from tests.support.shelf import Remembering, Shelf
from worker.memory import Memories
from worker.run import Batches, Run


class Place:
    """A worker's memories of one backend, and what that backend keeps."""

    def __init__(self, db: Connection, **words: Any) -> None:
        self.db = db
        self.backend = Remembering(**words)
        self.memories = Memories({"pg-main": self.backend}, worker="w1")

    @property
    def kept(self) -> Memory:
        (memory,) = self.backend.keeps.values()
        return memory

    def change(self, **fields: Any) -> None:
        """As if another worker had written there, in a future that this database does not know."""
        self.backend.keeps[self.kept.installation] = replace(self.kept, **fields)

    def due(self) -> None:
        """As if a minute had passed."""
        self.db.execute(text("UPDATE memories SET compared_at = now() - interval '61 s'"))

    def run(self, claim: Any, batches: Batches | None = None) -> None:
        Run(claim, self.backend, worker="w1", batches=batches, memories=self.memories)()


@pytest.fixture
def place(db: Connection) -> Place:
    return Place(db)


def last_event(db: Connection) -> tuple[int, str]:
    return tuple(db.execute(text("SELECT id, encode(hash, 'hex') FROM events ORDER BY id DESC LIMIT 1")).one())


def is_held(db: Connection) -> bool:
    return rewinds.rewound(db)


def test_a_worker_that_starts_has_its_backends_and_the_broker_remember(db: Connection, place: Place) -> None:
    a_claim(db)
    place.memories.compare()
    assert (place.kept.event, place.kept.hash) == last_event(db)
    broker = doorbell.recall(place.kept.installation)
    assert broker is not None
    assert broker.event == place.kept.event
    assert rewinds.here(db, ["pg-main", BROKER]).written == {
        "pg-main": (1, place.kept.event),
        BROKER: (1, place.kept.event),
    }


def test_a_kind_that_keeps_nothing_has_lost_nothing(db: Connection, place: Place) -> None:
    """Else its backend would be stopped a minute after its worker started, as one that went back in time."""
    claim = a_claim(db)
    memories = Memories({"pg-main": Shelf()}, worker="w1")
    for _ in range(2):
        memories.compare()
        place.due()
    assert "pg-main" not in rewinds.here(db, ["pg-main"]).written
    assert db.execute(text("SELECT count(*) FROM breakers")).scalar_one() == 0
    Run(claim, Shelf(), worker="w1", memories=memories)()
    assert events_of(db, claim.id)[-1] == "completed"


def test_within_a_minute_a_place_is_neither_asked_nor_written(db: Connection, place: Place) -> None:
    place.memories.compare()
    before = place.kept
    a_claim(db)
    place.backend.away = AssertionError("it was asked")
    with capture_logs() as logged:
        place.memories.compare()
    assert (place.kept, logged) == (before, [])
    place.backend.away = None
    place.due()
    place.memories.compare()
    assert place.kept.event > before.event


def test_a_new_worker_asks_each_place_however_lately_another_one_did(db: Connection, place: Place) -> None:
    place.memories.compare()
    place.change(event=10**6)
    Memories({"pg-main": place.backend}, worker="w2").compare()
    assert is_held(db)


def test_a_database_that_lacks_what_a_backend_remembers_is_held_and_the_places_are_told(
    db: Connection, place: Place
) -> None:
    a_claim(db)
    place.memories.compare()
    place.change(event=10**6)
    place.due()
    with capture_logs() as logged:
        place.memories.compare()
    assert is_held(db)
    assert [line["event"] for line in logged if line["log_level"] == "error"] == ["control_database_rewound"]
    assert (place.kept.event, place.kept.still) == (10**6, True), "what it remembers stays"
    broker = doorbell.recall(place.kept.installation)
    assert broker is not None
    assert broker.still
    assert claims(db, 5) == []


def test_a_worker_that_finds_the_hold_tells_its_places_too(db: Connection, place: Place) -> None:
    place.memories.compare()
    rewinds.engage(db, actor="another", reason="r")
    place.memories.compare()
    assert place.kept.still


def test_what_this_process_has_seen_counts_although_no_place_has_it_yet(db: Connection, place: Place) -> None:
    place.memories.compare()
    a_claim(db)
    place.memories.compare()
    db.execute(text("ALTER TABLE events DISABLE TRIGGER events_append_only"))
    db.execute(text("DELETE FROM events WHERE id = (SELECT max(id) FROM events)"))
    place.memories.compare()
    assert is_held(db)


def test_a_broker_that_was_flushed_says_nothing(db: Connection, place: Place) -> None:
    a_claim(db)
    place.memories.compare()
    doorbell.ask("FLUSHDB")
    place.due()
    place.memories.compare()
    assert not is_held(db)
    assert doorbell.recall(place.kept.installation) is not None, "it is written anew"


def test_a_place_that_is_away_keeps_no_other_from_its_work(db: Connection) -> None:
    gone, there = Remembering(), Remembering()
    memories = Memories({"gone": gone, "pg-main": there}, worker="w1")
    memories.compare()
    db.execute(text("UPDATE memories SET compared_under = 'an older one'"))
    db.execute(text("UPDATE installation SET compared_under = 'an older one'"))
    gone.away = Unavailable("connection refused")
    with capture_logs() as logged:
        memories.compare()
    assert [(line["event"], line["place"]) for line in logged] == [("memory_unreachable", "gone")]
    a_claim(db)  # asserts that it was claimed
    assert claims(db, 5, "gone") == []


def test_a_backend_that_forgot_is_not_written_anew_by_itself(db: Connection, place: Place) -> None:
    a_claim(db)
    place.memories.compare()
    place.backend.keeps.clear()
    place.due()
    with capture_logs() as logged:
        place.memories.compare()
        place.memories.compare()
    assert place.backend.keeps == {}
    assert [line["event"] for line in logged if line["log_level"] == "error"] == ["backend_went_back"]
    assert not is_held(db)
    assert claims(db, 5) == []


def test_a_backend_whose_address_was_wrong_for_a_while_goes_on_by_itself(db: Connection, place: Place) -> None:
    a_claim(db)
    place.memories.compare()
    right, place.backend.keeps = place.backend.keeps, {}
    place.due()
    place.memories.compare()
    assert claims(db, 5) == []
    a_job(db)
    place.backend.keeps = right
    place.memories.compare()
    assert len(claims(db, 5)) == 1
    assert db.execute(text("SELECT count(*) FROM breakers")).scalar_one() == 0


def test_another_server_under_the_same_address_did_not_go_back_and_its_jobs_find_that_out(
    db: Connection, place: Place
) -> None:
    a_claim(db)
    place.memories.compare()
    place.backend.keeps, place.backend.server = {}, "another"
    place.due()
    with capture_logs() as logged:
        place.memories.compare()
    assert [line["event"] for line in logged if line["log_level"] == "error"] == ["backend_is_another_server"]
    assert place.backend.keeps == {}, "nothing is written there"
    a_job(db)
    assert len(claims(db, 5)) == 1, "its inspection refuses it"


def test_the_start_of_a_destruction_is_remembered_before_it_begins(db: Connection, place: Place) -> None:
    place.memories.compare()
    seen: list[tuple[int, str]] = []
    place.backend.does = lambda: seen.append((place.kept.event, place.kept.hash))
    claim = a_claim(db)
    place.run(claim)
    started = db.execute(
        text("SELECT id, encode(hash, 'hex') FROM events WHERE job_id = :id AND event = 'started'"), {"id": claim.id}
    ).one()
    assert seen == [tuple(started)]
    assert job(db, claim.id).state == "succeeded"


def test_jobs_that_share_their_starts_are_each_remembered(db: Connection, place: Place) -> None:
    place.memories.compare()
    claim = a_claim(db)
    place.run(claim, Batches(worker="w1"))
    assert (
        place.kept.event
        >= db.execute(
            text("SELECT id FROM events WHERE job_id = :id AND event = 'started'"), {"id": claim.id}
        ).scalar_one()
    )


@pytest.mark.parametrize("told", ["still", "a later epoch"])
def test_a_worker_that_slept_since_its_start_destroys_nothing_at_a_backend_that_was_told(
    db: Connection, place: Place, told: str
) -> None:
    place.memories.compare()
    claim = a_claim(db)
    place.change(**{"still": {"still": True}, "a later epoch": {"epoch": 2}}[told])
    with capture_logs() as logged:
        place.run(claim)
    assert place.backend.torn == []
    assert "claim_lost" in [line["event"] for line in logged]
    assert events_of(db, claim.id) == ["claimed", "started"], "its lease passes, and the next attempt inspects"


def test_an_event_that_is_not_here_is_noticed_before_a_destruction(db: Connection, place: Place) -> None:
    """A restore into the same database, on a server that goes on, leaves the comparison of a moment ago standing."""
    place.memories.compare()
    claim = a_claim(db)
    place.change(event=10**6, hash="ff")
    with capture_logs() as logged:
        place.run(claim)
    assert place.backend.torn == []
    (lost,) = [line for line in logged if line["event"] == "claim_lost"]
    assert "remembers event 1000000 (epoch 1), which is not here" in str(lost)


def test_another_worker_s_later_event_stops_no_destruction(db: Connection, place: Place) -> None:
    a_claim(db)
    event, digest = last_event(db)
    a_claim(db)
    place.memories.compare()
    assert place.kept.event > event
    place.memories.before_destroy("pg-main", StartMark(event, digest, place.kept.installation, 1))


def test_a_start_that_a_restore_has_lost_destroys_nothing_behind_a_later_event(db: Connection, place: Place) -> None:
    a_claim(db)
    event, _ = last_event(db)
    a_claim(db)
    place.memories.compare()
    with pytest.raises(ClaimLost, match="or this start is not"):
        place.memories.before_destroy("pg-main", StartMark(event, "ff", place.kept.installation, 1))


def test_a_backend_that_went_back_since_the_last_comparison_is_noticed_before_a_destruction(
    db: Connection, place: Place
) -> None:
    a_claim(db)
    place.memories.compare()
    claim = a_claim(db)
    place.backend.keeps.clear()
    place.run(claim)
    assert place.backend.torn == []
    assert claims(db, 5) == []
    assert db.execute(text("SELECT place FROM memories WHERE behind_since IS NOT NULL")).scalars().all() == ["pg-main"]


def test_a_backend_that_cannot_remember_now_destroys_nothing(db: Connection, place: Place) -> None:
    place.memories.compare()
    claim = a_claim(db)
    place.backend.away = OutOfService("its disk is full")
    place.run(claim)
    assert place.backend.torn == []
    assert job(db, claim.id).state == "pending"


def test_an_account_that_may_keep_no_memory_works_as_before_until_one_was_kept(db: Connection, place: Place) -> None:
    place.backend.away = MemoryForbidden("GRANT CREATE ON DATABASE")
    place.memories.compare()
    claim = a_claim(db)
    place.run(claim)
    assert (job(db, claim.id).state, place.backend.keeps) == ("succeeded", {})
    place.backend.away, place.backend.torn = None, []
    place.due()
    place.memories.compare()
    claim = a_claim(db)
    place.backend.away = MemoryForbidden("GRANT CREATE ON DATABASE")
    place.run(claim)
    assert place.backend.torn == [], "what was kept must be read"


def test_a_kind_that_keeps_no_memory_works_as_before(db: Connection) -> None:
    backend = Shelf()
    memories = Memories({"pg-main": backend}, worker="w1")
    memories.compare()
    claim = a_claim(db)
    Run(claim, backend, worker="w1", memories=memories)()
    assert backend.torn == [1]


def test_another_installation_s_memory_on_the_same_backend_says_nothing(db: Connection, place: Place) -> None:
    other = uuid.uuid4()
    place.backend.keeps[other] = Memory(other, 9, 10**9, "ab" * 32, still=True, notes=())
    place.memories.compare()
    assert not is_held(db)
    assert len(place.backend.keeps) == 2
