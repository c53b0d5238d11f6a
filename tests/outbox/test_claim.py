"""Claiming: no two workers get one job, no backend makes the others wait, no backlog makes it slow."""

import json
import threading
from typing import Any

import pytest
from sqlalchemy import Connection, text

from outbox import breakers, jobs
from outbox import db as database
from outbox.jobs.claim import RESTORES
from outbox.rows import Claim
from tests.support.factories import a_job, a_resource, claim_of, claims, job
from tests.support.transitions import module_of


def test_concurrent_claims_share_the_jobs_and_none_twice(db: Connection) -> None:
    wanted = {a_job(db) for _ in range(200)}
    barrier, taken, lock = threading.Barrier(8), [], threading.Lock()

    def worker(number: int) -> None:
        with database.statement() as session:
            barrier.wait()
            while got := claims(session, 3, worker=f"w{number}"):
                with lock:
                    taken.extend((c.id, c.fence) for c in got)

    threads = [threading.Thread(target=worker, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == sorted((id, 1) for id in wanted)


def test_a_claim_skips_a_locked_row_without_waiting(db: Connection, connect: Any) -> None:
    first, second = a_job(db), a_job(db)
    db.execute(text("SET lock_timeout = '1s'"))
    holder = connect()
    holder.cursor().execute("SELECT FROM outbox WHERE id = %s FOR UPDATE", (first,))
    assert [c.id for c in claims(db, 2)] == [second]
    holder.rollback()
    assert [c.id for c in claims(db, 2)] == [first]


def test_a_claim_takes_no_more_than_its_slots_and_the_backends_capacity(db: Connection) -> None:
    for backend in ("a", "b", "c"):
        for _ in range(10):
            a_job(db, backend=backend)
    got = jobs.claim(db, {"a": 2, "b": 3}, slots=4, worker="w")
    assert [c.backend for c in got].count("a") == 2
    assert [c.backend for c in got].count("b") == 2
    assert jobs.claim(db, {"unknown": 5}, slots=5, worker="w") == []


def test_a_claim_leaves_jobs_that_are_not_due(db: Connection) -> None:
    a_job(db)
    db.execute(text("UPDATE outbox SET available_at = now() + interval '1 hour'"))
    assert claims(db) == []


def test_a_tripped_breaker_hides_its_backend_and_then_lets_one_probe_through(db: Connection) -> None:
    for _ in range(3):
        a_job(db, backend="down")
        a_job(db, backend="up")
    breakers.trip(db, "down", reason="no route")
    rooms = {"down": 5, "up": 5}
    assert {c.backend for c in jobs.claim(db, rooms, slots=9, worker="w")} == {"up"}
    db.execute(text("UPDATE breakers SET retry_at = now()"))
    probe = jobs.claim(db, rooms, slots=9, worker="w")
    assert [(c.backend, c.probing) for c in probe] == [("down", True)]
    breakers.close(db, "down")
    assert len(jobs.claim(db, rooms, slots=9, worker="w")) == 2


def test_a_half_open_breaker_lets_one_probe_through_in_all(db: Connection, connect: Any) -> None:
    for _ in range(3):
        a_job(db, backend="down")
    breakers.trip(db, "down", reason="no route")
    db.execute(text("UPDATE breakers SET retry_at = now()"))
    db.execute(text("SET lock_timeout = '1s'"))
    other = connect()
    other.cursor().execute("SELECT FROM breakers FOR UPDATE")
    assert claims(db, 9, "down") == [], "another claim is taking the probe: it is not waited for"
    other.rollback()
    (probe,) = claims(db, 9, "down")
    assert probe.probing
    assert claims(db, 9, "down", worker="w2") == [], "one probe is on its way"
    breakers.trip(db, "down", reason="still no route", probing=True)
    failures, wait = db.execute(text("SELECT failures, extract(epoch FROM retry_at - now()) FROM breakers")).one()
    assert (failures, round(wait)) == (2, 2)
    db.execute(text("UPDATE breakers SET retry_at = now()"))
    assert len(claims(db, 9, "down")) == 1
    breakers.give_back(db, "down")
    assert len(claims(db, 9, "down")) == 1


def test_a_breaker_keeps_its_probe_while_its_backend_has_no_due_job(db: Connection) -> None:
    breakers.trip(db, "down", reason="no route")
    db.execute(text("UPDATE breakers SET retry_at = now()"))
    a_job(db, backend="up")
    assert len(jobs.claim(db, {"up": 1, "down": 1}, slots=2, worker="w")) == 1
    for _ in range(2):
        a_job(db, backend="up")
    a_job(db, backend="down")
    taken = jobs.claim(db, {"up": 2, "down": 2}, slots=2, worker="w")
    assert {c.backend for c in taken} == {"up", "down"}, "the slots do not run out before the probe"


def test_a_breaker_doubles_its_wait_up_to_a_limit(db: Connection) -> None:
    pauses = []
    for _ in range(7):
        breakers.trip(db, "down", reason="x")
        breakers.trip(db, "down", reason="the same pause counts once")
        pauses.append(
            round(db.execute(text("SELECT extract(epoch FROM retry_at - now())::float FROM breakers")).scalar_one())
        )
        db.execute(text("UPDATE breakers SET retry_at = now()"))
    assert pauses == [1, 2, 4, 8, 15, 15, 15]


def test_a_heartbeat_keeps_only_jobs_whose_claim_is_still_valid(db: Connection) -> None:
    for _ in range(3):
        a_job(db)
    mine, swept, stolen = claims(db, 3)
    db.execute(text("UPDATE outbox SET lease_expires_at = now() - interval '1 s'"))
    db.execute(text("UPDATE outbox SET fence = fence + 1 WHERE id = :id"), {"id": stolen.id})
    db.execute(text("ALTER TABLE outbox DROP CONSTRAINT outbox_running_has_lease"))  # it would answer for the guard
    jobs.defer(db, swept, worker="w", error="gone")
    assert jobs.heartbeat(db, [mine, swept, stolen]) == {mine.id}
    assert jobs.sweep(db, actor="w") == 1
    assert job(db, mine.id).state == "running"


def test_a_sweep_puts_back_the_jobs_of_dead_workers(db: Connection) -> None:
    dead = a_job(db, state="running", attempts=1, lease="-1 s")
    spent = a_job(db, state="running", attempts=10, max_attempts=10, lease="-1 s")
    birth = a_job(db, state="running", kind="provision", attempts=10, max_attempts=10, lease="-1 s")
    alive = a_job(db, state="running", attempts=1)
    assert jobs.sweep(db, actor="w2") == 3
    assert [job(db, id).state for id in (dead, spent, birth, alive)] == ["pending", "stuck", "pending", "running"]
    assert job(db, spent).stuck_reason == "attempts_exhausted"
    assert "w0" in job(db, dead).last_error
    assert job(db, dead).attempts == 1, "the claim counts, or a job that kills its worker would loop for ever"


def test_two_sweeps_at_once_put_each_job_back_once(db: Connection) -> None:
    for _ in range(50):
        a_job(db, state="running", attempts=1, lease="-1 s")
    barrier, swept = threading.Barrier(4), []

    def sweep() -> None:
        with database.statement() as session:
            barrier.wait()
            swept.append(jobs.sweep(session, actor="w"))

    threads = [threading.Thread(target=sweep) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(swept) == 50
    assert db.execute(text("SELECT count(*) FROM events WHERE event = 'swept'")).scalar() == 50


def test_a_sweep_skips_locked_rows_without_waiting(db: Connection, connect: Any) -> None:
    held, lost = (a_job(db, state="running", attempts=1, lease="-1 s") for _ in range(2))
    db.execute(text("SET lock_timeout = '1s'"))
    connect().cursor().execute("SELECT FROM outbox WHERE id = %s FOR UPDATE", (held,))
    assert jobs.sweep(db, actor="w") == 1
    assert [job(db, id).state for id in (held, lost)] == ["running", "pending"]


def test_a_sweep_locks_no_job_whose_lease_is_valid(db: Connection, connect: Any) -> None:
    """A heartbeat would wait for it."""
    alive = a_job(db, state="running", attempts=1)
    a_job(db, state="running", attempts=1, lease="-1 s")
    with database.transaction() as session:
        assert jobs.sweep(session, actor="w") == 1
        connect().cursor().execute("SELECT FROM outbox WHERE id = %s FOR UPDATE NOWAIT", (alive,))


def test_a_sweep_takes_a_bounded_batch(db: Connection) -> None:
    for _ in range(7):
        a_job(db, state="running", attempts=1, lease="-1 s")
    assert jobs.sweep(db, actor="w", batch=5) == 5


@pytest.fixture
def a_million(db: Connection) -> None:
    """A million pending jobs on two backends, one of them dead; those of the first lanes are not due."""
    resource = a_resource(db, status="deleting")
    indexes = ("outbox_one_deprovision", "outbox_lanes", "outbox_of_resource", "outbox_leases", "outbox_of_backend")
    made = [db.execute(text("SELECT pg_get_indexdef(CAST(:i AS regclass))"), {"i": i}).scalar_one() for i in indexes]
    # A million rows in seconds: no foreign key checks, and indexes afterwards, the unique one never.
    for statement in (
        "SET statement_timeout = 0; SET session_replication_role = replica",
        *(f"DROP INDEX {index}" for index in indexes),
        f"""INSERT INTO outbox (kind, resource_id, backend, max_attempts, request_id, lane, available_at)
            SELECT 'deprovision', CAST(CASE WHEN n <= 100 THEN '{resource}' ELSE md5(n::text) END AS uuid),
                   CASE WHEN n % 2 = 0 THEN 'pg-main' ELSE 'dead' END, 10, '{resource}', n % 5,
                   now() + CASE WHEN n % 5 = 4 THEN n - 2000000 ELSE 60000000 END * interval '1 ms'
              FROM generate_series(1, 1000000) AS n""",
        *made[1:],
        "ANALYZE outbox",
        "SET session_replication_role = origin",
    ):
        db.execute(text(statement))


@pytest.mark.proof
def test_the_plans_use_their_indexes_with_a_million_finished_rows(db: Connection, a_million: None) -> None:
    breakers.trip(db, "dead", reason="dead")
    plan = explained(db, {"dead": None, "pg-main": None})
    scans = [
        node
        for node in _nodes(plan[0]["Plan"])
        if node.get("Relation Name") == "outbox" and "Scan" in node["Node Type"]
    ]
    by_pending = [node for node in scans if node.get("Index Name") == "outbox_lanes"]
    assert by_pending, f"the claim's own index is not used: {scans}"
    assert all(node["Node Type"] != "Seq Scan" for node in scans)
    assert "outbox_leases" not in {node.get("Index Name") for node in scans}, (
        "the dead rows of that index are read for each job"
    )
    assert sum(node["Actual Rows"] * node["Actual Loops"] for node in scans) <= 8 * 4
    assert blocks(plan) < 500

    asked: dict[str, Any]
    # And none of the worker's other statements reads the whole table.
    claim = claims(db)[0]
    asked = {"id": claim.id, "fence": claim.fence, "actor": "w", "event": "e", "reason": None, "detail": None}
    words = {
        "resource_id": claim.resource_id,
        "batch": 100,
        "error": "e",
        "base": 1,
        "cap": 1,
        "delay": 0,
        "hold": None,
        "why": "refused",
    }
    words |= {
        "ids": [claim.id],
        "fences": [claim.fence],
        "details": [None],
        "lease": "30 s",
        "max_attempts": 1,
        "request_id": claim.generation,
    }
    words |= {"tenant": None, "free": False, "backends": "{}", "longest": 0, "strictest": "operators"}
    words |= {"after": "-infinity", "after_id": claim.resource_id, "rows": jobs.DUE_ROWS}
    for name in ("_START_DEPROVISION", "_COMPLETE", "_RETRY", "_DEFER", "_STICK", "_SWEEP", "_HEARTBEAT", "_EXPIRE"):
        # EXPLAIN would explain the first statement of a message, which takes locks, and execute the second.
        for statement in getattr(module_of(name), name).text.split(";"):
            plan = db.execute(text(f"EXPLAIN (FORMAT JSON) {statement}"), asked | words).scalar_one()
            plan = json.loads(plan) if isinstance(plan, str) else plan
            scanned = [
                n for n in _nodes(plan[0]["Plan"]) if n["Node Type"] == "Seq Scan" and n["Relation Name"] == "outbox"
            ]
            assert not scanned, f"{name} reads the whole table"


def explained(db: Connection, passed: dict[str, Claim | None]) -> list[Any]:
    """The plan of a claim of 8, as it ran; `passed` are its backends."""
    asked = {"backends": [*passed], "kinds": ["postgres"] * len(passed), "rooms": [8] * len(passed), "slots": 8}
    asked |= {"crowd_rooms": asked["rooms"], "parts": [False, True]}
    since = [f"{claim.available_at.isoformat() if claim else '-infinity'}" for claim in passed.values()]
    after = [claim.id if claim else 0 for claim in passed.values()]
    lanes = list(range(RESTORES, jobs.LANES))
    asked |= {"since": [f"{{{','.join([at] * len(lanes))}}}" for at in since], "lanes": lanes}
    asked |= {"after": [f"{{{','.join([str(id)] * len(lanes))}}}" for id in after], "lease": "30 s"}
    asked |= {"drained": [f"{{{','.join('f' * len(lanes))}}}"] * len(passed)}
    asked |= {"event": "claimed", "actor": "w", "reason": None, "detail": None}
    plan = db.execute(
        text(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {module_of('_CLAIM')._CLAIM.text}"), asked
    ).scalar_one()
    return json.loads(plan) if isinstance(plan, str) else plan


def blocks(plan: list[Any]) -> int:
    return plan[0]["Plan"]["Shared Hit Blocks"] + plan[0]["Plan"]["Shared Read Blocks"]


def test_a_claim_behind_another_does_not_read_what_vacuum_may_not_remove(db: Connection, connect: Any) -> None:
    old = connect()
    old.set_session(isolation_level="REPEATABLE READ")
    old.cursor().execute("SELECT FROM outbox")  # as a dump does: what dies from now on stays
    for statement in (
        "SET session_replication_role = replica",
        """INSERT INTO resources (id, tenant, kind, backend, name, status, generation, deleted_at)
           SELECT md5(n::text)::uuid, 'acme', 'postgres', 'pg-main', 'n', 'deleting', md5(n::text)::uuid, now()
             FROM generate_series(1, 3000) AS n""",
        # Few rows to a page: it is pages that are counted.
        """INSERT INTO outbox (kind, resource_id, backend, max_attempts, request_id, last_error)
           SELECT 'restore', md5(n::text)::uuid, 'pg-main', 10, md5(n::text)::uuid,
                  (SELECT string_agg(md5(n::text || m), '') FROM generate_series(1, 50) AS m)
             FROM generate_series(1, 3000) AS n""",
        "SET session_replication_role = origin",
    ):
        db.execute(text(statement))
    last = [claims(db, 500)[-1] for _ in range(6)][-1]
    behind = [a_job(db, lane=last.lane) for _ in range(2)]
    assert blocks(explained(db, {"pg-main": last})) < 300
    assert [job(db, id).state for id in behind] == ["running", "running"]
    a_job(db)
    assert blocks(explained(db, {"pg-main": None})) > 600, "from the front it is read, or this test shows nothing"


def test_a_claim_behind_another_takes_only_what_comes_after(db: Connection) -> None:
    first, second, third = (a_job(db) for _ in range(3))
    db.execute(text("UPDATE outbox SET available_at = (SELECT available_at FROM outbox WHERE id = :id)"), {"id": first})
    words: dict[str, Any] = {"slots": 5, "worker": "w1"}
    cursors = {("pg-main", 0): claim_of(db, second)}
    assert [c.id for c in jobs.claim(db, {"pg-main": 5}, cursors=cursors, **words)] == [third]
    earlier = a_job(db)
    db.execute(text("UPDATE outbox SET available_at = '2020-01-01' WHERE id = :id"), {"id": earlier})
    assert jobs.claim(db, {"pg-main": 5}, cursors=cursors, **words) == []
    others = {("other", 0): claim_of(db, third), ("pg-main", 1): claim_of(db, third)}
    assert [c.id for c in jobs.claim(db, {"pg-main": 5}, cursors=others, **words)] == [earlier, first, second]


def test_of_a_lane_that_was_found_empty_a_claim_reads_the_newest_part(db: Connection) -> None:
    long_due, new = a_job(db, lane=0), a_job(db, lane=0)
    db.execute(text("UPDATE outbox SET available_at = now() - interval '1 h' WHERE id = :id"), {"id": long_due})
    words: dict[str, Any] = {"slots": 5, "worker": "w1"}
    assert [c.id for c in jobs.claim(db, {"pg-main": 5}, drained={("pg-main", 0)}, **words)] == [new]
    assert [c.id for c in jobs.claim(db, {"pg-main": 5}, drained={("pg-main", 1), ("other", 0)}, **words)] == [long_due]


def test_a_claim_carries_what_the_runner_needs(db: Connection) -> None:
    id = a_job(db)
    claim = claims(db)[0]
    assert claim == claim_of(db, id)
    assert claim.manifest is not None


def _nodes(plan: dict[str, Any]) -> list[dict[str, Any]]:
    return [plan, *(node for child in plan.get("Plans", []) for node in _nodes(child))]


def test_a_claim_whose_answer_was_lost_is_found_only_by_its_worker(db: Connection) -> None:
    for _ in range(6):
        a_job(db)
    held, lost, started, expired = claims(db, 4)
    (others,) = claims(db, 1, worker="w2")
    jobs.start(db, started, worker="w1")
    db.execute(text("UPDATE outbox SET lease_expires_at = now() - interval '1 s' WHERE id = :id"), {"id": expired.id})
    assert jobs.claimed_before(db, [held], slots=9, worker="w1") == [lost]
    assert jobs.claimed_before(db, [held], slots=0, worker="w1") == []
    assert jobs.claimed_before(db, [held, lost], slots=9, worker="w1") == []
    assert jobs.claimed_before(db, [], slots=9, worker="w2") == [others]
    assert jobs.claimed_before(db, [], slots=9, worker="w3") == []
