"""Acts that are no job's: each is one event in its chain, and an act that failed is none."""

import datetime as dt
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import Connection, text

from outbox import acts, audit, holds, jobs, operations, resources, tokens
from outbox import db as database
from outbox.audit import LINKS
from outbox.errors import (
    AlreadyFinished,
    AlreadyReleased,
    AlreadyRunning,
    BadRequest,
    BrakeHit,
    DigestMismatch,
    NotActive,
    NotFound,
    VersionMismatch,
)
from outbox.events import Event
from outbox.settings import Brake
from outbox.states import HoldScope
from tests.support import bulk
from tests.support.factories import a_claim, a_resource, begun_redrive, stuck_jobs
from tests.support.witness import eventually, waits_for_a_lock

Act = Callable[[], object]


def told(db: Connection) -> list[Any]:
    """Every event without a job, oldest first."""
    asked = "SELECT resource_id, event, actor, reason, detail, fence FROM events WHERE job_id IS NULL ORDER BY id"
    return list(db.execute(text(asked)))


def words(db: Connection) -> list[str]:
    return [row.event for row in told(db)]


def installation(db: Connection) -> uuid.UUID | None:
    return db.execute(text("SELECT id FROM installation")).scalar_one_or_none()


def whole(db: Connection) -> bool:
    """Whether each event follows from the one before it in its chain."""
    links = f"SELECT count(*) FROM ({LINKS.format(which='')}) AS link WHERE NOT holds"
    return db.execute(text(links)).scalar_one() == 0


def hold(db: Connection, reason: str = "night") -> holds.Hold:
    return holds.engage(db, HoldScope.GLOBAL, None, actor="op", reason=reason)


# -- each act is one event -------------------------------------------------------------------------------------------


def test_a_hold_and_its_release_are_two_events_of_the_installation(db: Connection) -> None:
    a_resource(db)
    assert installation(db) is None
    made = holds.engage(db, HoldScope.BACKEND, "pg-main", actor="ann", reason="night")
    holds.release(db, made.id, actor="bob", reason="day")
    here, which = installation(db), {"hold": made.id, "scope": "backend", "subject": "pg-main", "cause": "operator"}
    assert told(db) == [
        (here, "hold_engaged", "ann", "night", which, 0),
        (here, "hold_released", "bob", "day", which, 0),
    ]
    assert whole(db)


def test_a_brake_s_hold_is_one_event_however_many_workers_hit_the_brake(db: Connection) -> None:
    hit = _hit(db)
    for worker in ("w1", "w2", "w3"):
        engaged = holds.engage_brake(db, hit, actor=worker)
    assert engaged is not None
    assert words(db) == ["hold_engaged"]
    (only,) = told(db)
    assert (only.event, only.actor, only.reason) == ("hold_engaged", "w1", str(hit))
    assert only.detail == {"hold": engaged[0].id, "scope": "backend", "subject": "pg-main", "cause": "brake"}
    holds.release(db, engaged[0].id, actor="op", reason="meant")
    assert holds.engage_brake(db, hit, actor="w1") is None
    assert words(db) == ["hold_engaged", "hold_released"]


def _hit(db: Connection) -> BrakeHit:
    brake = Brake("backend", "pg-main", limit=1, window=dt.timedelta(minutes=10))
    with database.transaction() as session:
        jobs.start(session, a_claim(db), worker="w", under=[brake])
    with pytest.raises(BrakeHit) as hit, database.transaction() as session:
        jobs.start(session, a_claim(db), worker="w", under=[brake])
    return hit.value


def test_a_token_s_events_have_its_name_and_never_its_secret(db: Connection) -> None:
    made, secret = tokens.create(db, actor="cli:ann", role="tenant", tenant="acme", name="ci", reason="new pipeline")
    tokens.revoke(db, made.id, actor="cli:bob")
    here, which = installation(db), {"token": made.id, "name": "ci", "role": "tenant", "tenant": "acme"}
    assert told(db) == [
        (here, "token_created", "cli:ann", "new pipeline", which, 0),
        (here, "token_revoked", "cli:bob", None, which, 0),
    ]
    digest = db.execute(text("SELECT encode(digest, 'hex') FROM tokens")).scalar_one()
    everything = str(db.execute(text("SELECT * FROM events")).all())
    assert (secret in everything, digest in everything) == (False, False)


def test_a_token_that_is_revoked_again_stays_as_it_is_without_an_event(db: Connection) -> None:
    made, _ = tokens.create(db, actor="op", role="operator", tenant=None, name="ann")
    first = tokens.revoke(db, made.id, actor="op")
    assert tokens.revoke(db, made.id, actor="other") == first
    with ThreadPoolExecutor(1) as pool, database.transaction() as revoking:
        other, _ = tokens.create(db, actor="op", role="operator", tenant=None, name="bob")
        tokens.revoke(revoking, other.id, actor="first")
        second = pool.submit(_alone, lambda session: tokens.revoke(session, other.id, actor="second"))
        eventually(lambda: waits_for_a_lock(db), what="the second waits for the first")
        revoking.commit()
        assert second.result(20).revoked_at is not None
    assert words(db) == ["token_created", "token_revoked", "token_created", "token_revoked"]
    assert told(db)[-1].actor == "first"


def _alone(act: Callable[[Connection], Any]) -> Any:
    with database.statement() as session:
        return act(session)


@pytest.mark.parametrize(
    ("changes", "old", "new"),
    [
        ({"protected": True}, {"protected": False}, {"protected": True}),
        (
            {"expires_at": dt.datetime(2999, 1, 1, tzinfo=dt.UTC), "grace_seconds": 60},
            {"expires_at": None, "grace_seconds": None},
            {"expires_at": "2999-01-01T00:00:00+00:00", "grace_seconds": 60},
        ),
        ({"snapshot": "required", "protected": False}, {"snapshot": None}, {"snapshot": "required"}),
    ],
)
def test_a_change_is_an_event_of_its_resource_with_what_was_and_what_is(
    db: Connection, changes: dict[str, Any], old: dict[str, Any], new: dict[str, Any]
) -> None:
    resource = a_resource(db)
    resources.change(db, resource, changes=changes, actor="token:1:ci")
    assert told(db) == [(resource, "changed", "token:1:ci", None, {"old": old, "new": new}, 0)]
    resources.change(db, resource, changes=changes, actor="token:1:ci")
    assert words(db) == ["changed"], "nothing differs"
    assert installation(db) is None
    back = dict.fromkeys(changes) if "protected" not in old else {"protected": False}
    resources.change(db, resource, changes=back, actor="token:1:ci")
    assert told(db)[-1].detail == {"old": new, "new": old}
    assert whole(db)


def test_a_change_that_waited_for_another_tells_what_the_other_left(db: Connection) -> None:
    resource = a_resource(db)
    with ThreadPoolExecutor(1) as pool, database.transaction() as first:
        resources.change(first, resource, changes={"grace_seconds": 60}, actor="first")
        second = pool.submit(
            _alone, lambda session: resources.change(session, resource, changes={"grace_seconds": 90}, actor="second")
        )
        eventually(lambda: waits_for_a_lock(db), what="the second waits for the first")
        first.commit()
        assert second.result(20).grace_seconds == 90
    grace = [(row.detail["old"]["grace_seconds"], row.detail["new"]["grace_seconds"]) for row in told(db)]
    assert grace == [(None, 60), (60, 90)]


def test_an_operation_s_begin_and_stop_are_two_events_of_the_installation(db: Connection) -> None:
    stuck_jobs(db, "pg-main", "pg-main")
    begun = begun_redrive(actor="ann", reason="mended")
    operations.stop(db, begun.id, actor="bob", reason="wrong filter")
    here, which = installation(db), {"operation": begun.id, "kind": "redrive", "total": 2}
    assert told(db) == [
        (here, "operation_begun", "ann", "mended", which, 0),
        (here, "operation_stopped", "bob", "wrong filter", which | {"left_alone": 2}, 0),
    ]
    a_resource(db, tenant="globex")
    offboarding = bulk.offboard("globex", expected_count=1)
    assert told(db)[-1].detail == {"operation": offboarding.id, "kind": "offboard", "total": 1}


def test_an_act_without_a_statement_of_its_own_is_noted_in_its_transaction(db: Connection) -> None:
    with database.transaction() as session:
        id = acts.note(session, Event.ANNOUNCED, actor="cli:ann", reason="a drill", detail={"until": None})
    assert told(db) == [(installation(db), "announced", "cli:ann", "a drill", {"until": None}, 0)]
    assert db.execute(text("SELECT id FROM events")).scalar_one() == id


# -- an act that failed is none --------------------------------------------------------------------------------------


def test_an_act_that_is_refused_writes_no_event_and_no_identity(db: Connection) -> None:
    resource, gone = a_resource(db), a_resource(db, status="deleting")
    past = dt.datetime(2001, 1, 1, tzinfo=dt.UTC)
    refused: list[tuple[type[Exception], Act]] = [
        (BadRequest, lambda: holds.engage(db, HoldScope.BACKEND, "pg-typo", actor="op", reason="r")),
        (NotFound, lambda: holds.release(db, 9, actor="op", reason="r")),
        (BadRequest, lambda: tokens.create(db, actor="op", role="operator", tenant="acme", name="x")),
        (NotFound, lambda: tokens.revoke(db, 9, actor="op")),
        (VersionMismatch, lambda: _change(db, resource, {"protected": True}, version=7)),
        (BadRequest, lambda: _change(db, resource, {"expires_at": past})),
        (NotActive, lambda: _change(db, gone, {"protected": True})),
        (NotFound, lambda: _change(db, resource, {"protected": True}, tenant="globex")),
        (DigestMismatch, lambda: begun_redrive(digest=f"1-{'0' * 64}")),
        (DigestMismatch, lambda: bulk.offboard("acme", expected_count=7)),
        (NotFound, lambda: operations.stop(db, 9, actor="op", reason="r")),
    ]
    for error, act in refused:
        with pytest.raises(error):
            act()
    assert (told(db), installation(db)) == ([], None)


def _change(db: Connection, resource: uuid.UUID, changes: dict[str, Any], **more: Any) -> Any:
    return resources.change(db, resource, changes=changes, actor="op", **more)


def test_an_act_that_was_done_before_writes_no_second_event(db: Connection) -> None:
    made = hold(db)
    holds.release(db, made.id, actor="op", reason="day")
    stuck_jobs(db)
    begun = begun_redrive()
    with pytest.raises(AlreadyRunning):
        begun_redrive()
    operations.stop(db, begun.id, actor="op", reason="r")
    before = told(db)
    with pytest.raises(AlreadyReleased):
        holds.release(db, made.id, actor="op", reason="again")
    with pytest.raises(AlreadyFinished):
        operations.stop(db, begun.id, actor="op", reason="again")
    assert told(db) == before
    assert words(db) == ["hold_engaged", "hold_released", "operation_begun", "operation_stopped"]


def test_an_event_is_undone_with_its_act(db: Connection) -> None:
    with database.transaction() as session:
        hold(session)
        tokens.create(session, actor="op", role="operator", tenant=None, name="x")
        session.rollback()
    assert (told(db), installation(db)) == ([], None)
    assert db.execute(text("SELECT count(*) FROM holds")).scalar_one() == 0


# -- acts at once ----------------------------------------------------------------------------------------------------


def test_an_act_that_is_not_committed_delays_other_acts_and_nothing_else(db: Connection) -> None:
    gone, kept = a_resource(db), a_resource(db)
    claim = a_claim(db)
    with ThreadPoolExecutor(1) as pool, database.transaction() as first:
        hold(first, "first")
        second = pool.submit(_alone, lambda session: hold(session, "second"))
        eventually(lambda: waits_for_a_lock(db), what="the second hold waits for the first")
        assert jobs.enqueue(db, gone, actor="me").won
        resources.change(db, kept, changes={"protected": True}, actor="me")
        jobs.defer(db, claim, worker="w", error="e")
        with database.transaction() as session:
            assert audit.checkpoint(session, actor="me", every=dt.timedelta(0)) is not None
        first.commit()
        second.result(20)
    assert [row.reason for row in told(db) if row.event == "hold_engaged"] == ["first", "second"]
    assert whole(db)


def test_a_stop_of_many_items_delays_no_hold(db: Connection, connect: Callable[[], Any]) -> None:
    stuck_jobs(db)
    begun = begun_redrive()
    item = connect()
    item.cursor().execute("SELECT FROM operation_items FOR UPDATE")
    with ThreadPoolExecutor(1) as pool:
        stopping = pool.submit(_alone, lambda session: operations.stop(session, begun.id, actor="op", reason="r"))
        eventually(lambda: waits_for_a_lock(db), what="it is stopping the items")
        hold(db)
        item.rollback()
        stopping.result(20)
    assert words(db) == ["operation_begun", "hold_engaged", "operation_stopped"]


ROUNDS = 15


def test_acts_deletes_changes_and_checkpoints_at_once_do_not_deadlock(db: Connection) -> None:
    rows = [a_resource(db) for _ in range(ROUNDS * 2)]
    barrier = threading.Barrier(7)
    hit = _hit(db)

    def set_and_release(session: Connection, n: int) -> None:
        made = hold(session, f"round {n}")
        holds.release(session, made.id, actor="op", reason="day")

    def brake_and_release(session: Connection, n: int) -> None:
        hit.judged_at = session.execute(text("SELECT clock_timestamp()")).scalar_one()
        engaged = holds.engage_brake(session, hit, actor=f"w{n}")
        if engaged is not None and engaged[1]:
            holds.release(session, engaged[0].id, actor="op", reason="meant")

    def token(session: Connection, n: int) -> None:
        made, _ = tokens.create(session, actor="op", role="operator", tenant=None, name=f"t{n}")
        tokens.revoke(session, made.id, actor="op")

    def delete(session: Connection, n: int) -> None:
        jobs.enqueue_all(session, [jobs.Delete(row, "me") for row in rows[n * 2 : n * 2 + 2]])

    def change(session: Connection, n: int) -> None:
        for row in reversed(rows[n * 2 : n * 2 + 2]):
            try:
                resources.change(session, row, changes={"grace_seconds": n}, actor="me")
            except NotActive:
                return

    def checkpoint(_: Connection, __: int) -> None:
        with database.transaction() as session:
            audit.checkpoint(session, actor="me", every=dt.timedelta(0))

    def each_round(act: Callable[[Connection, int], None]) -> None:
        with database.statement() as session:
            for n in range(ROUNDS):
                barrier.wait(60)
                act(session, n)

    doers = [set_and_release, set_and_release, brake_and_release, token, delete, change, checkpoint]
    with ThreadPoolExecutor(len(doers)) as pool:
        for done in [pool.submit(each_round, act) for act in doers]:
            done.result(120)
    counted = {word: words(db).count(word) for word in ("hold_engaged", "hold_released", "token_revoked")}
    brakes = db.execute(text("SELECT count(*) FROM holds WHERE cause = 'brake'")).scalar_one()
    assert counted == {
        "hold_engaged": 2 * ROUNDS + brakes,
        "hold_released": 2 * ROUNDS + brakes,
        "token_revoked": ROUNDS,
    }
    assert whole(db)
