"""The guards of a teardown on PostgreSQL."""

from tests.mutations.cut import cut

PG = "worker/backends/postgres"  # each mutant is of the one module in it that has its text
TESTS = "tests/worker/backends/postgres"
BLOCKERS = f"{TESTS}/test_blockers.py"
CREATE = f"{TESTS}/test_create.py"
SLOTS = f"{TESTS}/test_slots.py"
ERRORS = f"{TESTS}/test_errors.py"
OBSTACLES = f"{TESTS}/test_obstacles.py"
HEIR = f"{TESTS}/test_heir.py"
DESTROY = f"{TESTS}/test_destroy.py"
RIGHTS = f"{TESTS}/test_rights.py"
UNCONFIRMED = f"{TESTS}/test_unconfirmed.py"
WAITS = f"{TESTS}/test_waits.py"
IDENTITY = f"{TESTS}/test_identity.py"
SESSION = f"{TESTS}/test_session.py"
QUARANTINE = f"{TESTS}/test_quarantine.py"
ATTEMPTS = f"{TESTS}/test_attempts.py"
SWAPS = f"{TESTS}/test_swaps.py"
KINDS = "tests/worker/backends/conformance/test_postgres.py"

_EATER = "test_a_role_has_so_many_sessions_and_a_customer_that_took_every_slot_loses_them"
_REPLACED = "test_identity_is_checked_again_in_each_transaction"
_HOSTILE = "test_what_a_hostile_customer_left_elsewhere_runs_with_no_rights"
_ALLOWED = "test_protected_names_are_refused_whatever_the_manifest_says"
_ASKED = "test_adoption_asks_for_exactly_the_rights_with_which_the_whole_teardown_succeeds"
_PREPARED = "test_a_prepared_transaction_outlives_a_quarantine_and_can_be_committed_after_a_restore"
_COMES_BACK = "test_what_was_there_before_a_quarantine_comes_back_exactly"
_STOPPED = "test_a_stopped_process_of_another_database_is_named_and_not_waited_for_in_vain"
GUARDS_OF_POSTGRES = (
    *cut(
        f"{PG}/pace.py",
        "",
        f"{TESTS}/test_pace.py",
        (
            "postgres: a drop waits for its turn",
            "if cursor.fetchone() == (True,):",
            "if True:",
            "test_a_drop_waits_for_its_turn_and_all_else_is_done_meanwhile",
        ),
        (
            "postgres: nobody waits for a turn for ever",
            "if time.monotonic() > deadline:",
            "if False:",
            "test_a_worker_that_stands_still_in_its_turn_stops_no_teardown",
        ),
    ),
    *cut(
        "worker/backends/postgres/errors.py",
        "",
        ERRORS,
        (
            "postgres: a statement that a read-only server refuses costs no attempt",
            '("25006", OutOfService,',
            '("25006", Unavailable,',
            "test_an_error_is_taken_for_what_its_code_says[25006-OutOfService]",
        ),
    ),
    *cut(
        "worker/backends/postgres/session.py",
        "",
        "tests/worker/test_out_of_service.py",
        (
            "postgres: a standby costs no attempt",
            "raise self.blamed(OutOfService, away, database)",
            "raise self.blamed(Transient, away, database)",
            "test_jobs_of_a_postgres_that_became_a_standby_wait_and_burn_no_attempts[18-after the start]",
        ),
        (
            "postgres: a default of read-only is set off",
            " -c default_transaction_read_only=off",
            "",
            "test_jobs_of_a_postgres_that_keeps_new_transactions_read_only_go_on[18]",
        ),
    ),
    *cut(
        PG,
        "def _create_database(",
        CREATE,
        (
            "postgres: a provision leaves little for a teardown to wait for",
            " STRATEGY FILE_COPY",
            "",
            "test_a_provision_leaves_little_for_the_checkpoint_of_a_teardown[18]",
        ),
    ),
    *cut(
        PG,
        "def with_evidence(",
        BLOCKERS,
        (
            "postgres: whom an attempt that fails has ended",
            "if self.told:",
            "if False:",
            "test_whom_an_attempt_has_ended_is_kept_when_it_fails[18]",
        ),
    ),
    *cut(
        PG,
        "def _look(",
        BLOCKERS,
        (
            "postgres: the session that is kept is another server's",
            "if not self._done.is_set():",
            "if False:",
            "test_a_neighbour_that_blocks_is_ended_while_the_session_that_is_kept_is_away[18-another server's]",
        ),
    ),
    *cut(
        PG,
        "def lent(",
        BLOCKERS,
        (
            "postgres: the session that is kept is in use",
            "with self._turn(_TURN_SECONDS) as ours:",
            "with self._turn(-1) as ours:",
            "test_a_neighbour_that_blocks_is_ended_while_the_session_that_is_kept_is_away[18-in use]",
        ),
    ),
    *cut(
        PG,
        "def _disown(",
        f"{TESTS}/test_grants.py",
        (
            "postgres: rights that DROP OWNED leaves",
            "if not obstacles.is_disowned(session, role):",
            "if False:",
            "test_rights_that_a_third_customer_passed_on_do_not_keep_a_role_alive[18-service]",
        ),
    ),
    *cut(
        PG,
        "def revoke_left(",
        f"{TESTS}/test_grants.py",
        (
            "postgres: as whoever granted the rights",
            'cursor.execute(sql.SQL("SET LOCAL ROLE {}").format(sql.Identifier(grantor)))',
            "pass",
            "test_rights_that_a_third_customer_passed_on_do_not_keep_a_role_alive[18-service]",
        ),
    ),
    *cut(
        PG,
        "def told(",
        WAITS,
        (
            "postgres: which process does not answer",
            "if unanswering := _unanswering(self._session):",
            'if unanswering := "":',
            _STOPPED,
        ),
        (
            "postgres: who holds the lock",
            "if time.monotonic() - seen_at < _FRESH_SECONDS",
            "if False",
            "test_who_holds_a_lock_that_a_teardown_waits_for_is_named",
        ),
    ),
    *cut(
        PG,
        "def must_suffice(",
        RIGHTS,
        (
            "postgres: rights before an adoption",
            "if statements := missing(session, database, role):",
            "if statements := []:",
            _ASKED,
        ),
    ),
    *cut(
        PG,
        "def missing(",
        RIGHTS,
        (
            "postgres: rights on a database's owner",
            "if owner not in granted and not _holds(session, owner):",
            "if False:",
            _ASKED,
        ),
        (
            "postgres: rights to end other roles' sessions",
            "if _others_may_connect(session, database, granted):",
            "if False:",
            _ASKED,
        ),
        (
            "postgres: a replicating role on 15",
            "if not options and _replicates(session, role):",
            "if False:",
            "test_on_15_an_account_that_inherits_nothing_and_a_role_that_replicates_are_told",
        ),
    ),
    *cut(
        PG,
        "def _holds(",
        RIGHTS,
        (
            "postgres: ADMIN before an adoption",
            '["USAGE WITH ADMIN OPTION"] if admin else []',
            "[]",
            "test_a_membership_without_one_of_its_options_is_not_enough",
        ),
    ),
    *cut(
        PG,
        "def blamed(",
        ERRORS,
        (
            "postgres: a neighbour's trouble",
            "Transient if issubclass(meaning, Unavailable) and self._works() else meaning",
            "meaning",
            "test_a_neighbour_s_database_that_cannot_be_entered_is_this_job_s_trouble_and_named",
            "test_what_a_server_says_of_itself_is_not_believed_from_a_neighbour_s_database_while_the_server_works",
        ),
        (
            "postgres: a server that is away, seen from another database",
            " and self._works()",
            "",
            "test_another_database_is_unavailable_when_the_server_is",
        ),
    ),
    *cut(
        PG,
        "yield session",
        UNCONFIRMED,
        (
            "postgres: what a session saw is confirmed",
            "session.confirm()",
            "pass",
            "test_an_absence_that_an_administrator_s_cancels_have_made_is_not_believed",
        ),
    ),
    *cut(
        PG,
        "_must_be_confirmed(warned=",
        UNCONFIRMED,
        (
            "postgres: a wait for a standby that somebody cancels",
            "warned=bool(self.notices)",
            "warned=False",
            "test_an_absence_that_an_administrator_s_cancels_have_made_is_not_believed",
        ),
    ),
    *cut(
        PG,
        "def execute(",
        UNCONFIRMED,
        (
            "postgres: each step is confirmed",
            "self._must_be_confirmed()",
            "pass",
            "test_no_verb_believes_what_no_standby_confirms_nor_waits_for_it",
        ),
    ),
    *cut(
        PG,
        "def _cancel_late(",
        UNCONFIRMED,
        (
            "postgres: a step whose wait was ended is not believed",
            "self.unconfirmed = True",
            "pass",
            "test_no_verb_believes_what_no_standby_confirms_nor_waits_for_it",
        ),
    ),
    *cut(
        PG,
        "def _works(",
        ERRORS,
        (
            "postgres: a server without room, seen from another database",
            "cursor.execute(_TAKES_ROOM)",
            "pass",
            "test_a_full_disk_is_the_server_s_trouble_or_that_of_a_neighbour_s_tablespace_alone",
        ),
    ),
    *cut(
        PG,
        "def afterwards(",
        ERRORS,
        (
            "postgres: the first error counts, whatever is cleaned up after it",
            "with contextlib.suppress(psycopg2.Error, BackendError):",
            "with contextlib.suppress():",
            "test_a_prepared_transaction_s_error_is_not_hidden_by_the_end_of_its_session",
        ),
    ),
    *cut(
        PG,
        "def transaction(",
        ERRORS,
        (
            "postgres: the first error counts",
            "with contextlib.suppress(psycopg2.Error):",
            "with contextlib.suppress():",
            "test_a_rollback_does_not_hide_the_error_that_ended_the_session",
        ),
    ),
    *cut(
        PG,
        "def is_ours(",
        IDENTITY,
        (
            "postgres: OID",
            'if manifest.get("oid") not in (None, database.oid):',
            "if False:",
            "test_a_new_database_with_a_copied_comment_is_told_by_its_oid",
        ),
        (
            "postgres: comment",
            "is_marked(database.comment, manifest)",
            "True",
            "test_a_database_that_bears_another_generation_is_different",
        ),
    ),
    *cut(
        PG,
        "def judge(",
        IDENTITY,
        (
            "postgres: system identifier",
            'if manifest.get("system_identifier") not in (None, state.system_identifier):',
            "if False:",
            f"{KINDS}::test_another_server_is_refused_and_its_absence_does_not_count",
        ),
        (
            "postgres: absent without its role",
            "if not state.databases and not state.roles:",
            "if not state.databases:",
            "test_a_role_without_its_database_is_not_absent",
        ),
    ),
    *cut(
        PG,
        "def _foreign(",
        IDENTITY,
        (
            "postgres: the name is another's",
            "elif not ours:",
            "elif False:",
            "test_a_database_made_again_under_the_name_is_untouched",
        ),
        (
            "postgres: a renamed database or role",
            "if found.name not in names:",
            "if False:",
            "test_a_part_that_matches_is_never_absent_nor_touched",
        ),
        (
            "postgres: a database with the mark alone",
            "elif is_marked(found.comment, manifest):",
            "elif False:",
            "test_a_part_that_matches_is_never_absent_nor_touched",
        ),
    ),
    *cut(
        PG,
        "def judge(",
        IDENTITY,
        (
            "postgres: another's role",
            " or _foreign_role(state, manifest):",
            ":",
            "test_a_part_that_matches_is_never_absent_nor_touched",
        ),
        (
            "postgres: a mark on what is different",
            "marked = any(is_marked(comment, manifest) for comment in comments)",
            "marked = False",
            "tests/worker/test_provision.py::"
            "test_a_mark_of_an_adoption_that_was_killed_is_not_left_in_silence_on_postgres",
        ),
        (
            "postgres: another's database",
            "_foreign_database(state, manifest) or ",
            "",
            "test_a_database_that_was_renamed_is_different_and_untouched",
        ),
    ),
    *cut(
        PG,
        "def is_our_role(",
        IDENTITY,
        (
            "postgres: OID of the role",
            'manifest.get("role_oid") in (None, role.oid) and ',
            "",
            "test_a_part_that_matches_is_never_absent_nor_touched",
        ),
    ),
    *cut(
        PG,
        "SELECT pg_catalog.pg_is_in_recovery(), pg_catalog.current_setting",
        f"{TESTS}/test_authority.py",
        (
            "postgres: a standby is not believed",
            "if standby or read_only:",
            "if False:",
            "test_no_verb_believes_a_standby",
        ),
    ),
    *cut(
        PG,
        "_PARAMETERS = {",
        f"{TESTS}/test_authority.py",
        (
            "postgres: the search path",
            "-c search_path=pg_catalog,pg_temp ",
            "",
            "test_settings_of_role_and_database_do_not_reach_a_session",
        ),
        (
            "postgres: the tablespace",
            " -c default_tablespace=",
            "",
            "test_settings_of_role_and_database_do_not_reach_a_session",
        ),
        (
            "postgres: the search path has no schema of customers",
            "search_path=pg_catalog,pg_temp",
            "search_path=pg_catalog,public",
            "test_a_customer_s_functions_operators_and_casts_are_never_called",
        ),
    ),
    *cut(
        PG,
        "    state = identity.read_state(session, manifest)\n    identity.must_be_a_customers",
        DESTROY,
        (
            "postgres: identity before anything",
            "raise Refused(why)",
            "pass",
            f"{KINDS}::test_same_different_and_absent_are_told_apart",
        ),
        (
            "postgres: sessions are ended before anything waits",
            "obstacles.end_sessions(session, ours, state.role, seconds=FIRST_SECONDS)",
            "pass",
            f"{BLOCKERS}::test_an_open_transaction_of_the_customer_that_changes_its_role_is_ended_first",
        ),
        (
            "postgres: a subscription",
            "obstacles.must_not_subscribe(session, ours, ours.name)",
            "pass",
            f"{OBSTACLES}::test_a_subscription_is_refused_at_once_and_named",
        ),
        (
            "postgres: the service's own, checked at quarantine",
            "identity.must_be_a_customers(state, manifest)",
            "pass",
            f"{CREATE}::TestAdoption::test_a_role_made_superuser_or_a_database_made_template_is_not_torn_down",
        ),
        (
            "postgres: the claim is asked for behind the lock of a quarantine",
            "    still()\n",
            "",
            f"{QUARANTINE}::test_a_worker_that_loses_its_claim_while_it_waits_for_the_lock_changes_nothing",
        ),
        (
            "postgres: a quarantine keeps prepared transactions",
            "if prepared and forever:",
            "if prepared:",
            f"{QUARANTINE}::{_PREPARED}[18]",
        ),
        (
            "postgres: a database with prepared transactions keeps its name",
            " and (forever or not prepared):",
            ":",
            f"{QUARANTINE}::{_PREPARED}[18]",
        ),
        (
            "postgres: prepared transactions",
            "prepared = obstacles.prepared(session, ours.name)",
            "prepared = []",
            "test_prepared_transactions_are_rolled_back",
        ),
    ),
    *cut(
        PG,
        "def _to_close(",
        QUARANTINE,
        (
            "postgres: a database that was opened in quarantine is closed again",
            "away if away is not None and away.open and identity.is_ours(away, manifest) else None",
            "None",
            "test_a_database_that_was_opened_in_quarantine_is_closed_again_with_what_came_in",
        ),
    ),
    *cut(
        PG,
        "def _shut(",
        DESTROY,
        (
            "postgres: an operator's lock keeps no door open",
            "locked.append(error)",
            "raise",
            f"{BLOCKERS}::test_an_operator_s_lock_on_the_role_does_not_keep_the_sessions_alive",
        ),
    ),
    *cut(
        PG,
        "    except Unavailable:",
        QUARANTINE,
        (
            "postgres: a session that a release has ended is no outage",
            "still()",
            "pass",
            "test_a_worker_whose_session_a_release_has_ended_is_told_that_its_claim_is_lost",
        ),
    ),
    *cut(
        PG,
        "def _insist_on_rename(",
        QUARANTINE,
        (
            "postgres: the claim is asked for before the rename",
            "still()",
            "pass",
            "test_the_claim_is_asked_for_again_behind_each_wait[3]",
        ),
    ),
    *cut(
        PG,
        "    try:\n        with server.connect() as session:\n            still()",
        QUARANTINE,
        (
            "postgres: the claim is asked for before a quarantine takes the lock over",
            "            still()\n            take_over",
            "            take_over",
            "test_a_worker_whose_claim_is_lost_changes_nothing[quarantine]",
        ),
        (
            "postgres: a quarantine takes the lock over",
            "take_over(session, manifest",
            "session.lock(manifest",
            "test_a_quarantine_goes_on_where_a_worker_stands_still_in_it",
        ),
    ),
    *cut(
        PG,
        "def _shut_role(",
        DESTROY,
        (
            "postgres: no login",
            'session.execute("ALTER ROLE {role} NOLOGIN", role=role.name)',
            "pass",
            "test_a_quarantine_leaves_no_way_in",
        ),
        (
            "postgres: the role that lost its login",
            "        identity.must_be_our_role(session, manifest, role.name)",
            "        pass",
            f"{SWAPS}::test_a_stranger_s_role_keeps_its_login",
        ),
        (
            "postgres: a role's first note is kept",
            "notes.before(now.comment, manifest, notes.LOGIN) is None",
            "True",
            f"{QUARANTINE}::{_COMES_BACK}[18-service-as provisioned]",
        ),
        (
            "postgres: whether a role could log in",
            "notes.LOGIN[now.login]",
            "notes.LOGIN[True]",
            f"{QUARANTINE}::{_COMES_BACK}[18-service-NOLOGIN]",
        ),
    ),
    *cut(
        PG,
        "def _shut_database(",
        DESTROY,
        (
            "postgres: the door is closed before sessions are ended",
            "if database is None:",
            "if True:",
            "test_no_session_can_come_when_sessions_are_ended_for_the_last_time",
        ),
        (
            "postgres: identity with the door",
            "        identity.must_be_our_database(session, manifest, name)",
            "        pass",
            f"{SWAPS}::test_a_stranger_s_database_is_not_closed_nor_renamed[18-service-1-teardown]",
        ),
        (
            "postgres: a database's first note is kept",
            "notes.before(now.comment, manifest, notes.CONNECTIONS) is None",
            "True",
            f"{QUARANTINE}::{_PREPARED}[18]",
        ),
        (
            "postgres: whether a database was open",
            "notes.CONNECTIONS[now.open]",
            "notes.CONNECTIONS[True]",
            f"{QUARANTINE}::{_COMES_BACK}[18-service-ALLOW_CONNECTIONS false]",
        ),
    ),
    *cut(
        PG,
        "def insist(",
        BLOCKERS,
        (
            "postgres: a customer that changes its role all the time",
            "if last:",
            "if True:",
            "test_a_customer_that_changes_its_role_all_the_time_is_shut_out",
        ),
    ),
    *cut(
        PG,
        "def end(self",
        BLOCKERS,
        (
            "postgres: a neighbour that blocks is ended",
            "for pid, user, application, since, database, _ in found:",
            "for pid, user, application, since, database, _ in []:",
            "test_a_neighbour_s_open_grant_to_the_role_is_ended_and_told",
        ),
        (
            "postgres: a neighbour's prepared transaction that blocks is rolled back",
            "self._roll_back(prepared)",
            "pass",
            "test_a_neighbour_s_prepared_grant_is_rolled_back_and_told",
        ),
        (
            "postgres: each of the sessions of one that blocks again",
            "if again:",
            "if False:",
            "test_a_neighbour_with_a_lock_on_each_of_many_tables_is_ended_as_a_whole",
        ),
    ),
    *cut(
        PG,
        "_EATER = f",
        SLOTS,
        (
            "postgres: sessions of many customers that fill a server together",
            "    HAVING pg_catalog.count(*) * {PART} >=",
            "    HAVING 0 * {PART} <=",
            "test_a_server_that_many_customers_fill_together_is_away_and_none_of_them_is_ended[18]",
        ),
    ),
    *cut(
        PG,
        "def _with_a_slot(",
        SLOTS,
        (
            "postgres: a customer that took every slot",
            "if len(told) == OPEN_TRIES or not (freed := self.slots.free()):",
            "if True:",
            f"{_EATER}[18]",
        ),
    ),
    *cut(
        PG,
        "def _free(",
        SLOTS,
        (
            "postgres: a role without a limit is given one",
            "if limit == -1:",
            "if False:",
            f"{_EATER}[18]",
        ),
    ),
    *cut(
        PG,
        "def _create_role(",
        SLOTS,
        (
            "postgres: a role's connection limit",
            "CONNECTION LIMIT {limit} ",
            "",
            f"{_EATER}[18]",
        ),
    ),
    *cut(
        PG,
        "def end_at_barrier(",
        BLOCKERS,
        (
            "postgres: a neighbour that answers no barrier is ended",
            "if now - silence.since >= SILENT_SECONDS or",
            "if",
            "test_a_client_that_sends_its_data_slowly_is_not_ended_with_one_that_sends_none[18]",
        ),
        (
            "postgres: data that flows is not stopped",
            "silence if silence.sent == found[session][5] else",
            "silence if True else",
            "test_a_client_that_sends_its_data_slowly_is_not_ended_with_one_that_sends_none[18]",
        ),
        (
            "postgres: a row without an end",
            "or now - silence.first >= DRIBBLE_SECONDS",
            "",
            "test_a_client_that_sends_one_row_byte_by_byte_is_ended[18]",
        ),
    ),
    *cut(
        PG,
        "_BLOCKERS = f",
        BLOCKERS,
        (
            "postgres: an operator that blocks is not ended",
            "AND usesysid IN ({CUSTOMERS})\n       AND (xact_start",
            "AND usesysid IS NOT NULL\n       AND (xact_start",
            "test_an_operator_that_blocks_is_named_and_not_ended",
        ),
        (
            "postgres: an old transaction of a customer is not waited for",
            "xact_start {_OLD} OR",
            "",
            "test_a_neighbour_s_transaction_that_is_old_already_is_not_waited_for[18]",
        ),
        (
            "postgres: a young transaction of a customer may end",
            "(xact_start {_OLD} OR",
            "(true OR",
            "test_a_neighbour_s_young_transaction_may_end_by_itself[18]",
        ),
    ),
    *cut(
        "worker/backends/postgres/obstacles.py",
        "def must_be_ended(",
        OBSTACLES,
        (
            "postgres: who is left is named",
            "if clients:",
            "if False:",
            "test_a_superuser_s_session_is_named_and_saves_no_other_session",
        ),
    ),
    *cut(
        PG,
        "def _rename_away(",
        DESTROY,
        (
            "postgres: no connections",
            'session.execute("ALTER DATABASE {name} ALLOW_CONNECTIONS false", name=manifest["database"])',
            "pass",
            "test_a_quarantine_leaves_no_way_in",
        ),
        (
            "postgres: identity with the rename",
            "identity.must_be_our_database(session, manifest, dying)",
            "pass",
            f"{_REPLACED}[2]",
        ),
    ),
    *cut(
        PG,
        "forbidden: set[int]",
        OBSTACLES,
        (
            "postgres: sessions are ended",
            "SELECT pg_catalog.pg_terminate_backend(%s)",
            "SELECT %s",
            f"{KINDS}::test_a_teardown_ends_open_sessions_and_is_repeated",
        ),
        (
            "postgres: one forbidden session does not save the others",
            "forbidden.add(client.pid)",
            "return left",
            "test_a_superuser_s_session_is_named_and_saves_no_other_session",
        ),
    ),
    *cut(
        PG,
        "def roll_back(",
        OBSTACLES,
        (
            "postgres: as the owner of a prepared transaction",
            'inside.execute("SET ROLE {owner}", owner=owner)',
            "pass",
            "test_a_prepared_transaction_of_the_customer_is_rolled_back_as_its_owner",
        ),
    ),
    *cut(
        PG,
        "def _drop_role(",
        DESTROY,
        (
            "postgres: what still depends on the role is named",
            "obstacles.must_be_disowned(session, role, dying)",
            "pass",
            f"{OBSTACLES}::test_a_superuser_s_grant_is_refused_at_once_and_named_with_its_database",
        ),
        (
            "postgres: a neighbour that grants the dying role rights again",
            "if last or {name for name, _ in _elsewhere(session, role)} <= tried - cleared:",
            "if True:",
            f"{BLOCKERS}::test_a_neighbour_that_grants_the_role_rights_again_while_it_is_dropped_is_ended_and_told",
        ),
        (
            "postgres: a neighbour that grants the dying role its first right",
            "<= tried - cleared:",
            "- cleared == {name for name, _ in _elsewhere(session, role)}:",
            f"{BLOCKERS}::test_a_neighbour_s_young_transaction_may_end_by_itself[18]",
        ),
        (
            "postgres: the role, after its rename",
            "identity.must_be_our_role(session, manifest, dying)",
            "pass",
            f"{SWAPS}::test_a_stranger_s_role_is_not_renamed_nor_dropped_and_keeps_what_it_owns",
        ),
        (
            "postgres: a role is renamed before it is dropped",
            "if role.name != dying:",
            "dying = role.name\n    if False:",
            "test_a_stranger_that_takes_the_freed_name_of_a_dying_role_is_untouched[18]",
        ),
    ),
    *cut(
        PG,
        "def _clear(",
        HEIR,
        (
            "postgres: large objects in the maintenance databases",
            "heir.drop_large_objects(neighbour, role.oid)",
            "pass",
            "test_large_objects_in_a_maintenance_database_go_with_their_role",
        ),
        (
            "postgres: a neighbour's large objects",
            "if name in MAINTENANCE or name == session.info.dbname:",
            "if True:",
            "test_large_objects_in_a_maintenance_database_go_with_their_role",
        ),
    ),
    *cut(
        PG,
        "def _disown(",
        DESTROY,
        (
            "postgres: objects elsewhere are handed over",
            "heir.hand_over(session, name, role.oid)",
            "pass",
            "test_what_the_role_owns_elsewhere_is_handed_over_not_dropped",
        ),
    ),
    *cut(
        PG,
        "heir = _heir(session)",
        HEIR,
        (
            "postgres: objects elsewhere do not become the service's",
            'session.execute("REASSIGN OWNED BY {role} TO {heir}", role=role, heir=heir)',
            'session.execute("REASSIGN OWNED BY {role} TO CURRENT_USER", role=role)',
            f"{_HOSTILE}[18-service-neighbour]",
        ),
        (
            "postgres: code of a dropped role runs with its caller's rights",
            "_run(session, neutralised,",
            "_run(session, [],",
            f"{_HOSTILE}[18-service-neighbour]",
        ),
        (
            "postgres: teardowns lend to the heir in turn",
            "session.lock(heir)",
            "pass",
            "test_teardowns_that_need_a_new_heir_at_one_moment_share_it",
        ),
        (
            "postgres: what was lent to the heir is taken back",
            '[f"REVOKE CREATE ON {place} FROM {heir}" for place in lent]',
            "[]",
            f"{_HOSTILE}[18-service-neighbour]",
        ),
    ),
    *cut(
        PG,
        "def _heir(",
        HEIR,
        (
            "postgres: another worker made the heir",
            "except (sqlstates.DuplicateObject, sqlstates.UniqueViolation):",
            "except ZeroDivisionError:",
            "test_teardowns_that_need_a_new_heir_at_one_moment_share_it",
        ),
    ),
    *cut(
        PG,
        "def _must_be_powerless(",
        HEIR,
        (
            "postgres: an heir that can do something",
            "if too_much:",
            "if False:",
            "test_an_heir_that_can_do_something_is_refused",
        ),
    ),
    *cut(
        PG,
        "def must_be_a_customers(",
        CREATE,
        *(
            (f"postgres: {name}", guard, "if False:", f"TestAdoption::{test}")
            for name, guard, test in (
                (
                    "its own role and database",
                    'if {manifest["database"], manifest.get("role")} & set(state.us):',
                    "test_the_service_s_own_role_and_database_are_refused",
                ),
                (
                    "a role of PostgreSQL's",
                    'if (manifest.get("role") or "").startswith("pg_"):',
                    "test_a_role_of_postgresql_s_own_is_refused",
                ),
                (
                    "a superuser",
                    "if state.role is not None and state.role.superuser:",
                    "test_a_role_made_superuser_or_a_database_made_template_is_not_torn_down",
                ),
                (
                    "a template",
                    "if database is not None and database.template:",
                    "test_a_role_made_superuser_or_a_database_made_template_is_not_torn_down",
                ),
            )
        ),
    ),
    *cut(
        PG,
        "",
        IDENTITY,
        (
            "postgres: advisory lock",
            'cursor.execute("SELECT pg_catalog.pg_advisory_lock(%s)", (lock_key(name),))',
            "pass",
            f"{SESSION}::test_a_second_worker_at_one_object_waits_for_the_first",
        ),
        (
            "postgres: a client that is gone is noticed",
            "(str(CLIENT_CHECK_MS),)",
            '("0",)',
            f"{SESSION}::test_a_worker_that_is_killed_inside_a_drop_leaves_no_session_and_no_lock",
        ),
        (
            "postgres: names never taken",
            "self.protected = NEVER | protected",
            "self.protected = protected",
            f"{_ALLOWED}[template1]",
        ),
        (
            "postgres: names protected",
            "self.protected = NEVER | protected",
            "self.protected = NEVER",
            f"{_ALLOWED}[control_db]",
        ),
        (
            "postgres: a bystander's role",
            'others := set(state.role.owns) - {manifest["database"]}',
            "others := set()",
            f"{CREATE}::TestAdoption::test_a_bystander_s_role_does_not_die_with_the_database",
        ),
    ),
    *(
        mutant
        for verb in ("adopt", "quarantine", "teardown")
        for mutant in cut(
            PG,
            f"def {verb}(",
            IDENTITY,
            (
                f"postgres: protected at {verb}",
                "identity.must_not_be_protected(server, manifest)",
                "pass",
                f"{_ALLOWED}[control_db]",
            ),
        )
    ),
    *cut(
        PG,
        "def release(",
        QUARANTINE,
        (
            "postgres: what is no longer there cannot be released",
            "identity.must_be_same(state, manifest)",
            "pass",
            "test_a_stranger_s_database_under_the_quarantine_s_name_loses_no_session_to_a_release",
        ),
        (
            "postgres: the claim is asked for before a release takes the lock over",
            "still()\n        take_over",
            "take_over",
            "test_a_worker_whose_claim_is_lost_changes_nothing[release]",
        ),
        (
            "postgres: the claim is asked for behind the lock of a release",
            "still()\n        if",
            "if",
            "test_the_claim_is_asked_for_again_behind_each_wait[2]",
        ),
        (
            "postgres: sessions in quarantine are ended before the name is given back",
            "obstacles.must_be_ended(obstacles.end_sessions(session, away, state.role), away.name)",
            "pass",
            "test_a_release_ends_our_own_sessions_inside_and_not_those_of_others_at_the_lock",
        ),
    ),
    *cut(
        PG,
        "def _away(",
        QUARANTINE,
        (
            "postgres: a stranger's database under the quarantine's name",
            "return found if found is not None and identity.is_ours(found, manifest) else None",
            "return found",
            "test_a_stranger_s_database_under_the_quarantine_s_name_loses_no_session_to_a_release",
        ),
    ),
    *cut(
        PG,
        "deadline = time.monotonic() + TAKE_OVER_SECONDS",
        QUARANTINE,
        (
            "postgres: a release takes the lock over",
            "cursor.execute(_HOLDERS, (lock_key(name),))",
            "pass",
            "test_a_worker_that_stands_still_in_a_quarantine_ends_nothing_after_a_restore[18-after:COMMIT]",
        ),
    ),
    *cut(
        PG,
        "_HOLDERS = ",
        QUARANTINE,
        (
            "postgres: a release ends its own account's sessions only",
            "usesysid = (SELECT oid FROM pg_catalog.pg_roles WHERE rolname = session_user)",
            "true",
            "test_a_release_ends_our_own_sessions_inside_and_not_those_of_others_at_the_lock",
        ),
        (
            "postgres: a release ends who is at the same object only",
            "(classid::pg_catalog.int8 << 32) | objid::pg_catalog.int8 = %s",
            "%s IS NOT NULL",
            "test_a_release_leaves_workers_at_other_objects_alone",
        ),
    ),
    *cut(
        PG,
        "def _give_back(",
        QUARANTINE,
        (
            "postgres: the database that got its name back",
            "identity.must_be_our_database(session, manifest, name)",
            "pass",
            f"{SWAPS}::test_a_stranger_s_database_is_not_given_the_customer_s_name[18-service]",
        ),
        (
            "postgres: the role that was given a login",
            "identity.must_be_our_role(session, manifest, role.name)",
            "pass",
            f"{SWAPS}::test_a_stranger_s_role_is_given_no_login",
        ),
        (
            "postgres: a release takes its note off the database",
            'notes.take_off(session, "DATABASE", name, database.comment, manifest, notes.CONNECTIONS)',
            "pass",
            f"{_COMES_BACK}[18-service-as provisioned]",
        ),
        (
            "postgres: a release takes its note off the role",
            'notes.take_off(session, "ROLE", role.name, role.comment, manifest, notes.LOGIN)',
            "pass",
            f"{_COMES_BACK}[18-service-as provisioned]",
        ),
    ),
    *cut(
        PG,
        "def _found(",
        QUARANTINE,
        (
            "postgres: only what stands before the mark is a note",
            'r"\\Z"',
            'r""',
            "test_words_like_a_note_elsewhere_in_a_comment_are_the_customer_s",
        ),
    ),
    *cut(
        PG,
        "with closing(_logged_in(",
        QUARANTINE,
        (
            "postgres: where a login leads",
            "if seen != (role, database, False):",
            "if False:",
            "TestProof::test_a_server_that_is_away_is_unavailable_and_a_login_elsewhere_is_no_proof",
        ),
        (
            "postgres: who has logged in, whatever role it takes on",
            "SELECT session_user,",
            "SELECT current_user,",
            "TestProof::test_what_a_customer_has_set_on_its_role_does_not_stop_the_proof",
        ),
        (
            "postgres: a login that fails is this object's trouble",
            "server.blamed(Unavailable, said, database)",
            "Unavailable(said)",
            "TestProof::test_a_login_that_fails_is_transient_and_does_not_tell_the_password",
        ),
    ),
    *cut(
        PG,
        "_FUNCTION = ",
        ATTEMPTS,
        (
            "postgres: only a superuser's function reads the log",
            " AND rolsuper",
            "",
            "test_without_a_superuser_s_function_nothing_is_told[18]",
        ),
    ),
    *cut(
        PG,
        "def _refused(",
        ATTEMPTS,
        (
            "postgres: only refusals are attempts",
            'found.get("state_code") in _REFUSED',
            "True",
            "test_the_sessions_that_a_quarantine_ends_are_no_attempts[18]",
        ),
        (
            "postgres: attempts on other objects",
            "if ours and",
            "if",
            "test_attempts_after_a_moment_are_counted_with_where_they_came_from[18]",
        ),
    ),
    *cut(
        PG,
        "later = [",
        ATTEMPTS,
        (
            "postgres: attempts that were counted before",
            " if at > since",
            "",
            "test_attempts_after_a_moment_are_counted_with_where_they_came_from[18]",
        ),
    ),
    *cut(
        PG,
        "def _shown(server",
        QUARANTINE,
        (
            "postgres: a database in quarantine is not unlocked",
            "if database is None or notes.before(database.comment, manifest, notes.CONNECTIONS):",
            "if database is None:",
            "TestProof::test_what_is_still_in_quarantine_is_not_shown_as_unlocked",
        ),
        (
            "postgres: a role in quarantine is not unlocked",
            "if role is not None and notes.before(role.comment, manifest, notes.LOGIN):",
            "if False:",
            "TestProof::test_what_is_still_in_quarantine_is_not_shown_as_unlocked",
        ),
        (
            "postgres: another object is not shown as unlocked",
            "identity.must_be_same(state, manifest)",
            "pass",
            "TestProof::test_what_is_still_in_quarantine_is_not_shown_as_unlocked",
        ),
    ),
    *cut(
        PG,
        "def provision(",
        KINDS,
        (
            "postgres: the right server at provision",
            "identity.must_be_right_server(state, manifest)",
            "pass",
            "test_another_server_is_refused_and_its_absence_does_not_count",
        ),
    ),
    *cut(
        PG,
        "def adopt(",
        CREATE,
        (
            "postgres: what an adoption has marked",
            "identity.must_be_same(identity.read_state(session, adopted), adopted)",
            "pass",
            f"{SWAPS}::test_a_stranger_s_object_is_not_marked_by_an_adoption",
        ),
    ),
    *cut(
        PG,
        "def _checks(",
        CREATE,
        (
            "postgres: the right server at adoption",
            "yield partial(identity.must_be_right_server, state, manifest)",
            "yield lambda: None",
            "TestAdoption::test_what_does_not_match_is_refused_and_unmarked",
        ),
    ),
    *cut(
        PG,
        "def _must_be_there(",
        CREATE,
        (
            "postgres: the OID at adoption",
            'if manifest.get("oid") not in (None, database.oid):',
            "if False:",
            "TestAdoption::test_what_does_not_match_is_refused_and_unmarked",
        ),
    ),
    *cut(
        PG,
        "def _create_database(",
        CREATE,
        (
            "postgres: the database that a provision has marked",
            "if created is None or renamed is None or renamed.oid != created.oid:",
            "if False:",
            f"{SWAPS}::test_a_stranger_s_database_is_not_marked_by_a_provision",
        ),
    ),
    *cut(
        PG,
        "def _create_role(",
        CREATE,
        (
            "postgres: a password is hashed",
            "password=sql.Literal(verifier)",
            "password=sql.Literal(password)",
            "test_names_are_whole_uuids_and_passwords_stay_out_of_the_log",
        ),
        (
            "postgres: a role that was there before",
            "if not identity.is_our_role(state.role, manifest):",
            "if False:",
            "test_provision_takes_over_nothing_that_existed_before[role]",
        ),
    ),
    *cut(
        PG,
        "def _create_database(",
        CREATE,
        (
            "postgres: closed to the public",
            'session.execute("REVOKE ALL ON DATABASE {name} FROM PUBLIC", name=new)',
            "pass",
            "test_a_customer_cannot_enter_a_neighbours_database",
        ),
        (
            "postgres: a database that was there before",
            "if not identity.is_ours(named, manifest):",
            "if False:",
            "test_provision_takes_over_nothing_that_existed_before[database]",
        ),
    ),
    *cut(
        PG,
        "def _must_bear_no_other_mark(",
        CREATE,
        (
            "postgres: another resource's mark",
            'if "deprovisioner gen=" in comment and not comment.endswith(own):',
            "if False:",
            "TestAdoption::test_what_belongs_to_another_resource_cannot_be_adopted",
        ),
    ),
    *cut(
        "worker/backends/postgres/check.py",
        "",
        "tests/worker/backends/postgres/test_check.py",
        (
            "postgres: the check finds open databases",
            "right_.privilege_type = 'CONNECT'",
            "false",
            "test_each_thing_that_is_wrong_is_found_and_its_statement_mends_it[18-an open door]",
        ),
        (
            "postgres: the check finds powerful memberships",
            "(rolname = ANY(%s) OR rolsuper)",
            "rolname = ANY(%s)",
            "test_each_thing_that_is_wrong_is_found_and_its_statement_mends_it[18-a member of a superuser]",
        ),
        (
            "postgres: the check finds slots that the role may not use",
            "    elif not may_use:",
            "    elif False:",
            "test_customers_can_take_every_slot_where_none_is_reserved_or_the_role_may_not_use_it",
        ),
        (
            "postgres: the check finds unsafe settings",
            "        if value != wanted:",
            "        if False:",
            "test_settings_under_which_data_is_lost_are_found_unless_the_server_is_a_throw_away[18]",
        ),
    ),
)
