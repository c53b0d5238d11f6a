"""What a worker destroys or cuts off without a person's word: the guards that make it wait, or stop."""

from tests.mutations.cut import cut

ROADS = "tests/worker/test_roads.py"
PROVISIONS = "tests/worker/test_provision.py"
_LEFT = "test_what_was_made_too_late_is_left_while_a_hold_covers_it"
_LOOKS = "INSPECT_SECONDS) as session, session"
_EATER = "test_a_role_has_so_many_sessions_and_a_customer_that_took_every_slot_loses_them[18]"
_COPY = "test_the_last_copy_is_kept_while_a_hold_covers_it"

GUARDS_OF_ROADS = (
    *cut(
        "outbox/jobs/start.py",
        "_MAY_UNDO = text(",
        ROADS,
        ("undo: adopted", " AND NOT adopted", "", f"{PROVISIONS}::test_a_late_adoption_destroys_nothing"),
        (
            "undo: only of a deleted resource",
            " AND status IN ('deleting', 'deleted')",
            "",
            "test_a_late_worker_leaves_what_its_successor_is_still_to_make",
        ),
        (
            "undo: of a resource being deleted too",
            "('deleting', 'deleted')",
            "('deleted')",
            f"{PROVISIONS}::test_a_late_provision_of_a_resource_being_deleted_undoes_itself",
        ),
        (
            "undo: what can still be restored",
            "status = 'deleted' OR activated_at IS NULL",
            "true",
            "test_a_late_worker_does_not_destroy_what_can_still_be_restored",
        ),
        (
            "undo: a destruction that has started",
            "AND NOT ({NOT_STARTED})",
            "AND false",
            "test_a_late_worker_undoes_what_it_made_again_after_the_destruction_has_started",
        ),
        (
            "undo: holds",
            """
              AND NOT EXISTS (SELECT FROM holds WHERE {holds.COVERS.format("resources", "'deprovision'")})""",
            "",
            f"{_LEFT}[deleted-operator-tenant]",
            f"{_LEFT}[deleting-brake-backend]",
        ),
        (
            "undo: a database that was not compared",
            """
              AND {rewinds.GOES_ON_AT.format("backend")}""",
            "",
            "test_a_late_worker_destroys_nothing_on_the_word_of_a_database_that_was_not_compared",
        ),
    ),
    *cut(
        "worker/run/provision.py",
        "    if run.made is None:",
        ROADS,
        (
            "undo: told to keep still",
            "        run.keep(mark)\n",
            "        pass\n",
            "test_a_late_worker_destroys_nothing_at_a_backend_that_was_told_to_keep_still",
        ),
    ),
    *cut(
        "outbox/jobs/claim.py",
        "    row = db.execute(_STILL,",
        ROADS,
        (
            "still: a rewind",
            "    if row.rewound:",
            "    if False:",
            "test_a_step_that_is_under_way_ends_at_its_question_after_a_rewind",
        ),
        (
            "still: a database that was not compared",
            "    if not row.goes_on:",
            "    if False:",
            "test_a_step_that_is_under_way_waits_until_a_restarted_database_is_compared",
        ),
    ),
    *cut(
        "worker/run/__init__.py",
        "        except Exception as worse:",
        ROADS,
        (
            "run: a rewind leaves the job as it is",
            "Unconfirmed | Rewound",
            "Unconfirmed",
            "test_a_failed_provision_is_not_rolled_back_after_a_rewind",
        ),
    ),
    *cut(
        "outbox/snapshots.py",
        "_EXPIRED = text(",
        ROADS,
        (
            "snapshot: its removal waits for holds",
            """
       AND NOT EXISTS (SELECT FROM holds WHERE {holds.COVERS.format("snapshots", "'deprovision'")})""",
            "",
            f"{_COPY}[operator-tenant]",
            f"{_COPY}[brake-backend]",
        ),
    ),
    *cut(
        "worker/snapshots/expiry.py",
        "def _remove(",
        ROADS,
        (
            "snapshot: a hold between two removals",
            "if not snapshots.expired(session, limit=1, id=one.id):",
            "if False:",
            "test_a_hold_that_is_engaged_between_two_removals_keeps_the_second",
        ),
    ),
    *cut(
        "worker/backends/postgres/attempts.py",
        "with server.connect(",
        "tests/worker/backends/postgres/test_slots.py",
        ("look: a login look ends no sessions", "INSPECT_SECONDS, frees=False) as session, session", _LOOKS, _EATER),
    ),
    *cut(
        "worker/backends/postgres/objects.py",
        "with server.connect(",
        "tests/worker/backends/postgres/test_slots.py",
        ("look: a survey ends no sessions", "connect(frees=False)", "connect()", _EATER),
    ),
    *cut(
        "migrations/versions/0013_a_place_in_time.py",
        "TRIGGERS = (",
        ROADS,
        (
            "rewind: a trigger of purges",
            ", grace_seconds, purge_at ON",
            ", grace_seconds ON",
            "test_after_a_rewind_no_destruction_is_brought_forward",
        ),
    ),
)
