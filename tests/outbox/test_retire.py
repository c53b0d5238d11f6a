"""A backend whose server is gone: nothing starts there, and two operators end its teardowns, never as deleted."""

import uuid
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Connection, text

from outbox import actions, holds, jobs, queries, resources
from outbox.actions import Proposed
from outbox.actions.caller import Caller, Operator
from outbox.approvals import Approval
from outbox.errors import (
    BackendRetired,
    Conflict,
    FenceMismatch,
    Forbidden,
    HasAbandoned,
    Held,
    NotATeardown,
    NotRetired,
)
from outbox.resources import NewResource
from outbox.rows import Job
from outbox.states import HoldCause
from tests.support.breaks import findings
from tests.support.factories import a_job, a_resource, claims, events_of, job, status_of, unguarded
from tests.support.recoveries import EDGE, ME

ANN, BOB = (Operator(Caller(f"token:{n}:{name}", None)) for n, name in ((1, "ann"), (2, "bob")))


def retired(db: Connection) -> None:
    actions.retire(db, ME, "pg-main", reason="the rack burned: INC-7")


def resource_of(db: Connection, id: int) -> uuid.UUID:
    return job(db, id).resource_id


def abandoned(id: int, *, fence: int = 0) -> Job | Proposed:
    """By two operators, each with evidence."""
    actions.abandon(EDGE, ANN, id, fence=fence, reason="disks shredded: certificate 4711")
    return actions.abandon(EDGE, BOB, id, fence=fence, reason="seen by the auditor: CHG-42")


def last(db: Connection, id: int) -> Any:
    asked = "SELECT event, actor, reason, detail FROM events WHERE job_id = :id ORDER BY id DESC LIMIT 1"
    return db.execute(text(asked), {"id": id}).one()


def test_two_operators_end_a_teardown_as_abandoned_with_the_evidence_of_both_and_the_object_s_names(
    db: Connection,
) -> None:
    id = a_job(db)
    resource = resource_of(db, id)
    manifest = db.execute(text("SELECT manifest FROM resources")).scalar_one()
    retired(db)
    first = actions.abandon(EDGE, ANN, id, fence=0, reason="disks shredded: certificate 4711")
    assert isinstance(first, Proposed)
    assert (job(db, id).state, status_of(db, resource)) == ("pending", "deleting")
    done = actions.abandon(EDGE, BOB, id, fence=0, reason="seen by the auditor: CHG-42")
    assert isinstance(done, Job)
    assert (done.state, status_of(db, resource)) == ("abandoned", "abandoned")
    event = last(db, id)
    assert (event.event, event.actor, event.reason) == ("abandoned", "token:2:bob", "seen by the auditor: CHG-42")
    assert event.detail["proposed_by"] == "token:1:ann"
    assert event.detail["proposed_reason"] == "disks shredded: certificate 4711"
    assert event.detail["manifest"] == manifest
    (row,) = queries.abandoned(db)
    assert (row.resource_id, row.manifest, row.job_id) == (resource, manifest, id)
    assert (row.proposed_by, row.approved_by) == ("token:1:ann", "token:2:bob")


def test_one_operator_alone_abandons_nothing_and_a_shell_user_is_none_of_the_two(db: Connection) -> None:
    id = a_job(db)
    retired(db)
    for _ in range(2):
        assert isinstance(actions.abandon(EDGE, ANN, id, fence=0, reason="certificate"), Proposed)
    with pytest.raises(Forbidden):
        actions.abandon(EDGE, ME, id, fence=0, reason="trust me")
    assert job(db, id).state == "pending"


def test_nothing_is_abandoned_on_a_backend_that_is_not_retired(db: Connection) -> None:
    id = a_job(db)
    with pytest.raises(NotRetired):
        abandoned(id)
    retired(db)
    actions.abandon(EDGE, ANN, id, fence=0, reason="certificate")
    actions.unretire(EDGE, ME, "pg-main", reason="its disks were saved")
    with pytest.raises(NotRetired):
        actions.abandon(EDGE, BOB, id, fence=0, reason="certificate")
    assert job(db, id).state == "pending"


def test_a_database_trigger_abandons_nothing_without_the_retirement_and_keeps_what_was(db: Connection) -> None:
    kept = a_resource(db, status="deleting")
    abandon = "UPDATE resources SET status = 'abandoned', credentials = NULL WHERE id = :id"
    with pytest.raises(sa.exc.IntegrityError, match="is not retired"):
        db.execute(text(abandon), {"id": kept})
    retired(db)
    db.execute(text(abandon), {"id": kept})
    with pytest.raises(sa.exc.IntegrityError, match="final"):
        db.execute(text("UPDATE resources SET status = 'deleted', purged_at = now() WHERE id = :id"), {"id": kept})


def test_a_job_at_another_fence_or_of_another_kind_or_that_runs_is_refused(db: Connection) -> None:
    retired(db)
    with pytest.raises(FenceMismatch):
        abandoned(a_job(db), fence=3)
    with pytest.raises(NotATeardown):
        abandoned(a_job(db, kind="provision"))
    with pytest.raises(Conflict, match="is running"):
        abandoned(a_job(db, state="running"), fence=1)


def test_every_teardown_of_the_backend_ends_by_one_command_of_each_operator(db: Connection) -> None:
    stuck, waiting = a_job(db, state="stuck"), [a_job(db) for _ in range(3)]
    elsewhere = a_job(db, backend="redis-main")
    retired(db)
    said = {"reason": "certificate", "tell": lambda _: None}
    assert actions.abandon_all(EDGE, ANN, "pg-main", **said) == (0, 4, {})
    assert actions.abandon_all(EDGE, BOB, "pg-main", **said) == (4, 0, {})
    assert {job(db, id).state for id in (stuck, *waiting)} == {"abandoned"}
    assert job(db, elsewhere).state == "pending"


def test_nothing_of_a_retired_backend_starts_and_all_does_once_it_is_not_retired_any_more(db: Connection) -> None:
    id = a_job(db)
    retired(db)
    (claim,) = claims(db)
    with pytest.raises(Held):
        jobs.start(db, claim, worker="w")
    jobs.defer(db, claim, worker="w", error="held", delay=0)
    actions.unretire(EDGE, ME, "pg-main", reason="its disks were saved")
    (claim,) = claims(db)
    assert claim.id == id
    jobs.start(db, claim, worker="w")


def test_a_retired_backend_makes_nothing_restores_nothing_and_shows_no_credentials(db: Connection) -> None:
    serving, deleting = a_resource(db), resource_of(db, a_job(db, step="quarantine"))
    retired(db)
    with pytest.raises(BackendRetired):
        resources.register(db, NewResource("acme", "postgres", "pg-main", "orders"), actor="me")
    with pytest.raises(BackendRetired):
        actions.restore(EDGE, ME, deleting, reason="oh")
    with pytest.raises(BackendRetired):
        actions.show_credentials(db, ME, serving)
    assert db.execute(text("SELECT count(*) FROM resources")).scalar_one() == 2
    assert status_of(db, deleting) == "deleting"


def test_a_delete_on_a_retired_backend_is_accepted_and_waits_and_after_its_end_is_answered_by_the_same_job(
    db: Connection,
) -> None:
    id = a_resource(db)
    retired(db)
    won = jobs.enqueue(db, id, actor="me")
    assert won.won
    abandoned(won.job.id)
    again = jobs.enqueue(db, id, actor="me")
    assert (again.won, again.job.id, str(again.resource.status)) == (False, won.job.id, "abandoned")


def test_a_backend_of_which_something_was_abandoned_stays_retired(db: Connection) -> None:
    id = a_job(db)
    retired(db)
    abandoned(id)
    with pytest.raises(HasAbandoned):
        actions.unretire(EDGE, ME, "pg-main", reason="it came back")
    hold = holds.of_backend(db, HoldCause.RETIRED, "pg-main")
    assert hold
    with pytest.raises(HasAbandoned):
        actions.release(EDGE, ME, hold.id, reason="by the other door")


def test_what_was_abandoned_uses_up_no_quota_and_its_object_is_never_adopted_again(
    db: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    id = a_job(db)
    generation = db.execute(text("SELECT generation FROM resources")).scalar_one()
    retired(db)
    abandoned(id)
    from outbox import settings
    from outbox.errors import AlreadyManaged
    from outbox.settings import TenantConfig

    monkeypatch.setattr(settings, "tenant", lambda _: TenantConfig(max_resources=1))
    again = {"user": "u", "prefix": "p:", "generation": str(generation)}
    with pytest.raises(AlreadyManaged):
        resources.register(db, NewResource("acme", "redis", "redis-main", "n", manifest=again), actor="me")
    resources.register(db, NewResource("acme", "redis", "redis-main", "n"), actor="me")


def test_the_doctor_says_which_backends_are_retired_with_what_waits_and_what_was_abandoned(db: Connection) -> None:
    a_resource(db)
    id = a_job(db)
    a_job(db)
    retired(db)
    abandoned(id)
    note = findings()["backend_retired"].sample[0].note
    assert note.startswith("1 jobs wait; 1 active; 1 abandoned")


def test_an_abandoned_teardown_writes_one_event_of_each_operator(db: Connection) -> None:
    id = a_job(db)
    retired(db)
    proposal = jobs.abandon(db, id, fence=0, actor="token:1:ann", reason="certificate")
    assert isinstance(proposal, Approval)
    jobs.abandon(db, id, fence=0, actor="token:2:bob", reason="ticket")
    assert events_of(db, id) == ["proposed", "abandoned"]
    unguarded(db, "DELETE FROM approvals")
