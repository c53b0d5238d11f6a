"""Holds: what they stop, what they leave alone, and what becomes of the jobs that met them."""

import json
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import Connection, text
from sqlalchemy.exc import IntegrityError

from outbox import db as database
from outbox import holds, jobs
from outbox.errors import AlreadyReleased, BadRequest, ClaimLost, Held, NotFound, Transient
from outbox.states import HoldScope
from tests.support.factories import a_claim, a_job, a_resource, claim_of, claims, events_of, job
from tests.support.shelf import Shelf
from tests.support.transitions import module_of
from tests.support.witness import eventually, waits_for_a_lock
from worker.run import Run

SCOPES = [(HoldScope.GLOBAL, None), (HoldScope.BACKEND, "pg-main"), (HoldScope.TENANT, "acme")]
SCOPES.append((HoldScope.KIND, "postgres"))
ELSEWHERE = [(HoldScope.BACKEND, "redis-main"), (HoldScope.TENANT, "other"), (HoldScope.KIND, "redis")]

START = {
    "deprovision": lambda db, claim: jobs.start(db, claim, worker="w"),
    "provision": lambda db, claim: jobs.start_provision(db, claim, worker="w", manifest={}, credentials=None),
}


def hold(db: Connection, scope: HoldScope = HoldScope.GLOBAL, subject: str | None = None) -> holds.Hold:
    return holds.engage(db, scope, subject, actor="op", reason="night")


@pytest.mark.parametrize(("scope", "subject"), SCOPES)
@pytest.mark.parametrize("kind", ["deprovision", "provision"])
def test_a_hold_refuses_the_start_of_what_was_claimed_before_it(
    db: Connection, scope: HoldScope, subject: str | None, kind: str
) -> None:
    claim = a_claim(db, kind=kind)
    made = hold(db, scope, subject)
    with pytest.raises(Held, match="is in force") as refused:
        START[kind](db, claim)
    assert refused.value.hold_id == made.id
    assert job(db, claim.id).started_fence is None
    holds.release(db, made.id, actor="op", reason="day")
    START[kind](db, claim)
    assert job(db, claim.id).started_fence == claim.fence


LOCKS = {
    "row": "SELECT FROM outbox WHERE id = %s FOR UPDATE",
    "chain": "SELECT pg_advisory_xact_lock(hashtextextended(CAST(resource_id AS text), 0)) FROM outbox WHERE id = %s",
    "resource": "SELECT FROM resources WHERE id = (SELECT resource_id FROM outbox WHERE id = %s) FOR UPDATE",
}
START["completing"] = lambda db, claim: jobs.start(db, claim, worker="w", seen={"completes": {"role_oid": 1}})


@pytest.mark.parametrize(
    ("kind", "lock"),
    [(kind, lock) for kind in ("deprovision", "provision") for lock in ("row", "chain")]
    + [("provision", "resource"), ("completing", "resource")],
)
def test_a_hold_stops_a_start_that_was_waiting_for_a_lock(
    db: Connection, connect: Callable[[], Any], kind: str, lock: str
) -> None:
    claim = a_claim(db, kind="provision" if kind == "provision" else "deprovision")
    holder = connect()
    holder.cursor().execute(LOCKS[lock], (claim.id,))

    def start() -> None:
        with database.statement() as session:
            START[kind](session, claim)

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(start)
        eventually(lambda: waits_for_a_lock(db), what="the start waits for the lock")
        made = hold(db)
        holder.commit()
        with pytest.raises(Held) as refused:
            waiting.result(20)
    assert refused.value.hold_id == made.id
    assert job(db, claim.id).started_fence is None


def test_a_start_reads_its_lease_after_it_waited_for_the_lock(db: Connection, connect: Callable[[], Any]) -> None:
    claim = a_claim(db)
    holder = connect()
    holder.cursor().execute(LOCKS["row"], (claim.id,))

    def start() -> None:
        with database.statement() as session:
            jobs.start(session, claim, worker="w")

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(start)
        eventually(lambda: waits_for_a_lock(db), what="the start waits for the lock")
        ends = "UPDATE outbox SET lease_expires_at = clock_timestamp() WHERE id = %s"
        holder.cursor().execute(ends, (claim.id,))
        holder.commit()
        with pytest.raises(ClaimLost):
            waiting.result(20)
    assert job(db, claim.id).started_fence is None


@pytest.mark.parametrize(("scope", "subject"), ELSEWHERE)
def test_a_hold_elsewhere_stops_nothing_here(db: Connection, scope: HoldScope, subject: str) -> None:
    a_resource(db, tenant="other", backend="redis-main")
    claim = a_claim(db)
    hold(db, scope, subject)
    jobs.start(db, claim, worker="w")
    a_job(db)
    assert len(claims(db)) == 1


@pytest.mark.parametrize(("scope", "subject"), [s for s in SCOPES if s[0] is not HoldScope.TENANT])
def test_nothing_of_a_held_backend_is_claimed_and_others_go_on(
    db: Connection, scope: HoldScope, subject: str | None
) -> None:
    a_job(db, backend="pg-main")
    a_job(db, backend="redis-main")
    made = hold(db, scope, subject)
    rooms = {"pg-main": 5, "redis-main": 5}
    taken = {c.backend for c in jobs.claim(db, rooms, slots=9, worker="w")}
    assert taken == (set() if scope is HoldScope.GLOBAL else {"redis-main"})
    holds.release(db, made.id, actor="op", reason="day")
    assert "pg-main" in {c.backend for c in jobs.claim(db, rooms, slots=9, worker="w")}


def test_a_tenant_s_jobs_are_parked_under_its_hold_and_woken_by_its_release(db: Connection) -> None:
    ids = [a_job(db) for _ in range(3)]
    made = hold(db, HoldScope.TENANT, "acme")
    for claim in claims(db, 3):
        Run(claim, Shelf(), worker="w")()
    for id in ids:
        row = job(db, id)
        assert (row.state, row.attempts, row.held_by) == ("pending", 0, made.id)
        assert events_of(db, id) == ["claimed", "deferred"]
    assert claims(db, 9) == [], "what is parked costs no further claim"
    later = a_job(db)
    assert [c.id for c in claims(db, 1)] == [later], "nor does it take the place of what is behind it"
    assert jobs.wake(db) == 0
    holds.release(db, made.id, actor="op", reason="day")
    assert jobs.wake(db, batch=2) == 2
    assert jobs.wake(db, batch=2) == 1
    for claim in claims(db, 9):
        Run(claim, Shelf(), worker="w")()
    assert {job(db, id).state for id in ids} == {"succeeded"}


def test_a_job_is_not_parked_under_a_hold_that_was_released_meanwhile(db: Connection) -> None:
    claim = a_claim(db)
    made = hold(db)
    holds.release(db, made.id, actor="op", reason="day")
    jobs.defer(db, claim, worker="w", error="held", hold=made.id)
    assert job(db, claim.id).held_by is None
    assert len(claims(db)) == 1


def test_releasing_one_of_two_holds_leaves_the_other_in_force(db: Connection) -> None:
    claim = claim_of(db, a_job(db, state="running", attempts=1))
    first, second = hold(db, HoldScope.TENANT, "acme"), hold(db)
    assert [h.id for h in holds.over(db, claim.id)] == [first.id, second.id]
    holds.release(db, first.id, actor="op", reason="day")
    with pytest.raises(Held) as refused:
        jobs.start(db, claim, worker="w")
    assert refused.value.hold_id == second.id


def test_a_hold_does_not_interrupt_a_started_teardown(db: Connection) -> None:
    claim = a_claim(db)
    Run(claim, Shelf(does=lambda: hold(db) and None), worker="w")()
    assert job(db, claim.id).state == "succeeded"


def test_a_teardown_of_an_absent_object_completes_under_a_hold(db: Connection) -> None:
    claim = a_claim(db)
    hold(db)
    gone = Shelf()
    gone.torn.append(0)
    Run(claim, gone, worker="w")()
    assert job(db, claim.id).state == "succeeded"


def test_a_failure_before_the_start_costs_no_attempt_under_a_hold(db: Connection) -> None:
    claim = a_claim(db)
    made = hold(db, HoldScope.TENANT, "acme")
    Run(claim, Shelf(sees=[Transient("too many clients")]), worker="w")()
    row = job(db, claim.id)
    assert (row.state, row.attempts, row.held_by) == ("pending", 0, made.id)
    assert "too many clients" in row.last_error


def test_waking_reads_only_parked_jobs_however_many_holds_there_were(db: Connection) -> None:
    still = hold(db)
    resource = a_resource(db, status="deleting")
    db.execute(text("SET session_replication_role = replica; DROP INDEX outbox_one_deprovision"))
    db.execute(
        text("""INSERT INTO outbox (kind, resource_id, backend, max_attempts, request_id, held_by)
                SELECT 'deprovision', :id, 'pg-main', 10, :id, :still FROM generate_series(1, 30000)"""),
        {"id": resource, "still": still.id},
    )
    db.execute(
        text("""INSERT INTO holds (scope, cause, reason, actor, released_at, released_by, release_reason)
                SELECT 'global', 'operator', 'r', 'op', now(), 'op', 'r' FROM generate_series(1, 2000)""")
    )
    last = db.execute(text("SELECT max(id) FROM holds")).scalar_one()
    db.execute(text("UPDATE outbox SET held_by = :last WHERE id IN (7, 8, 9)"), {"last": last})
    db.execute(text("ANALYZE outbox, holds"))
    plan = db.execute(
        text(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {module_of('_WAKE')._WAKE.text}"), {"batch": 1000}
    ).scalar_one()
    told = json.dumps(plan)
    assert not re.search(r'"Node Type": "Seq Scan", [^}]*"Relation Name": "outbox"', told)
    assert plan[0]["Plan"]["Shared Hit Blocks"] < 500
    assert db.execute(text("SELECT count(*) FROM outbox WHERE held_by IS NULL")).scalar_one() == 3


def test_a_hold_is_released_once_and_kept_for_ever(db: Connection) -> None:
    made = hold(db)
    released = holds.release(db, made.id, actor="op2", reason="day")
    assert (released.released_by, released.release_reason) == ("op2", "day")
    with pytest.raises(AlreadyReleased, match="op2: day"):
        holds.release(db, made.id, actor="op3", reason="again")
    with pytest.raises(NotFound):
        holds.release(db, made.id + 1, actor="op", reason="x")
    for statement in ("DELETE FROM holds", "UPDATE holds SET reason = 'x'", "TRUNCATE holds"):
        with pytest.raises(IntegrityError, match="refused"):
            db.execute(text(statement))


def test_a_hold_with_a_typing_error_is_refused(db: Connection) -> None:
    a_resource(db)
    for scope, subject in ((HoldScope.BACKEND, "pg-mian"), (HoldScope.TENANT, "acne"), (HoldScope.KIND, "postgre")):
        with pytest.raises(BadRequest, match="would stop nothing"):
            hold(db, scope, subject)
    for scope, subject in ((HoldScope.GLOBAL, "pg-main"), (HoldScope.TENANT, None)):
        with pytest.raises(BadRequest, match="subject"):
            hold(db, scope, subject)
    hold(db, HoldScope.BACKEND, "redis-main")  # configured, but without resources yet
