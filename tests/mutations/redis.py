"""The guards of a teardown on Redis and Valkey."""

from tests.mutations.cut import cut

REDIS = "worker/backends/redis.py"
ON_REDIS = "tests/worker/test_redis.py"
KINDS = "tests/worker/test_conformance.py"

GUARDS_OF_REDIS = (
    *cut(
        REDIS,
        "",
        ON_REDIS,
        *(
            (f"redis: a customer may not {what}", old, new, "test_a_customer_reaches_its_own_keys_and_nothing_else")
            for what, old, new in (
                ("reach others' keys", "f\"~{_escape(manifest['prefix'])}*\", *COMMANDS", '"~*", *COMMANDS'),
                ("scan", '("-scan", ', "("),
                ("draw keys", '"-randomkey", ', ""),
                ("count keys", '"-dbsize"', '"+dbsize"'),
                ("do what is dangerous", '"-@dangerous", ', ""),
                ("touch shared functions", '"-function", ', ""),
            )
        ),
    ),
    *cut(
        REDIS,
        "    def _judge(",
        ON_REDIS,
        (
            "redis: server mark",
            'if manifest.get("server") not in (None, found):',
            "if False:",
            f"{KINDS}::test_the_wrong_server_is_refused[redis]",
        ),
        (
            "redis: generation key",
            'if generation not in (None, manifest["generation"]):',
            "if False:",
            "test_a_foreign_generation_key_is_refused_and_its_data_untouched",
        ),
        (
            "redis: mark of the user",
            "if user is not None and not ours:",
            "if False:",
            "test_a_user_made_again_under_the_name_is_untouched",
        ),
        (
            "redis: keys that bear no generation",
            "if stray := next(self._keys(server, manifest), None):",
            "if stray := None:",
            "test_keys_without_user_or_generation_are_nobodys_to_delete",
        ),
    ),
    *cut(
        REDIS,
        '_UNLINK_IF_OURS = """',
        ON_REDIS,
        (
            "redis: generation compared with each unlink",
            "if generation ~= ARGV[1] then return -1 end",
            "",
            "test_the_generation_is_compared_in_the_same_breath_as_each_unlink[somebody-else]",
        ),
        (
            "redis: generation there with each unlink",
            "if not generation then return -2 end",
            "if not generation then generation = ARGV[1] end",
            "test_the_generation_is_compared_in_the_same_breath_as_each_unlink[None]",
        ),
    ),
    *cut(
        REDIS,
        "    def _quarantine(",
        ON_REDIS,
        (
            "redis: login off",
            '("ACL", "SETUSER", manifest["user"], "off"), ',
            "",
            f"{KINDS}::test_quarantine_shuts_the_customer_out_and_release_lets_it_back[redis]",
        ),
        (
            "redis: the key may not expire",
            ', ("PERSIST", _generation_key(manifest))]',
            "]",
            "test_a_generation_key_that_is_about_to_expire_does_not_leave_keys_behind",
        ),
        (
            "redis: connections are ended",
            'server.execute_command("CLIENT", "KILL", "USER", manifest["user"])',
            "pass",
            "test_a_quarantine_ends_connections_that_are_open",
        ),
        (
            "redis: a removed key is planted again",
            "if _generation(server, manifest) is None:",
            "if False:",
            "test_a_customer_that_removed_its_own_generation_key_is_still_torn_down",
        ),
    ),
    *cut(
        REDIS,
        "        Every teardown ends by removing that key: a worker that stood still cannot reach who has",
        ON_REDIS,
        (
            "redis: WATCH",
            "pipe.watch(_generation_key(manifest))",
            "pass",
            "test_a_zombie_cannot_reach_who_has_the_names_now",
        ),
        (
            "redis: identity under the WATCH",
            "if not isinstance(seen := self._judge(server, manifest), Same):",
            "if not isinstance(seen := Same({}), Same):",
            "test_a_zombie_cannot_reach_who_has_the_names_now[before]",
        ),
    ),
    *cut(
        REDIS,
        "    def release(",
        ON_REDIS,
        (
            "redis: identity at release",
            "if not isinstance(self._judge(server, manifest), Same):",
            "if False:",
            f"{KINDS}::test_another_generation_under_the_same_names_is_never_touched[redis]",
        ),
    ),
    *cut(
        REDIS,
        "    def _destroy(",
        ON_REDIS,
        (
            "redis: death is saved",
            "_save_acl(server)  #",
            "pass  #",
            "test_the_user_stays_gone_after_the_acl_file_is_loaded_again",
        ),
    ),
    *cut(
        REDIS,
        "    def _allowed(",
        ON_REDIS,
        *(
            (f"redis: {name}", guard, "if False:", f"test_a_prefix_that_reaches_further_is_refused[{case}]")
            for name, guard, case in (
                ("an empty prefix", 'if not manifest["prefix"]:', "empty"),
                (
                    "our own prefix",
                    'if manifest["prefix"].startswith(OURS) or OURS.startswith(manifest["prefix"]):',
                    "ours",
                ),
            )
        ),
        (
            "redis: protected users",
            'if manifest["user"] in self._protected:',
            "if False:",
            "test_default_is_never_adopted_or_torn_down",
        ),
    ),
    *cut(
        REDIS,
        "    def teardown(",
        ON_REDIS,
        (
            "redis: protected at teardown",
            "self._allowed(manifest)",
            "pass",
            "test_default_is_never_adopted_or_torn_down",
        ),
    ),
    *cut(
        REDIS,
        "    def quarantine(",
        ON_REDIS,
        (
            "redis: protected at quarantine",
            "self._allowed(manifest)",
            "pass",
            "test_default_is_never_adopted_or_torn_down",
        ),
    ),
    *cut(
        REDIS,
        "    def adopt(",
        ON_REDIS,
        (
            "redis: protected at adoption",
            "self._allowed(manifest)",
            "pass",
            "test_default_is_never_adopted_or_torn_down",
        ),
        (
            "redis: a prefix ends",
            'if not manifest["prefix"].endswith(":"):',
            "if False:",
            "test_a_prefix_that_reaches_further_is_refused[open]",
        ),
        (
            "redis: its own user",
            'if full["user"] == server.acl_whoami():',
            "if False:",
            "test_the_user_that_the_service_works_with_is_not_adopted",
        ),
        (
            "redis: another resource's user",
            'if any(c.startswith(_CHANNEL) and c != _channel(full) for c in user["channels"]):',
            "if False:",
            "test_another_resource_s_user_or_prefix_cannot_be_adopted[user]",
        ),
        (
            "redis: another resource's prefix",
            'if not planted and _generation(server, full) != full["generation"]:',
            "if False:",
            "test_another_resource_s_user_or_prefix_cannot_be_adopted[prefix]",
        ),
        (
            "redis: a prefix inside another's",
            "if overlap := self._overlap(server, full):",
            "if overlap := None:",
            "test_a_prefix_inside_a_made_resource_s_cannot_be_adopted",
        ),
        (
            "redis: the right server at adoption",
            "self._right_server(server, full)",
            "pass",
            "test_an_adoption_on_the_wrong_server_is_refused",
        ),
    ),
    *cut(
        REDIS,
        "    def provision(",
        ON_REDIS,
        (
            "redis: the right server at birth",
            "self._right_server(server, manifest)",
            "pass",
            f"{KINDS}::test_the_wrong_server_is_refused[redis]",
        ),
        (
            "redis: a birth takes nothing of another's",
            "if isinstance(seen := self._judge(server, manifest), Different):",
            "if False:",
            "test_a_birth_takes_nothing_that_was_there_before",
        ),
    ),
    *cut(
        REDIS,
        "    def _keys(",
        ON_REDIS,
        (
            "redis: glob characters are escaped",
            "f\"{_escape(manifest['prefix'])}*\"",
            "f\"{manifest['prefix']}*\"",
            "test_glob_characters_in_an_adopted_prefix_are_only_characters",
        ),
    ),
)
