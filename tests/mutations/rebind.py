"""A backend whose server moved: what may be taken for an object, and what lets its manifest change."""

from tests.mutations.cut import cut

_TESTS = "tests/outbox/test_moves.py"
_LOCATED = "tests/worker/backends/test_locate.py"

GUARDS_OF_REBIND = (
    *cut(
        "outbox/jobs/rebind.py",
        "",
        _TESTS,
        (
            "rebind: the manifest as it was compared",
            "AND resources.manifest = asked.was\n",
            "\n",
            "test_a_manifest_that_changed_since_it_was_compared_is_left_and_the_hold_stays_for_the_next_run",
        ),
        (
            "rebind: a job that runs",
            """           AND NOT EXISTS (SELECT FROM outbox
                            WHERE resource_id = resources.id AND state = 'running'
                              AND lease_expires_at > clock_timestamp())
""",
            "",
            "test_a_resource_whose_job_runs_is_not_rewritten_by_the_statement_itself",
        ),
        (
            "rebind: unfinished jobs go along",
            "WHERE resource_id = resource.id AND finished_at IS NULL AND outbox.backend <> resource.backend",
            "WHERE false AND resource_id = resource.id",
            "test_a_renamed_backend_takes_its_resources_and_their_unfinished_jobs_along",
        ),
    ),
    *cut(
        "outbox/actions/backends.py",
        "",
        _TESTS,
        (
            "rebind: the digest",
            "    if now.digest != digest:\n",
            "    if False:\n",
            "test_a_set_that_is_not_the_one_of_the_dry_run_is_refused_and_nothing_is_rewritten",
        ),
        (
            "rebind: a word on the old server",
            "if now.moved and old_server is None:",
            "if False:",
            "test_without_a_word_on_the_old_server_nothing_is_rewritten",
        ),
        (
            "rebind: its hold",
            "            _quiet(edge, move.names, tell)\n",
            "",
            "test_a_rebind_waits_for_a_job_that_has_started_and_gives_up_with_nothing_rewritten",
        ),
        (
            "rebind: a server that went back",
            "if not now.keeps_memory or now.behind:",
            "if not now.keeps_memory:",
            "test_a_server_that_remembers_less_went_back_and_a_rebind_does_not_hide_that",
        ),
        (
            "rebind: what cannot be read",
            "if look.found is Found.UNAVAILABLE:",
            "if False:",
            "test_a_server_that_cannot_be_read_is_an_error_and_no_finding",
        ),
    ),
    *cut(
        "outbox/moves.py",
        "",
        _TESTS,
        (
            "rebind: the server is part of the digest",
            "json.dumps([backend, server])",
            "json.dumps([backend])",
            "test_another_server_that_shows_the_same_objects_has_another_digest",
        ),
        (
            "rebind: a hold on the old name",
            'if hold := db.execute(_HOLDS, {"before": before}).scalar_one_or_none():',
            "if hold := None:",
            "test_a_hold_on_the_old_name_is_not_left_behind",
        ),
    ),
    *cut(
        "worker/backends/postgres/locate.py",
        "",
        _LOCATED,
        (
            "postgres: locate wants the mark",
            "if identity.is_marked(one.comment, manifest)]\n    roles",
            "]\n    roles",
            "test_a_database_of_that_name_without_the_mark_differs",
        ),
        (
            "postgres: locate wants the role",
            '    yield from _sole("role", words, list(state.roles), roles, {manifest["role"], '
            "identity.dying_name(manifest)})\n",
            "",
            "test_a_database_that_came_without_its_role_differs",
        ),
        (
            "postgres: locate takes no copy",
            "elif len(marked) > 1:",
            "elif False:",
            "test_two_databases_with_one_mark_differ",
        ),
    ),
    *cut(
        "outbox/jobs/abandon.py",
        "",
        "tests/outbox/test_retire.py",
        (
            "abandon: its backend is retired",
            "           AND EXISTS (SELECT FROM holds WHERE {_RETIRED})\n     RETURNING",
            "     RETURNING",
            "test_nothing_is_abandoned_on_a_backend_that_is_not_retired",
        ),
        (
            "abandon: the second operator",
            " AND EXISTS (SELECT FROM proof)\n",
            "\n",
            "test_one_operator_alone_abandons_nothing_and_a_shell_user_is_none_of_the_two",
        ),
    ),
    *cut(
        "outbox/holds.py",
        "",
        "tests/outbox/test_retire.py",
        (
            "retire: what was abandoned stays",
            """           AND NOT (cause = 'retired'
                    AND EXISTS (SELECT FROM resources WHERE backend = subject AND status = 'abandoned'))
""",
            "",
            "test_a_backend_of_which_something_was_abandoned_stays_retired",
        ),
    ),
    *cut(
        "outbox/resources.py",
        "",
        "tests/outbox/test_retire.py",
        (
            "retire: nothing is made there",
            "           AND NOT EXISTS (SELECT FROM holds WHERE {holds.RETIRED} AND subject = :backend)\n",
            "",
            "test_a_retired_backend_makes_nothing_restores_nothing_and_shows_no_credentials",
        ),
    ),
    *cut(
        "outbox/jobs/restore.py",
        "",
        "tests/outbox/test_retire.py",
        (
            "retire: nothing is restored there",
            "           AND NOT EXISTS (SELECT FROM holds WHERE {holds.RETIRED} AND subject = resources.backend)\n",
            "",
            "test_a_retired_backend_makes_nothing_restores_nothing_and_shows_no_credentials",
        ),
    ),
    *cut(
        "outbox/actions/resources.py",
        "",
        "tests/outbox/test_retire.py",
        (
            "retire: no credentials",
            "    holds.refuse_retired(db, resource.backend)\n",
            "",
            "test_a_retired_backend_makes_nothing_restores_nothing_and_shows_no_credentials",
        ),
    ),
)
