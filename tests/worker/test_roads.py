"""What a worker destroys or cuts off without a person's word: it waits for holds, and stops after a rewind."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, text
from tenacity import stop_after_attempt

from outbox import db as database
from outbox import holds, jobs, resources, rewinds, snapshots
from outbox.errors import Busy, ClaimLost, Refused, Rewound
from outbox.resources import NewResource
from outbox.rows import Claim
from outbox.states import HoldScope
from tests.support.factories import a_job, a_resource, claim_of, claims, events_of, job, status_of
from tests.support.shelf import Remembering, Shelf, fail
from worker.backends import Absent
from worker.memory import Memories
from worker.run import Run, retries
from worker.snapshots import expiry

PLACES = ["pg-main"]


@dataclass(frozen=True)
class Stop:
    """A hold that covers what the tests make."""

    cause: str
    scope: str
    subject: str | None

    def engage(self, db: Connection) -> int:
        if self.cause == "operator":
            return holds.engage(db, HoldScope(self.scope), self.subject, actor="op", reason="night").id
        return db.execute(
            text("""INSERT INTO holds (scope, subject, cause, reason, actor)
                    VALUES (:scope, :subject, :cause, '50/10m', 'w') RETURNING id"""),
            vars(self),
        ).scalar_one()


STOPS = [
    *(Stop("operator", *each) for each in (("global", None), ("backend", "pg-main"), ("tenant", "acme"))),
    Stop("operator", "kind", "postgres"),
    Stop("brake", "backend", "pg-main"),
    Stop("brake", "tenant", "acme"),
    Stop("rewound", "global", None),
]
ELSEWHERE = [Stop("operator", "backend", "redis-main"), Stop("operator", "tenant", "other")]
every_stop = pytest.mark.parametrize("stop", STOPS, ids=lambda stop: f"{stop.cause}-{stop.scope}")


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "_GIVE_UP", stop_after_attempt(2))


def a_provision(db: Connection) -> Claim:
    new = NewResource(tenant="acme", kind="postgres", backend="pg-main", name="orders", manifest=None)
    resources.register(db, new, actor="me")
    return claims(db)[0]


def loses_its_claim(db: Connection) -> None:
    db.execute(text("UPDATE outbox SET lease_expires_at = now() - interval '1 s' WHERE state = 'running'"))
    jobs.sweep(db, actor="w2")


def late(db: Connection, claim: Claim, meanwhile: Callable[[], None], **words: Any) -> Shelf:
    """A worker makes the object, stands still while `meanwhile` happens, and goes on; its backend."""

    def stands_still() -> None:
        backend.does = lambda: None
        loses_its_claim(db)
        meanwhile()

    backend = Shelf(does=stands_still)
    Run(claim, backend, worker="w1", **words)()
    return backend


def compared(db: Connection) -> None:
    assert rewinds.settle(db, rewinds.here(db, PLACES), PLACES)


def deleted_for_good(db: Connection, claim: Claim) -> None:
    """The provision's next attempt ends, and a teardown sees the object absent."""
    jobs.enqueue(db, claim.resource_id, actor="me")
    provision, teardown = sorted(claims(db, 2, worker="w2"), key=lambda claim: claim.id)
    Run(provision, Shelf(), worker="w2")()
    Run(teardown, Shelf(sees=[Absent({})]), worker="w2")()
    assert status_of(db, claim.resource_id) == "deleted"


# -- what a provision made too late -----------------------------------------------------------------------------------


@every_stop
@pytest.mark.parametrize("status", ["deleting", "deleted"])
def test_what_was_made_too_late_is_left_while_a_hold_covers_it(db: Connection, stop: Stop, status: str) -> None:
    claim = a_provision(db)

    def meanwhile() -> None:
        if status == "deleted":
            deleted_for_good(db, claim)
        else:
            jobs.enqueue(db, claim.resource_id, actor="me")
        stop.engage(db)

    assert late(db, claim, meanwhile).torn == []
    assert "late" in events_of(db, claim.id), "the doctor and a person hear of it"


@pytest.mark.parametrize("stop", ELSEWHERE, ids=lambda stop: f"{stop.cause}-{stop.scope}")
def test_a_hold_elsewhere_keeps_nothing_that_was_made_too_late(db: Connection, stop: Stop) -> None:
    claim = a_provision(db)
    a_resource(db, tenant="other", backend="redis-main")

    def meanwhile() -> None:
        deleted_for_good(db, claim)
        stop.engage(db)

    assert late(db, claim, meanwhile).torn == [claim.fence]


def test_a_late_worker_leaves_what_its_successor_is_still_to_make(db: Connection) -> None:
    claim = a_provision(db)
    assert late(db, claim, lambda: None).torn == []
    assert status_of(db, claim.resource_id) == "provisioning"


def test_a_late_worker_does_not_destroy_what_can_still_be_restored(db: Connection) -> None:
    """Its successor made the same object, and gave it to a customer, whose delete has a grace."""
    claim = a_provision(db)

    def meanwhile() -> None:
        (again,) = claims(db, worker="w2")
        Run(again, Shelf(), worker="w2")()
        assert status_of(db, claim.resource_id) == "active"
        jobs.enqueue(db, claim.resource_id, actor="acme", grace=3600)

    assert late(db, claim, meanwhile).torn == []
    assert status_of(db, claim.resource_id) == "deleting"


def test_a_late_worker_undoes_what_it_made_again_after_the_destruction_has_started(db: Connection) -> None:
    claim = a_provision(db)

    def meanwhile() -> None:
        (again,) = claims(db, worker="w2")
        Run(again, Shelf(), worker="w2")()
        jobs.enqueue(db, claim.resource_id, actor="acme", grace=0, may_purge=True)
        (teardown,) = claims(db, worker="w2")
        jobs.start(db, teardown, worker="w2")

    assert late(db, claim, meanwhile).torn == [claim.fence]


def test_a_late_worker_destroys_nothing_on_the_word_of_a_database_that_was_not_compared(db: Connection) -> None:
    claim = a_provision(db)
    compared(db)

    def meanwhile() -> None:
        deleted_for_good(db, claim)
        db.execute(text("UPDATE memories SET compared_under = 'an older one'"))

    assert late(db, claim, meanwhile).torn == []


def test_a_late_worker_destroys_nothing_at_a_backend_that_was_told_to_keep_still(db: Connection) -> None:
    """No worker of this database has noticed yet that it went back in time."""
    claim = a_provision(db)
    there = Remembering()
    memories = Memories({"pg-main": there}, worker="w1")
    memories.compare()

    def meanwhile() -> None:
        deleted_for_good(db, claim)
        told = rewinds.here(db, PLACES).memory(still=True)
        there.keeps[told.installation] = told

    assert late(db, claim, meanwhile, memories=memories).torn == []


# -- a provision that failed, a step that is under way, a restore that is given up ------------------------------------


def test_a_failed_provision_is_not_rolled_back_after_a_rewind(db: Connection) -> None:
    claim = a_provision(db)
    backend = Shelf(does=lambda: rewound(db) or fail(Refused("no such right"))())
    Run(claim, backend, worker="w")()
    assert (job(db, claim.id).state, status_of(db, claim.resource_id)) == ("running", "provisioning")
    loses_its_claim(db)
    assert claims(db) == []
    assert status_of(db, claim.resource_id) == "provisioning"


def rewound(db: Connection) -> None:
    rewinds.here(db, PLACES)
    assert rewinds.engage(db, actor="w", reason="pg-main remembers event 9")


def test_a_step_that_is_under_way_ends_at_its_question_after_a_rewind(db: Connection) -> None:
    claim = claim_of(db, a_job(db, state="running", attempts=1))
    run = Run(claim, Shelf(), worker="w")
    run.still()
    rewound(db)
    with pytest.raises(ClaimLost, match="went back in time"):
        run.still()


def test_a_step_that_is_under_way_waits_until_a_restarted_database_is_compared(db: Connection) -> None:
    claim = claim_of(db, a_job(db, state="running", attempts=1))
    compared(db)
    db.execute(text("UPDATE memories SET compared_under = 'an older one'"))
    asked: list[bool] = []

    def compares_meanwhile(session: Connection, claim: Claim) -> None:
        asked.append(True)
        if len(asked) == 2:
            compared(db)
        honest(session, claim)

    honest = jobs.still
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jobs, "still", compares_meanwhile)
        Run(claim, Shelf(), worker="w").still()
    assert len(asked) == 2
    db.execute(text("UPDATE memories SET compared_under = 'an older one'"))
    with pytest.raises(Busy):
        Run(claim, Shelf(), worker="w").still()


def test_a_restore_that_is_given_up_after_a_rewind_cuts_nobody_off(db: Connection) -> None:
    """Where the database went back, the customer may be at work in what it calls a failed restore."""
    id = a_job(db, kind="restore", status="restoring", state="running", attempts=1)
    resource = job(db, id).resource_id
    shut: list[bool] = []

    class Open(Shelf):
        def release(self, manifest: Any, still: Any = lambda: None) -> None:
            still()
            rewound(db)
            raise Refused("changed hands")

        def quarantine(self, manifest: Any, still: Any = lambda: None) -> None:
            still()
            shut.append(True)

    Run(claim_of(db, id), Open(), worker="w")()
    assert shut == []
    assert (job(db, id).state, status_of(db, resource)) == ("running", "restoring")


# -- the last copy, and what a person asks for ------------------------------------------------------------------------


def an_expired_snapshot(db: Connection, store: Path) -> int:
    id = a_job(db, status="deleted", state="succeeded")
    (store / "orders.snapshot").write_bytes(b"the last copy")
    return db.execute(
        text("""INSERT INTO snapshots (job_id, resource_id, fence, tenant, kind, backend, location, verified_at,
                                       expires_at)
                SELECT id, resource_id, 1, 'acme', 'postgres', 'pg-main', :at, now(), now() - interval '1 s'
                  FROM outbox WHERE id = :job
             RETURNING id"""),
        {"job": id, "at": f"file:{store}/orders.snapshot"},
    ).scalar_one()


@every_stop
def test_the_last_copy_is_kept_while_a_hold_covers_it(db: Connection, tmp_path: Path, stop: Stop) -> None:
    an_expired_snapshot(db, tmp_path)
    made = stop.engage(db)
    assert expiry.remove_expired(worker="w") == 0
    assert (tmp_path / "orders.snapshot").read_bytes() == b"the last copy"
    if stop.cause != "rewound":
        holds.release(db, made, actor="op", reason="day")
        assert expiry.remove_expired(worker="w") == 1
        assert not (tmp_path / "orders.snapshot").exists()


def test_a_hold_that_is_engaged_between_two_removals_keeps_the_second(
    db: Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    an_expired_snapshot(db, tmp_path)
    honest = snapshots.expired

    def slowly(session: Connection, **words: Any) -> Any:
        found = honest(session, **words)
        if "id" not in words:
            STOPS[0].engage(db)
        return found

    monkeypatch.setattr(snapshots, "expired", slowly)
    assert expiry.remove_expired(worker="w") == 0
    assert (tmp_path / "orders.snapshot").exists()


def test_after_a_rewind_no_destruction_is_brought_forward(db: Connection) -> None:
    resource = a_resource(db)
    jobs.enqueue(db, resource, actor="acme", grace=3600)
    before = db.execute(text("SELECT purge_at FROM resources")).scalar_one()
    rewound(db)
    with pytest.raises(Rewound), database.transaction() as session:
        jobs.purge(session, resource, actor="op", reason="now")
    assert db.execute(text("SELECT purge_at FROM resources")).scalar_one() == before
