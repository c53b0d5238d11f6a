"""Every transition from every state, on real PostgreSQL: the arrows of TRANSITIONS, and no others."""

import re
import threading
import uuid
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Connection, text

from outbox import approvals, holds, jobs, observations
from outbox import db as database
from outbox.errors import ClaimLost, Conflict, FenceMismatch, JobNotStuck, NotFound, StartRefused
from outbox.events import Event
from outbox.rows import Claim
from outbox.states import FINAL, TRANSITIONS, HoldCause, JobState, StuckReason
from tests.support.factories import (
    a_claim,
    a_job,
    a_look,
    a_resource,
    claim_of,
    claims,
    events_of,
    job,
    last_event,
    resolved,
    status_of,
    unguarded,
)
from tests.support.transitions import module_of
from tests.support.witness import eventually, waits_for_a_lock

Act = Callable[[Connection, Claim], Any]

# How to make a row, what another session does to it, and the transition that has already picked it.
RACES: dict[str, tuple[Callable[[Connection], Any], str, Callable[[Connection], Any]]] = {
    "_CLAIM": (
        a_job,
        "UPDATE outbox SET state = 'running', fence = 1, attempts = 1, claimed_by = 'w0', lease_expires_at = now()",
        claims,
    ),
    "_SWEEP": (
        lambda db: a_job(db, state="running", attempts=1, lease="-1 s"),
        "UPDATE outbox SET lease_expires_at = now() + interval '30 s'",
        lambda db: jobs.sweep(db, actor="w"),
    ),
    "_EXPIRE": (
        lambda db: a_resource(db, expires="now() - interval '1 s'"),
        "UPDATE resources SET status = 'deleting', deleted_at = now()",
        lambda db: jobs.expire(db, actor="w"),
    ),
}

# Each transition as a call on a job in any state, with the kind of job it is for.
STEP = {"advance": "quarantine", "cancel": "quarantine"}  # the step of a teardown, where it is not `destroy`
ACTS: dict[str, tuple[str, Act]] = {
    "claim": ("deprovision", lambda db, c: claims(db) or _nothing()),
    "start": ("deprovision", lambda db, c: jobs.start(db, c, worker="w")),
    "complete": ("deprovision", lambda db, c: jobs.complete(db, c, worker="w", seen={})),
    "activate": ("provision", lambda db, c: jobs.activate(db, c, worker="w", manifest={})),
    "advance": (
        "deprovision",
        lambda db, c: jobs.advance(db, c, worker="w", event=Event.QUARANTINED, seen={}),
    ),
    "let_go": ("release", lambda db, c: jobs.let_go(db, c, worker="w", seen={})),
    "give_back": ("restore", lambda db, c: jobs.give_back(db, c, worker="w", seen={})),
    "cancel": ("deprovision", lambda db, c: _cancelled(db, c)),  # noqa: PLW0108 - it is defined below
    "retry": ("deprovision", lambda db, c: jobs.retry(db, c, worker="w", error="e")),
    "defer": ("deprovision", lambda db, c: jobs.defer(db, c, worker="w", error="e")),
    "stick": ("deprovision", lambda db, c: jobs.stick(db, c, worker="w", why=StuckReason.REFUSED, error="e")),
    "rollback": ("provision", lambda db, c: jobs.rollback(db, c, worker="w", error="e")),
    "sweep": ("deprovision", lambda db, c: jobs.sweep(db, actor="w") or _nothing()),
    "set_aside": (
        "deprovision",
        lambda db, c: jobs.set_aside(db, [(c.id, c.fence)], actor="op", reason="r") or _nothing(),
    ),
    "redrive": ("deprovision", lambda db, c: jobs.redrive(db, c.id, fence=c.fence, actor="op", reason="r")),
    "abandon": ("deprovision", lambda db, c: _abandoned(db, c)),  # noqa: PLW0108 - it is defined below
    "resolve": ("deprovision", lambda db, c: a_look(db, c.id) and resolved(db, c.id)),
}
BIRTHS = {"enqueue", "expire", "restore", "release", "close"}
ENDS = ("advance", "let_go", "give_back", "complete", "activate", "retry", "defer", "stick", "rollback")
WORKER_S = sorted(
    set(ACTS) - {"claim", "sweep", "set_aside", "redrive", "resolve", "cancel", "abandon"}
)  # each with a claim


def _start(db: Connection, name: str, claim: Claim) -> int:
    """The start that must come before it, if one must; how many events that wrote."""
    if name in ("advance", "give_back"):
        jobs.start(db, claim, worker="w")
        return 1
    return 0


def _cancelled(db: Connection, claim: Claim) -> None:
    if not jobs.restore_all(db, [(claim.resource_id, uuid.uuid4())], actor="op", reason="r"):
        _nothing()


def _abandoned(db: Connection, claim: Claim) -> None:
    """By the second operator."""
    holds.engage_cause(db, HoldCause.RETIRED, "pg-main", actor="op", reason="r")
    asked = {"id": claim.id, "fence": claim.fence}
    proposed = (
        "INSERT INTO approvals (action, job_id, fence, reason, proposed_by) VALUES ('abandon', :id, :fence, 'r', 'a')"
    )
    db.execute(text(proposed), asked)
    try:
        jobs.abandon(db, claim.id, fence=claim.fence, actor="b", reason="r")
    except Conflict:
        _nothing()


def _nothing() -> None:
    raise ClaimLost("no row fitted")


def test_every_transition_is_tried() -> None:
    assert set(ACTS) | BIRTHS == {t.name for t in TRANSITIONS}


@pytest.mark.parametrize("state", JobState)
@pytest.mark.parametrize("name", ACTS)
def test_a_transition_moves_a_job_only_along_its_arrow(db: Connection, name: str, state: JobState) -> None:
    kind, act = ACTS[name]
    lease = "-1 s" if name in ("sweep", "set_aside") else "30 s"
    started = name in ("advance", "give_back")
    id = a_job(db, state=state, kind=kind, attempts=1, lease=lease, step=STEP.get(name), started=started)
    before = job(db, id)
    arrows = [t for t in TRANSITIONS if t.name == name and t.source == state]
    if not arrows:
        with pytest.raises((StartRefused, JobNotStuck)):
            act(db, claim_of(db, id))
        assert job(db, id) == before
        assert events_of(db, id) == []
        return
    act(db, claim_of(db, id))
    after = job(db, id)
    assert after.state in {t.target for t in arrows}
    assert len(events_of(db, id)) == 1, "each change writes its event in the same transaction"
    assert after.fence == before.fence + (name == "claim")


@pytest.mark.parametrize("name", WORKER_S)
def test_an_older_fence_moves_nothing(db: Connection, name: str) -> None:
    kind, act = ACTS[name]
    id = a_job(db, state="running", kind=kind, attempts=2, step=STEP.get(name))
    stale = claim_of(db, id, fence=1)
    before = job(db, id)
    with pytest.raises(ClaimLost):
        act(db, stale)
    assert job(db, id) == before
    assert events_of(db, id) == []


@pytest.mark.parametrize("name", ENDS)
def test_an_end_under_a_later_fence_is_not_reported_to_an_earlier_claim(db: Connection, name: str) -> None:
    kind, act = ACTS[name]
    id = a_job(db, state="running", kind=kind, attempts=2, step=STEP.get(name))
    _start(db, name, claim_of(db, id))
    act(db, claim_of(db, id))
    with pytest.raises(ClaimLost):
        act(db, claim_of(db, id, fence=1))


@pytest.mark.parametrize("name", ["complete", "activate", "rollback", "let_go"])
def test_a_job_ends_only_with_the_transition_of_its_kind(db: Connection, name: str) -> None:
    kind, act = ACTS[name]
    other = "provision" if kind == "deprovision" else "deprovision"
    id = a_job(db, state="running", kind=other, status="deleting", attempts=1)
    before = job(db, id)
    with pytest.raises(ClaimLost):
        act(db, claim_of(db, id))
    assert job(db, id) == before


def test_every_claim_has_a_fence_of_its_own(db: Connection) -> None:
    id = a_job(db)
    db.execute(text("UPDATE outbox SET fence = 5"))  # as after a redrive: the attempts begin anew, the fence does not
    (claim,) = claims(db)
    assert (claim.fence, claim.attempts) == (6, 1)
    assert (job(db, id).fence, job(db, id).attempts) == (6, 1)


def test_complete_deletes_the_resource_in_the_same_statement(db: Connection) -> None:
    claim = a_claim(db)
    unguarded(db, "UPDATE resources SET credentials = 'x'")
    db.execute(text("ALTER TABLE resources DROP CONSTRAINT resources_deleted_has_no_credentials"))
    jobs.start(db, claim, worker="w")
    jobs.complete(db, claim, worker="w", seen={"databases": []})
    row = db.execute(text("SELECT status, purged_at IS NOT NULL, credentials FROM resources")).one()
    assert row == ("deleted", True, None)
    assert events_of(db, claim.id) == ["claimed", "started", "completed"]


@pytest.mark.parametrize("name", WORKER_S)
def test_an_answer_that_was_lost_is_read_back_by_fence_and_event(db: Connection, name: str) -> None:
    kind, act = ACTS[name]
    claim = a_claim(db, kind=kind, step=STEP.get(name))
    begun = len(events_of(db, claim.id)) + _start(db, name, claim)
    for _ in range(2):
        act(db, claim)
    assert len(events_of(db, claim.id)) == begun + 1, "once what was done"


def test_a_swept_job_is_not_mistaken_for_a_committed_retry(db: Connection) -> None:
    claim = claim_of(db, a_job(db, state="running", attempts=1, lease="-1 s"))
    jobs.sweep(db, actor="w2")
    for late in (jobs.retry, jobs.defer):
        with pytest.raises(ClaimLost):
            late(db, claim, worker="w", error="e")


def test_start_refuses_a_lease_that_has_passed(db: Connection) -> None:
    id = a_job(db, state="running", attempts=1, lease="-1 s")
    with pytest.raises(ClaimLost):
        jobs.start(db, claim_of(db, id), worker="w")
    assert job(db, id).started_fence is None


def test_start_refuses_a_job_that_is_not_running(db: Connection) -> None:
    id = a_job(db)
    db.execute(text("ALTER TABLE outbox DROP CONSTRAINT outbox_running_has_lease"))  # it would answer for the guard
    db.execute(text("UPDATE outbox SET lease_expires_at = now() + interval '30 s'"))
    with pytest.raises(ClaimLost):
        jobs.start(db, claim_of(db, id), worker="w")


def test_start_refuses_a_job_that_does_not_fit_the_resources_status(db: Connection) -> None:
    claim = a_claim(db, status="active")
    with pytest.raises(StartRefused, match="active, not deleting"):
        jobs.start(db, claim, worker="w")
    assert job(db, claim.id).started_fence is None


def test_a_teardown_whose_resource_is_not_deleting_cannot_complete(db: Connection) -> None:
    claim = a_claim(db, status="active")
    db.execute(text("ALTER TABLE resources DROP CONSTRAINT resources_deleting_since"))  # it would answer for the guard
    with pytest.raises(ClaimLost):
        jobs.complete(db, claim, worker="w", seen={})
    assert status_of(db, claim.resource_id) == "active"


def test_start_refuses_while_another_job_of_the_resource_runs(db: Connection) -> None:
    birth = a_claim(db, kind="provision")
    jobs.start_provision(db, birth, worker="w", manifest={"a": 1}, credentials=b"x")
    jobs.enqueue(db, birth.resource_id, actor="me")
    death = claims(db)[0]
    with pytest.raises(StartRefused, match="another job"):
        jobs.start(db, death, worker="w")
    jobs.activate(db, birth, worker="w", manifest={"a": 1})
    assert status_of(db, birth.resource_id) == "deleting", "a birth does not undo a DELETE"
    jobs.start(db, death, worker="w")


def test_start_refuses_a_provision_whose_resource_is_being_deleted(db: Connection) -> None:
    birth = a_claim(db, kind="provision")
    jobs.enqueue(db, birth.resource_id, actor="me")
    with pytest.raises(StartRefused, match="deleting"):
        jobs.start_provision(db, birth, worker="w", manifest={}, credentials=None)
    jobs.rollback(db, birth, worker="w", error="no longer wanted")
    assert [r.state for r in db.execute(text("SELECT state FROM outbox ORDER BY id"))] == ["cancelled", "pending"]


def test_the_manifest_of_a_provision_is_stored_once(db: Connection) -> None:
    claim = a_claim(db, kind="provision")
    unguarded(db, "UPDATE resources SET manifest = NULL")
    assert jobs.start_provision(db, claim, worker="w", manifest={"n": 1}, credentials=b"1") == ({"n": 1}, b"1")
    jobs.retry(db, claim, worker="w", error="e")
    db.execute(text("UPDATE outbox SET available_at = now()"))
    again = claims(db)[0]
    assert jobs.start_provision(db, again, worker="w", manifest={"n": 2}, credentials=b"2") == ({"n": 1}, b"1")
    assert events_of(db, claim.id) == ["claimed", "started", "retried", "claimed", "started"]


def test_rollback_of_a_failed_provision_enqueues_a_teardown(db: Connection) -> None:
    claim = a_claim(db, kind="provision")
    jobs.rollback(db, claim, worker="w", error="no disk")
    assert status_of(db, claim.resource_id) == "deleting"
    assert db.execute(text("SELECT kind, state FROM outbox ORDER BY id")).all() == [
        ("provision", "cancelled"),
        ("deprovision", "pending"),
    ]
    told = db.execute(text("SELECT event FROM events")).scalars().all()
    assert sorted(told) == ["claimed", "enqueued", "rolled_back"]


def test_rollback_never_touches_an_adopted_resource_that_is_still_wanted(db: Connection) -> None:
    claim = a_claim(db, kind="provision")
    unguarded(db, "UPDATE resources SET adopted = true")
    with pytest.raises(ClaimLost):
        jobs.rollback(db, claim, worker="w", error="e")
    assert status_of(db, claim.resource_id) == "provisioning"


def test_retry_waits_with_full_jitter_under_a_cap_that_doubles(db: Connection) -> None:
    waits: dict[int, list[float]] = {1: [], 4: [], 30: []}
    for attempts, seen in waits.items():
        for _ in range(60):
            id = a_job(db, state="running", attempts=attempts, max_attempts=99)
            jobs.retry(db, claim_of(db, id), worker="w", error="e")
            seen.append(
                db.execute(
                    text("SELECT extract(epoch FROM available_at - now())::float FROM outbox WHERE id = :id"),
                    {"id": id},
                ).scalar_one()
            )
    base, cap = 0.2, 300
    assert all(-1 < w <= base for w in waits[1])
    assert max(waits[4]) > base
    assert all(w <= base * 8 for w in waits[4])
    assert all(w <= cap for w in waits[30])
    assert max(waits[30]) > cap / 4
    assert min(waits[30]) < cap / 2, "full jitter reaches down to nothing"


def test_jobs_lost_twice_together_are_retried_one_at_a_time(db: Connection) -> None:
    """After one loss at once; then one after another, later each time: one of them may be what kills the workers."""
    first, *again = (a_job(db, state="running", attempts=n, lease="-1 s") for n in (1, 2, 2, 2, 5))
    jobs.sweep(db, actor="w")
    asked = "SELECT extract(epoch FROM available_at - now())::float FROM outbox WHERE id = ANY(:ids) ORDER BY id"
    waits = [*db.execute(text(asked), {"ids": [first, *again]}).scalars()]
    base = 0.2
    assert waits[0] <= 0
    assert waits[1:] == pytest.approx([base, 2 * base, 3 * base, 4 * base * 2**3], abs=0.1)


def test_retry_refuses_when_the_attempts_are_spent(db: Connection) -> None:
    id = a_job(db, state="running", attempts=3, max_attempts=3)
    with pytest.raises(ClaimLost):
        jobs.retry(db, claim_of(db, id), worker="w", error="e")


def test_defer_gives_the_attempt_back_but_not_after_start(db: Connection) -> None:
    claim = a_claim(db)
    jobs.defer(db, claim, worker="w", error="down")
    assert (job(db, claim.id).attempts, job(db, claim.id).fence) == (0, 1)
    again = claims(db)[0]
    jobs.start(db, again, worker="w")
    with pytest.raises(ClaimLost):
        jobs.defer(db, again, worker="w", error="down")
    assert job(db, claim.id).attempts == 1


def test_redrive_wants_the_fence_the_operator_saw(db: Connection) -> None:
    claim = a_claim(db)
    jobs.stick(db, claim, worker="w", why=StuckReason.REFUSED, error="e")
    with pytest.raises(FenceMismatch):
        jobs.redrive(db, claim.id, fence=0, actor="op", reason="r")
    with pytest.raises(NotFound):
        jobs.redrive(db, 10**9, fence=0, actor="op", reason="r")
    assert jobs.redrive(db, claim.id, fence=1, actor="op", reason="r").attempts == 0
    assert job(db, claim.id).fence == 1, "the fence is never reset"
    with pytest.raises(JobNotStuck):
        jobs.redrive(db, claim.id, fence=1, actor="op", reason="r")


def test_expiry_enqueues_what_has_expired_and_nothing_else(db: Connection) -> None:
    due = a_resource(db, expires="now() - interval '1 s'")
    later = a_resource(db, expires="now() + interval '1 h'")
    kept = a_resource(db, expires="now() - interval '1 s'", protected=True)
    assert jobs.expire(db, actor="w") == 1
    assert jobs.expire(db, actor="w") == 0
    assert [status_of(db, r) for r in (due, later, kept)] == ["deleting", "active", "active"]


def test_a_resource_that_cannot_expire_takes_no_place_in_the_batch(db: Connection) -> None:
    a_resource(db, expires="now() - interval '3 s'", protected=True)
    a_resource(db, expires="now() - interval '2 s'", status="deleting")
    first, second = (a_resource(db, expires=f"now() - interval '{s} s'") for s in (1, 0.5))
    assert jobs.expire(db, actor="w", batch=1) == 1
    assert [status_of(db, r) for r in (first, second)] == ["deleting", "active"]


def test_expiry_skips_locked_rows_without_waiting(db: Connection, connect: Any) -> None:
    held, due = (a_resource(db, expires="now() - interval '1 s'") for _ in range(2))
    db.execute(text("SET lock_timeout = '1s'"))
    connect().cursor().execute("SELECT FROM resources WHERE id = %s FOR UPDATE", (str(held),))
    assert jobs.expire(db, actor="w") == 1
    assert [status_of(db, r) for r in (held, due)] == ["active", "deleting"]


@pytest.mark.parametrize("statement", RACES)
def test_a_row_that_changed_after_it_was_picked_is_not_moved_again(
    db: Connection, connect: Any, monkeypatch: pytest.MonkeyPatch, statement: str
) -> None:
    """A row may change between its selection and its update: the update repeats the guard, which must hold alone."""
    make, meanwhile, act = RACES[statement]
    make(db)
    home = module_of(statement)
    look = getattr(home, statement).text
    monkeypatch.setattr(home, statement, text(re.sub("FOR (NO KEY )?UPDATE SKIP LOCKED", "", look)))
    other = connect()
    other.cursor().execute(meanwhile)
    moved: list[Any] = []

    def late() -> None:
        with database.statement() as session:
            moved.append(act(session))

    thread = threading.Thread(target=late)
    thread.start()
    eventually(lambda: waits_for_a_lock(db), what="it picked what the other is moving")
    other.commit()
    thread.join()
    assert moved in ([0], [[]])


@pytest.mark.parametrize("state", FINAL)
def test_a_final_job_stays_final_whoever_writes(db: Connection, state: JobState) -> None:
    id = a_job(db, state=state)
    with pytest.raises(sa.exc.IntegrityError, match="final"):
        db.execute(text("UPDATE outbox SET state = 'pending', finished_at = NULL WHERE id = :id"), {"id": id})


def test_a_deleted_resource_stays_deleted_whoever_writes(db: Connection) -> None:
    a_resource(db, status="deleted")
    with pytest.raises(sa.exc.IntegrityError, match="final"):
        db.execute(text("UPDATE resources SET status = 'active', purged_at = NULL, deleted_at = NULL"))


@pytest.mark.parametrize("statement", ["UPDATE events SET actor = 'x'", "DELETE FROM events", "TRUNCATE events"])
def test_events_are_append_only_whoever_writes(db: Connection, statement: str) -> None:
    jobs.enqueue(db, a_resource(db), actor="me")
    with pytest.raises(sa.exc.IntegrityError, match="append-only"):
        db.execute(text(statement))


def test_a_fence_never_falls_whoever_writes(db: Connection) -> None:
    id = a_job(db, state="running", attempts=2)
    with pytest.raises(sa.exc.IntegrityError, match="never lowered"):
        db.execute(text("UPDATE outbox SET fence = 1, attempts = 0 WHERE id = :id"), {"id": id})


@pytest.mark.parametrize(
    ("name", "change"),
    [
        pytest.param(name, f"{name.partition('_')[0]} SET {change}", id=name)
        for name, change in {
            "outbox_running_has_claim": "claimed_by = 'w'",
            "outbox_running_has_lease": "lease_expires_at = now()",
            "outbox_stuck_has_reason": "stuck_reason = 'refused'",
            "outbox_final_is_finished": "state = 'succeeded'",
            "outbox_kind_known": "kind = 'other'",
            "outbox_state_known": "state = 'lost'",
            "outbox_stuck_reason_known": "state = 'stuck', stuck_reason = 'bored'",
            "outbox_attempts_within_fence": "attempts = 5",
            "outbox_max_attempts_positive": "max_attempts = 0",
            "outbox_started_within_fence": "started_fence = 5",
            "outbox_forced_within_fence": "forced_fence = 5",
            "outbox_step_known": "step = 'rest'",
            "outbox_step_of_teardown": "kind = 'restore'",
            "outbox_started_step_known": "started_fence = fence, started_step = 'rest'",
            "outbox_started_step_acts": "started_step = 'quarantine'",
            "outbox_lane_known": "lane = 5",
            "observations_found_known": "found = 'lost', observed_at = now(), observed_by = 'w'",
            "observations_observed_is_told": "observed_at = now()",
            "approvals_action_known": "action = 'drop'",
            "approvals_approved_by_somebody": "approved_by = 'w'",
            "approvals_by_two": "approved_by = proposed_by, approved_at = now()",
            "resources_deleted_is_purged": "purged_at = now()",
            "resources_deleting_since": "deleted_at = NULL",
            "resources_active_has_manifest": "manifest = NULL WHERE status = 'active'",
            "resources_deleted_has_no_credentials": "status = 'deleted', purged_at = now(), credentials = 'x'",
            "resources_purge_is_deleting": "purge_at = now() WHERE status = 'active'",
            "resources_grace_positive": "grace_seconds = -1",
            "resources_snapshot_known": "snapshot = 'sometimes'",
            "resources_status_known": "status = 'gone', deleted_at = NULL",
            "tokens_tenant_has_tenant": "tenant = NULL",
            "tokens_role_known": "role = 'root', tenant = NULL",
        }.items()
    ],
)
def test_the_checks_hold_whoever_writes(db: Connection, tenant: str, name: str, change: str) -> None:
    a_job(db)
    a_resource(db)
    # They would answer for the checks.
    db.execute(text("ALTER TABLE outbox DISABLE TRIGGER outbox_identity_stays"))
    db.execute(text("ALTER TABLE resources DISABLE TRIGGER resources_credentials_stay"))
    observations.ask(db, a_job(db, state="stuck"), actor="op")
    approvals.propose(db, "resolve", a_job(db, state="stuck"), fence=1, actor="op", reason="r")
    with pytest.raises(sa.exc.IntegrityError, match=f'violates check constraint "{name}"'):
        db.execute(text(f"UPDATE {change}"))


def test_live_rows_cannot_be_removed(db: Connection) -> None:
    a_job(db)
    lonely = a_resource(db)  # of no job, whose foreign key would answer for the trigger
    with pytest.raises(sa.exc.IntegrityError, match="a job that is not final may not be removed"):
        db.execute(text("DELETE FROM outbox"))
    with pytest.raises(sa.exc.IntegrityError, match="a resource that is not deleted may not be removed"):
        db.execute(text("DELETE FROM resources WHERE id = :id"), {"id": lonely})


def test_a_job_has_a_resource_whoever_writes(db: Connection) -> None:
    a_job(db)
    db.execute(text("ALTER TABLE outbox DISABLE TRIGGER outbox_identity_stays"))  # it would answer for the key
    with pytest.raises(sa.exc.IntegrityError, match="outbox_resource_id_fkey"):
        db.execute(text("UPDATE outbox SET resource_id = gen_random_uuid()"))


def test_a_delete_at_the_moment_of_a_birth_s_start_comes_before_it_or_sees_its_manifest(
    db: Connection, connect: Any
) -> None:
    """The DELETE holds the resource's row while the start asks for it: the start must see the flip."""
    claim = a_claim(db, kind="provision")
    unguarded(db, "UPDATE resources SET manifest = NULL")
    delete = connect()
    delete.cursor().execute(
        "UPDATE resources SET status = 'deleting', deleted_at = now() WHERE id = %s", (str(claim.resource_id),)
    )
    refused: list[Exception] = []

    def start() -> None:
        with database.statement() as session:
            try:
                jobs.start_provision(session, claim, worker="w", manifest={"made": 1}, credentials=b"x")
            except StartRefused as error:
                refused.append(error)

    thread = threading.Thread(target=start)
    thread.start()
    eventually(lambda: waits_for_a_lock(db), what="the start waits for the DELETE")
    delete.commit()
    thread.join()
    assert len(refused) == 1
    assert db.execute(text("SELECT manifest FROM resources")).scalar_one() is None


def test_a_birth_that_ends_at_the_moment_of_the_teardown_s_end_comes_before_it_or_sees_it(
    db: Connection, connect: Any
) -> None:
    claim = a_claim(db, kind="provision", status="deleting")
    teardown = connect()
    teardown.cursor().execute("UPDATE resources SET status = 'deleted', purged_at = now()")
    lost: list[Exception] = []

    def activate() -> None:
        with database.statement() as session:
            try:
                jobs.activate(session, claim, worker="w", manifest={})
            except (ClaimLost, sa.exc.IntegrityError) as error:
                lost.append(error)

    thread = threading.Thread(target=activate)
    thread.start()
    eventually(lambda: waits_for_a_lock(db), what="the birth waits for the teardown")
    teardown.commit()
    thread.join()
    assert [type(error) for error in lost] == [ClaimLost]


def test_a_provision_whose_resource_is_deleted_cannot_activate(db: Connection) -> None:
    claim = a_claim(db, kind="provision")
    db.execute(text("UPDATE resources SET status = 'deleted', deleted_at = now(), purged_at = now()"))
    with pytest.raises(ClaimLost):
        jobs.activate(db, claim, worker="w", manifest={})
    assert job(db, claim.id).state == "running"


# -- many in one statement --------------------------------------------------------------------------------------------


def test_starts_that_share_a_statement_are_each_judged_by_itself(db: Connection) -> None:
    first, stale, dead, gone, second = (a_claim(db) for _ in range(5))
    db.execute(text("UPDATE outbox SET fence = fence + 1 WHERE id = :id"), {"id": stale.id})
    db.execute(text("UPDATE outbox SET lease_expires_at = now() - interval '1 s' WHERE id = :id"), {"id": dead.id})
    db.execute(
        text("UPDATE resources SET status = 'deleted', purged_at = now() WHERE id = :id"), {"id": gone.resource_id}
    )
    asked = [(claim, {"n": claim.id}) for claim in (first, stale, dead, gone, second)]
    assert set(jobs.start_all(db, asked, worker="w1")) == _keys(first, second)
    assert set(jobs.start_all(db, asked, worker="w1")) == set(), "each is started once"
    for claim in (first, second):
        started = last_event(db, claim.id)
        assert (started.event, started.fence, started.detail) == ("started", claim.fence, {"seen": {"n": claim.id}})
    for claim in (stale, dead, gone):
        assert events_of(db, claim.id) == ["claimed"]


def test_completions_that_share_a_statement_are_each_judged_by_itself(db: Connection) -> None:
    first, stale, second = (a_claim(db) for _ in range(3))
    db.execute(text("UPDATE outbox SET fence = fence + 1 WHERE id = :id"), {"id": stale.id})
    asked = [(claim, {"n": claim.id}, None) for claim in (first, stale, second)]
    assert jobs.complete_all(db, asked, worker="w1") == _keys(first, second)
    assert jobs.complete_all(db, asked, worker="w1") == set()
    for claim in (first, second):
        assert status_of(db, claim.resource_id) == "deleted"
        assert last_event(db, claim.id).detail == {"seen": {"n": claim.id}}
    assert (job(db, stale.id).state, status_of(db, stale.resource_id)) == ("running", "deleting")


def _keys(*claims: Claim) -> set[tuple[int, int]]:
    return {(claim.id, claim.fence) for claim in claims}


SHARED: dict[str, Callable[..., set[tuple[int, int]]]] = {
    "heartbeat": lambda db, of: {(id, 1) for id in jobs.heartbeat(db, of)},
    "start": lambda db, of, **how: set(jobs.start_all(db, [(claim, None) for claim in of], worker="w1", **how)),
    "complete": lambda db, of, **how: jobs.complete_all(db, [(claim, {}, None) for claim in of], worker="w1", **how),
}


@pytest.mark.parametrize("move", SHARED)
def test_statements_about_the_same_claims_lock_them_in_one_order(db: Connection, connect: Any, move: str) -> None:
    first, second = a_claim(db), a_claim(db)
    db.execute(text("UPDATE outbox SET last_error = 'e' WHERE id = :id"), {"id": first.id})  # now behind, in the table
    holder = connect()
    holder.cursor().execute("SELECT FROM outbox WHERE id = %s FOR UPDATE", (first.id,))
    act = partial(SHARED[move], of=[second, first])
    assert _meanwhile(db, holder, act, "outbox", second.id) == _keys(first, second)


@pytest.mark.parametrize(("move", "table"), [("start", "outbox"), ("complete", "outbox"), ("complete", "resources")])
def test_a_batch_leaves_out_locked_rows(db: Connection, connect: Any, move: str, table: str) -> None:
    held, free = a_claim(db), a_claim(db)
    row = held.id if table == "outbox" else held.resource_id
    connect().cursor().execute(f"SELECT FROM {table} WHERE id = %s FOR UPDATE", (str(row),))
    db.execute(text("SET lock_timeout = '1s'"))
    assert SHARED[move](db, [held, free], waits=False) == _keys(free)
    with pytest.raises(sa.exc.OperationalError, match="lock timeout"):
        SHARED[move](db, [held])


def test_a_batch_of_starts_leaves_out_claims_that_complete_a_manifest(db: Connection) -> None:
    completing, plain = a_claim(db), a_claim(db)
    seen = [(completing, {"completes": {"role_oid": 1}}), (plain, {"found": "it"})]
    started = jobs.start_all(db, seen, worker="w", waits=False)
    assert set(started) == _keys(plain), "it would wait for the resource's row"
    assert set(jobs.start_all(db, seen, worker="w")) == _keys(completing)


@pytest.mark.parametrize("move", ["start", "complete"])
def test_a_batch_leaves_out_resources_whose_event_chain_is_locked(db: Connection, connect: Any, move: str) -> None:
    held, free = a_claim(db), a_claim(db)
    _writes_an_event(connect(), held.resource_id)
    db.execute(text("SET lock_timeout = '1s'"))
    assert SHARED[move](db, [held, free], waits=False) == _keys(free)


def test_a_batch_of_deletes_leaves_out_resources_whose_event_chain_is_locked(db: Connection, connect: Any) -> None:
    held, free = (jobs.Delete(a_resource(db), "me") for _ in range(2))
    _writes_an_event(connect(), held.resource_id)
    db.execute(text("SET lock_timeout = '1s'"))
    assert set(jobs.enqueue_all(db, [held, free], waits=False)) == {free.request_id}


def _writes_an_event(holder: Any, resource: uuid.UUID) -> None:
    """Another transaction locks the resource's event chain, but not its row: an operation's step, or psql."""
    holder.cursor().execute(
        "INSERT INTO events (job_id, resource_id, fence, event, actor) VALUES (0, %s, 0, 'noted', 'me')",
        (str(resource),),
    )


def test_a_delete_is_not_told_of_an_old_teardown_as_its_own(db: Connection) -> None:
    resource = a_resource(db)
    jobs.enqueue(db, resource, actor="me")
    # Only the owner of the tables can do this: the resource is active again, and its teardown was not cancelled.
    db.execute(text("SET session_replication_role = replica"))
    undone = "UPDATE resources SET status = 'active', deleted_at = NULL, purge_at = NULL WHERE id = :id"
    db.execute(text(undone), {"id": resource})
    db.execute(text("RESET session_replication_role"))
    with pytest.raises(sa.exc.IntegrityError):
        jobs.enqueued_before(db, jobs.Delete(resource, "me"))


def test_completions_lock_their_resources_in_the_order_of_deletes(db: Connection, connect: Any) -> None:
    second = first = a_claim(db)
    while first.resource_id >= second.resource_id:  # against the order of the jobs
        first = a_claim(db)
    holder = connect()
    holder.cursor().execute("SELECT FROM resources WHERE id = %s FOR UPDATE", (str(first.resource_id),))
    act = partial(SHARED["complete"], of=[second, first])
    assert _meanwhile(db, holder, act, "resources", second.resource_id) == _keys(first, second)


def _meanwhile(db: Connection, holder: Any, act: Callable[[Connection], Any], table: str, other: Any) -> Any:
    """What `act` does once `holder` lets go of a row; until then it must not hold the row `other` of the table."""
    done: list[Any] = []

    def run() -> None:
        with database.transaction() as session:
            # With an index scan the order could be right by accident.
            session.execute(text("SET LOCAL enable_indexscan = off; SET LOCAL enable_bitmapscan = off"))
            done.append(act(session))

    thread = threading.Thread(target=run)
    thread.start()
    eventually(lambda: waits_for_a_lock(db), what="it waits for the first row")
    db.execute(text("SET lock_timeout = '1s'"))
    db.execute(text(f"SELECT FROM {table} WHERE id = :id FOR UPDATE"), {"id": other})
    holder.commit()
    thread.join()
    return done[0]


@pytest.mark.parametrize("move", SHARED)
def test_a_transition_that_waited_for_a_lock_does_nothing_when_its_claim_is_lost(
    db: Connection, connect: Any, move: str
) -> None:
    claim = a_claim(db)
    other = connect()
    other.cursor().execute(
        "UPDATE outbox SET fence = fence + 1, claimed_by = 'w2' WHERE id = %s AND claimed_by = 'w1'", (claim.id,)
    )
    done: list[set[int]] = []

    def run() -> None:
        with database.statement() as session:
            done.append(SHARED[move](session, [claim]))

    thread = threading.Thread(target=run)
    thread.start()
    eventually(lambda: waits_for_a_lock(db), what="it waits for the other")
    other.commit()
    thread.join()
    assert (done, events_of(db, claim.id)) == ([set()], ["claimed"])
    assert status_of(db, claim.resource_id) == "deleting"


def test_a_running_job_with_a_live_lease_is_not_set_aside(db: Connection) -> None:
    id = a_job(db, state="running", attempts=1)
    before = job(db, id)
    assert jobs.set_aside(db, [(id, before.fence)], actor="op", reason="r") == set()
    assert job(db, id) == before


def test_a_job_at_another_fence_is_not_set_aside(db: Connection) -> None:
    id = a_job(db)
    assert jobs.set_aside(db, [(id, 7)], actor="op", reason="r") == set()
    assert job(db, id).state == "pending"


@pytest.mark.parametrize("status", ["provisioning", "active", "deleting", "deleted", "restoring"])
def test_only_an_active_resource_is_closed(db: Connection, status: str) -> None:
    resource = a_resource(db, status=status)
    closed = jobs.close(db, resource, actor="op", reason="r", seen={"absent": True})
    assert (closed is not None) == (status == "active")
    assert status_of(db, resource) == ("deleted" if status == "active" else status)


def test_an_active_resource_with_a_job_that_is_not_done_is_not_closed(db: Connection) -> None:
    id = a_job(db, kind="restore", status="active")
    assert jobs.close(db, job(db, id).resource_id, actor="op", reason="r", seen={}) is None
    assert status_of(db, job(db, id).resource_id) == "active"
