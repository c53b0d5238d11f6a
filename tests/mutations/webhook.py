"""The guards of the kind `webhook`."""

from tests.mutations.cut import cut

WEBHOOK = "worker/backends/webhook"  # each mutant is of the one module in it that has its text
TESTS = "tests/worker/backends/webhook"
ANSWERS = f"{TESTS}/test_answers.py"
JOBS = f"{TESTS}/test_jobs.py"
STATUS = f"{TESTS}/test_status_urls.py"
INVENTORY = f"{TESTS}/test_inventory.py"
NOT_ITSELF = "test_an_answer_that_does_not_say_who_answers_does_not_count"
WRONG_SERVER = "test_another_provisioner_at_the_address_is_the_wrong_server"

GUARDS_OF_WEBHOOK = (
    *cut(
        WEBHOOK,
        "    def ask(",
        ANSWERS,
        (
            "webhook: who answers a question",
            "if answer.server != document.server:",
            "if False:",
            f"{NOT_ITSELF}[404 Not Found]",
        ),
        (
            "webhook: a question's answer is JSON",
            "if answer.status == 200 and answer.body is None:",
            "if False:",
            "test_a_question_s_answer_that_is_cut_off_is_none",
        ),
    ),
    *cut(
        WEBHOOK,
        "    def _judged(",
        ANSWERS,
        (
            "webhook: who answers an action",
            "if answer.server != document.server:",
            "if False:",
            f"{NOT_ITSELF}[200 OK]",
        ),
        (
            "webhook: what was sent is unknown",
            "if answer.sent:",
            "if False:",
            "test_a_provisioner_that_hangs_or_drips_is_given_up_in_bounded_time[nothing]",
        ),
    ),
    *cut(
        WEBHOOK,
        "    def _read(",
        ANSWERS,
        (
            "webhook: a capabilities document",
            "or answer.server != server",
            "or False",
            "test_a_document_that_another_server_repeats_is_none",
        ),
        (
            "webhook: the pinned identity",
            "not in (None, server)",
            "not in (self.endpoint.server, server)",
            WRONG_SERVER,
        ),
    ),
    *cut(
        WEBHOOK,
        "    def elsewhere(",
        ANSWERS,
        ("webhook: the manifest's server", "in (None, document.server)", "!= 7", WRONG_SERVER),
    ),
    *cut(
        WEBHOOK,
        "    def must_be_right(",
        INVENTORY,
        (
            "webhook: protected",
            'if manifest["external"] in self.protected:',
            "if False:",
            "test_a_protected_name_is_never_touched",
        ),
    ),
    *cut(
        WEBHOOK,
        "        until = time.monotonic() + self.endpoint.wait\n        while True:",
        JOBS,
        (
            "webhook: a lost claim acts no more",
            "            still()\n",
            "",
            "tests/worker/backends/conformance/test_webhook.py::"
            "test_a_worker_whose_claim_is_lost_neither_closes_nor_opens[quarantine]",
        ),
        (
            "webhook: asked again only while it is certain that nothing was done",
            "or not _nothing_done(answer, document) ",
            "or False ",
            "test_a_provisioner_that_answers_500_after_its_work[not observable]",
        ),
        (
            "webhook: asked again while it is certain that nothing was done",
            "if document.observable or",
            "if True or",
            "test_without_inspect_a_provisioner_that_is_busy_is_asked_again_while_that_is_certain",
        ),
    ),
    *cut(
        WEBHOOK,
        "def _key(",
        JOBS,
        (
            "webhook: one key for all attempts at a step",
            "by.job_id if by",
            "by.fence if by",
            "test_the_key_is_that_of_the_job_and_its_step_at_each_attempt_and_the_fence_rises",
        ),
    ),
    *cut(
        WEBHOOK,
        "    def _until_done(",
        STATUS,
        (
            "webhook: work that was forgotten",
            "if answer.status in ABSENT:",
            "if False:",
            "test_a_status_url_that_has_forgotten_the_work_says_nothing_of_the_object[410 Gone]",
        ),
    ),
    *cut(
        WEBHOOK,
        "def _status_url(",
        STATUS,
        (
            "webhook: no other origin",
            "if _origin(url) != _origin(accepted.url) or url.userinfo:",
            "if False:",
            "test_a_status_url_of_another_origin_is_never_asked[header-port]",
        ),
    ),
    *cut(
        WEBHOOK,
        "    def _leave_alone(",
        ANSWERS,
        (
            "webhook: Retry-After",
            "> 0:",
            "> 10**9:",
            "test_a_provisioner_that_says_when_to_come_back_is_left_alone_until_then[503 Service Unavailable]",
        ),
    ),
    *cut(
        WEBHOOK,
        "def _said(",
        ANSWERS,
        (
            "webhook: no credentials in errors",
            'said = said.replace(value, "(secret)")',
            "pass",
            "test_what_the_provisioner_repeats_of_credentials_is_in_no_error",
        ),
    ),
    *cut(
        WEBHOOK,
        "def judge(",
        ANSWERS,
        (
            "webhook: the generation",
            'ours and seen["external"]',
            'seen["external"]',
            "test_an_object_that_is_not_there_is_absent_and_another_s_is_different",
        ),
        (
            "webhook: the name",
            ' and seen["external"] == manifest["external"]',
            "",
            "test_a_200_that_does_not_show_the_manifest_s_own_object_is_not_the_same",
        ),
    ),
    *cut(
        WEBHOOK,
        "def must_not_be_listed(",
        ANSWERS,
        (
            "webhook: an absence that the list contradicts",
            "if isinstance(item, dict) and",
            "if False and",
            "test_a_404_for_what_the_provisioner_has_just_listed_is_no_absence",
        ),
    ),
    *cut(
        WEBHOOK,
        "def quarantine(",
        JOBS,
        (
            "webhook: what cannot be given back is not cut off",
            "if not provisioner.document().cuts_off:",
            "if False:",
            "test_what_cannot_be_cut_off_is_stuck_with_a_grace_and_can_be_restored[release]",
        ),
    ),
    *cut(
        WEBHOOK,
        "def _not_inspected(",
        JOBS,
        (
            "webhook: the word of this attempt's own teardown",
            'if (generation, torn_by) == (manifest.get("generation"), by):',
            "if True:",
            "test_without_inspect_the_word_of_the_teardown_is_what_a_teardown_ends_by",
        ),
    ),
    *cut(
        WEBHOOK,
        "    def observable(self)",
        JOBS,
        (
            "webhook: what can be observed",
            "return self._provisioner.document().observable",
            "return True",
            "test_a_worker_that_dies_after_the_work[not observable]",
        ),
    ),
    *cut(
        WEBHOOK,
        "def _read(",
        ANSWERS,
        (
            "webhook: bounded answers",
            "if len(read) > LARGEST:",
            "if False:",
            "test_much_garbage_is_not_read_into_memory",
        ),
    ),
    *cut(
        WEBHOOK,
        "    def end()",
        ANSWERS,
        (
            "webhook: bounded time",
            "each.shutdown(socket.SHUT_RDWR)",
            "pass",
            "test_a_provisioner_that_hangs_or_drips_is_given_up_in_bounded_time[headers]",
        ),
    ),
    *cut(
        WEBHOOK,
        "    def send(",
        ANSWERS,
        ("webhook: certificates", "verify=self._tls", "verify=False", "test_a_certificate_is_checked_with_its_name"),
        ("webhook: no proxies", "trust_env=False", "trust_env=True", "test_the_environment_s_proxies_are_not_used"),
        ("webhook: no redirects", "follow_redirects=False", "follow_redirects=True", "test_a_redirect_is_not_followed"),
    ),
    *cut(
        WEBHOOK,
        "def _listed(",
        INVENTORY,
        (
            "webhook: a list in order",
            'if str(one["generation"]) < last:',
            "if False:",
            "test_a_list_that_could_be_incomplete_is_an_error[no order]",
        ),
    ),
    *cut(
        WEBHOOK,
        "def _unverified(",
        f"{TESTS}/test_check.py",
        (
            "webhook: a forged signature is refused",
            "not in NOT_SIGNED",
            "in ()",
            "test_a_provisioner_that_verifies_no_signature_is_told[inspect]",
        ),
    ),
    *cut(
        "worker/intake.py",
        "    def observable(self)",
        JOBS,
        (
            "intake: whether it can be observed is asked behind the door",
            "with _errors():",
            "if True:",
            "tests/worker/test_intake.py::test_whether_a_backend_can_be_observed_is_asked_once_an_attempt",
        ),
    ),
    *cut(
        "worker/run/__init__.py",
        "    def __call__(",
        JOBS,
        (
            "runner: a verb knows its caller",
            "with calling(self.claim.id, self.claim.fence):",
            "if True:",
            "test_the_key_is_that_of_the_job_and_its_step_at_each_attempt_and_the_fence_rises",
        ),
    ),
)
