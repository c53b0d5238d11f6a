"""The guards of a job on its way to the backend: enqueue, expire, claim, heartbeat, start."""

from tests.mutations.cut import cut

TRANSITIONS = "outbox/jobs"

GUARD = "tests/outbox/test_guard.py"
CLAIM = "tests/outbox/test_claim.py"
MOVES = "tests/outbox/test_transitions.py"
EXPIRE = "tests/outbox/test_expire.py"
_BOUNDED = "test_an_expiry_looks_at_a_bounded_number_of_rows_and_the_next_goes_on_behind_them"
RUNS = "tests/worker/test_run.py"
HOLDS = "tests/outbox/test_holds.py"
LANES = "tests/outbox/test_lanes.py"
QUOTAS = "tests/outbox/test_quotas.py"
BRAKES = "tests/outbox/test_brakes.py"

_NOTED = "), noted AS ({_EVENT}\n    )"
_OUR_FENCE, _CLAIMED = " AND outbox.fence = asked.fence", " AND claimed_by IS NOT NULL"


def _along(name: str, state: str = "running") -> str:
    return f"test_a_transition_moves_a_job_only_along_its_arrow[{name}-{state}]"


CLAIMS = (
    *cut(
        TRANSITIONS,
        "def _enqueue(",
        GUARD,
        ("enqueue: protected", "NOT protected AND ", "", "test_a_protected_resource_is_not_deleted"),
    ),
    *cut(
        TRANSITIONS,
        "def _enqueue(",
        GUARD,
        (
            "enqueue: event",
            "FROM job JOIN resource ON resource.id = resource_id",
            "FROM job JOIN resource ON resource.id = resource_id WHERE false",
            "test_the_first_delete_wins_and_leaves_one_job_and_one_event",
        ),
    ),
    *cut(
        TRANSITIONS,
        "_ENQUEUE_TEMPLATE = _enqueue(",
        GUARD,
        (
            "enqueue: status",
            " AND status IN ('active', 'provisioning')",
            "",
            "test_the_status_change_alone_lets_one_delete_win",
        ),
        (
            "enqueue: tenant",
            "(asked.tenant IS NULL OR asked.tenant = resources.tenant) AND ",
            "",
            "test_another_tenants_resource_does_not_exist",
            "test_deletes_in_one_batch_are_each_decided_alone",
        ),
        (
            "enqueue: order of locks",
            "                 ORDER BY id)",
            ")",
            "tests/outbox/test_operations.py::test_enqueue_all_locks_in_one_order",
        ),
    ),
    *cut(
        TRANSITIONS,
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
        TRANSITIONS,
        "",
        GUARD,
        (
            "enqueue: who won",
            "row.request_id == asked.request_id",
            "True",
            "test_a_later_delete_changes_nothing_and_names_the_same_job",
        ),
        (
            "enqueue: an answer lost",
            "row.request_id == asked.request_id",
            "False",
            "test_a_sender_who_lost_the_answer_learns_that_it_won",
        ),
    ),
    *cut(
        TRANSITIONS,
        '_DUE = """',
        EXPIRE,
        (
            "expire: status",
            '"""status = \'active\' AND',
            '"""',
            f"{MOVES}::test_a_resource_that_cannot_expire_takes_no_place_in_the_batch",
        ),
        ("expire: only what is due", "expires_at <= now()\n", "true\n", _BOUNDED),
        (
            "expire: protected",
            "NOT protected AND ",
            "",
            f"{MOVES}::test_a_resource_that_cannot_expire_takes_no_place_in_the_batch",
        ),
        (
            "expire: batch",
            " LIMIT :batch",
            "",
            f"{MOVES}::test_a_resource_that_cannot_expire_takes_no_place_in_the_batch",
        ),
        (
            "expire: skips what is locked",
            '{_skip_locked("due.id")}',
            "FOR NO KEY UPDATE",
            f"{MOVES}::test_expiry_skips_locked_rows_without_waiting",
            "test_an_expiry_never_waits_so_no_hold_comes_between_its_reading_and_its_writing[row]",
        ),
        (
            "expire: status again",
            "\"status = 'active' AND expires_at <= now()\"",
            '"expires_at <= now()"',
            f"{MOVES}::test_a_row_that_changed_after_it_was_picked_is_not_moved_again[_EXPIRE]",
        ),
        (
            "expire: due again",
            "\"status = 'active' AND expires_at <= now()\"",
            "\"status = 'active'\"",
            "test_a_resource_that_got_more_time_after_it_was_picked_does_not_expire",
        ),
        (
            "expire: holds",
            " AND {_NO_HOLD}",
            "",
            "test_what_a_hold_covers_does_not_expire_before_its_release",
            "test_a_hold_of_a_brake_keeps_what_has_expired_too",
        ),
        ("expire: a bounded look", " LIMIT :rows", "", _BOUNDED),
        (
            "expire: from the cursor on",
            "(expires_at, id) > (CAST(:after AS timestamptz), CAST(:after_id AS uuid))",
            "true",
            _BOUNDED,
        ),
        (
            "expire: the cursor tells rows of one moment apart",
            "(expires_at, id) > (CAST(:after AS timestamptz), CAST(:after_id AS uuid))",
            "expires_at > CAST(:after AS timestamptz)",
            "test_resources_that_expire_at_one_moment_are_told_apart",
        ),
    ),
    *cut(
        TRANSITIONS,
        "def _skip_locked(",
        MOVES,
        (
            "shared: what somebody holds is left out",
            "FOR NO KEY UPDATE SKIP LOCKED",
            "FOR NO KEY UPDATE",
            "test_a_batch_leaves_out_locked_rows[start-outbox]",
            "test_a_batch_leaves_out_locked_rows[complete-outbox]",
            f"{GUARD}::test_a_locked_resource_does_not_delay_other_deletes",
        ),
        (
            "shared: what somebody writes events of is left out",
            "AND {chain} FOR NO",
            "FOR NO",
            "test_a_batch_leaves_out_resources_whose_event_chain_is_locked[start]",
            "test_a_batch_leaves_out_resources_whose_event_chain_is_locked[complete]",
            "test_a_batch_of_deletes_leaves_out_resources_whose_event_chain_is_locked",
        ),
    ),
    # -- claim, heartbeat
    *cut(
        TRANSITIONS,
        "_CLAIM = prepared(",
        CLAIM,
        (
            "claim: SKIP LOCKED",
            "FOR UPDATE SKIP LOCKED",
            "FOR UPDATE",
            "test_a_claim_skips_a_locked_row_without_waiting",
        ),
        (
            "claim: FOR UPDATE SKIP LOCKED",
            "FOR UPDATE SKIP LOCKED",
            "",
            "test_a_claim_skips_a_locked_row_without_waiting",
        ),
        (
            "claim: state",
            "WHERE state = 'pending' AND held_by IS NULL AND outbox.backend = open.backend",
            "WHERE held_by IS NULL AND outbox.backend = open.backend",
            "test_concurrent_claims_share_the_jobs_and_none_twice",
        ),
        (
            "claim: state again",
            "WHERE state = 'pending' AND id = ANY",
            "WHERE id = ANY",
            f"{MOVES}::test_a_row_that_changed_after_it_was_picked_is_not_moved_again[_CLAIM]",
        ),
        (
            "claim: available_at",
            "AND available_at <= now() AND (available_at, id) >",
            "AND (available_at, id) >",
            "test_a_claim_leaves_jobs_that_are_not_due",
        ),
        (
            "claim: behind the one before",
            " AND (available_at, id) > (asked.since, asked.after)",
            "",
            "test_a_claim_behind_another_takes_only_what_comes_after",
        ),
        (
            "claim: the cursor of its own lane",
            "open.since, open.after, open.drained)",
            "open.since[1:1] || open.since, open.after[1:1] || open.after, open.drained)",
            f"{LANES}::test_a_claim_of_each_lane_begins_behind_the_one_before",
        ),
        (
            "claim: the newest part of a lane that was empty",
            "CASE WHEN drained THEN now() - {LATE} ELSE since END",
            "since",
            "test_of_a_lane_that_was_found_empty_a_claim_reads_the_newest_part",
        ),
        (
            "claim: one lane at a time",
            "AND outbox.lane = asked.lane\n                                       AND available_at",
            "AND available_at",
            f"{LANES}::test_a_claim_begins_with_the_lane_that_it_is_given",
        ),
        (
            "claim: the crowd's room",
            "CASE WHEN part.crowded THEN open.crowd_room ELSE open.room END",
            "open.room",
            f"{LANES}::test_a_claim_takes_no_more_of_crowded_lanes_than_it_may",
        ),
        (
            "claim: a probe needs no room of the crowd",
            "CASE WHEN probe.backend IS NULL THEN served.crowd_room ELSE 1 END",
            "served.crowd_room",
            f"{LANES}::test_a_claim_takes_no_more_of_crowded_lanes_than_it_may",
        ),
        (
            "claim: the room of all lanes",
            "LIMIT open.room) AS due\n",
            ") AS due\n",
            f"{LANES}::test_a_claim_takes_of_all_lanes_no_more_than_the_backends_capacity",
        ),
        (
            "claim: breaker",
            "WHERE breakers.backend IS NULL OR probe.backend IS NOT NULL",
            "",
            "test_a_tripped_breaker_hides_its_backend_and_then_lets_one_probe_through",
        ),
        (
            "claim: the breaker's time",
            "WHERE retry_at <= now()\n                  AND",
            "WHERE",
            "test_a_tripped_breaker_hides_its_backend_and_then_lets_one_probe_through",
        ),
        (
            "claim: one probe",
            "CASE WHEN probe.backend IS NULL THEN served.room ELSE 1 END",
            "served.room",
            "test_a_tripped_breaker_hides_its_backend_and_then_lets_one_probe_through",
        ),
        (
            "claim: one probe of all workers",
            "SET retry_at = now() + :lease",
            "SET retry_at = retry_at",
            "test_a_half_open_breaker_lets_one_probe_through_in_all",
        ),
        (
            "claim: the probe is not waited for",
            "FOR UPDATE OF breakers SKIP LOCKED",
            "FOR UPDATE OF breakers",
            "test_a_half_open_breaker_lets_one_probe_through_in_all",
        ),
        (
            "claim: no probe without work",
            "AND EXISTS (SELECT FROM generate_series",
            "AND 0 <= (SELECT count(*) FROM generate_series",
            "test_a_breaker_keeps_its_probe_while_its_backend_has_no_due_job",
        ),
        (
            "claim: probes first",
            "ORDER BY probe.backend IS NULL, served.place",
            "ORDER BY probe.backend IS NOT NULL, served.place",
            "test_a_breaker_keeps_its_probe_while_its_backend_has_no_due_job",
        ),
        (
            "claim: room",
            "CASE WHEN probe.backend IS NULL THEN served.room ELSE 1 END",
            "CASE WHEN probe.backend IS NULL THEN 9 ELSE 1 END",
            "test_a_claim_takes_no_more_than_its_slots_and_the_backends_capacity",
        ),
        (
            "claim: slots",
            "LIMIT :slots))\n     RETURNING *",
            "LIMIT :slots + 1))\n     RETURNING *",
            "test_a_claim_takes_no_more_than_its_slots_and_the_backends_capacity",
        ),
        (
            "claim: hold",
            "AND (NOT open.held OR asked.lane = {RESTORES})",
            "",
            f"{HOLDS}::test_nothing_of_a_held_backend_is_claimed_and_others_go_on",
        ),
        (
            "claim: a brake's hold stops no births",
            " AND cause = 'operator'",
            "",
            f"{BRAKES}::test_a_brake_s_hold_stops_teardowns_but_not_provisions",
        ),
        (
            "claim: not what is parked",
            "AND held_by IS NULL AND outbox.backend = open.backend",
            "AND outbox.backend = open.backend",
            f"{HOLDS}::test_a_tenant_s_jobs_are_parked_under_its_hold_and_woken_by_its_release",
        ),
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
        "outbox/jobs/claim.py",
        "",
        LANES,
        (
            "claim: another lane first",
            "[RESTORES, *range(first, LANES), *range(first)[::-1]]",
            "[RESTORES, *range(LANES)]",
            "test_a_claim_begins_with_the_lane_that_it_is_given",
        ),
    ),
    *cut(
        "migrations/versions/0014_the_manifest_is_guarded.py",
        'LANE = """',
        LANES,
        *(
            (f"lane: {name}", old, new, "test_a_jobs_lane_follows_its_kind_and_what_its_tenant_has_waiting_there")
            for name, old, new in (
                (
                    "tenant of a teardown",
                    "WHERE tenant = owner AND backend = NEW.backend AND status = 'deleting'",
                    "WHERE backend = NEW.backend AND status = 'deleting'",
                ),
                ("backend of a teardown", "backend = NEW.backend AND status = 'deleting'", "status = 'deleting'"),
                ("status of a teardown", "AND status = 'deleting'", ""),
                ("status of a provision", "AND status = 'provisioning'", ""),
                ("a provision comes behind", "THEN 1 ELSE 0 END;", "THEN 0 ELSE 0 END;"),
            )
        ),
        (
            "lane: the last one",
            "WHEN waiting <= 250 THEN 2 ELSE 3 END",
            "ELSE 2 END",
            "test_each_five_times_as_many_are_a_lane_further_back",
        ),
    ),
    *cut(
        "outbox/resources.py",
        "_REGISTER = text(",
        QUOTAS,
        (
            "quota: turns",
            "SELECT pg_advisory_xact_lock(hashtextextended('quota:' || CAST(:tenant AS text), 0))",
            "SELECT 1",
            "test_two_creates_at_once_do_not_pass_together",
        ),
        (
            "quota: resources",
            "used.resources < :max_resources",
            "true",
            "test_a_tenant_has_no_more_resources_than_it_may_have",
        ),
        (
            "quota: pending",
            "used.pending < :max_pending",
            "true",
            "test_a_tenant_has_no_more_under_way_than_it_may_have",
        ),
        (
            "quota: what is deleted is free",
            "WHERE tenant = :tenant\n                          AND status NOT IN ('deleted', 'released', 'abandoned')",
            "WHERE tenant = :tenant",
            "test_a_tenant_has_no_more_resources_than_it_may_have",
        ),
        (
            "quota: what lives is not pending",
            " AND status IN ('provisioning', 'deleting')",
            "",
            "test_a_tenant_has_no_more_under_way_than_it_may_have",
        ),
        (
            "quota: of this tenant",
            "WHERE tenant = :tenant\n                          AND status NOT IN ('deleted', 'released', 'abandoned')",
            "WHERE status NOT IN ('deleted', 'released', 'abandoned')",
            "test_a_tenant_has_no_more_resources_than_it_may_have",
        ),
    ),
    *cut(
        TRANSITIONS,
        "_CLAIMS = ",
        RUNS,
        (
            "claim: contended",
            "AND other.claimed_by IS NOT NULL",
            "AND false",
            "tests/worker/test_provision.py::test_a_teardown_does_not_inspect_while_the_provision_runs",
        ),
    ),
    *cut(
        TRANSITIONS,
        "_CLAIMED_BEFORE = text(",
        CLAIM,
        *(
            (
                f"claimed before: {name}",
                old,
                new,
                "test_a_claim_whose_answer_was_lost_is_found_only_by_its_worker",
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
    # One guard of three statements: each has its own test.
    *cut(
        TRANSITIONS,
        '_OURS_TEMPLATE = """',
        MOVES,
        ("heartbeat: fence", _OUR_FENCE, "", f"{CLAIM}::test_a_heartbeat_keeps_only_jobs_whose_claim_is_still_valid"),
        ("start: fence", _OUR_FENCE, "", "test_an_older_fence_moves_nothing[start]"),
        ("complete: fence", _OUR_FENCE, "", "test_an_older_fence_moves_nothing[complete]"),
        ("heartbeat: state", _CLAIMED, "", f"{CLAIM}::test_a_heartbeat_keeps_only_jobs_whose_claim_is_still_valid"),
        ("start: state", _CLAIMED, "", "test_start_refuses_a_job_that_is_not_running"),
        ("complete: state", _CLAIMED, "", "test_a_transition_moves_a_job_only_along_its_arrow[complete-stuck]"),
        (
            "ours: order of locks",
            "                 ORDER BY id)",
            ")",
            "test_statements_about_the_same_claims_lock_them_in_one_order[start]",
        ),
    ),
    # -- start
    *cut(
        TRANSITIONS,
        "    asked = [(claim, before)",
        MOVES,
        (
            "start: a batch leaves out what may wait for a resource",
            ' if waits or "completes" not in (before or {})',
            "",
            "test_a_batch_of_starts_leaves_out_claims_that_complete_a_manifest",
        ),
    ),
    *cut(
        TRANSITIONS,
        '_START = f"""',
        MOVES,
        ("start: lease", " AND lease_expires_at > clock_timestamp()", "", "test_start_refuses_a_lease_that_has_passed"),
        (
            "start: once",
            "AND started_fence IS DISTINCT FROM fence",
            "",
            "test_an_answer_that_was_lost_is_read_back_by_fence_and_event[start]",
        ),
        (
            "start: no other running",
            "AND other.claimed_by IS NOT NULL",
            "AND false",
            "test_start_refuses_while_another_job_of_the_resource_runs",
        ),
        (
            "start: hold",
            "AND NOT EXISTS (SELECT FROM holds WHERE",
            "AND NOT EXISTS (SELECT FROM holds WHERE false AND",
            f"{HOLDS}::test_a_hold_refuses_the_start_of_what_was_claimed_before_it",
        ),
        (
            "start: locks before it reads the holds",
            "prepared(_LOCK_OURS + _START_TEMPLATE",
            "prepared(_START_TEMPLATE",
            f"{HOLDS}::test_a_hold_stops_a_start_that_was_waiting_for_a_lock[deprovision-row]",
        ),
        (
            "start: locks the resource whose manifest it completes",
            "resources.id = resource_id AND {_COMPLETES} IS NOT NULL\n              FOR",
            "false FOR",
            f"{HOLDS}::test_a_hold_stops_a_start_that_was_waiting_for_a_lock[completing-resource]",
        ),
        (
            "start: the lease by the clock after the lock",
            "lease_expires_at > clock_timestamp()",
            "lease_expires_at > now()",
            f"{HOLDS}::test_a_start_reads_its_lease_after_it_waited_for_the_lock",
        ),
        (
            "start: status deleting",
            "WHEN 'deprovision' THEN 'deleting'",
            "WHEN 'deprovision' THEN resource.status",
            "test_start_refuses_a_job_that_does_not_fit_the_resources_status",
        ),
        (
            "start: status provisioning",
            "ELSE 'provisioning' END",
            "ELSE resource.status END",
            "test_start_refuses_a_provision_whose_resource_is_being_deleted",
        ),
        (
            "start: row lock of a birth",
            " FOR NO KEY UPDATE OF resources",
            "",
            "test_a_delete_at_the_moment_of_a_birth_s_start_comes_before_it_or_sees_its_manifest",
        ),
        (
            "start: the first plan stays",
            "       SET manifest = {_PLAN},",
            "       SET manifest = CAST(:manifest AS jsonb),",
            "test_the_manifest_of_a_provision_is_stored_once",
        ),
        (
            "start: the first credentials stay",
            "COALESCE(credentials, CAST(:credentials AS bytea))",
            "CAST(:credentials AS bytea)",
            "test_the_manifest_of_a_provision_is_stored_once",
        ),
        (
            "start: event",
            "{_START}, noted AS ({_EVENT_EACH}\n     RETURNING id, job_id, hash\n    ), completed",
            "{_START}, completed",
            _along("start"),
        ),
        (
            "start: event of a birth",
            "{_START}, noted AS ({_EVENT_EACH}\n    )\n    UPDATE",
            "{_START}\n    UPDATE",
            "test_the_manifest_of_a_provision_is_stored_once",
        ),
    ),
    *cut(
        TRANSITIONS,
        "def _has_started(",
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
        "outbox/holds.py",
        'COVERS = """',
        HOLDS,
        (
            "hold: released",
            "holds.released_at IS NULL\n               AND (",
            "(",
            "test_a_hold_refuses_the_start_of_what_was_claimed_before_it",
        ),
        (
            "hold: a brake stops teardowns only",
            "({1} = 'deprovision' OR (holds.cause = 'operator' AND {1} <> 'restore')",
            "({1} <> 'restore'",
            f"{BRAKES}::test_a_brake_s_hold_stops_teardowns_but_not_provisions",
        ),
        *(
            (
                f"hold: {scope}",
                f"(holds.scope = '{scope}' AND holds.subject = {{0}}.{scope})",
                f"holds.scope = '{scope}'",
                "test_a_hold_elsewhere_stops_nothing_here",
            )
            for scope in ("backend", "tenant", "kind")
        ),
    ),
    *cut(
        "outbox/holds.py",
        "_RELEASE = text(",
        HOLDS,
        ("hold: released once", " AND released_at IS NULL", "", "test_a_hold_is_released_once_and_kept_for_ever"),
        (
            "hold: a brake's is released in its turn",
            "    SELECT {TURN} FROM holds WHERE id = :id AND cause = 'brake';\n",
            "",
            f"{BRAKES}::test_a_verdict_waits_for_a_release_under_way_and_counts_from_it",
        ),
        (
            "hold: released by the clock after the turn",
            "released_at = clock_timestamp()",
            "released_at = now()",
            f"{BRAKES}::test_a_verdict_from_while_a_release_waited_engages_no_new_hold",
        ),
    ),
    *cut(
        "outbox/holds.py",
        "",
        HOLDS,
        (
            "hold: a subject that is there",
            "not known(db, scope, subject)",
            "False",
            "test_a_hold_with_a_typing_error_is_refused",
        ),
    ),
    *cut(
        TRANSITIONS,
        "",
        BRAKES,
        (
            "brake: only what may start is judged",
            "under and not _has_started(db, claim, wanted)",
            "under",
            "test_a_start_refused_for_another_reason_does_not_hit_the_brake",
        ),
    ),
    *cut(
        "outbox/holds.py",
        "_ENGAGE_BRAKE = text(",
        BRAKES,
        (
            "brake: old news engage nothing",
            "AND released_at > :judged_at",
            "AND false",
            "test_what_was_judged_before_a_release_engages_no_new_hold",
        ),
        (
            "brake: engages in its turn",
            "    SELECT {TURN} FROM (VALUES (:scope, :subject)) AS brake (scope, subject);\n",
            "",
            "test_a_verdict_that_meets_a_release_under_way_engages_no_new_hold",
        ),
    ),
    *cut(
        TRANSITIONS,
        "_WAKE = text(",
        HOLDS,
        (
            "wake: released",
            "WHERE released_at IS NOT NULL",
            "WHERE true",
            "test_a_tenant_s_jobs_are_parked_under_its_hold_and_woken_by_its_release",
        ),
        (
            "wake: batch",
            "LIMIT :batch FOR UPDATE SKIP LOCKED) AS woken\n            WHERE released_at IS NOT NULL\n"
            "            LIMIT :batch",
            "FOR UPDATE SKIP LOCKED) AS woken\n            WHERE released_at IS NOT NULL",
            "test_a_tenant_s_jobs_are_parked_under_its_hold_and_woken_by_its_release",
        ),
    ),
    *cut(
        TRANSITIONS,
        "_DEFER = text(",
        HOLDS,
        (
            "defer: a hold in force",
            "WHERE id = :hold AND released_at IS NULL",
            "WHERE id = :hold",
            "test_a_job_is_not_parked_under_a_hold_that_was_released_meanwhile",
        ),
    ),
    *cut(
        "outbox/brakes.py",
        "",
        BRAKES,
        (
            "brake: turns",
            "    db.execute(_TAKE_TURNS, words)\n",
            "",
            "test_sixteen_workers_and_a_limit_of_fifty_make_exactly_fifty_starts_and_one_hold",
        ),
        ("brake: limit", "taken >= most", "false", "test_a_resource_counts_once_however_often_it_is_tried"),
        (
            "brake: percent",
            "(taken + 1) * 100 > percent * existing",
            "false",
            "test_a_brake_of_fifty_percent_stops_the_thirteenth_teardown_of_twenty_five",
        ),
        ("brake: a handful", "taken + 1 >= {PERCENT_FROM} AND ", "", "test_a_few_teardowns_engage_no_brake"),
        (
            "brake: once a resource",
            " AND resource_id <> :resource_id\n                       LIMIT",
            "\n                       LIMIT",
            "test_a_resource_counts_once_however_often_it_is_tried",
        ),
        ("brake: window", "AND at > since AND", "AND", "test_the_window_slides"),
        (
            "brake: a resource of another window counts again",
            "DO UPDATE SET at = clock_timestamp()",
            "DO UPDATE SET at = brake_starts.at",
            "test_a_resource_of_an_earlier_window_counts_again",
        ),
        (
            "brake: what others count stays",
            "clock_timestamp() - CAST(:longest AS interval)",
            "clock_timestamp() - 2 * span",
            "test_workers_with_another_window_leave_each_other_what_they_count",
        ),
        (
            "brake: nobody waits for long",
            "SET LOCAL lock_timeout = '5s'",
            "SET LOCAL lock_timeout = '0'",
            "test_a_turn_is_neither_waited_for_nor_kept_for_long",
        ),
        (
            "brake: a turn is lost by standing still",
            "SET LOCAL idle_in_transaction_session_timeout = '2s'",
            "SET LOCAL idle_in_transaction_session_timeout = '0'",
            "test_a_turn_is_neither_waited_for_nor_kept_for_long",
        ),
        (
            "brake: anew after a release",
            "SELECT max(released_at) FROM holds",
            "SELECT max(released_at) - interval '1 day' FROM holds",
            "test_sixteen_workers_and_a_limit_of_fifty_make_exactly_fifty_starts_and_one_hold",
        ),
    ),
    *cut(
        "outbox/breakers.py",
        "",
        CLAIM,
        (
            "breaker: a probe's failure counts",
            " OR :probing",
            "",
            "test_a_half_open_breaker_lets_one_probe_through_in_all",
        ),
        *(
            (f"breaker: {name}", old, new, "test_a_breaker_doubles_its_wait_up_to_a_limit")
            for name, old, new in (
                (
                    "failures of one pause count once",
                    "WHERE (breakers.retry_at <= now() OR :probing)",
                    "WHERE true",
                ),
                ("the longest pause", "least(:longest, ", "greatest(0, "),
            )
        ),
    ),
)
