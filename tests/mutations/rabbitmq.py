"""The guards of a teardown on RabbitMQ."""

from tests.mutations.cut import cut

RABBITMQ = "worker/backends/rabbitmq"
TESTS = "tests/worker/backends/rabbitmq"
IDENTITY = f"{TESTS}/test_identity.py"
ERRORS = f"{TESTS}/test_errors.py"
QUARANTINE = f"{TESTS}/test_quarantine.py"
DESTROY = f"{TESTS}/test_destroy.py"

GUARDS_OF_RABBITMQ = (
    *cut(
        f"{RABBITMQ}/session.py",
        "        match answer.status_code:\n            case 200 if",
        ERRORS,
        (
            "rabbitmq: a proxy's 404",
            'isinstance(found, dict) and found.get("error") == "Object Not Found" and method',
            "method",
            "test_each_answer_means_one_thing_and_no_other",
        ),
    ),
    *cut(
        f"{RABBITMQ}/session.py",
        "    for part in path:",
        IDENTITY,
        (
            "rabbitmq: a name that is the path's parent",
            '("", ".", "..")',
            '("",)',
            "test_a_name_that_a_path_cannot_say_is_refused",
        ),
    ),
    *cut(
        f"{RABBITMQ}/identity.py",
        "    here = server_id(session, nodes(session))\n    vhost,",
        IDENTITY,
        (
            "rabbitmq: another cluster",
            'manifest["server"] is not None and here != manifest["server"]',
            "False",
            "test_definitions_that_were_copied_to_another_cluster_do_not_make_it_the_right_server",
        ),
        (
            "rabbitmq: a name that bears no mark",
            "found is not None and found not in ours",
            "False",
            "test_what_matches_in_part_is_different_and_never_touched",
        ),
        (
            "rabbitmq: the mark elsewhere",
            "[] if whole else list(_bearers(session, manifest))",
            "[]",
            "test_what_matches_in_part_is_different_and_never_touched",
        ),
        (
            "rabbitmq: the same cluster until absence is said",
            "if server_id(session, nodes(session)) != here:",
            "if False:",
            f"{TESTS}/test_objects.py::test_a_server_that_is_replaced_while_it_is_read_gives_no_list",
        ),
    ),
    *cut(
        f"{RABBITMQ}/identity.py",
        '    found: list[Json] = session.need("nodes"',
        IDENTITY,
        (
            "rabbitmq: a partition",
            'if one.get("partitions")',
            "if False",
            "test_a_cluster_that_is_not_whole_is_not_believed",
        ),
        (
            "rabbitmq: a majority",
            "if 2 * len(down) >= len(found):",
            "if False:",
            "test_a_cluster_that_is_not_whole_is_not_believed",
        ),
        (
            "rabbitmq: every node",
            "if all_running and down:",
            "if False:",
            "test_a_cluster_that_is_not_whole_is_not_believed",
        ),
    ),
    *cut(
        f"{RABBITMQ}/create.py",
        "def leave(",
        f"{TESTS}/test_create.py",
        (
            "rabbitmq: the service opens no vhost",
            '    session.delete("permissions", vhost, session.server.user)',
            "    return None",
            "test_the_service_s_account_opens_no_vhost_that_it_made",
        ),
    ),
    *cut(
        f"{RABBITMQ}/turns.py",
        "        record = _ours(self._session, self._manifest)",
        QUARANTINE,
        (
            "rabbitmq: the turn",
            "if marks.turn(marks.of(record)) != self._tag:",
            "if False:",
            "test_a_worker_that_stood_still_while_another_one_took_over_changes_nothing",
        ),
    ),
    *cut(
        f"{RABBITMQ}/quarantine.py",
        "        turn = Turn(session, manifest)\n        still()\n        vhost",
        QUARANTINE,
        (
            "rabbitmq: other users of the vhost",
            '        session.put("vhost-limits", manifest["vhost"], LIMIT, value=0)\n',
            "",
            "test_every_client_is_cut_off_those_of_other_users_too_and_none_comes_back",
        ),
        (
            "rabbitmq: what other users may do",
            "        permissions.take(session, manifest, turn)\n",
            "",
            "test_nobody_changes_a_vhost_in_quarantine_by_the_management_api_nor_lifts_its_limit",
        ),
        (
            "rabbitmq: the user's password",
            "        shut_user(session, manifest, turn.user())\n",
            "",
            "test_a_customer_of_the_management_api_is_shut_out_there_too",
        ),
        (
            "rabbitmq: open connections",
            "connections.close(session, manifest)",
            "None",
            "test_every_client_is_cut_off_those_of_other_users_too_and_none_comes_back",
        ),
    ),
    *cut(
        f"{RABBITMQ}/permissions.py",
        "    kept = {",
        QUARANTINE,
        (
            "rabbitmq: a permission that a person gave meanwhile",
            "user not in have and",
            "",
            "test_nobody_changes_a_vhost_in_quarantine_by_the_management_api_nor_lifts_its_limit",
        ),
    ),
    *cut(
        f"{RABBITMQ}/create.py",
        "        vhost, opener =",
        f"{TESTS}/test_create.py",
        (
            "rabbitmq: a late provision",
            "if any(marks.note(marks.of(one)) is not None for one in (vhost, opener)):",
            "if False:",
            "test_a_provision_that_comes_late_opens_no_quarantine",
        ),
    ),
    *cut(
        f"{RABBITMQ}/destroy.py",
        '    """Whether it is there, and ours, as of now.',
        DESTROY,
        (
            "rabbitmq: whose it is, just before its deletion",
            "record is not None and not identity.is_marked(record, manifest)",
            "False",
            "test_what_takes_the_name_between_two_calls_is_not_deleted",
        ),
    ),
    *cut(
        f"{RABBITMQ}/destroy.py",
        "        for number in range(ROUNDS):",
        DESTROY,
        (
            "rabbitmq: gone when the server says so",
            "if identity.read_vhost(session, manifest) is None and identity.read_user(session, manifest) is None:",
            "if True:",
            "test_what_an_import_brings_back_meanwhile_is_deleted_again_or_told",
        ),
    ),
)
