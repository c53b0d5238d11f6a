"""Expiry waits for holds: what a hold covers stays as it is, and keeps nothing else waiting."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import Connection, text

from outbox import db as database
from outbox import holds, jobs
from outbox.states import HoldScope
from tests.support.factories import a_resource, status_of
from tests.support.pools import pool
from tests.support.transitions import module_of
from tests.support.witness import eventually, waits_for_a_lock

PAST = "now() - interval '1 s'"
SCOPES = [(HoldScope.GLOBAL, None), (HoldScope.BACKEND, "pg-main"), (HoldScope.TENANT, "acme")]
SCOPES.append((HoldScope.KIND, "postgres"))
ELSEWHERE = [(HoldScope.BACKEND, "redis-main"), (HoldScope.TENANT, "other"), (HoldScope.KIND, "redis")]


def hold(db: Connection, scope: HoldScope = HoldScope.TENANT, subject: str | None = "acme") -> holds.Hold:
    return holds.engage(db, scope, subject, actor="op", reason="night")


@pytest.mark.parametrize(("scope", "subject"), SCOPES)
def test_what_a_hold_covers_does_not_expire_before_its_release(
    db: Connection, scope: HoldScope, subject: str | None
) -> None:
    resource = a_resource(db, expires=PAST)
    made = hold(db, scope, subject)
    assert jobs.expire(db, actor="w") == 0
    assert status_of(db, resource) == "active", "the customer is not cut off"
    holds.release(db, made.id, actor="op", reason="day")
    assert jobs.expire(db, actor="w") == 1
    assert status_of(db, resource) == "deleting"


def test_a_hold_of_a_brake_keeps_what_has_expired_too(db: Connection) -> None:
    resource = a_resource(db, expires=PAST)
    db.execute(
        text("""INSERT INTO holds (scope, subject, cause, reason, actor)
                VALUES ('backend', 'pg-main', 'brake', '50/10m', 'w')""")
    )
    assert jobs.expire(db, actor="w") == 0
    assert status_of(db, resource) == "active"


@pytest.mark.parametrize(("scope", "subject"), ELSEWHERE)
def test_a_hold_elsewhere_keeps_nothing_here_from_expiring(db: Connection, scope: HoldScope, subject: str) -> None:
    a_resource(db, tenant="other", backend="redis-main")
    a_resource(db, expires=PAST)
    hold(db, scope, subject)
    assert jobs.expire(db, actor="w") == 1


def test_what_waits_for_a_hold_takes_no_place_in_the_batch(db: Connection) -> None:
    for seconds in (3, 2):
        a_resource(db, expires=f"now() - interval '{seconds} s'")
    free = a_resource(db, expires=PAST, tenant="globex")
    hold(db)
    assert jobs.expire(db, actor="w", batch=1) == 1
    assert status_of(db, free) == "deleting"


@pytest.mark.parametrize(
    "lock",
    [
        "SELECT FROM resources WHERE id = %s FOR UPDATE",
        "SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))",
    ],
    ids=["row", "chain"],
)
def test_an_expiry_never_waits_so_no_hold_comes_between_its_reading_and_its_writing(
    db: Connection, connect: Callable[[], Any], lock: str
) -> None:
    resource = a_resource(db, expires=PAST)
    holder = connect()
    holder.cursor().execute(lock, (str(resource),))
    db.execute(text("SET lock_timeout = '1s'"))
    assert jobs.expire(db, actor="w") == 0
    hold(db)
    holder.commit()
    assert jobs.expire(db, actor="w") == 0
    assert status_of(db, resource) == "active"


def test_a_resource_that_got_more_time_after_it_was_picked_does_not_expire(
    db: Connection, connect: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    resource = a_resource(db, expires=PAST)
    home = module_of("_EXPIRE")
    waiting = home._EXPIRE.text.replace("FOR NO KEY UPDATE SKIP LOCKED", "")
    monkeypatch.setattr(home, "_EXPIRE", text(waiting))
    holder = connect()
    holder.cursor().execute("UPDATE resources SET expires_at = now() + interval '1 h' WHERE id = %s", (str(resource),))

    def late() -> int:
        with database.statement() as session:
            return jobs.expire(session, actor="w")

    with ThreadPoolExecutor(1) as threads:
        moved = threads.submit(late)
        eventually(lambda: waits_for_a_lock(db), what="it has picked the resource")
        holder.commit()
        assert moved.result(20) == 0
    assert status_of(db, resource) == "active"


def test_an_expiry_looks_at_a_bounded_number_of_rows_and_the_next_goes_on_behind_them(db: Connection) -> None:
    for seconds in (9, 8, 7):
        a_resource(db, expires=f"now() - interval '{seconds} s'")
    free = a_resource(db, expires=PAST, tenant="globex")
    for _ in range(3):
        a_resource(db, expires="now() + interval '1 h'")
    hold(db)
    assert jobs.expire(db, actor="w", rows=3) == 0
    last = jobs.last_due(db, rows=3)
    assert last is not None
    assert jobs.last_due(db, after=last, rows=3) is None, "the next one begins from the front"
    assert jobs.expire(db, actor="w", rows=3, after=last) == 1
    assert status_of(db, free) == "deleting"


def test_resources_that_expire_at_one_moment_are_told_apart(db: Connection) -> None:
    for _ in range(4):
        a_resource(db, expires="'2020-01-01Z'")
    free = a_resource(db, expires="'2020-01-01Z'", tenant="globex")
    hold(db)
    after, moved = None, 0
    for _ in range(5):
        moved += jobs.expire(db, actor="w", rows=1, after=after)
        after = jobs.last_due(db, after=after, rows=1) or after
    assert (moved, status_of(db, free)) == (1, "deleting")


def test_one_sweep_after_the_other_passes_what_waits_for_a_hold(db: Connection) -> None:
    db.execute(
        text("""
        INSERT INTO resources (id, tenant, kind, backend, name, status, generation, manifest, activated_at, expires_at)
        SELECT gen_random_uuid(), 'acme', 'postgres', 'pg-main', 'old', 'active', gen_random_uuid(), '{}', now(),
               now() - interval '1 day' - n * interval '1 s'
          FROM generate_series(1, :n) AS n"""),
        {"n": jobs.DUE_ROWS},
    )
    free = a_resource(db, expires=PAST, tenant="globex")
    hold(db)
    with pool({}, slots=1) as made:
        made.sweep()
        assert status_of(db, free) == "active"
        made.sweep()
        assert status_of(db, free) == "deleting"
        later = a_resource(db, expires="now() - interval '2 days'", tenant="globex")
        made.sweep()
        assert status_of(db, later) == "deleting", "from the front again"
