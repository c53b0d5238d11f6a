"""The guards of the inventory by marks, and of an adoption of what it tells."""

from tests.mutations.cut import cut

PG = "worker/backends/postgres/objects.py"
ON_POSTGRES = "tests/worker/backends/postgres/test_objects.py"
REDIS = "worker/backends/redis/objects.py"
ON_REDIS = "tests/worker/backends/redis/test_objects.py"
INTAKE = "tests/worker/test_intake.py"
_STATE = "test_what_is_not_whole_is_told_as_such[18-service-{}]"
_CLOSED = "test_what_is_in_quarantine_is_told_and_not_adopted_until_it_is_released[18-service-{}]"
_ALONE = "test_a_mark_of_another_form_is_told_alone_and_joins_no_object"
_BROKEN = "test_a_reading_that_is_broken_off_raises_and_looks_never_complete"
_CHANGES = "test_a_server_that_changes_while_it_is_read_gives_no_complete_answer"
_AGAINST = "test_parts_that_contradict_each_other_are_told_as_such[valkey-{}]"
_QUARANTINE = "test_what_is_in_quarantine_is_told_and_not_adopted_until_it_is_released[valkey]"
_UNTOLD = "test_a_kind_that_does_not_tell_its_objects_has_not_told_that_there_are_none"
_STORABLE = "test_what_is_told_of_an_object_is_bounded_and_its_manifest_is_whole_or_none"

GUARDS_OF_OBJECTS = (
    *cut(
        "worker/backends/__init__.py",
        '    if not hasattr(backend, "objects")',
        INTAKE,
        (
            "objects: a kind that tells none",
            'raise Refused("this kind',
            'return iter([]) or Refused("this kind',
            _UNTOLD,
        ),
    ),
    *cut(
        "worker/intake.py",
        "def _object(",
        INTAKE,
        ("objects: a manifest that cannot be stored", "or names != one.names", "", _STORABLE),
        ("objects: a manifest is not cut", "_manifest(one.names)", "_evidence(one.names)", _STORABLE),
        ("objects: few parts", "islice(one.parts, PARTS)", "one.parts", _STORABLE),
    ),
    *cut(
        PG,
        "",
        ON_POSTGRES,
        ("objects on postgres: page by page", 'session.cursor("marked", withhold=True)', "session.cursor()", _BROKEN),
        (
            "objects on postgres: another form joins none",
            "part.generation or (part.what, part.oid)",
            'part.generation or ""',
            f"{_ALONE}[no UUID]",
        ),
    ),
    *cut(
        PG,
        "def _sole(",
        ON_POSTGRES,
        (
            "objects on postgres: none of two",
            "if len(parts) == 1 else None",
            "if parts else None",
            _STATE.format("a copied role"),
        ),
    ),
    *cut(
        PG,
        "def _contradictions(",
        ON_POSTGRES,
        ("objects on postgres: copies", ") > 1:", ") > 9:", _STATE.format("a copied database")),
        ("objects on postgres: another form", "if part.generation is None:", "if False:", f"{_ALONE}[words behind it]"),
        (
            "objects on postgres: two marks",
            "and part.since != mark(part.generation)",
            "and False",
            _STATE.format("two marks in one comment"),
        ),
        (
            "objects on postgres: a name of another generation",
            "passing[2] != part.generation",
            "False",
            _STATE.format("another's passing name"),
        ),
        (
            "objects on postgres: a name without a mark",
            "passing and part.since is None and",
            "False and",
            _STATE.format("a passing name without a mark"),
        ),
        (
            "objects on postgres: a new database has no mark yet",
            'and (passing[1], part.what) != ("new", "database")',
            "",
            _STATE.format("an unfinished database without its comment"),
        ),
    ),
    *cut(
        PG,
        "def _obstacles(",
        ON_POSTGRES,
        (
            "objects on postgres: a snapshot's copy",
            "if scratch := _SCRATCH.fullmatch(part.name):",
            "if scratch := None:",
            "test_a_snapshot_s_copy_is_told_as_one",
        ),
        (
            "objects on postgres: an unfinished database",
            'elif database.name.startswith("zz_new_"):',
            "elif False:",
            _STATE.format("an unfinished database"),
        ),
        (
            "objects on postgres: a DROP that died",
            "elif database.invalid:",
            "elif False:",
            _STATE.format("a DROP that died"),
        ),
        ("objects on postgres: quarantine", "elif quarantined:", "elif False:", _CLOSED.format("whole")),
        (
            "objects on postgres: a lost role",
            "elif role is None and",
            "elif False and",
            _STATE.format("a database alone"),
        ),
        (
            "objects on postgres: closed without a note",
            "if not part.open and",
            "if False and",
            _STATE.format("closed without a note"),
        ),
    ),
    *cut(
        PG,
        "def _quarantined(",
        ON_POSTGRES,
        (
            "objects on postgres: the notes of a quarantine",
            "return any(notes",
            "return False and any(notes",
            _CLOSED.format("the role alone"),
        ),
        (
            "objects on postgres: the name of a quarantine",
            'part.name == f"zz_del_{generation}"',
            "False",
            _STATE.format("a passing name without a mark"),
        ),
        (
            "objects on postgres: no quarantine holds what was dropped",
            " and not part.invalid",
            "",
            _STATE.format("a DROP that died"),
        ),
    ),
    *cut(
        "worker/backends/postgres/adopt.py",
        "def _in_quarantine(",
        ON_POSTGRES,
        (
            "adopt on postgres: a name of a quarantine",
            "(away is not None and identity.is_marked(away.comment, manifest))",
            "False",
            "test_an_adopted_database_in_quarantine_has_lost_its_name",
        ),
        (
            "adopt on postgres: a closed database",
            "(database is not None and notes.before(database.comment, manifest, notes.CONNECTIONS))",
            "False",
            _CLOSED.format("the database alone"),
        ),
        (
            "adopt on postgres: a closed role",
            "(state.role is not None and notes.before(state.role.comment, manifest, notes.LOGIN))",
            "False",
            _CLOSED.format("the role alone"),
        ),
    ),
    *cut(
        "worker/backends/postgres/adopt.py",
        "def _mark(",
        ON_POSTGRES,
        (
            "adopt on postgres: its own mark",
            "if not (comment and comment.endswith(ours)):",
            "if True:",
            "test_a_lost_row_s_object_is_adopted_again_by_its_mark_and_by_no_other[18-service]",
        ),
    ),
    *cut(
        REDIS,
        "",
        ON_REDIS,
        ("objects on redis: another form joins none", 'f"user {name}"', '""', f"{_ALONE}[valkey-no UUID]"),
    ),
    *cut(
        REDIS,
        "        patient.connection_pool",
        ON_REDIS,
        (
            "objects on redis: a slow list of users",
            'patient.connection_pool.connection_kwargs["socket_timeout"] = LIST_SECONDS',
            "pass",
            "test_the_list_of_users_may_take_longer_than_other_answers[valkey]",
        ),
        (
            "objects on redis: a cluster",
            'if session.info("cluster").get("cluster_enabled"):',
            "if False:",
            "test_a_cluster_s_node_is_refused[valkey]",
        ),
        (
            "objects on redis: still a primary",
            "session.must_be_primary()  # until now",
            "# until now",
            f"{_CHANGES}[valkey-a replica]",
        ),
        (
            "objects on redis: still the same server",
            "if any(_life(one) != began for one in (session, raw, patient)):",
            "if False:",
            f"{_CHANGES}[valkey-another server]",
        ),
    ),
    *cut(
        REDIS,
        "_GENERATIONS = ",
        ON_REDIS,
        (
            "objects on redis: a key that is no text",
            "kind == 'string' and",
            "kind ~= 'none' and",
            f"{_ALONE}[valkey-a list]",
        ),
        (
            "objects on redis: a long value",
            "#value <= 100 and value or ''",
            "value",
            f"{_ALONE}[valkey-a long one]",
        ),
    ),
    *cut(
        REDIS,
        "def _made_with(",
        ON_REDIS,
        (
            "objects on redis: a prefix is not guessed",
            'if f"~{prefix}*" in patterns else None',
            "",
            "test_a_user_s_prefix_is_not_guessed_once_its_key_is_gone[valkey]",
        ),
    ),
    *cut(
        REDIS,
        "def _contradictions(",
        ON_REDIS,
        ("objects on redis: copied users", "len(parts.users) > 1", "False", _AGAINST.format("a copied user")),
        ("objects on redis: copied keys", "len(parts.prefixes) > 1", "False", _AGAINST.format("a copied key")),
        ("objects on redis: two marks", "len(_marks(patterns)) > 1", "False", _AGAINST.format("two marks on one user")),
        (
            "objects on redis: a user of another prefix",
            "prefix and reached and",
            "False and",
            _AGAINST.format("a user of another prefix"),
        ),
        (
            "objects on redis: another's key",
            "prefix and generations.get(prefix, mark) != mark",
            "False",
            _AGAINST.format("another's key under its prefix"),
        ),
    ),
    *cut(
        REDIS,
        "def _obstacles(",
        ON_REDIS,
        ("objects on redis: quarantine", "elif quarantined:", "elif False:", _QUARANTINE),
        (
            "objects on redis: lost users",
            "if name is None:",
            "if False:",
            "test_lost_users_leave_keys_that_name_no_user[valkey]",
        ),
    ),
    *cut(
        "worker/backends/redis/adopt.py",
        "def _must_not_be_in_quarantine(",
        ON_REDIS,
        ("adopt on redis: quarantine", 'if SHUT in user["channels"]:', "if False:", _QUARANTINE),
    ),
)
