"""Bulk work: exactly the previewed set, canaries first, each job once, whichever worker advances it or dies."""

import datetime as dt
import sys
import threading
import time
import tracemalloc
import uuid
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Connection, text

from outbox import db as database
from outbox import jobs, operations, queries, tokens
from outbox.errors import AlreadyFinished, AlreadyRunning, BadRequest, DigestMismatch, NotFound
from outbox.queries import EVERY_JOB, JobFilter
from outbox.rows import Operation
from outbox.states import JobState
from tests.support.bulk import claimed, now, offboard, outcomes, step, stick, succeed
from tests.support.factories import a_job, a_resource, begun_redrive, events_of, job, status_of, stuck_jobs, unguarded
from tests.support.witness import eventually, waits_for_a_lock


def at_once(n: int, act: Callable[[int], Any]) -> list[Any]:
    barrier, answers = threading.Barrier(n), [None] * n

    def one(number: int) -> None:
        barrier.wait()
        answers[number] = act(number)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


# -- the set and its digest -----------------------------------------------------------------------------------------


def test_a_preview_tells_how_many_of_which_backends_and_the_first_of_them(db: Connection) -> None:
    ids = stuck_jobs(db, *["pg-main"] * 23, "other")
    a_job(db)
    seen = operations.preview_redrive(db, EVERY_JOB)
    assert (seen.count, seen.backends) == (24, {"other": 1, "pg-main": 23})
    assert [j.id for j in seen.sample] == ids[:20]
    assert operations.preview_redrive(db, JobFilter(backend="other")).count == 1


def moved_on(db: Connection) -> None:
    id = db.execute(text("SELECT max(id) FROM outbox")).scalar_one()
    jobs.redrive(db, id, fence=1, actor="other", reason="r")
    stick(db, id)


@pytest.mark.parametrize(
    ("meanwhile", "said"),
    [
        pytest.param(stuck_jobs, "the preview found 2, and now there are 3", id="one more"),
        pytest.param(
            lambda db: jobs.redrive(db, 1, fence=1, actor="other", reason="r"),
            "the preview found 2, and now there are 1",
            id="one less",
        ),
        pytest.param(
            moved_on, "there are 2, as before, but other jobs .* or the digest is mistyped", id="another fence"
        ),
    ],
)
def test_a_set_that_has_changed_is_refused_and_nothing_is_kept(
    db: Connection, meanwhile: Callable[[Connection], Any], said: str
) -> None:
    stuck_jobs(db, "pg-main", "pg-main")
    digest = operations.preview_redrive(db, EVERY_JOB).digest
    meanwhile(db)
    with pytest.raises(DigestMismatch, match=said):
        begun_redrive(digest=digest)
    assert db.execute(text("SELECT count(*) FROM operations")).scalar_one() == 0
    assert db.execute(text("SELECT count(*) FROM operation_items")).scalar_one() == 0


def test_a_digest_is_of_its_filter_and_kind_too(db: Connection) -> None:
    id = stuck_jobs(db)[0]
    digests = {
        operations.preview_redrive(db, JobFilter(tenant="acme")).digest,
        operations.preview_redrive(db, EVERY_JOB).digest,
        operations.preview_offboard(db, "acme").digest,
    }
    assert len(digests) == 3
    a_resource(db, tenant="nobody", status="deleted")
    both = (operations.preview_redrive(db, JobFilter(tenant="nobody")), operations.preview_offboard(db, "nobody"))
    assert len({seen.digest for seen in both}) == 2, "as empty, and of the same words"
    with pytest.raises(DigestMismatch):
        begun_redrive(digest=operations.preview_redrive(db, JobFilter(tenant="acme")).digest)
    assert job(db, id).state == "stuck"


@pytest.mark.parametrize("field", ["backend", "tenant"])
def test_a_filter_that_nobody_knows_is_a_typing_error_and_no_empty_set(db: Connection, field: str) -> None:
    stuck_jobs(db)
    unknown = JobFilter(**{field: "pg-mian"})
    with pytest.raises(BadRequest, match=f"there is no {field} 'pg-mian' here"):
        operations.preview_redrive(db, unknown)
    with pytest.raises(BadRequest, match=f"there is no {field} 'pg-mian' here"), database.transaction() as session:
        operations.begin_redrive(session, unknown, reason="r", actor="op", digest="0-0")


def test_an_unknown_tenant_is_not_offboarded(db: Connection) -> None:
    with pytest.raises(NotFound, match="there is no tenant 'zzz'"):
        operations.preview_offboard(db, "zzz")
    with pytest.raises(NotFound, match="there is no tenant 'zzz'"):
        offboard_unseen("zzz")
    tokens.create(db, actor="op", role="tenant", tenant="zzz", name="z")
    assert operations.preview_offboard(db, "zzz").count == 0
    with pytest.raises(DigestMismatch):
        offboard_unseen("zzz")


def offboard_unseen(tenant: str) -> None:
    with database.transaction() as session:
        operations.begin_offboard(session, tenant, expected_count=0, reason="r", actor="op", digest="0-0")


def test_a_bulk_redrive_selects_only_stuck_jobs(db: Connection) -> None:
    with pytest.raises(BadRequest, match="only stuck jobs"):
        operations.preview_redrive(db, JobFilter(state=JobState.RUNNING))


# -- bulk re-drive --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", JobState)
def test_redrive_all_moves_what_redrive_would_and_nothing_else(db: Connection, state: JobState) -> None:
    id = a_job(db, state=state, attempts=1)
    before = job(db, id)
    stale = jobs.redrive_all(db, [(id, before.fence + 1)], actor="op", reason="r", detail={})
    assert (stale, job(db, id), events_of(db, id)) == (set(), before, [])
    done = jobs.redrive_all(db, [(id, before.fence)], actor="op", reason="r", detail={"operation": 1})
    if state != JobState.STUCK:
        assert (done, job(db, id), events_of(db, id)) == (set(), before, [])
        return
    after = job(db, id)
    assert (done, after.state, after.stuck_reason, after.attempts, after.fence) == ({id}, "pending", None, 0, 1)
    told = db.execute(text("SELECT event, actor, reason, detail FROM events")).all()
    assert told == [("redriven", "op", "r", {"operation": 1})]


def test_redrive_all_sees_what_moved_while_it_waited(db: Connection, connect: Any) -> None:
    id = stuck_jobs(db)[0]
    other = connect()
    other.cursor().execute("UPDATE outbox SET state = 'pending', stuck_reason = NULL")
    done: list[Any] = []

    def late() -> None:
        with database.statement() as session:
            done.append(jobs.redrive_all(session, [(id, 1)], actor="op", reason="r", detail={}))

    thread = threading.Thread(target=late)
    thread.start()
    eventually(lambda: waits_for_a_lock(db), what="it waits for the other")
    other.commit()
    thread.join()
    assert (done, events_of(db, id)) == ([set()], [])


def test_two_bulk_redrives_of_the_same_jobs_in_opposite_order_do_not_deadlock(db: Connection, connect: Any) -> None:
    ids = stuck_jobs(db, *["pg-main"] * 2)
    db.execute(text("UPDATE outbox SET last_error = 'e' WHERE id = :id"), {"id": ids[0]})  # now behind, in the table
    holder = connect()
    holder.cursor().execute("SELECT FROM outbox WHERE id = %s FOR UPDATE", (ids[0],))
    done: list[Any] = []

    def act() -> None:
        with database.transaction() as session:
            for way in ("indexscan", "bitmapscan"):  # an index may happen to give them in order
                session.execute(text(f"SET LOCAL enable_{way} = off"))
            done.append(jobs.redrive_all(session, [(i, 1) for i in reversed(ids)], actor="o", reason="r", detail={}))

    thread = threading.Thread(target=act)
    thread.start()
    eventually(lambda: waits_for_a_lock(db), what="it waits for the first row")
    free = db.execute(text("SELECT id FROM outbox WHERE id = :id FOR UPDATE SKIP LOCKED"), {"id": ids[1]}).scalars()
    holder.commit()
    assert list(free) == [ids[1]], "it does not hold the second yet"
    thread.join()
    assert done == [set(ids)]


def test_one_of_each_backend_goes_first_and_the_others_when_it_has_succeeded(db: Connection) -> None:
    ids = stuck_jobs(db, *["pg-main"] * 3, *["other"] * 2)
    operation = begun_redrive()
    assert step() == 2
    assert [job(db, id).state for id in ids] == ["pending", "stuck", "stuck", "pending", "stuck"]
    assert step() == 0, "their canaries are at work"
    succeed(db, ids[0])
    assert step() == 2
    assert [job(db, id).state for id in ids] == ["succeeded", "pending", "pending", "pending", "stuck"]
    succeed(db, ids[3])
    assert step() == 1
    assert (now(db, operation).state, outcomes(db, operation)) == ("succeeded", ["redriven"] * 5)
    told = db.execute(text("SELECT DISTINCT actor, reason, detail FROM events WHERE event = 'redriven'")).all()
    assert told == [("op", "mended", {"operation": operation.id, "worker": "w"})]


@pytest.mark.parametrize("end", ["stuck", "cancelled"])
def test_a_canary_that_fails_stops_its_backend_and_no_other(db: Connection, end: str) -> None:
    ids = stuck_jobs(db, "pg-main", "pg-main", "other", "other")
    operation = begun_redrive()
    step()
    if end == "stuck":
        stick(db, ids[0])
    else:
        db.execute(text("UPDATE outbox SET state = 'cancelled', finished_at = now() WHERE id = :id"), {"id": ids[0]})
    succeed(db, ids[2])
    assert step() == 1
    ended, progress = queries.operation(db, operation.id)
    assert outcomes(db, operation) == ["failed", "stopped", "redriven", "redriven"]
    assert (ended.state, ended.finished_at is not None) == ("stopped", True)
    assert ended.error is not None
    assert ended.error.startswith(f"backend pg-main: job {ids[0]}, re-driven first, ended {end}: ")
    assert ended.error.endswith("still full" if end == "stuck" else "no error was recorded")
    assert (job(db, ids[1]).state, job(db, ids[3]).state) == ("stuck", "pending")
    assert vars(progress.all) == {
        "total": 4, "waiting": 0, "done": 2, "failed": 1, "stopped": 1, "skipped": 0, "protected": 0,
    }  # fmt: skip


def test_what_was_done_before_a_canary_s_failure_is_told_as_done(db: Connection) -> None:
    """When an operator moves a canary on, another job becomes the canary, and only its failure stops the rest."""
    ids = stuck_jobs(db, *["pg-main"] * 3)
    operation = begun_redrive()
    jobs.redrive(db, ids[0], fence=1, actor="other", reason="r")
    for _ in range(2):
        step()
    stick(db, ids[1])
    step()
    assert outcomes(db, operation) == ["skipped", "failed", "stopped"]


def test_a_finished_operation_is_not_taken_up_again(db: Connection) -> None:
    begun_redrive()
    step()
    with database.transaction() as session:
        session.execute(text("ALTER TABLE operations DISABLE TRIGGER operations_finished_is_final"))
        session.execute(text("UPDATE operations SET next_at = now(), error = 'untouched'"))
        before = session.execute(text("SELECT * FROM operations")).one()
    with database.transaction() as session:
        assert operations.advance(session, worker="w") == (0, None)
        assert session.execute(text("SELECT * FROM operations")).one() == before


def test_an_operation_of_canaries_alone_waits_for_them_before_it_has_ended_well(db: Connection) -> None:
    id = stuck_jobs(db)[0]
    operation = begun_redrive()
    step()
    assert (step(), now(db, operation).state) == (0, "running")
    succeed(db, id)
    step()
    assert now(db, operation).state == "succeeded"


def test_a_canary_that_somebody_else_moved_on_has_a_successor(db: Connection) -> None:
    ids = stuck_jobs(db, *["pg-main"] * 4)
    operation = begun_redrive()
    for id in ids[:2]:
        jobs.redrive(db, id, fence=1, actor="other", reason="r")
    assert step() == 0
    assert step() == 1
    assert [job(db, id).state for id in ids] == ["pending", "pending", "pending", "stuck"]
    succeed(db, ids[2])
    assert step() == 1
    assert outcomes(db, operation) == ["skipped", "skipped", "redriven", "redriven"]
    assert now(db, operation).state == "succeeded"


def test_where_all_have_moved_on_nothing_is_redriven(db: Connection) -> None:
    ids = stuck_jobs(db, *["pg-main"] * 3)
    operation = begun_redrive()
    for id in ids:
        jobs.redrive(db, id, fence=1, actor="other", reason="r")
        stick(db, id)
    for _ in range(2):
        assert step() == 0
    assert (now(db, operation).state, outcomes(db, operation)) == ("succeeded", ["skipped"] * 3)
    assert [job(db, id).state for id in ids] == ["stuck"] * 3


def test_an_operation_keeps_to_its_rate_by_the_database_s_clock(db: Connection) -> None:
    ids = stuck_jobs(db, *["pg-main"] * 12)
    begun_redrive(rate=4)
    step()
    succeed(db, ids[0])
    with database.transaction() as session:
        session.execute(text("UPDATE operations SET next_at = now()"))
    with database.transaction() as session:
        moved, wait = operations.advance(session, worker="w")
        due = session.execute(text("SELECT extract(epoch FROM next_at - now()) FROM operations")).scalar_one()
    assert (moved, due) == (4, 1)
    assert wait is not None
    assert 0.5 < wait <= 1
    with database.transaction() as session:
        assert operations.advance(session, worker="w")[0] == 0, "not before its time"


@pytest.mark.parametrize(("rate", "moved"), [(7, 7), (1000, operations.BATCH)])
def test_a_step_is_bounded(db: Connection, rate: int, moved: int) -> None:
    many_stuck(db, 150)
    operation = begun_redrive(rate=rate)
    step()
    succeed(db, db.execute(text("SELECT id FROM outbox WHERE state = 'pending'")).scalar_one())
    assert step() == moved
    assert now(db, operation).state == "running"


def test_a_worker_skips_an_operation_that_another_worker_advances(db: Connection, connect: Any) -> None:
    stuck_jobs(db)
    operation = begun_redrive()
    other = connect()
    other.cursor().execute("SELECT FROM operations WHERE id = %s FOR UPDATE", (operation.id,))
    with database.transaction() as session:
        session.execute(text("SET LOCAL lock_timeout = '1s'"))
        assert operations.advance(session, worker="w") == (0, 0.0)
    other.rollback()
    assert step() == 1


def test_without_an_operation_no_step_runs(db: Connection) -> None:
    with database.transaction() as session:
        assert operations.advance(session, worker="w") == (0, None)


def test_four_workers_at_once_redrive_each_job_once(db: Connection) -> None:
    ids = stuck_jobs(db, *["pg-main"] * 60)
    operation = begun_redrive(rate=20)
    step()
    succeed(db, ids[0])
    moved = at_once(4, lambda n: sum(step(f"w{n}") for _ in range(6)))
    assert sum(moved) == 59
    assert Counter(events_of(db, id).count("redriven") for id in ids) == {1: 60}
    assert now(db, operation).state == "succeeded"


def test_a_double_click_begins_one_operation(db: Connection) -> None:
    ids = stuck_jobs(db, *["pg-main"] * 3)
    begun = begun_redrive()
    with pytest.raises(AlreadyRunning, match="operations list"):
        begun_redrive(digest=begun.digest)
    assert at_once(4, lambda n: step(f"w{n}")).count(1) == 1
    assert [job(db, id).state for id in ids] == ["pending", "stuck", "stuck"], "one goes first, and alone"


def test_a_teardown_goes_first_where_there_is_one(db: Connection) -> None:
    """A provision may rightly end cancelled, so it does not show that the backend works."""
    birth = a_job(db, state="stuck", kind="provision", status="deleted")
    teardown, *_ = stuck_jobs(db, "pg-main", "pg-main")
    begun_redrive()
    step()
    assert (job(db, birth).state, job(db, teardown).state) == ("stuck", "pending")


def test_two_operations_over_the_same_jobs_redrive_each_once(db: Connection) -> None:
    ids = stuck_jobs(db, *["pg-main"] * 40)
    both = [begun_redrive(rate=10), begun_redrive(JobFilter(backend="pg-main"), rate=10)]
    at_once(4, lambda n: [step(f"w{n}") for _ in range(4)])
    for claim in jobs.claim(db, {"pg-main": 99}, slots=99, worker="w"):
        jobs.start(db, claim, worker="w")
        jobs.complete(db, claim, worker="w", seen={"absent": True})
    at_once(4, lambda n: [step(f"w{n}") for _ in range(20)])
    assert Counter(events_of(db, id).count("redriven") for id in ids) == {1: 40}
    told = Counter(outcome for operation in both for outcome in outcomes(db, operation))
    assert told == {"redriven": 40, "skipped": 40}
    assert [now(db, operation).state for operation in both] == ["succeeded", "succeeded"]


def test_an_operation_that_fails_each_time_does_not_delay_the_others(
    db: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    stuck_jobs(db, "pg-main", "other")
    broken, fine = begun_redrive(JobFilter(backend="other")), begun_redrive(JobFilter(backend="pg-main"))
    module = sys.modules["outbox.operations.advance"]  # the package has a function of that name
    honest = module.redrive_step

    def failing(session: Connection, operation: Any, worker: str) -> Any:
        if operation.id == broken.id:
            raise RuntimeError("a bug")
        return honest(session, operation, worker)

    monkeypatch.setattr(module, "redrive_step", failing)
    for _ in range(60):
        try:
            step()
        except RuntimeError:
            continue
    assert outcomes(db, fine) == ["redriven"]
    assert outcomes(db, broken) == [None], "a step is done as a whole, or not at all"


def test_a_finished_operation_stays_finished_whoever_writes(db: Connection) -> None:
    operation = begun_redrive()
    step()
    assert now(db, operation).state == "succeeded", "there was nothing to do"
    with pytest.raises(sa.exc.IntegrityError, match="a finished operation is final"):
        db.execute(text("UPDATE operations SET finished_at = NULL"))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("operations_kind_known", "operations SET kind = 'other', rate = NULL"),
        ("operations_redrive_has_rate", "operations SET rate = NULL"),
        ("operations_rate_bounded", "operations SET rate = 1001"),
        ("operation_items_outcome_known", "operation_items SET outcome = 'lost'"),
        ("operation_items_one_target", "operation_items SET fence = NULL"),
    ],
)
def test_the_checks_hold_whoever_writes(db: Connection, name: str, change: str) -> None:
    stuck_jobs(db)
    begun_redrive()
    with pytest.raises(sa.exc.IntegrityError, match=f'violates check constraint "{name}"'):
        db.execute(text(f"UPDATE {change}"))


def many_stuck(db: Connection, n: int) -> None:
    db.execute(text("SET statement_timeout = 0"))
    db.execute(
        text("""
        WITH made AS (
            INSERT INTO resources (id, tenant, kind, backend, name, status, generation, deleted_at)
            SELECT gen_random_uuid(), 'acme', 'postgres', 'pg-main', 'orders', 'deleting', gen_random_uuid(), now()
              FROM generate_series(1, :n) RETURNING id
        )
        INSERT INTO outbox (kind, state, stuck_reason, resource_id, backend, fence, attempts, max_attempts, request_id)
        SELECT 'deprovision', 'stuck', 'refused', id, 'pg-main', 1, 1, 10, gen_random_uuid() FROM made"""),
        {"n": n},
    )


@pytest.mark.proof
def test_a_hundred_thousand_stuck_jobs_pass_through_the_database_and_not_through_this_process(db: Connection) -> None:
    many_stuck(db, 100_000)
    db.execute(text("ANALYZE"))
    tracemalloc.start()
    try:
        begun = -time.monotonic()
        operation = begun_redrive(rate=1000)
        begun += time.monotonic()
        step()
        succeed(db, db.execute(text("SELECT id FROM outbox WHERE state = 'pending'")).scalar_one())
        stepped = -time.monotonic()
        for _ in range(5):
            assert step() == operations.BATCH
        stepped += time.monotonic()
        _, progress = queries.operation(db, operation.id)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    print(f"begun in {begun:.2f} s, a step in {stepped / 5:.3f} s, at most {peak} bytes of Python")
    assert operation.total == 100_000
    assert (progress.all.done, progress.all.waiting) == (501, 99_499)
    assert peak < 10_000_000, "100,000 rows of Python would be more"


# -- offboarding ----------------------------------------------------------------------------------------------------


def test_offboarding_deletes_what_a_delete_would_and_leaves_the_rest(db: Connection) -> None:
    alive = [a_resource(db) for _ in range(290)] + [a_resource(db, status="provisioning") for _ in range(3)]
    protected = [a_resource(db, protected=True) for _ in range(4)]
    deleting = [jobs.enqueue(db, a_resource(db), actor="acme").resource.id for _ in range(3)]
    neighbour = a_resource(db, tenant="globex")
    seen = operations.preview_offboard(db, "acme")
    assert (seen.count, seen.protected, seen.deleting) == (297, 4, 3)
    assert seen.statuses == {"active": 294, "deleting": 3, "provisioning": 3}
    assert seen.backends == {"pg-main": 297}
    assert len(seen.sample) == 20
    operation = offboard()
    later = a_resource(db)
    assert [step() for _ in range(4)] == [100, 100, 93, 0], "a transaction a batch"
    ended, progress = queries.operation(db, operation.id)
    assert (ended.state, ended.total) == ("succeeded", 297)
    assert (progress.all.done, progress.all.protected, progress.all.skipped) == (293, 4, 0)
    assert progress.jobs == {"pending": 293}
    assert {status_of(db, r) for r in alive + deleting} == {"deleting"}
    assert {status_of(db, r) for r in [*protected, neighbour, later]} == {"active"}
    asked = "SELECT resource_id, actor, reason, detail FROM events WHERE event = 'enqueued' AND actor = 'op'"
    told = db.execute(text(asked)).all()
    assert {row.resource_id for row in told} == set(alive)
    assert {(row.reason, row.detail["operation"], row.detail["worker"]) for row in told} == {
        ("left", operation.id, "w")
    }


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE resources SET protected = false",
        "UPDATE resources SET tenant = 'globex' WHERE NOT protected",
        "INSERT INTO resources (id, tenant, kind, backend, name, generation) "
        "VALUES (gen_random_uuid(), 'acme', 'postgres', 'pg-main', 'new', gen_random_uuid())",
    ],
)
def test_a_tenant_that_has_changed_since_the_preview_is_not_offboarded(db: Connection, change: str) -> None:
    a_resource(db)
    a_resource(db, protected=True)
    seen = operations.preview_offboard(db, "acme")
    unguarded(db, change)
    with pytest.raises(DigestMismatch, match=r"the preview found 2|there are 2, as before, but other resources"):
        offboard(digest=seen.digest)


def test_offboarding_needs_the_count_from_the_preview(db: Connection) -> None:
    a_resource(db)
    with pytest.raises(DigestMismatch, match="you expected 2 resources, but there are 1"):
        offboard(expected_count=2)
    assert db.execute(text("SELECT count(*) FROM operations")).scalar_one() == 0


def test_offboarding_skips_resources_that_changed_after_it_began(db: Connection) -> None:
    shielded, gone, moved, plain = (a_resource(db) for _ in range(4))
    was_protected = a_resource(db, protected=True)
    operation = offboard()
    db.execute(text("UPDATE resources SET protected = id = :id"), {"id": shielded})
    unguarded(db, "UPDATE resources SET tenant = 'globex' WHERE id = :id", id=moved)
    jobs.enqueue(db, gone, actor="acme")
    assert step() == 1
    asked = text("SELECT resource_id, outcome FROM operation_items WHERE operation_id = :id")
    told: dict[uuid.UUID, str] = dict(db.execute(asked, {"id": operation.id}).all())
    assert told == {
        shielded: "protected", gone: "skipped", moved: "skipped", plain: "enqueued", was_protected: "protected",
    }  # fmt: skip
    assert [status_of(db, r) for r in (shielded, moved, plain, was_protected)] == [
        "active", "active", "deleting", "active",
    ]  # fmt: skip


def test_enqueue_all_locks_in_one_order(db: Connection, connect: Any) -> None:
    second = first = a_resource(db)
    while first >= second:  # against the order of the table
        first = a_resource(db)
    holder = connect()
    holder.cursor().execute("SELECT FROM resources WHERE id = %s FOR UPDATE", (str(first),))
    done: list[Any] = []

    def act() -> None:
        with database.transaction() as session:
            # The order of the index would do as well, where the plan has it.
            session.execute(text("SET LOCAL enable_indexscan = off; SET LOCAL enable_bitmapscan = off"))
            done.append(jobs.enqueue_all(session, [jobs.Delete(second, "o"), jobs.Delete(first, "o")]))

    thread = threading.Thread(target=act)
    thread.start()
    eventually(lambda: waits_for_a_lock(db), what="it waits for the first row")
    db.execute(text("SET lock_timeout = '1s'"))
    db.execute(text("SELECT FROM resources WHERE id = :id FOR UPDATE"), {"id": second})
    holder.commit()
    thread.join()
    assert {enqueued.resource.id for enqueued in done[0].values()} == {first, second}


def test_enqueue_all_takes_nothing_twice(db: Connection) -> None:
    resource = a_resource(db)
    answers = at_once(4, lambda n: _enqueued([resource]))
    assert sorted(map(len, answers)) == [0, 0, 0, 1]


def _enqueued(resources: list[uuid.UUID]) -> dict[uuid.UUID, jobs.Enqueued]:
    with database.statement() as session:
        return jobs.enqueue_all(session, [jobs.Delete(resource, "o", "acme") for resource in resources])


# -- stopping, and how far it is ------------------------------------------------------------------------------------


def stop(operation: Operation) -> Operation:
    with database.statement() as session:
        return operations.stop(session, operation.id, actor="cli:zoe", reason="wrong filter")


def test_a_stopped_operation_leaves_alone_what_it_has_not_done_and_tells_who_and_why(db: Connection) -> None:
    ids = stuck_jobs(db, *["pg-main"] * 3, "other", "other")
    operation, neighbour = begun_redrive(JobFilter(backend="pg-main")), begun_redrive(JobFilter(backend="other"))
    while not jobs_pending(db, ids[0]):
        step()
    ended = stop(operation)
    assert (ended.state, ended.error) == ("stopped", "stopped by cli:zoe: wrong filter")
    assert ended == now(db, operation)
    assert outcomes(db, operation) == ["redriven", "stopped", "stopped"]
    assert "stopped" not in outcomes(db, neighbour)
    succeed(db, ids[0])
    for _ in range(3):
        step()
    assert [job(db, id).state for id in ids[:3]] == ["succeeded", "stuck", "stuck"]


def jobs_pending(db: Connection, id: int) -> bool:
    return job(db, id).state == "pending"


def test_a_stopped_offboarding_deletes_nothing_more(db: Connection) -> None:
    left, protected = a_resource(db), a_resource(db, protected=True)
    operation = offboard()
    stop(operation)
    assert sorted(map(str, outcomes(db, operation))) == ["protected", "stopped"]
    assert step() == 0
    assert (status_of(db, left), status_of(db, protected)) == ("active", "active")


def test_what_had_failed_before_an_operation_was_stopped_is_told_too(db: Connection) -> None:
    ids = stuck_jobs(db, *["pg-main"] * 2, "other", "other")
    operation = begun_redrive()
    step()
    stick(db, ids[0])
    step()
    error = stop(operation).error
    assert error is not None
    assert error.startswith(f"backend pg-main: job {ids[0]}, ")
    assert error.endswith("; stopped by cli:zoe: wrong filter")
    assert outcomes(db, operation) == ["failed", "stopped", "redriven", "stopped"]


def test_an_operation_ends_once(db: Connection) -> None:
    operation = begun_redrive()
    step()
    db.execute(text("ALTER TABLE operations DISABLE TRIGGER operations_finished_is_final"))
    with pytest.raises(AlreadyFinished, match=f"operation {operation.id} has already ended; its state is succeeded"):
        stop(operation)
    assert now(db, operation).error is None
    with pytest.raises(NotFound, match="there is no operation 99"):
        operations.stop(db, 99, actor="op", reason="r")


def test_a_stop_waits_for_the_step_that_is_under_way_and_keeps_what_it_did(db: Connection) -> None:
    stuck_jobs(db, "pg-main", "other", "other")
    operation, ended = begun_redrive(), []
    thread = threading.Thread(target=lambda: ended.append(stop(operation)))
    with database.transaction() as session:
        assert operations.advance(session, worker="w")[0] == 2
        thread.start()
        eventually(lambda: waits_for_a_lock(db), what="the stop waits for the step")
    thread.join()
    assert [o.state for o in ended] == ["stopped"]
    assert sorted(map(str, outcomes(db, operation))) == ["redriven", "redriven", "stopped"]


def test_progress_names_the_jobs_that_are_stuck_and_until_when_what_goes_first_waits(db: Connection) -> None:
    ids = stuck_jobs(db, "pg-main", "other")
    operation = begun_redrive()
    step()
    assert [c.next_attempt_at for c in queries.operation(db, operation.id)[1].canaries] == [None, None]
    stick(db, ids[1])
    claim = claimed(db, ids[0])
    jobs.start(db, claim, worker="w")
    jobs.retry(db, claim, worker="w", error="e")
    db.execute(text("UPDATE outbox SET available_at = now() + interval '5 min' WHERE id = :id"), {"id": ids[0]})
    _, progress = queries.operation(db, operation.id)
    assert (progress.jobs, progress.stuck_jobs) == ({"pending": 1, "stuck": 1}, [ids[1]])
    waits = {c.job_id: c.next_attempt_at for c in progress.canaries}
    assert waits == {ids[0]: job(db, ids[0]).available_at, ids[1]: None}


def test_an_unknown_operation_is_not_found(db: Connection) -> None:
    with pytest.raises(NotFound, match="there is no operation 7"):
        queries.operation(db, 7)


def test_operations_are_listed_newest_first_by_cursor(db: Connection) -> None:
    ids = [begun_redrive(JobFilter(older_than=dt.timedelta(days=days))).id for days in range(5)]
    first = queries.list_operations(db, limit=3)
    rest = queries.list_operations(db, limit=3, cursor=first.next_cursor)
    assert [o.id for o in first.items + rest.items] == ids[::-1]
    assert rest.next_cursor is None
