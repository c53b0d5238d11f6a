"""What was observed or went wrong, and what becomes of the job.

The backends here are third parties' own.
"""

import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Connection, text

from outbox import db as database
from outbox import jobs, settings
from outbox.errors import OutOfService, Refused, Transient, Unavailable
from outbox.rows import Claim, Json
from outbox.states import StuckReason
from tests.support.factories import a_claim, a_job, claim_of, claims, events_of, job, status_of
from tests.support.servers import Servers
from tests.support.shelf import Shelf, fail
from tests.support.transitions import module_of
from tests.support.witness import eventually, waits_for_a_lock
from worker.backends import Absent, Different, Observation, Same
from worker.run import Batches, Run


def run(db: Connection, backend: Shelf, **words: Any) -> Any:
    claim = a_claim(db, **words)
    Run(claim, backend, worker="w1")()
    return job(db, claim.id)


def test_a_teardown_is_claimed_started_and_completed(db: Connection) -> None:
    backend = Shelf()
    done = run(db, backend)
    assert (done.state, backend.torn) == ("succeeded", [1])
    assert events_of(db, done.id) == ["claimed", "started", "completed"]
    assert status_of(db, done.resource_id) == "deleted"


def test_jobs_that_share_statements_have_the_same_events(db: Connection) -> None:
    batches, backends = Batches(worker="w1"), [Shelf() for _ in range(8)]
    at_work = [a_claim(db) for _ in backends]
    runs = [Run(claim, backend, worker="w1", batches=batches) for claim, backend in zip(at_work, backends, strict=True)]
    with ThreadPoolExecutor(len(runs)) as pool:
        for ended in [pool.submit(run) for run in runs]:
            ended.result()
    for claim, backend in zip(at_work, backends, strict=True):
        assert (job(db, claim.id).state, backend.torn) == ("succeeded", [1])
        assert events_of(db, claim.id) == ["claimed", "started", "completed"]


def test_a_stale_claim_in_a_shared_statement_does_nothing(db: Connection) -> None:
    id = a_job(db, state="running", attempts=2)
    backend = Shelf()
    Run(claim_of(db, id, fence=1), backend, worker="zombie", batches=Batches(worker="zombie"))()
    assert (backend.torn, events_of(db, id)) == ([], [])


def test_a_shared_statement_tells_two_claims_of_one_job_apart(db: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    under_way, released = threading.Event(), threading.Event()

    def slowly(*words: Any, honest: Callable[..., Any] = jobs.start_all, **more: Any) -> Any:
        under_way.set()
        assert released.wait(20)
        return honest(*words, **more)

    monkeypatch.setattr(jobs, "start_all", slowly)
    batches = Batches(worker="w1")
    other, id = a_claim(db), a_job(db, state="running", attempts=2)
    stale, ours = claim_of(db, id, fence=1), claim_of(db, id)
    first = batches.starts.submit((other, {}))
    assert under_way.wait(20)
    both = [batches.starts.submit((claim, {})) for claim in (stale, ours)]
    released.set()
    assert [answer.result(20) is not None for answer in (first, *both)] == [True, False, True]
    both = [batches.completions.submit((claim, {}, None)) for claim in (stale, ours)]
    assert both[0].result(20) is None
    assert both[1].result(20)


def test_each_job_reads_back_a_shared_statement_whose_answer_is_lost(
    db: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("start_all", "complete_all"):
        lost_once = _answer_lost_once(getattr(jobs, name))
        for place in (jobs, module_of(name)):
            monkeypatch.setattr(place, name, lost_once)
    claim, backend = a_claim(db), Shelf()
    Run(claim, backend, worker="w1", batches=Batches(worker="w1"))()
    assert (job(db, claim.id).state, backend.torn) == ("succeeded", [1])
    assert events_of(db, claim.id) == ["claimed", "started", "completed"]


def test_a_locked_resource_delays_no_other_job(db: Connection, connect: Any) -> None:
    batches = Batches(worker="w1")
    held, free = a_claim(db), a_claim(db)
    holder = connect()
    holder.cursor().execute("SELECT FROM resources WHERE id = %s FOR UPDATE", (str(held.resource_id),))
    with ThreadPoolExecutor(2) as pool:
        waiting = pool.submit(Run(held, Shelf(), worker="w1", batches=batches))
        try:
            eventually(lambda: waits_for_a_lock(db), what="its job waits for the row alone")
            going = pool.submit(Run(free, Shelf(), worker="w1", batches=batches))
            assert wait([going], database.LOCK_TIMEOUT_MS / 2000).done, "the other job ends before that wait times out"
            assert (job(db, free.id).state, waiting.done()) == ("succeeded", False)
        finally:  # or the pool would wait for that wait's timeout
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


def test_an_absent_object_completes_its_job_without_a_teardown(db: Connection) -> None:
    backend = Shelf(sees=[Absent({"looked": "yes"})])
    done = run(db, backend)
    assert (done.state, backend.torn) == ("succeeded", [])
    seen = db.execute(text("SELECT detail->'seen' FROM events WHERE event = 'completed'")).scalar_one()
    assert seen == {"looked": "yes", "already_gone": True}


def test_a_removal_by_an_earlier_attempt_is_credited_to_it(db: Connection) -> None:
    claim = a_claim(db)
    jobs.start(db, claim, worker="dead")
    jobs.retry(db, claim, worker="dead", error="e")
    db.execute(text("UPDATE outbox SET available_at = now()"))
    Run(claims(db)[0], Shelf(sees=[Absent({})]), worker="w2")()
    seen = db.execute(text("SELECT detail->'seen' FROM events WHERE event = 'completed'")).scalar_one()
    assert seen == {"done_by_fence": 1}


def test_a_different_object_makes_its_job_stuck_before_the_start(db: Connection) -> None:
    backend = Shelf(sees=[Different({}, "another owner's")])
    done = run(db, backend)
    assert (done.state, done.stuck_reason, backend.torn) == ("stuck", "refused", [])
    assert "another owner's" in done.last_error
    assert done.started_fence is None


def test_an_unavailable_backend_defers_the_job_and_opens_its_breaker(db: Connection) -> None:
    done = run(db, Shelf(sees=[Unavailable("no route")]))
    assert (done.state, done.attempts) == ("pending", 0)
    assert db.execute(text("SELECT backend, reason FROM breakers")).all() == [("pg-main", "no route")]


def test_a_backend_that_dies_inside_the_teardown_costs_an_attempt(db: Connection) -> None:
    done = run(db, Shelf(does=fail(Unavailable("gone"))))
    assert (done.state, done.attempts) == ("pending", 1)


def test_a_probe_whose_work_the_backend_does_closes_the_breaker(db: Connection) -> None:
    a_job(db)
    db.execute(text("INSERT INTO breakers VALUES ('pg-main', 1, now(), now(), 'x')"))
    Run(claims(db)[0], Shelf(), worker="w")()
    assert db.execute(text("SELECT count(*) FROM breakers")).scalar() == 0


def _half_open(db: Connection) -> Claim:
    a_job(db)
    db.execute(text("INSERT INTO breakers VALUES ('pg-main', 1, now(), now(), 'x')"))
    return claims(db)[0]


def test_a_probe_whose_work_is_refused_keeps_the_breaker_open_and_its_attempts(db: Connection) -> None:
    claim = _half_open(db)
    Run(claim, Shelf(does=fail(OutOfService("MISCONF"))), worker="w")()
    assert db.execute(text("SELECT failures, retry_at > now() FROM breakers")).one() == (2, True)
    assert (job(db, claim.id).state, job(db, claim.id).attempts) == ("pending", 0)


def test_a_server_that_does_no_work_costs_not_even_the_last_attempt(db: Connection) -> None:
    done = run(db, Shelf(does=fail(OutOfService("read-only"))), attempts=1, max_attempts=2)
    assert (done.state, done.attempts) == ("pending", 1)


def test_an_inspection_does_not_close_the_breaker(db: Connection) -> None:
    claim = _half_open(db)
    Run(claim, Shelf(sees=[Absent({})]), worker="w")()
    assert job(db, claim.id).state == "succeeded"
    assert db.execute(text("SELECT failures, retry_at <= now() FROM breakers")).all() == [(1, True)]


@pytest.mark.parametrize("dies", ["inspect", "teardown"])
@pytest.mark.parametrize("brake", ["", 'brake = "50/10m"'])
def test_control_connections_that_die_in_the_pool_cost_no_attempt(
    db: Connection, settled: dict[str, str], servers: Servers, capsys: pytest.CaptureFixture[str], dies: str, brake: str
) -> None:
    """A firewall or a restart ends them while they lie idle: the next use of each finds it dead."""
    path = Path(settled["DEPROVISIONER_BACKENDS"])
    path.write_text(path.read_text().replace('kind = "postgres"\n', f'kind = "postgres"\n{brake}\n'))
    settings.backends.cache_clear()
    ended: list[tuple[bool]] = []

    class Idle(Shelf):
        def inspect(self, manifest: Json) -> Observation:
            return self._after("inspect", super().inspect(manifest))

        def teardown(self, manifest: Json, fence: int) -> Json:
            return self._after("teardown", super().teardown(manifest, fence))

        def _after(self, verb: str, answer: Any) -> Any:
            if verb == dies:
                asked = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = %s AND pid <> %s"
                ours = db.connection.driver_connection.info
                ended.extend(servers.control.query(asked, ours.dbname, ours.backend_pid))
            return answer

    claim, backend = a_claim(db), Idle()
    with database.statement() as one, database.statement() as another:  # both go back to the pool, and lie there
        one.execute(text("SELECT 1"))
        another.execute(text("SELECT 1"))
    Run(claim, backend, worker="w")()
    assert len(ended) >= 2
    done = job(db, claim.id)
    assert (done.state, done.attempts, backend.torn) == ("succeeded", 1, [1])
    said = capsys.readouterr().out
    assert "control_database_lost" in said
    assert not re.search(r"unexpected \w+Error", said)


_ENDS_WITHOUT_WORK: dict[str, tuple[Shelf, str]] = {
    "absent": (Shelf(sees=[Absent({})]), "succeeded"),
    "different": (Shelf(sees=[Different({}, "another's")]), "stuck"),
    "refused": (Shelf(does=fail(Refused("changed hands"))), "stuck"),
    "failed": (Shelf(does=fail(Transient("in use"))), "pending"),
    "unexpected": (Shelf(does=fail(ValueError("a bug"))), "pending"),
}


@pytest.mark.parametrize("how", _ENDS_WITHOUT_WORK)
def test_a_probe_that_ends_without_work_makes_no_other_job_wait_and_the_first_work_closes_the_breaker(
    db: Connection, how: str
) -> None:
    """Half-open is a pace, one job at a time, and no pause: so a breaker may stay half-open for as long as it likes."""
    backend, state = _ENDS_WITHOUT_WORK[how]
    probe = _half_open(db)
    waiting = [a_job(db) for _ in range(3)]
    assert claims(db, 3) == [], "nothing but the probe goes to a server that may not work"
    Run(probe, backend, worker="w")()
    assert job(db, probe.id).state == state
    [second] = claims(db, 3)
    Run(second, Shelf(sees=[Absent({})]), worker="w")()
    [third] = claims(db, 3)
    Run(third, Shelf(), worker="w")()
    assert db.execute(text("SELECT count(*) FROM breakers")).scalar_one() == 0
    assert [job(db, id).state for id in waiting] == ["succeeded", "succeeded", "pending"]


def test_a_probe_that_never_asked_the_backend_is_given_back(db: Connection) -> None:
    a_job(db)
    db.execute(text("INSERT INTO breakers VALUES ('pg-main', 1, now(), now(), 'x')"))
    claim = replace(claims(db)[0], contended=True)
    Run(claim, Shelf(), worker="w")()
    assert db.execute(text("SELECT retry_at <= now() FROM breakers")).scalar_one()


@pytest.mark.parametrize("error", [Transient("busy"), ValueError("a bug")])
def test_any_other_failure_is_retried_if_the_backend_can_be_inspected(db: Connection, error: Exception) -> None:
    done = run(db, Shelf(does=fail(error)))
    assert (done.state, done.attempts) == ("pending", 1)
    assert ("busy" if isinstance(error, Transient) else "unexpected ValueError") in done.last_error


def test_an_unobservable_backend_that_fails_after_the_start_makes_the_job_stuck(db: Connection) -> None:
    done = run(db, Shelf(observable=False, does=fail(ValueError("?"))))
    assert (done.state, done.stuck_reason) == ("stuck", "outcome_unknown")


def test_a_started_teardown_on_an_unobservable_backend_is_not_repeated(db: Connection) -> None:
    claim = a_claim(db)
    jobs.start(db, claim, worker="dead")
    db.execute(text("UPDATE outbox SET lease_expires_at = now() - interval '1 s'"))
    jobs.sweep(db, actor="w2")
    backend = Shelf(observable=False)
    Run(claims(db)[0], backend, worker="w2")()
    assert (job(db, claim.id).stuck_reason, backend.torn) == ("outcome_unknown", [])


def unknown(db: Connection, backend: Shelf) -> Claim:
    """A job on an unobservable backend whose worker tore down, and died before it recorded that."""
    claim = a_claim(db)
    jobs.start(db, claim, worker="dead")
    backend.teardown({}, claim.fence)
    db.execute(text("UPDATE outbox SET lease_expires_at = now() - interval '1 s'"))
    jobs.sweep(db, actor="w2")
    Run(claims(db)[0], backend, worker="w2")()
    return claim_of(db, claim.id)


def test_a_redriven_job_does_not_repeat_a_teardown_that_happened(db: Connection) -> None:
    claim = a_claim(db)
    backend = Shelf()
    jobs.start(db, claim, worker="dead")
    backend.teardown({}, claim.fence)
    jobs.stick(db, claim, worker="dead", why=StuckReason.ATTEMPTS_EXHAUSTED, error="e")
    jobs.redrive(db, claim.id, fence=1, actor="op", reason="r")
    Run(claims(db)[0], backend, worker="w2")()
    assert (job(db, claim.id).state, backend.torn) == ("succeeded", [1])


def test_one_operator_cannot_repeat_a_teardown_on_an_unobservable_backend(db: Connection) -> None:
    backend = Shelf(observable=False)
    claim = unknown(db, backend)
    jobs.redrive(db, claim.id, fence=2, actor="op", reason="r")
    Run(claims(db)[0], backend, worker="w3")()
    assert (job(db, claim.id).stuck_reason, backend.torn) == ("outcome_unknown", [1])


def test_two_operators_repeat_a_teardown_on_an_unobservable_backend_once(db: Connection) -> None:
    backend = Shelf(observable=False, sees=[Same({}), Absent({})])
    claim = unknown(db, backend)
    for who in ("token:1:a", "token:1:a", "token:2:b"):
        assert (job(db, claim.id).state, backend.torn) == ("stuck", [1])
        jobs.redrive_forced(db, claim.id, fence=2, actor=who, reason="r")
    assert (job(db, claim.id).forced_fence, job(db, claim.id).started_fence, job(db, claim.id).fence) == (2, 1, 2)
    Run(claims(db)[0], backend, worker="w3")()
    assert (job(db, claim.id).state, backend.torn) == ("succeeded", [1, 3])


def test_a_forced_redrive_does_not_cover_the_attempt_that_follows_it(db: Connection) -> None:
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


def test_a_refusal_inside_the_teardown_makes_the_job_stuck(db: Connection) -> None:
    done = run(db, Shelf(does=fail(Refused("changed hands"))))
    assert (done.state, done.stuck_reason) == ("stuck", "refused")


def test_what_a_teardown_had_done_before_it_was_refused_is_kept_with_the_stuck_event(db: Connection) -> None:
    refused = Refused("must be owner of database orders")
    refused.did = {"statements": ["ALTER ROLE orders NOLOGIN"]}
    done = run(db, Shelf(does=fail(refused)))
    told = text("SELECT detail FROM events WHERE job_id = :id AND event = 'stuck'")
    assert db.execute(told, {"id": done.id}).scalar_one()["did"] == refused.did


def test_an_object_still_there_after_the_teardown_is_retried(db: Connection) -> None:
    done = run(db, Shelf(sees=[Same({}), Same({})]))
    assert done.state == "pending"
    assert "still there" in done.last_error


def test_a_different_object_after_the_teardown_makes_the_job_stuck(db: Connection) -> None:
    done = run(db, Shelf(sees=[Same({}), Different({}, "another owner's by now")]))
    assert (done.state, done.stuck_reason) == ("stuck", "refused")


def test_a_different_object_of_a_failed_provision_makes_the_job_stuck(db: Connection) -> None:
    """Only an adoption that was never activated owns no object."""
    claim = replace(a_claim(db), activated=False)
    Run(claim, Shelf(sees=[Different({}, "another owner's")]), worker="w")()
    assert job(db, claim.id).stuck_reason == "refused"


def test_an_unobservable_backend_that_dies_in_the_last_attempt_leaves_the_outcome_unknown(db: Connection) -> None:
    done = run(db, Shelf(observable=False, does=fail(Unavailable("gone"))), attempts=2, max_attempts=3)
    assert done.stuck_reason == "outcome_unknown"


def test_a_failed_last_attempt_makes_the_job_stuck(db: Connection) -> None:
    a_job(db, attempts=2, max_attempts=3)
    claim = claims(db)[0]
    Run(claim, Shelf(does=fail(Transient("busy"))), worker="w")()
    assert job(db, claim.id).stuck_reason == "attempts_exhausted"


def test_a_late_completion_is_recorded_and_not_applied(db: Connection) -> None:
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


def test_a_stale_claim_does_nothing(db: Connection) -> None:
    id = a_job(db, state="running", attempts=2)
    backend = Shelf()
    Run(claim_of(db, id, fence=1), backend, worker="zombie")()
    assert backend.torn == []
    assert events_of(db, id) == []


@pytest.mark.parametrize("shared", [False, True])
def test_a_start_stores_what_an_older_manifest_lacks_and_the_teardown_has_it(db: Connection, shared: bool) -> None:
    claim = a_claim(db)
    backend = Shelf(sees=[Same({"completes": {"role_oid": 4711}}), Absent({})])
    torn, honest = [], backend.teardown

    def teardown(manifest: Any, fence: int) -> Any:
        torn.append(manifest)
        return honest(manifest, fence)

    backend.teardown = teardown  # type: ignore[method-assign]
    Run(claim, backend, worker="w1", batches=Batches(worker="w1") if shared else None)()
    assert torn == [claim.manifest | {"role_oid": 4711}]
    stored = db.execute(text("SELECT manifest FROM resources WHERE id = :id"), {"id": claim.resource_id}).scalar_one()
    assert stored == torn[0]
    started = db.execute(
        text("SELECT detail -> 'seen' -> 'completes' FROM events WHERE job_id = :id AND event = 'started'"),
        {"id": claim.id},
    ).scalar_one()
    assert started == {"role_oid": 4711}
