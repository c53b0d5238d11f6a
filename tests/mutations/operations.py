"""The guards of bulk work: redrive_all, enqueue_all, and what an operation does when."""

from collections.abc import Iterable

from tests.mutations.cut import Mutant, cut

TRANSITIONS = "outbox/jobs"


OPERATIONS = "outbox/operations"
BULK = "tests/outbox/test_operations.py"
RESTORE = "tests/outbox/test_bulk_restore.py"
_ONE_FIRST = "test_one_of_each_backend_is_restored_first_and_the_others_when_it_was_given_back"
_WAITS = f"{RESTORE}::test_an_offboarding_waits_for_a_hold_and_goes_on_after_its_release"
_HELD = f"{RESTORE}::test_a_hold_that_comes_while_a_step_waits_keeps_the_resource[row]"
_UNBOUNDED = "test_a_filter_without_bounds_is_refused"
_NOTHING = "test_a_filter_that_can_find_nothing_is_refused"
_TELLS = "test_a_preview_tells_what_can_be_taken_back_what_can_not_and_what_no_hold_covers"
_NARROWS = "test_each_field_of_a_filter_narrows_it"
_SKIPPED = "test_what_has_started_or_changed_since_it_was_listed_is_skipped_and_the_next_goes_first"
_MOVES = "test_redrive_all_moves_what_redrive_would_and_nothing_else"
_FIRST = "test_one_of_each_backend_goes_first_and_the_others_when_it_has_succeeded"
_FAILS = "test_a_canary_that_fails_stops_its_backend_and_no_other[stuck]"
_SUCCESSOR = "test_a_canary_that_somebody_else_moved_on_has_a_successor"
_CHANGED = "test_a_set_that_has_changed_is_refused_and_nothing_is_kept"
_PREVIEW = "test_a_preview_tells_how_many_of_which_backends_and_the_first_of_them"
_STOPPED = "test_a_stopped_operation_leaves_alone_what_it_has_not_done_and_tells_who_and_why"
_LEFT = "test_offboarding_skips_resources_that_changed_after_it_began"
_OFFBOARD = "test_offboarding_deletes_what_a_delete_would_and_leaves_the_rest"


def _of(block: str, *entries: tuple[str, ...]) -> Iterable[Mutant]:
    return cut(OPERATIONS, block, BULK, *entries)


def _restores(block: str, *entries: tuple[str, ...]) -> Iterable[Mutant]:
    return cut("outbox/operations/restore.py", block, RESTORE, *entries)


GUARDS_OF_OPERATIONS = (
    *cut(
        "outbox/operations",
        "",
        BULK,
        (
            "operations: a teardown goes first",
            '(stuck.c.kind != "deprovision", stuck.c.id)',
            "stuck.c.id",
            "test_a_teardown_goes_first_where_there_is_one",
        ),
    ),
    *cut(
        "outbox/operations",
        "_INSERT = text(",
        BULK,
        (
            "operations: once",
            "ON CONFLICT (kind, digest) WHERE finished_at IS NULL DO NOTHING",
            "",
            "test_a_double_click_begins_one_operation",
        ),
    ),
    *cut(
        TRANSITIONS,
        "_REDRIVE_ALL = text(",
        BULK,
        ("redrive_all: fence", " AND outbox.fence = listed.fence", "", f"{_MOVES}[stuck]"),
        ("redrive_all: state", " AND state = 'stuck'", "", f"{_MOVES}[pending]"),
        ("redrive_all: fresh attempts", ", attempts = 0", "", f"{_MOVES}[stuck]"),
        ("redrive_all: event", "), noted AS ({_EVENT}\n    )", ")", f"{_MOVES}[stuck]"),
        (
            "redrive_all: order of locks",
            " ORDER BY id FOR UPDATE OF outbox",
            "",
            "test_two_bulk_redrives_of_the_same_jobs_in_opposite_order_do_not_deadlock",
        ),
    ),
    *cut(
        TRANSITIONS,
        "_ENQUEUE_TEMPLATE = _enqueue(",
        BULK,
        ("offboard: status", " AND status IN ('active', 'provisioning')", "", _LEFT),
    ),
    *_of(
        "    listed: Sequence[uuid.UUID] = ",
        ("offboard: tenant", '{"tenant": mine["tenant"]}', '{"tenant": None}', _LEFT),
    ),
    # -- the set
    *_of(
        "def _stuck(",
        ("operations: only stuck", "replace(wanted, state=JobState.STUCK)", "wanted", _PREVIEW),
    ),
    *_of(
        "def _living(",
        ("operations: of the tenant", "resource.tenant == tenant, alive", "alive", _OFFBOARD),
        ("operations: alive", "resource.tenant == tenant, alive", "resource.tenant == tenant", _OFFBOARD),
    ),
    *_of(
        "def summarize(",
        (
            "operations: digest of the kind",
            "json.dumps([kind, filter,",
            "json.dumps([filter,",
            "test_a_digest_is_of_its_filter_and_kind_too",
        ),
        (
            "operations: digest of the filter",
            "json.dumps([kind, filter,",
            "json.dumps([kind,",
            "test_a_digest_is_of_its_filter_and_kind_too",
        ),
        ("operations: digest of the items", "count, *numbers]", "count]", f"{_CHANGED}[another fence]"),
    ),
    *_of(
        "    mine = listed.subquery()",
        ("operations: digest", "now.digest != digest", "False", f"{_CHANGED}[one more]"),
    ),
    *_of(
        "    operation = insert(db, OperationKind.OFFBOARD",
        (
            "operations: count",
            "begun.total != expected_count",
            "False",
            "test_offboarding_needs_the_count_from_the_preview",
        ),
        ("operations: protected from the beginning", 'sa.case((living.c.protected, "protected"))', "sa.null()", _LEFT),
    ),
    *_of(
        "    refuse_unknown_scope(db, wanted.backend, wanted.tenant)\n    stuck = _stuck(wanted).subquery()",
        (
            "operations: a filter that is known",
            "    refuse_unknown_scope(db, wanted.backend, wanted.tenant)\n",
            "",
            "test_a_filter_that_nobody_knows_is_a_typing_error_and_no_empty_set[backend]",
        ),
    ),
    *_of(
        "    _refuse_unknown_tenant(db, tenant)\n    living = ",
        (
            "operations: a tenant that is known",
            "    _refuse_unknown_tenant(db, tenant)\n",
            "",
            "test_an_unknown_tenant_is_not_offboarded",
        ),
    ),
    # -- the stop
    *_of(
        "_STOP = text(",
        ("operations: stop ends once", " AND finished_at IS NULL", "", "test_an_operation_ends_once"),
        ("operations: stop of its items", "item.operation_id = ended.id AND ", "", _STOPPED),
        ("operations: stop of what waits", " AND item.outcome IS NULL", "", _STOPPED),
    ),
    # -- the steps
    *_of(
        "_TAKE = text(",
        ("operations: running", "finished_at IS NULL AND ", "", "test_a_finished_operation_is_not_taken_up_again"),
        (
            "operations: pace",
            " AND next_at <= now()",
            "",
            "test_an_operation_keeps_to_its_rate_by_the_database_s_clock",
        ),
        (
            "operations: any of those due",
            "ORDER BY random() ",
            "ORDER BY id ",
            "test_an_operation_that_fails_each_time_does_not_delay_the_others",
        ),
        (
            "operations: row lock",
            "FOR UPDATE SKIP LOCKED",
            "",
            "test_a_worker_skips_an_operation_that_another_worker_advances",
        ),
        (
            "operations: SKIP LOCKED",
            " SKIP LOCKED",
            "",
            "test_a_worker_skips_an_operation_that_another_worker_advances",
        ),
    ),
    *_of(
        "_PACE = text(",
        (
            "operations: the end waits for canaries",
            "AND outbox.state <> 'succeeded'",
            "AND false",
            "test_an_operation_of_canaries_alone_waits_for_them_before_it_has_ended_well",
        ),
        ("operations: the end waits for items", "AND outcome IS NULL)", "AND false)", "test_a_step_is_bounded[7-7]"),
    ),
    *_of(
        "_JUDGE = text(",
        ("operations: only failed canaries", " AND outbox.state IN ('stuck', 'cancelled')", "", _FIRST),
        ("operations: cancelled canaries", "'stuck', 'cancelled'", "'stuck'", _FAILS.replace("[stuck]", "[cancelled]")),
        ("operations: others stopped", "'stopped'", "NULL", _FAILS),
        ("operations: only its backend stopped", " AND item.backend = bad.backend", "", _FAILS),
        (
            "operations: what is done stays",
            "bad.backend AND item.outcome IS NULL",
            "bad.backend",
            "test_what_was_done_before_a_canary_s_failure_is_told_as_done",
        ),
    ),
    *_of(
        "_AS_LISTED = ",
        (
            "operations: successor at its fence",
            "outbox.fence = item.fence AND ",
            "",
            "test_where_all_have_moved_on_nothing_is_redriven",
        ),
        ("operations: successor is stuck", " AND outbox.state = 'stuck'", "", _SUCCESSOR),
    ),
    *_of(
        '_REPLACE = """',
        (
            "operations: successor only of the lost",
            "HAVING bool_and(outcome IS NOT DISTINCT FROM 'skipped')",
            "",
            _FIRST,
        ),
        ("operations: one successor", "AND item.n = coalesce(successor.n, item.n)", "", _SUCCESSOR),
    ),
    *_of(
        "_ELIGIBLE = text(",
        ("operations: canaries first", "AND (canary OR backend IN (", "AND (true OR backend IN (", _FIRST),
        ("operations: a canary succeeded", " AND outbox.state = 'succeeded'", "", _FIRST),
        ("operations: batch", " LIMIT :batch", "", "test_a_step_is_bounded[7-7]"),
    ),
    *_of(
        "    listed = canaries.eligible(",
        ("operations: rate", "min(BATCH, operation.rate)", "BATCH", "test_a_step_is_bounded[7-7]"),
        (
            "operations: a step's most",
            "min(BATCH, operation.rate)",
            "operation.rate",
            "test_a_step_is_bounded[1000-100]",
        ),
    ),
    *_of(
        "_TO_DELETE = text(",
        ("operations: a batch to delete", " LIMIT :batch", "", _OFFBOARD),
        ("operations: only what waits", " AND outcome IS NULL\n       AND NOT", " AND NOT", _OFFBOARD),
        (
            "offboard: what a hold covers is left for later",
            'AND NOT EXISTS (SELECT FROM holds WHERE {holds.COVERS.format("resources", "\'deprovision\'")})',
            "",
            _WAITS,
        ),
    ),
    *_of(
        "_DELETED = text(",
        (
            "offboard: what a hold kept waits",
            "(done.job_id IS NOT NULL OR protected OR tenant",
            "(true OR tenant",
            _HELD,
        ),
        ("offboard: a protected one does not wait", " OR protected OR", " OR", _LEFT),
        ("offboard: another tenant's does not wait", " OR tenant <> :tenant", "", _LEFT),
        ("offboard: a deleted one does not wait", " OR status NOT IN ('provisioning', 'active')", "", _LEFT),
    ),
    *_of(
        "    listed: Sequence[uuid.UUID] = ",
        (
            "offboard: a pause under a hold",
            "HELD_SECONDS if db.execute(_WAITS, mine).scalar_one() else 0.0",
            "0.0",
            _WAITS,
        ),
    ),
    *cut(
        TRANSITIONS,
        "_ENQUEUE_UNHELD = text(",
        RESTORE,
        ("offboard: holds", 'also=f"\\n           AND {_NO_HOLD}"', 'also=""', _HELD),
        (
            "offboard: holds are read after the row's lock",
            "resources.id = asked.id {_WAIT})",
            "resources.id = asked.id)",
            _HELD,
        ),
        (
            "offboard: holds are read after the chain's lock",
            "SELECT pg_advisory_xact_lock(hashtextextended(CAST(id AS text), 0))",
            "SELECT id",
            _HELD.replace("[row]", "[chain]"),
        ),
    ),
    *cut(
        "outbox/queries/operations.py",
        "_HOLDS = text(",
        RESTORE,
        ("operations: a restore waits for no hold", " AND operations.kind = 'offboard'", "", _ONE_FIRST),
        (
            "operations: only waiting items wait",
            " AND outcome IS NULL",
            "",
            "test_a_hold_elsewhere_keeps_no_offboarding_waiting",
        ),
        (
            "operations: holds that cover",
            'AND {COVERS.format("resources", "\'deprovision\'")})',
            ")",
            "test_a_hold_elsewhere_keeps_no_offboarding_waiting",
        ),
    ),
    # -- bulk restore
    *cut(
        "outbox/actions/operations.py",
        "def taken_back(",
        RESTORE,
        (
            "bulk restore: whose deletes",
            "wanted.tenant is None and",
            "False and",
            f"{_UNBOUNDED}[words0-say whose deletes are meant]",
        ),
        (
            "bulk restore: since when",
            "wanted.deleted_since is None and",
            "False and",
            f"{_UNBOUNDED}[words1-say since when]",
        ),
        (
            "bulk restore: since before until",
            "wanted.deleted_since >= wanted",
            "False and wanted",
            f"{_UNBOUNDED}[words2-must be before]",
        ),
    ),
    *_restores(
        "def _refuse_unknown(",
        (
            "bulk restore: an operation that deleted",
            "wanted.operation is not None",
            "False",
            f"{_NOTHING}[words2-operation 1 is not an offboarding]",
        ),
        (
            "bulk restore: names that are known",
            "refuse_unknown_scope(db, wanted.backend, wanted.tenant)",
            "pass",
            f"{_NOTHING}[words0-there is no tenant 'acne' here]",
        ),
    ),
    *_restores(
        "_RESOURCE, _JOB = ",
        ("bulk restore: once active", "_RESOURCE.activated_at.is_not(None)", "sa.true()", _TELLS),
        ("bulk restore: not started", ', sa.text(f"({jobs.NOT_STARTED})")', "", _TELLS),
        ("bulk restore: unheld", """sa.text(f"NOT EXISTS""", """sa.text(f"NOT false OR NOT EXISTS""", _TELLS),
    ),
    *_restores(
        "def _deleting(",
        ("bulk restore: only what is being deleted", ".where(_RESOURCE.status == ResourceStatus.DELETING)", "", _TELLS),
    ),
    *_restores(
        "def _deletes(",
        ("bulk restore: teardowns", "_JOB.kind == JobKind.DEPROVISION, ", "", _TELLS),
        (
            "bulk restore: not a cancelled teardown",
            ", _JOB.state != JobState.CANCELLED",
            "",
            _TELLS,
        ),
        ("bulk restore: of the tenant", "found.where(_RESOURCE.tenant == wanted.tenant)", "found", _NARROWS),
        ("bulk restore: of the backend", "found.where(_RESOURCE.backend == wanted.backend)", "found", _NARROWS),
        ("bulk restore: since", "found.where(_RESOURCE.deleted_at >= wanted.deleted_since)", "found", _NARROWS),
        ("bulk restore: until", "found.where(_RESOURCE.deleted_at < wanted.deleted_until)", "found", _NARROWS),
        ("bulk restore: until is not included", "deleted_at < wanted", "deleted_at <= wanted", _NARROWS),
        ("bulk restore: by the actor", ", event.actor == wanted.actor", "", _NARROWS),
        ("bulk restore: by the offboarding", "found.where(_JOB.id.in_(enqueued))", "found", _NARROWS),
    ),
    *_restores(
        "    found, number = _restorable(wanted)",
        ("bulk restore: one of each backend first", "place_of_backend == 1", "sa.true()", _ONE_FIRST),
        (
            "bulk restore: the digest has the teardown",
            "item.resource_id, item.job_id)",
            "item.resource_id)",
            "test_a_double_click_begins_one_restore",
        ),
    ),
    *_restores(
        "_AS_LISTED = ",
        ("bulk restore: as listed, its state", "outbox.state IN ('pending', 'running', 'stuck') AND ", "", _SKIPPED),
        (
            "bulk restore: as listed, not started",
            " AND {jobs.NOT_STARTED}",
            "",
            "test_where_all_are_being_destroyed_nothing_is_restored",
        ),
        (
            "bulk restore: a listed teardown is locked",
            " FOR NO KEY UPDATE",
            "",
            "test_a_delete_that_comes_while_a_step_waits_is_not_taken_back",
        ),
    ),
    *_restores(
        "_RESTORED = text(",
        ("bulk restore: its job", "coalesce(done.job_id, item.job_id)", "item.job_id", _ONE_FIRST),
        ("bulk restore: skipped", "ELSE 'skipped'", "ELSE 'restoring'", _SKIPPED),
    ),
    *cut(
        "outbox/operations/advance.py",
        "_PACE = text(",
        RESTORE,
        ("bulk restore: the end waits for canaries", "('redriven', 'restoring')", "('redriven')", _ONE_FIRST),
    ),
    *cut(
        "outbox/operations/canaries.py",
        "_BEGUN = ",
        RESTORE,
        ("bulk restore: canaries succeed", "('redriven', 'restoring')", "('redriven')", _ONE_FIRST),
    ),
)
