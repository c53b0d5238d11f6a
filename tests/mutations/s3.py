"""The guards of a teardown on S3."""

from tests.mutations.cut import cut

S3 = "worker/backends/s3"
TESTS = "tests/worker/backends/s3"
CREATE = f"{TESTS}/test_create.py"
DESTROY = f"{TESTS}/test_destroy.py"
ERRORS = f"{TESTS}/test_errors.py"
IDENTITY = f"{TESTS}/test_identity.py"
QUARANTINE = f"{TESTS}/test_quarantine.py"

GUARDS_OF_S3 = (
    *cut(
        f"{S3}/session.py",
        "        if self.endpoint.account and",
        IDENTITY,
        (
            "s3: the expected owner",
            "if self.endpoint.account and operation not in _WITHOUT_OWNER:",
            "if False:",
            "test_every_request_for_a_bucket_names_the_owner_that_it_expects",
        ),
    ),
    *cut(
        f"{S3}/identity.py",
        "    it too, and the endpoint showed its identity after that.",
        IDENTITY,
        (
            "s3: the right endpoint",
            'if server is None or server != manifest["server"]:',
            "if False:",
            "test_a_bucket_whose_endpoint_has_moved_is_found_by_its_mark",
        ),
        (
            "s3: listed is not absent",
            "if listed:",
            "if False:",
            "test_a_bucket_that_is_listed_is_not_absent",
        ),
        (
            "s3: another account's name",
            'return Different({"bucket": bucket}, str(error))',
            "return Absent({})",
            "test_a_name_that_another_account_has_is_different",
        ),
    ),
    *cut(
        f"{S3}/create.py",
        "    if bucket in session.server.protected:",
        CREATE,
        (
            "s3: protected buckets",
            "if bucket in session.server.protected:",
            "if False:",
            "test_a_protected_bucket_and_the_service_s_own_are_neither_adopted_nor_torn_down",
        ),
    ),
    *cut(
        f"{S3}/create.py",
        "def provision(",
        CREATE,
        (
            "s3: a bucket that somebody else made",
            "raise Refused(why)",
            "pass",
            "test_a_bucket_that_somebody_made_under_the_name_is_not_taken",
        ),
    ),
    *cut(
        f"{S3}/quarantine.py",
        "def _change(",
        QUARANTINE,
        (
            "s3: the turn before the change",
            "turns.must_have(session, manifest, turn)",
            "turn = turns.current(session, manifest) or turn",
            "test_a_quarantine_that_stood_still_past_a_restore_shuts_nobody_out",
            "test_a_release_that_stood_still_past_the_end_of_its_restore_opens_nothing",
        ),
        (
            "s3: the turn after the change",
            "if now is not None and now != turn:",
            "if False:",
            "test_the_later_one_s_change_stands_where_a_worker_stood_still_at_its_very_request",
        ),
    ),
    *cut(
        f"{S3}/quarantine.py",
        "def quarantine(",
        QUARANTINE,
        (
            "s3: a quarantine that holds",
            "if not _settled(session, bucket, denied=True):",
            "if False:",
            "test_an_endpoint_that_enforces_no_policies_cannot_quarantine",
        ),
    ),
    *cut(
        f"{S3}/destroy.py",
        "def teardown(",
        DESTROY,
        (
            "s3: writers first",
            "policy.write(session, bucket, policy.for_teardown(session, bucket))",
            "pass",
            "test_customers_are_shut_out_before_the_first_object_goes",
        ),
        (
            "s3: the mark before the bucket goes",
            "if not _is_ours(session, manifest):",
            "if False:",
            "test_a_bucket_made_again_under_the_name_before_the_last_request_is_not_deleted",
        ),
        (
            "s3: a bucket that is not empty",
            'if answer.get("Code") != "BucketNotEmpty":',
            "if True:",
            "test_an_object_that_comes_before_the_last_request_is_deleted_too",
        ),
    ),
    *cut(
        f"{S3}/destroy.py",
        "        # Before each batch:",
        DESTROY,
        (
            "s3: the mark before each batch",
            "if not _is_ours(session, manifest):",
            "if False:",
            "test_a_bucket_made_again_under_the_name_between_two_batches_is_not_emptied",
        ),
    ),
    *cut(
        f"{S3}/destroy.py",
        "def _delete(",
        DESTROY,
        (
            "s3: each key's own error",
            "elif code not in _NO_VERSION:",
            "elif False:",
            "test_retention_is_refused_with_the_latest_date",
        ),
        (
            "s3: governance stays unless told",
            "if session.endpoint.bypass_governance else {}",
            "if True else {}",
            "test_governance_is_bypassed_only_where_the_dsn_says_so",
        ),
    ),
)
