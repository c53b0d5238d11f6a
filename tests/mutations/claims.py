"""The guards of a job on its way to the backend: enqueue, expire, claim, heartbeat, start."""

from tests.mutations.cut import cut

JOBS = "outbox/jobs.py"
GUARD = "tests/outbox/test_guard.py"
CLAIM = "tests/outbox/test_claim.py"
MOVES = "tests/outbox/test_transitions.py"
RUNS = "tests/worker/test_runner.py"

_NOTED = "), noted AS ({_EVENT}\n    )"
_FENCE, _RUNNING = " AND fence = :fence", " AND state = 'running'"


def _along(name: str, state: str = "running") -> str:
    return f"test_a_transition_moves_a_job_only_along_its_arrow[{name}-{state}]"


CLAIMS = (
    *cut(
        JOBS,
        "def _enqueue(",
        GUARD,
        ("enqueue: protected", "NOT protected AND ", "", "test_a_protected_resource_is_not_deleted"),
    ),
    *cut(
        JOBS,
        "def _enqueue(",
        GUARD,
        ("enqueue: event", _NOTED, ")", "test_the_first_delete_wins_and_leaves_one_job_and_one_event"),
    ),
    *cut(
        JOBS,
        "_ENQUEUE = text(",
        GUARD,
        ("enqueue: status", " AND status IN ('active', 'provisioning')", "", "test_the_flip_alone_lets_one_delete_win"),
        (
            "enqueue: tenant",
            " AND (CAST(:tenant AS text) IS NULL OR tenant = :tenant)",
            "",
            "test_another_tenants_resource_does_not_exist",
        ),
    ),
    *cut(
        JOBS,
        "_ENQUEUED_BEFORE = text(",
        GUARD,
        (
            "enqueue: tenant of what was deleted before",
            " AND (CAST(:tenant AS text) IS NULL OR resource.tenant = :tenant)",
            "",
            "test_another_tenants_resource_does_not_exist",
        ),
    ),
    *cut(
        JOBS,
        "",
        GUARD,
        (
            "enqueue: who won",
            "row.request_id == request_id",
            "True",
            "test_a_later_delete_changes_nothing_and_names_the_same_job",
        ),
        (
            "enqueue: an answer lost",
            "row.request_id == request_id",
            "False",
            "test_a_sender_who_lost_the_answer_learns_that_it_won",
        ),
    ),
    *cut(
        JOBS,
        "_EXPIRE = text(",
        MOVES,
        (
            "expire: status",
            "status = 'active' AND expires_at",
            "expires_at",
            "test_what_cannot_expire_takes_no_place_in_the_batch",
        ),
        ("expire: protected", " AND NOT protected", "", "test_what_cannot_expire_takes_no_place_in_the_batch"),
        ("expire: batch", "LIMIT :batch", "", "test_what_cannot_expire_takes_no_place_in_the_batch"),
        (
            "expire: expires_at",
            " AND expires_at <= now()",
            "",
            "test_expiry_enqueues_what_has_expired_and_nothing_else",
        ),
        ("expire: SKIP LOCKED", " SKIP LOCKED", "", "test_expiry_waits_for_nobody"),
        ("expire: FOR UPDATE SKIP LOCKED", "FOR UPDATE SKIP LOCKED", "", "test_expiry_waits_for_nobody"),
        (
            "expire: status again",
            " AND status = 'active'\"",
            '"',
            "test_a_look_that_locks_nothing_still_moves_nothing_twice[_EXPIRE]",
        ),
    ),
    # -- claim, heartbeat
    *cut(
        JOBS,
        "_CLAIM = text(",
        CLAIM,
        ("claim: SKIP LOCKED", " SKIP LOCKED", "", "test_a_row_that_somebody_holds_is_skipped_not_waited_for"),
        (
            "claim: FOR UPDATE SKIP LOCKED",
            "FOR UPDATE SKIP LOCKED",
            "",
            "test_a_row_that_somebody_holds_is_skipped_not_waited_for",
        ),
        (
            "claim: state",
            "state = 'pending' AND outbox.backend",
            "outbox.backend",
            "test_concurrent_claims_share_the_jobs_and_none_twice",
        ),
        (
            "claim: state again",
            "state = 'pending' AND id = ANY",
            "id = ANY",
            f"{MOVES}::test_a_look_that_locks_nothing_still_moves_nothing_twice[_CLAIM]",
        ),
        ("claim: available_at", " AND available_at <= now()", "", "test_jobs_that_are_not_due_stay"),
        (
            "claim: breaker",
            "WHERE breakers.retry_at IS NULL OR breakers.retry_at <= now()",
            "",
            "test_a_tripped_breaker_hides_its_backend_and_then_lets_one_probe_through",
        ),
        (
            "claim: one probe",
            "CASE WHEN breakers.backend IS NULL THEN served.room ELSE 1 END",
            "served.room",
            "test_a_tripped_breaker_hides_its_backend_and_then_lets_one_probe_through",
        ),
        (
            "claim: room",
            "CASE WHEN breakers.backend IS NULL THEN served.room ELSE 1 END",
            "CASE WHEN breakers.backend IS NULL THEN 9 ELSE 1 END",
            "test_a_claim_takes_no_more_than_its_slots_and_rooms",
        ),
        ("claim: slots", "LIMIT :slots", "LIMIT :slots + 1", "test_a_claim_takes_no_more_than_its_slots_and_rooms"),
        ("claim: fence + 1", "fence = fence + 1", "fence = fence", f"{MOVES}::test_every_claim_has_a_fence_of_its_own"),
        (
            "claim: attempts + 1",
            "attempts = attempts + 1",
            "attempts = attempts",
            f"{MOVES}::test_every_claim_has_a_fence_of_its_own",
        ),
        ("claim: event", _NOTED, ")", f"{MOVES}::{_along('claim', 'pending')}"),
    ),
    *cut(
        JOBS,
        "_CLAIMS = ",
        RUNS,
        (
            "claim: contended",
            "AND other.state = 'running'",
            "AND false",
            "test_a_teardown_does_not_look_while_the_birth_is_still_running",
        ),
    ),
    *cut(
        JOBS,
        "_CLAIMED_BEFORE = text(",
        CLAIM,
        *(
            (
                f"claimed before: {name}",
                old,
                new,
                "test_a_claim_whose_answer_was_lost_is_found_by_its_worker_and_by_nobody_else",
            )
            for name, old, new in (
                ("worker", " AND claimed_by = :worker", ""),
                ("lease", " AND lease_expires_at > now()", ""),
                ("not started", "AND started_fence IS DISTINCT FROM fence", ""),
                ("not held", "AND (id, fence) NOT IN", "AND (-id, fence) NOT IN"),
                ("slots", "LIMIT :slots", ""),
            )
        ),
    ),
    *cut(
        JOBS,
        "_HEARTBEAT = text(",
        CLAIM,
        ("heartbeat: fence", " AND outbox.fence = held.fence", "", "test_a_heartbeat_keeps_only_what_is_still_ours"),
        ("heartbeat: state", _RUNNING, "", "test_a_heartbeat_keeps_only_what_is_still_ours"),
    ),
    # -- start
    *cut(
        JOBS,
        '_START = """',
        MOVES,
        ("start: fence", _FENCE, "", "test_an_older_fence_moves_nothing[start]"),
        ("start: state", _RUNNING, "", "test_start_refuses_what_does_not_run_whatever_its_lease"),
        ("start: lease", " AND lease_expires_at > now()", "", "test_start_refuses_a_lease_that_has_passed"),
        (
            "start: once",
            "AND started_fence IS DISTINCT FROM fence",
            "",
            "test_an_answer_that_was_lost_is_read_back_by_fence_and_event[start]",
        ),
        (
            "start: resource",
            "AND EXISTS (SELECT FROM resource WHERE resource.id = outbox.resource_id)",
            "",
            "test_start_refuses_what_the_resource_does_not_want",
        ),
        (
            "start: no other running",
            "AND other.state = 'running'",
            "AND false",
            "test_start_refuses_while_another_job_of_the_resource_runs",
        ),
        (
            "start: status deleting",
            " AND status = 'deleting'",
            "",
            "test_start_refuses_what_the_resource_does_not_want",
        ),
        (
            "start: status provisioning",
            " AND status = 'provisioning'",
            "",
            "test_start_refuses_a_provision_whose_resource_is_being_deleted",
        ),
        (
            "start: row lock of a birth",
            " FOR NO KEY UPDATE",
            "",
            "test_a_delete_at_the_moment_of_a_birth_s_start_comes_before_it_or_sees_its_manifest",
        ),
        (
            "start: the first plan stays",
            "CASE WHEN adopted OR manifest IS NULL THEN CAST(:manifest AS jsonb) ELSE manifest END",
            "CAST(:manifest AS jsonb)",
            "test_what_is_about_to_be_made_is_stored_once",
        ),
        (
            "start: the first credentials stay",
            "COALESCE(credentials, CAST(:credentials AS bytea))",
            "CAST(:credentials AS bytea)",
            "test_what_is_about_to_be_made_is_stored_once",
        ),
        (
            "start: event",
            "status = 'deleting'\n    ), {_START}, noted AS ({_EVENT}\n    )",
            "status = 'deleting'\n    ), {_START}",
            _along("start"),
        ),
        (
            "start: event of a birth",
            "FOR NO KEY UPDATE\n    ), {_START}, noted AS ({_EVENT}\n    )",
            "FOR NO KEY UPDATE\n    ), {_START}",
            "test_what_is_about_to_be_made_is_stored_once",
        ),
    ),
    *cut(
        JOBS,
        "def _start_refused(",
        MOVES,
        (
            "start: refused to a stale fence",
            "row.fence != claim.fence or ",
            "",
            "test_an_older_fence_moves_nothing[start]",
        ),
        (
            "start: an answer lost",
            "row.started_fence == claim.fence",
            "False",
            "test_an_answer_that_was_lost_is_read_back_by_fence_and_event[start]",
        ),
    ),
    *cut(
        "outbox/breakers.py",
        "",
        CLAIM,
        *(
            (f"breaker: {name}", old, new, "test_a_breaker_waits_longer_each_time_up_to_its_longest")
            for name, old, new in (
                ("failures of one pause count once", "WHERE breakers.retry_at <= now()", ""),
                ("the longest pause", "least(:longest, ", "greatest(0, "),
            )
        ),
    ),
)
