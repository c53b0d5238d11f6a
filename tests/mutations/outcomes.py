"""The guards of what becomes of a job: complete, activate, retry, defer, stick, rollback, sweep, redrive."""

from collections.abc import Iterable

from tests.mutations.cut import Mutant, cut

TRANSITIONS = "outbox/jobs"

CLAIM = "tests/outbox/test_claim.py"
MOVES = "tests/outbox/test_transitions.py"
RUNS = "tests/worker/test_run.py"

RESTORES = "tests/outbox/test_restore.py"
_RESTORED = "test_a_restore_cancels_the_teardown_and_enqueues_what_gives_it_back"
_NOTED = "), noted AS ({_EVENT}\n    )"
_FENCE, _RUNNING = " AND fence = :fence", " AND state = 'running'"
_STATEMENTS = {
    "activate": "_ACTIVATE = text(",
    "retry": "_RETRY = text(",
    "defer": "_DEFER = text(",
    "stick": "_STICK = text(",
    "rollback": "_ROLLBACK = text(",
}


def _fenced() -> Iterable[Mutant]:
    """The three guards that every one of a worker's statements has."""
    for name, block in _STATEMENTS.items():
        older = f"test_an_older_fence_moves_nothing[{name}]"
        from_elsewhere = [
            f"test_a_transition_moves_a_job_only_along_its_arrow[{name}-{s}]" for s in ("pending", "stuck")
        ]
        yield from cut(TRANSITIONS, block, MOVES, (f"{name}: fence", _FENCE, "", older))
        yield from cut(TRANSITIONS, block, MOVES, (f"{name}: state", _RUNNING, "", *from_elsewhere))
        yield from cut(TRANSITIONS, block, MOVES, (f"{name}: event", _NOTED, ")", _along(name)))


def _along(name: str, state: str = "running") -> str:
    return f"test_a_transition_moves_a_job_only_along_its_arrow[{name}-{state}]"


OUTCOMES = (
    *_fenced(),
    # -- complete, activate
    *cut(
        TRANSITIONS,
        '_COMPLETE_TEMPLATE = f"""',
        MOVES,
        ("complete: event", ", noted AS ({_EVENT_EACH}\n    )", "", _along("complete")),
        (
            "complete: kind",
            " AND kind = 'deprovision'",
            "",
            "test_a_job_ends_only_with_the_transition_of_its_kind[complete]",
        ),
        (
            "complete: status",
            " AND status = 'deleting'",
            "",
            "test_a_teardown_whose_resource_is_not_deleting_cannot_complete",
        ),
        (
            "complete: order of locks",
            " ORDER BY resource_id",
            "",
            "test_completions_lock_their_resources_in_the_order_of_deletes",
        ),
        (
            "complete: deleted in the same statement",
            "SET status = 'deleted', purged_at = now(), credentials = NULL",
            "SET name = name",
            "test_complete_deletes_the_resource_in_the_same_statement",
        ),
        (
            "complete: credentials forgotten",
            ", credentials = NULL",
            "",
            "test_complete_deletes_the_resource_in_the_same_statement",
        ),
    ),
    *cut(
        TRANSITIONS,
        "_ADVANCE = text(",
        MOVES,
        ("advance: fence", "AND fence = :fence", "", "test_an_older_fence_moves_nothing[advance]"),
        ("advance: started", " AND started_fence = fence", "", _along("advance")),
        ("advance: event", _NOTED, ")", _along("advance")),
    ),
    *cut(
        TRANSITIONS,
        "_GIVE_BACK = text(",
        MOVES,
        ("give_back: fence", "AND fence = :fence", "", "test_an_older_fence_moves_nothing[give_back]"),
        ("give_back: event", _NOTED, ")", _along("give_back")),
    ),
    *cut(
        TRANSITIONS,
        "_RESTORE = text(",
        RESTORES,
        (
            "cancel: what has started to destroy",
            "AND {NOT_STARTED} ",
            "",
            "test_what_has_started_to_destroy_is_not_restored",
        ),
        ("cancel: event", "FROM job ORDER BY resource_id", "FROM job WHERE false ORDER BY resource_id", _RESTORED),
    ),
    *cut(
        TRANSITIONS,
        "_RESTORE_RESOURCES = text(",
        RESTORES,
        ("restore: event", "FROM job JOIN resource ON", "FROM job JOIN resource ON false AND", _RESTORED),
    ),
    *cut(
        TRANSITIONS,
        "_ACTIVATE = text(",
        MOVES,
        (
            "activate: kind",
            " AND kind = 'provision'",
            "",
            "test_a_job_ends_only_with_the_transition_of_its_kind[activate]",
        ),
        (
            "activate: status",
            " AND status IN ('provisioning', 'deleting')",
            "",
            "test_a_provision_whose_resource_is_deleted_cannot_activate",
        ),
        (
            "activate: row lock",
            " FOR NO KEY UPDATE",
            "",
            "test_a_birth_that_ends_at_the_moment_of_the_teardown_s_end_comes_before_it_or_sees_it",
        ),
        (
            "activate: resource",
            "AND EXISTS (SELECT FROM resource WHERE resource.id = outbox.resource_id)",
            "",
            "test_a_provision_whose_resource_is_deleted_cannot_activate",
        ),
        (
            "activate: only from provisioning",
            "CASE status WHEN 'provisioning' THEN 'active' ELSE status END",
            "'active'",
            "test_start_refuses_while_another_job_of_the_resource_runs",
        ),
    ),
    # -- retry, defer, rollback
    *cut(
        TRANSITIONS,
        "_RETRY = text(",
        MOVES,
        (
            "retry: attempts left",
            " AND (:free OR attempts < max_attempts)",
            "",
            "test_retry_refuses_when_the_attempts_are_spent",
        ),
    ),
    *cut(
        TRANSITIONS,
        "_RETRY = text(",
        MOVES,
        ("retry: cap", "least(:cap, ", "greatest(0, ", "test_retry_waits_with_full_jitter_under_a_cap_that_doubles"),
    ),
    *cut(
        TRANSITIONS,
        "_DEFER = text(",
        MOVES,
        (
            "defer: not started",
            " AND started_fence IS DISTINCT FROM fence",
            "",
            "test_defer_gives_the_attempt_back_but_not_after_start",
        ),
    ),
    *cut(
        TRANSITIONS,
        "_ROLLBACK = text(",
        MOVES,
        (
            "rollback: kind",
            " AND kind = 'provision'",
            "",
            "test_a_job_ends_only_with_the_transition_of_its_kind[rollback]",
        ),
        (
            "rollback: adopted",
            "(NOT adopted OR status <> 'provisioning')",
            "true",
            "test_rollback_never_touches_an_adopted_resource_that_is_still_wanted",
        ),
        (
            "rollback: only from provisioning",
            "AND status = 'provisioning'",
            "",
            "test_start_refuses_a_provision_whose_resource_is_being_deleted",
        ),
        (
            "rollback: the teardown's job",
            "max_attempts, request_id FROM resource",
            "max_attempts, request_id FROM resource LIMIT 0",
            "test_rollback_of_a_failed_provision_enqueues_a_teardown",
        ),
        (
            "rollback: the teardown's event",
            "'the provision failed' FROM undo",
            "'the provision failed' FROM undo LIMIT 0",
            "test_rollback_of_a_failed_provision_enqueues_a_teardown",
        ),
    ),
    *cut(
        TRANSITIONS,
        "_NOTED = text(",
        MOVES,
        (
            "landed: fence",
            " AND fence = :fence",
            "",
            "test_an_end_under_a_later_fence_is_not_reported_to_an_earlier_claim",
        ),
        ("landed: event", " AND event = :event", "", "test_a_swept_job_is_not_mistaken_for_a_committed_retry"),
    ),
    *cut(
        TRANSITIONS,
        "def _confirm_landed(",
        MOVES,
        ("landed: at all", "not row.noted", "False", "test_a_swept_job_is_not_mistaken_for_a_committed_retry"),
    ),
    # -- sweep, redrive, late news
    *cut(
        TRANSITIONS,
        "_SWEEP = text(",
        CLAIM,
        (
            "sweep: lease",
            "WHERE state = 'running' AND lease_expires_at < now()",
            "WHERE state = 'running'",
            "test_a_sweep_locks_no_job_whose_lease_is_valid",
        ),
        (
            "sweep: state",
            "WHERE state = 'running' AND lease_expires_at < now()",
            "WHERE lease_expires_at < now()",
            "test_the_plans_use_their_indexes_with_a_million_finished_rows",
        ),
        (
            "sweep: lease again",
            "outbox.id = placed.id AND state = 'running' AND lease_expires_at < now()",
            "outbox.id = placed.id AND state = 'running'",
            f"{MOVES}::test_a_row_that_changed_after_it_was_picked_is_not_moved_again[_SWEEP]",
        ),
        ("sweep: SKIP LOCKED", " SKIP LOCKED", "", "test_a_sweep_skips_locked_rows_without_waiting"),
        (
            "sweep: FOR UPDATE SKIP LOCKED",
            "FOR UPDATE SKIP LOCKED",
            "",
            "test_a_sweep_skips_locked_rows_without_waiting",
        ),
        ("sweep: batch", "LIMIT :batch", "", "test_a_sweep_takes_a_bounded_batch"),
        (
            "sweep: attempts spent",
            "kind = 'deprovision' AND attempts >= max_attempts",
            "false",
            "test_a_sweep_puts_back_the_jobs_of_dead_workers",
        ),
        ("sweep: a teardown", "kind = 'deprovision' AND ", "", "test_a_sweep_puts_back_the_jobs_of_dead_workers"),
        (
            "sweep: event",
            "jsonb_build_object('state', state) FROM job",
            "jsonb_build_object('state', state) FROM job WHERE false",
            f"{MOVES}::{_along('sweep')}",
        ),
    ),
    *cut(
        TRANSITIONS,
        "_REDRIVE = text(",
        MOVES,
        ("redrive: fence", _FENCE, "", "test_redrive_wants_the_fence_the_operator_saw"),
        ("redrive: state", " AND state = 'stuck'", "", _along("redrive", "pending")),
        ("redrive: fresh attempts", ", attempts = 0", "", "test_redrive_wants_the_fence_the_operator_saw"),
        ("redrive: event", _NOTED, ")", _along("redrive", "stuck")),
    ),
    *cut(
        TRANSITIONS,
        "_LATE = text(",
        RUNS,
        (
            "late: event",
            "noted AS ({_EVENT} RETURNING id, hash)",
            "noted AS (SELECT CAST(NULL AS bigint) AS id, CAST(NULL AS bytea) AS hash)",
            "test_a_late_completion_is_recorded_and_not_applied",
        ),
    ),
)
