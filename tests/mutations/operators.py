"""The guards of what an operator does with a stuck job: looks, resolve, and what takes two."""

from tests.mutations.cut import cut

TRANSITIONS = "outbox/jobs"

RESOLVE = "tests/outbox/test_resolve.py"
MOVES = "tests/outbox/test_transitions.py"
OBSERVES = "tests/worker/test_observer.py"
CLAIMS = "tests/worker/test_claiming.py"

_NOT_JUST_GONE = "test_a_job_whose_object_was_not_just_seen_absent_is_not_resolved"
_ONE_PROPOSAL = "test_a_proposal_is_for_one_action_one_job_and_one_fence"
_TWO = "test_a_force_needs_two_operators"
_REVOKED = "test_the_proposal_of_a_revoked_operator_counts_no_more"
_ONLY_STUCK = "test_an_inspection_is_only_of_a_stuck_teardown_at_the_fence_the_operator_saw"
_TURNS = "test_an_inspection_is_taken_by_one_worker_of_its_backend_and_again_after_its_turn"
_MOVED_ON = "test_a_job_that_moved_on_is_not_inspected_and_its_inspection_is_removed"

OPERATORS = (
    *cut(
        TRANSITIONS,
        "_LOCK_JOB = f",
        RESOLVE,
        (
            "resolve: locks the resource before it reads the proof",
            " JOIN resources ON resources.id = resource_id",
            "",
            "test_a_token_revoked_while_the_second_operator_waits_for_a_lock_approves_nothing[resolve_forced-resources]",
        ),
    ),
    *cut(
        TRANSITIONS,
        "def _resolve(",
        RESOLVE,
        (
            "resolve: locks before it reads the proof",
            'return f"""{_LOCK_JOB}\n',
            'return f"""\n',
            "test_an_inspection_recorded_while_resolve_waits_for_a_lock_is_the_last_word",
        ),
        ("resolve: fence", " AND fence = :fence", "", "test_resolve_wants_the_fence_the_operator_saw"),
        (
            "resolve: state",
            " AND state = 'stuck'",
            "",
            f"{MOVES}::test_a_transition_moves_a_job_only_along_its_arrow[resolve-pending]",
        ),
        ("resolve: proof", " AND EXISTS (SELECT FROM proof)", "", _NOT_JUST_GONE),
        (
            "resolve: kind",
            "(kind = 'deprovision' AND status",
            "(status",
            "test_a_job_of_another_kind_is_not_resolved",
        ),
        (
            "resolve: resource",
            "status IN ('deleting', 'deleted')",
            "true",
            "test_a_stuck_provision_is_not_resolved_before_its_resource_is_deleted",
        ),
        (
            "resolve: resource of a teardown",
            " AND status = 'deleting'",
            "",
            "test_a_teardown_whose_resource_is_not_deleting_is_not_resolved[deleted]",
        ),
        (
            "resolve: deleted in the same statement",
            "SET status = 'deleted', purged_at = now(), credentials = NULL",
            "SET name = name",
            "test_a_job_whose_object_was_seen_absent_is_resolved_with_its_evidence",
        ),
        (
            "resolve: credentials forgotten",
            ", credentials = NULL",
            "",
            "test_a_job_whose_object_was_seen_absent_is_resolved_with_its_evidence",
        ),
        (
            "resolve: a birth deletes nothing",
            " AND job.kind = 'deprovision'",
            "",
            "test_a_stuck_provision_of_a_deleted_resource_resolves_to_cancelled_without_an_inspection[deleting]",
        ),
        (
            "resolve: event",
            "FROM job LEFT JOIN proof ON kind = 'deprovision'",
            "FROM job LEFT JOIN proof ON kind = 'deprovision' LIMIT 0",
            "test_a_job_whose_object_was_seen_absent_is_resolved_with_its_evidence",
        ),
    ),
    *cut(
        TRANSITIONS,
        '_LAST_OBSERVATION = """',
        RESOLVE,
        ("resolve: job of the look", "job_id = :id AND ", "", "test_an_inspection_of_another_job_is_no_evidence"),
        ("resolve: fence of the look", " AND fence = :fence", "", f"{_NOT_JUST_GONE}"),
        (
            "resolve: the last look",
            "ORDER BY observed_at DESC, id DESC",
            "ORDER BY observed_at, id",
            "test_only_the_latest_inspection_counts",
        ),
        ("resolve: absent", "found = 'absent' AND fresh", "fresh", _NOT_JUST_GONE),
        ("resolve: just seen", "found = 'absent' AND fresh", "found = 'absent'", _NOT_JUST_GONE),
    ),
    # -- by two
    *cut(
        TRANSITIONS,
        '_PROPOSED = f"""',
        RESOLVE,
        ("by two: another operator", "AND proposed_by <> :actor", "", _TWO),
        ("by two: an hour", " AND proposed_at > now() - :life", "", "test_a_proposal_expires_after_an_hour"),
        (
            "by two: not of a revoked token",
            '\n           AND NOT {approvals.REVOKED.format("approvals")}',
            "",
            _REVOKED,
        ),
        ("by two: action", "action = :action AND ", "", _ONE_PROPOSAL),
        ("by two: job", "job_id = :id AND ", "", _ONE_PROPOSAL),
        ("by two: fence", " AND fence = :fence AND approved_at", " AND approved_at", _ONE_PROPOSAL),
        (
            "by two: once",
            " AND approved_at IS NULL",
            "",
            "test_a_proposal_that_was_carried_out_does_not_count_again",
        ),
    ),
    *cut(
        TRANSITIONS,
        "_REDRIVE_FORCED = text(",
        RESOLVE,
        (
            "redrive by two: locks before it reads the proof",
            'f"""{_LOCK_JOB}\n',
            'f"""\n',
            "test_a_token_revoked_while_the_second_operator_waits_for_a_lock_approves_nothing[redrive_forced-outbox]",
        ),
        ("redrive by two: fence", " AND fence = :fence", "", _ONE_PROPOSAL),
        (
            "redrive by two: kind",
            " AND kind = 'deprovision'",
            "",
            "test_a_proposal_forces_only_an_unknown_outcome_whatever_has_changed",
        ),
        (
            "redrive by two: outcome unknown",
            "stuck_reason = 'outcome_unknown' AND ",
            "",
            "test_a_proposal_forces_only_an_unknown_outcome_whatever_has_changed",
        ),
        ("redrive by two: proof", "EXISTS (SELECT FROM proof)", "true", _TWO),
        (
            "redrive by two: what was answered for",
            ", forced_fence = fence",
            "",
            "tests/worker/test_run.py::test_two_operators_repeat_a_teardown_on_an_unobservable_backend_once",
        ),
    ),
    *cut(
        "outbox/approvals.py",
        "_PROPOSE = text(",
        RESOLVE,
        (
            "approvals: locks before it reads the tokens",
            "    SELECT FROM outbox WHERE id = :id FOR NO KEY UPDATE;\n",
            "",
            "test_a_token_revoked_while_a_proposal_waits_for_a_lock_makes_way_for_it",
        ),
        (
            "approvals: fence",
            "WHERE id = :id AND fence = :fence",
            "WHERE id = :id",
            "test_a_force_needs_a_stuck_job_at_the_fence_the_operator_saw",
        ),
        (
            "approvals: state",
            "ELSE state = 'stuck' END",
            "ELSE true END",
            "test_a_force_needs_a_stuck_job_at_the_fence_the_operator_saw",
        ),
        (
            "approvals: kind",
            " AND kind = 'deprovision'",
            "",
            "test_a_stuck_provision_is_not_resolved_before_its_resource_is_deleted",
        ),
        (
            "approvals: outcome unknown",
            " AND stuck_reason = 'outcome_unknown'",
            "",
            "test_only_an_unknown_outcome_is_forced_to_run_again",
        ),
        ("approvals: one stands", "(before.proposed_at <= now() - :life OR", "(true OR", _TWO),
        ("approvals: a revoked one makes way", ' OR {REVOKED.format("before")}', "", _REVOKED),
        (
            "approvals: carried out",
            "before.approved_at IS NULL\n           AND ",
            "",
            "test_a_proposal_that_was_carried_out_does_not_count_again",
        ),
        ("approvals: of a job that is stuck", " AND EXISTS (SELECT FROM job)", "", _ONE_PROPOSAL),
    ),
    *cut(
        "migrations/versions/0005_resolve.py",
        "",
        MOVES,
        *(
            (name, f'"{check}"', '"true"', f"test_the_checks_hold_whoever_writes[{name}]")
            for name, check in {
                "outbox_forced_within_fence": "forced_fence <= fence",
                "observations_found_known": "found IN ('absent', 'same', 'different', 'unavailable', 'unobservable')",
                "observations_observed_is_told": "(observed_at IS NULL) = (found IS NULL)"
                " AND (observed_at IS NULL) = (observed_by IS NULL)",
                "approvals_action_known": "action IN ('resolve', 'redrive')",
                "approvals_approved_by_somebody": "(approved_at IS NULL) = (approved_by IS NULL)",
                "approvals_by_two": "approved_by <> proposed_by",
            }.items()
        ),
    ),
    # -- looks
    *cut(
        "outbox/observations.py",
        "_ASK = text(",
        RESOLVE,
        ("looks: fence that was seen", "fence = COALESCE(:fence, fence)", "true", _ONLY_STUCK),
        ("looks: asked of the stuck", " AND state = 'stuck'", "", _ONLY_STUCK),
        ("looks: asked of a teardown", " AND kind = 'deprovision'", "", _ONLY_STUCK),
    ),
    *cut(
        "outbox/observations.py",
        "_TAKE = text(",
        RESOLVE,
        ("looks: backend", "AND outbox.backend = served.backend AND", "AND", _TURNS),
        ("looks: state", " AND state = 'stuck' AND outbox.fence = look.fence", "", _MOVED_ON),
        (
            "looks: no other running",
            "AND other.claimed_by IS NOT NULL",
            "AND false",
            "test_no_inspection_is_taken_while_another_job_of_the_resource_runs",
        ),
        (
            "looks: room",
            "LIMIT served.room",
            "",
            "test_inspections_are_taken_up_to_the_capacity_and_skip_locked_rows",
        ),
        (
            "looks: slots",
            'served.backend")}\n                LIMIT :slots',
            'served.backend")}',
            "test_inspections_are_taken_up_to_the_capacity_and_skip_locked_rows",
        ),
        (
            "looks: SKIP LOCKED",
            "LIMIT served.room\n                         FOR UPDATE OF look SKIP LOCKED",
            "LIMIT served.room\n                         FOR UPDATE OF look",
            "test_inspections_are_taken_up_to_the_capacity_and_skip_locked_rows",
        ),
        ("looks: those of who moved on go", "state <> 'stuck' OR outbox.fence <> look.fence", "false", _MOVED_ON),
    ),
    *cut(
        "outbox/observations.py",
        "_RECORD = text(",
        RESOLVE,
        ("looks: recorded of the stuck", " AND state = 'stuck'", "", _MOVED_ON),
        ("looks: recorded at its fence", " AND outbox.fence = observations.fence", "", _MOVED_ON),
        ("looks: one's own turn", " AND taken_until = :taken_until", "", _TURNS),
        ("looks: in time", " AND taken_until > now()", "", "test_an_inspection_that_took_too_long_is_not_recorded"),
        (
            "looks: event",
            "FROM job JOIN look ON job_id = job.id",
            "FROM job JOIN look ON job_id = job.id LIMIT 0",
            f"{OBSERVES}::test_an_unobservable_backend_is_not_inspected",
        ),
    ),
    *cut(
        "worker/observer.py",
        "",
        OBSERVES,
        (
            "looks: the unobservable",
            "if not asked.observable:",
            "if False:",
            "test_an_unobservable_backend_is_not_inspected",
        ),
        (
            "looks: no secret",
            'f"unexpected {type(error).__name__}: the worker\'s log has it"',
            "str(error)",
            "test_an_inspection_records_the_backends_answer_and_no_secret",
        ),
    ),
    *cut(
        "worker",
        "",
        CLAIMS,
        (
            "pool: an inspection takes a slot",
            " - len(self._inspections)",
            "",
            "test_inspections_take_only_free_slots_and_come_before_the_next_claim",
        ),
        (
            "pool: inspections at the sweep",
            "        self._state.want_inspections()\n        self._claim_anew()",
            "        self._claim_anew()",
            "test_an_inspection_is_taken_at_a_message_and_at_a_sweep",
        ),
        (
            "claiming: no inspection once stopped",
            "if self._state.stopping or not self._state.inspections_due():",
            "if not self._state.inspections_due():",
            "test_a_stopped_pool_takes_no_inspection",
        ),
    ),
    *cut(
        "outbox/doctor",
        "",
        "tests/outbox/test_doctor.py",
        *(
            (
                f"doctor: {name}",
                old,
                "true",
                "test_a_resolved_job_is_evidence_only_when_it_was_seen_gone_or_forced_by_two",
            )
            for name, old in {
                "a resolve was seen": "detail ->> 'seen' IS NOT NULL\n ",
                "a resolve was forced by two": "detail ->> 'proposed_by' <> detail ->> 'approved_by'",
            }.items()
        ),
    ),
    *cut(
        "outbox/doctor/checks/load.py",
        "",
        "tests/outbox/test_doctor.py",
        *(
            (
                f"doctor: {name}",
                old,
                cut_to,
                "test_a_half_open_breaker_is_a_warning_only_while_a_job_waits_that_could_be_its_probe",
            )
            for name, old, cut_to in (
                ("no job waits for a half-open breaker", "WHERE retry_at > now() OR EXISTS", "WHERE true OR EXISTS"),
                (
                    "a job waits for a half-open breaker",
                    "retry_at > now() OR EXISTS (SELECT",
                    "retry_at > now() AND EXISTS (SELECT",
                ),
                ("a held job is no probe", "state = 'pending' AND held_by IS NULL\n", "state = 'pending'\n"),
            )
        ),
    ),
    *cut(
        "api/v1/jobs.py",
        "",
        "tests/api/test_bad_input.py",
        *(
            (
                f"api: only operators {verb}",
                old,
                old.replace("Operator", "Anyone"),
                "test_each_wrong_request_has_its_code",
            )
            for verb, old in {
                "observe": "job_id: Number, who: Operator)",
                "resolve": "body: Resolve, who: Operator",
            }.items()
        ),
    ),
    *cut(
        "outbox/actions",
        "",
        "tests/outbox/test_actions.py",
        (
            "actions: who forces has a token",
            'if not who.actor.startswith("token:"):',
            "if False:",
            "test_only_operators_with_tokens_force_a_stuck_job[redrive]",
        ),
        (
            "actions: a forced redrive asks for the token",
            "        named_operator(who)\n    act =",
            "        pass\n    act =",
            "test_only_operators_with_tokens_force_a_stuck_job[redrive]",
        ),
        (
            "actions: a forced resolve asks for the token",
            "        named_operator(who)\n        done =",
            "        pass\n        done =",
            "test_only_operators_with_tokens_force_a_stuck_job[resolve]",
        ),
        (
            "actions: resolve inspects first",
            "        observe(edge, who, job_id, fence=fence, seconds=seconds, tell=tell)",
            "        pass",
            "test_resolve_asks_a_worker_to_inspect_the_backend_first",
        ),
        (
            "actions: a release wakes its jobs",
            "edge.ask(jobs.wake)",
            "pass",
            "test_a_release_wakes_the_jobs_that_waited_and_rings",
        ),
        (
            "actions: all stuck jobs only when it is said",
            "if every == (wanted != JobFilter(state=wanted.state)):",
            "if False:",
            "test_a_bulk_filter_says_which_jobs_or_all_and_not_both[nothing]",
        ),
    ),
    *cut(
        "deprovisioner/cli/decisions.py",
        "",
        "tests/acceptance/test_resolve.py",
        (
            "cli: only an operator's token forces",
            "return actions.operator(found)",
            "return found",
            "test_two_operators_force_over_http_and_at_the_shell[resolve-force-succeeded]",
        ),
    ),
)
