"""The guards of one job from top to bottom, and of the hands that hold it."""

from tests.mutations.cut import cut

RUNNER = "worker/runner.py"
HANDS = "worker/hands.py"
RUNS = "tests/worker/test_runner.py"
HOLDS = "tests/worker/test_hands.py"

GUARDS_OF_RUNNER = (
    *cut(
        RUNNER,
        "",
        RUNS,
        (
            "run: contended",
            "if self.claim.contended:",
            "if False:",
            "test_a_teardown_does_not_look_while_the_birth_is_still_running",
        ),
        (
            "run: a shared statement may leave one out",
            "(claim.id, claim.fence) in done or None",
            "True",
            "test_a_stale_claim_among_those_that_share_a_statement_does_nothing",
        ),
        (
            "run: a shared statement tells claims of one job apart",
            "(claim.id, claim.fence) in done or None",
            "claim.id in {id for id, _ in done} or None",
            "test_an_old_claim_and_a_new_one_of_the_same_job_in_one_statement_are_told_apart",
        ),
        (
            "run: a shared statement waits for no row",
            "waits=False",
            "waits=True",
            "test_a_resource_that_somebody_holds_keeps_no_other_job_waiting",
        ),
        (
            "run: start is recorded",
            "self._record(jobs.start, seen=before)",
            "pass",
            "test_the_straight_way_is_claim_start_complete",
        ),
        (
            "run: start comes before the teardown",
            "self._start(before)",
            "self.backend.teardown(self.claim.manifest, self.claim.fence); self._start(before)",
            "test_a_stale_claim_does_nothing_at_all",
        ),
        (
            "run: started is remembered",
            "seen=before)\n        self.started = True",
            "seen=before)",
            "test_a_backend_that_dies_inside_the_teardown_costs_an_attempt",
        ),
        (
            "run: the look after the teardown",
            "match self.backend.inspect(self.claim.manifest):",
            "match Absent({}):",
            "test_what_is_still_there_after_the_teardown_is_retried",
        ),
        (
            "run: different after the teardown",
            "return self._stick(StuckReason.REFUSED, why, seen)\n            case Same(seen=seen):",
            "return self._complete(seen)\n            case Same(seen=seen):",
            "test_what_is_different_after_the_teardown_is_stuck",
        ),
        (
            "run: different before it",
            "return self._stick(StuckReason.REFUSED, why, seen)\n            case Same(seen=before):",
            "return self._complete(seen)\n            case Same(seen=before):",
            "test_what_is_different_is_stuck_and_never_started",
        ),
        (
            "run: only an adoption may be nobody's",
            "if self.claim.adopted and not self.claim.activated:",
            "if not self.claim.activated:",
            "test_what_was_being_made_and_is_different_is_stuck",
        ),
        (
            "run: only an adoption that never came to be",
            "if self.claim.adopted and not self.claim.activated:",
            "if self.claim.adopted:",
            "test_an_adopted_object_of_an_active_resource_that_changed_is_stuck",
        ),
        (
            "run: outcome unknown, seen before acting",
            "if not self.backend.observable and self._in_doubt():",
            "if False:",
            "test_the_unobservable_is_not_run_again_after_a_start",
        ),
        (
            "run: forced, for earlier attempts only",
            "started is not None and (forced is None or started > forced)",
            "started is not None and forced is None",
            "test_force_is_for_what_was_done_before_it_and_not_for_its_own_attempt",
        ),
        (
            "run: outcome unknown, after a failure",
            "case _ if self.started and not self.backend.observable:",
            "case _ if False:",
            "test_a_failure_after_start_of_the_unobservable_is_a_persons",
        ),
        (
            "run: outcome unknown, at the last attempt",
            "StuckReason.OUTCOME_UNKNOWN if acted and not self.backend.observable else _SPENT",
            "_SPENT",
            "test_the_unobservable_that_dies_under_its_last_attempt_is_unknown_not_exhausted",
        ),
        (
            "run: attempts spent",
            "if self.claim.attempts >= self.claim.max_attempts:",
            "if False:",
            "test_the_last_attempt_that_fails_is_stuck",
        ),
        (
            "run: attempts of a birth spent",
            "if self.claim.attempts > self.claim.max_attempts:",
            "if False:",
            "test_a_birth_whose_workers_die_each_time_is_rolled_back",
        ),
        (
            "run: unavailable opens the breaker",
            "self._trip(text)",
            "pass",
            "test_an_unavailable_backend_defers_and_opens_its_breaker",
        ),
        (
            "run: a probe closes the breaker",
            "if not self.probed:\n            self._do(lambda session: breakers.close",
            "if False:\n            self._do(lambda session: breakers.close",
            "test_a_probe_that_finds_the_backend_closes_the_breaker",
        ),
        (
            "run: a probe that never asked is given back",
            "if not self.probed:\n            self._do(lambda session: breakers.give_back",
            "if False:\n            self._do(lambda session: breakers.give_back",
            "test_a_probe_that_never_asked_the_backend_is_given_back",
        ),
        (
            "run: a brake engages a hold",
            "self._brake(error)",
            "self._record(jobs.defer, error=text)",
            "tests/outbox/test_brakes.py::test_sixteen_workers_and_a_limit_of_fifty_make_exactly_fifty_starts_and_one_hold",
        ),
        (
            "run: what fails before its start burns nothing under a hold",
            "if not self.started and (over :=",
            "if False and (over :=",
            "tests/outbox/test_holds.py::test_what_fails_before_its_start_burns_no_attempt_under_a_hold",
        ),
        (
            "run: a held job is parked",
            "error=text, hold=error.hold_id",
            "error=text",
            "tests/outbox/test_holds.py::test_a_tenant_s_jobs_are_parked_under_its_hold_and_woken_by_its_release",
        ),
        (
            "run: an unexpected error tells no secret",
            'str(error) if told else f"unexpected {type(error).__name__}: the worker\'s log has it"',
            "str(error)",
            "test_any_other_failure_is_retried_where_the_effect_can_be_observed",
        ),
        (
            "run: late news of a teardown",
            'self._record(jobs.note_late, news={"completed": seen, "did": did})',
            "pass",
            "test_late_news_is_kept_and_not_applied",
        ),
        (
            "run: late news of a birth",
            'self._record(jobs.note_late, news={"provisioned": self.making})',
            "pass",
            "test_a_birth_that_comes_late_undoes_itself",
        ),
        (
            "run: a late birth is undone",
            "self._undo(self.making)",
            "pass",
            "test_a_birth_that_comes_late_undoes_itself",
        ),
        (
            "run: a late birth, only of what is deleted",
            "resource.status in (ResourceStatus.DELETING, ResourceStatus.DELETED) and not",
            "not",
            "test_a_birth_that_comes_late_leaves_what_another_attempt_made_active",
        ),
        (
            "run: a late birth, deleting too",
            "(ResourceStatus.DELETING, ResourceStatus.DELETED)",
            "(ResourceStatus.DELETED,)",
            "test_a_birth_that_comes_late_while_its_resource_is_being_deleted_undoes_itself_too",
        ),
        (
            "run: a late birth whose answer was lost",
            "            self.making = planned\n",
            "",
            "test_a_birth_that_comes_late_undoes_itself",
        ),
        (
            "run: a late adoption destroys nothing",
            " and not self.claim.adopted:\n            self._undo(",
            ":\n            self._undo(",
            "test_an_adoption_that_comes_late_destroys_nothing",
        ),
    ),
    *cut(
        HANDS,
        "",
        HOLDS,
        (
            "hands: claims go on behind one another",
            "passed=self._passed",
            "passed={}",
            "test_what_is_put_in_front_of_a_full_row_of_claims_is_found_by_the_next_sweep",
        ),
        (
            "hands: a sweep looks at the front",
            "self._from_front = True",
            "self._from_front = False",
            "test_what_is_put_in_front_of_a_full_row_of_claims_is_found_by_the_next_sweep",
        ),
        (
            "hands: a sweep is not undone by a claim under way",
            "self._from_front = True",
            "self._passed = {}",
            "test_a_claim_that_was_under_way_at_a_sweep_keeps_no_later_one_from_the_front",
        ),
        (
            "hands: a claim that comes short is followed by one from the front",
            "                or unseen\n",
            "",
            "test_a_bell_for_what_was_put_in_front_of_a_full_row_of_claims_waits_for_no_sweep",
        ),
        (
            "hands: heartbeat",
            "kept = jobs.heartbeat(session, claims)",
            "kept = {c.id for c in claims}",
            "test_a_long_teardown_keeps_its_lease",
        ),
        (
            "hands: concurrency of a backend",
            ", self._served[name].concurrency - held[name])",
            ")",
            "test_no_backend_gets_more_hands_than_its_concurrency",
        ),
        (
            "hands: a hand for the others",
            "min(slots, most - held[name], ",
            "min(slots, ",
            "test_a_backend_that_does_not_answer_leaves_a_hand_for_the_others",
        ),
        (
            "hands: slots",
            "return self._slots - len(self._running) - len(self._looking)",
            "return self._slots",
            "test_no_more_is_claimed_than_hands_are_free",
        ),
        (
            "hands: stopped",
            "while self._more and not self._stopping.is_set():",
            "while self._more:",
            "test_hands_that_were_stopped_claim_nothing",
        ),
        (
            "hands: a claim whose answer was lost",
            "if time.monotonic() > self._doubt_until:",
            "if True:",
            "test_a_claim_whose_answer_was_lost_is_taken_up_at_the_next_look",
        ),
        (
            "hands: a sweep's steps fail each for itself",
            "more = self._guarded(lambda: self._ask(step, **words)) or 0",
            "more = self._ask(step, **words)",
            "tests/worker/test_hands.py::test_a_step_of_a_sweep_that_fails_keeps_no_other_from_being_done",
        ),
        (
            "hands: sweep",
            "lost = self._step(jobs.sweep, actor=self._worker)",
            "lost = 0",
            "test_a_sweep_puts_back_and_expires",
        ),
        (
            "hands: expire",
            "expired = self._step(jobs.expire, actor=self._worker)",
            "expired = 0",
            "test_a_sweep_puts_back_and_expires",
        ),
    ),
    *cut(
        "worker/app.py",
        "",
        "tests/acceptance/test_name_reuse.py",
        (
            "worker: the control database is protected",
            "frozenset(name for name in (db.control_url().database,) if name)",
            "frozenset()",
            "test_the_control_database_is_never_adopted",
        ),
    ),
)
