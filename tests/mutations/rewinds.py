"""A control database that went back in time: what notices it, and what keeps still then."""

from tests.mutations.cut import cut

REWINDS = "tests/outbox/test_rewinds.py"
_FILE = "outbox/rewinds.py"
_ANEW = "test_nothing_is_claimed_or_started_on_a_database_that_was_not_compared_anew"
_NEITHER = "test_nothing_expires_no_operation_goes_on_and_no_snapshot_is_removed"
_WENT_BACK = "test_a_backend_that_remembers_less_than_was_written_there_went_back_itself"
_HELD = "test_under_the_hold_of_a_rewind_no_job_is_claimed_whatever_its_kind"

_MEMORY = "tests/worker/test_memory.py"
RACES = "tests/worker/test_memory_races.py"
_SLEPT = "test_a_worker_that_slept_since_its_start_destroys_nothing_at_a_backend_that_was_told"

GUARDS_OF_REWINDS = (
    *cut(
        "worker/memory.py",
        "    def before_destroy(",
        _MEMORY,
        ("rewind: still before a destruction", "there.still or ", "", _SLEPT),
        (
            "rewind: an event that is not here before a destruction",
            " or not self._knows(there)",
            "",
            "test_an_event_that_is_not_here_is_noticed_before_a_destruction",
        ),
        (
            "rewind: a start that is not here before a destruction",
            " or not self._knows(memory)",
            "",
            "test_a_start_that_a_restore_has_lost_destroys_nothing_behind_a_later_event",
        ),
        ("rewind: the epoch before a destruction", "there.epoch > memory.epoch or ", "", _SLEPT),
        (
            "rewind: the backend before a destruction",
            "if least is not None and there.least < least:",
            "if False:",
            "test_a_backend_that_went_back_since_the_last_comparison_is_noticed_before_a_destruction",
        ),
    ),
    *cut(
        "worker/run/deprovision.py",
        "",
        _MEMORY,
        (
            "rewind: no write before destroy",
            "            if run.destroys:\n                run.keep(run.mark)\n",
            "",
            "test_the_start_of_a_destruction_is_remembered_before_it_begins",
        ),
    ),
    *cut(
        "worker/memory.py",
        "        Raises what the control database raises.",
        _MEMORY,
        (
            "rewind: this process is a place",
            "found[ITSELF] = self._seen",
            "pass",
            "test_what_this_process_has_seen_counts_although_no_place_has_it_yet",
        ),
    ),
    *cut(
        "worker/memory.py",
        "    def _remember(",
        _MEMORY,
        (
            "rewind: a kind that keeps nothing",
            "if place != BROKER and not self._backends[place].keeps_memory:",
            "if False:",
            "test_a_kind_that_keeps_nothing_has_lost_nothing",
        ),
    ),
    *cut(
        "worker/memory.py",
        "    def _keep_last(",
        RACES,
        (
            "rewind: the least that was asked for",
            "self._backends[backend].remember(last, least), least)]",
            "self._backends[backend].remember(last, least), self._kept.get(backend))]",
            "test_what_another_thread_writes_while_a_backend_answers_is_no_going_back",
        ),
    ),
    *cut(
        "worker/run/deprovision.py",
        "def _destroy(",
        RACES,
        (
            "rewind: what a destruction has made durable",
            "    run.kept(run.mark)\n",
            "",
            "test_a_destruction_that_ended_is_what_a_backend_must_not_forget",
        ),
    ),
    *cut(
        "worker/memory.py",
        "        Raises what the control database raises.",
        RACES,
        (
            "rewind: a late answer",
            "        self._conclude_late()\n",
            "",
            "test_a_late_answer_is_judged_too",
        ),
        (
            "rewind: another worker has compared",
            "if here.incarnation != self._incarnation:",
            "if False:",
            "test_jobs_are_claimed_as_soon_as_they_may_go_on",
        ),
    ),
    *cut(
        "worker/memory.py",
        "    def _conclude(",
        RACES,
        (
            "rewind: nothing was compared",
            "not (here.settled or rewinds.tells(here, found)) or ",
            "",
            "test_nothing_expires_after_a_restart_until_a_place_has_told_what_it_remembers",
        ),
        (
            "rewind: jobs that may go on",
            "        self._go_on()\n",
            "",
            "test_jobs_are_claimed_as_soon_as_they_may_go_on",
        ),
    ),
    *cut(
        "worker/memory.py",
        "        asked = {}",
        RACES,
        (
            "rewind: a place that hangs",
            "wait(asked.values(), ANSWER_SECONDS)",
            "wait(asked.values())",
            "test_a_backend_that_hangs_keeps_no_other_waiting_and_is_compared_when_it_answers",
        ),
    ),
    *cut(
        _FILE,
        "_ENGAGE = ",
        RACES,
        (
            "rewind: a verdict on another incarnation",
            ":incarnation = {INCARNATION}",
            "true",
            "test_a_verdict_on_what_is_over_holds_nothing",
        ),
    ),
    *cut(
        _FILE,
        "_HERE = ",
        RACES,
        (
            "rewind: a clock that was set back",
            "\n                         AND compared_at <= clock_timestamp()",
            "",
            "test_a_place_is_due_at_once_where_the_clock_was_set_back",
        ),
    ),
    *cut(
        _FILE,
        "def judge(",
        REWINDS,
        (
            "rewind: an event is missing",
            "known.get(memory.event) != memory.hash",
            "memory.event not in known",
            "test_an_event_that_is_another_one_here_is_a_rewind_although_the_database_is_ahead",
        ),
        (
            "rewind: no comparison",
            "elif memory.event and known.get(memory.event) != memory.hash:",
            "elif False:",
            "test_an_event_that_is_missing_here_is_a_rewind",
        ),
        (
            "rewind: a later epoch",
            "if memory.epoch > before.epoch:",
            "if False:",
            "test_a_later_epoch_is_a_rewind_and_an_earlier_one_tells_nothing",
        ),
        (
            "rewind: an earlier epoch",
            "memory.epoch >= before.epoch",
            "True",
            "test_a_later_epoch_is_a_rewind_and_an_earlier_one_tells_nothing",
        ),
        ("rewind: still", "elif memory.still:", "elif False:", "test_a_place_that_was_told_to_keep_still_is_a_rewind"),
        (
            "rewind: moved",
            "[before.moved] if before.moved else []",
            "[]",
            "test_another_server_or_database_is_a_rewind_although_nothing_is_missing",
        ),
        ("rewind: a backend behind", "and has < written", "and False", _WENT_BACK),
        (
            "rewind: a broker is never behind",
            "place != BROKER and ",
            "",
            "test_a_broker_that_forgot_everything_says_nothing",
        ),
    ),
    *cut(
        _FILE,
        "_ENGAGE = text(",
        REWINDS,
        (
            "rewind: the epoch of what was found",
            " WHERE epoch = coalesce(CAST(:epoch AS bigint), epoch)",
            "",
            "test_what_was_found_before_a_recovery_engages_nothing_after_it",
        ),
    ),
    *cut(
        _FILE,
        "_ENGAGE = text(",
        "tests/outbox/test_recovery.py",
        (
            "rewind: the epoch is locked",
            " FOR SHARE) AS same",
            ") AS same",
            "test_a_worker_that_engages_the_hold_while_a_recovery_ends_waits_for_it_and_engages_nothing",
        ),
    ),
    *cut(
        _FILE,
        "INCARNATION = ",
        REWINDS,
        (
            "rewind: the file of the table",
            ", '/',\n                          pg_relation_filenode('installation'))",
            ")",
            "test_a_dump_that_is_restored_into_its_own_database_is_not_compared[TRUNCATE installation]",
        ),
    ),
    *cut(
        "worker/memory.py",
        "            here = rewinds.here(session, self._places)",
        _MEMORY,
        (
            "rewind: a new worker asks",
            "here.settled and self._seen else",
            "here.settled else",
            "test_a_new_worker_asks_each_place_however_lately_another_one_did",
        ),
    ),
    *cut(
        _FILE,
        "def here(",
        REWINDS,
        (
            "rewind: the server's identity",
            "row.system_identifier != row.server_is",
            "False",
            "test_another_server_or_database_is_a_rewind_although_nothing_is_missing",
        ),
        (
            "rewind: the database's identity",
            "row.database_oid != row.oid_is",
            "False",
            "test_another_server_or_database_is_a_rewind_although_nothing_is_missing",
        ),
        (
            "rewind: settled",
            "row.compared_under == row.incarnation",
            "True",
            "test_a_place_is_due_when_it_was_not_compared_under_this_incarnation_or_a_minute_ago",
        ),
    ),
    *cut(
        _FILE,
        "_COMPARED = text(",
        REWINDS,
        (
            "rewind: the compared incarnation",
            "server.incarnation = :incarnation AND ",
            "",
            "test_a_database_that_was_replaced_meanwhile_is_not_called_compared",
        ),
        (
            "rewind: the compared epoch",
            " AND epoch = :epoch",
            "",
            "test_a_database_that_was_replaced_meanwhile_is_not_called_compared",
        ),
    ),
    *cut(
        _FILE,
        "_WRITTEN = text(",
        REWINDS,
        (
            "rewind: what was written rises",
            " AND (epoch IS NULL OR (epoch, event) < (:epoch, :event))",
            "",
            "test_what_was_written_is_never_lowered",
        ),
    ),
    *cut(
        "outbox/jobs/claim.py",
        "_CLAIM = prepared(",
        REWINDS,
        ("rewind: no claim", '         WHERE {rewinds.GOES_ON_AT.format("asked.backend")}\n', "", _HELD, _ANEW),
    ),
    *cut(
        "outbox/jobs/start.py",
        '_START = f"""',
        REWINDS,
        ("rewind: no start", '           AND {rewinds.GOES_ON_AT.format("outbox.backend")}\n', "", _ANEW),
    ),
    *cut(
        "outbox/jobs/expire.py",
        "_EXPIRE = text(",
        REWINDS,
        ("rewind: no expiry", "\n                   AND {rewinds.GOES_ON}", "", f"{_NEITHER}[not compared]"),
    ),
    *cut(
        "outbox/operations/advance.py",
        "_TAKE = text(",
        REWINDS,
        ("rewind: no operation", "\n       AND {rewinds.GOES_ON}", "", _NEITHER),
    ),
    *cut(
        "outbox/observations.py",
        "_TAKE = text(",
        REWINDS,
        (
            "rewind: no inspection",
            '                WHERE {rewinds.GOES_ON_AT.format("served.backend")}\n',
            "",
            "test_no_inspection_is_taken",
        ),
    ),
    *cut(
        "outbox/holds.py",
        'COVERS = """',
        REWINDS,
        (
            "rewind: the hold covers all kinds",
            "\n                    OR holds.cause IN ('rewound', 'rebind', 'retired'))",
            ")",
            "test_what_was_claimed_before_a_rewind_was_noticed_does_not_start",
        ),
    ),
    *cut(
        "outbox/holds.py",
        "_RELEASE = text(",
        REWINDS,
        ("rewind: no ordinary release", " AND cause <> 'rewound'", "", "test_an_ordinary_release_does_not_end_it"),
    ),
    *cut(
        "outbox/breakers.py",
        "",
        REWINDS,
        (
            "rewind: the breaker stays open",
            'behind_since IS NOT NULL)"\n',
            'false)"\n',
            "test_nothing_starts_at_a_backend_that_went_back_and_its_breaker_stays_open",
        ),
    ),
    *cut(
        "migrations/versions/0013_a_place_in_time.py",
        "TRIGGERS = (",
        REWINDS,
        (
            "rewind: a trigger of starts",
            "(NEW.started_fence IS DISTINCT FROM OLD.started_fence)",
            "(false)",
            "test_the_database_itself_refuses_a_start_that_does_not_look_at_holds",
        ),
        (
            "rewind: a trigger of the release",
            "(OLD.cause = 'rewound' OR NEW.cause = 'rewound')",
            "(false)",
            "test_an_ordinary_release_does_not_end_it",
        ),
        (
            "rewind: a trigger of changes",
            "UPDATE OF protected, expires_at, grace_seconds, purge_at ON",
            "UPDATE OF name ON",
            "test_after_a_rewind_no_delete_and_no_change_is_written",
        ),
        (
            "rewind: a trigger of jobs",
            "outbox_enqueue_rewound BEFORE INSERT ON outbox FOR EACH ROW",
            "outbox_enqueue_rewound BEFORE INSERT ON outbox FOR EACH ROW WHEN (false)",
            "test_after_a_rewind_no_delete_and_no_change_is_written",
        ),
    ),
)
