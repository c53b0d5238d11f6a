"""The guards of final snapshots: encryption, stores, proof, and the destruction that waits for one."""

from tests.mutations.cut import cut

STORES = "tests/worker/test_snapshot_stores.py"
TEARDOWNS = "tests/worker/test_snapshots.py"
ON_POSTGRES = "tests/worker/backends/postgres/test_snapshot.py"
ON_REDIS = "tests/worker/backends/redis/test_snapshot.py"
_CHUNKS = "test_chunks_that_are_cut_reordered_doubled_or_changed_are_noticed"
_NO_CODE = "test_no_code_of_a_customer_runs_with_the_service_s_rights[18-service]"
_BEGINS = "test_a_session_that_comes_in_as_the_dump_begins_is_ended_and_the_dump_with_it"
_DOOR = "test_a_door_that_a_dead_attempt_left_open_is_closed_and_who_came_in_is_ended"
_KEPT = "test_a_snapshot_is_kept_from_its_time_on_as_long_as_its_teardown_may_need_it"
_LEFT = "test_what_a_writer_that_was_killed_has_left_is_removed_and_a_zombie_s_object_never_appears"
_BYTE = "test_a_byte_that_changes_in_the_store_is_no_snapshot_and_destroys_nothing[-20]"
_RECORD = "test_a_record_that_the_server_does_not_take_is_no_proof[valkey9]"
_AGAIN = "test_a_restored_resource_s_snapshot_is_kept_and_its_next_teardown_takes_another"
_LOST = "test_a_claim_that_was_lost_records_no_snapshot_and_verifies_none"

GUARDS_OF_SNAPSHOTS = (
    *cut(
        "worker/snapshots/sealed.py",
        "def _nonce(",
        STORES,
        ("seal: the place of a chunk", 'place.to_bytes(11, "big")', "bytes(11)", _CHUNKS),
        ("seal: the last chunk", "bytes([last])", "bytes(1)", _CHUNKS),
    ),
    *cut(
        "worker/snapshots/stores.py",
        "",
        STORES,
        (
            "store: a name is given to what is whole",
            'partial = self._path / f"{name}{_PARTIAL}"',
            "partial = self._path / name",
            "test_an_object_is_there_once_it_is_whole[folder]",
        ),
        (
            "store: a link is not followed",
            " | os.O_EXCL",
            "",
            "test_a_link_in_the_place_of_a_new_object_is_not_followed",
        ),
        ("store: only our user reads", ", 0o600)", ", 0o644)", "test_only_the_service_s_user_can_read_a_file"),
        ("store: what a killed writer left", '(name, f"{name}{_PARTIAL}")', "(name,)", f"{_LEFT}[folder]"),
    ),
    *cut(
        "worker/snapshots/s3.py",
        "    def remove(",
        STORES,
        ("bucket: what a killed writer left", 'if upload["Key"] == place["Key"]:', "if False:", f"{_LEFT}[bucket]"),
    ),
    *cut(
        "outbox/jobs/finish.py",
        "_ADVANCE = text(",
        TEARDOWNS,
        (
            "advance: the snapshot is verified",
            "job_id = outbox.id AND verified_at IS NOT NULL",
            "job_id = outbox.id",
            "test_the_snapshot_step_ends_only_with_a_verified_snapshot",
        ),
        (
            "advance: snapshots leave slots to others",
            "THEN {LANES - 1} ELSE lane END",
            "THEN lane ELSE lane END",
            "test_snapshots_get_at_most_half_of_a_backend_s_slots",
        ),
    ),
    *cut(
        "outbox/snapshots.py",
        "",
        TEARDOWNS,
        (
            "snapshot: one is begun under a valid claim",
            "WHERE outbox.id = :job_id AND fence = :fence AND state",
            "WHERE outbox.id = :job_id AND state",
            _LOST,
        ),
        (
            "snapshot: one is verified under a valid claim",
            "AND outbox.fence = :fence AND state = 'running'",
            "AND state = 'running'",
            _LOST,
        ),
        (
            "snapshot: what was removed is not verified",
            "snapshots.id = :id AND removed_at IS NULL AND",
            "snapshots.id = :id AND",
            _LOST,
        ),
        (
            "snapshot: kept while its teardown may need it",
            "state IN ('pending', 'running', 'stuck'))",
            "false)",
            _KEPT,
        ),
        ("snapshot: its time counts", "removed_at IS NULL AND expires_at <= now()", "removed_at IS NULL", _AGAIN),
        (
            "snapshot: it is removed once",
            "WHERE id = :id AND removed_at IS NULL RETURNING",
            "WHERE id = :id RETURNING",
            _LOST,
        ),
    ),
    *cut(
        "worker/run/snapshot.py",
        "",
        TEARDOWNS,
        ("snapshot: it counts once it was restored", "restored = _prover", "restored = {} and _prover", _BYTE),
        ("snapshot: what died is removed", "        store.remove(name)\n", "", _BYTE),
        (
            "snapshot: a zombie leaves its successor's alone",
            "if earlier.fence < claim.fence:",
            "if True:",
            "test_a_zombie_removes_nothing_that_its_successor_has_stored",
        ),
        (
            "snapshot: one name a teardown",
            "{claim.id}.{claim.fence}",
            "{claim.fence}",
            _AGAIN,
        ),
        (
            "snapshot: a verified one is not taken again",
            "if earlier.verified_at is not None:",
            "if False:",
            "test_a_snapshot_that_was_verified_as_its_worker_died_is_not_taken_again",
        ),
    ),
    *cut(
        "worker/run/__init__.py",
        "    def _give_up(",
        TEARDOWNS,
        (
            "snapshot: its failure is told as such",
            "if self.started and self.claim.step is Step.SNAPSHOT:",
            "if False:",
            _BYTE,
        ),
    ),
    *cut(
        "worker/backends/postgres/contents.py",
        "",
        ON_POSTGRES,
        (
            "snapshot on postgres: rows are read by COPY alone",
            'sql.SQL("COPY {}{} TO STDOUT")',
            'sql.SQL("COPY (SELECT * FROM {}) TO STDOUT --{}")',
            _NO_CODE,
        ),
        (
            "snapshot on postgres: contents are compared",
            "self.sum = (self.sum + hash(line)) & _MASK",
            "pass",
            "test_a_value_that_changed_on_its_way_is_no_proof",
        ),
        (
            "snapshot on postgres: a missing right is told before the dump",
            "               OR NOT pg_catalog.has_table_privilege(c.oid, 'SELECT')\n",
            "",
            "test_a_right_that_is_missing_is_named_with_its_statement",
        ),
        (
            "snapshot on postgres: hidden rows are told before the dump",
            "               OR (c.relkind = 'r' AND pg_catalog.row_security_active(c.oid)))",
            "               )",
            "test_row_security_that_would_hide_rows_is_named",
        ),
    ),
    *cut(
        "worker/backends/postgres/snapshot.py",
        "",
        ON_POSTGRES,
        (
            "snapshot on postgres: a dump is restored by a role that can do nothing",
            '        "user": manifest["role"],\n        "password": password,\n',
            "",
            _NO_CODE,
        ),
        ("snapshot on postgres: who came in is ended", "        self.must_be_alone(inside, entered)\n", "", _BEGINS),
        (
            "snapshot on postgres: who was left inside is ended",
            "            self.end_others(inside.info.backend_pid)\n",
            "",
            _DOOR,
        ),
        (
            "snapshot on postgres: its door is closed again",
            "with afterwards(door.close), door",
            "with afterwards(lambda: None), door",
            "test_a_door_is_closed_again_where_no_dump_came_in",
        ),
        (
            "snapshot on postgres: what is restored is compared",
            "contents.must_be_equal(source,",
            "str.format('', source,",
            "test_a_dump_that_was_cut_is_not_equal",
        ),
        (
            "snapshot on postgres: a scratch database is dropped",
            "with afterwards(partial(_drop, server, scratch)):",
            "with afterwards(lambda: None):",
            "test_a_dump_that_was_cut_is_not_equal",
        ),
    ),
    *cut(
        "worker/backends/postgres/client.py",
        "",
        ON_POSTGRES,
        (
            "snapshot on postgres: the client is no older than the server",
            "version >= wanted and",
            "True and",
            "test_a_client_older_than_the_server_is_refused",
        ),
        (
            "snapshot on postgres: code that holds a restore up is ended",
            "if time.monotonic() - self._moved > STALL_SECONDS and not self._may_stall:",
            "if False:",
            "test_a_restore_that_a_customer_s_code_holds_up_is_ended",
        ),
    ),
    *cut(
        "worker/backends/redis/snapshot.py",
        "",
        ON_REDIS,
        (
            "snapshot on redis: a record is taken",
            "    _must_be_taken(answers[: len(batch)], batch)\n",
            "    pass\n",
            _RECORD,
        ),
        (
            "snapshot on redis: the store's records are the server's",
            'if (count, mixed) != (source["keys"], source["sum"]):',
            "if False:",
            _RECORD,
        ),
        (
            "snapshot on redis: of what is in quarantine",
            'if user is not None and "on" in user["flags"]:',
            "if False:",
            "test_a_namespace_that_is_in_use_is_not_taken[valkey9]",
        ),
        (
            "snapshot on redis: large values go alone",
            "if batch and size + (own or 0) > BATCH_BYTES:",
            "if False:",
            "test_large_values_are_fetched_one_by_one[valkey9]",
        ),
    ),
)
