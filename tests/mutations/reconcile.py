"""Reconciliation: what is no finding, and what must not look like one."""

from tests.mutations.cut import cut

RUNS = "outbox/reconcile/runs.py"
COMPARE = "outbox/reconcile/compare.py"
TESTS = "tests/worker/test_reconcile.py"
CLI = "tests/deprovisioner/test_reconcile.py"
_ALL = "test_each_difference_on_postgresql_is_found_and_nothing_else"
_REWOUND = "test_a_rewound_database_is_not_compared_and_none_that_is_rewound_meanwhile"
_UNCOMPARED = "test_a_database_that_no_worker_has_compared_since_its_start_and_a_backend_that_went_back_are_refused"
_ONE = "test_of_many_workers_one_makes_the_daily_run"
_MOVED = "test_a_row_that_changes_before_the_end_is_neither_found_nor_does_it_end_a_finding"
_MEANWHILE = "test_what_is_deleted_or_made_while_the_run_reads_is_no_finding"
_EMPTY = "test_an_empty_answer_is_an_error_where_resources_are_active_and_none_where_they_are_not"
_NO_ROWS = "test_a_database_without_any_resource_of_the_backend_finds_nothing_there"
_OTHERS = "test_objects_of_other_installations_are_no_findings_and_what_a_note_names_is_ours"
_DOORS = f"{CLI}::test_an_unknown_object_is_adopted_by_the_ordinary_door_and_one_that_survives_is_torn_down_again"
_REFUSED = f"{CLI}::test_what_cannot_be_adopted_or_deleted_is_refused_with_what_to_do_instead"
_NOTE = "tests/worker/test_checks.py::test_what_no_operator_can_mend_is_told_and_is_no_fault"

GUARDS_OF_RECONCILE = (
    *cut(
        RUNS,
        "_BEGIN = text(",
        TESTS,
        ("reconcile: a database that may be rewound", "{rewinds.GOES_ON} AND NOT", "NOT", _UNCOMPARED),
        ("reconcile: a backend that went back", " AND NOT {_BEHIND}", "", _UNCOMPARED),
        ("reconcile: one worker a day", "WHERE NOT :only_due OR (", "WHERE true OR (", _ONE),
    ),
    *cut(
        RUNS,
        '    asked = run.words | {"codes"',
        TESTS,
        ("reconcile: rewound meanwhile", "    _refuse(db, run.backend)\n", "", _REWOUND),
        ("reconcile: a row that changed meanwhile", "in (_MOVED, _CLOSE)", "in (_CLOSE,)", _MOVED, _MEANWHILE),
    ),
    *cut(
        RUNS,
        "_MINE = text(",
        TESTS,
        ("reconcile: the later run counts", " AND run = :run AND incarnation", " AND incarnation", _ONE),
    ),
    *cut(
        RUNS,
        "_CLOSE = text(",
        TESTS,
        ("reconcile: what is not known closes nothing", "AND stands IS DISTINCT FROM false", "AND stands", _MOVED),
    ),
    *cut(
        COMPARE,
        "    found = db.execute(_COUNTS",
        TESTS,
        ("reconcile: no object at all", "if found.active and not found.objects:", "if False:", _EMPTY),
        ("reconcile: no row at all", "if unknown and not found.rows:", "if False:", _NO_ROWS),
    ),
    *cut(
        COMPARE,
        "    while (row := _paged(db, _ROWS",
        TESTS,
        ("reconcile: what is young is counted", "young=counts.young + row.young", "young=counts.young", _ALL),
    ),
    *cut(
        "deprovisioner/cli/reconcile.py",
        "    nothing = ",
        CLI,
        ("reconcile: no command that does nothing", "all(one.refused for one in preview.items)", "False", _REFUSED),
    ),
    *cut(
        "worker/checks.py",
        "    def faults(",
        "tests/worker/test_checks.py",
        ("checks: a note is no fault", " if not finding.inherent", "", _NOTE),
    ),
    *cut(
        COMPARE,
        "_SETTLED = ",
        TESTS,
        ("reconcile: an hour", "{0}.purged_at) < :{1}", "{0}.purged_at) < now()", _ALL),
        ("reconcile: a job of the last hour", " OR finished_at >= :{1}", "", _ALL),
        ("reconcile: a job that is open", "outbox.state IN ('pending', 'running') OR", "", _ALL),
    ),
    *cut(
        COMPARE,
        "_OBJECTS = text(",
        TESTS,
        ("reconcile: others' objects", "WHEN :shared AND", "WHEN false AND", _OTHERS),
    ),
    *cut(
        COMPARE,
        "_MINE = ",
        TESTS,
        ("reconcile: an older run writes nothing", " AND run = :run RETURNING", " RETURNING", _ONE),
    ),
    *cut(
        "worker/reconcile.py",
        "def _inspect(",
        TESTS,
        (
            "reconcile: a backend that goes away half-way",
            "                    raise\n",
            "                    pass\n",
            "test_one_difference_that_is_refused_is_an_error_and_the_others_count",
        ),
    ),
    *cut(
        "worker/reconcile.py",
        "def _stands(",
        TESTS,
        (
            "reconcile: each is inspected once more",
            "            return False\n",
            "            return True\n",
            _MEANWHILE,
        ),
    ),
    *cut(
        "outbox/actions/reconcile.py",
        "    preview, made = edge.ask(",
        CLI,
        ("reconcile: the digest of what is done", "if preview.digest != digest:", "if False:", _DOORS),
    ),
    *cut(
        "outbox/actions/reconcile.py",
        "def _delete(",
        CLI,
        ("reconcile: a delete waits for the adoption", "is ResourceStatus.PROVISIONING:", "is None:", _DOORS),
    ),
)
