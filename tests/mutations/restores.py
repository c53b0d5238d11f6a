"""The guards of steps, of restores and of `purge_at`: in the statements, and in the schema, whoever writes."""

from tests.mutations.cut import cut

TRANSITIONS = "outbox/jobs"
SCHEMA = "migrations/versions/0011_steps.py"
RESTORE = "tests/outbox/test_restore.py"
MOVES = "tests/outbox/test_transitions.py"
GROUND = "tests/outbox/test_resolve.py"

_EARLY = "test_no_writer_destroys_before_the_time_by_whatever_path_it_was_deleted"
_MARK = "test_no_writer_takes_back_that_a_destruction_has_started"
_STANDS_ON = "test_no_writer_takes_back_what_a_teardown_stands_on"
_FIRST = "test_a_restore_that_comes_first_leaves_nothing_to_the_other"
_SECOND = "test_a_restore_that_comes_second_takes_back_what_the_other_left"
_UNVERIFIED = "test_nothing_is_destroyed_before_its_snapshot_is_verified"
_GRACE = "test_less_than_the_least_grace_is_for_who_may_purge"
_RACES = "test_a_thousand_races_of_restore_against_start_at_destroy_have_one_winner_each"
_AT_ONCE = "test_a_purge_at_the_moment_of_an_advance_is_never_lost"

GUARDS_OF_RESTORES = (
    # -- start
    *cut(
        TRANSITIONS,
        '_MAY_DESTROY = """',
        RESTORE,
        (
            "start: purge_at",
            "coalesce(purge_at <= clock_timestamp(), true)",
            "true",
            "test_nothing_is_destroyed_before_its_time",
        ),
        ("start: snapshot", "NOT needs_snapshot", "true", f"{_UNVERIFIED}[None]"),
        ("start: snapshot of its own", "WHERE job_id = outbox.id AND", "WHERE", f"{_UNVERIFIED}[None]"),
        ("start: snapshot is verified", " AND verified_at IS NOT NULL", "", f"{_UNVERIFIED}[NULL]"),
    ),
    *cut(
        TRANSITIONS,
        '_START = f"""',
        RESTORE,
        (
            "start: mark of its step",
            "WHEN step IN ('quarantine', 'snapshot') THEN step ELSE 'destroy' END",
            "WHEN step IN ('quarantine', 'snapshot', 'wait') THEN 'quarantine' ELSE 'destroy' END",
            "test_a_delete_with_a_grace_goes_step_by_step_to_its_end",
        ),
    ),
    # -- advance
    *cut(
        TRANSITIONS,
        "_ADVANCE = text(",
        RESTORE,
        ("advance: lock", "{_LOCK_JOB}", "", _AT_ONCE),
        (
            "advance: state",
            " AND state = 'running'",
            "",
            f"{MOVES}::test_a_transition_moves_a_job_only_along_its_arrow[advance-pending]",
        ),
        (
            "advance: snapshot",
            """AND (step = 'quarantine' OR EXISTS (
                SELECT FROM snapshots WHERE job_id = outbox.id AND verified_at IS NOT NULL))""",
            "",
            "test_a_snapshot_comes_between_quarantine_and_destruction",
        ),
        (
            "advance: not before purge_at",
            "ELSE greatest(now(), purge_at) END",
            "ELSE now() END",
            "test_a_delete_with_a_grace_goes_step_by_step_to_its_end",
        ),
        ("advance: fresh attempts", ", attempts = 0,", ",", "test_a_delete_with_a_grace_goes_step_by_step_to_its_end"),
    ),
    *cut(
        TRANSITIONS,
        "_GIVE_BACK = text(",
        RESTORE,
        (
            "give_back: status",
            "AND EXISTS (SELECT FROM resources WHERE resources.id = resource_id AND status = 'restoring')",
            "",
            "test_a_restore_gives_back_only_what_is_being_restored",
        ),
        (
            "give_back: started",
            " AND started_fence = fence",
            "",
            "test_a_restore_that_has_not_started_is_not_given_back",
        ),
    ),
    # -- restore and cancel
    *cut(
        TRANSITIONS,
        "NOT_STARTED = ",
        RESTORE,
        (
            "restore: mark of an older version",
            " AND (step IS NOT NULL OR started_fence IS NULL)",
            "",
            "test_a_teardown_from_before_there_were_steps_is_not_restored_once_it_has_started",
        ),
    ),
    *cut(
        TRANSITIONS,
        "_RESTORE = text(",
        RESTORE,
        (
            "cancel: version",
            " OR version = :version)",
            " OR true)",
            "test_a_restore_or_a_purge_of_an_older_version_is_refused",
        ),
        (
            "cancel: a request that is asked again",
            "AND before.kind = 'restore')",
            "AND false)",
            "test_a_request_that_restored_before_a_delete_restores_nothing_more",
        ),
        (
            "cancel: nothing to keep",
            " AND activated_at IS NOT NULL",
            "",
            "test_a_birth_that_failed_has_nothing_to_give_back",
        ),
        ("cancel: tenant", " OR tenant = :tenant)", " OR true)", "test_another_tenants_resource_is_not_restored"),
    ),
    *cut(
        TRANSITIONS,
        "_RESTORE_RESOURCES = text(",
        RESTORE,
        (
            "restore: a passed expiry",
            "expires_at = CASE WHEN expires_at > now() THEN expires_at END",
            "expires_at = expires_at",
            "test_a_restore_lifts_an_expiry_that_has_passed_and_no_other",
        ),
    ),
    # -- purge
    *cut(
        TRANSITIONS,
        "_PURGE = text(",
        RESTORE,
        (
            "purge: what waits is due",
            "CASE WHEN step = 'wait' AND state = 'pending' THEN now() ELSE available_at END",
            "available_at",
            _AT_ONCE,
        ),
    ),
    *cut(
        TRANSITIONS,
        "    request_id = request_id or uuid.uuid4()\n    db.execute(_LOCK_TEARDOWN",
        RESTORE,
        (
            "purge: lock",
            'db.execute(_LOCK_TEARDOWN, {"ids": [resource_id]})',
            "",
            f"{_FIRST}[purge]",
        ),
        (
            "purge: only what is being deleted",
            "if resource.status is not ResourceStatus.DELETING or row.job_id is None:",
            "if False:",
            "test_only_what_is_being_deleted_is_purged",
            f"{_FIRST}[purge]",
        ),
    ),
    # -- enqueue
    *cut(
        TRANSITIONS,
        "_MAY_HAVE_LESS = f",
        RESTORE,
        ("enqueue: least grace", "coalesce(asked.grace >= {_LEAST}, true)", "true", _GRACE),
        ("enqueue: snapshot that the backend requires", "asked.snapshot = 'off'", "false", _GRACE),
    ),
    *cut(
        TRANSITIONS,
        "_ENQUEUE_TEMPLATE = _enqueue(",
        RESTORE,
        (
            "enqueue: a request that was asked before a restore",
            "WHERE before.resource_id = asked.id AND before.request_id = asked.request_id",
            "WHERE false",
            "test_a_request_that_deleted_before_a_restore_deletes_nothing_more",
        ),
    ),
    *cut(
        TRANSITIONS,
        "_ABANDON = text(",
        GROUND,
        (
            "abandon: status",
            """AND EXISTS (SELECT FROM resources
                        WHERE resources.id = resource_id AND status = 'restoring' AND NOT protected)""",
            "",
            "test_a_job_of_another_kind_is_not_resolved",
        ),
    ),
    # -- the schema
    *cut(
        SCHEMA,
        'CLAIM_TRIGGER = """',
        RESTORE,
        (
            "outbox_claim",
            "OLD.started_step IN ('quarantine', 'snapshot')",
            "false",
            "test_each_claim_says_anew_at_which_step_it_starts",
        ),
    ),
    *cut(
        SCHEMA,
        'START = """',
        RESTORE,
        (
            "outbox_start: purge_at",
            "resource.purge_at > clock_timestamp()",
            "false",
            f"{_EARLY}[DELETE-a start at destroy]",
        ),
        (
            "outbox_start: a start of an older version",
            "NEW.started_step IS NULL AND NEW.step IN ('quarantine', 'snapshot', 'wait')",
            "false",
            "test_each_claim_says_anew_at_which_step_it_starts",
        ),
        (
            "outbox_start: no other step",
            "OLD.started_step = 'destroy' AND NEW.started_step IS DISTINCT FROM 'destroy'",
            "false",
            f"{_MARK}[another step]",
        ),
        (
            "outbox_start: snapshot",
            "NEW.needs_snapshot AND NOT EXISTS",
            "false AND NOT EXISTS",
            "test_no_writer_destroys_before_the_snapshot_is_verified",
        ),
        (
            "outbox_start: snapshot is verified",
            " AND verified_at IS NOT NULL",
            "",
            "test_no_writer_destroys_before_the_snapshot_is_verified",
        ),
    ),
    *cut(
        SCHEMA,
        'START_TRIGGER = """',
        RESTORE,
        (
            "outbox_start: a mark with a later fence",
            "NEW.started_step IS NOT NULL OR ",
            "",
            "test_no_writer_marks_a_destruction_under_the_start_of_an_earlier_step",
        ),
        (
            "outbox_start: a mark taken back with a later fence",
            " OR OLD.started_step = 'destroy'",
            "",
            f"{_MARK}[taken back with a later fence]",
        ),
    ),
    *cut(
        SCHEMA,
        'DESTROYING_TRIGGER = """',
        RESTORE,
        ("outbox_destroying_stays", "OLD.started_step = 'destroy' OR", "false OR", f"{_MARK}[cancelled]"),
        (
            "outbox_destroying_stays: an older mark",
            "(OLD.step IS NULL AND OLD.started_fence IS NOT NULL)",
            "false",
            "test_a_mark_from_before_there_were_steps_is_kept_as_well",
        ),
    ),
    *cut(
        SCHEMA,
        'IDENTITY_TRIGGER = """',
        RESTORE,
        ("outbox_identity_stays: kind", "NEW.kind <> OLD.kind OR ", "", f"{_EARLY}[DELETE-another kind for a while]"),
        (
            "outbox_identity_stays: resource",
            " OR NEW.resource_id <> OLD.resource_id",
            "",
            f"{_EARLY}[DELETE-another resource for a while]",
        ),
    ),
    *cut(
        SCHEMA,
        'NEEDS_TRIGGER = """',
        RESTORE,
        (
            "outbox_needs_snapshot_stays",
            "OLD.needs_snapshot AND NOT NEW.needs_snapshot",
            "false",
            f"{_STANDS_ON}[the need of a snapshot]",
        ),
    ),
    *cut(
        SCHEMA,
        'CHANGE = """',
        RESTORE,
        (
            "resources_change: its teardown lives",
            "AND state <> 'cancelled') THEN",
            "AND false) THEN",
            f"{_STANDS_ON}[active while its teardown lives]",
        ),
        ("resources_change: purge_at", "NEW.purge_at < OLD.purge_at", "false", f"{_EARLY}[DELETE-an earlier purge_at]"),
        ("resources_change: no purge_at", "NEW.purge_at IS NULL OR ", "", f"{_EARLY}[DELETE-no purge_at]"),
        (
            "resources_change: an event of this transaction",
            "\n                                 AND xmin = pg_current_xact_id()::xid",
            "",
            "test_purge_at_is_lowered_only_in_the_transaction_of_its_purge",
        ),
        (
            "resources_change: an event of this resource",
            "resource_id = NEW.id AND event",
            "event",
            "test_purge_at_is_lowered_only_in_the_transaction_of_its_purge",
        ),
        (
            "resources_change: version",
            "NEW.version = OLD.version + 1;",
            "",
            "test_each_change_of_a_resource_is_another_version",
        ),
        (
            "resources_change: a deletion has its time",
            "NEW.purge_at = coalesce(NEW.purge_at, now());",
            "",
            "test_a_birth_that_failed_is_removed_at_once_whatever_the_grace",
        ),
    ),
)
