"""Who may take what back, or destroy it before its time; what is done once, and on which version."""

from tests.mutations.cut import cut

UNDO, AGAIN = "tests/api/test_undo.py", "tests/api/test_preconditions.py"
_CHANGED = "test_a_change_of_what_has_changed_meanwhile_is_refused_and_changes_nothing"
_WHOSE = "test_a_key_belongs_to_its_tenant_or_operator_its_verb_and_its_resource"
_OTHER = "test_a_delete_with_a_key_that_came_before_with_other_parameters_is_refused"
_ONCE = "test_a_restore_and_a_purge_with_their_keys_are_done_once"
_LESS = "test_less_than_the_least_grace_is_for_operators"
_TWO = "test_a_purge_by_two_operators_is_first_proposed"
_REFUSED = "test_what_cannot_be_restored_or_purged_says_why"
_TWICE = "test_what_is_asked_again_while_the_standby_is_missing_is_not_answered_from_an_unconfirmed_commit"
_PROOF = "test_a_purge_lets_the_destruction_begin_and_stands_in_the_proof"
_NAMELESS = "test_a_tenant_reads_that_an_operator_restored_but_not_who_or_why"
_ROUTES = "api/v1/resources.py"

GUARDS_OF_UNDO = (
    *cut(
        _ROUTES,
        "",
        UNDO,
        (
            "undo: a DELETE has no body",
            "if await request.body():",
            "if False:",
            "test_a_delete_with_a_body_is_refused_and_not_dropped",
        ),
    ),
    *cut(
        "api/v1/resources.py",
        "async def purge(",
        UNDO,
        ("undo: only operators purge", "    who: Operator,", "    who: Anyone,", _PROOF),
    ),
    *(
        mutant
        for verb, (block, old) in {
            "DELETE": ("    asked = actions.wanted_delete(", "version=if_match"),
            "PATCH": ("    changes = body.changes()", "version=if_match"),
            "restore": ("        actions.restore,", "version=if_match"),
            "purge": ("        actions.purge,", "version=if_match"),
        }.items()
        for mutant in cut(_ROUTES, block, AGAIN, (f"undo: If-Match of {verb}", old, "version=None", _CHANGED))
    ),
    *cut(
        "api/deps.py",
        "",
        AGAIN,
        (
            "undo: one If-Match",
            '("Idempotency-Key", "If-Match")',
            '("Idempotency-Key",)',
            "test_a_star_matches_what_exists_and_what_is_no_tag_is_refused",
        ),
    ),
    *cut(
        "api/schemas/fields.py",
        "",
        AGAIN,
        (
            "undo: a weak tag never matches",
            "if not tag[1] and ",
            "if ",
            "test_a_tag_that_is_no_strong_one_of_ours_never_matches",
        ),
    ),
    *cut(
        "outbox/resources.py",
        "",
        AGAIN,
        (
            "undo: the version at change",
            "\n           AND (CAST(:version AS bigint) IS NULL OR version = :version)",
            "",
            "test_of_many_changes_of_one_version_one_is_made",
        ),
        ("undo: less grace is refused", "if grace is not None and grace < least:", "if False:", f"{UNDO}::{_LESS}"),
        (
            "undo: no snapshot is refused",
            "if snapshot == SnapshotPolicy.OFF and",
            "if False and",
            f"{UNDO}::test_no_snapshot_where_one_is_required_is_for_operators",
        ),
        (
            "undo: one operator alone asks for no less",
            "if may_purge and kept.purge == settings.ONE:",
            "if may_purge:",
            f"{UNDO}::{_TWO}",
        ),
    ),
    *cut(
        "outbox/jobs/enqueue.py",
        "",
        UNDO,
        (
            "undo: one operator alone deletes with no less",
            " AND coalesce({_CONFIG} ->> 'purge', :strictest) = '{settings.ONE}')",
            ")",
            _TWO,
        ),
        (
            "undo: a snapshot that can be stored",
            " AND {_CAN_SNAPSHOT}",
            "",
            "test_a_snapshot_that_nothing_could_store_is_refused_at_once",
        ),
        (
            "undo: a key with other parameters",
            "refuse_other(row.asked, asked.reason, asked.detail)",
            "pass",
            f"{AGAIN}::{_OTHER}",
        ),
    ),
    *cut(
        "outbox/jobs/restore.py",
        "",
        AGAIN,
        ("undo: a restore's key with another reason", "refuse_other(row.asked, reason, {})", "pass", _ONCE),
        ("undo: a purge's key with another reason", "refuse_other(before.asked, reason, {})", "pass", _ONCE),
        ("undo: a purge is done once", "if before is not None:", "if False:", _ONCE),
        (
            "undo: what is read while a purge decides stays so",
            '    db.execute(_LOCK_TEARDOWN, {"ids": [resource_id]})',
            "    pass",
            "tests/outbox/test_actions.py::test_a_purge_that_waited_for_a_restore_purges_nothing",
        ),
    ),
    *cut(
        "outbox/jobs/restore.py",
        "_NOW = text(",
        "tests/api/test_standby.py",
        ("commits: a restore that is read back is confirmed", "{CONFIRM}", "NULL AS confirmed", _TWICE),
    ),
    *cut(
        "outbox/jobs/restore.py",
        "_PURGED_BEFORE = text(",
        "tests/api/test_standby.py",
        ("commits: a purge that is read back is confirmed", "{CONFIRM}", "NULL AS confirmed", _TWICE),
    ),
    *cut(
        "outbox/actions/caller.py",
        "def request_of(",
        AGAIN,
        ("undo: whose key", "[*whose, verb,", "[verb,", _WHOSE),
        ("undo: the key's verb", "verb, str(resource_id), key", "str(resource_id), key", _WHOSE),
    ),
    *cut(
        "outbox/actions",
        "",
        UNDO,
        ("undo: a tenant restores its own", "tenant=who.tenant, reason=reason", "tenant=None, reason=reason", _REFUSED),
        (
            "undo: two operators have tokens",
            "    if two:\n        named_operator(who)",
            "    if two:\n        pass",
            _TWO,
        ),
        ("undo: two purge", "two=two", "two=False", _TWO),
        (
            "undo: tenants may not purge",
            "may_purge=who.tenant is None,\n        version",
            "may_purge=True,\n        version",
            _LESS,
        ),
        (
            "undo: one of a batch for each key",
            "if first[each.request_id] is each else None",
            "",
            f"{AGAIN}::test_deletes_with_one_key_and_different_parameters_at_once_are_one_and_refusals",
        ),
    ),
    *cut(
        "outbox/queries/attempts.py",
        "",
        UNDO,
        (
            "undo: a cancel is no attempt",
            "(event for event in group if event.event == Event.CLAIMED)",
            "(event for event in group)",
            "tests/outbox/test_attempts.py::test_a_restore_ends_the_attempt_that_ran_and_is_none_itself",
            _NAMELESS,
        ),
        (
            "undo: the step of each attempt",
            "at = _ENDS_STEP.get(Event(ended.event), at) if ended else at",
            "pass",
            _PROOF,
        ),
    ),
)
