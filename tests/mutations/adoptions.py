"""Guards of labels, external ids and filters, and of adoption in bulk."""

from tests.mutations.cut import cut

_FILTERS = "tests/outbox/test_resource_filters.py"
_ON_POSTGRES = "tests/worker/backends/postgres/test_adopt.py"
_ON_REDIS = "tests/worker/backends/redis/test_adopt.py"
_MANY = "tests/acceptance/test_adopt_many.py"
_RELEASE = "tests/worker/test_release.py"
_OVER_HTTP = "test_external_id_and_labels_come_back_and_filter_over_http"

GUARDS_OF_ADOPTIONS = (
    *cut(
        "outbox/labels.py",
        "",
        _FILTERS,
        (
            "labels: texts",
            "not isinstance(value, str) or len(value) > LONGEST_VALUE or not storable",
            "not storable",
            _OVER_HTTP,
        ),
        ("labels: no colon in a key", ' or ":" in key', "", _OVER_HTTP),
        ("labels: at most so many", "if len(labels) > MOST:", "if False:", _OVER_HTTP),
    ),
    *cut(
        "outbox/queries/resources.py",
        "",
        _FILTERS,
        (
            "filters: labels by their index",
            """ + [column.labels != sa.text("'{}'")]""",
            "",
            "test_each_filter_reads_a_page_and_not_the_table",
        ),
        ("filters: each label", "for pair in self.labels]", "for pair in self.labels[:1]]", _OVER_HTTP),
        ("filters: not adopted", "flag if wanted else sa.not_(flag)", "flag", _OVER_HTTP),
    ),
    *cut(
        "migrations/versions/0017_adoption_at_scale.py",
        "",
        _FILTERS,
        (
            "resources_external_id",
            '"WHERE external_id IS NOT NULL AND status NOT IN',
            "\"WHERE name = '' AND status NOT IN",
            "test_an_external_id_belongs_to_one_resource_of_a_tenant_that_is_there",
        ),
        (
            "resources_labels_object",
            "jsonb_typeof(labels) = 'object'",
            "true",
            "test_the_database_itself_takes_labels_only_as_an_object",
        ),
    ),
    *cut(
        "worker/backends/postgres/adopt.py",
        "",
        _ON_POSTGRES,
        (
            "adopt on postgres: a role of several databases",
            "    if others:",
            "    if False:",
            "test_a_role_that_another_database_needs_does_not_die_with_this_one[a right on it]",
        ),
        (
            "unmark on postgres: quarantine",
            "        if _in_quarantine(state, manifest):\n",
            "        if False:\n",
            "test_a_release_takes_no_mark_off_what_is_not_the_manifests",
        ),
        (
            "unmark on postgres: not the manifest's",
            "if not is_ours or found.name != name:",
            "if False:",
            "test_a_release_takes_no_mark_off_what_is_not_the_manifests",
        ),
    ),
    *cut(
        "worker/backends/redis/adopt.py",
        "",
        _ON_REDIS,
        (
            "adopt on redis: a prefix around a lost user's",
            'known = session.server.kept(session, "prefixes", _marked_prefixes)',
            "known: list[str] = []",
            "test_a_prefix_around_one_whose_user_is_lost_is_still_taken",
        ),
        (
            "unmark on redis: a renamed user",
            "if bearers := identity.users_with(session, identity.channel(manifest)):",
            "if bearers := []:",
            "test_a_release_takes_no_mark_off_what_is_not_the_manifests",
        ),
        (
            "unmark on redis: its other channels",
            '"resetchannels", *others)',
            '"resetchannels")',
            "test_a_release_leaves_user_and_keys_as_they_were",
        ),
    ),
    *cut(
        "outbox/adoptions.py",
        "",
        _MANY,
        (
            "adopt many: an object twice",
            "if (before := first.setdefault(key, line)) != line:",
            "if (before := first.setdefault(key, line)) != before:",
            "test_a_wrong_list_is_refused_with_its_lines[twice]",
        ),
        (
            "adopt many: at most so many",
            "if len(found) + len(wrong) >= MOST:",
            "if False:",
            "test_a_list_of_any_kind_says_the_same",
        ),
        (
            "adopt many: what was inspected is what is adopted",
            "ELSE jsonb_set(asked, '{manifest}', CAST(:pinned AS jsonb)) END",
            "ELSE asked END",
            "test_what_was_made_again_since_the_preview_is_not_adopted_in_the_others_place",
        ),
        (
            "adopt many: a finding that comes late",
            "WHERE operation_id = :id AND n = :n AND inspected_at IS NULL\n     RETURNING",
            "WHERE operation_id = :id AND n = :n\n     RETURNING",
            "test_a_finding_that_comes_too_late_changes_nothing",
        ),
        (
            "adopt many: a taken object",
            "(taken_until IS NULL OR taken_until <= now())",
            "true",
            "test_what_is_out_of_reach_is_inspected_again_and_not_judged",
        ),
    ),
    *cut(
        "deprovisioner/cli/lists.py",
        "",
        _MANY,
        (
            "adopt many: a missing column",
            "missing = [column for column in needed if column not in header]",
            "missing: list[str] = []",
            "test_a_wrong_list_is_refused_with_its_lines[missing]",
        ),
    ),
    *cut(
        "outbox/operations/adopt.py",
        "",
        _MANY,
        (
            "adopt many: all inspected",
            "if seen.digest is None:",
            "if False:",
            "test_what_is_out_of_reach_is_inspected_again_and_not_judged",
        ),
        (
            "adopt many: a preview is carried out once",
            "if (first := _begun(db, preview)) is not None:",
            "if (first := None) is not None:",
            "test_an_object_that_is_refused_at_its_turn_does_not_stop_the_others",
        ),
        (
            "adopt many: the preview's digest",
            "if seen.digest != digest:",
            "if False:",
            "test_a_finding_that_comes_too_late_changes_nothing",
        ),
        (
            "adopt many: the objects that were found adoptable",
            "return item.operation_id == preview, item.outcome == ItemOutcome.ADOPTABLE",
            "return (item.operation_id == preview,)",
            "test_a_list_is_inspected_then_exactly_the_adoptable_ones_are_adopted",
        ),
        (
            "adopt many: made before",
            "if not item.made:",
            "if True:",
            "test_a_run_that_was_stopped_may_be_begun_again_and_adopts_nothing_twice",
        ),
        (
            "adopt many: one that is refused",
            "except (AlreadyManaged, ExternalIdTaken, QuotaExceeded) as error:",
            "except AlreadyManaged as error:",
            "test_an_object_that_is_refused_at_its_turn_does_not_stop_the_others",
        ),
    ),
    *cut(
        "outbox/jobs/release.py",
        "",
        _RELEASE,
        (
            "release: active",
            "WHERE id = :id AND status = 'active' AND NOT protected",
            "WHERE id = :id AND NOT protected",
            "test_only_what_is_active_and_not_protected_is_released",
        ),
        (
            "release: protected",
            "WHERE id = :id AND status = 'active' AND NOT protected",
            "WHERE id = :id AND status = 'active'",
            "test_only_what_is_active_and_not_protected_is_released",
        ),
        (
            "let_go: fence",
            "WHERE id = :id AND fence = :fence AND state = 'running'",
            "WHERE id = :id AND state = 'running'",
            "test_a_worker_that_lost_its_claim_ends_no_release",
        ),
        (
            "let_go: credentials",
            "SET status = 'released', credentials = NULL",
            "SET status = 'released'",
            "test_a_released_resource_keeps_its_evidence_and_nothing_else",
        ),
    ),
    *cut(
        "worker/run/release.py",
        "",
        _RELEASE,
        (
            "release: a stranger's object",
            "case Different(why=why) if claim.started_fence is None:",
            "case Different(why=why) if False:",
            "test_a_stranger_s_object_is_not_touched",
        ),
        (
            "release: what is gone",
            'done = {"absent": seen}',
            "done = run.backend.unmark(claim.manifest)",
            "test_what_is_gone_is_released_without_a_word_to_the_server",
        ),
    ),
)
