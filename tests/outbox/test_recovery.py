"""Recoveries: what a survey finds, what each decision does, and that nothing starts before the end."""

import datetime as dt
import tracemalloc
import uuid
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import Connection, text

from outbox import actions, audit, doctor, jobs, recovery, rewinds, tokens
from outbox import db as database
from outbox.errors import BadRequest, Conflict, DeprovisionerError, DigestMismatch, Rewound
from outbox.events import Event
from outbox.states import Found
from tests.support.factories import a_job, a_resource, a_stuck_job, begun_redrive, claims, events_of, job, status_of
from tests.support.recoveries import (
    EDGE,
    ME,
    Places,
    an_object,
    decided,
    recovered,
    remembering,
    rewind,
    seen_of,
    still_held,
    surveyed,
)
from tests.support.witness import eventually, waits_for_a_lock

PAST, SOON, LATER = (f"now() + interval '{minutes} minutes'" for minutes in (-1, 30, 90))


def one(db: Connection, sql: str, **words: Any) -> Any:
    return db.execute(text(sql), words).scalar_one()


def resource(db: Connection, id: uuid.UUID) -> Any:
    return db.execute(text("SELECT * FROM resources WHERE id = :id"), {"id": id}).one()


def places_of(db: Connection, *there: uuid.UUID, **words: Any) -> Places:
    """Places on which the object of each of these resources is."""
    places = Places(**words)
    places.objects["pg-main"] += [seen_of(db, id) for id in there]
    return places


def decisions_about(db: Connection, chain: uuid.UUID) -> list[Any]:
    """The events by which a recovery decided about a resource; or, in the installation's chain, about the rest."""
    asked = "SELECT actor, reason, detail FROM events WHERE resource_id = :id AND event = 'decided' ORDER BY seq"
    return list(db.execute(text(asked), {"id": chain}).all())


def ill(db: Connection) -> set[str]:
    """The doctor's checks that found something."""
    return {finding.check.code for finding in doctor.examine(db, head=None) if finding.count}


# -- the end --------------------------------------------------------------------------------------------------------


def test_a_recovery_ends_the_rewind_raises_the_epoch_and_writes_it_to_every_place(db: Connection) -> None:
    hold = rewind(db)
    places = Places()
    done = recovered(places, reason="a dump was restored")
    assert (still_held(db), rewinds.here(db, []).epoch) == (False, 2)
    assert {place: (kept.epoch, kept.still) for place, kept in places.memories.items()} == dict.fromkeys(
        ["pg-main", "redis-main", rewinds.BROKER], (2, False)
    )
    asked = "SELECT event, actor, reason, detail FROM events WHERE resource_id = :id ORDER BY seq DESC LIMIT 2"
    released, ended = db.execute(text(asked), {"id": rewinds.here(db, []).installation}).all()
    assert (released.event, released.detail["hold"]) == ("hold_released", hold)
    assert (ended.event, ended.actor, ended.reason) == ("recovered", "cli:op", "a dump was restored")
    assert (ended.detail["recovery"], ended.detail["epoch"]) == (done.survey.id, 2)


def test_a_worker_that_engages_the_hold_while_a_recovery_ends_waits_for_it_and_engages_nothing(db: Connection) -> None:
    rewind(db)
    engaged: list[Future[bool]] = []

    def engage() -> bool:
        with database.statement() as session:
            return rewinds.engage(session, actor="w", reason="pg-main remembers event 9", epoch=1)

    def transact(act: Callable[[Connection], Any]) -> Any:
        with database.transaction() as session:
            answer = act(session)
            if not rewinds.rewound(session):
                engaged.append(worker.submit(engage))
                eventually(lambda: engaged[0].done() or waits_for_a_lock(db))
            return answer

    with ThreadPoolExecutor(1) as worker:
        places, survey = Places(), surveyed(Places())
        wanted = actions.wanted_recovery(survey.digest, [], reason="a dump was restored")
        actions.recover(replace(EDGE, transact=transact), ME, places, lambda _: None, wanted)
        assert [one.result() for one in engaged[:1]] == [False]
    assert not still_held(db)


def test_what_an_older_epoch_has_left_is_no_rewind_after_a_recovery(db: Connection) -> None:
    rewind(db)
    before = remembering(db, (Event.COMPLETED, None, {}))
    assert rewinds.judge(db, rewinds.here(db, ["pg-main"]), {"pg-main": before}).rewound
    recovered(Places(memories={"pg-main": before}))
    assert rewinds.judge(db, rewinds.here(db, ["pg-main"]), {"pg-main": before}).rewound is None


def test_a_database_from_before_an_earlier_recovery_gets_a_later_epoch_than_any_place_remembers(
    db: Connection,
) -> None:
    rewind(db)
    later = replace(remembering(db, (Event.COMPLETED, None, {})), epoch=3)
    places = Places(memories={"redis-main": later})
    recovered(places)
    assert rewinds.here(db, []).epoch == 4
    assert rewinds.judge(db, rewinds.here(db, []), {"redis-main": later}).rewound is None
    assert rewinds.judge(db, rewinds.here(db, []), {"redis-main": places.memories["redis-main"]}).rewound is None


def test_nothing_starts_at_a_backend_that_was_left_out_until_it_is_compared(db: Connection) -> None:
    compared = rewinds.here(db, ["pg-main", "redis-main"])
    rewinds.settle(db, compared, ["pg-main", "redis-main"])
    a_job(db), a_job(db, backend="redis-main")
    rewind(db)
    recovered(Places(away={"redis-main": "no answer"}), teardowns="confirm", without=["redis-main"])
    jobs.start(db, claims(db)[0], worker="w")
    assert claims(db, backend="redis-main") == []
    rewinds.settle(db, rewinds.here(db, ["redis-main"]), ["redis-main"])
    jobs.start(db, claims(db, backend="redis-main")[0], worker="w")


def test_nothing_starts_before_the_end_whatever_was_decided_already(db: Connection) -> None:
    gone, waiting, due = a_resource(db), a_job(db), a_resource(db, expires=PAST)
    rewind(db)
    tried: list[object] = []

    def try_everything() -> None:
        """While the recovery has done every class but the last ones."""
        with database.statement() as other:
            tried.append((jobs.expire(other, actor="w"), still_held(other)))
            for claim in claims(other, 5):
                with pytest.raises(DeprovisionerError):
                    jobs.start(other, claim, worker="w")
            with pytest.raises(Rewound), database.transaction() as session:
                jobs.enqueue(session, due, actor="a")
            with pytest.raises(Rewound), database.transaction() as session:
                actions.change(session, ME, due, changes={"protected": True})

    places = places_of(db, due, before_inspection=try_everything)
    recovered(places, active_gone="confirm", teardowns="confirm", expiries_due="confirm")
    assert tried == [(0, True)]
    assert status_of(db, gone) == "deleted"
    assert "started" not in events_of(db, waiting)
    assert jobs.expire(db, actor="w") == 1


def test_a_recovery_of_a_database_that_is_not_rewound_engages_the_hold_first(db: Connection) -> None:
    a_resource(db)
    held: list[bool] = []
    places = Places(before_inspection=lambda: held.append(still_held(db)))
    places.objects["pg-main"].append(an_object())
    recovered(places, active_gone="confirm", unknown_objects="leave")
    assert held == [True]
    assert not still_held(db)


def test_a_recovery_that_has_ended_ends_once_and_writes_the_places_again(db: Connection) -> None:
    rewind(db)
    places = Places()
    survey = surveyed(places)
    decided(places, survey)
    places.memories.clear()
    decided(places, survey)
    assert rewinds.here(db, []).epoch == 2
    assert one(db, "SELECT count(*) FROM events WHERE event = 'recovered'") == 1
    assert places.memories["pg-main"].epoch == 2


def test_a_place_that_does_not_take_the_new_epoch_is_named(db: Connection) -> None:
    rewind(db)
    places = Places()
    survey = surveyed(places)
    places.away["redis-main"] = "no answer"
    assert decided(places, survey).unwritten == {"redis-main": "no answer"}
    assert not still_held(db)


def test_parked_jobs_are_woken_at_the_end(db: Connection) -> None:
    id = a_job(db)
    hold = rewind(db)
    db.execute(text("UPDATE outbox SET held_by = :hold"), {"hold": hold})
    recovered(Places(), teardowns="confirm")
    assert [claim.id for claim in claims(db)] == [id]


# -- what a person must say -----------------------------------------------------------------------------------------


def test_each_class_with_items_needs_a_decision(db: Connection) -> None:
    a_job(db), a_resource(db, expires=PAST)
    rewind(db)
    places = Places()
    places.objects["pg-main"].append(an_object())
    survey = surveyed(places)
    with pytest.raises(BadRequest, match=r"no decision .*: teardowns, active_gone, unknown_objects"):
        decided(places, survey, expiries_due="leave")
    assert still_held(db)


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"teardown": "leave"}, "no such class"),
        ({"teardowns": "stop"}, "a decision is confirm, cancel, leave"),
        ({"active_gone": "cancel"}, "it takes confirm or leave"),
        ({"without": ["pg-main"]}, "this backend was read"),
    ],
)
def test_a_decision_that_does_not_exist_is_refused(db: Connection, said: dict[str, Any], why: str) -> None:
    rewind(db)
    places = Places()
    survey = surveyed(places)
    with pytest.raises(BadRequest, match=why):
        decided(places, survey, **said)


def test_a_backend_that_cannot_be_read_must_be_named_and_its_objects_are_in_no_class(db: Connection) -> None:
    a_resource(db), a_resource(db, backend="redis-main")
    rewind(db)
    places = Places(away={"redis-main": "no answer"})
    places.objects["pg-main"].append(an_object())
    survey = surveyed(places)
    assert (survey.errors, survey.surveyed) == ({"redis-main": "no answer"}, ["pg-main"])
    assert (survey.counts["active_gone"], survey.counts["unknown_objects"]) == (1, 1)
    with pytest.raises(BadRequest, match=r"'redis-main' could not be read: no answer; .*--without redis-main"):
        decided(places, survey, active_gone="leave", unknown_objects="leave")


def test_a_backend_without_any_object_where_resources_are_active_is_an_error(db: Connection) -> None:
    a_resource(db)
    rewind(db)
    survey = surveyed(Places())
    assert "shows no object of ours, and 1 are active here" in survey.errors["pg-main"]
    assert survey.counts["active_gone"] == 0


def test_a_backend_that_the_backends_file_does_not_have_is_an_error(db: Connection) -> None:
    a_resource(db, backend="pg-old")
    rewind(db)
    assert "not in the backends file" in surveyed(Places()).errors["pg-old"]


def a_row_of_the_object(db: Connection) -> None:
    id = a_resource(db, status="deleted")
    db.execute(text("ALTER TABLE resources DISABLE TRIGGER USER"))
    unknown = one(db, "SELECT generation FROM recovery_objects WHERE resource_id IS NULL")
    db.execute(text("UPDATE resources SET generation = :unknown WHERE id = :id"), {"id": id, "unknown": unknown})
    db.execute(text("ALTER TABLE resources ENABLE TRIGGER USER"))


CHANGES = {
    "a resource's expiry is due": lambda db: a_resource(db, expires=PAST),
    "a job is enqueued": a_job,
    "a job got another fence": lambda db: db.execute(text("UPDATE outbox SET fence = fence + 1")),
    "a job is stuck": lambda db: db.execute(text("UPDATE outbox SET state = 'stuck', stuck_reason = 'refused'")),
    "a resource is active": lambda db: db.execute(
        text("UPDATE resources SET status = 'active', activated_at = '2026-01-01' WHERE status = 'provisioning'")
    ),
    "a resource's row knows the object": a_row_of_the_object,
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_set_that_has_changed_since_the_survey_is_refused(db: Connection, change: str) -> None:
    kept = a_resource(db)
    a_job(db), a_resource(db, status="provisioning")
    places = places_of(db, kept)
    places.objects["pg-main"].append(an_object(str(uuid.uuid4())))
    survey = surveyed(places)
    CHANGES[change](db)
    everything = dict.fromkeys((name for name in survey.counts), "leave")
    with pytest.raises(DigestMismatch, match="this is not what the survey found"):
        decided(places, survey, **everything)
    assert one(db, "SELECT count(*) FROM events WHERE event = 'decided'") == 0


def test_a_survey_of_an_hour_ago_is_refused(db: Connection) -> None:
    rewind(db)
    survey = surveyed(Places())
    db.execute(text("UPDATE recoveries SET created_at = now() - interval '61 minutes'"))
    with pytest.raises(DigestMismatch, match="older than 60 minutes"):
        decided(Places(), survey)


def test_only_the_last_survey_counts(db: Connection) -> None:
    a_job(db)
    first = surveyed(Places())
    db.execute(text("UPDATE outbox SET fence = fence + 1"))
    surveyed(Places())
    with pytest.raises(DigestMismatch, match="not the digest of the last survey"):
        decided(Places(), first)


def test_a_survey_of_another_run_of_the_server_is_refused(db: Connection) -> None:
    rewind(db)
    survey = surveyed(Places())
    db.execute(text("UPDATE recoveries SET incarnation = 'another'"))
    with pytest.raises(Conflict, match="started again, or replaced"):
        decided(Places(), survey)
    assert one(db, "SELECT begun_at FROM recoveries") is None


def test_a_job_that_still_runs_is_waited_for(db: Connection) -> None:
    id = a_job(db, state="running")
    rewind(db)
    survey = surveyed(Places())
    with pytest.raises(Conflict, match=f"job {id} is still running"):
        decided(Places(), survey, teardowns="leave")


def test_of_two_recoveries_at_once_one_is_refused(db: Connection) -> None:
    a_resource(db)
    rewind(db)
    places = Places()
    places.objects["pg-main"].append(an_object())
    refused: list[str] = []

    def again() -> None:
        """A second person, while the first one's recovery inspects."""
        for act in (lambda: surveyed(Places()), lambda: decided(Places(), survey, active_gone="leave")):
            with pytest.raises(Conflict) as raised:
                act()
            refused.append(str(raised.value))

    places.before_inspection = again
    survey = surveyed(places)
    decided(places, survey, active_gone="confirm", unknown_objects="leave")
    assert refused == ["another `deprovisioner recover` is running: wait for its end, then survey again"] * 2
    assert one(db, "SELECT count(*) FROM events WHERE event = 'recovered'") == 1


def test_a_recovery_that_was_stopped_goes_on_with_the_same_decisions_and_no_others(db: Connection) -> None:
    ids = [a_resource(db, expires=PAST) for _ in range(150)]
    a_resource(db)
    rewind(db)
    places = places_of(db, *ids)
    survey = surveyed(places)

    class Stopped(Exception):
        pass

    def stop() -> None:
        raise Stopped

    places.before_inspection = stop
    said = {"expiries_due": "cancel", "active_gone": "confirm"}
    with pytest.raises(Stopped):
        decided(places, survey, **said)
    assert one(db, "SELECT count(*) FROM resources WHERE expires_at IS NULL AND name = 'orders'") == 151
    assert still_held(db)
    places.before_inspection = lambda: None
    with pytest.raises(Conflict, match=r"was begun by cli:op with other decisions .*--decide active_gone=confirm"):
        decided(places, survey, expiries_due="cancel", active_gone="leave")
    decided(places, survey, **said)
    assert not still_held(db)
    assert one(db, "SELECT count(*) FROM events WHERE event = 'decided'") == 151, "each item is decided once"
    assert one(db, "SELECT count(*) FROM events WHERE event = 'changed'") == 150


def test_a_recovery_does_not_end_while_items_wait(db: Connection) -> None:
    a_job(db)
    rewind(db)
    survey = surveyed(Places())
    wanted = actions.wanted_recovery(survey.digest, [("teardowns", "confirm")], reason="r")
    with database.transaction() as session:
        begun = recovery.begin(session, wanted, actor="op")
    with pytest.raises(Conflict, match="is not done: 1 of teardowns"), database.transaction() as session:
        recovery.finish(session, begun.id)
    assert still_held(db)


# -- expiries -------------------------------------------------------------------------------------------------------


def test_expiries_that_are_confirmed_expire_and_later_ones_are_no_matter_of_a_recovery(db: Connection) -> None:
    due, soon, later, kept = (a_resource(db, expires=at) for at in (PAST, SOON, LATER, "NULL"))
    a_resource(db, expires=PAST, protected=True)
    rewind(db)
    places = places_of(db, due, soon, later, kept)
    places.objects["pg-main"] += [
        seen_of(db, id) for id in db.execute(text("SELECT id FROM resources WHERE protected")).scalars()
    ]
    survey = surveyed(places)
    assert {item["resource_id"] for item in survey.samples["expiries_due"]} == {due, soon}
    decided(places, survey, expiries_due="confirm")
    assert jobs.expire(db, actor="w") == 1
    assert (status_of(db, due), status_of(db, soon)) == ("deleting", "active")
    (event,) = decisions_about(db, soon)
    assert (event.actor, event.reason) == ("cli:op", "restored")
    assert (event.detail["class"], event.detail["decision"], event.detail["recovery"]) == (
        "expiries_due",
        "confirm",
        survey.id,
    )


@pytest.mark.parametrize(("decision", "expires", "protected"), [("cancel", False, False), ("leave", True, True)])
def test_expiries_that_are_cancelled_or_left_do_not_expire(
    db: Connection, decision: str, expires: bool, protected: bool
) -> None:
    ids = [a_resource(db, expires=at) for at in (PAST, SOON)]
    rewind(db)
    recovered(places_of(db, *ids), expiries_due=decision)
    assert jobs.expire(db, actor="w") == 0
    for id in ids:
        assert (resource(db, id).expires_at is not None, resource(db, id).protected) == (expires, protected)
        assert decisions_about(db, id)[0].detail["decision"] == decision


# -- jobs -----------------------------------------------------------------------------------------------------------

JOBS: dict[str, dict[str, Any]] = {
    "pending": {},
    "waiting": {"step": "wait"},
    "quarantined": {"step": "snapshot", "started": False},
    "running with a dead lease": {"state": "running", "attempts": 1, "lease": "-1 s", "step": "quarantine"},
}


@pytest.mark.parametrize("kind", JOBS)
def test_teardowns_that_are_confirmed_go_on(db: Connection, kind: str) -> None:
    id = a_job(db, **JOBS[kind])
    before = job(db, id)
    rewind(db)
    recovered(Places(), teardowns="confirm")
    assert job(db, id) == before
    assert decisions_about(db, before.resource_id)[0].detail["decision"] == "confirm"


@pytest.mark.parametrize("kind", JOBS)
def test_teardowns_that_are_cancelled_are_taken_back_and_their_resources_restored(db: Connection, kind: str) -> None:
    id = a_job(db, **JOBS[kind])
    rewind(db)
    recovered(Places(), teardowns="cancel")
    assert (job(db, id).state, status_of(db, job(db, id).resource_id)) == ("cancelled", "restoring")
    assert events_of(db, id)[-1] == "cancelled"
    restore = claims(db)[0]
    assert restore.kind == "restore"
    jobs.start(db, restore, worker="w")


@pytest.mark.parametrize("kind", JOBS)
def test_teardowns_that_are_left_are_set_aside_as_stuck_with_the_recovery_named(db: Connection, kind: str) -> None:
    id = a_job(db, **JOBS[kind])
    rewind(db)
    done = recovered(Places(), teardowns="leave")
    now = job(db, id)
    assert (now.state, now.stuck_reason) == ("stuck", "refused")
    assert now.last_error == f"set aside by recovery {done.survey.id}: restored"
    assert (status_of(db, now.resource_id), claims(db)) == ("deleting", [])
    jobs.redrive(db, id, fence=now.fence, actor="op", reason="it may go")
    jobs.start(db, claims(db)[0], worker="w")


def test_a_teardown_whose_destruction_had_started_cannot_be_cancelled_and_is_set_aside(db: Connection) -> None:
    id = a_job(db, state="running", attempts=1, lease="-1 s", step="destroy", started=True)
    never = a_job(db)
    db.execute(
        text("UPDATE resources SET activated_at = NULL WHERE id = (SELECT resource_id FROM outbox WHERE id = :id)"),
        {"id": never},
    )
    rewind(db)
    done = recovered(Places(), teardowns="cancel")
    assert [job(db, one).state for one in (id, never)] == ["stuck", "stuck"]
    assert done.survey.refused == {"teardowns": 2}
    assert {item["job_id"] for item in done.refused} == {id, never}
    assert all("set aside" in item["said"] for item in done.refused)


@pytest.mark.parametrize(("decision", "state"), [("confirm", "stuck"), ("cancel", "cancelled"), ("leave", "stuck")])
def test_stuck_teardowns_stay_stuck_or_are_taken_back(db: Connection, decision: str, state: str) -> None:
    id = a_stuck_job(db, step="wait")
    rewind(db)
    recovered(Places(), teardowns_stuck=decision)
    assert job(db, id).state == state
    assert status_of(db, job(db, id).resource_id) == ("restoring" if state == "cancelled" else "deleting")


@pytest.mark.parametrize(
    ("decision", "state", "status"),
    [("confirm", "pending", "provisioning"), ("cancel", "pending", "deleting"), ("leave", "stuck", "provisioning")],
)
def test_provisions_go_on_are_rolled_back_or_set_aside(db: Connection, decision: str, state: str, status: str) -> None:
    id = a_job(db, kind="provision")
    rewind(db)
    recovered(Places(), provisions=decision)
    assert (job(db, id).state, status_of(db, job(db, id).resource_id)) == (state, status)


def test_a_provision_whose_object_is_there_is_not_rolled_back(db: Connection) -> None:
    id = a_job(db, kind="provision")
    rewind(db)
    done = recovered(places_of(db, job(db, id).resource_id), provisions="cancel")
    assert (job(db, id).state, status_of(db, job(db, id).resource_id)) == ("stuck", "provisioning")
    assert "its object is there" in done.refused[0]["said"]


def test_a_provision_at_a_backend_that_was_not_read_is_not_rolled_back(db: Connection) -> None:
    id = a_job(db, kind="provision")
    rewind(db)
    recovered(Places(away={"pg-main": "no answer"}), provisions="cancel", without=["pg-main"])
    assert (job(db, id).state, status_of(db, job(db, id).resource_id)) == ("stuck", "provisioning")


@pytest.mark.parametrize(
    ("decision", "state", "status"),
    [("confirm", "pending", "restoring"), ("cancel", "cancelled", "deleting"), ("leave", "stuck", "restoring")],
)
def test_restores_go_on_are_abandoned_or_set_aside(db: Connection, decision: str, state: str, status: str) -> None:
    id = a_job(db, kind="restore")
    rewind(db)
    recovered(Places(), restores=decision)
    assert (job(db, id).state, status_of(db, job(db, id).resource_id)) == (state, status)


def test_a_restore_that_cannot_be_abandoned_is_set_aside(db: Connection) -> None:
    id = a_job(db, kind="restore")
    db.execute(text("UPDATE resources SET protected = true"))
    rewind(db)
    done = recovered(Places(), restores="cancel")
    assert job(db, id).state == "stuck"
    assert done.survey.refused == {"restores": 1}


@pytest.mark.parametrize(("decision", "state"), [("confirm", "running"), ("cancel", "stopped"), ("leave", "stopped")])
def test_operations_go_on_or_are_stopped(db: Connection, decision: str, state: str) -> None:
    a_stuck_job(db)
    operation = begun_redrive()
    rewind(db)
    recovered(Places(), teardowns_stuck="leave", operations=decision)
    assert one(db, "SELECT state FROM operations WHERE id = :id", id=operation.id) == state


# -- what the memories know -----------------------------------------------------------------------------------------

FORGOTTEN = ("cancel", "leave")


def remembered(db: Connection, *notes: Any, objects: tuple[uuid.UUID, ...] = ()) -> Places:
    places = places_of(db, *objects)
    places.memories["pg-main"] = remembering(db, *notes)
    rewind(db)
    return places


@pytest.mark.parametrize("decision", ["confirm", *FORGOTTEN])
def test_lost_holds_are_engaged_again_or_forgotten(db: Connection, decision: str) -> None:
    a_resource(db, status="deleted")

    def hold(number: int, subject: str = "acme") -> dict[str, Any]:
        return {"hold": number, "scope": "tenant", "subject": subject, "cause": "operator"}

    places = remembered(
        db,
        (Event.HOLD_ENGAGED, None, hold(7)),
        (Event.HOLD_ENGAGED, None, hold(8)),
        (Event.HOLD_RELEASED, None, hold(8)),
        (Event.HOLD_ENGAGED, None, {"hold": 9, "scope": "global", "subject": None, "cause": "rewound"}),
    )
    done = recovered(places, lost_holds=decision)
    assert done.survey.counts["lost_holds"] == 1
    asked = "SELECT subject, reason, actor FROM holds WHERE cause = 'operator' AND released_at IS NULL"
    found = [tuple(row) for row in db.execute(text(asked))]
    again = ("acme", f"recovery {done.survey.id}: restored (it was hold 7)", "cli:op")
    assert found == ([again] if decision == "confirm" else [])
    (event,) = decisions_about(db, rewinds.here(db, []).installation)
    assert (event.detail["decision"], event.detail["item"]["hold"]) == (decision, 7)


def test_a_lost_hold_on_what_is_not_here_is_refused_and_named(db: Connection) -> None:
    places = remembered(
        db, (Event.HOLD_ENGAGED, None, {"hold": 7, "scope": "tenant", "subject": "newco", "cause": "operator"})
    )
    done = recovered(places, lost_holds="confirm")
    assert "there is no tenant 'newco' here yet" in done.refused[0]["said"]
    assert not still_held(db)


@pytest.mark.parametrize("decision", ["confirm", *FORGOTTEN])
def test_lost_revocations_are_done_again_or_forgotten(db: Connection, decision: str) -> None:
    token, secret = tokens.create(db, role="operator", tenant=None, name="leaked", actor="op")
    other, _ = tokens.create(db, role="operator", tenant=None, name="another", actor="op")
    told = [{"token": token.id, "name": "leaked"}, {"token": other.id, "name": "of the other future"}]
    places = remembered(db, *((Event.TOKEN_REVOKED, None, one) for one in told))
    recovered(places, lost_revocations=decision)
    assert (tokens.find(db, secret) is None) == (decision == "confirm")
    assert one(db, "SELECT revoked_at IS NULL FROM tokens WHERE id = :id", id=other.id)


@pytest.mark.parametrize("decision", ["confirm", *FORGOTTEN])
def test_lost_protections_are_set_again_or_forgotten(db: Connection, decision: str) -> None:
    id, untouched = a_resource(db), a_resource(db)
    places = remembered(
        db,
        (Event.CHANGED, id, {"old": {"protected": True}, "new": {"protected": False}}),
        (Event.CHANGED, id, {"old": {"protected": False}, "new": {"protected": True, "grace_seconds": 60}}),
        (Event.CHANGED, untouched, {"old": {"protected": True}, "new": {"protected": False}}),
        objects=(id, untouched),
    )
    done = recovered(places, lost_protections=decision)
    assert done.survey.counts["lost_protections"] == 1
    expected = (True, 60) if decision == "confirm" else (False, None)
    assert (resource(db, id).protected, resource(db, id).grace_seconds) == expected


@pytest.mark.parametrize("decision", ["confirm", *FORGOTTEN])
def test_lost_expiries_are_lifted_again_or_forgotten(db: Connection, decision: str) -> None:
    id = a_resource(db, expires=LATER)
    change = (Event.CHANGED, id, {"old": {"expires_at": "2026-01-01T00:00:00+00:00"}, "new": {"expires_at": None}})
    recovered(remembered(db, change, objects=(id,)), lost_expiries=decision)
    assert (resource(db, id).expires_at is None) == (decision == "confirm")


def test_what_was_done_since_is_said_beside_the_item(db: Connection) -> None:
    id = a_job(db)
    places = remembered(db, (Event.ENQUEUED, job(db, id).resource_id, {"request_id": "r"}))
    (item,) = surveyed(places).samples["teardowns"]
    assert item["detail"]["since"]["what"] == "enqueued"


def test_a_note_of_an_event_that_this_database_has_is_no_finding(db: Connection) -> None:
    id = a_resource(db)
    with database.transaction() as session:
        actions.change(session, ME, id, changes={"protected": True})
    kept = rewinds.here(db, []).memory()
    notes = rewinds.notes(db)
    with database.transaction() as session:
        actions.change(session, ME, id, changes={"protected": False})
    rewind(db)
    places = places_of(
        db, id, memories={"pg-main": rewinds.Memory(kept.installation, 1, kept.event, kept.hash, False, notes)}
    )
    assert surveyed(places).counts["lost_protections"] == 0
    lost = replace(notes[0], event=10**6)
    places.memories["pg-main"] = replace(places.memories["pg-main"], notes=(*notes, lost))
    assert surveyed(places).counts["lost_protections"] == 1, "the same note, of an event that is not here"


def test_what_a_recovery_decides_crowds_no_act_out_of_the_memories(db: Connection) -> None:
    tokens.create(db, role="operator", tenant=None, name="n", actor="op")
    ids = [a_resource(db, status="provisioning", expires=PAST) for _ in range(rewinds.ACTS + 10)]
    rewind(db)
    recovered(Places(), expiries_due="confirm")
    noted = [note.what for note in rewinds.notes(db)]
    assert len(decisions_about(db, ids[0])) == 1
    assert "decided" not in noted
    assert {"token_created", "rewound", "recovered"} <= set(noted)


# -- objects --------------------------------------------------------------------------------------------------------


def test_unknown_objects_are_adopted_again_with_their_mark_and_the_id_that_they_had(db: Connection) -> None:
    id = uuid.uuid4()
    seen = an_object(resource_id=id)
    told = {"tenant": "acme", "kind": "postgres", "backend": "pg-main", "name": "made since"}
    places = remembered(db, ("registered", id, told))
    places.objects["pg-main"].append(seen)
    recovered(places, unknown_objects="confirm")
    made = resource(db, id)
    assert (made.tenant, made.name, str(made.generation), made.adopted) == ("acme", "made since", seen.mark, True)
    claim = claims(db)[0]
    assert (claim.kind, claim.resource_id, claim.manifest["database"]) == ("provision", id, seen.names["database"])
    assert decisions_about(db, id)[0].detail["class"] == "unknown_objects"


def test_an_object_that_was_itself_adopted_since_is_known_by_its_generation(db: Connection) -> None:
    seen, id = an_object(), uuid.uuid4()
    told = {"tenant": "acme", "kind": "postgres", "backend": "pg-main", "name": "theirs", "generation": seen.mark}
    places = remembered(db, ("registered", id, told))
    places.objects["pg-main"].append(seen)
    recovered(places, unknown_objects="confirm")
    assert (resource(db, id).name, str(resource(db, id).generation)) == ("theirs", seen.mark)


def test_the_note_of_a_create_has_the_generation_of_an_adopted_object_alone(db: Connection) -> None:
    a_resource(db)
    manifest = {"database": "theirs", "generation": str(uuid.uuid4())}
    actions.create(EDGE, ME, actions.NewResource("acme", "postgres", "pg-main", "adopted", manifest=manifest))
    actions.create(EDGE, ME, actions.NewResource("acme", "postgres", "pg-main", "made"))
    told = {
        note.detail["name"]: note.detail.get("generation") for note in rewinds.notes(db) if note.what == "registered"
    }
    assert told == {"adopted": manifest["generation"], "made": None}


def test_unknown_objects_that_no_note_names_need_a_tenant(db: Connection) -> None:
    rewind(db)
    places = Places()
    places.objects["pg-main"] += [an_object(), an_object(why="it is in quarantine", quarantined=True)]
    survey = surveyed(places)
    with pytest.raises(BadRequest, match="the tenant of 1 unknown objects"):
        decided(places, survey, unknown_objects="confirm")
    done = decided(places, survey, unknown_objects="confirm", tenant="acme")
    assert one(db, "SELECT count(*) FROM resources WHERE tenant = 'acme' AND adopted") == 1
    assert "it is in quarantine" in done.refused[0]["said"]


def test_unknown_objects_that_are_left_have_no_row(db: Connection) -> None:
    rewind(db)
    places = Places()
    places.objects["pg-main"].append(an_object("not a uuid"))
    recovered(places, unknown_objects="leave")
    assert one(db, "SELECT count(*) FROM resources") == 0


def test_where_other_installations_use_the_backend_only_objects_that_notes_name_are_offered(db: Connection) -> None:
    ours = uuid.uuid4()
    places = remembered(
        db, ("registered", ours, {"tenant": "acme", "kind": "postgres", "backend": "pg-main", "name": "n"})
    )
    places.shared.add("pg-main")
    places.objects["pg-main"] += [an_object(resource_id=ours), an_object(resource_id=uuid.uuid4())]
    survey = surveyed(places)
    assert [item["resource_id"] for item in survey.samples["unknown_objects"]] == [ours]


def test_active_resources_that_are_gone_are_closed_with_the_evidence_of_an_inspection(db: Connection) -> None:
    gone, kept = a_resource(db), a_resource(db)
    before = ill(db)
    rewind(db)
    places = places_of(db, kept)
    done = recovered(places, active_gone="confirm")
    assert (status_of(db, gone), status_of(db, kept)) == ("deleted", "active")
    (id,) = db.execute(text("SELECT id FROM outbox WHERE resource_id = :id"), {"id": gone}).scalars()
    assert events_of(db, id) == ["enqueued", "resolved"]
    asked = "SELECT actor, reason, detail FROM events WHERE job_id = :id AND event = 'resolved'"
    ended = db.execute(text(asked), {"id": id}).one()
    assert (ended.actor, ended.reason) == ("cli:op", f"recovery {done.survey.id}: restored")
    assert ended.detail["seen"] == {"looked": "pg-main"}
    assert ill(db) <= before
    (proof,) = audit.proofs(dt.timedelta(hours=1), gone)
    assert (proof.asked and proof.asked.actor, proof.ended and proof.ended.event) == ("cli:op", "resolved")
    assert proof.chain.verified


@pytest.mark.parametrize("found", [Found.SAME, Found.DIFFERENT, Found.UNAVAILABLE])
def test_an_active_resource_whose_absence_an_inspection_does_not_show_stays(db: Connection, found: Found) -> None:
    gone, kept = a_resource(db), a_resource(db)
    rewind(db)
    places = places_of(db, kept, found={str(resource(db, gone).generation): found})
    done = recovered(places, active_gone="confirm")
    assert status_of(db, gone) == "active"
    assert f"an inspection found it {found}" in done.refused[0]["said"]


def test_active_resources_that_are_left_are_neither_inspected_nor_closed(db: Connection) -> None:
    gone, kept = a_resource(db), a_resource(db)
    rewind(db)
    places = places_of(db, kept)
    recovered(places, active_gone="leave")
    assert (status_of(db, gone), places.inspected) == ("active", [])


def test_an_active_resource_with_another_object_or_one_in_quarantine_is_shown(db: Connection) -> None:
    other, shut = a_resource(db), a_resource(db)
    rewind(db)
    places = Places()
    names = resource(db, other).manifest | {"database": "another"}
    places.objects["pg-main"] = [seen_of(db, other, names=names), seen_of(db, shut, quarantined=True)]
    found = {item["resource_id"]: item["detail"]["found"] for item in surveyed(places).samples["active_gone"]}
    assert found == {other: "different", shut: "in quarantine"}


def test_what_is_deleted_here_and_there_again_becomes_a_new_resource(db: Connection) -> None:
    old = a_resource(db, status="deleted")
    rewind(db)
    recovered(places_of(db, old), deleted_there="confirm")
    new = db.execute(text("SELECT * FROM resources WHERE status = 'provisioning'")).one()
    assert (new.generation, new.tenant, new.adopted) == (resource(db, old).generation, "acme", True)
    assert (new.id != old, status_of(db, old)) == (True, "deleted")
    assert claims(db)[0].resource_id == new.id


def test_what_is_deleted_here_and_there_again_stays_when_it_is_left(db: Connection) -> None:
    old = a_resource(db, status="deleted")
    rewind(db)
    recovered(places_of(db, old), deleted_there="leave")
    assert one(db, "SELECT count(*) FROM resources") == 1
    assert decisions_about(db, old)[0].detail["decision"] == "leave"


def test_an_object_is_adopted_again_by_a_recovery_alone(db: Connection) -> None:
    old = resource(db, a_resource(db, status="deleted"))
    new = actions.NewResource("acme", "postgres", "pg-main", "n", manifest=old.manifest)
    with pytest.raises(DeprovisionerError, match="another resource's"):
        actions.create(EDGE, ME, new)


# -- tokens ---------------------------------------------------------------------------------------------------------


def test_all_tokens_from_before_a_moment_are_revoked_and_later_ones_stay(db: Connection) -> None:
    made = [tokens.create(db, role="operator", tenant=None, name=f"t{n}", actor="op")[1] for n in range(120)]
    moment = one(db, "SELECT clock_timestamp()")
    later = tokens.create(db, role="operator", tenant=None, name="later", actor="op")[1]
    rewind(db)
    recovered(Places(), revoke_before=moment)
    assert [secret for secret in made if tokens.find(db, secret)] == []
    assert tokens.find(db, later)
    assert one(db, "SELECT count(*) FROM events WHERE event = 'token_revoked'") == 120


# -- a backend that went back in time -------------------------------------------------------------------------------


def went_back(db: Connection) -> None:
    here = rewinds.here(db, ["pg-main", "redis-main"])
    rewinds.settle(db, here, ["pg-main", "redis-main"])
    rewinds.went_back(db, "pg-main", "it remembers nothing")


def test_a_backend_that_went_back_is_compared_alone_and_starts_again(db: Connection) -> None:
    gone, kept, old = a_resource(db), a_resource(db), a_resource(db, status="deleted")
    a_resource(db, backend="redis-main"), a_resource(db, expires=PAST)
    waiting = a_job(db)
    went_back(db)
    assert claims(db) == []
    places = places_of(db, kept, old)
    del places.objects["redis-main"]
    survey = surveyed(places, backend="pg-main")
    assert set(survey.counts) == {"active_gone", "deleted_there"}
    decided(places, survey, active_gone="confirm", deleted_there="leave")
    assert (status_of(db, gone), status_of(db, kept)) == ("deleted", "active")
    assert rewinds.here(db, []).epoch == 1
    assert one(db, "SELECT count(*) FROM breakers") == 0
    assert one(db, "SELECT behind_since IS NULL FROM memories WHERE place = 'pg-main'")
    assert places.memories["pg-main"].event == rewinds.here(db, []).event
    jobs.start(db, claims(db)[0], worker="w")
    assert "started" in events_of(db, waiting)
    told = one(db, "SELECT detail FROM events WHERE event = 'recovered'")
    assert (told["backend"], told["epoch"]) == ("pg-main", 1)


def test_a_backend_is_not_recovered_alone_while_the_database_itself_is_rewound(db: Connection) -> None:
    went_back(db)
    places = Places(objects={"pg-main": []})
    survey = surveyed(places, backend="pg-main")
    rewind(db)
    with pytest.raises(Conflict, match="without --backend first"):
        decided(places, survey)


def test_a_recovery_of_everything_ends_what_was_found_of_a_backend_too(db: Connection) -> None:
    went_back(db)
    rewind(db)
    recovered(Places())
    assert one(db, "SELECT count(*) FROM breakers") == 0
    a_job(db)
    jobs.start(db, claims(db)[0], worker="w")


# -- an announced restore -------------------------------------------------------------------------------------------


def test_an_announced_restore_holds_everything_and_tells_every_place(db: Connection) -> None:
    a_job(db)
    places = Places()
    untold = actions.announce(EDGE, ME, places, lambda _: None, reason="moving to a new server")
    assert untold == {}
    assert all(memory.still for memory in places.memories.values())
    assert still_held(db)
    assert rewinds.judge(db, rewinds.here(db, []), {"pg-main": places.memories["pg-main"]}).rewound
    assert one(db, "SELECT reason FROM events WHERE event = 'announced'") == "moving to a new server"
    recovered(places, teardowns="confirm")
    assert not any(memory.still for memory in places.memories.values())
    assert one(db, "SELECT announced_at FROM installation") is None


def test_the_state_tells_of_the_rewind_and_the_last_survey(db: Connection) -> None:
    rewind(db)
    surveyed(Places())
    with database.snapshot() as session:
        now = actions.rewind(session, ME)
    assert (now.rewound, now.reason, now.epoch) == (True, "pg-main remembers event 9", 1)
    assert now.survey
    assert now.survey.finished_at is None


# -- size -----------------------------------------------------------------------------------------------------------


@pytest.mark.proof
def test_ten_thousand_items_are_worked_off_in_bounded_memory(db: Connection) -> None:
    db.execute(
        text("""
        WITH made AS (
            INSERT INTO resources (id, tenant, kind, backend, name, status, generation, activated_at, deleted_at)
            SELECT gen_random_uuid(), 'acme', 'postgres', 'pg-main', 'r', 'deleting', gen_random_uuid(), now(), now()
              FROM generate_series(1, 10000) RETURNING id)
        INSERT INTO outbox (kind, resource_id, backend, max_attempts, request_id)
        SELECT 'deprovision', id, 'pg-main', 10, gen_random_uuid() FROM made""")
    )
    places = Places()
    places.objects["pg-main"] += [an_object() for _ in range(10_000)]
    rewind(db)
    tracemalloc.start()
    try:
        survey = surveyed(places)
        done = decided(places, survey, teardowns="leave", unknown_objects="leave")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert survey.counts | {"teardowns": 10_000, "unknown_objects": 10_000} == survey.counts
    assert one(db, "SELECT count(*) FROM outbox WHERE state = 'stuck'") == 10_000
    assert done.survey.refused == {}
    assert peak < 10_000_000, f"{peak} bytes"
