"""Lanes: no tenant's backlog makes the others wait, teardowns come before provisions, and no lane waits for ever."""

from typing import Any

import pytest
from sqlalchemy import Connection, text

from outbox import breakers, jobs, resources
from outbox import db as database
from outbox.resources import NewResource
from tests.support.factories import a_job, a_resource, claim_of, claims, job
from tests.support.pools import pool, running
from tests.support.shelf import Shelf
from tests.support.witness import eventually
from worker.backends import Absent
from worker.claiming import OTHER_LANE_EVERY, first_lane
from worker.pool import Pool, ServedBackend


def deleted(db: Connection, tenant: str = "acme", backend: str = "pg-main") -> int:
    """The job of a DELETE that has just won."""
    return jobs.enqueue(db, a_resource(db, tenant=tenant, backend=backend), actor="api").job.id


def created(db: Connection, tenant: str = "acme", backend: str = "pg-main") -> int:
    """The job of a create."""
    return resources.register(db, NewResource(tenant, "postgres", backend, "n"), actor="api")[1].id


def crowd(db: Connection, n: int, status: str = "deleting", **words: str) -> None:
    """So many resources of a tenant that are `deleting` or `provisioning`; their jobs do not matter here."""
    for _ in range(n):
        a_resource(db, status=status, **words)


def lane(db: Connection, id: int) -> int:
    return job(db, id).lane


def test_a_jobs_lane_follows_its_kind_and_what_its_tenant_has_waiting_there(db: Connection) -> None:
    assert (lane(db, deleted(db)), lane(db, created(db))) == (0, 1)
    crowd(db, 9)
    assert lane(db, deleted(db)) == 1, "an eleventh"
    assert lane(db, created(db)) == 1, "teardowns do not count for a provision"
    assert lane(db, deleted(db, tenant="zed")) == 0, "another tenant's do not count"
    assert lane(db, deleted(db, backend="redis-main")) == 0, "nor another backend's"
    crowd(db, 9, "provisioning")
    assert lane(db, created(db)) == 2
    assert lane(db, deleted(db)) == 1, "provisions do not count for a teardown"
    db.execute(text("UPDATE resources SET status = 'deleted', purged_at = now() WHERE status = 'deleting'"))
    assert lane(db, deleted(db)) == 0, "what is done does not count"


@pytest.mark.parametrize(("waiting", "expected"), [(49, 1), (50, 2), (249, 2), (250, 3)])
def test_each_five_times_as_many_are_a_lane_further_back(db: Connection, waiting: int, expected: int) -> None:
    for status in ("deleting", "provisioning"):
        db.execute(
            text("""
            INSERT INTO resources (id, tenant, kind, backend, name, status, generation, deleted_at)
            SELECT gen_random_uuid(), 'acme', 'postgres', 'pg-main', 'n', :status, gen_random_uuid(),
                   CASE WHEN :status = 'deleting' THEN now() END
              FROM generate_series(1, :n)"""),
            {"status": status, "n": waiting},
        )
    assert (lane(db, deleted(db)), lane(db, created(db))) == (expected, expected + 1)


def test_jobs_of_one_statement_count_each_other(db: Connection) -> None:
    made = [a_resource(db) for _ in range(12)]
    done = jobs.enqueue_all(db, [jobs.Delete(id, "api") for id in made])
    assert sorted(lane(db, each.job.id) for each in done.values()) == [0] * 10 + [1] * 2


def test_a_teardown_passes_the_crowd_of_another_tenant_and_all_provisions(db: Connection) -> None:
    provision = created(db, tenant="zed")
    many = [deleted(db) for _ in range(15)]
    late = deleted(db, tenant="zed")
    assert [c.id for c in claims(db, 17)] == [*many[:10], late, provision, *many[10:]]


def test_a_claim_takes_of_all_lanes_no_more_than_the_backends_capacity(db: Connection) -> None:
    for _ in range(13):
        deleted(db)
    for _ in range(2):
        a_job(db, lane=3)
    assert [c.lane for c in jobs.claim(db, {"pg-main": 12}, slots=20, worker="w")] == [0] * 10 + [1] * 2
    assert [c.lane for c in jobs.claim(db, {"pg-main": 2}, slots=20, worker="w")] == [1, 3]


def test_a_claim_begins_with_the_lane_that_it_is_given(db: Connection) -> None:
    first, provision = deleted(db), created(db)
    third = a_job(db, lane=3)
    orders = {0: [first, provision, third], 1: [provision, first, third], 2: [third, provision, first]}
    for begins, order in (orders | {4: orders[2]}).items():
        for wanted in order:
            (claim,) = jobs.claim(db, {"pg-main": 1}, slots=1, worker="w", first=begins)
            assert claim.id == wanted
        db.execute(text("UPDATE outbox SET state = 'pending', claimed_by = NULL, lease_expires_at = NULL"))


def test_a_claim_of_each_lane_begins_behind_the_one_before(db: Connection) -> None:
    """As `_cursors` needs it: what was claimed of one lane hides nothing of another."""
    provision = created(db)
    one, two = deleted(db), deleted(db)
    (taken,) = claims(db)
    assert taken.id == one
    cursors = {("pg-main", taken.lane): taken}
    got = jobs.claim(db, {"pg-main": 5}, slots=5, worker="w", cursors=cursors)
    assert [c.id for c in got] == [two, provision]


def test_a_claim_takes_no_more_of_crowded_lanes_than_it_may(db: Connection) -> None:
    crowded = [a_job(db, lane=lane) for lane in (2, 3, 4, 3)]
    few = a_job(db)
    words: dict[str, Any] = {"slots": 9, "worker": "w"}
    assert [c.id for c in jobs.claim(db, {"pg-main": 9}, crowd={"pg-main": 2}, **words)] == [few, *crowded[:2]]
    assert jobs.claim(db, {"pg-main": 9}, crowd={"pg-main": 0}, **words) == []
    assert [c.id for c in jobs.claim(db, {"pg-main": 1}, crowd={"pg-main": 2}, **words)] == [crowded[3]]
    breakers.trip(db, "pg-main", reason="no route")
    db.execute(text("UPDATE breakers SET retry_at = now()"))
    probes = jobs.claim(db, {"pg-main": 9}, crowd={"pg-main": 0}, **words)
    assert [(c.id, c.probing) for c in probes] == [(crowded[2], True)], "a breaker's probe is never lost for it"


def test_a_crowd_gets_half_of_a_backends_slots_and_the_others_wait_for_no_slot(db: Connection) -> None:
    for _ in range(9):
        a_job(db, lane=3)
    with pool({"pg-main": 4}, slots=8) as made:
        for _ in range(3):
            made.drain()
            assert running(db) == {"pg-main": 2}
        few = [a_job(db, lane=lane) for lane in (1, 0, 0)]
        made.drain()
        assert running(db) == {"pg-main": 4}
        assert [job(db, id).state for id in few] == ["pending", "running", "running"]
    with pool({"pg-main": 1}, slots=8, worker="w2") as made:
        made.drain()
        assert db.execute(text("SELECT count(*) FROM outbox WHERE claimed_by = 'w2'")).scalar_one() == 1


def test_a_crowd_that_filled_its_half_goes_on_when_one_of_its_jobs_ends(db: Connection) -> None:
    """Without a wake-up or a sweep; and each claim of it begins behind the one before."""
    order: list[str] = []

    class Seen(Shelf):
        def inspect(self, manifest: Any) -> Any:
            order.append(manifest["generation"])
            return Absent({})

    made = Pool({"pg-main": ServedBackend(Seen(), 2)}, worker="w1", slots=8, lease_seconds=30, sweep_seconds=600)
    ids = [a_job(db, lane=3) for _ in range(6)]
    try:
        made.drain()
        eventually(lambda: all(job(db, id).state == "succeeded" for id in ids), what="all are done")
    finally:
        made.stop()
        assert made.join(20)
    assert order == [str(claim_of(db, id).generation) for id in ids]


def test_every_lane_comes_first_within_so_many_claims() -> None:
    seen = [first_lane(found) for found in range(2 * OTHER_LANE_EVERY * (jobs.LANES - 1))]
    assert seen.count(0) == len(seen) - len(seen) // OTHER_LANE_EVERY
    for begin in range(len(seen) // 2):
        assert set(seen[begin : begin + len(seen) // 2]) == set(range(jobs.LANES))


def test_endless_teardowns_do_not_keep_the_last_lane_waiting(db: Connection) -> None:
    """One slot, and for each teardown that ends another one comes: still the crowd's job gets its turn."""
    waits = a_job(db, lane=4)
    order: list[str] = []

    class Endless(Shelf):
        def inspect(self, manifest: Any) -> Any:
            if len(order) < 3 * OTHER_LANE_EVERY:
                with database.statement() as session:
                    deleted(session, tenant=f"t{len(order)}")
            order.append(manifest["generation"])
            return Absent({})

    deleted(db)
    made = Pool({"pg-main": ServedBackend(Endless(), 1)}, worker="w1", slots=1, lease_seconds=30, sweep_seconds=600)
    try:
        made.drain()
        left = text("SELECT count(*) FROM outbox WHERE state <> 'succeeded'")
        eventually(lambda: db.execute(left).scalar_one() == 0, what="all are done")
    finally:
        made.stop()
        assert made.join(20)
    last = str(claim_of(db, waits).generation)
    assert order.index(last) <= 2 * OTHER_LANE_EVERY
