"""The runner's table: what was observed or went wrong, and what becomes of the job.

The backends here are third parties' own.
"""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Connection, text

from outbox import credentials, jobs, resources
from outbox import db as database
from outbox.errors import Refused, Transient, Unavailable
from outbox.resources import NewResource
from outbox.rows import Claim, Json
from outbox.states import StuckReason
from tests.support.factories import a_claim, a_job, claim_of, claims, events_of, job, status_of
from tests.support.shelf import Shelf
from tests.support.transitions import module_of
from tests.support.witness import eventually, waits_for_a_lock
from worker.backends import Absent, Different, Same
from worker.runner import Run, Shared


def fail(error: Exception) -> Callable[[], None]:
    def raising() -> None:
        raise error

    return raising


def run(db: Connection, backend: Shelf, **words: Any) -> Any:
    claim = a_claim(db, **words)
    Run(claim, backend, worker="w1")()
    return job(db, claim.id)


def test_the_straight_way_is_claim_start_complete(db: Connection) -> None:
    backend = Shelf()
    done = run(db, backend)
    assert (done.state, backend.torn) == ("succeeded", [1])
    assert events_of(db, done.id) == ["claimed", "started", "completed"]
    assert status_of(db, done.resource_id) == "deleted"


def test_jobs_that_share_their_statements_go_the_same_way(db: Connection) -> None:
    shared, backends = Shared(worker="w1"), [Shelf() for _ in range(8)]
    at_work = [a_claim(db) for _ in backends]
    runs = [Run(claim, backend, worker="w1", shared=shared) for claim, backend in zip(at_work, backends, strict=True)]
    with ThreadPoolExecutor(len(runs)) as pool:
        for ended in [pool.submit(run) for run in runs]:
            ended.result()
    for claim, backend in zip(at_work, backends, strict=True):
        assert (job(db, claim.id).state, backend.torn) == ("succeeded", [1])
        assert events_of(db, claim.id) == ["claimed", "started", "completed"]


def test_a_stale_claim_among_those_that_share_a_statement_does_nothing(db: Connection) -> None:
    id = a_job(db, state="running", attempts=2)
    backend = Shelf()
    Run(claim_of(db, id, fence=1), backend, worker="zombie", shared=Shared(worker="zombie"))()
    assert (backend.torn, events_of(db, id)) == ([], [])


def test_an_old_claim_and_a_new_one_of_the_same_job_in_one_statement_are_told_apart(
    db: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    under_way, gate = threading.Event(), threading.Event()

    def slowly(*words: Any, honest: Callable[..., Any] = jobs.start_all, **more: Any) -> Any:
        under_way.set()
        assert gate.wait(20)
        return honest(*words, **more)

    monkeypatch.setattr(jobs, "start_all", slowly)
    shared = Shared(worker="w1")
    other, id = a_claim(db), a_job(db, state="running", attempts=2)
    stale, ours = claim_of(db, id, fence=1), claim_of(db, id)
    first = shared.starts.ask((other, {}))
    assert under_way.wait(20)
    both = [shared.starts.ask((claim, {})) for claim in (stale, ours)]
    gate.set()
    assert [answer.result(20) for answer in (first, *both)] == [True, None, True]
    both = [shared.completions.ask((claim, {}, None)) for claim in (stale, ours)]
    assert both[0].result(20) is None
    assert both[1].result(20)


def test_a_shared_statement_whose_answer_is_lost_is_read_back_by_each(
    db: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("start_all", "complete_all"):
        lost_once = _answer_lost_once(getattr(jobs, name))
        for place in (jobs, module_of(name)):
            monkeypatch.setattr(place, name, lost_once)
    claim, backend = a_claim(db), Shelf()
    Run(claim, backend, worker="w1", shared=Shared(worker="w1"))()
    assert (job(db, claim.id).state, backend.torn) == ("succeeded", [1])
    assert events_of(db, claim.id) == ["claimed", "started", "completed"]


def test_a_resource_that_somebody_holds_keeps_no_other_job_waiting(db: Connection, connect: Any) -> None:
    shared = Shared(worker="w1")
    held, free = a_claim(db), a_claim(db)
    holder = connect()
    holder.cursor().execute("SELECT FROM resources WHERE id = %s FOR UPDATE", (str(held.resource_id),))
    with ThreadPoolExecutor(2) as pool:
        waiting = pool.submit(Run(held, Shelf(), worker="w1", shared=shared))
        eventually(lambda: waits_for_a_lock(db), what="it waits by itself")
        going = pool.submit(Run(free, Shelf(), worker="w1", shared=shared))
        assert wait([going], database.STATEMENT_TIMEOUT_MS / 2000).done, "sooner than a statement gives up waiting"
        assert (job(db, free.id).state, waiting.done()) == ("succeeded", False)
        holder.commit()
        waiting.result(20)
    assert job(db, held.id).state == "succeeded"


def _answer_lost_once(honest: Callable[..., Any]) -> Callable[..., Any]:
    answers = iter([sa.exc.OperationalError("the answer was lost", {}, Exception())])

    def act(*words: Any, **more: Any) -> Any:
        done = honest(*words, **more)
        for lost in answers:
            raise lost
        return done

    return act


def test_what_is_absent_already_is_completed_without_a_teardown(db: Connection) -> None:
    backend = Shelf(sees=[Absent({"looked": "yes"})])
    done = run(db, backend)
    assert (done.state, backend.torn) == ("succeeded", [])
    seen = db.execute(text("SELECT detail->'seen' FROM events WHERE event = 'completed'")).scalar_one()
    assert seen == {"looked": "yes", "already_gone": True}


def test_what_an_earlier_attempt_did_is_said_to_be_its_doing(db: Connection) -> None:
    claim = a_claim(db)
    jobs.start(db, claim, worker="dead")
    jobs.retry(db, claim, worker="dead", error="e")
    db.execute(text("UPDATE outbox SET available_at = now()"))
    Run(claims(db)[0], Shelf(sees=[Absent({})]), worker="w2")()
    seen = db.execute(text("SELECT detail->'seen' FROM events WHERE event = 'completed'")).scalar_one()
    assert seen == {"done_by_fence": 1}


def test_what_is_different_is_stuck_and_never_started(db: Connection) -> None:
    backend = Shelf(sees=[Different({}, "somebody else's")])
    done = run(db, backend)
    assert (done.state, done.stuck_reason, backend.torn) == ("stuck", "refused", [])
    assert "somebody else's" in done.last_error
    assert done.started_fence is None


def test_an_unavailable_backend_defers_and_opens_its_breaker(db: Connection) -> None:
    done = run(db, Shelf(sees=[Unavailable("no route")]))
    assert (done.state, done.attempts) == ("pending", 0)
    assert db.execute(text("SELECT backend, reason FROM breakers")).all() == [("pg-main", "no route")]


def test_a_backend_that_dies_inside_the_teardown_costs_an_attempt(db: Connection) -> None:
    done = run(db, Shelf(does=fail(Unavailable("gone"))))
    assert (done.state, done.attempts) == ("pending", 1)


def test_a_probe_that_finds_the_backend_closes_the_breaker(db: Connection) -> None:
    a_job(db)
    db.execute(text("INSERT INTO breakers VALUES ('pg-main', 1, now(), now(), 'x')"))
    Run(claims(db)[0], Shelf(), worker="w")()
    assert db.execute(text("SELECT count(*) FROM breakers")).scalar() == 0


def test_a_probe_that_never_asked_the_backend_is_given_back(db: Connection) -> None:
    a_job(db)
    db.execute(text("INSERT INTO breakers VALUES ('pg-main', 1, now(), now(), 'x')"))
    claim = replace(claims(db)[0], contended=True)
    Run(claim, Shelf(), worker="w")()
    assert db.execute(text("SELECT retry_at <= now() FROM breakers")).scalar_one()


@pytest.mark.parametrize("error", [Transient("busy"), ValueError("a bug")])
def test_any_other_failure_is_retried_where_the_effect_can_be_observed(db: Connection, error: Exception) -> None:
    done = run(db, Shelf(does=fail(error)))
    assert (done.state, done.attempts) == ("pending", 1)
    assert ("busy" if isinstance(error, Transient) else "unexpected ValueError") in done.last_error


def test_a_failure_after_start_of_the_unobservable_is_a_persons(db: Connection) -> None:
    done = run(db, Shelf(observable=False, does=fail(ValueError("?"))))
    assert (done.state, done.stuck_reason) == ("stuck", "outcome_unknown")


def test_the_unobservable_is_not_run_again_after_a_start(db: Connection) -> None:
    claim = a_claim(db)
    jobs.start(db, claim, worker="dead")
    db.execute(text("UPDATE outbox SET lease_expires_at = now() - interval '1 s'"))
    jobs.sweep(db, actor="w2")
    backend = Shelf(observable=False)
    Run(claims(db)[0], backend, worker="w2")()
    assert (job(db, claim.id).stuck_reason, backend.torn) == ("outcome_unknown", [])


def unknown(db: Connection, backend: Shelf) -> Claim:
    """A job of the unobservable whose attempt had its effect, and died before it could tell."""
    claim = a_claim(db)
    jobs.start(db, claim, worker="dead")
    backend.teardown({}, claim.fence)
    db.execute(text("UPDATE outbox SET lease_expires_at = now() - interval '1 s'"))
    jobs.sweep(db, actor="w2")
    Run(claims(db)[0], backend, worker="w2")()
    return claim_of(db, claim.id)


def test_what_happened_is_not_done_again_when_its_job_is_redriven(db: Connection) -> None:
    claim = a_claim(db)
    backend = Shelf()
    jobs.start(db, claim, worker="dead")
    backend.teardown({}, claim.fence)
    jobs.stick(db, claim, worker="dead", why=StuckReason.ATTEMPTS_EXHAUSTED, error="e")
    jobs.redrive(db, claim.id, fence=1, actor="op", reason="r")
    Run(claims(db)[0], backend, worker="w2")()
    assert (job(db, claim.id).state, backend.torn) == ("succeeded", [1])


def test_the_unobservable_that_is_redriven_by_one_operator_is_unknown_again(db: Connection) -> None:
    backend = Shelf(observable=False)
    claim = unknown(db, backend)
    jobs.redrive(db, claim.id, fence=2, actor="op", reason="r")
    Run(claims(db)[0], backend, worker="w3")()
    assert (job(db, claim.id).stuck_reason, backend.torn) == ("outcome_unknown", [1])


def test_the_unobservable_acts_once_more_when_two_operators_force_it(db: Connection) -> None:
    backend = Shelf(observable=False, sees=[Same({}), Absent({})])
    claim = unknown(db, backend)
    for who in ("token:1:a", "token:1:a", "token:2:b"):
        assert (job(db, claim.id).state, backend.torn) == ("stuck", [1])
        jobs.redrive_forced(db, claim.id, fence=2, actor=who, reason="r")
    assert (job(db, claim.id).forced_fence, job(db, claim.id).started_fence, job(db, claim.id).fence) == (2, 1, 2)
    Run(claims(db)[0], backend, worker="w3")()
    assert (job(db, claim.id).state, backend.torn) == ("succeeded", [1, 3])


def test_force_is_for_what_was_done_before_it_and_not_for_its_own_attempt(db: Connection) -> None:
    backend = Shelf(observable=False, sees=[Same({})])
    claim = unknown(db, backend)
    for who in ("token:1:a", "token:2:b"):
        jobs.redrive_forced(db, claim.id, fence=2, actor=who, reason="r")
    again = claims(db)[0]
    jobs.start(db, again, worker="dead")
    db.execute(text("UPDATE outbox SET lease_expires_at = now() - interval '1 s'"))
    jobs.sweep(db, actor="w2")
    Run(claims(db)[0], backend, worker="w3")()
    assert (job(db, claim.id).stuck_reason, backend.torn) == ("outcome_unknown", [1])


def test_a_refusal_inside_the_teardown_is_stuck(db: Connection) -> None:
    done = run(db, Shelf(does=fail(Refused("changed hands"))))
    assert (done.state, done.stuck_reason) == ("stuck", "refused")


def test_what_is_still_there_after_the_teardown_is_retried(db: Connection) -> None:
    done = run(db, Shelf(sees=[Same({}), Same({})]))
    assert done.state == "pending"
    assert "still there" in done.last_error


def test_what_is_different_after_the_teardown_is_stuck(db: Connection) -> None:
    done = run(db, Shelf(sees=[Same({}), Different({}, "somebody else's by now")]))
    assert (done.state, done.stuck_reason) == ("stuck", "refused")


def test_what_was_being_made_and_is_different_is_stuck(db: Connection) -> None:
    """Only an adoption that never came to be has nothing there that is its own."""
    claim = replace(a_claim(db), activated=False)
    Run(claim, Shelf(sees=[Different({}, "somebody else's")]), worker="w")()
    assert job(db, claim.id).stuck_reason == "refused"


def test_the_unobservable_that_dies_under_its_last_attempt_is_unknown_not_exhausted(db: Connection) -> None:
    done = run(db, Shelf(observable=False, does=fail(Unavailable("gone"))), attempts=2, max_attempts=3)
    assert done.stuck_reason == "outcome_unknown"


def test_the_last_attempt_that_fails_is_stuck(db: Connection) -> None:
    a_job(db, attempts=2, max_attempts=3)
    claim = claims(db)[0]
    Run(claim, Shelf(does=fail(Transient("busy"))), worker="w")()
    assert job(db, claim.id).stuck_reason == "attempts_exhausted"


def test_a_teardown_does_not_look_while_the_birth_is_still_running(db: Connection) -> None:
    """What is absent at this moment may be there when the birth has ended."""
    birth = a_birth(db)
    jobs.start_provision(db, birth, worker="w1", manifest={"name": "x"}, credentials=b"x")
    jobs.enqueue(db, birth.resource_id, actor="me")
    death = claims(db)[0]
    Run(death, Shelf(sees=[]), worker="w2")()
    assert (job(db, death.id).state, job(db, death.id).attempts) == ("pending", 0)
    assert status_of(db, birth.resource_id) == "deleting"


def test_a_birth_that_comes_late_while_its_resource_is_being_deleted_undoes_itself_too(db: Connection) -> None:
    claim = a_birth(db)

    def meanwhile() -> None:
        backend.does = lambda: None
        db.execute(text("UPDATE outbox SET lease_expires_at = now() - interval '1 s'"))
        jobs.sweep(db, actor="w2")
        jobs.enqueue(db, claim.resource_id, actor="me")

    backend = Shelf(does=meanwhile)
    Run(claim, backend, worker="w1")()
    assert backend.torn == [claim.fence]


def test_late_news_is_kept_and_not_applied(db: Connection) -> None:
    claim = a_claim(db)

    def meanwhile() -> None:
        db.execute(text("UPDATE outbox SET lease_expires_at = now() - interval '1 s'"))
        jobs.sweep(db, actor="w2")
        claims(db, worker="w2")

    Run(claim, Shelf(does=meanwhile), worker="w1")()
    after = job(db, claim.id)
    assert (after.state, after.claimed_by, after.fence) == ("running", "w2", 2)
    assert events_of(db, claim.id) == ["claimed", "started", "swept", "claimed", "late"]
    assert status_of(db, claim.resource_id) == "deleting"


def a_birth(db: Connection, *, adopt: Json | None = None) -> Claim:
    new = NewResource(tenant="acme", kind="postgres", backend="pg-main", name="orders", manifest=adopt)
    resources.register(db, new, actor="me")
    return claims(db)[0]


def test_a_birth_activates_and_keeps_its_credentials_sealed(db: Connection) -> None:
    claim = a_birth(db)
    Run(claim, Shelf(), worker="w")()
    resource, sealed = resources.find(db, claim.resource_id)
    assert resource.status == "active"
    assert sealed is not None
    assert credentials.unseal(sealed) == {"password": "p"}


@pytest.mark.parametrize("error", [Refused("no such right")])
def test_a_birth_that_is_refused_is_rolled_back_at_once(db: Connection, error: Exception) -> None:
    claim = a_birth(db)
    Run(claim, Shelf(does=fail(error)), worker="w")()
    assert job(db, claim.id).state == "cancelled"
    assert status_of(db, claim.resource_id) == "deleting"
    undo = claims(db)[0]
    Run(undo, Shelf(), worker="w")()
    assert status_of(db, claim.resource_id) == "deleted"


def test_a_birth_whose_workers_die_each_time_is_rolled_back(db: Connection) -> None:
    claim = a_birth(db)
    db.execute(text("UPDATE outbox SET max_attempts = 1, lease_expires_at = now() - interval '1 s'"))
    jobs.sweep(db, actor="w2")
    Run(claims(db)[0], Shelf(does=fail(AssertionError("must not be reached"))), worker="w")()
    assert job(db, claim.id).state == "cancelled"
    assert events_of(db, claim.id)[-2:] == ["claimed", "rolled_back"], "it was not started again"


def test_a_birth_no_longer_wanted_ends_before_it_acts(db: Connection) -> None:
    claim = a_birth(db)
    jobs.enqueue(db, claim.resource_id, actor="me")
    Run(claim, Shelf(does=fail(AssertionError("must not be reached"))), worker="w")()
    assert job(db, claim.id).state == "cancelled"
    never_made = claims(db)[0]
    Run(never_made, Shelf(does=fail(AssertionError("must not be reached"))), worker="w")()
    assert status_of(db, claim.resource_id) == "deleted"


@pytest.mark.parametrize("answer", [lambda: None, fail(Transient("lost")), fail(Unavailable("lost"))])
def test_a_birth_that_comes_late_undoes_itself(db: Connection, answer: Callable[[], None]) -> None:
    """Its worker stood still; meanwhile the resource was deleted, and seen to be absent. The answer may be lost too."""
    claim = a_birth(db)

    def meanwhile() -> None:
        backend.does = lambda: None
        db.execute(text("UPDATE outbox SET lease_expires_at = now() - interval '1 s'"))
        jobs.sweep(db, actor="w2")
        jobs.enqueue(db, claim.resource_id, actor="me")
        birth, death = claims(db, 2, worker="w2")
        Run(birth, Shelf(), worker="w2")()
        Run(death, Shelf(sees=[Absent({})]), worker="w2")()
        assert status_of(db, claim.resource_id) == "deleted"
        answer()

    backend = Shelf(does=meanwhile)
    Run(claim, backend, worker="w1")()
    assert backend.torn == [claim.fence]
    assert events_of(db, claim.id)[-2:] == ["late", "late"]


def test_a_birth_that_comes_late_leaves_what_another_attempt_made_active(db: Connection) -> None:
    claim = a_birth(db)

    def meanwhile() -> None:
        backend.does = lambda: None
        db.execute(text("UPDATE outbox SET lease_expires_at = now() - interval '1 s'"))
        jobs.sweep(db, actor="w2")
        Run(claims(db, worker="w2")[0], Shelf(), worker="w2")()

    backend = Shelf(does=meanwhile)
    Run(claim, backend, worker="w1")()
    assert backend.torn == []
    assert status_of(db, claim.resource_id) == "active"


def test_an_adoption_that_comes_late_destroys_nothing(db: Connection) -> None:
    claim = a_birth(db, adopt={"database": "theirs"})

    def meanwhile() -> None:
        backend.does = lambda: None
        db.execute(text("UPDATE outbox SET lease_expires_at = now() - interval '1 s'"))
        jobs.sweep(db, actor="w2")
        jobs.enqueue(db, claim.resource_id, actor="me")

    backend = Shelf(does=meanwhile)
    Run(claim, backend, worker="w1")()
    assert backend.torn == []
    assert events_of(db, claim.id)[-1] == "late"


def test_an_adoption_that_fails_waits_for_a_person_and_destroys_nothing(db: Connection) -> None:
    claim = a_birth(db, adopt={"database": "theirs"})
    Run(claim, Shelf(does=fail(Refused("not there"))), worker="w")()
    assert (job(db, claim.id).state, job(db, claim.id).stuck_reason) == ("stuck", "refused")
    assert status_of(db, claim.resource_id) == "provisioning"
    jobs.enqueue(db, claim.resource_id, actor="me")
    backend = Shelf(sees=[Different({}, "no mark of ours")])
    Run(claims(db)[0], backend, worker="w")()
    assert status_of(db, claim.resource_id) == "deleted"
    assert backend.torn == []


def test_an_adopted_object_of_an_active_resource_that_changed_is_stuck(db: Connection) -> None:
    claim = a_birth(db, adopt={"database": "theirs"})
    Run(claim, Shelf(), worker="w")()
    jobs.enqueue(db, claim.resource_id, actor="me")
    death = claims(db)[0]
    Run(death, Shelf(sees=[Different({}, "another's now")]), worker="w")()
    assert job(db, death.id).stuck_reason == StuckReason.REFUSED


def test_a_stale_claim_does_nothing_at_all(db: Connection) -> None:
    id = a_job(db, state="running", attempts=2)
    backend = Shelf()
    Run(claim_of(db, id, fence=1), backend, worker="zombie")()
    assert backend.torn == []
    assert events_of(db, id) == []
