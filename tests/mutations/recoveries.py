"""Recoveries after a rewind: what a person decides, and that nothing starts before the end."""

from tests.mutations.cut import cut

RECOVERY = "tests/outbox/test_recovery.py"
_DECIDE = "outbox/recovery/decide.py"
_ENDS = "test_a_recovery_ends_the_rewind_raises_the_epoch_and_writes_it_to_every_place"
_STILL = "test_nothing_starts_before_the_end_whatever_was_decided_already"

GUARDS_OF_RECOVERIES = (
    *cut(
        _DECIDE,
        "",
        RECOVERY,
        ("recovery: the epoch is raised", '        db.execute(_NEXT_EPOCH, {"epoch": epoch})\n', "", _ENDS),
        (
            "recovery: an epoch that a place remembers",
            "max(here.epoch, recovery.epoch_seen) + 1",
            "here.epoch + 1",
            "test_a_database_from_before_an_earlier_recovery_gets_a_later_epoch_than_any_place_remembers",
        ),
        (
            "recovery: what was left out is not compared",
            '        db.execute(_UNCOMPARED, {"places": recovery.without})\n',
            "",
            "test_nothing_starts_at_a_backend_that_was_left_out_until_it_is_compared",
        ),
        (
            "recovery: it ends once",
            "if recovery.finished_at is not None:",
            "if False:",
            "test_a_recovery_that_has_ended_ends_once_and_writes_the_places_again",
        ),
        (
            "recovery: items that wait",
            'if left := db.execute(_LEFT, {"id": id}).all():',
            "if left := []:",
            "test_a_recovery_does_not_end_while_items_wait",
        ),
    ),
    *cut(
        _DECIDE,
        "",
        RECOVERY,
        (
            "recovery: the hold is released first",
            '        rewinds.engage(db, actor=actor, reason=last.verdict or f"recovery {last.id}: {wanted.reason}")\n',
            "        noted_acts.note(db, Event.RECOVERED, actor=actor, reason=None, detail={})\n"
            "        holds.end_rewind(db, actor=actor, reason=wanted.reason)\n",
            _STILL,
        ),
        (
            "recovery: the digest",
            "    _refuse_changed(db, last)\n",
            "",
            "test_a_set_that_has_changed_since_the_survey_is_refused[a job is enqueued]",
        ),
        (
            "recovery: the last survey",
            "last.digest != wanted.digest or ",
            "",
            "test_only_the_last_survey_counts",
        ),
        (
            "recovery: gone on with as it was begun",
            "        _refuse_other_decisions(last, wanted, chosen)\n",
            "",
            "test_a_recovery_that_was_stopped_goes_on_with_the_same_decisions_and_no_others",
        ),
    ),
    *cut(
        _DECIDE,
        "",
        RECOVERY,
        (
            "recovery: a class skipped",
            "if count and name not in wanted.decisions]",
            "if False]",
            "test_each_class_with_items_needs_a_decision",
        ),
        (
            "recovery: a backend that was not read",
            "sorted(last.errors.keys() - wanted.without)",
            "[]",
            "test_a_backend_that_cannot_be_read_must_be_named_and_its_objects_are_in_no_class",
        ),
    ),
    *cut(
        _DECIDE,
        "",
        RECOVERY,
        (
            "recovery: an old survey",
            "if db.execute(_AGE, ",
            "if False and db.execute(_AGE, ",
            "test_a_survey_of_an_hour_ago_is_refused",
        ),
        ("recovery: a job that runs", "if alive is not None:", "if False:", "test_a_job_that_still_runs_is_waited_for"),
        (
            "recovery: another run of the server",
            "    if here.incarnation != last.incarnation:",
            "    if False:",
            "test_a_survey_of_another_run_of_the_server_is_refused",
        ),
    ),
    *cut(
        _DECIDE,
        "",
        RECOVERY,
        (
            "recovery: tokens are revoked",
            "if recovery.revoke_before is None:",
            "if True:",
            "test_all_tokens_from_before_a_moment_are_revoked_and_later_ones_stay",
        ),
    ),
    *cut(
        _DECIDE,
        "",
        RECOVERY,
        (
            "recovery: one at a time",
            'if not db.execute(text("SELECT pg_try_advisory_lock(:turn)"), {"turn": _TURN}).scalar_one():',
            "if False:",
            "test_of_two_recoveries_at_once_one_is_refused",
        ),
    ),
    *cut(
        "outbox/recovery/acts.py",
        "",
        RECOVERY,
        (
            "recovery: an object that is there",
            "if look.found is not Found.ABSENT:",
            "if False:",
            "test_an_active_resource_whose_absence_an_inspection_does_not_show_stays[same]",
        ),
    ),
    *cut(
        "outbox/recovery/acts.py",
        "",
        RECOVERY,
        (
            "recovery: what cannot be taken back",
            "_set_aside(db, by, rest) if rest else set()",
            "set()",
            "test_a_teardown_whose_destruction_had_started_cannot_be_cancelled_and_is_set_aside",
        ),
    ),
    *cut(
        "outbox/recovery/acts.py",
        "",
        RECOVERY,
        (
            "recovery: an object that was made since",
            'item.detail["there"] or ',
            "",
            "test_a_provision_whose_object_is_there_is_not_rolled_back",
        ),
    ),
    *cut(
        "outbox/recovery/survey.py",
        "",
        RECOVERY,
        (
            "recovery: notes that are here",
            "if key[:2] not in known]",
            "if True]",
            "test_a_note_of_an_event_that_this_database_has_is_no_finding",
        ),
    ),
    *cut(
        "outbox/jobs/recovery.py",
        "_SET_ASIDE = text(",
        "tests/outbox/test_transitions.py",
        (
            "set_aside: lease",
            " AND lease_expires_at < clock_timestamp())",
            ")",
            "test_a_running_job_with_a_live_lease_is_not_set_aside",
        ),
        ("set_aside: fence", " AND outbox.fence = listed.fence", "", "test_a_job_at_another_fence_is_not_set_aside"),
    ),
    *cut(
        "outbox/jobs/recovery.py",
        "_CLOSE = text(",
        "tests/outbox/test_transitions.py",
        (
            "close: status",
            " AND status = 'active'",
            "",
            "test_only_an_active_resource_is_closed[provisioning]",
        ),
        (
            "close: a job of it",
            "AND state IN ('pending', 'running', 'stuck')",
            "AND false",
            "test_an_active_resource_with_a_job_that_is_not_done_is_not_closed",
        ),
    ),
    *cut(
        "outbox/resources.py",
        "_REGISTER = text(",
        RECOVERY,
        (
            "register: the generation of what is deleted",
            ":again OR ",
            "true OR ",
            "test_an_object_is_adopted_again_by_a_recovery_alone",
        ),
    ),
)
