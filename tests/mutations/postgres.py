"""The guards of a teardown on PostgreSQL."""

from tests.mutations.cut import cut

PG = "worker/backends/postgres.py"
ON_PG = "tests/worker/test_postgres.py"
KINDS = "tests/worker/test_conformance.py"

_HANDS_CHANGED = "test_identity_is_checked_again_in_each_transaction"
_ALLOWED = "test_protected_names_are_refused_whatever_the_manifest_says"
GUARDS_OF_POSTGRES = (
    *cut(
        PG,
        "def _is_ours(",
        ON_PG,
        (
            "postgres: OID",
            'if manifest.get("oid") not in (None, database.oid):',
            "if False:",
            "test_a_newcomer_that_copies_the_comment_is_still_another_oid",
        ),
        (
            "postgres: comment",
            "_marked(database.comment, manifest)",
            "True",
            "test_a_database_that_bears_another_generation_is_different",
        ),
    ),
    *cut(
        PG,
        "def _judge(",
        ON_PG,
        (
            "postgres: system identifier",
            'if manifest.get("system_identifier") not in (None, seen.system_identifier):',
            "if False:",
            f"{KINDS}::test_the_wrong_server_is_refused[postgres]",
        ),
        (
            "postgres: comment of the role",
            "if seen.role is not None and not _marked(seen.role.comment, manifest):",
            "if False:",
            "test_a_role_made_again_under_the_name_is_untouched",
        ),
        (
            "postgres: the name is another's",
            "if named is not None and named not in ours and not ours:",
            "if False:",
            "test_a_database_made_again_under_the_name_is_untouched",
        ),
        (
            "postgres: renamed by somebody",
            "if stray := [d for d in ours if d.name not in",
            "if stray := [d for d in () if d.name not in",
            "test_a_database_that_somebody_renamed_is_neither_absent_nor_touched",
        ),
        (
            "postgres: absent without its role",
            "if not ours and seen.role is None:",
            "if not ours:",
            "test_a_role_that_is_left_is_not_absent",
        ),
    ),
    *cut(
        PG,
        "def _quarantine(",
        ON_PG,
        (
            "postgres: identity before anything",
            "raise Refused(why)",
            "pass",
            f"{KINDS}::test_another_generation_under_the_same_names_is_never_touched[postgres]",
        ),
        (
            "postgres: identity with the connection limit",
            "if limited is None or not _is_ours(limited, manifest):",
            "if False:",
            f"{_HANDS_CHANGED}[1]",
        ),
        (
            "postgres: no login",
            '_execute(session, "ALTER ROLE {role} NOLOGIN", role=manifest["role"])',
            "pass",
            "test_a_quarantine_leaves_no_way_in",
        ),
        (
            "postgres: connection limit",
            '_execute(session, "ALTER DATABASE {name} CONNECTION LIMIT 0", name=manifest["database"])',
            "pass",
            "test_a_quarantine_leaves_no_way_in",
        ),
        (
            "postgres: what the service stands on",
            "self._not_ours_to_take(seen, manifest)",
            "pass",
            "TestAdoption::test_what_became_a_superuser_s_or_a_template_is_not_torn_down",
        ),
    ),
    *cut(
        PG,
        "def _rename_away(",
        ON_PG,
        (
            "postgres: no connections",
            '_execute(session, "ALTER DATABASE {name} ALLOW_CONNECTIONS false", name=manifest["database"])',
            "pass",
            "test_a_quarantine_leaves_no_way_in",
        ),
        (
            "postgres: identity with the rename",
            "if renamed is None or not _is_ours(renamed, manifest):",
            "if False:",
            f"{_HANDS_CHANGED}[2]",
        ),
    ),
    *cut(
        PG,
        "def _end_sessions(",
        ON_PG,
        (
            "postgres: sessions are ended",
            "SELECT pg_terminate_backend(pid, %(wait)s) FROM",
            "SELECT pid, %(wait)s FROM",
            f"{KINDS}::test_a_session_that_is_open_does_not_hinder_the_teardown[postgres]",
        ),
        (
            "postgres: prepared transactions",
            "if database and prepared:",
            "if False:",
            "test_prepared_transactions_are_rolled_back",
        ),
    ),
    *cut(
        PG,
        "def _drop_role(",
        ON_PG,
        (
            "postgres: the role, before its grants go",
            "return\n        if not _marked(role.comment, manifest):",
            "return\n        if False:",
            "test_a_role_that_changes_hands_meanwhile_is_untouched[before its grants]",
        ),
        (
            "postgres: the role, before it is dropped",
            "return\n            if not _marked(role.comment, manifest):",
            "return\n            if False:",
            "test_a_role_that_changes_hands_meanwhile_is_untouched[before itself]",
        ),
    ),
    *cut(
        PG,
        "def _disown(",
        ON_PG,
        (
            "postgres: what is a neighbour's is handed over",
            '_execute(session, "REASSIGN OWNED BY {role} TO CURRENT_USER", role=role)',
            "pass",
            "test_what_the_role_owns_elsewhere_is_handed_over_not_dropped",
        ),
    ),
    *cut(
        PG,
        "def _not_ours_to_take(",
        ON_PG,
        *(
            (f"postgres: {name}", guard, "if False:", f"TestAdoption::{test}")
            for name, guard, test in (
                (
                    "its own role and database",
                    'if {manifest["database"], manifest.get("role")} & set(seen.us):',
                    "test_what_the_service_itself_stands_on_is_refused",
                ),
                (
                    "a role of PostgreSQL's",
                    'if (manifest.get("role") or "").startswith("pg_"):',
                    "test_a_role_of_postgresql_s_own_is_refused",
                ),
                (
                    "a superuser",
                    "if seen.role is not None and seen.role.superuser:",
                    "test_what_became_a_superuser_s_or_a_template_is_not_torn_down",
                ),
                (
                    "a template",
                    "if database is not None and database.template:",
                    "test_what_became_a_superuser_s_or_a_template_is_not_torn_down",
                ),
            )
        ),
    ),
    *cut(
        PG,
        "",
        ON_PG,
        (
            "postgres: advisory lock",
            'cursor.execute("SELECT pg_advisory_lock(%s)", (int.from_bytes(digest, signed=True),))',
            "pass",
            "test_a_second_worker_inside_one_object_waits_for_the_first",
        ),
        (
            "postgres: names never taken",
            "self._protected = NEVER | protected",
            "self._protected = protected",
            f"{_ALLOWED}[template1]",
        ),
        (
            "postgres: names protected",
            "self._protected = NEVER | protected",
            "self._protected = NEVER",
            f"{_ALLOWED}[control_db]",
        ),
        (
            "postgres: a bystander's role",
            'others := set(seen.role.owns) - {manifest["database"]}',
            "others := set()",
            "TestAdoption::test_a_bystander_s_role_does_not_die_with_the_database",
        ),
    ),
    *(
        mutant
        for verb in ("adopt", "quarantine", "teardown")
        for mutant in cut(
            PG,
            f"    def {verb}(",
            ON_PG,
            (f"postgres: protected at {verb}", "self._allowed(manifest)", "pass", f"{_ALLOWED}[control_db]"),
        )
    ),
    *cut(
        PG,
        "    def release(",
        ON_PG,
        (
            "postgres: identity at release",
            "self._must_be_same(seen, manifest)",
            "pass",
            f"{KINDS}::test_another_generation_under_the_same_names_is_never_touched[postgres]",
        ),
    ),
    *cut(
        PG,
        "    def provision(",
        ON_PG,
        (
            "postgres: the right server at birth",
            "self._right_server(seen, manifest)",
            "pass",
            f"{KINDS}::test_the_wrong_server_is_refused[postgres]",
        ),
    ),
    *cut(
        PG,
        "    def adopt(",
        ON_PG,
        (
            "postgres: the right server at adoption",
            "self._right_server(seen, manifest)",
            "pass",
            "TestAdoption::test_what_does_not_match_is_refused_and_unmarked",
        ),
        (
            "postgres: the OID at adoption",
            'if manifest.get("oid") not in (None, database.oid):',
            "if False:",
            "TestAdoption::test_what_does_not_match_is_refused_and_unmarked",
        ),
    ),
    *cut(
        PG,
        "    def _make_role(",
        ON_PG,
        (
            "postgres: a password is hashed",
            "password=sql.Literal(verifier)",
            "password=sql.Literal(password)",
            "test_names_are_whole_uuids_and_passwords_stay_out_of_the_log",
        ),
        (
            "postgres: a role that was there before",
            "if not _marked(seen.role.comment, manifest):",
            "if False:",
            "test_a_birth_takes_nothing_that_was_there_before[role]",
        ),
    ),
    *cut(
        PG,
        "    def _make_database(",
        ON_PG,
        (
            "postgres: closed to the public",
            '_execute(session, "REVOKE ALL ON DATABASE {name} FROM PUBLIC", name=newborn)',
            "pass",
            "test_a_customer_cannot_enter_a_neighbours_database",
        ),
        (
            "postgres: a database that was there before",
            "if not _is_ours(named, manifest):",
            "if False:",
            "test_a_birth_takes_nothing_that_was_there_before[database]",
        ),
    ),
    *cut(
        PG,
        "def _mark(",
        ON_PG,
        (
            "postgres: another resource's mark",
            'if comment and "deprovisioner gen=" in comment:',
            "if False:",
            "TestAdoption::test_what_belongs_to_another_resource_cannot_be_adopted",
        ),
    ),
)
