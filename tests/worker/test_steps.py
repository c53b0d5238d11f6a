"""A teardown by its steps, and its restore: what each failure leads to, and where the next attempt goes on."""

import datetime as dt
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Connection, text
from tenacity import stop_after_attempt

from outbox import credentials, jobs
from outbox import db as database
from outbox.errors import ClaimLost, OutOfService, Refused, TeardownStarted, Transient, Unavailable
from outbox.rows import Json
from outbox.states import Step
from tests.support.factories import a_job, claim_of, claims, events_of, job, status_of, unguarded
from tests.support.witness import eventually
from worker.backends import Absent, Different, Observation, Plan, Same, Still, always
from worker.run import Run, retries

SOON = "400 ms"  # a grace that a test can wait for


class DiedError(BaseException):
    """The process is killed."""


class Recorder:
    """A backend that remembers what was asked of it, and whether its object is there and open.

    `troubles` has for each verb the errors of its next calls; None is a call that goes well.
    """

    def __init__(self, *, observable: bool = True, **troubles: list[BaseException | None]) -> None:
        self.observable = observable
        self.troubles = troubles
        self.asked: list[str] = []
        self.open, self.there = True, True
        self.sees: list[Observation] = []
        self.before: dict[str, Callable[[], None]] = {}
        self.proved_with: Json | None = None

    def _call(self, verb: str, still: Still = always) -> None:
        still()
        self.before.get(verb, always)()
        self.asked.append(verb)
        troubles = self.troubles.get(verb)
        if troubles and (trouble := troubles.pop(0)):
            raise trouble

    def plan(self, resource_id: uuid.UUID, generation: uuid.UUID) -> Plan:
        raise AssertionError

    def provision(self, manifest: Json, credentials: Json) -> Json:
        raise AssertionError

    def adopt(self, manifest: Json, generation: uuid.UUID) -> Json:
        raise AssertionError

    def inspect(self, manifest: Json) -> Observation:
        if trouble := self.troubles.get("inspect"):
            raise trouble.pop(0) or AssertionError
        if self.sees:
            return self.sees.pop(0)
        return Same({}) if self.there else Absent({})

    def quarantine(self, manifest: Json, still: Still = always) -> None:
        self._call("quarantine", still)
        self.open = False

    def release(self, manifest: Json, still: Still = always) -> None:
        self._call("release", still)
        self.open = True

    def prove(self, manifest: Json, stored: Json | None) -> Json:
        self._call("prove")
        self.proved_with = stored
        return {"login": self.open}

    def teardown(self, manifest: Json, fence: int) -> Json:
        self._call("teardown")
        self.open = self.there = False
        return {}


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "_GIVE_UP", stop_after_attempt(2))


def a_teardown(db: Connection, *, grace: str = "1 hour", step: str = "quarantine", **words: Any) -> int:
    id = a_job(db, step=step, **words)
    db.execute(
        text("UPDATE resources SET purge_at = now() + CAST(:grace AS interval) WHERE id = :id"),
        {"grace": grace, "id": job(db, id).resource_id},
    )
    return id


def runs(db: Connection, backend: Recorder, *, worker: str = "w1") -> Any:
    """The next due job is claimed and run, at once where only a backoff keeps it; its row afterwards."""
    db.execute(text("UPDATE outbox SET available_at = now() WHERE state = 'pending' AND step IS DISTINCT FROM 'wait'"))
    db.execute(text("DELETE FROM breakers"))
    (claim,) = claims(db, worker=worker)
    Run(claim, backend, worker=worker)()
    return job(db, claim.id)


def dies(db: Connection, backend: Recorder) -> None:
    """The next job is claimed by a worker that is killed in it, and its lease passes."""
    with pytest.raises(DiedError):
        runs(db, backend, worker="dead")
    _sweep(db)


def _sweep(db: Connection) -> None:
    db.execute(text("UPDATE outbox SET lease_expires_at = now() - interval '1 s' WHERE state = 'running'"))
    jobs.sweep(db, actor="w2")


def due(db: Connection, id: int) -> None:
    eventually(lambda: db.execute(text("SELECT available_at <= now() FROM outbox WHERE id = :id"), {"id": id}).scalar())


def a_restore(db: Connection, resource: uuid.UUID) -> int:
    with database.transaction() as session:
        restored = jobs.restore(session, resource, actor="op", reason="a mistake")
    assert restored.job is not None
    return restored.job.id


def restoring(db: Connection, backend: Recorder, *, max_attempts: int = 10) -> int:
    """A resource in quarantine whose restore is enqueued; the job."""
    id = a_teardown(db)
    runs(db, backend)
    made = a_restore(db, job(db, id).resource_id)
    db.execute(text("UPDATE outbox SET max_attempts = :most WHERE id = :id"), {"most": max_attempts, "id": made})
    backend.asked.clear()
    return made


# -- the steps ----------------------------------------------------------------------------------------------------


def test_a_teardown_shuts_waits_and_destroys(db: Connection) -> None:
    backend, id = Recorder(), a_teardown(db, grace=SOON)
    waits = runs(db, backend)
    assert (waits.state, waits.step, waits.attempts, waits.started_step) == ("pending", "wait", 0, "quarantine")
    purge_at = db.execute(text("SELECT purge_at FROM resources WHERE id = :id"), {"id": waits.resource_id}).scalar_one()
    assert waits.available_at == purge_at
    assert (backend.asked, backend.open) == (["quarantine"], False)
    due(db, id)
    done = runs(db, backend)
    assert (done.state, done.step, backend.asked) == ("succeeded", "destroy", ["quarantine", "teardown"])
    assert events_of(db, id) == ["claimed", "started", "quarantined", "claimed", "started", "completed"]
    began = db.execute(text("SELECT min(at) FROM events WHERE job_id = :id AND event = 'completed'"), {"id": id})
    assert began.scalar_one() >= purge_at


def test_a_death_in_the_quarantine_is_followed_by_a_quarantine_and_one_after_it_by_none(db: Connection) -> None:
    backend, id = Recorder(quarantine=[DiedError(), None]), a_teardown(db, grace=SOON)
    dies(db, backend)
    assert (job(db, id).state, job(db, id).step) == ("pending", "quarantine")
    runs(db, backend)
    assert backend.asked == ["quarantine", "quarantine"]
    due(db, id)
    backend.troubles = {"teardown": [DiedError()]}
    dies(db, backend)
    assert (job(db, id).step, job(db, id).started_step) == ("destroy", "destroy")
    assert runs(db, backend).state == "succeeded"
    assert backend.asked == ["quarantine", "quarantine", "teardown", "teardown"]


def test_an_effect_whose_end_was_not_recorded_is_repeated_at_its_step(
    db: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend, id = Recorder(), a_teardown(db)

    def dead(*_: Any, **__: Any) -> None:
        raise DiedError

    with monkeypatch.context() as patch:
        patch.setattr(jobs, "advance", dead)
        dies(db, backend)
    assert job(db, id).step == "quarantine"
    assert runs(db, backend).step == "wait"
    assert backend.asked == ["quarantine", "quarantine"]


@pytest.mark.parametrize("step", [Step.QUARANTINE, Step.WAIT, Step.DESTROY])
def test_what_is_gone_at_any_step_is_deleted(db: Connection, step: Step) -> None:
    backend, id = Recorder(), a_teardown(db, step=step, grace="0 s")
    backend.there = False
    assert runs(db, backend).state == "succeeded"
    assert (backend.asked, status_of(db, job(db, id).resource_id)) == ([], "deleted")


@pytest.mark.parametrize("step", [Step.QUARANTINE, Step.WAIT, Step.DESTROY])
def test_what_is_another_s_at_any_step_is_never_touched(db: Connection, step: Step) -> None:
    backend = Recorder()
    backend.sees = [Different({}, "another owner's")]
    a_teardown(db, step=step, grace="0 s")
    stuck = runs(db, backend)
    assert (stuck.state, stuck.stuck_reason, stuck.step, backend.asked) == ("stuck", "refused", step, [])
    assert stuck.started_fence is None


def test_a_refusal_of_the_quarantine_itself_makes_the_job_stuck_at_that_step(db: Connection) -> None:
    id = a_teardown(db)
    stuck = runs(db, Recorder(quarantine=[Refused("changed hands")]))
    assert (stuck.state, stuck.stuck_reason, stuck.step) == ("stuck", "refused", "quarantine")
    jobs.redrive(db, id, fence=stuck.fence, actor="op", reason="mended")
    assert runs(db, Recorder()).step == "wait"


@pytest.mark.parametrize("step", [Step.QUARANTINE, Step.WAIT, Step.DESTROY])
def test_a_server_out_of_reach_defers_any_step(db: Connection, step: Step) -> None:
    a_teardown(db, step=step, grace="0 s")
    after = runs(db, Recorder(inspect=[Unavailable("no route")]))
    assert (after.state, after.step, after.attempts) == ("pending", step, 0)
    assert db.execute(text("SELECT reason FROM breakers")).scalar_one() == "no route"


def test_a_server_that_goes_away_in_the_quarantine_costs_an_attempt_and_the_step_is_done_again(db: Connection) -> None:
    backend = Recorder(quarantine=[Unavailable("gone"), OutOfService("full"), None])
    a_teardown(db)
    assert (runs(db, backend).attempts, runs(db, backend).attempts) == (1, 1)
    assert runs(db, backend).step == "wait"


@pytest.mark.parametrize("trouble", [DiedError(), ValueError("?"), Transient("busy")], ids=repr)
def test_a_quarantine_in_doubt_is_repeated_where_nothing_can_be_observed(
    db: Connection, trouble: BaseException
) -> None:
    backend, id = Recorder(observable=False, quarantine=[trouble, None]), a_teardown(db, grace=SOON)
    if isinstance(trouble, DiedError):
        dies(db, backend)
    else:
        assert runs(db, backend).state == "pending"
    assert (runs(db, backend).step, backend.asked) == ("wait", ["quarantine", "quarantine"])
    due(db, id)
    backend.troubles = {"teardown": [ValueError("?")]}
    stuck = runs(db, backend)
    assert (stuck.stuck_reason, stuck.step) == ("outcome_unknown", "destroy")


def test_a_destruction_in_doubt_is_not_repeated_where_nothing_can_be_observed(db: Connection) -> None:
    backend, id = Recorder(observable=False, teardown=[DiedError()]), a_teardown(db, grace=SOON)
    runs(db, backend)
    due(db, id)
    dies(db, backend)
    assert (runs(db, backend).stuck_reason, backend.asked) == ("outcome_unknown", ["quarantine", "teardown"])


def test_the_last_attempt_of_a_quarantine_leaves_no_unknown_outcome(db: Connection) -> None:
    a_teardown(db, max_attempts=1)
    stuck = runs(db, Recorder(observable=False, quarantine=[Transient("busy")]))
    assert (stuck.stuck_reason, stuck.step) == ("attempts_exhausted", "quarantine")


def test_nothing_is_destroyed_before_its_time_even_where_its_job_is_due(db: Connection) -> None:
    backend, id = Recorder(), a_teardown(db)
    runs(db, backend)
    for _ in range(3):
        db.execute(text("UPDATE outbox SET available_at = now()"))
        after = runs(db, backend)
        early = db.execute(
            text("SELECT available_at - purge_at FROM outbox JOIN resources ON resources.id = resource_id")
        ).scalar_one()
        assert (after.state, after.step, after.attempts, after.started_step) == ("pending", "wait", 0, None)
        assert abs(early) < dt.timedelta(seconds=5)
    assert (backend.asked, claims(db)) == (["quarantine"], [])
    assert events_of(db, id)[-1] == "deferred"


def test_a_zombie_s_quarantine_ends_at_its_question_once_a_restore_has_the_job(db: Connection) -> None:
    backend, id = Recorder(), a_teardown(db)
    (claim,) = claims(db)
    honest = jobs.start

    def slowly(*words: Any, **more: Any) -> Any:
        done = honest(*words, **more)
        a_restore(db, claim.resource_id)
        return done

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jobs, "start", slowly)
        Run(claim, backend, worker="zombie")()
    assert (backend.asked, backend.open, job(db, id).state) == ([], True, "cancelled")
    assert runs(db, backend).kind == "restore"
    assert status_of(db, claim.resource_id) == "active"


def test_the_end_of_a_quarantine_that_came_too_late_is_not_applied(db: Connection) -> None:
    backend, id = Recorder(), a_teardown(db)
    (claim,) = claims(db)

    def meanwhile() -> None:
        a_restore(db, claim.resource_id)

    backend.before["quarantine"] = meanwhile
    Run(claim, backend, worker="zombie")()
    assert (job(db, id).state, job(db, id).step) == ("cancelled", "quarantine")
    assert "quarantined" not in events_of(db, id)
    assert status_of(db, claim.resource_id) == "restoring"


def test_a_claim_that_is_not_ours_any_more_is_told_so(db: Connection) -> None:
    id = a_job(db, state="running", attempts=2)
    Run(claim_of(db, id), Recorder(), worker="w1").still()
    with pytest.raises(ClaimLost):
        Run(claim_of(db, id, fence=1), Recorder(), worker="w1").still()


# -- restores -----------------------------------------------------------------------------------------------------


def test_a_restore_opens_proves_and_gives_back(db: Connection) -> None:
    backend = Recorder()
    id = restoring(db, backend)
    resource = job(db, id).resource_id
    sealed = credentials.seal({"password": "p"})
    unguarded(db, "UPDATE resources SET credentials = :c WHERE id = :id", c=sealed, id=resource)
    done = runs(db, backend)
    assert (done.state, backend.asked, backend.open) == ("succeeded", ["release", "prove"], True)
    assert backend.proved_with == {"password": "p"}
    assert status_of(db, resource) == "active"
    assert events_of(db, id) == ["enqueued", "claimed", "started", "restored"]


def test_a_release_gets_the_manifest_as_its_start_has_stored_it(db: Connection) -> None:
    backend, given = Recorder(), []
    id = restoring(db, backend)
    backend.sees = [Same({"completes": {"role_oid": 4711}})]
    honest = backend.release

    def release(manifest: Json, still: Still = always) -> None:
        given.append(manifest)
        honest(manifest, still)

    backend.release = release  # type: ignore[method-assign]
    runs(db, backend)
    manifest = text("SELECT manifest FROM resources WHERE id = :id")
    assert given == [db.execute(manifest, {"id": job(db, id).resource_id}).scalar_one()]
    assert given[0]["role_oid"] == 4711


def test_a_login_that_fails_is_tried_again_and_then_the_object_is_shut_again(db: Connection) -> None:
    backend = Recorder(prove=[Transient("no login")] * 3)
    id = restoring(db, backend, max_attempts=3)
    for attempt in (1, 2):
        after = runs(db, backend)
        assert (after.state, after.attempts) == ("pending", attempt)
    stuck = runs(db, backend)
    assert (stuck.state, stuck.stuck_reason) == ("stuck", "attempts_exhausted")
    assert (backend.asked[-1], backend.open) == ("quarantine", False)
    assert status_of(db, stuck.resource_id) == "restoring"
    jobs.redrive(db, id, fence=stuck.fence, actor="op", reason="mended")
    assert (runs(db, backend).state, backend.open) == ("succeeded", True)


@pytest.mark.parametrize("verb", ["release", "prove"])
def test_a_refused_restore_is_shut_again_at_once(db: Connection, verb: str) -> None:
    backend = Recorder(**{verb: [Refused("changed hands")]})
    restoring(db, backend)
    stuck = runs(db, backend)
    assert (stuck.state, stuck.stuck_reason, backend.open) == ("stuck", "refused", False)
    assert backend.asked[-1] == "quarantine"


@pytest.mark.parametrize("seen", [Absent({}), Different({}, "another's")], ids=["absent", "different"])
def test_what_is_not_there_is_not_given_back(db: Connection, seen: Observation) -> None:
    backend = Recorder()
    restoring(db, backend)
    backend.sees = [seen]
    stuck = runs(db, backend)
    assert (stuck.stuck_reason, backend.asked) == ("refused", [])
    assert stuck.started_fence is None


@pytest.mark.parametrize("away", [Unavailable("no route"), OutOfService("loading")], ids=repr)
def test_a_restore_is_not_given_up_while_its_server_cannot_be_asked(db: Connection, away: Unavailable) -> None:
    """What was released stays open as long, and no longer."""
    backend = Recorder(prove=[Transient("no login")] * 2, quarantine=[away])
    restoring(db, backend, max_attempts=1)
    backend.troubles["quarantine"] = [away]
    after = runs(db, backend)
    assert (after.state, after.attempts, backend.open) == ("pending", 0, True)
    assert str(away) in after.last_error
    assert db.execute(text("SELECT count(*) FROM breakers")).scalar_one() == 1
    stuck = runs(db, backend)
    assert (stuck.state, backend.open) == ("stuck", False)


def test_attempts_that_dying_workers_spent_end_in_quarantine_too(db: Connection) -> None:
    backend = Recorder(prove=[DiedError()] * 2)
    restoring(db, backend, max_attempts=2)
    for _ in range(2):
        dies(db, backend)
    assert backend.open
    backend.troubles = {"quarantine": [Unavailable("no route"), None]}
    after = runs(db, backend)
    assert (after.state, after.attempts, backend.open) == ("pending", 2, True)
    stuck = runs(db, backend)
    assert (stuck.state, stuck.stuck_reason, backend.open) == ("stuck", "attempts_exhausted", False)
    assert backend.asked[-2:] == ["quarantine", "quarantine"]


@pytest.mark.parametrize("trouble", [Transient("busy"), Refused("replaced"), ValueError("secret words")], ids=repr)
def test_a_restore_that_cannot_be_shut_again_says_that_its_object_may_be_open(
    db: Connection, trouble: Exception
) -> None:
    backend = Recorder(prove=[Refused("not let in")])
    restoring(db, backend)
    backend.troubles["quarantine"] = [trouble] * 2
    stuck = runs(db, backend)
    assert (stuck.state, stuck.stuck_reason) == ("stuck", "refused")
    assert "not let in; and it is not in quarantine: " in stuck.last_error
    assert "secret words" not in stuck.last_error


def test_a_moment_s_trouble_does_not_leave_a_restore_open(db: Connection) -> None:
    backend = Recorder(prove=[Refused("not let in")])
    restoring(db, backend)
    backend.troubles["quarantine"] = [Transient("busy"), None]
    assert (runs(db, backend).state, backend.open) == ("stuck", False)


def test_a_server_out_of_reach_defers_a_restore(db: Connection) -> None:
    backend = Recorder()
    restoring(db, backend)
    backend.troubles["inspect"] = [Unavailable("no route")]
    after = runs(db, backend)
    assert (after.state, after.attempts, backend.asked) == ("pending", 0, [])


@pytest.mark.parametrize("verb", ["release", "prove"])
def test_a_restore_that_died_half_way_is_done_again(db: Connection, verb: str) -> None:
    backend = Recorder(**{verb: [DiedError()]})
    restoring(db, backend)
    dies(db, backend)
    assert (runs(db, backend).state, backend.open) == ("succeeded", True)


def test_a_restore_that_lost_its_claim_before_its_release_opens_nothing(db: Connection) -> None:
    backend = Recorder()
    id = restoring(db, backend)
    honest = jobs.start

    def slowly(*words: Any, **more: Any) -> None:
        honest(*words, **more)
        _pass_on(db)

    (claim,) = claims(db)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jobs, "start", slowly)
        Run(claim, backend, worker="zombie")()
    assert (backend.asked, job(db, id).claimed_by) == ([], "w2")


def test_a_restore_that_lost_its_claim_before_it_gives_up_shuts_nothing(db: Connection) -> None:
    backend = Recorder(prove=[Refused("not let in")])
    id = restoring(db, backend)
    backend.before["prove"] = lambda: _pass_on(db)
    (claim,) = claims(db)
    Run(claim, backend, worker="zombie")()
    assert (backend.asked, backend.open, job(db, id).claimed_by) == (["release", "prove"], True, "w2")


def _pass_on(db: Connection) -> None:
    """The lease passes, and another worker claims the job."""
    _sweep(db)
    assert claims(db, worker="w2")


def test_a_restore_without_a_proof_of_its_own_is_proved_by_an_inspection(db: Connection) -> None:
    backend = Recorder()
    id = restoring(db, backend)
    backend.sees = [Same({}), Same({"found": "it"})]
    assert runs(db, _without_proof(backend)).state == "succeeded"
    detail = text("SELECT detail FROM events WHERE job_id = :id AND event = 'restored'")
    assert db.execute(detail, {"id": id}).scalar_one() == {"seen": {"found": "it"}}


def test_a_restore_without_a_proof_of_its_own_fails_where_nothing_is_there(db: Connection) -> None:
    backend = Recorder()
    restoring(db, backend)
    backend.sees = [Same({}), Absent({})]
    after = runs(db, _without_proof(backend))
    assert (after.state, "not there" in after.last_error) == ("pending", True)


def _without_proof(backend: Recorder) -> Any:
    class Plain:
        observable = True
        inspect = staticmethod(backend.inspect)
        release = staticmethod(backend.release)
        quarantine = staticmethod(backend.quarantine)

    return Plain()


def test_once_the_destruction_has_started_nothing_is_restored(db: Connection) -> None:
    backend, id = Recorder(teardown=[DiedError()]), a_teardown(db, grace=SOON)
    runs(db, backend)
    due(db, id)
    dies(db, backend)
    with pytest.raises(TeardownStarted):
        a_restore(db, job(db, id).resource_id)
    assert runs(db, backend).state == "succeeded"


def test_a_restore_runs_under_a_hold(db: Connection) -> None:
    backend = Recorder()
    restoring(db, backend)
    db.execute(text("INSERT INTO holds (scope, cause, reason, actor) VALUES ('global', 'operator', 'r', 'op')"))
    assert runs(db, backend).state == "succeeded"
