"""What an operator may do with a stuck job: have it looked at, resolve it, and force it with a second operator."""

import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import Connection, text

from outbox import approvals, jobs, observations, tokens
from outbox import db as database
from outbox.approvals import Approval
from outbox.errors import (
    Conflict,
    DeprovisionerError,
    FenceMismatch,
    JobNotStuck,
    NotATeardown,
    NotFound,
    NothingToForce,
    NotObserved,
    StillThere,
    StillWanted,
)
from outbox.rows import Job
from outbox.states import ForcedAction, Found, StuckReason
from tests.support.factories import a_job, a_look, claim_of, claims, events_of, job, resolved, status_of, unguarded
from tests.support.witness import eventually, waits_for_a_lock

ANNA, BERT = "token:1:anna", "token:2:bert"


def stuck(db: Connection, **words: Any) -> int:
    return a_job(db, state="stuck", attempts=2, **words)


def unknown(db: Connection) -> int:
    id = stuck(db)
    db.execute(text("UPDATE outbox SET stuck_reason = 'outcome_unknown', started_fence = 2 WHERE id = :id"), {"id": id})
    return id


def looks(db: Connection, room: int = 9, backend: str = "pg-main") -> list[observations.Inspection]:
    return observations.take(db, {backend: room}, slots=9)


def details(db: Connection, id: int, event: str) -> list[Any]:
    asked = "SELECT detail FROM events WHERE job_id = :id AND event = :event ORDER BY id"
    return [*db.execute(text(asked), {"id": id, "event": event}).scalars()]


def at_once(acts: list[Callable[[Connection], Any]]) -> list[Any]:
    """What each comes to, errors too, all released together."""
    barrier, came = threading.Barrier(len(acts)), [None] * len(acts)

    def one(n: int) -> None:
        with database.statement() as session:
            session.execute(text("SELECT 1"))
            barrier.wait()
            try:
                came[n] = acts[n](session)
            except DeprovisionerError as error:
                came[n] = error  # type: ignore[call-overload]

    threads = [threading.Thread(target=one, args=(n,)) for n in range(len(acts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return came


# -- looks ---------------------------------------------------------------------------------------------------------


def test_asking_again_joins_the_open_inspection(db: Connection) -> None:
    id = stuck(db)
    first = observations.ask(db, id, actor=ANNA, fence=2)
    assert observations.ask(db, id, actor=BERT) == first
    (look,) = looks(db)
    assert observations.ask(db, id, actor=BERT) == first, "one that is being taken too"
    observations.record(db, look, worker="w", found=Found.SAME, seen={})
    assert observations.ask(db, id, actor=BERT).id != first.id


def test_an_inspection_is_only_of_a_stuck_teardown_at_the_fence_the_operator_saw(db: Connection) -> None:
    for id, fence, refused in [
        (10**9, None, NotFound),
        (a_job(db, state="running"), None, JobNotStuck),
        (stuck(db), 1, FenceMismatch),
        (stuck(db, kind="provision"), None, NotATeardown),
    ]:
        with pytest.raises(refused):
            observations.ask(db, id, actor=ANNA, fence=fence)
    assert db.execute(text("SELECT count(*) FROM observations")).scalar_one() == 0


def test_an_inspection_is_taken_by_one_worker_of_its_backend_and_again_after_its_turn(db: Connection) -> None:
    id = stuck(db)
    observations.ask(db, id, actor=ANNA)
    assert looks(db, backend="other") == []
    (look,) = looks(db)
    assert (look.job_id, look.backend) == (id, "pg-main")
    assert look.manifest is not None
    assert looks(db) == []
    db.execute(text("UPDATE observations SET taken_until = now() - interval '1 s'"))
    (again,) = looks(db)
    assert again.id == look.id
    assert not observations.record(db, look, worker="slow", found=Found.ABSENT, seen={}), "another has the turn"
    assert observations.record(db, again, worker="w", found=Found.SAME, seen={})
    assert observations.find(db, look.id).observed_by == "w"  # type: ignore[union-attr]
    assert looks(db) == []


def test_an_inspection_that_took_too_long_is_not_recorded(db: Connection) -> None:
    observations.ask(db, stuck(db), actor=ANNA)
    (look,) = looks(db)
    over = db.execute(
        text("UPDATE observations SET taken_until = now() - interval '1 s' RETURNING taken_until")
    ).scalar_one()
    late = observations.Inspection(look.id, look.job_id, look.backend, look.manifest, over)
    assert not observations.record(db, late, worker="w", found=Found.ABSENT, seen={})


def test_inspections_are_taken_up_to_the_capacity_and_skip_locked_rows(db: Connection, connect: Any) -> None:
    for _ in range(4):
        observations.ask(db, stuck(db), actor=ANNA)
    db.execute(text("SET lock_timeout = '1s'"))
    connect().cursor().execute("SELECT FROM observations ORDER BY id LIMIT 1 FOR UPDATE")
    assert [len(looks(db, room=2)), len(looks(db)), len(looks(db))] == [2, 1, 0]
    db.execute(text("UPDATE observations SET taken_until = NULL WHERE id > 1"))
    assert len(observations.take(db, {"pg-main": 9}, slots=1)) == 1


def test_no_inspection_is_taken_while_another_job_of_the_resource_runs(db: Connection) -> None:
    """A provision that started before the DELETE may still make the object that is absent now."""
    birth = a_job(db, state="running", kind="provision", status="deleting", attempts=1)
    id = db.execute(
        text("""
        INSERT INTO outbox (kind, state, stuck_reason, resource_id, backend, fence, attempts, max_attempts, request_id)
        SELECT 'deprovision', 'stuck', 'attempts_exhausted', resource_id, backend, 1, 1, 1, gen_random_uuid()
          FROM outbox WHERE id = :id RETURNING id"""),
        {"id": birth},
    ).scalar_one()
    observations.ask(db, id, actor=ANNA)
    assert looks(db) == []
    jobs.rollback(db, claim_of(db, birth), worker="w", error="overtaken")
    assert len(looks(db)) == 1


def test_a_job_that_moved_on_is_not_inspected_and_its_inspection_is_removed(db: Connection) -> None:
    id = stuck(db)
    asked = observations.ask(db, id, actor=ANNA)
    (look,) = looks(db)
    jobs.redrive(db, id, fence=2, actor=ANNA, reason="r")
    assert not observations.record(db, look, worker="w", found=Found.ABSENT, seen={})
    (claim,) = claims(db)
    jobs.stick(db, claim, worker="w", why=StuckReason.REFUSED, error="e")
    assert not observations.record(db, look, worker="w", found=Found.ABSENT, seen={}), "another fence"
    db.execute(text("UPDATE observations SET taken_until = NULL"))
    assert looks(db) == []
    assert observations.find(db, asked.id) is None


def test_an_inspection_records_an_event_and_leaves_the_job_unchanged(db: Connection) -> None:
    id = stuck(db)
    observations.ask(db, id, actor=ANNA)
    before = job(db, id)
    (look,) = looks(db)
    assert observations.record(db, look, worker="w", found=Found.DIFFERENT, seen={"oid": 7})
    assert job(db, id) == before
    assert details(db, id, "observed") == [{"found": "different", "seen": {"oid": 7}}]


# -- resolve -------------------------------------------------------------------------------------------------------


def test_a_job_whose_object_was_seen_absent_is_resolved_with_its_evidence(db: Connection) -> None:
    id = stuck(db)
    unguarded(db, "UPDATE resources SET credentials = 'x'")
    db.execute(text("ALTER TABLE resources DROP CONSTRAINT resources_deleted_has_no_credentials"))
    a_look(db, id)
    done = resolved(db, id)
    assert (done.state, done.stuck_reason, done.fence) == ("succeeded", None, 2)
    row = db.execute(text("SELECT status, purged_at IS NOT NULL, credentials FROM resources")).one()
    assert row == ("deleted", True, None)
    assert details(db, id, "resolved") == [{"state": "succeeded", "seen": {"looked": True}, "observed_by": "w"}]
    with pytest.raises(JobNotStuck):
        resolved(db, id)


@pytest.mark.parametrize(
    ("found", "words", "refused", "says"),
    [
        (None, {}, NotObserved, "no worker has inspected"),
        ("absent", {"ago": "61 s"}, NotObserved, "no worker has inspected"),
        ("absent", {"fence": 1}, NotObserved, "no worker has inspected"),
        ("same", {}, StillThere, "looked"),
        ("different", {}, StillThere, "may still exist: something else is there; see `refused` in docs/runbook.md"),
        ("unavailable", {}, NotObserved, "could not be inspected"),
        ("unobservable", {}, NotObserved, "only two operators"),
    ],
)
def test_a_job_whose_object_was_not_just_seen_absent_is_not_resolved(
    db: Connection, found: str | None, words: dict[str, Any], refused: type[Exception], says: str
) -> None:
    id = stuck(db)
    if found:
        a_look(db, id, found, **words)
    before = job(db, id)
    with pytest.raises(refused, match=says) as told:
        resolved(db, id)
    assert "{" not in str(told.value), "words, and no dict"
    assert getattr(told.value, "seen", {"looked": True}) == {"looked": True}
    assert job(db, id) == before
    assert status_of(db, before.resource_id) == "deleting"
    assert events_of(db, id) == []


@pytest.mark.parametrize("later", ["same", "unavailable"])
def test_only_the_latest_inspection_counts(db: Connection, later: str) -> None:
    id = stuck(db)
    a_look(db, id, ago="20 s")
    a_look(db, id, later, ago="10 s")
    with pytest.raises(Conflict):
        resolved(db, id)
    a_look(db, id)
    assert resolved(db, id).state == "succeeded"


def test_an_inspection_of_another_job_is_no_evidence(db: Connection) -> None:
    id = stuck(db)
    a_look(db, stuck(db))
    with pytest.raises(NotObserved):
        resolved(db, id)


def test_resolve_wants_the_fence_the_operator_saw(db: Connection) -> None:
    id = stuck(db)
    a_look(db, id)
    a_look(db, id, fence=1)
    with pytest.raises(FenceMismatch):
        jobs.resolve(db, id, fence=1, actor=ANNA, reason="r")
    with pytest.raises(NotFound):
        jobs.resolve(db, 10**9, fence=1, actor=ANNA, reason="r")
    assert jobs.resolve(db, id, fence=2, actor=ANNA, reason="r").state == "succeeded"


@pytest.mark.parametrize("status", ["active", "deleted"])
def test_a_teardown_whose_resource_is_not_deleting_is_not_resolved(db: Connection, status: str) -> None:
    id = stuck(db, status=status)
    a_look(db, id)
    with pytest.raises(Conflict):
        resolved(db, id)
    assert (job(db, id).state, status_of(db, job(db, id).resource_id)) == ("stuck", status)


@pytest.mark.parametrize("status", ["deleting", "deleted"])
def test_a_stuck_provision_of_a_deleted_resource_resolves_to_cancelled_without_an_inspection(
    db: Connection, status: str
) -> None:
    id = stuck(db, kind="provision", status=status)
    assert resolved(db, id).state == "cancelled"
    assert status_of(db, job(db, id).resource_id) == status, "its own deprovision job ends it"
    assert details(db, id, "resolved") == [{"state": "cancelled"}]


@pytest.mark.parametrize("act", [jobs.resolve, jobs.resolve_forced])
def test_a_stuck_provision_is_not_resolved_before_its_resource_is_deleted(db: Connection, act: Any) -> None:
    id = stuck(db, kind="provision")
    a_look(db, id)
    with pytest.raises(StillWanted, match="DELETE the resource first"):
        act(db, id, fence=2, actor=ANNA, reason="r")
    assert (job(db, id).state, events_of(db, id)) == ("stuck", [])


def test_a_job_of_another_kind_is_not_resolved(db: Connection) -> None:
    id = stuck(db, kind="provision", status="deleting")
    db.execute(text("SET session_replication_role = replica; UPDATE outbox SET kind = 'restore'"))
    db.execute(text("RESET session_replication_role"))
    a_look(db, id)
    with pytest.raises(Conflict):
        resolved(db, id)
    assert job(db, id).state == "stuck"


def test_two_operators_race_and_one_resolves(db: Connection) -> None:
    id = stuck(db)
    a_look(db, id)
    came = at_once(
        [lambda db, who=who: jobs.resolve(db, id, fence=2, actor=who, reason="r") for who in (ANNA, BERT)]  # type: ignore[misc]
    )
    assert Counter(type(one) for one in came) == {Job: 1, JobNotStuck: 1}
    assert events_of(db, id) == ["resolved"]


def test_of_a_redrive_and_a_resolve_at_once_one_wins(db: Connection) -> None:
    id = stuck(db)
    a_look(db, id)
    came = at_once(
        [
            lambda db: jobs.resolve(db, id, fence=2, actor=ANNA, reason="r"),
            lambda db: jobs.redrive(db, id, fence=2, actor=BERT, reason="r"),
        ]
    )
    assert Counter(type(one) for one in came) == {Job: 1, JobNotStuck: 1}
    assert len(events_of(db, id)) == 1


# -- by two --------------------------------------------------------------------------------------------------------

FORCED = [
    pytest.param(jobs.resolve_forced, "resolved", "succeeded", id="resolve"),
    pytest.param(jobs.redrive_forced, "redriven", "pending", id="redrive"),
]


@pytest.mark.parametrize(("act", "event", "state"), FORCED)
def test_a_force_needs_two_operators(db: Connection, act: Any, event: str, state: str) -> None:
    id = unknown(db)
    first = act(db, id, fence=2, actor=ANNA, reason="scrapped")
    assert isinstance(first, Approval)
    assert (first.proposed_by, first.expires_at - first.proposed_at) == (ANNA, approvals.LIFE)
    again = act(db, id, fence=2, actor=ANNA, reason="again")
    assert (again, first.new, again.new, again.reason) == (first, True, False, "scrapped")
    assert approvals.proposals(db, id, fence=2) == [first]
    assert approvals.proposals(db, id, fence=1) == []
    assert (job(db, id).state, events_of(db, id)) == ("stuck", ["proposed"])
    assert act(db, id, fence=2, actor=BERT, reason="so it is").state == state
    assert events_of(db, id) == ["proposed", event]
    told = details(db, id, event)[0]
    assert {k: v for k, v in told.items() if k != "state"} == {
        "forced": True,
        "proposed_by": ANNA,
        "approved_by": BERT,
    }
    row = db.execute(text("SELECT proposed_by, approved_by, approved_at IS NOT NULL FROM approvals")).one()
    assert row == (ANNA, BERT, True)
    assert (job(db, id).fence, job(db, id).started_fence) == (2, 2), "history is untouched"


@pytest.mark.parametrize(("act", "event", "state"), FORCED)
def test_sixteen_proposals_of_one_operator_count_as_one(db: Connection, act: Any, event: str, state: str) -> None:
    id = unknown(db)
    came = at_once([lambda db: act(db, id, fence=2, actor=ANNA, reason="r")] * 16)
    assert {type(one) for one in came} == {Approval}
    assert len({one.proposed_at for one in came}) == 1
    assert (job(db, id).state, events_of(db, id)) == ("stuck", ["proposed"])


@pytest.mark.parametrize(("act", "event", "state"), FORCED)
def test_two_operators_who_force_at_once_do_it_once(db: Connection, act: Any, event: str, state: str) -> None:
    for _ in range(5):
        id = unknown(db)
        came = at_once(
            [lambda db, who=who: act(db, id, fence=2, actor=who, reason="r") for who in [ANNA, BERT] * 4]  # type: ignore[misc]  # noqa: B023
        )
        assert sum(isinstance(one, Job) for one in came) == 1, came
        assert events_of(db, id) == ["proposed", event]
        assert job(db, id).state == state


@pytest.mark.parametrize(("act", "event", "state"), FORCED)
def test_a_proposal_expires_after_an_hour(db: Connection, act: Any, event: str, state: str) -> None:
    id = unknown(db)
    act(db, id, fence=2, actor=ANNA, reason="r")
    db.execute(text("UPDATE approvals SET proposed_at = proposed_at - interval '1 h'"))
    second = act(db, id, fence=2, actor=BERT, reason="r")
    assert isinstance(second, Approval)
    assert second.proposed_by == BERT, "the old one has made way"
    assert job(db, id).state == "stuck"
    assert act(db, id, fence=2, actor=ANNA, reason="r").state == state


@pytest.mark.parametrize(("act", "event", "state"), FORCED)
def test_the_proposal_of_a_revoked_operator_counts_no_more(db: Connection, act: Any, event: str, state: str) -> None:
    gone, anna, bert = (
        tokens.create(db, actor="op", role="operator", tenant=None, name=who)[0] for who in ("gone", "a", "b")
    )
    id = unknown(db)
    assert isinstance(act(db, id, fence=2, actor=gone.actor, reason="r"), Approval)
    assert len(approvals.proposals(db, id, fence=2)) == 1
    tokens.revoke(db, gone.id, actor="op")
    assert approvals.proposals(db, id, fence=2) == []
    second = act(db, id, fence=2, actor=anna.actor, reason="r")
    assert isinstance(second, Approval)
    assert second.proposed_by == anna.actor, "the revoked one's has made way"
    assert (job(db, id).state, events_of(db, id)) == ("stuck", ["proposed", "proposed"])
    assert act(db, id, fence=2, actor=bert.actor, reason="r").state == state


def test_a_proposal_is_for_one_action_one_job_and_one_fence(db: Connection) -> None:
    id, other = unknown(db), unknown(db)
    jobs.resolve_forced(db, id, fence=2, actor=ANNA, reason="r")
    assert isinstance(jobs.redrive_forced(db, id, fence=2, actor=BERT, reason="r"), Approval)
    assert isinstance(jobs.resolve_forced(db, other, fence=2, actor=BERT, reason="r"), Approval)
    jobs.redrive(db, id, fence=2, actor=ANNA, reason="r")
    (claim,) = claims(db)
    jobs.stick(db, claim, worker="w", why=StuckReason.OUTCOME_UNKNOWN, error="e")
    for act in (jobs.resolve_forced, jobs.redrive_forced):
        for who in (ANNA, BERT):
            with pytest.raises(FenceMismatch):
                act(db, id, fence=2, actor=who, reason="r")
    assert isinstance(jobs.resolve_forced(db, id, fence=3, actor=BERT, reason="r"), Approval)
    assert {job(db, id).state, job(db, other).state} == {"stuck"}


@pytest.mark.parametrize(("act", "event", "state"), FORCED)
def test_a_force_needs_a_stuck_job_at_the_fence_the_operator_saw(
    db: Connection, act: Any, event: str, state: str
) -> None:
    for id, fence, refused in [(10**9, 1, NotFound), (a_job(db), 0, JobNotStuck), (unknown(db), 1, FenceMismatch)]:
        with pytest.raises(refused):
            act(db, id, fence=fence, actor=ANNA, reason="r")
    assert db.execute(text("SELECT count(*) FROM approvals")).scalar_one() == 0


def test_only_an_unknown_outcome_is_forced_to_run_again(db: Connection) -> None:
    for id in (stuck(db), stuck(db, kind="provision")):
        with pytest.raises(NothingToForce):
            jobs.redrive_forced(db, id, fence=2, actor=ANNA, reason="r")


@pytest.mark.parametrize(("act", "event", "state"), FORCED)
def test_a_proposal_that_was_carried_out_does_not_count_again(db: Connection, act: Any, event: str, state: str) -> None:
    id = unknown(db)
    act(db, id, fence=2, actor=ANNA, reason="r")
    db.execute(text("UPDATE approvals SET approved_by = 'token:3:c', approved_at = now()"))
    for age in ("0 h", "2 h"):
        db.execute(text(f"UPDATE approvals SET proposed_at = now() - interval '{age}'"))
        with pytest.raises(Conflict):
            act(db, id, fence=2, actor=BERT, reason="r")
    assert (job(db, id).state, events_of(db, id)) == ("stuck", ["proposed"])


@pytest.mark.parametrize(("act", "event", "state"), FORCED)
def test_a_proposal_does_not_count_once_its_job_has_changed(db: Connection, act: Any, event: str, state: str) -> None:
    id = unknown(db)
    act(db, id, fence=2, actor=ANNA, reason="r")
    jobs.redrive(db, id, fence=2, actor=ANNA, reason="r")
    with pytest.raises(JobNotStuck):
        act(db, id, fence=2, actor=BERT, reason="r")
    assert job(db, id).state == "pending"


@pytest.mark.parametrize("change", ["stuck_reason = 'refused'", "kind = 'provision', step = NULL, started_step = NULL"])
def test_a_proposal_forces_only_an_unknown_outcome_whatever_has_changed(db: Connection, change: str) -> None:
    id = unknown(db)
    jobs.redrive_forced(db, id, fence=2, actor=ANNA, reason="r")
    db.execute(text(f"SET session_replication_role = replica; UPDATE outbox SET {change}"))
    db.execute(text("RESET session_replication_role"))
    with pytest.raises(NothingToForce):
        jobs.redrive_forced(db, id, fence=2, actor=BERT, reason="r")


# -- what is read after the lock -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("act", "table"),
    [(jobs.redrive_forced, "outbox"), (jobs.resolve_forced, "outbox"), (jobs.resolve_forced, "resources")],
)
def test_a_token_revoked_while_the_second_operator_waits_for_a_lock_approves_nothing(
    db: Connection, connect: Callable[[], Any], act: Callable[..., Job | Approval], table: str
) -> None:
    id = unknown(db)
    token, _ = tokens.create(db, actor="op", name="anna", role="operator", tenant=None)
    anna = token.actor
    assert isinstance(act(db, id, fence=2, actor=anna, reason="r"), Approval)
    row = id if table == "outbox" else job(db, id).resource_id

    def force(session: Connection) -> object:
        return act(session, id, fence=2, actor=BERT, reason="r")

    came = while_locked(db, connect, row, force, _revoke, table=table)
    assert isinstance(came, Approval), "it proposes"
    assert job(db, id).state == "stuck"


def test_a_token_revoked_while_a_proposal_waits_for_a_lock_makes_way_for_it(
    db: Connection, connect: Callable[[], Any]
) -> None:
    id = unknown(db)
    token, _ = tokens.create(db, actor="op", name="anna", role="operator", tenant=None)
    assert isinstance(jobs.redrive_forced(db, id, fence=2, actor=token.actor, reason="r"), Approval)

    def propose(session: Connection) -> object:
        return approvals.propose(session, ForcedAction.REDRIVE, id, fence=2, actor=BERT, reason="r")

    came = while_locked(db, connect, id, propose, _revoke)
    assert isinstance(came, Approval)
    assert (came.proposed_by, came.new) == (BERT, True)


def test_an_inspection_recorded_while_resolve_waits_for_a_lock_is_the_last_word(
    db: Connection, connect: Callable[[], Any]
) -> None:
    id = stuck(db)
    a_look(db, id, Found.ABSENT)

    def found_again(session: Connection) -> None:
        a_look(session, id, Found.SAME)

    def resolve(session: Connection) -> object:
        try:
            return jobs.resolve(session, id, fence=2, actor=ANNA, reason="r")
        except StillThere as error:
            return error

    assert isinstance(while_locked(db, connect, id, resolve, found_again), StillThere)
    assert job(db, id).state == "stuck"


def _revoke(session: Connection) -> None:
    session.execute(text("UPDATE tokens SET revoked_at = now()"))


def while_locked(
    db: Connection,
    connect: Callable[[], Any],
    id: object,
    act: Callable[[Connection], object],
    meanwhile: Callable[[Connection], None],
    table: str = "outbox",
) -> object:
    """What `act` comes to, when `meanwhile` is committed while it waits for the row with this id."""
    holder = connect()
    holder.cursor().execute(f"SELECT FROM {table} WHERE id = %s FOR UPDATE", (str(id),))

    def one() -> object:
        with database.statement() as session:
            return act(session)

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(one)
        eventually(lambda: waits_for_a_lock(db), what="it waits for the row")
        meanwhile(db)
        holder.commit()
        return waiting.result(20)
