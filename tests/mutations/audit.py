"""The guards of the evidence: chains, checkpoints, and what the service's role may do."""

from tests.mutations.cut import cut

TRANSITIONS = "outbox/jobs"


AUDIT, GRANTS, DOCTOR = "outbox/audit", "deprovisioner/grants.py", "outbox/doctor"
SCHEMA = "migrations/versions/0006_audit.py"
TESTS = "tests/outbox/test_audit.py"
FINDS = "tests/outbox/test_doctor.py::test_the_doctor_finds_rewritten_events"

_OWNERS = "test_a_role_that_owns_the_events_schema_or_is_a_member_of_its_owner_is_refused"
_CROSS = "test_statements_that_cross_each_other_s_chains_do_not_lock_each_other_out"

GUARDS_OF_AUDIT = (
    *cut(
        TRANSITIONS,
        "",
        TESTS,
        (
            "audit: events in the order of resources",
            "CAST({detail} AS jsonb) FROM job\n     ORDER BY resource_id",
            "CAST({detail} AS jsonb) FROM job",
            f"{_CROSS}[claim]",
        ),
    ),
    *cut(
        TRANSITIONS,
        "",
        TESTS,
        (
            "audit: swept events in the order of resources",
            "jsonb_build_object('state', state) FROM job\n         ORDER BY resource_id",
            "jsonb_build_object('state', state) FROM job",
            f"{_CROSS}[sweep]",
        ),
    ),
    *cut(
        SCHEMA,
        "",
        TESTS,
        (
            "audit: one writer of a chain at a time",
            "PERFORM pg_advisory_xact_lock(hashtextextended(CAST(NEW.resource_id AS text), 0));",
            "",
            "test_two_transactions_that_write_to_one_chain_take_turns",
        ),
        (
            "audit: no setting in a hash",
            "CAST(extract(epoch FROM {row}.at) AS text)",
            "CAST({row}.at AS text)",
            "test_no_setting_of_a_session_changes_a_hash",
        ),
        (
            "events_chain",
            '"events_chain", "events", ["resource_id", "seq"], unique=True',
            '"events_chain", "events", ["resource_id", "seq"], unique=False',
            "test_a_place_in_a_chain_is_taken_once_whoever_writes",
        ),
        (
            "audit_checkpoints_previous",
            '"audit_checkpoints_previous", "audit_checkpoints", ["previous"], unique=True',
            '"audit_checkpoints_previous", "audit_checkpoints", ["previous"], unique=False',
            "test_two_checkpoints_at_once_make_one",
        ),
        *(
            (
                f"audit_append_only: {verb}",
                "UPDATE OR DELETE OR TRUNCATE",
                " OR ".join(sorted({"UPDATE", "DELETE", "TRUNCATE"} - {verb})),
                "test_the_audit_is_append_only_whoever_writes",
            )
            for verb in ("UPDATE", "DELETE", "TRUNCATE")
        ),
        (
            "audit: append-only again after the migration",
            'op.execute("ALTER TABLE events ENABLE TRIGGER events_append_only")',
            "",
            "test_a_history_from_before_the_chains_is_chained_by_the_migration",
        ),
    ),
    *cut(
        "outbox/audit",
        "_CHECKPOINT = text(",
        TESTS,
        (
            "checkpoint: once an hour",
            "\n         WHERE NOT EXISTS (SELECT FROM last WHERE at "
            "BETWEEN now() - CAST(:every AS interval) AND clock_timestamp())",
            "",
            "test_one_checkpoint_is_made_an_hour",
        ),
        (
            "checkpoint: one of a time to come stops none",
            "at BETWEEN now() - CAST(:every AS interval) AND clock_timestamp()",
            "at > now() - CAST(:every AS interval)",
            "test_a_checkpoint_dated_in_the_future_is_reported_and_stops_no_other",
        ),
        (
            "checkpoint: only what is new",
            " AND told.seq >= fresh.seq)",
            " AND false)",
            "test_a_checkpoint_keeps_the_heads_that_are_new",
        ),
        (
            "checkpoint: what has not settled is read again",
            "\n                 WHERE at < now() - CAST(:settles AS interval)",
            "",
            "test_an_event_that_commits_during_a_checkpoint_is_in_the_next_one",
        ),
    ),
    *cut(
        "outbox/doctor",
        "",
        "tests/outbox/test_doctor.py",
        (
            "doctor: a chain that is gone",
            "FROM outbox WHERE NOT EXISTS (SELECT FROM events WHERE events.resource_id = outbox.resource_id)",
            "FROM outbox WHERE false",
            f"{FINDS}[DELETE FROM events WHERE resource_id = :id-codes6]",
        ),
        (
            "doctor: checkpoints follow each other",
            "previous <> before OR ",
            "",
            f"{FINDS}[DELETE FROM audit_checkpoints WHERE id = 1-codes11]",
        ),
        (
            "doctor: heads that no event bears",
            "WHERE event.hash IS DISTINCT FROM told.hash\n         GROUP BY told.resource_id",
            "WHERE false\n         GROUP BY told.resource_id",
            "test_a_chain_that_was_made_anew_after_a_checkpoint_is_found",
        ),
    ),
    *cut(
        GRANTS,
        "",
        TESTS,
        (
            "grants: no change of events",
            '"events": "SELECT, INSERT"',
            '"events": "SELECT, INSERT, UPDATE"',
            "test_every_table_has_its_rights",
        ),
        (
            "grants: no owner",
            "pg_has_role(pg_roles.oid, owner, 'MEMBER')",
            "false",
            "test_a_role_that_no_grant_can_hold_is_refused",
        ),
        (
            "grants: no owner of a table",
            "WHERE oid = ANY(CAST(CAST(:tables AS text[]) AS regclass[]))",
            "WHERE false AND :tables IS NOT NULL",
            f"{_OWNERS}[a table]",
        ),
        ("grants: no owner of the schema", "nspname = current_schema()", "false", f"{_OWNERS}[schema]"),
        ("grants: no owner of the database", "datname = current_database()", "false", f"{_OWNERS}[database]"),
        (
            "grants: what was too much goes",
            'db.exec_driver_sql(f"REVOKE ALL ON ALL TABLES IN SCHEMA {schema} FROM {quote(role)}")',
            "",
            "test_granting_again_revokes_rights_beyond_the_list",
        ),
    ),
)
