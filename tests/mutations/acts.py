"""The guards of acts that are no job's: each has its event, in its chain, once."""

from tests.mutations.cut import cut

TESTS = "tests/outbox/test_acts.py"

_HOLD = "test_a_hold_and_its_release_are_two_events_of_the_installation"
_TOKEN = "test_a_token_s_events_have_its_name_and_never_its_secret"
_CHANGE = "test_a_change_is_an_event_of_its_resource_with_what_was_and_what_is"
_OPERATION = "test_an_operation_s_begin_and_stop_are_two_events_of_the_installation"
_REFUSED = "test_an_act_that_is_refused_writes_no_event_and_no_identity"

GUARDS_OF_ACTS = (
    *cut(
        "outbox/acts.py",
        "",
        TESTS,
        ("acts: one installation", "DO UPDATE SET one = installation.one", "DO NOTHING", _HOLD),
        ("acts: only what was done", "SELECT true FROM {act}", "SELECT true", _REFUSED),
    ),
    *cut("outbox/holds.py", "_ENGAGE = text(", TESTS, ("acts: a hold", ", {_ENGAGED}", "", _HOLD)),
    *cut(
        "outbox/holds.py",
        "_ENGAGE_BRAKE = text(",
        TESTS,
        (
            "acts: a brake's hold",
            ", {_ENGAGED}",
            "",
            "test_a_brake_s_hold_is_one_event_however_many_workers_hit_the_brake",
        ),
    ),
    *cut("outbox/holds.py", "_RELEASE = text(", TESTS, ("acts: a release", ", {_RELEASED}", "", _HOLD)),
    *cut(
        "outbox/tokens.py",
        "_CREATE = text(",
        TESTS,
        ("acts: a token", ', {_noted("created", Event.TOKEN_CREATED)}', "", _TOKEN),
    ),
    *cut(
        "outbox/tokens.py",
        "_REVOKE = text(",
        TESTS,
        ("acts: a revocation", ', {_noted("revoked", Event.TOKEN_REVOKED)}', "", _TOKEN),
        (
            "acts: revoked once",
            " AND revoked_at IS NULL",
            "",
            "test_a_token_that_is_revoked_again_stays_as_it_is_without_an_event",
        ),
    ),
    *cut(
        "outbox/tokens.py",
        "def _noted(",
        TESTS,
        (
            "acts: a token without its digest",
            "'tenant', tenant)",
            "'tenant', tenant, 'digest', (SELECT encode(max(digest), 'hex') FROM tokens))",
            _TOKEN,
        ),
    ),
    *cut(
        "outbox/resources.py",
        "_CHANGE = text(",
        TESTS,
        ("acts: a change", "WHERE old.value <> new.value", "WHERE false", _CHANGE),
        ("acts: only what differs", "WHERE old.value <> new.value", "WHERE true", _CHANGE),
        (
            "acts: what a change found, not what it read",
            "           FOR NO KEY UPDATE\n",
            "",
            "test_a_change_that_waited_for_another_tells_what_the_other_left",
        ),
    ),
    *cut(
        "outbox/actions/resources.py",
        "",
        "tests/outbox/test_actions.py",
        (
            "acts: who changed a resource",
            "changes=changes, actor=who.actor",
            'changes=changes, actor="api"',
            "test_a_change_has_its_caller_in_its_event",
        ),
    ),
    *cut(
        "outbox/operations/selection.py",
        "_BEGIN = text(",
        TESTS,
        (
            "acts: an operation begun",
            ', {noted("begun", Event.OPERATION_BEGUN, actor="actor", reason="reason")}',
            "",
            _OPERATION,
        ),
    ),
    *cut(
        "outbox/operations/advance.py",
        "_STOP = text(",
        TESTS,
        ("acts: an operation stopped", ", {_STOPPED}", "", _OPERATION),
        (
            "acts: a stop lets others act until its items are stopped",
            "(SELECT count(*) FROM others) AS left_alone",
            "0 AS left_alone",
            "test_a_stop_of_many_items_delays_no_hold",
        ),
    ),
    *cut(
        "outbox/doctor/checks/evidence.py",
        "_WHOSE = ",
        "tests/outbox/test_doctor.py",
        (
            "doctor: the acts' chain is named",
            "{0} = (SELECT id FROM installation)",
            "false",
            "test_the_doctor_finds_rewritten_acts",
        ),
    ),
)
