"""What no session can pin, what the environment would take back, callers that wait, and homes of older versions."""

from tests.mutations.cut import cut

DOCTOR, PINS = "tests/outbox/test_doctor.py", "tests/outbox/test_db.py"
AUTHORITY = "tests/worker/backends/postgres/test_authority.py"
TURNS = "tests/api/test_turns.py"
RESTARTS = "tests/acceptance/test_up_restarts.py"
_NAMED = "test_the_doctor_names_what_is_broken_and_nothing_else"
_SETTING = "test_a_setting_that_a_pooler_dropped_is_wrong"
_VARIABLES = "test_variables_of_libpq_do_not_reach_a_session"
_TAKEN_OVER = "test_a_home_whose_workers_were_superusers_is_taken_over"

GUARDS_OF_EDGES = (
    *cut(
        "outbox/doctor/checks/server.py",
        "",
        DOCTOR,
        (
            "setting: triggers",
            "current_setting('session_replication_role') = 'origin'",
            "true",
            f"{_NAMED}[setting_wrong]",
        ),
        (
            "setting: commits",
            "current_setting('synchronous_commit') IN ('on', 'remote_apply')",
            "true",
            f"{_SETTING}[synchronous_commit-off]",
        ),
        (
            "setting: path",
            "current_setting('search_path') ~ ', ?pg_temp$'",
            "true",
            f"{_SETTING}[search_path-public]",
        ),
        ("setting: what is pinned", " UNION ALL {_PINNED})", ")", f"{_SETTING}[timezone-Japan]"),
        (
            "server: what a crash takes back",
            "WHERE current_setting(name) <> wanted",
            "WHERE false",
            f"{_NAMED}[server_unsafe]",
        ),
        (
            "server: one whose data may be lost",
            "current_setting('deprovisioner.throwaway', true) IS DISTINCT FROM 'on'",
            "true",
            "test_a_server_that_says_its_data_may_be_lost_is_not_unsafe",
        ),
    ),
    *cut(
        "outbox/db.py",
        "",
        PINS,
        (
            "sessions: time zone and dates against the environment",
            'f"{_AGAINST_VARIABLES};{_DURABLE}"',
            "_DURABLE",
            f"{_VARIABLES}[true]",
        ),
        (
            "sessions: encoding against the environment",
            '            "client_encoding": PINS["client_encoding"],',
            "           ",
            f"{_VARIABLES}[true]",
        ),
    ),
    *cut(
        "worker/backends/postgres/session.py",
        "",
        AUTHORITY,
        (
            "postgres: time zone against the environment",
            "pg_catalog.set_config('TimeZone', 'UTC', false)",
            "NULL",
            _VARIABLES,
        ),
        (
            "postgres: dates against the environment",
            "pg_catalog.set_config('DateStyle', 'ISO, MDY', false)",
            "NULL",
            _VARIABLES,
        ),
    ),
    *cut(
        "api/turns.py",
        "",
        TURNS,
        (
            "turns: one at a time for each row",
            "_turns.setdefault(row, asyncio.Lock())",
            "asyncio.Lock()",
            "test_callers_of_one_row_go_one_after_the_other",
        ),
        (
            "turns: few in all",
            '        await _acquire(_seats, "too many requests wait for locked rows; ask again")\n',
            "        await _seats.acquire() if False else None\n",
            "test_few_callers_wait_for_rows_at_once_and_the_next_one_is_busy",
        ),
        (
            "turns: a seat is given back",
            "            _seats.release()",
            "            pass",
            "test_few_callers_wait_for_rows_at_once_and_the_next_one_is_busy",
        ),
        (
            "turns: a turn is given back",
            "        turn.release()",
            "        pass",
            "test_callers_of_one_row_go_one_after_the_other",
        ),
    ),
    *cut(
        "deprovisioner/up/accounts.py",
        "SELECT pg_catalog.format('ALTER DATABASE",
        RESTARTS,
        (
            "takeover: only what bears our mark",
            "(pg_catalog.shobj_description(d.oid, 'pg_database') ~ 'deprovisioner gen=[0-9a-f-]{36}$'",
            "(d.datname NOT LIKE 'template%' AND d.datname <> 'postgres'",
            _TAKEN_OVER,
        ),
    ),
    *cut(
        "deprovisioner/up/accounts.py",
        "SELECT DISTINCT pg_catalog.format('GRANT",
        RESTARTS,
        (
            "takeover: the roles too",
            "WHERE NOT r.rolsuper AND",
            "WHERE false AND",
            _TAKEN_OVER,
        ),
    ),
)
