"""A control database that went back in time: noticed by what places remember, and then nothing moves."""

import uuid
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import Connection, text

from outbox import actions, holds, jobs, observations, operations, rewinds, snapshots
from outbox import db as database
from outbox.errors import AlreadyReleased, Held, Rewound
from outbox.events import Event
from outbox.memory import Memory
from outbox.rewinds import BROKER, Here
from outbox.states import HoldCause, HoldScope
from tests.support.factories import a_claim, a_job, a_resource, a_stuck_job, claims, job, status_of
from tests.support.processes import System

PAST = "now() - interval '1 s'"
PLACES = ["pg-main", BROKER]


def compared(db: Connection, *places: str) -> Here:
    """The database after a first comparison, in which no place remembered anything."""
    here = rewinds.here(db, [*places] or PLACES)
    assert rewinds.settle(db, here, [*places] or PLACES)
    return rewinds.here(db, [*places] or PLACES)


def replaced(db: Connection, **columns: object) -> None:
    """As if another incarnation had been compared last."""
    sets = ", ".join(f"{name} = :{name}" for name in columns or {"compared_under": 0})
    db.execute(text(f"UPDATE installation SET {sets}"), columns or {"compared_under": "an older one"})
    if not columns:
        db.execute(text("UPDATE memories SET compared_under = 'an older one'"))


def verdict(db: Connection, memory: Memory | None, place: str = "pg-main") -> rewinds.Verdict:
    return rewinds.judge(db, rewinds.here(db, PLACES), {place: memory})


def rewind(db: Connection) -> int:
    """Engage the hold of a rewind; its id."""
    rewinds.here(db, PLACES)
    assert rewinds.engage(db, actor="w", reason="pg-main remembers event 9")
    return db.execute(text("SELECT id FROM holds WHERE cause = 'rewound'")).scalar_one()


# -- the verdict ----------------------------------------------------------------------------------------------------


def test_what_a_place_remembers_and_the_database_has_is_no_rewind(db: Connection) -> None:
    a_claim(db)
    here = compared(db)
    a_claim(db)
    assert verdict(db, here.memory()).rewound is None
    assert verdict(db, None).rewound is None


def test_an_event_that_is_missing_here_is_a_rewind(db: Connection) -> None:
    a_claim(db)
    memory = replace(compared(db).memory(), event=rewinds.here(db, PLACES).event + 1)
    why = verdict(db, memory).rewound
    assert why
    assert f"pg-main remembers event {memory.event}, which is missing here" in why


def test_an_event_that_is_another_one_here_is_a_rewind_although_the_database_is_ahead(db: Connection) -> None:
    a_claim(db)
    memory = replace(compared(db).memory(), hash="ab" * 32)
    for _ in range(3):
        a_claim(db)
    assert "is another one here" in str(verdict(db, memory).rewound)


def test_a_later_epoch_is_a_rewind_and_an_earlier_one_tells_nothing(db: Connection) -> None:
    a_claim(db)
    memory = replace(compared(db).memory(), event=10**6)
    assert "epoch 2" in str(verdict(db, replace(memory, epoch=2)).rewound)
    db.execute(text("UPDATE installation SET epoch = 2"))
    assert verdict(db, memory).rewound is None, "the recovery that raised the epoch has decided about it"


def test_a_place_that_was_told_to_keep_still_is_a_rewind(db: Connection) -> None:
    a_claim(db)
    assert "keep still" in str(verdict(db, replace(compared(db).memory(), still=True)).rewound)


@pytest.mark.parametrize("column", ["system_identifier", "database_oid"])
def test_another_server_or_database_is_a_rewind_although_nothing_is_missing(db: Connection, column: str) -> None:
    memory = compared(db).memory()
    replaced(db, **{column: 7})
    assert "which was compared last" in str(verdict(db, memory).rewound)


def test_another_timeline_alone_is_a_promotion(db: Connection) -> None:
    memory = compared(db).memory()
    replaced(db, timeline=7)
    assert verdict(db, memory).rewound is None
    assert rewinds.here(db, PLACES).promoted


@pytest.mark.parametrize("lost", ["forgotten", "older"])
def test_a_backend_that_remembers_less_than_was_written_there_went_back_itself(db: Connection, lost: str) -> None:
    a_claim(db)
    older = compared(db).memory()
    a_claim(db)
    rewinds.wrote(db, "pg-main", rewinds.here(db, PLACES).memory())
    found = verdict(db, None if lost == "forgotten" else older)
    assert (found.rewound, list(found.behind)) == (None, ["pg-main"])


def test_a_broker_that_forgot_everything_says_nothing(db: Connection) -> None:
    here = compared(db)
    a_claim(db)
    rewinds.wrote(db, BROKER, rewinds.here(db, PLACES).memory())
    found = verdict(db, None, BROKER)
    assert (found.rewound, found.behind) == (None, {})
    assert here.epoch == 1


def test_what_was_written_is_never_lowered(db: Connection) -> None:
    compared(db)
    for event in (5, 9, 7):
        rewinds.wrote(db, "pg-main", Memory(uuid.uuid4(), 1, event, "", still=False, notes=None))
    assert rewinds.here(db, PLACES).written["pg-main"] == (1, 9)


def test_a_place_is_due_when_it_was_not_compared_under_this_incarnation_or_a_minute_ago(db: Connection) -> None:
    assert rewinds.here(db, PLACES).due == {*PLACES}
    assert compared(db).due == frozenset()
    db.execute(text("UPDATE memories SET compared_at = now() - interval '61 s' WHERE place = 'pg-main'"))
    assert rewinds.here(db, PLACES).due == {"pg-main"}
    replaced(db)
    here = rewinds.here(db, PLACES)
    assert (here.due, here.settled) == ({*PLACES}, False)


@pytest.mark.parametrize(
    "loaded_again",
    [
        "TRUNCATE installation",
        "DROP TABLE installation; CREATE TABLE installation (LIKE saved INCLUDING ALL)",
    ],
)
def test_a_dump_that_is_restored_into_its_own_database_is_not_compared(db: Connection, loaded_again: str) -> None:
    a_job(db)
    compared(db)
    db.execute(text("CREATE TABLE saved (LIKE installation INCLUDING ALL)"))
    db.execute(text("INSERT INTO saved TABLE installation"))
    db.execute(text(loaded_again))
    db.execute(text("INSERT INTO installation TABLE saved"))
    here = rewinds.here(db, PLACES)
    assert (here.due, here.settled, here.moved) == ({*PLACES}, False, None)
    assert claims(db, 5) == []


def test_a_database_that_was_replaced_meanwhile_is_not_called_compared(db: Connection) -> None:
    here = compared(db)
    assert not rewinds.settle(db, replace(here, incarnation="another"), PLACES)
    assert not rewinds.settle(db, replace(here, epoch=2), PLACES)


def test_notes_tell_what_was_registered_with_its_tenant_and_names(db: Connection) -> None:
    resource = a_resource(db)
    notes = rewinds.notes(db)
    made = [note for note in notes if note.resource == resource]
    assert [note.what for note in made] in ([], [rewinds.REGISTERED]), "a factory may write no event"
    assert list(notes) == sorted(notes, key=lambda note: note.event)


# -- what stands still ----------------------------------------------------------------------------------------------


def _nothing_starts(db: Connection, before: Any, backend: str = "pg-main") -> None:
    assert claims(db, 5, backend) == []
    assert job(db, before.id).started_fence is None


@pytest.mark.parametrize("kind", ["deprovision", "provision", "restore"])
def test_under_the_hold_of_a_rewind_no_job_is_claimed_whatever_its_kind(db: Connection, kind: str) -> None:
    a_job(db, kind=kind)
    rewind(db)
    assert claims(db, 5) == []


def test_what_was_claimed_before_a_rewind_was_noticed_does_not_start(db: Connection) -> None:
    claim = a_claim(db)
    rewind(db)
    with pytest.raises(Held):
        jobs.start(db, claim, worker="w")
    assert job(db, claim.id).started_fence is None


def test_the_database_itself_refuses_a_start_that_does_not_look_at_holds(db: Connection) -> None:
    claim = a_claim(db)
    rewind(db)
    with pytest.raises(Exception, match="went back in time"):
        db.execute(text("UPDATE outbox SET started_fence = fence WHERE id = :id"), {"id": claim.id})


def test_nothing_is_claimed_or_started_on_a_database_that_was_not_compared_anew(db: Connection) -> None:
    compared(db)
    claim = a_claim(db)
    a_job(db)
    replaced(db)
    assert claims(db, 5) == []
    with pytest.raises(Exception, match="not compared yet"):
        jobs.start(db, claim, worker="w")
    here = rewinds.here(db, PLACES)
    assert rewinds.settle(db, here, [BROKER])
    assert claims(db, 5) == [], "the broker's word is not the backend's"
    assert rewinds.settle(db, here, ["pg-main"])
    jobs.start(db, claim, worker="w")
    assert len(claims(db, 5)) == 1


def test_nothing_starts_at_a_backend_that_went_back_and_its_breaker_stays_open(db: Connection) -> None:
    compared(db, "pg-main", "redis-main", BROKER)
    a_job(db)
    a_job(db, backend="redis-main")
    assert rewinds.went_back(db, "pg-main", "it remembers nothing")
    assert not rewinds.went_back(db, "pg-main", "it remembers nothing"), "that was known"
    assert claims(db, 5) == []
    assert len(claims(db, 5, "redis-main")) == 1, "another backend goes on"
    from outbox import breakers

    breakers.close(db, "pg-main")
    breakers.give_back(db, "pg-main")
    breakers.trip(db, "pg-main", reason="away", probing=True)
    reason, shut = db.execute(
        text("SELECT reason, retry_at > now() + interval '1 y' FROM breakers WHERE backend = 'pg-main'")
    ).one()
    assert ("recover --backend pg-main" in reason, shut) == (True, True)
    assert rewinds.here(db, PLACES).due == {"pg-main"}, "it is asked again at each comparison"
    assert rewinds.settle(db, rewinds.here(db, PLACES), ["pg-main"]), "as when it remembers everything again"
    assert len(claims(db, 5)) == 1


@pytest.mark.parametrize("why", ["rewound", "not compared"])
def test_nothing_expires_no_operation_goes_on_and_no_snapshot_is_removed(db: Connection, why: str) -> None:
    compared(db)
    resource = a_resource(db, expires=PAST)
    db.execute(
        text("""INSERT INTO operations (kind, filter, reason, actor, digest, total, next_at)
                VALUES ('offboard', '{}', 'r', 'op', 'd', 0, now() - interval '1 s')""")
    )
    rewind(db) if why == "rewound" else replaced(db)
    assert jobs.expire(db, actor="w") == 0
    assert status_of(db, resource) == "active"
    assert snapshots.expired(db, limit=9) == []
    with database.transaction() as session:
        operations.advance(session, worker="w")
    assert db.execute(text("SELECT finished_at FROM operations")).scalar_one() is None


@pytest.mark.parametrize("why", ["rewound", "not compared"])
def test_no_inspection_is_taken(db: Connection, why: str) -> None:
    compared(db)
    stuck = a_stuck_job(db)
    observations.ask(db, stuck, actor="op")
    rewind(db) if why == "rewound" else replaced(db)
    assert observations.take(db, {"pg-main": 5}, slots=5) == []


def test_the_hold_of_a_rewind_is_engaged_once_with_an_event_in_the_installation_s_chain(db: Connection) -> None:
    rewind(db)
    assert not rewinds.engage(db, actor="w2", reason="again")
    told = db.execute(
        text("SELECT actor, reason FROM events JOIN installation ON resource_id = installation.id WHERE event = :e"),
        {"e": Event.REWOUND},
    ).all()
    assert told == [("w", "pg-main remembers event 9")]


def test_what_was_found_before_a_recovery_engages_nothing_after_it(db: Connection) -> None:
    before = compared(db)
    replaced(db, epoch=before.epoch + 1)
    assert not rewinds.engage(db, actor="w", reason="pg-main remembers event 9", epoch=before.epoch)
    assert not rewinds.rewound(db)
    assert rewinds.engage(db, actor="w", reason="pg-main remembers event 9", epoch=before.epoch + 1)


def test_an_ordinary_release_does_not_end_it(db: Connection) -> None:
    id = rewind(db)
    with pytest.raises(Exception, match=r".") as refused:
        holds.release(db, id, actor="op", reason="it is night")
    assert refused.type is Rewound, "in words of its own, and not the trigger's"
    with pytest.raises(Exception, match="only a recovery ends it"):
        db.execute(text("UPDATE holds SET released_at = now(), released_by = 'x', release_reason = 'y'"))
    with pytest.raises(Exception, match="only a recovery ends it"):
        db.execute(text("UPDATE holds SET cause = 'operator'"))
    assert rewinds.rewound(db)


def test_a_hold_of_another_cause_is_released_as_ever(db: Connection) -> None:
    made = holds.engage(db, HoldScope.GLOBAL, None, actor="op", reason="r")
    rewind(db)
    assert holds.release(db, made.id, actor="op", reason="r").cause is HoldCause.OPERATOR
    with pytest.raises(AlreadyReleased):
        holds.release(db, made.id, actor="op", reason="r")


def test_after_a_rewind_no_delete_and_no_change_is_written(db: Connection) -> None:
    resource = a_resource(db)
    rewind(db)
    with pytest.raises(Rewound), database.statement() as session:
        jobs.enqueue(session, resource, actor="op")
    with pytest.raises(Rewound), database.statement() as session:
        actions.change(session, actions.operator_at_a_shell("op"), resource, {"protected": True})
    assert status_of(db, resource) == "active"


def test_a_teardown_that_had_started_ends_and_its_end_is_recorded(db: Connection) -> None:
    claim = a_claim(db)
    jobs.start(db, claim, worker="w")
    rewind(db)
    jobs.complete(db, claim, worker="w", seen={"database": None})
    assert job(db, claim.id).state == "succeeded"


def test_a_shell_changes_nothing_after_a_rewind_and_says_what_to_do(system: System, db: Connection) -> None:
    stuck, resource = a_stuck_job(db), a_resource(db)
    hold = holds.engage(db, HoldScope.BACKEND, "redis-main", actor="op", reason="r")
    rewind(db)
    for words in (
        ["jobs", "redrive", str(stuck), "--fence", "1", "--reason", "r"],
        ["hold", "release", str(hold.id), "--reason", "r"],
        ["resources", "delete", str(resource), "--reason", "r"],
    ):
        ended = system.cli(*words)
        assert (ended.returncode, "deprovisioner recover" in ended.stderr) == (1, True), ended
    assert (job(db, stuck).state, status_of(db, resource)) == ("stuck", "active")
    assert system.cli("jobs", "list").returncode == 0, "reads are answered"
