"""Taking back a wrong storm of deletes: exactly what was previewed, one of each backend first, and under holds."""

import datetime as dt
import threading
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Connection, text

from outbox import actions, holds, jobs, operations, queries
from outbox import db as database
from outbox.errors import AlreadyRunning, BadRequest, DigestMismatch, Held
from outbox.operations import DeleteFilter
from outbox.rows import Claim, Operation
from outbox.states import HoldScope
from tests.support.bulk import begun_restore, claimed, now, offboard, outcomes, step, stick
from tests.support.factories import a_resource, begun_redrive, claim_of, events_of, job, status_of, unguarded
from tests.support.witness import eventually, waits_for_a_lock

LONG_AGO = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)
ACME = DeleteFilter(tenant="acme", deleted_since=LONG_AGO)


def deleted(db: Connection, backend: str = "pg-main", *, actor: str = "acme", tenant: str = "acme") -> uuid.UUID:
    """A resource with an accepted DELETE and ten minutes of grace."""
    resource = a_resource(db, backend=backend, tenant=tenant)
    assert jobs.enqueue_all(db, [jobs.Delete(resource, actor, grace=600.0)])
    return resource


def teardown(db: Connection, resource: uuid.UUID) -> int:
    asked = "SELECT id FROM outbox WHERE resource_id = :id AND kind = 'deprovision' AND state <> 'cancelled'"
    return db.execute(text(asked), {"id": resource}).scalar_one()


def due(db: Connection, resource: uuid.UUID) -> Claim:
    """A worker's claim of its teardown, whose destruction may start."""
    with database.transaction() as session:
        jobs.purge(session, resource, actor="op", reason="r")
    db.execute(
        text("""UPDATE outbox SET step = 'wait', state = 'running', fence = fence + 1, attempts = 1, claimed_by = 'w',
                       lease_expires_at = now() + interval '1 h' WHERE id = :id"""),
        {"id": teardown(db, resource)},
    )
    return claim_of(db, teardown(db, resource))


def destroying(db: Connection, resource: uuid.UUID) -> None:
    """Its destruction has started."""
    jobs.start(db, due(db, resource), worker="w")


def restore_of(db: Connection, resource: uuid.UUID) -> int:
    asked = "SELECT id FROM outbox WHERE resource_id = :id AND kind = 'restore'"
    return db.execute(text(asked), {"id": resource}).scalar_one()


def give_back(db: Connection, resource: uuid.UUID) -> None:
    claim = claimed(db, restore_of(db, resource))
    jobs.start(db, claim, worker="w")
    jobs.give_back(db, claim, worker="w", seen={"login": True})


def told(db: Connection, operation: Operation) -> dict[uuid.UUID, str | None]:
    asked = "SELECT resource_id, outcome FROM operation_items WHERE operation_id = :id"
    return {row.resource_id: row.outcome for row in db.execute(text(asked), {"id": operation.id})}


# -- the set and its digest -----------------------------------------------------------------------------------------


def test_a_preview_tells_what_can_be_taken_back_what_can_not_and_what_no_hold_covers(db: Connection) -> None:
    kept = [deleted(db) for _ in range(3)] + [deleted(db, "redis-main")]
    _deleted_again(db, kept[0])
    started, gone = deleted(db), a_resource(db, status="deleted")
    destroying(db, started)
    jobs.enqueue_all(db, [jobs.Delete(a_resource(db, status="provisioning"), "acme")])
    db.execute(text("UPDATE resources SET activated_at = NULL WHERE status = 'deleting' AND manifest IS NULL"))
    never = a_resource(db, status="provisioning")
    db.execute(text("UPDATE resources SET activated_at = NULL WHERE id = :id"), {"id": never})
    jobs.enqueue_all(db, [jobs.Delete(never, "acme")])
    a_resource(db)
    deleted(db, tenant="globex")
    db.execute(
        text("""INSERT INTO outbox (kind, state, resource_id, backend, max_attempts, request_id, finished_at)
                VALUES ('deprovision', 'succeeded', :id, 'pg-main', 10, gen_random_uuid(), now())"""),
        {"id": gone},
    )
    holds.engage(db, HoldScope.BACKEND, "redis-main", actor="op", reason="look")
    seen = operations.preview_restore(db, ACME)
    assert (seen.count, seen.backends) == (4, {"pg-main": 3, "redis-main": 1})
    assert (seen.unheld, seen.started, seen.destroyed, seen.never_active) == (3, 1, 1, 2)
    assert {resource.id for resource in seen.sample} == set(kept)
    with database.snapshot() as session:
        assert operations.preview_restore(session, ACME) == seen


def test_each_field_of_a_filter_narrows_it(db: Connection) -> None:
    mine, other = deleted(db, actor="op"), deleted(db, "redis-main")
    offboarded = a_resource(db)
    operation = offboard()
    step()
    at = {resource: _deleted_at(db, resource) for resource in (mine, other, offboarded)}
    deleted(db, tenant="globex")

    def found(**words: Any) -> set[uuid.UUID]:
        return {resource.id for resource in operations.preview_restore(db, DeleteFilter(**words)).sample}

    assert found(tenant="acme") == {mine, other, offboarded}
    assert found(tenant="acme", backend="redis-main") == {other}
    assert found(tenant="acme", deleted_since=at[other]) == {other, offboarded}
    assert found(tenant="acme", deleted_until=at[other]) == {mine}
    assert found(tenant="acme", actor="acme") == {other}
    assert found(operation=operation.id) == {offboarded}


def _deleted_at(db: Connection, resource: uuid.UUID) -> dt.datetime:
    return db.execute(text("SELECT deleted_at FROM resources WHERE id = :id"), {"id": resource}).scalar_one()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"deleted_since": LONG_AGO}, "say whose deletes are meant"),
        ({"tenant": "acme"}, "say since when"),
        ({"tenant": "acme", "deleted_since": LONG_AGO, "deleted_until": LONG_AGO}, "must be before"),
    ],
)
def test_a_filter_without_bounds_is_refused(words: dict[str, Any], said: str) -> None:
    with pytest.raises(BadRequest, match=said):
        actions.taken_back(DeleteFilter(**words))
    assert actions.taken_back(DeleteFilter(operation=1)) == DeleteFilter(operation=1)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"tenant": "acne"}, "there is no tenant 'acne' here"),
        ({"backend": "pg-mian"}, "there is no backend 'pg-mian' here"),
        ({"operation": 1}, "operation 1 is not an offboarding"),
        ({"operation": 9}, "operation 9 is not an offboarding, or does not exist"),
    ],
)
def test_a_filter_that_can_find_nothing_is_refused(db: Connection, words: dict[str, Any], said: str) -> None:
    deleted(db)
    begun_redrive()
    with pytest.raises(BadRequest, match=said):
        operations.preview_restore(db, DeleteFilter(**words))
    with pytest.raises(BadRequest, match=said), database.transaction() as session:
        operations.begin_restore(session, DeleteFilter(**words), reason="r", actor="op", digest="0-0")


def _deleted_again(db: Connection, resource: uuid.UUID) -> None:
    jobs.restore(db, resource, actor="op", reason="r")
    give_back(db, resource)
    jobs.enqueue_all(db, [jobs.Delete(resource, "acme", grace=600.0)])


@pytest.mark.parametrize(
    ("meanwhile", "change"),
    [
        pytest.param(lambda db, _: deleted(db), "the preview found 1, and now there are 2", id="one more"),
        pytest.param(destroying, "the preview found 1, and now there are 0", id="one less"),
        pytest.param(_deleted_again, "there are 1, as before, but other resources", id="deleted again"),
    ],
)
def test_deletes_that_have_changed_since_the_preview_are_not_taken_back(
    db: Connection, meanwhile: Callable[[Connection, uuid.UUID], object], change: str
) -> None:
    resource = deleted(db)
    digest = operations.preview_restore(db, ACME).digest
    meanwhile(db, resource)
    with pytest.raises(DigestMismatch, match=change):
        begun_restore(ACME, digest=digest)
    assert db.execute(text("SELECT count(*) FROM operation_items")).scalar_one() == 0


def test_a_double_click_begins_one_restore(db: Connection) -> None:
    deleted(db)
    begun = begun_restore(ACME)
    assert (begun.kind, begun.total, begun.rate) == ("restore", 1, None)
    assert begun.filter == {"tenant": "acme", "deleted_since": "2020-01-01T00:00:00+00:00"}
    with pytest.raises(AlreadyRunning):
        begun_restore(ACME, digest=begun.digest)


# -- its steps ------------------------------------------------------------------------------------------------------


def test_one_of_each_backend_is_restored_first_and_the_others_when_it_was_given_back(db: Connection) -> None:
    first, *rest = (deleted(db) for _ in range(3))
    alone = deleted(db, "redis-main")
    holds.engage(db, HoldScope.GLOBAL, None, actor="op", reason="wrong deletes")
    operation = begun_restore(ACME)
    assert step() == 2
    assert [status_of(db, r) for r in (first, *rest, alone)] == ["restoring", "deleting", "deleting", "restoring"]
    assert step() == 0, "its restores are at work"
    assert queries.operation(db, operation.id)[1].holds == [], "it waits for no hold"
    give_back(db, first)
    assert step() == 2
    assert [status_of(db, r) for r in (first, *rest)] == ["active", "restoring", "restoring"]
    assert now(db, operation).state == "running", "the one of the other backend is at work"
    give_back(db, alone)
    step()
    ended, progress = queries.operation(db, operation.id)
    assert (ended.state, outcomes(db, operation)) == ("succeeded", ["restoring"] * 4)
    assert (progress.all.done, progress.jobs, progress.holds) == (4, {"succeeded": 2, "pending": 2}, [])
    assert [(c.backend, c.job_id) for c in progress.canaries] == [
        ("pg-main", restore_of(db, first)), ("redis-main", restore_of(db, alone)),
    ]  # fmt: skip
    asked = text("SELECT actor, reason, detail FROM events WHERE job_id = :id AND event = 'enqueued'")
    by = db.execute(asked, {"id": restore_of(db, first)}).one()
    assert (by.actor, by.reason, by.detail["operation"], by.detail["worker"]) == ("op", "wrong", operation.id, "w")


@pytest.mark.parametrize("end", ["stuck", "cancelled"])
def test_a_restore_that_fails_first_leaves_the_others_of_its_backend_deleted(db: Connection, end: str) -> None:
    first, left = deleted(db), deleted(db)
    deleted(db, "redis-main")
    operation = begun_restore(ACME)
    step()
    stick(db, restore_of(db, first))
    if end == "cancelled":
        jobs.resolve_forced(db, restore_of(db, first), fence=1, actor="op", reason="r")
    step()
    ended, progress = queries.operation(db, operation.id)
    assert outcomes(db, operation) == ["failed", "stopped", "restoring"]
    assert ended.error is not None
    assert ended.error.startswith(f"backend pg-main: job {restore_of(db, first)}, restored first, ended {end}: ")
    assert status_of(db, left) == "deleting"
    assert (progress.all.failed, progress.all.stopped, progress.all.done) == (1, 1, 1)


def test_what_has_started_or_changed_since_it_was_listed_is_skipped_and_the_next_goes_first(db: Connection) -> None:
    started, back, again, last, other = (deleted(db) for _ in range(5))
    operation = begun_restore(ACME)
    destroying(db, started)
    jobs.restore(db, back, actor="op", reason="r")
    _deleted_again(db, again)
    assert step() == 0
    assert step() == 1
    give_back(db, last)
    assert step() == 1
    assert told(db, operation) == {
        started: "skipped", back: "skipped", again: "skipped", last: "restoring", other: "restoring",
    }  # fmt: skip
    assert [status_of(db, r) for r in (started, back, again)] == ["deleting", "restoring", "deleting"]
    assert now(db, operation).state == "succeeded"


def test_where_all_are_being_destroyed_nothing_is_restored(db: Connection) -> None:
    resources = [deleted(db) for _ in range(3)]
    operation = begun_restore(ACME)
    for resource in resources:
        destroying(db, resource)
    for _ in range(2):
        assert step() == 0
    assert (now(db, operation).state, outcomes(db, operation)) == ("succeeded", ["skipped"] * 3)


def test_a_destruction_that_starts_while_a_step_waits_for_the_job_wins(db: Connection, connect: Any) -> None:
    resource = deleted(db)
    claim = due(db, resource)
    operation, moved = begun_restore(ACME), []
    holder = connect()
    holder.cursor().execute("SELECT FROM outbox WHERE id = %s FOR UPDATE", (claim.id,))
    thread = threading.Thread(target=lambda: moved.append(step()))
    thread.start()
    eventually(lambda: waits_for_a_lock(db), what="the step waits for the job")
    starts = "UPDATE outbox SET started_fence = fence, started_step = 'destroy', step = 'destroy' WHERE id = %s"
    holder.cursor().execute(starts, (claim.id,))
    holder.commit()
    thread.join()
    assert (moved, outcomes(db, operation), status_of(db, resource)) == ([0], ["skipped"], "deleting")
    assert "cancelled" not in events_of(db, claim.id)


def test_a_delete_that_comes_while_a_step_waits_is_not_taken_back(db: Connection) -> None:
    resource = deleted(db)
    operation, moved = begun_restore(ACME), []
    thread = threading.Thread(target=lambda: moved.append(step()))
    with database.transaction() as session:
        jobs.restore(session, resource, actor="acme", reason="mine")
        thread.start()
        eventually(lambda: waits_for_a_lock(db), what="the step waits for the teardown")
        give_back(session, resource)
        jobs.enqueue_all(session, [jobs.Delete(resource, "acme", grace=600.0)])
    thread.join()
    assert (moved, outcomes(db, operation), status_of(db, resource)) == ([0], ["skipped"], "deleting")


def test_a_stopped_restore_takes_nothing_more_back(db: Connection) -> None:
    first, left = deleted(db), deleted(db)
    operation = begun_restore(ACME)
    step()
    operations.stop(db, operation.id, actor="op", reason="r")
    give_back(db, first)
    assert step() == 0
    assert (outcomes(db, operation), status_of(db, left)) == (["restoring", "stopped"], "deleting")


def test_a_step_of_a_restore_is_bounded(db: Connection) -> None:
    resources = [deleted(db) for _ in range(operations.BATCH + 5)]
    operation = begun_restore(ACME)
    step()
    give_back(db, resources[0])
    assert step() == operations.BATCH
    assert now(db, operation).state == "running"
    assert step() == 4


def test_what_an_offboarding_deleted_is_taken_back_by_its_number(db: Connection) -> None:
    before = deleted(db)
    mine = [a_resource(db) for _ in range(3)]
    wrong = offboard()
    step()
    operation = begun_restore(DeleteFilter(operation=wrong.id))
    step()
    give_back(db, next(r for r in mine if status_of(db, r) == "restoring"))
    step()
    assert (outcomes(db, operation), status_of(db, before)) == (["restoring"] * 3, "deleting")


# -- offboarding under holds ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scope", "subject"),
    [
        (HoldScope.GLOBAL, None),
        (HoldScope.TENANT, "acme"),
        (HoldScope.KIND, "postgres"),
        (HoldScope.BACKEND, "pg-main"),
    ],
)
def test_an_offboarding_waits_for_a_hold_and_goes_on_after_its_release(
    db: Connection, scope: HoldScope, subject: str | None
) -> None:
    resources = [a_resource(db) for _ in range(3)]
    free = a_resource(db, backend="redis-main")
    unguarded(db, "UPDATE resources SET kind = 'redis' WHERE id = :id", id=free)
    operation = offboard()
    made = holds.engage(db, scope, subject, actor="op", reason="wrong tenant?")
    partly = scope in (HoldScope.BACKEND, HoldScope.KIND)
    assert step() == partly
    assert step() == 0
    ended, progress = queries.operation(db, operation.id)
    assert (ended.state, progress.all.waiting, progress.holds) == ("running", 4 - partly, [made])
    assert {status_of(db, r) for r in resources} == {"active"}, "no customer is cut off"
    pause = db.execute(text("SELECT extract(epoch FROM next_at - now()) FROM operations")).scalar_one()
    assert 1 < pause <= 5, "it does not look all the time"
    holds.release(db, made.id, actor="op", reason="right tenant")
    assert step() == 4 - partly
    ended, progress = queries.operation(db, operation.id)
    assert (ended.state, progress.all.done, progress.holds) == ("succeeded", 4, [])


def test_a_hold_elsewhere_keeps_no_offboarding_waiting(db: Connection) -> None:
    a_resource(db)
    a_resource(db, tenant="globex", backend="redis-main")
    operation = offboard()
    for scope, subject in ((HoldScope.TENANT, "globex"), (HoldScope.BACKEND, "redis-main")):
        holds.engage(db, scope, subject, actor="op", reason="r")
    assert queries.operation(db, operation.id)[1].holds == []
    assert step() == 1
    holds.engage(db, HoldScope.TENANT, "acme", actor="op", reason="r")
    assert queries.operation(db, operation.id)[1].holds == [], "it waits for nothing any more"


@pytest.mark.parametrize(
    "lock",
    [
        "SELECT FROM resources WHERE id = %s FOR UPDATE",
        "SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))",
    ],
    ids=["row", "chain"],
)
def test_a_hold_that_comes_while_a_step_waits_keeps_the_resource(
    db: Connection, connect: Callable[[], Any], lock: str
) -> None:
    resource = a_resource(db)
    operation, moved = offboard(), []
    holder = connect()
    holder.cursor().execute(lock, (str(resource),))
    thread = threading.Thread(target=lambda: moved.append(step()))
    thread.start()
    eventually(lambda: waits_for_a_lock(db), what="the step waits for the lock")
    made = holds.engage(db, HoldScope.TENANT, "acme", actor="op", reason="wrong tenant")
    holder.commit()
    thread.join()
    assert (moved, status_of(db, resource), outcomes(db, operation)) == ([0], "active", [None])
    holds.release(db, made.id, actor="op", reason="r")
    assert step() == 1
    assert (status_of(db, resource), now(db, operation).state) == ("deleting", "succeeded")


def test_a_restore_is_not_held_and_a_teardown_is(db: Connection) -> None:
    kept, back = deleted(db), deleted(db)
    claim = claimed(db, teardown(db, kept))
    holds.engage(db, HoldScope.TENANT, "acme", actor="op", reason="wrong deletes")
    with pytest.raises(Held):
        jobs.start(db, claim, worker="w")
    jobs.restore(db, back, actor="op", reason="r")
    give_back(db, back)
    assert (status_of(db, back), job(db, claim.id).started_fence) == ("active", None)
