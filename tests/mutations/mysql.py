"""The guards of a teardown on MariaDB."""

from tests.mutations.cut import cut

MYSQL = "worker/backends/mysql"
TESTS = "tests/worker/backends/mysql"
ADOPT = f"{TESTS}/test_adopt.py"
AUTHORITY = f"{TESTS}/test_authority.py"
DESTROY = f"{TESTS}/test_destroy.py"
QUARANTINE = f"{TESTS}/test_quarantine.py"

GUARDS_OF_MYSQL = (
    *cut(
        f"{MYSQL}/identity.py",
        "def _foreign_schema(",
        DESTROY,
        (
            "mysql: whose rights on a schema without a mark",
            "if strangers := sorted({grant.account for grant in state.grants} - known):",
            "if strangers := []:",
            "tests/worker/backends/conformance/test_mysql.py::test_a_part_that_matches_is_different_and_is_not_touched",
        ),
        (
            "mysql: a schema without mark and user",
            'if manifest["user"] is not None and not _has_our_user(state, manifest):',
            "if False:",
            "test_an_object_that_took_the_name_between_check_and_drop_is_not_dropped",
        ),
    ),
    *cut(
        f"{MYSQL}/identity.py",
        "def read_state(",
        AUTHORITY,
        (
            "mysql: the account is shown all",
            "    session.must_see_all()\n",
            "",
            "test_an_account_that_is_not_shown_all_never_says_absent",
        ),
    ),
    *cut(
        f"{MYSQL}/session.py",
        "_WRITABLE = {",
        AUTHORITY,
        (
            "mysql: read-only",
            '"read_only": ("OFF", "0"),',
            "",
            "test_a_server_that_is_read_only_is_believed_in_nothing",
        ),
    ),
    *cut(
        f"{MYSQL}/destroy.py",
        "def _drop_schema(",
        DESTROY,
        (
            "mysql: identity at the last moment",
            "    identity.must_be_same(identity.read_state(session, manifest), manifest)  # DROP takes only a name\n",
            "",
            "test_an_object_that_took_the_name_between_check_and_drop_is_not_dropped",
        ),
        (
            "mysql: foreign keys of neighbours",
            '    obstacles.must_not_be_referred_to(session, manifest["database"])\n',
            "",
            "test_a_foreign_key_of_a_neighbour_is_refused_before_anything_is_dropped",
        ),
    ),
    *cut(
        f"{MYSQL}/destroy.py",
        "def _must_be_the_customers_alone(",
        DESTROY,
        (
            "mysql: another account of the name",
            "    for found in adopt.reaching(session, state, manifest, later):",
            "    for found in adopt.reaching(session, state, manifest, []):",
            "test_an_account_of_the_same_name_at_another_host_goes_too_unless_it_has_rights_elsewhere",
        ),
    ),
    *cut(
        f"{MYSQL}/quarantine.py",
        "def close(",
        QUARANTINE,
        (
            "mysql: rights go in a quarantine",
            "        _take(session, grant)\n",
            "        pass\n",
            "test_an_event_of_a_locked_user_goes_on_and_a_quarantine_stops_it",
        ),
        (
            "mysql: a claim just before the change",
            "    still()\n",
            "",
            "test_a_worker_that_stood_still_past_the_other_verb_changes_nothing_more[quarantine-release]",
        ),
    ),
    *cut(
        f"{MYSQL}/registry.py",
        "def close(",
        QUARANTINE,
        (
            "mysql: the first note of a quarantine stays",
            "closed = COALESCE(closed, %s)",
            "closed = %s",
            "test_a_release_gives_back_exactly_the_rights_that_were_there",
        ),
    ),
    *cut(
        f"{MYSQL}/rights.py",
        "    exact, me = names.pattern(database)",
        DESTROY,
        (
            "mysql: a pattern of neighbours stays",
            "or not reaches(session, str(grant.pattern), database)",
            "or True",
            f"{ADOPT}::test_a_right_by_a_pattern_that_matches_a_neighbour_stays",
        ),
    ),
    *cut(
        f"{MYSQL}/create.py",
        "def mark_user(",
        AUTHORITY,
        (
            "mysql: a replica follows",
            'session.execute(f"REVOKE {role} FROM {me}")',
            'session.execute(f"REVOKE {role} FROM CURRENT_USER")',
            "test_a_replica_that_was_promoted_is_the_server_and_goes_on",
        ),
    ),
)
