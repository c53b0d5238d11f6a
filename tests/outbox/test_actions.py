"""What a caller may ask for, and the rules that no edge repeats."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest
from sqlalchemy import Connection

from outbox import actions, jobs, observations
from outbox import db as database
from outbox.actions import Caller, Edge, NewResource, Operator, Proposed
from outbox.errors import (
    BadRequest,
    FenceMismatch,
    Forbidden,
    NoCredentials,
    NotActive,
    NotDeleting,
    NotFound,
    NotObserved,
    UnknownBackend,
    UnknownKind,
)
from outbox.queries import JobFilter
from outbox.rows import Job
from outbox.states import Found, HoldScope, JobState, StuckReason
from tests.support.factories import a_job, a_look, a_resource, events_of
from tests.support.factories import job as row_of
from tests.support.witness import eventually, waits_for_a_lock

ACME = Caller("token:1:acme", "acme")
ANN = Operator(Caller("token:2:ann", None))
BOB = Operator(Caller("token:3:bob", None))
SHELL = actions.operator_at_a_shell("root")
NEW = NewResource(tenant=None, kind="postgres", backend="pg-main", name="orders")


@dataclass
class Rung:
    """An edge whose doorbell only counts."""

    times: int = 0
    edge: Edge = field(init=False)

    def __post_init__(self) -> None:
        self.edge = Edge(self._ask, self._transact, self._ring)

    def _ask(self, act):
        with database.statement() as session:
            return act(session)

    def _transact(self, act):
        with database.transaction() as session:
            return act(session)

    def _ring(self) -> None:
        self.times += 1


@pytest.fixture
def bell(db: Connection) -> Rung:
    return Rung()


def test_a_resource_is_made_for_its_caller_and_an_operator_names_the_tenant(bell: Rung, db: Connection) -> None:
    made, job = actions.create(bell.edge, ACME, NEW)
    assert (made.tenant, job.state, bell.times) == ("acme", JobState.PENDING, 1)
    assert actions.create(bell.edge, ANN, NewResource(**vars(NEW) | {"tenant": "globex"}))[0].tenant == "globex"
    for who, tenant in ((ACME, "globex"), (ANN, None)):
        with pytest.raises(BadRequest, match=r"^tenant: "):
            actions.create(bell.edge, who, NewResource(**vars(NEW) | {"tenant": tenant}))


@pytest.mark.parametrize(
    ("wrong", "refused"),
    [
        ({"kind": "mysql"}, UnknownKind),
        ({"backend": "pg-mian"}, UnknownBackend),
        ({"backend": "redis-main"}, UnknownKind),
        ({"manifest": {"oid": 1}}, BadRequest),
        ({"manifest": {"database": "x"}}, Forbidden),
    ],
)
def test_a_resource_that_no_backend_serves_or_that_a_tenant_adopts_is_refused(
    bell: Rung, db: Connection, wrong: dict, refused: type[Exception]
) -> None:
    with pytest.raises(refused):
        actions.create(bell.edge, ACME, NewResource(**vars(NEW) | wrong))
    assert bell.times == 0


def test_credentials_are_shown_only_while_the_resource_is_active(bell: Rung, db: Connection) -> None:
    adopted, leaving = a_resource(db), a_resource(db, status="deleting")
    with pytest.raises(NoCredentials):
        actions.show_credentials(db, ACME, adopted)
    with pytest.raises(NotActive):
        actions.show_credentials(db, ACME, leaving)
    with pytest.raises(NotFound):
        actions.show_credentials(db, Caller("token:9:globex", "globex"), adopted)


def test_one_of_many_deletes_wins_alone_or_in_a_batch(bell: Rung, db: Connection) -> None:
    one, other = a_resource(db), a_resource(db)
    assert actions.delete(bell.edge, actions.wanted_delete(ACME, one, reason="ticket 811")).won
    first, again = (actions.wanted_delete(ACME, id) for id in (other, one))
    won, lost = actions.delete_batch(bell.edge, [first, again])
    assert (won is not None and won.won, lost) == (True, None)
    settled = actions.delete_alone(bell.edge, again)
    assert (settled.won, settled.resource.id) == (False, one)
    assert actions.delete_alone(bell.edge, first).won, "asked again after a lost answer"
    with pytest.raises(NotFound):
        actions.delete(bell.edge, actions.wanted_delete(Caller("token:9:globex", "globex"), a_resource(db)))


def test_a_change_has_its_caller_in_its_event(db: Connection) -> None:
    resource = a_resource(db)
    actions.change(db, ACME, resource, {"protected": True})
    actions.change(db, ANN, resource, {"grace_seconds": 60})
    told = db.exec_driver_sql("SELECT actor FROM events WHERE event = 'changed' ORDER BY id").scalars().all()
    assert told == [ACME.actor, ANN.actor]


def test_a_restore_rings_and_one_that_changes_nothing_does_not(bell: Rung, db: Connection) -> None:
    resource = a_resource(db)
    assert not actions.restore(bell.edge, ACME, resource, reason="r").won
    assert bell.times == 0
    actions.delete(bell.edge, actions.wanted_delete(ACME, resource, grace_seconds=60))
    done = actions.restore(bell.edge, ACME, resource, reason="r")
    assert (done.won, done.job is not None, bell.times) == (True, True, 2)
    with pytest.raises(NotFound):
        actions.restore(bell.edge, Caller("token:9:globex", "globex"), resource, reason="r")


def test_a_purge_that_waited_for_a_restore_purges_nothing(bell: Rung, db: Connection) -> None:
    resource = a_resource(db)
    id = actions.delete(bell.edge, actions.wanted_delete(ACME, resource, grace_seconds=60)).job.id
    with ThreadPoolExecutor(1) as other, database.transaction() as session:
        jobs.restore(session, resource, actor="op", reason="r")
        purge = other.submit(actions.purge, bell.edge, ANN, resource, reason="r")
        eventually(lambda: waits_for_a_lock(db), what="it waits for the teardown's row")
        session.commit()
        assert isinstance(purge.exception(20), NotDeleting)
    assert events_of(db, id) == ["enqueued", "cancelled"]


def test_a_purge_is_said_of_the_teardown_whatever_it_does(bell: Rung, db: Connection) -> None:
    for state, step in (("pending", "quarantine"), ("pending", "wait"), ("running", "snapshot"), ("stuck", "snapshot")):
        id = a_job(db, state=state, step=step)
        of = row_of(db, id).resource_id
        db.exec_driver_sql(f"UPDATE resources SET purge_at = now() + interval '1 h' WHERE id = '{of}'")
        db.exec_driver_sql(f"UPDATE outbox SET available_at = now() + interval '1 h' WHERE id = {id}")
        done = actions.purge(bell.edge, SHELL, of, reason="r")
        assert isinstance(done, tuple)
        assert (done[1].state, done[1].step, events_of(db, id)) == (state, step, ["purge_ordered"])
        due = db.exec_driver_sql(f"SELECT available_at <= now() FROM outbox WHERE id = {id}").scalar_one()
        assert due is (step == "wait"), "what retries or waits for a hold still does"
        actions.purge(bell.edge, SHELL, of, reason="again")
        assert events_of(db, id) == ["purge_ordered"], "its time has come"


def test_a_tenant_s_filter_finds_its_own_jobs(db: Connection) -> None:
    assert actions.within(ACME, JobFilter()).tenant == "acme"
    assert actions.within(ANN, JobFilter()).tenant is None
    assert actions.within(ANN, JobFilter(tenant="globex")).tenant == "globex"
    with pytest.raises(BadRequest, match=r"^tenant: this token belongs to 'acme'"):
        actions.within(ACME, JobFilter(tenant="globex"))


def test_only_a_caller_without_a_tenant_is_an_operator() -> None:
    assert actions.operator(ANN) == ANN
    with pytest.raises(Forbidden, match="yours belongs to tenant 'acme'"):
        actions.operator(ACME)


@pytest.mark.parametrize("verb", ["redrive", "resolve"])
def test_only_operators_with_tokens_force_a_stuck_job(bell: Rung, db: Connection, verb: str) -> None:
    id = a_job(db, state="stuck")
    db.exec_driver_sql("UPDATE outbox SET stuck_reason = 'outcome_unknown'")

    def force(who: Operator) -> Job | Proposed:
        if verb == "redrive":
            return actions.redrive(bell.edge, who, id, fence=1, reason="r", force=True)
        return actions.resolve(bell.edge, who, id, fence=1, reason="r", force=True, seconds=0)

    with pytest.raises(Forbidden, match="cli:root has no token"):
        force(SHELL)
    assert events_of(db, id) == []
    a_look(db, id, "unobservable")
    for _ in range(2):
        proposed = force(ANN)
        assert isinstance(proposed, Proposed)
        assert (proposed.approval.proposed_by, bell.times) == (ANN.actor, 0)
        assert proposed.last_look is not None
        assert proposed.last_look.found is Found.UNOBSERVABLE
    done = force(BOB)
    assert isinstance(done, Job)
    assert (done.state, bell.times) == (("pending", 1) if verb == "redrive" else ("succeeded", 0))


def test_a_redrive_rings_and_a_refused_one_does_not(bell: Rung, db: Connection) -> None:
    id = a_job(db, state="stuck")
    with pytest.raises(FenceMismatch):
        actions.redrive(bell.edge, SHELL, id, fence=9, reason="r")
    assert bell.times == 0
    done = actions.redrive(bell.edge, SHELL, id, fence=1, reason="r")
    assert isinstance(done, Job)
    assert (done.state, bell.times) == (JobState.PENDING, 1)


def test_resolve_asks_a_worker_to_inspect_the_backend_first(bell: Rung, db: Connection) -> None:
    """A look that is still fresh is not enough: what the operator is told is seen now."""
    id = a_job(db, state="stuck")
    a_look(db, id, "absent")
    with pytest.raises(NotObserved, match=rf"job {id} within 0 s"):
        actions.resolve(bell.edge, SHELL, id, fence=1, reason="r", seconds=0)
    told: list[str] = []
    with ThreadPoolExecutor(1) as person:
        done = person.submit(actions.resolve, bell.edge, SHELL, id, fence=1, reason="r", seconds=30, tell=told.append)
        eventually(lambda: told, what="it waits")
        (look,) = observations.take(db, {"pg-main": 1}, slots=1)
        assert observations.record(db, look, worker="w1", found=Found.ABSENT, seen={"looked": True})
        assert done.result().state == JobState.SUCCEEDED
    assert told == ["waiting for a worker to inspect the backend, at most 30 s", "w1 inspected it: absent"]


def test_a_stuck_provision_is_resolved_without_an_inspection(bell: Rung, db: Connection) -> None:
    id = a_job(db, state="stuck", kind="provision", status="deleting")
    assert actions.resolve(bell.edge, SHELL, id, fence=1, reason="r", seconds=0).state == JobState.CANCELLED  # type: ignore[union-attr]


def test_a_release_wakes_the_jobs_that_waited_and_rings(bell: Rung, db: Connection) -> None:
    made = actions.hold(db, ANN, HoldScope.BACKEND, "pg-main", reason="disk full")
    id = a_job(db)
    db.exec_driver_sql(f"UPDATE outbox SET held_by = {made.id}")
    released = actions.release(bell.edge, ANN, made.id, reason="larger now")
    assert (released.released_by, released.release_reason, bell.times) == (ANN.actor, "larger now", 1)
    assert row_of(db, id).held_by is None


@pytest.mark.parametrize(
    ("wanted", "every"),
    [
        (JobFilter(), False),
        (JobFilter(state=JobState.STUCK), False),
        (JobFilter(backend="pg-main"), True),
        (JobFilter(reason=StuckReason.REFUSED, state=JobState.STUCK), True),
    ],
    ids=["nothing", "only a state", "both", "both and a state"],
)
def test_a_bulk_filter_says_which_jobs_or_all_and_not_both(wanted: JobFilter, every: bool) -> None:
    with pytest.raises(BadRequest, match="not both"):
        actions.chosen(wanted, every=every)
    assert actions.chosen(wanted, every=not every) == wanted
