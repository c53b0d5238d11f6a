"""Who may ask, and for what."""

from tests.mutations.cut import cut

GROUND = "tests/outbox/test_ground.py"
JOBS = "tests/api/test_jobs.py"
API = "tests/api/test_bad_input.py"

_FILTERS = "test_each_filter_finds_its_jobs_newest_first_and_counts_the_same"
_PLANS = "tests/outbox/test_listing.py::test_each_page_is_read_by_an_index_and_each_count_in_one_pass"
_OWN = "test_a_tenant_lists_and_counts_only_its_own_jobs"
_NAMELESS = "test_a_tenant_reads_that_an_operator_acted_but_not_who_why_or_what_was_seen"
_WORDS = "test_text_that_is_blank_or_cannot_be_stored_is_a_usage_error"
_BYTES = "test_bytes_that_are_not_utf_8_are_refused_in_one_line"
_THEIRS = "test_another_tenants_resources_and_jobs_are_not_found"
_ROUTES, _ACTIONS = "api/v1/resources.py", "outbox/actions/resources.py"
STANDBY, PINS = "tests/api/test_standby.py", "tests/outbox/test_db.py"
_TWICE = "test_what_is_asked_again_while_the_standby_is_missing_is_not_answered_from_an_unconfirmed_commit"
_CLAIMS_NOTHING = "test_a_worker_claims_and_sweeps_nothing_while_no_standby_confirms"
_WRONG_REQUEST = "test_each_wrong_request_has_its_code"
_MEMORY = "test_a_hundred_megabytes_without_a_token_cost_the_api_no_memory"
_ARRIVES = "test_a_request_that_does_not_arrive_in_time_is_408_and_its_connection_is_closed"
_READS = "test_a_client_that_does_not_read_its_answer_loses_its_connection"
_FULL = "test_a_full_process_ends_the_connection_whose_client_was_silent_longest"
GUARDS_OF_API = (
    *cut(
        "api/door.py",
        "",
        "tests/hostile/test_door.py",
        ("door: bytes in the parser's memory", "if self._unread > MAX_HEAD_BYTES:", "if False:", _MEMORY),
        ("door: size of a head", "if size > MAX_HEAD_BYTES or len", "if len", _MEMORY),
        ("door: number of headers", " or len(self.headers) > MAX_HEADERS", "", _MEMORY),
        ("door: time to arrive", "self.loop.call_later(ARRIVAL_SECONDS, ", "self.loop.call_later(300, ", _ARRIVES),
        ("door: time to read", "self.loop.call_later(READ_SECONDS, ", "self.loop.call_later(300, ", _READS),
        ("door: a full process makes room", "if len(self.connections) > MAX_CONNECTIONS:", "if False:", _FULL),
        ("door: the longest wait ends", "next(iter(self._waiting))", "next(reversed(self._waiting))", _FULL),
    ),
    *cut(
        "api/health.py",
        "",
        "tests/hostile/test_door.py",
        (
            "readyz: no address",
            '"out of reach, or it refuses to work; the log of the API says why"',
            "repr(error.__cause__ or error)",
            "test_a_stranger_learns_no_address_user_or_name_from_a_readiness_that_is_red",
        ),
    ),
    *cut(
        "outbox/commits.py",
        "",
        STANDBY,
        (
            "commits: one that was cancelled is no success",
            "if kind is None and (",
            "if False and (",
            "test_a_start_that_no_standby_confirms_destroys_nothing[alone]",
        ),
        (
            "commits: a warning is no success",
            "self.watched.cancelled or _warned(self.watched)",
            "self.watched.cancelled",
            "test_a_wait_that_an_outsider_cancels_is_unconfirmed",
        ),
        (
            "commits: only a commit's warning",
            " or watched.info.transaction_status != TRANSACTION_STATUS_IDLE",
            "",
            "test_a_commit_s_warning_counts_in_every_language_where_standbys_are_synchronous",
        ),
        (
            "commits: a statement that is cancelled does not end meanwhile",
            "                    with watched.ending:",
            "                    if True:",
            "test_a_cancel_that_comes_late_does_not_hit_the_next_statement_of_the_connection",
        ),
        (
            "commits: a process that has just begun does not know",
            "\ndoubted.set()",
            "",
            _CLAIMS_NOTHING,
        ),
        (
            "commits: one that is not confirmed is remembered",
            "            doubted.set()\n",
            "",
            _CLAIMS_NOTHING,
        ),
        (
            "commits: the watch ends a wait without a slot",
            "                    watched.cancel()",
            "                    pass",
            "test_a_wait_ends_even_when_every_slot_of_the_server_is_taken",
        ),
    ),
    *cut(
        "worker/claiming.py",
        "",
        STANDBY,
        ("commits: a worker claims only what can be confirmed", "db.must_confirm()", "pass", _CLAIMS_NOTHING),
    ),
    *cut(
        "worker/pool.py",
        "",
        STANDBY,
        (
            "commits: a worker sweeps only what can be confirmed",
            "        db.must_confirm()\n        expired",
            "        expired",
            _CLAIMS_NOTHING,
        ),
    ),
    *cut(
        "api/health.py",
        "",
        STANDBY,
        (
            "commits: a standby that does not confirm is not ready",
            "db.must_confirm(always=True)",
            "pass",
            "test_readyz_is_red_while_another_replica_than_the_synchronous_one_is_connected",
        ),
    ),
    *cut(
        "outbox/opening.py",
        "",
        PINS,
        (
            "sessions: transaction_timeout is pinned before the first statement",
            "if self._pins or opened",
            "if True or opened",
            "test_what_role_and_database_have_set_wrong_does_not_reach_a_session[18-DATABASE]",
        ),
    ),
    *cut(
        "outbox/resources.py",
        "_REGISTERED_BEFORE = ",
        STANDBY,
        ("commits: a POST that is read back is confirmed", "{CONFIRM}", "NULL AS confirmed", _TWICE),
    ),
    *cut(
        "outbox/jobs/enqueue.py",
        "_ENQUEUED_BEFORE = ",
        STANDBY,
        ("commits: a DELETE that is read back is confirmed", "{CONFIRM}", "NULL AS confirmed", _TWICE),
    ),
    *cut(
        "outbox/db.py",
        "",
        PINS,
        (
            "pins: synchronous_commit",
            "IN ('off', 'local', 'remote_write')",
            "IN ('none')",
            "test_what_role_and_database_have_set_wrong_does_not_reach_a_session[18-ROLE]",
        ),
        (
            "pins: the search_path of the URL stays",
            "search_path={path[-1]},",
            "search_path={SEARCH_PATH},",
            "test_a_control_database_in_a_schema_that_its_url_names[18]",
        ),
    ),
    *cut(
        "api/problems.py",
        "async def _http(",
        API,
        (
            "api: the token before 404 and 405",
            "if refused := await _refused(request):",
            "if refused := None:",
            _WRONG_REQUEST,
        ),
    ),
    *cut(
        "api/deps.py",
        "async def caller(",
        API,
        ("api: nothing is given twice", "names.count(name) > 1", "names.count(name) > 9", _WRONG_REQUEST),
    ),
    *cut(
        "api/schemas/fields.py",
        "def _digits(",
        API,
        ("api: numbers in paths are digits", '"[1-9][0-9]*"', '".*"', _WRONG_REQUEST),
    ),
    *(
        mutant
        for verb, (file, block, old) in {
            "show": (
                _ROUTES,
                "def act(session: Connection) -> tuple[Resource, LoginAttempts | None]:",
                "queries.resource(session, resource_id, tenant=who.tenant)",
            ),
            "show_credentials": (
                _ACTIONS,
                "    resource, sealed =",
                "resources.find(db, resource_id, tenant=who.tenant)",
            ),
            "delete": (_ACTIONS, "    return Delete(", "        who.tenant,\n        reason,"),
            "change": (_ACTIONS, "    if {", "actor=who.actor, tenant=who.tenant"),
        }.items()
        for mutant in cut(
            file,
            block,
            API,
            (f"api: tenant at {verb}", old, old.replace("who.tenant", "None"), _THEIRS),
        )
    ),
    *cut(
        _ROUTES,
        "def list_resources(",
        API,
        (
            "api: tenant at list_resources",
            "actions.within(who, wanted.meant())",
            "wanted.meant()",
            _THEIRS,
        ),
    ),
    *cut(
        "outbox/actions/resources.py",
        "",
        API,
        (
            "api: a shared DELETE waits for no row",
            "waits=False",
            "waits=True",
            "test_a_locked_resource_delays_no_other_delete",
        ),
    ),
    *cut(
        "api/v1/jobs.py",
        "",
        API,
        (
            "api: tenant of a job",
            "queries.job_story(session, job_id, tenant=who.tenant)",
            "queries.job_story(session, job_id, tenant=None)",
            _THEIRS,
        ),
        (
            "api: tenant of jobs",
            "meant = actions.within(who, wanted.meant())\n    page",
            "meant = wanted.meant()\n    page",
            _THEIRS,
        ),
        (
            "api: tenant of counts",
            "meant = actions.within(who, wanted.meant())\n    return",
            "meant = wanted.meant()\n    return",
            f"{JOBS}::{_OWN}",
        ),
        (
            "api: few wait at once",
            "if not _seats.acquire(blocking=False):",
            "if not _seats.acquire(blocking=False) and False:",
            f"{JOBS}::test_requests_that_wait_for_an_inspection_leave_threads_for_others",
        ),
        (
            "api: who has waited makes room",
            "        _seats.release()",
            "        pass",
            f"{JOBS}::test_requests_that_wait_for_an_inspection_leave_threads_for_others",
        ),
        (
            "api: only operators redrive",
            "body: Redrive, who: Operator",
            "body: Redrive, who: Anyone",
            "test_each_wrong_request_has_its_code",
        ),
    ),
    *cut(
        "deprovisioner/cli/shell.py",
        "",
        "tests/acceptance/test_usage.py",
        ("shell: no blank words", "if not value.strip():", "if False:", f"{_WORDS}[hold set --global --reason-empty]"),
        ("shell: words that can be kept", "if not storable(value):", "if False:", _BYTES),
    ),
    *cut(
        "outbox/rows.py",
        "",
        "tests/acceptance/test_usage.py",
        ("words: no control characters", "ord(c) < 32 or ", "", f"{_WORDS}[hold set --global --reason-escape]"),
        ("words: no bytes that are no text", " or 0xD800 <= ord(c) <= 0xDFFF", "", _BYTES),
    ),
    *cut(
        "api/v1/breakers.py",
        "",
        "tests/api/test_breakers.py",
        (
            "api: only operators see breakers",
            "import Operator, ask",
            "import Anyone as Operator, ask",
            "test_open_breakers_are_listed_with_what_waits",
        ),
    ),
    *cut(
        "api/schemas",
        "",
        JOBS,
        (
            "api: no blank words",
            "if not value.strip():",
            "if False:",
            "tests/acceptance/test_usage.py::test_a_tenant_with_any_name_is_offboarded[a/b]",
        ),
    ),
    *cut(
        "outbox/actions",
        "def own_tenant(",
        API,
        (
            "api: a tenant names no other",
            "if who.tenant is not None and named not in (None, who.tenant):",
            "if False:",
            f"{JOBS}::{_OWN}",
            "test_each_wrong_request_has_its_code",
        ),
    ),
    *cut(
        "outbox/actions/resources.py",
        "",
        API,
        (
            "api: only operators adopt",
            "_refuse_adoption(who, new)\n    resources",
            "resources",
            "test_a_tenant_cannot_adopt",
        ),
        (
            "api: credentials while active",
            "if resource.status is not ResourceStatus.ACTIVE:",
            "if False:",
            "test_a_protected_resource_answers_409_until_it_is_released",
        ),
    ),
    *cut(
        "outbox/actions/caller.py",
        "def operator(",
        API,
        ("api: only operators", "if who.tenant is not None:", "if False:", "test_each_wrong_request_has_its_code"),
    ),
    *cut(
        "api/deps.py",
        "",
        API,
        (
            "api: a token is forgotten",
            "ttl=TOKEN_CACHE_SECONDS",
            "ttl=600",
            "test_a_revoked_token_opens_nothing_after_the_cache_has_forgotten_it",
        ),
    ),
    *cut(
        "outbox/tokens.py",
        "",
        GROUND,
        (
            "tokens: revoked",
            "digest AND revoked_at IS NULL",
            "digest",
            "test_a_token_is_kept_only_as_a_hash_and_ends_when_revoked",
        ),
    ),
    *cut(
        "outbox/resources.py",
        "",
        GROUND,
        (
            "resources: tenant at find",
            'WHERE id = :id AND (CAST(:tenant AS text) IS NULL OR tenant = :tenant)"""',
            'WHERE id = :id"""',
            f"{API}::{_THEIRS}",
        ),
        (
            "resources: tenant at change",
            " AND (CAST(:tenant AS text) IS NULL OR tenant = :tenant) AND status IN",
            " AND status IN",
            f"{API}::{_THEIRS}",
        ),
        (
            "resources: status at change",
            " AND status IN ('provisioning', 'active')",
            "",
            "test_protection_can_be_lifted_until_the_delete",
        ),
        (
            "resources: another body under the key",
            "if row.request_digest != request_digest:",
            "if False:",
            "test_an_idempotency_key_makes_one_resource",
        ),
    ),
    *cut(
        "outbox/queries",
        "",
        API,
        ("queries: tenant of a job", " AND (CAST(:tenant AS text) IS NULL OR resources.tenant = :tenant)", "", _THEIRS),
        (
            "queries: operators are nameless to tenants",
            "if tenant is not None:\n        events = ",
            "if False:\n        events = ",
            f"{JOBS}::{_NAMELESS}",
        ),
        (
            "queries: looks are the operators'",
            "if event.event == Event.OBSERVED",
            "if False",
            f"{JOBS}::{_NAMELESS}",
        ),
        (
            "queries: another's token is no tenant's own",
            "FROM tokens WHERE tenant = :tenant)",
            "FROM tokens WHERE :tenant <> '')",
            f"{JOBS}::{_NAMELESS}",
        ),
        ("queries: tenant of jobs", ".where(tables.resources.c.tenant == tenant)", "", _THEIRS),
        ("queries: no wildcards", "autoescape=True", "autoescape=False", f"{JOBS}::{_FILTERS}"),
        ("queries: state of a reason", "asked.append(job.state == JobState.STUCK)", "pass", _PLANS),
        (
            "queries: tenant of resources",
            'equal = ("status", "kind", "tenant", ',
            'equal = ("status", "kind", ',
            _THEIRS,
        ),
    ),
)
