"""Brakes: at most so many teardowns start in a window, from all workers together; then an operator decides."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, text

from outbox import brakes, holds, jobs, settings
from outbox import db as database
from outbox.errors import BrakeHit, ClaimLost, Held, SettingsError
from outbox.rows import Claim
from outbox.settings import Brake
from outbox.states import HoldScope
from tests.support.factories import a_claim, a_job, a_resource, claims, job
from tests.support.shelf import Shelf
from tests.support.witness import eventually, waits_for_a_lock
from worker.run import Run

Settle = Callable[[str], None]


@pytest.fixture
def braked(settled: dict[str, str]) -> Settle:
    """Writes the brakes into the installation's backends file."""

    def settle(words: str, tenants: str = "") -> None:
        path = Path(settled["DEPROVISIONER_BACKENDS"])
        text = path.read_text().replace('kind = "postgres"\n', f'kind = "postgres"\n{words}\n')
        path.write_text(text + tenants)
        settings.backends.cache_clear()
        settings._tenants.cache_clear()

    return settle


def start(claim: Claim, *under: Brake) -> None:
    with database.transaction() as session:
        jobs.start(session, claim, worker="w", under=under)


def started(db: Connection) -> int:
    return db.execute(text("SELECT count(DISTINCT job_id) FROM events WHERE event = 'started'")).scalar_one()


def test_sixteen_workers_and_a_limit_of_fifty_make_exactly_fifty_starts_and_one_hold(
    db: Connection, braked: Settle
) -> None:
    braked('brake = "50/10m"')
    ids = [a_job(db) for _ in range(80)]
    gate, backend = threading.Barrier(16), Shelf()

    def work(name: str) -> None:
        gate.wait(30)
        for _ in range(len(ids)):
            with database.statement() as session:
                taken = jobs.claim(session, {"pg-main": 2}, slots=2, worker=name)
            if not taken:
                return
            for claim in taken:
                Run(claim, _Always(backend), worker=name)()

    workers = [threading.Thread(target=work, args=(f"w{n}",)) for n in range(16)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert len(backend.torn) == started(db) == 50
    only, *others = db.execute(text("SELECT * FROM holds")).all() or [None]
    assert only is not None
    assert others == []
    assert (only.scope, only.subject, only.cause) == ("backend", "pg-main", "brake")
    assert "brake 50/10m of backend pg-main: 50 teardowns" in only.reason
    rest = [row for id in ids if (row := job(db, id)).state != "succeeded"]
    assert {(row.state, row.attempts, row.held_by) for row in rest} == {("pending", 0, only.id)}
    assert len(rest) == 30
    # A person has looked: as many again, and no more.
    holds.release(db, only.id, actor="op", reason="meant")
    assert jobs.wake(db) == 30
    for claim in claims(db, 30):
        Run(claim, _Always(backend), worker="w")()
    assert len(backend.torn) == 80


class _Always(Shelf):
    """Each object exists until its own teardown; one backend counts all teardowns."""

    def __init__(self, shelf: Shelf) -> None:
        super().__init__()
        self._shelf = shelf

    def teardown(self, manifest, fence):
        self._shelf.torn.append(fence)
        return super().teardown(manifest, fence)


@pytest.mark.parametrize(("scope", "subject"), [("backend", "pg-main"), ("tenant", "acme")])
def test_a_brake_of_fifty_percent_stops_the_thirteenth_teardown_of_twenty_five(
    db: Connection, scope: str, subject: str
) -> None:
    for _ in range(5):
        a_resource(db)
    a_resource(db, tenant="other", backend="redis-main")
    brake = Brake(scope, subject, limit=1000, window=timedelta(minutes=10), max_percent=50)  # type: ignore[arg-type]
    for _ in range(20):
        a_job(db)
    *first, more = claims(db, 20)[:13]
    for claim in first:
        start(claim, brake)
        jobs.complete(db, claim, worker="w", seen={})
    with pytest.raises(BrakeHit, match="12 of its 25 live resources"):
        start(more, brake)


def test_a_few_teardowns_engage_no_brake(db: Connection) -> None:
    brake = Brake("tenant", "acme", limit=1000, window=timedelta(minutes=10), max_percent=10)
    for _ in range(5):
        a_job(db)
    *few, last = claims(db, 5)
    for claim in few:
        start(claim, brake)
    with pytest.raises(BrakeHit):
        start(last, brake)


def test_a_resource_counts_once_however_often_it_is_tried(db: Connection) -> None:
    brake = Brake("backend", "pg-main", limit=1, window=timedelta(minutes=10))
    claim = a_claim(db)
    start(claim, brake)
    start(claim, brake)  # its answer was lost
    jobs.retry(db, claim, worker="w", error="e")
    db.execute(text("UPDATE outbox SET available_at = now()"))
    start(claims(db)[0], brake)
    with pytest.raises(BrakeHit, match="1 teardowns have started"):
        start(a_claim(db), brake)


def test_a_start_that_was_refused_is_not_counted(db: Connection) -> None:
    brake = Brake("backend", "pg-main", limit=1, window=timedelta(minutes=10))
    claim = a_claim(db, lease="1 s")
    db.execute(text("UPDATE outbox SET lease_expires_at = now() - interval '1 s'"))
    with pytest.raises(ClaimLost):
        start(claim, brake)
    start(a_claim(db), brake)


def test_the_window_slides(db: Connection) -> None:
    brake = Brake("backend", "pg-main", limit=1, window=timedelta(minutes=10))
    start(a_claim(db), brake)
    late = a_claim(db)
    with pytest.raises(BrakeHit):
        start(late, brake)
    db.execute(text("UPDATE brake_starts SET at = at - interval '11 minutes'"))
    start(late, brake)
    db.execute(text("UPDATE brake_starts SET at = at - interval '31 days'"))
    start(a_claim(db), brake)
    assert db.execute(text("SELECT count(*) FROM brake_starts")).scalar_one() == 1, (
        "starts before the window are removed"
    )


def test_a_resource_of_an_earlier_window_counts_again(db: Connection) -> None:
    brake = Brake("backend", "pg-main", limit=1, window=timedelta(minutes=10))
    again = a_claim(db)
    start(again, brake)
    db.execute(text("UPDATE brake_starts SET at = at - interval '11 minutes'"))
    jobs.retry(db, again, worker="w", error="e")
    db.execute(text("UPDATE outbox SET available_at = now()"))
    start(claims(db)[0], brake)
    with pytest.raises(BrakeHit):
        start(a_claim(db), brake)


def test_workers_with_another_window_leave_each_other_what_they_count(db: Connection) -> None:
    long, short = (Brake("backend", "pg-main", limit=2, window=timedelta(minutes=n)) for n in (60, 1))
    start(a_claim(db), long)
    db.execute(text("UPDATE brake_starts SET at = at - interval '10 minutes'"))
    start(a_claim(db), short)
    with pytest.raises(BrakeHit):
        start(a_claim(db), long)


def test_a_start_refused_for_another_reason_does_not_hit_the_brake(db: Connection) -> None:
    brake = Brake("backend", "pg-main", limit=1, window=timedelta(minutes=10))
    start(a_claim(db), brake)
    stale, held = a_claim(db), a_claim(db)
    db.execute(text("UPDATE outbox SET fence = fence + 1 WHERE id = :id"), {"id": stale.id})
    with pytest.raises(ClaimLost):
        start(stale, brake)
    holds.engage(db, HoldScope.TENANT, "acme", actor="op", reason="night")
    with pytest.raises(Held):
        start(held, brake)


def test_what_was_judged_before_a_release_engages_no_new_hold(db: Connection) -> None:
    brake = Brake("backend", "pg-main", limit=1, window=timedelta(minutes=10))
    start(a_claim(db), brake)
    with pytest.raises(BrakeHit) as hit:
        start(a_claim(db), brake)
    first = holds.engage_brake(db, hit.value, actor="w")
    assert first is not None
    assert holds.engage_brake(db, hit.value, actor="w2") == (first[0], False)
    holds.release(db, first[0].id, actor="op", reason="meant")
    assert holds.engage_brake(db, hit.value, actor="w") is None


def test_a_verdict_that_meets_a_release_under_way_engages_no_new_hold(db: Connection) -> None:
    first, hit = _engaged(db)
    assert _while_released(db, first, lambda session: holds.engage_brake(session, hit, actor="w2")) is None
    assert holds.over(db, a_claim(db).id) == []


def test_a_verdict_waits_for_a_release_under_way_and_counts_from_it(db: Connection) -> None:
    first, _ = _engaged(db)
    _while_released(db, first, lambda session: brakes.take(session, a_claim(db), [ONE]))


def test_a_verdict_from_while_a_release_waited_engages_no_new_hold(db: Connection, connect: Callable[[], Any]) -> None:
    first, hit = _engaged(db)
    counting = connect()
    counting.cursor().execute("SELECT pg_advisory_xact_lock(hashtextextended('brake:backend:pg-main', 0))")

    def release() -> None:
        with database.statement() as session:
            holds.release(session, first.id, actor="op", reason="meant")

    with ThreadPoolExecutor(1) as pool:
        releasing = pool.submit(release)
        eventually(lambda: waits_for_a_lock(db), what="the release waits for its turn")
        hit.judged_at = db.execute(text("SELECT clock_timestamp()")).scalar_one()
        counting.commit()
        releasing.result(20)
    assert holds.engage_brake(db, hit, actor="w2") is None


ONE = Brake("backend", "pg-main", limit=1, window=timedelta(minutes=10))


def _engaged(db: Connection) -> tuple[holds.Hold, BrakeHit]:
    start(a_claim(db), ONE)
    with pytest.raises(BrakeHit) as hit:
        start(a_claim(db), ONE)
    engaged = holds.engage_brake(db, hit.value, actor="w")
    assert engaged is not None
    return engaged[0], hit.value


def _while_released(db: Connection, hold: holds.Hold, act: Callable[[Connection], Any]) -> Any:
    """What `act` comes to, when the hold's release has begun before it and is committed after it began."""

    def one() -> Any:
        with database.transaction() as session:
            return act(session)

    with ThreadPoolExecutor(1) as pool:
        with database.transaction() as releasing:
            holds.release(releasing, hold.id, actor="op", reason="meant")
            waiting = pool.submit(one)
            eventually(lambda: waiting.done() or waits_for_a_lock(db))
            assert not waiting.done(), "it waits for the release"
        return waiting.result(20)


def test_a_start_that_waits_too_long_for_the_brake_is_deferred_without_costing_an_attempt(
    db: Connection, braked: Settle, connect: Callable[[], Any]
) -> None:
    braked('brake = "9/10m"')
    other = connect()
    other.cursor().execute("SELECT pg_advisory_xact_lock(hashtextextended('brake:backend:pg-main', 0))")
    claim = a_claim(db)
    backend = Shelf()
    Run(claim, backend, worker="w")()
    assert (job(db, claim.id).state, job(db, claim.id).attempts, backend.torn) == ("pending", 0, [])
    assert "other workers are starting teardowns under the same brake" in job(db, claim.id).last_error


def test_a_turn_is_neither_waited_for_nor_kept_for_long(db: Connection) -> None:
    with database.transaction() as session:
        jobs.start(session, a_claim(db), worker="w", under=[Brake("tenant", "acme", 9, timedelta(minutes=1))])
        assert session.execute(text("SHOW idle_in_transaction_session_timeout")).scalar_one() == "2s"
        assert session.execute(text("SHOW lock_timeout")).scalar_one() == "5s"


def test_every_brake_over_a_teardown_is_asked_and_none_counts_when_one_is_hit(db: Connection) -> None:
    tight = Brake("tenant", "acme", limit=1, window=timedelta(minutes=10))
    wide = Brake("backend", "pg-main", limit=5, window=timedelta(minutes=10))
    start(a_claim(db), tight, wide)
    with pytest.raises(BrakeHit, match="tenant acme"):
        start(a_claim(db), wide, tight)
    assert db.execute(text("SELECT scope, count(*) FROM brake_starts GROUP BY 1 ORDER BY 1")).all() == [
        ("backend", 1),
        ("tenant", 1),
    ]


def test_a_brake_s_hold_stops_teardowns_but_not_provisions(db: Connection, braked: Settle) -> None:
    braked('brake = "1/10m"')
    for _ in range(2):
        a_job(db)
    for claim in claims(db, 2):
        Run(claim, Shelf(), worker="w")()
    birth = a_job(db, kind="provision")
    for claim in claims(db, 2):
        Run(claim, Shelf(), worker="w")()
    assert job(db, birth).state == "succeeded"
    assert started(db) == 2


def test_brakes_are_read_from_the_backends_file(settled: dict[str, str], braked: Settle) -> None:
    braked('brake = "50/10m"\nmax_percent = 60', '[tenants."*"]\nbrake = "5/1h"\n[tenants.big]\nbrake = "500/1d"\n')
    of_backend = Brake("backend", "pg-main", 50, timedelta(minutes=10), 60)
    assert settings.brakes("pg-main", "acme") == [of_backend, Brake("tenant", "acme", 5, timedelta(hours=1))]
    assert settings.brakes("redis-main", "big") == [Brake("tenant", "big", 500, timedelta(days=1))]


@pytest.mark.parametrize(
    ("words", "tenants", "told"),
    [
        ('brake = "50"', "", "'brake' must look like"),
        ('brake = "0/10m"', "", "'brake' must look like"),
        ('brake = "5/31d"', "", "at most 30 days"),
        ("max_percent = 50", "", "needs a 'brake'"),
        ('brake = "5/1h"\nmax_percent = 0', "", "from 1 to 100"),
        ("", "[tenants.acme]\nbrakes = 1\n", "unknown key 'brakes'"),
        ("", "[tenants.acme]\n", "limits nothing"),
        ("", "[tenants.acme]\nmax_pending = 1.5\n", "'max_pending' must be a whole number from 0"),
        ("", "[tenants.acme]\nmax_resources = -1\n", "'max_resources' must be a whole number from 0"),
        ("", 'tenants = "acme"\n', "unknown key 'tenants'"),
        ("", "[tenant.acme]\n", r"unknown table \[tenant\]"),
    ],
)
def test_a_brake_that_cannot_be_read_is_an_error_that_names_it(
    settled: dict[str, str], braked: Settle, words: str, tenants: str, told: str
) -> None:
    braked(words, tenants)
    with pytest.raises(SettingsError, match=told):
        settings.brakes("pg-main", "acme")
