"""The guards of what a place keeps of the control database."""

from tests.mutations.cut import cut

VALUE, POSTGRES, REDIS = "outbox/memory.py", "worker/backends/postgres/memory.py", "worker/backends/redis/memory.py"
RULE = "tests/outbox/test_memory.py"
KINDS = "tests/worker/backends/test_memory.py"
ON_POSTGRES = "tests/worker/backends/postgres/test_memory.py"
ON_REDIS = "tests/worker/backends/redis/test_memory.py"
INTAKE = "tests/worker/test_intake.py"
STAYS = "test_a_later_memory_stays_and_only_a_later_epoch_clears_still"
NOTES = "test_notes_are_kept_until_newer_ones_come"

GUARDS_OF_MEMORY = (
    *cut(
        VALUE,
        "    `least`: what the place had before.",
        RULE,
        ("memory: a later event stays", "earlier = same and new.event < there.event", "earlier = False", STAYS),
        ("memory: a later epoch stays", "if new.epoch < there.epoch:", "if False:", STAYS),
        (
            "memory: another event of the same number",
            "forked = same and new.event == there.event and new.hash != there.hash",
            "forked = False",
            STAYS,
        ),
        (
            "memory: still stays in its epoch",
            "silenced = same and there.still and not new.still",
            "silenced = False",
            STAYS,
        ),
        ("memory: a later epoch clears still", "silenced = same and", "silenced =", STAYS),
        ("memory: still is put on what stays", "still=there.still or new.still,", "still=there.still,", STAYS),
        ("memory: older notes", " and new.noted >= there.noted", "", NOTES),
        ("memory: notes of a database that went back", " and not (there.still or new.still)", "", NOTES),
        (
            "memory: a place that went back",
            "if least is not None and",
            "if False and least is not None and",
            "test_a_place_that_has_less_than_it_had_is_left_as_it_is",
        ),
    ),
    *cut(
        POSTGRES,
        "_KEEP = f",
        KINDS,
        (
            "memory: a later event on PostgreSQL",
            "((epoch, event) < (%(epoch)s, %(event)s) OR (epoch, event, hash) = (%(epoch)s, %(event)s, %(hash)s))",
            "true",
            "test_a_later_memory_is_returned_and_stays[postgres 18]",
        ),
        (
            "memory: still on PostgreSQL",
            "(NOT still OR %(still)s OR epoch < %(epoch)s)",
            "true",
            "test_still_stays_within_an_epoch_and_only_a_later_epoch_clears_it[postgres 18]",
        ),
        (
            "memory: a PostgreSQL that went back",
            "(epoch, event) >= (%(least_epoch)s, %(least_event)s)",
            "true",
            "test_a_place_that_has_less_than_was_kept_is_left_as_it_is[postgres 18]",
        ),
    ),
    *cut(
        POSTGRES,
        "    The session is a new one:",
        ON_POSTGRES,
        (
            "memory: the row is locked",
            ', "FOR UPDATE"',
            "",
            "test_a_write_that_is_put_on_what_stays_lowers_no_write_that_comes_meanwhile[18]",
        ),
    ),
    *cut(
        POSTGRES,
        "def recall(",
        ON_POSTGRES,
        (
            "memory: no table is nothing",
            " if _is_there(session) else None",
            "",
            "test_the_first_write_makes_the_table_however_many_workers_come_at_once[18]",
        ),
    ),
    *cut(
        POSTGRES,
        "def _read(",
        KINDS,
        (
            "memory: garbage on PostgreSQL is not nothing",
            "    except (ValueError, RecursionError) as error:\n",
            "    except (ValueError, RecursionError) as error:\n        return None\n",
            "test_garbage_is_an_error_that_says_where_it_is_and_what_to_do[postgres 18-1]",
        ),
        (
            "memory: two rows are no memory",
            "if len(rows) > 1:",
            "if False:",
            f"{ON_POSTGRES}::test_a_table_that_is_not_as_it_was_made_is_no_answer[18-two rows]",
        ),
    ),
    *cut(
        REDIS,
        '"""The later of both',
        ON_REDIS,
        (
            "memory: the mark without its key",
            "return self.key or self.mark",
            "return self.key",
            "test_a_lost_key_leaves_the_users_mark[valkey--flushed]",
        ),
        (
            "memory: the mark beside its key",
            "later = max(self.key, self.mark, key=lambda one: one.least)",
            "later = self.key",
            "test_a_key_from_an_older_dump_is_told_until_it_is_written_again[valkey]",
        ),
        (
            "memory: still on the mark alone",
            "for one in (self.key, self.mark) if",
            "for one in (self.key,) if",
            "test_a_key_from_an_older_dump_is_told_until_it_is_written_again[valkey]",
        ),
        (
            "memory: a key from an older dump's epoch",
            "self.key.event if self.key.epoch == later.epoch else 0",
            "self.key.event",
            "test_a_key_from_an_older_dump_is_told_until_it_is_written_again[valkey]",
        ),
        (
            "memory: a key from an older dump",
            "if self.key.least < self.mark.least:",
            "if False:",
            "test_a_key_from_an_older_dump_is_told_until_it_is_written_again[valkey]",
        ),
    ),
    *cut(
        REDIS,
        "def _remember(",
        KINDS,
        (
            "memory: the key is watched",
            "pipe.watch(name)",
            'pipe.watch("x")',
            "test_workers_at_once_never_lower_it[valkey-later ones]",
        ),
        (
            "memory: a full server keeps it",
            'code_of(error) == "OOM"',
            "False",
            f"{ON_REDIS}::test_a_full_server_keeps_it_so_that_a_teardown_can_make_room[valkey]",
        ),
    ),
    *cut(
        REDIS,
        "def _without_room(",
        ON_REDIS,
        (
            "memory: a replaced mark is set again",
            "left = offered(replaced, left)[0] or left",
            "pass",
            "test_a_mark_that_was_replaced_meanwhile_is_set_again_on_a_full_server[valkey]",
        ),
    ),
    *cut(
        REDIS,
        "def _find(",
        KINDS,
        (
            "memory: garbage on Redis is not nothing",
            "    except ValueError as error:\n",
            '    except ValueError as error:\n        return _Found("", None, None, None)\n',
            "test_garbage_is_an_error_that_says_where_it_is_and_what_to_do[valkey-1]",
        ),
        (
            "memory: another installation's key",
            "if key is not None and key.installation != installation:",
            "if False:",
            f"{ON_REDIS}::test_what_is_no_memory_is_an_error_and_its_statement_mends_it[valkey-another's]",
        ),
    ),
    *cut(
        REDIS,
        "def _mark(",
        ON_REDIS,
        (
            "memory: a user without a mark is not nothing",
            "if len(rules) != 1 or rules[0] is None:",
            "if not rules or rules[0] is None:\n        return None\n    if False:",
            "test_what_is_no_memory_is_an_error_and_its_statement_mends_it[valkey-a user without a mark]",
        ),
    ),
    *cut(
        REDIS,
        "def _save(",
        ON_REDIS,
        (
            "memory: the first mark is saved",
            "progress = before is not None and",
            "progress = before is None or",
            "test_a_restart_with_an_aclfile_keeps_it[valkey-a later event]",
        ),
        (
            "memory: still is saved",
            "(before.epoch, before.still) == (now.epoch, now.still)",
            "True",
            "test_a_restart_with_an_aclfile_keeps_it[valkey-still]",
        ),
    ),
    *cut(
        "outbox/doorbell/redis.py",
        "    Raises OutOfService where what is there is no memory, Unavailable",
        "tests/outbox/test_broker_memory.py",
        (
            "memory: the broker's key is watched",
            "pipe.watch(key)",
            'pipe.watch("x")',
            "test_workers_at_once_never_lower_what_the_broker_keeps",
        ),
    ),
    *cut(
        "worker/intake.py",
        "def _memory(",
        INTAKE,
        (
            "memory: what a third party says is read",
            "    if wrong:\n",
            "    if wrong:\n        return None\n",
            "test_what_is_no_memory_never_counts_as_nothing_remembered[a text]",
        ),
        (
            "memory: what a third party says of another installation",
            "wrong if read.installation == installation else",
            "wrong if True else",
            "test_what_is_no_memory_never_counts_as_nothing_remembered[another installation's]",
        ),
    ),
)
