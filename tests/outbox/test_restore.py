"""Taking a teardown back: which one can be, what is written, and who wins where two meet."""

import random
import re
import threading
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Connection, text

from outbox import db as database
from outbox import holds, jobs, operations, resources
from outbox.approvals import Approval
from outbox.errors import (
    ClaimLost,
    DeprovisionerError,
    Early,
    Forbidden,
    JobNotStuck,
    NotDeleting,
    NotFound,
    NothingToRestore,
    Restoring,
    StillWanted,
    TeardownStarted,
    VersionMismatch,
)
from outbox.events import Event
from outbox.jobs.claim import RESTORES
from outbox.resources import NewResource
from outbox.rows import Claim
from outbox.states import HoldScope, JobState, SnapshotPolicy, Step, StuckReason
from tests.support.factories import (
    a_claim,
    a_job,
    a_look,
    a_resource,
    claim_of,
    claims,
    events_of,
    job,
    last_event,
    status_of,
)
from tests.support.witness import eventually, waits_for_a_lock

GRACE = 3600
RACES = 1000


def deleted(
    db: Connection, *, grace: float = GRACE, snapshot: SnapshotPolicy | None = None, resource: uuid.UUID | None = None
) -> int:
    """The job of a DELETE with a grace; the resource itself says whether a snapshot comes first."""
    resource = resource or a_resource(db)
    db.execute(text("UPDATE resources SET snapshot = :says WHERE id = :id"), {"says": snapshot, "id": resource})
    asked = jobs.Delete(resource, "me", grace=grace, may_purge=True)
    return jobs.enqueue_all(db, [asked])[asked.request_id].job.id


def resource_of(db: Connection, id: int) -> uuid.UUID:
    return job(db, id).resource_id


def purge_at(db: Connection, id: int, of: str = "extract(epoch FROM purge_at - now())") -> Any:
    asked = f"SELECT {of} FROM resources JOIN outbox ON resource_id = resources.id WHERE outbox.id = :id"
    return db.execute(text(asked), {"id": id}).scalar_one()


def the_claim(db: Connection, id: int) -> Claim:
    db.execute(text("UPDATE outbox SET available_at = now() WHERE id = :id"), {"id": id})
    (claim,) = [each for each in claims(db, 100) if each.id == id]
    return claim


def at_wait(db: Connection, id: int) -> None:
    """Do the quarantine of a job."""
    claim = the_claim(db, id)
    jobs.start(db, claim, worker="w")
    jobs.advance(db, claim, worker="w", event=Event.QUARANTINED, seen={})


def time_comes(db: Connection, id: int) -> None:
    """`purge_at` passes: as the clock would do it, and no writer could."""
    past_the_triggers(db, "UPDATE resources SET purge_at = now() WHERE id = :id", id=resource_of(db, id))


def past_the_triggers(db: Connection, statement: str, **words: object) -> None:
    db.execute(text("SET session_replication_role = replica"))
    try:
        db.execute(text(statement), words)
    finally:
        db.execute(text("RESET session_replication_role"))


def restored(db: Connection, id: int, **words: Any) -> jobs.Restored:
    return jobs.restore(db, resource_of(db, id), actor="op", reason="a mistake", **words)


def purged(resource: uuid.UUID, **words: Any) -> Any:
    with database.transaction() as session:
        return jobs.purge(session, resource, **{"actor": "op", "reason": "r"} | words)


# -- what is written -------------------------------------------------------------------------------------------------


def test_a_restore_cancels_the_teardown_and_enqueues_what_gives_it_back(db: Connection) -> None:
    id = a_job(db, step="wait")
    resource = job(db, id).resource_id
    done = jobs.restore(db, resource, actor="op", reason="a mistake")
    assert done.won
    assert (status_of(db, resource), job(db, id).state) == ("restoring", "cancelled")
    assert events_of(db, id) == ["cancelled"]
    assert events_of(db, done.job.id) == ["enqueued"]
    again = jobs.restore(db, resource, actor="op", reason="a mistake")
    assert (again.won, again.job) == (False, done.job)


def test_what_has_started_to_destroy_is_not_restored(db: Connection) -> None:
    claim = a_claim(db)
    jobs.start(db, claim, worker="w")
    db.execute(text("DROP TRIGGER outbox_destroying_stays ON outbox"))  # it would answer for the guard
    with pytest.raises(TeardownStarted):
        jobs.restore(db, claim.resource_id, actor="op", reason="a mistake")
    assert not jobs.restore_all(db, [(claim.resource_id, uuid.uuid4())], actor="op", reason="r")
    assert status_of(db, claim.resource_id) == "deleting"


def test_what_was_gone_before_anything_was_destroyed_is_said_to_be_so(db: Connection) -> None:
    claim = a_claim(db)
    jobs.complete(db, claim, worker="w7", seen={"already_gone": True})
    with pytest.raises(TeardownStarted, match="not there, and no destruction of ours had started: w7 found it absent"):
        jobs.restore(db, claim.resource_id, actor="op", reason="a mistake")


def test_a_teardown_from_before_there_were_steps_is_not_restored_once_it_has_started(db: Connection) -> None:
    claim = a_claim(db)
    past_the_triggers(db, "UPDATE outbox SET step = NULL, started_fence = 1, started_step = NULL")
    with pytest.raises(TeardownStarted):
        jobs.restore(db, claim.resource_id, actor="op", reason="a mistake")
    assert job(db, claim.id).state == "running"


def test_a_delete_with_a_grace_goes_step_by_step_to_its_end(db: Connection) -> None:
    id = deleted(db)
    assert job(db, id).step == Step.QUARANTINE
    assert GRACE - 60 < purge_at(db, id) <= GRACE
    at_wait(db, id)
    now = job(db, id)
    assert (now.state, now.step, now.attempts, now.started_step) == ("pending", "wait", 0, "quarantine")
    assert now.available_at == purge_at(db, id, "purge_at"), "due when its grace ends"
    time_comes(db, id)
    claim = the_claim(db, id)
    jobs.start(db, claim, worker="w")
    assert (job(db, id).step, job(db, id).started_step) == ("destroy", "destroy")
    jobs.complete(db, claim, worker="w", seen={})
    assert events_of(db, id) == [
        "enqueued",
        *["claimed", "started", "quarantined"],
        *["claimed", "started", "completed"],
    ]


def test_a_delete_without_a_grace_is_one_step(db: Connection) -> None:
    claim = the_claim(db, deleted(db, grace=0))
    assert (claim.step, claim.destroying) == (Step.DESTROY, False)
    jobs.start(db, claim, worker="w")
    assert claim_of(db, claim.id).destroying


def test_a_snapshot_comes_between_quarantine_and_destruction(db: Connection) -> None:
    id = deleted(db, grace=0, snapshot=SnapshotPolicy.REQUIRED)
    at_wait(db, id)
    claim = the_claim(db, id)
    assert claim.step is Step.SNAPSHOT
    jobs.start(db, claim, worker="w")
    with pytest.raises(ClaimLost):
        jobs.advance(db, claim, worker="w", event=Event.SNAPSHOT_VERIFIED, seen={})
    a_snapshot(db, id)
    jobs.advance(db, claim, worker="w", event=Event.SNAPSHOT_VERIFIED, seen={})
    assert job(db, id).step == Step.WAIT
    jobs.start(db, the_claim(db, id), worker="w")


def a_snapshot(db: Connection, id: int, verified: str = "now()") -> None:
    db.execute(
        text(f"""INSERT INTO snapshots (job_id, resource_id, fence, tenant, kind, backend, location, verified_at)
                 SELECT id, resource_id, fence, 'acme', 'postgres', backend, 'here', {verified}
                   FROM outbox WHERE id = :id"""),
        {"id": id},
    )


@pytest.mark.parametrize("verified", [None, "NULL", "now()"])
def test_nothing_is_destroyed_before_its_snapshot_is_verified(db: Connection, verified: str | None) -> None:
    id = a_job(db, step="wait")
    db.execute(text("UPDATE outbox SET needs_snapshot = true"))
    db.execute(text("DROP TRIGGER outbox_start ON outbox"))  # it would answer for the guard
    a_snapshot(db, a_job(db))  # another's
    if verified:
        a_snapshot(db, id, verified)
    claim = the_claim(db, id)
    if verified == "now()":
        jobs.start(db, claim, worker="w")
        return
    with pytest.raises(DeprovisionerError):
        jobs.start(db, claim, worker="w")
    assert job(db, id).started_fence is None


def test_nothing_is_destroyed_before_its_time(db: Connection) -> None:
    id = deleted(db)
    at_wait(db, id)
    db.execute(text("DROP TRIGGER outbox_start ON outbox"))  # it would answer for the guard
    claim = the_claim(db, id)
    with pytest.raises(Early) as early:
        jobs.start(db, claim, worker="w")
    assert GRACE - 60 < early.value.seconds <= GRACE
    assert jobs.start_all(db, [(claim, None)], worker="w", waits=False) == {}
    assert job(db, id).started_step is None


def test_a_restore_lifts_an_expiry_that_has_passed_and_no_other(db: Connection) -> None:
    gone, later = (a_resource(db, expires=f"now() + interval '{n} h'") for n in (-1, 1))
    for resource in (gone, later):
        restored(db, deleted(db, resource=resource))
    asked = text("SELECT expires_at FROM resources WHERE id = ANY(:ids) ORDER BY expires_at NULLS FIRST")
    kept = db.execute(asked, {"ids": [gone, later]}).scalars().all()
    assert kept[0] is None
    assert kept[1] is not None
    assert jobs.expire(db, actor="w") == 0


@pytest.mark.parametrize("state", [JobState.PENDING, JobState.RUNNING, JobState.STUCK])
@pytest.mark.parametrize("step", [Step.QUARANTINE, Step.SNAPSHOT, Step.WAIT])
def test_a_teardown_of_any_state_and_step_is_restored(db: Connection, state: JobState, step: Step) -> None:
    id = a_job(db, state=state, step=step, attempts=1, started=step is not Step.WAIT)
    holds.engage(db, HoldScope.GLOBAL, None, actor="op", reason="a storm")
    done = restored(db, id)
    assert (job(db, id).state, status_of(db, resource_of(db, id))) == ("cancelled", "restoring")
    (claim,) = claims(db)
    assert (claim.id, claim.lane) == (done.job.id, RESTORES), "under the hold"
    jobs.start(db, claim, worker="w")
    jobs.give_back(db, claim, worker="w", seen={"login": True})
    assert status_of(db, claim.resource_id) == "active"
    assert purge_at(db, id, "purge_at") is None


def test_a_birth_that_failed_has_nothing_to_give_back(db: Connection) -> None:
    claim = a_claim(db, kind="provision")
    db.execute(text("UPDATE resources SET activated_at = NULL"))
    jobs.rollback(db, claim, worker="w", error="no disk")
    with pytest.raises(NothingToRestore):
        jobs.restore(db, claim.resource_id, actor="op", reason="r")
    assert not jobs.restore_all(db, [(claim.resource_id, uuid.uuid4())], actor="op", reason="r")
    (undo,) = claims(db)
    jobs.start(db, undo, worker="w")  # and it has no grace


def test_a_resource_is_deleted_and_restored_again_and_again(db: Connection) -> None:
    resource = a_resource(db)
    for n in range(3):
        id = deleted(db, resource=resource)
        if n:
            at_wait(db, id)
        given = restored(db, id)
        with pytest.raises(Restoring):
            jobs.enqueue(db, resource, actor="me")
        claim = the_claim(db, given.job.id)
        jobs.start(db, claim, worker="w")
        jobs.give_back(db, claim, worker="w", seen={})
        assert status_of(db, resource) == "active"
    assert Counter(db.execute(text("SELECT kind, state FROM outbox")).all()) == {
        ("deprovision", "cancelled"): 3,
        ("restore", "succeeded"): 3,
    }


def test_a_request_that_deleted_before_a_restore_deletes_nothing_more(db: Connection) -> None:
    asked = jobs.Delete(a_resource(db), "me", grace=GRACE, may_purge=True)
    first = jobs.enqueue_all(db, [asked])[asked.request_id]
    restored(db, first.job.id)
    end_restore(db, first.resource.id)
    assert not jobs.enqueue_all(db, [asked])
    again = jobs.enqueued_before(db, asked)
    assert (again.won, again.job.id, again.job.state) == (True, first.job.id, "cancelled")
    assert status_of(db, first.resource.id) == "active"


def test_a_request_that_restored_before_a_delete_restores_nothing_more(db: Connection) -> None:
    request, resource = uuid.uuid4(), a_resource(db)
    given = restored(db, deleted(db, resource=resource), request_id=request)
    end_restore(db, resource)
    second = deleted(db, resource=resource)
    again = restored(db, second, request_id=request)
    assert (again.won, again.job.id) == (True, given.job.id)
    assert (status_of(db, resource), job(db, second).state) == ("deleting", "pending")


def end_restore(db: Connection, resource: uuid.UUID) -> None:
    asked = "SELECT id FROM outbox WHERE resource_id = :id AND kind = 'restore' AND state = 'pending'"
    claim = the_claim(db, db.execute(text(asked), {"id": resource}).scalar_one())
    jobs.start(db, claim, worker="w")
    jobs.give_back(db, claim, worker="w", seen={})


def test_another_tenants_resource_is_not_restored(db: Connection) -> None:
    id = deleted(db)
    with pytest.raises(NotFound):
        restored(db, id, tenant="globex")
    assert job(db, id).state == "pending"
    assert restored(db, id, tenant="acme").won


def test_a_restore_or_a_purge_of_an_older_version_is_refused(db: Connection) -> None:
    id = deleted(db)
    version = purge_at(db, id, "version")
    with pytest.raises(VersionMismatch):
        restored(db, id, version=version - 1)
    with pytest.raises(VersionMismatch):
        purged(resource_of(db, id), version=version - 1)
    purged(resource_of(db, id), version=version)
    with pytest.raises(VersionMismatch):
        purged(resource_of(db, id), version=version)
    assert restored(db, id, version=version + 1).won


def test_a_restore_that_has_not_started_is_not_given_back(db: Connection) -> None:
    claim = a_claim(db, kind="restore", status="restoring")
    with pytest.raises(ClaimLost):
        jobs.give_back(db, claim, worker="w", seen={})
    assert status_of(db, claim.resource_id) == "restoring"


def test_a_restore_gives_back_only_what_is_being_restored(db: Connection) -> None:
    claim = a_claim(db, kind="restore", status="restoring")
    jobs.start(db, claim, worker="w")
    past_the_triggers(db, "UPDATE resources SET status = 'deleting', deleted_at = now()")
    with pytest.raises(ClaimLost):
        jobs.give_back(db, claim, worker="w", seen={})
    assert (job(db, claim.id).state, status_of(db, claim.resource_id)) == ("running", "deleting")


def test_a_restore_that_is_given_up_leaves_a_new_teardown_with_a_new_grace(
    db: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    graced(monkeypatch)
    id = deleted(db)
    given = restored(db, id).job.id
    claim = the_claim(db, given)
    jobs.start(db, claim, worker="w")
    jobs.stick(db, claim, worker="w", why=StuckReason.REFUSED, error="e")
    again = jobs.resolve(db, given, fence=1, actor="op", reason="r")
    assert (again.kind, again.state, again.step) == ("deprovision", "pending", "quarantine")
    assert (job(db, given).state, status_of(db, claim.resource_id)) == ("cancelled", "deleting")
    assert events_of(db, given)[-1] == "resolved"
    assert events_of(db, again.id) == ["enqueued"]
    assert purge_at(db, again.id) > GRACE - 60
    assert restored(db, again.id).won, "and it can be restored again"


def graced(monkeypatch: pytest.MonkeyPatch, grace: str = "1h", more: str = "") -> None:
    """Every backend keeps what is deleted so long."""
    from outbox import settings

    path = settings.get().need("backends")
    with open(path) as file:
        tables = file.read()
    with open(path, "w") as file:
        file.write(re.sub(r"(?m)^kind = ", f'grace = "{grace}"\n{more}kind = ', tables))
    settings.backends.cache_clear()


# -- two that meet ---------------------------------------------------------------------------------------------------


def meets(db: Connection, first: Callable[[Connection], Any], second: Callable[[Connection], Any]) -> Any:
    """What `second` came to, which waited for `first` to commit; its answer, or the type of its error."""
    result: list[Any] = []

    def late() -> None:
        try:
            with database.transaction() as session:
                result.append(second(session))
        except Exception as error:  # noqa: BLE001 - it is what the test asserts
            result.append(type(error))

    thread = threading.Thread(target=late)
    with database.transaction() as session:
        first(session)
        thread.start()
        eventually(lambda: waits_for_a_lock(db), what="the second waits for the first")
    thread.join()
    return result[0]


def races(acts: list[Callable[[Connection], Any]], seed: int) -> list[Any]:
    """What each came to, when all begin at once."""
    barrier, results = threading.Barrier(len(acts)), [None] * len(acts)
    late = random.Random(seed).randrange(len(acts))

    def one(n: int) -> None:
        try:
            with database.transaction() as session:
                session.execute(text("SELECT"))
                barrier.wait()
                if n == late:
                    session.execute(text("SELECT"))  # each side must win sometimes
                results[n] = acts[n](session)
        except DeprovisionerError as error:
            results[n] = type(error)

    threads = [threading.Thread(target=one, args=(n,)) for n in range(len(acts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.mark.proof
@pytest.mark.timeout(600)
def test_a_thousand_races_of_restore_against_start_at_destroy_have_one_winner_each(db: Connection) -> None:
    ids = [a_job(db, step="wait") for _ in range(RACES)]
    by_id = {claim.id: claim for claim in claims(db, RACES)}
    db.execute(text("UPDATE outbox SET lease_expires_at = now() + interval '1 h'"))
    told = Counter()
    for n, id in enumerate(ids):
        claim = by_id[id]

        def start(session: Connection, claim: Claim = claim, alone: bool = n % 2 == 0) -> Any:
            if alone:
                jobs.start(session, claim, worker="w")
                return {(claim.id, claim.fence)}
            return set(jobs.start_all(session, [(claim, None)], worker="w", waits=False))

        def restore(session: Connection, resource: uuid.UUID = claim.resource_id) -> Any:
            return jobs.restore(session, resource, actor="op", reason="r").won

        started, given = races([start, restore], seed=n)
        now = job(db, id)
        if now.state == "cancelled":
            told["restored"] += 1
            assert (started in (ClaimLost, set()), given) == (True, True), (started, given)
            assert (now.started_step, now.started_fence) == (None, None)
            assert events_of(db, id) == ["claimed", "cancelled"]
            assert status_of(db, claim.resource_id) == "restoring"
        else:
            told["destroyed"] += 1
            assert (started, given) == ({(id, 1)}, TeardownStarted)
            assert (now.state, now.started_step, now.started_fence) == ("running", "destroy", 1)
            assert events_of(db, id) == ["claimed", "started"]
            assert status_of(db, claim.resource_id) == "deleting"
    assert sum(told.values()) == RACES
    assert min(told["restored"], told["destroyed"]) > 0, told
    restores = "SELECT count(*) FROM outbox WHERE kind = 'restore'"
    assert db.execute(text(restores)).scalar_one() == told["restored"]


@dataclass(frozen=True)
class Meeting:
    """A transition that meets a restore: how its job is made, and what comes of it where it is the second."""

    made: Callable[[Connection], int]
    act: Callable[[Connection, Claim], Any]
    as_second: Any
    ends: bool = False  # its resource is deleted: where it is the first, there is nothing to restore


def _running(step: Step, *, started: bool = False, spent: bool = False, lease: str = "30 s") -> Any:
    def made(db: Connection) -> int:
        attempts = 10 if spent else 1
        id = a_job(db, state="running", step=step, attempts=attempts, lease=lease)
        if started:
            jobs.start(db, claim_of(db, id), worker="w")
        return id

    return made


def _stuck(db: Connection) -> int:
    id = a_job(db, state="stuck", step="wait", attempts=1)
    a_look(db, id)
    return id


MEETINGS = {
    "advance": Meeting(
        _running(Step.QUARANTINE, started=True),
        lambda db, c: jobs.advance(db, c, worker="w", event=Event.QUARANTINED, seen={}),
        ClaimLost,
    ),
    "start of a quarantine": Meeting(_running(Step.QUARANTINE), lambda db, c: jobs.start(db, c, worker="w"), ClaimLost),
    "sweep": Meeting(_running(Step.WAIT, lease="-1 s"), lambda db, _: jobs.sweep(db, actor="w"), 0),
    "sweep of spent attempts": Meeting(
        _running(Step.WAIT, lease="-1 s", spent=True), lambda db, _: jobs.sweep(db, actor="w"), 0
    ),
    "retry": Meeting(
        _running(Step.QUARANTINE, started=True), lambda db, c: jobs.retry(db, c, worker="w", error="e"), ClaimLost
    ),
    "defer": Meeting(_running(Step.WAIT), lambda db, c: jobs.defer(db, c, worker="w", error="e"), ClaimLost),
    "stick": Meeting(
        _running(Step.WAIT),
        lambda db, c: jobs.stick(db, c, worker="w", why=StuckReason.REFUSED, error="e"),
        ClaimLost,
    ),
    "complete": Meeting(
        _running(Step.WAIT), lambda db, c: jobs.complete(db, c, worker="w", seen={}), ClaimLost, ends=True
    ),
    "redrive": Meeting(_stuck, lambda db, c: jobs.redrive(db, c.id, fence=1, actor="op", reason="r"), JobNotStuck),
    "resolve": Meeting(
        _stuck, lambda db, c: jobs.resolve(db, c.id, fence=1, actor="op", reason="r"), JobNotStuck, ends=True
    ),
    "purge": Meeting(deleted, lambda db, c: jobs.purge(db, c.resource_id, actor="op", reason="r"), NotDeleting),
}
_SKIPS = ("sweep", "sweep of spent attempts")


@pytest.mark.parametrize("name", MEETINGS)
def test_a_restore_that_comes_first_leaves_nothing_to_the_other(db: Connection, name: str) -> None:
    meeting = MEETINGS[name]
    id = meeting.made(db)
    claim = claim_of(db, id)

    def act(session: Connection) -> Any:
        return meeting.act(session, claim)

    def restore(session: Connection) -> Any:
        return jobs.restore(session, claim.resource_id, actor="op", reason="r")

    if name in _SKIPS:  # it does not wait
        with database.transaction() as session:
            restore(session)
            assert act(db) == meeting.as_second
    else:
        assert meets(db, restore, act) == meeting.as_second
    assert (job(db, id).state, status_of(db, claim.resource_id)) == ("cancelled", "restoring")
    assert events_of(db, id)[-1] == "cancelled"
    assert purge_at(db, id, "purge_at") is None
    assert act_again(db, act) in (meeting.as_second, NotDeleting, StillWanted)


def act_again(db: Connection, act: Callable[[Connection], Any]) -> Any:
    try:
        return act(db)
    except DeprovisionerError as error:
        return type(error)


@pytest.mark.parametrize("name", MEETINGS)
def test_a_restore_that_comes_second_takes_back_what_the_other_left(db: Connection, name: str) -> None:
    meeting = MEETINGS[name]
    id = meeting.made(db)
    claim = claim_of(db, id)
    done = meets(
        db,
        lambda session: meeting.act(session, claim),
        lambda session: jobs.restore(session, claim.resource_id, actor="op", reason="r"),
    )
    if meeting.ends:
        assert (done, job(db, id).state, status_of(db, claim.resource_id)) == (TeardownStarted, "succeeded", "deleted")
        return
    assert done.won
    assert (job(db, id).state, status_of(db, claim.resource_id)) == ("cancelled", "restoring")
    assert events_of(db, id)[-1] == "cancelled"


@pytest.mark.parametrize("first", ["restore", "restore again"])
def test_of_two_restores_that_meet_one_wins(db: Connection, first: str) -> None:
    id = deleted(db)
    request = uuid.uuid4() if first == "restore again" else None
    second = meets(db, lambda s: restored(s, id, request_id=request), lambda s: restored(s, id, request_id=request))
    assert second.won == (request is not None), "a request that is asked again learns that it had won"
    assert db.execute(text("SELECT count(*) FROM outbox WHERE kind = 'restore'")).scalar_one() == 1


def test_a_purge_at_the_moment_of_an_advance_is_never_lost(db: Connection) -> None:
    for purge_first in (True, False):
        id = deleted(db)
        claim = the_claim(db, id)
        jobs.start(db, claim, worker="w")

        def advance(session: Connection, claim: Claim = claim) -> None:
            jobs.advance(session, claim, worker="w", event=Event.QUARANTINED, seen={})

        def purge(session: Connection, claim: Claim = claim) -> None:
            jobs.purge(session, claim.resource_id, actor="op", reason="r")

        meets(db, *((purge, advance) if purge_first else (advance, purge)))
        assert sorted(events_of(db, id)) == ["claimed", "enqueued", "purge_ordered", "quarantined", "started"]
        assert (job(db, id).step, purge_at(db, id) <= 0) == ("wait", True)
        due = claims(db)
        assert [again.id for again in due] == [id]
        jobs.start(db, due[0], worker="w")


@pytest.mark.timeout(300)
def test_purges_that_race_advances_are_never_lost(db: Connection) -> None:
    for n in range(100):
        id = deleted(db)
        claim = the_claim(db, id)
        jobs.start(db, claim, worker="w")
        races(
            [
                lambda s, c=claim: jobs.advance(s, c, worker="w", event=Event.QUARANTINED, seen={}),
                lambda s, c=claim: jobs.purge(s, c.resource_id, actor="op", reason="r"),
            ],
            seed=n,
        )
        due = claims(db, 9)
        assert [(again.id, again.step) for again in due] == [(id, Step.WAIT)]
        jobs.start(db, due[0], worker="w")


def test_a_purge_leaves_the_earlier_steps_to_be_done(db: Connection) -> None:
    id = deleted(db)
    resource, told = purged(resource_of(db, id), reason="now")
    assert (told.step, resource.purge_at is not None) == (Step.QUARANTINE, True)
    event = last_event(db, id)
    assert (event.event, event.actor, event.reason) == ("purge_ordered", "op", "now")
    claim = the_claim(db, id)
    assert claim.step is Step.QUARANTINE
    version = purge_at(db, id, "version")
    purged(resource_of(db, id), reason="again")
    assert purge_at(db, id, "version") == version, "its time has come: there is nothing to do"
    assert events_of(db, id).count("purge_ordered") == 1


def test_a_purge_by_two_waits_for_the_second(db: Connection) -> None:
    id = deleted(db)
    resource = resource_of(db, id)
    for _ in range(2):
        first = purged(resource, actor="token:1:a", two=True)
        assert isinstance(first, Approval)
    assert purge_at(db, id) > 0
    purged(resource, actor="token:2:b", two=True)
    assert purge_at(db, id) <= 0
    assert last_event(db, id).detail["proposed_by"] == "token:1:a"
    assert last_event(db, id).detail["approved_by"] == "token:2:b"


def test_only_what_is_being_deleted_is_purged(db: Connection) -> None:
    for id in (a_job(db, state="succeeded"), a_job(db, kind="restore")):
        with pytest.raises(NotDeleting):
            purged(resource_of(db, id))


def test_a_delete_that_meets_the_end_of_a_restore_comes_before_it_or_deletes_again(db: Connection) -> None:
    for _ in range(2):
        id = deleted(db)
        given = restored(db, id)
        claim = the_claim(db, given.job.id)
        jobs.start(db, claim, worker="w")
        done = meets(
            db,
            lambda s, c=claim: jobs.give_back(s, c, worker="w", seen={}),
            lambda s, c=claim: jobs.enqueue(s, c.resource_id, actor="me"),
        )
        assert (done.won, done.job.id != id) == (True, True)
        assert status_of(db, claim.resource_id) == "deleting"


def test_a_delete_that_meets_a_restore_deletes_nothing(db: Connection) -> None:
    id = deleted(db)
    done = meets(db, lambda s: restored(s, id), lambda s: jobs.enqueue(s, resource_of(db, id), actor="me"))
    assert done is Restoring
    assert status_of(db, resource_of(db, id)) == "restoring"


# -- how little a caller may ask for ---------------------------------------------------------------------------------


def test_less_than_the_least_grace_is_for_who_may_purge(db: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    graced(monkeypatch, more='min_grace = "30m"\nsnapshot = "required"\nsnapshot_store = "file:/tmp"\n')
    resource = a_resource(db)
    for less in ({"grace": 0.0}, {"grace": 1799.0}, {"grace": 3600.0, "snapshot": SnapshotPolicy.OFF}):
        asked = jobs.Delete(resource, "me", **less)  # type: ignore[arg-type]
        assert not jobs.enqueue_all(db, [asked])
        with pytest.raises(Forbidden):
            jobs.enqueued_before(db, asked)
    least = jobs.Delete(resource, "me", grace=1800)
    id = jobs.enqueue_all(db, [least])[least.request_id].job.id
    assert 1740 < purge_at(db, id) <= 1800
    assert job(db, id).needs_snapshot


# -- whoever writes --------------------------------------------------------------------------------------------------


@pytest.fixture
def writer(db: Connection, service: Connection) -> Connection:
    """The service's role where it may update every column, so that only the triggers stand in its way."""
    role = service.execute(text("SELECT current_user")).scalar_one()
    db.execute(text(f"GRANT UPDATE ON outbox, resources TO {role}"))
    return service


def _by_expiry(db: Connection) -> int:
    resource = a_resource(db, expires="now() - interval '1 s'")
    assert jobs.expire(db, actor="w") == 1
    return db.execute(text("SELECT id FROM outbox WHERE resource_id = :id"), {"id": resource}).scalar_one()


def _by_offboarding(db: Connection) -> int:
    a_resource(db, tenant="globex")
    with database.snapshot() as session:
        seen = operations.preview_offboard(session, "globex")
    with database.transaction() as session:
        operations.begin_offboard(session, "globex", expected_count=1, reason="left", actor="op", digest=seen.digest)
    operations_step()
    asked = "SELECT outbox.id FROM outbox JOIN resources ON resources.id = resource_id WHERE tenant = 'globex'"
    return db.execute(text(asked)).scalar_one()


def operations_step() -> None:
    with database.transaction() as session:
        operations.advance(session, worker="w")


PATHS: dict[str, Callable[[Connection], int]] = {
    "DELETE": lambda db: jobs.enqueue(db, a_resource(db), actor="me").job.id,
    "expiry": _by_expiry,
    "offboarding": _by_offboarding,
}
DESTROY = "started_fence = fence, started_step = 'destroy'"
EARLY = {
    "a start at destroy": f"UPDATE outbox SET {DESTROY} WHERE id = :id",
    "a start of an older version": "UPDATE outbox SET started_fence = fence WHERE id = :id",
    "a start past the steps": f"UPDATE outbox SET step = 'destroy', {DESTROY} WHERE id = :id",
    "an older start past the steps": "UPDATE outbox SET step = NULL, started_fence = fence WHERE id = :id",
    "an earlier purge_at": "UPDATE resources SET purge_at = now() WHERE id = :resource",
    "no purge_at": "UPDATE resources SET purge_at = NULL WHERE id = :resource",
    "purge_at one second earlier": "UPDATE resources SET purge_at = purge_at - interval '1 s' WHERE id = :resource",
    "another kind for a while": "UPDATE outbox SET kind = 'restore', step = NULL WHERE id = :id",
    "another resource for a while": "UPDATE outbox SET resource_id = :other WHERE id = :id",
}


@pytest.mark.parametrize("early", EARLY)
@pytest.mark.parametrize("path", PATHS)
def test_no_writer_destroys_before_the_time_by_whatever_path_it_was_deleted(
    db: Connection, writer: Connection, monkeypatch: pytest.MonkeyPatch, path: str, early: str
) -> None:
    graced(monkeypatch)
    id = PATHS[path](writer)
    assert purge_at(db, id) > GRACE - 60
    claim = the_claim(db, id)
    assert claim.step is Step.QUARANTINE
    before, was = job(db, id), purge_at(db, id, "purge_at")
    words = {"id": id, "resource": claim.resource_id, "other": a_resource(db)}
    with pytest.raises(sa.exc.IntegrityError):
        writer.execute(text(EARLY[early]), words)
    assert (job(db, id), purge_at(db, id, "purge_at")) == (before, was)


def test_no_writer_marks_a_destruction_under_the_start_of_an_earlier_step(db: Connection, service: Connection) -> None:
    id = deleted(service)
    first = the_claim(service, id)
    jobs.start(service, first, worker="w")
    jobs.retry(service, first, worker="w", error="e")
    the_claim(service, id)  # forgets the step of the first
    for fence in ("fence", "fence + 1"):
        with pytest.raises(sa.exc.IntegrityError, match="must not be destroyed before"):
            service.execute(text(f"UPDATE outbox SET fence = {fence}, started_step = 'destroy' WHERE id = {id}"))


def test_a_birth_that_failed_is_removed_at_once_whatever_the_grace(
    db: Connection, service: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    graced(monkeypatch)
    new = NewResource(tenant="acme", kind="postgres", backend="pg-main", name="orders")
    resources.register(service, new, actor="me")
    (birth,) = claims(service)
    jobs.rollback(service, birth, worker="w", error="no disk")
    (undo,) = claims(service)
    assert (undo.step, (purge_at(db, undo.id) or 1) <= 0) == (Step.DESTROY, True)
    jobs.start(service, undo, worker="w")


FORBIDDEN = {
    "active while its teardown lives": (
        "UPDATE resources SET status = 'active', deleted_at = NULL WHERE id = :resource",
        "was not cancelled",
    ),
    "restoring while its teardown lives": (
        "UPDATE resources SET status = 'restoring', deleted_at = NULL WHERE id = :resource",
        "was not cancelled",
    ),
    "provisioning while its teardown lives": (
        "UPDATE resources SET status = 'provisioning', deleted_at = NULL WHERE id = :resource",
        "was not cancelled",
    ),
    "the need of a snapshot": ("UPDATE outbox SET needs_snapshot = false WHERE id = :id", "never stops to need it"),
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_no_writer_takes_back_what_a_teardown_stands_on(db: Connection, writer: Connection, what: str) -> None:
    id = deleted(writer, snapshot=SnapshotPolicy.REQUIRED)
    statement, words = FORBIDDEN[what]
    with pytest.raises(sa.exc.IntegrityError, match=words):
        writer.execute(text(statement), {"id": id, "resource": resource_of(db, id)})


MARKS = {
    "taken back": ("started_step = NULL", "never starts at another step"),
    "taken back with a later fence": ("fence = fence + 1, started_step = NULL", "never starts at another step"),
    "another step": ("started_step = 'quarantine'", "never starts at another step"),
    "another step with a later start": (
        "fence = fence + 1, started_fence = fence + 1, step = 'quarantine', started_step = 'quarantine'",
        "never starts at another step",
    ),
    "cancelled": (
        "state = 'cancelled', finished_at = now(), claimed_by = NULL, lease_expires_at = NULL",
        "never cancelled",
    ),
}


@pytest.mark.parametrize("what", MARKS)
def test_no_writer_takes_back_that_a_destruction_has_started(db: Connection, service: Connection, what: str) -> None:
    claim = a_claim(db)
    jobs.start(service, claim, worker="w")
    change, words = MARKS[what]
    with pytest.raises(sa.exc.IntegrityError, match=words):
        service.execute(text(f"UPDATE outbox SET {change} WHERE id = :id"), {"id": claim.id})
    assert job(db, claim.id).started_step == "destroy"


def test_a_mark_from_before_there_were_steps_is_kept_as_well(db: Connection, service: Connection) -> None:
    claim = a_claim(db)
    past_the_triggers(db, "UPDATE outbox SET step = NULL, started_fence = 1, started_step = NULL")
    cancelled = "state = 'cancelled', finished_at = now(), claimed_by = NULL, lease_expires_at = NULL"
    with pytest.raises(sa.exc.IntegrityError, match="never cancelled"):
        service.execute(text(f"UPDATE outbox SET {cancelled} WHERE id = :id"), {"id": claim.id})


def test_no_writer_destroys_before_the_snapshot_is_verified(db: Connection, service: Connection) -> None:
    id = deleted(service, grace=0, snapshot=SnapshotPolicy.REQUIRED)
    the_claim(db, id)
    a_snapshot(db, id, "NULL")
    start = text(f"UPDATE outbox SET {DESTROY} WHERE id = :id")
    with pytest.raises(sa.exc.IntegrityError, match="before its snapshot is verified"):
        service.execute(start, {"id": id})
    a_snapshot(db, id)
    service.execute(start, {"id": id})


def test_each_claim_says_anew_at_which_step_it_starts(db: Connection, service: Connection) -> None:
    """A worker of an older version knows no steps: its start must not pass for that of the worker before it."""
    id = deleted(service)
    first = the_claim(service, id)
    jobs.start(service, first, worker="w")
    jobs.retry(service, first, worker="w", error="e")
    second = the_claim(service, id)
    assert job(db, id).started_step is None
    with pytest.raises(sa.exc.IntegrityError, match="older version"):
        service.execute(text("UPDATE outbox SET started_fence = fence WHERE id = :id"), {"id": id})
    jobs.start(service, second, worker="w")
    assert (job(db, id).started_step, job(db, id).started_fence) == ("quarantine", 2)


def test_purge_at_is_lowered_only_in_the_transaction_of_its_purge(db: Connection, service: Connection) -> None:
    """An event that an earlier purge wrote allows nothing more: the time was set later again, or it is another's."""
    first, second = deleted(service), deleted(service)
    purged(resource_of(db, second))
    resource = resource_of(db, first)
    purged(resource)
    service.execute(text("UPDATE resources SET purge_at = now() + interval '1 h' WHERE id = :id"), {"id": resource})
    with pytest.raises(sa.exc.IntegrityError, match="lowered only by a purge"):
        service.execute(text("UPDATE resources SET purge_at = now() WHERE id = :id"), {"id": resource})
    other = resource_of(db, deleted(db))
    with database.transaction() as session:
        jobs.purge(session, resource, actor="op", reason="r")
        with pytest.raises(sa.exc.IntegrityError, match="lowered only by a purge"), session.begin_nested():
            session.execute(text("UPDATE resources SET purge_at = now() WHERE id = :id"), {"id": other})


def test_each_change_of_a_resource_is_another_version(db: Connection, writer: Connection) -> None:
    id = deleted(writer)
    at = [purge_at(db, id, "version")]
    for change in ("version = 1", "version = 99", "name = 'other'"):
        writer.execute(text(f"UPDATE resources SET {change} WHERE id = :id"), {"id": resource_of(db, id)})
        at.append(purge_at(db, id, "version"))
    assert at == [at[0] + n for n in range(4)]
