"""The guards of a teardown on Redis and Valkey."""

from tests.mutations.cut import cut

REDIS = "worker/backends/redis"  # each mutant is of the one module in it that has its text
TESTS = "tests/worker/backends/redis"
CREATE = f"{TESTS}/test_create.py"
DESTROY = f"{TESTS}/test_destroy.py"
LOGINS = f"{TESTS}/test_logins.py"
QUARANTINE = f"{TESTS}/test_quarantine.py"
AUTHORITY = f"{TESTS}/test_authority.py"
ERRORS = f"{TESTS}/test_errors.py"
IDENTITY = f"{TESTS}/test_identity.py"
RIGHTS = f"{TESTS}/test_rights.py"
COMMANDS = f"{TESTS}/test_commands.py"
HIDDEN = "test_a_customer_neither_sees_nor_stops_its_neighbours"
BEYOND = "test_a_user_that_reaches_beyond_its_prefix_is_refused_with_the_statement_that_mends_it"
STILL_SHUT = "test_a_quarantine_that_stood_still_past_a_restore_shuts_nobody_out"
STILL_OPEN = "test_a_release_that_stood_still_past_the_end_of_its_restore_opens_nothing"
REPLACED = "test_a_user_that_takes_the_name_between_check_and_act_is_made_again"
KINDS = "tests/worker/backends/conformance/test_redis.py"

GUARDS_OF_REDIS = (
    *cut(
        "worker/backends/redis/identity.py",
        "bearers = [] if ours else",
        "tests/worker/test_provision.py",
        (
            "redis: a mark on what is different",
            'or found == manifest["generation"] or',
            "or",
            "test_a_mark_of_an_adoption_that_was_killed_is_not_left_in_silence_on_redis",
        ),
    ),
    *cut(
        REDIS,
        "    replica has the key too; only a user",
        AUTHORITY,
        (
            "redis: two identities",
            "if len(servers) > 1:",
            "if False:",
            "test_a_server_with_two_identities_is_not_believed[redis]",
        ),
        (
            "redis: an older version's key proves nothing alone",
            'if ours and session.get(SERVER_KEY) == manifest["server"]:',
            'if session.get(SERVER_KEY) == manifest["server"]:',
            "test_a_promoted_replica_never_says_absent[redis-older]",
        ),
    ),
    *cut(
        REDIS,
        "def _save(",
        AUTHORITY,
        (
            "redis: an aclfile that cannot be written",
            'if "trying to save" not in str(error):',
            "if True:",
            "test_an_aclfile_that_cannot_be_written_is_not_taken_for_none",
        ),
    ),
    *cut(
        REDIS,
        "def must_keep_promises(",
        AUTHORITY,
        (
            "redis: no cluster",
            'if session.info("cluster").get("cluster_enabled"):',
            "if False:",
            "test_a_cluster_is_refused_at_birth[redis]",
        ),
        (
            "redis: users that survive a restart",
            "if not session.server.volatile_users and not session.keeps_users():",
            "if False:",
            "test_a_server_that_forgets_its_users_is_refused_at_birth[redis]",
        ),
    ),
    *cut(
        REDIS,
        "    A server of an older version takes over",
        AUTHORITY,
        (
            "redis: an older key is taken over only beside a user of ours",
            "if older is not None and users_with(session, CHANNEL)",
            "if older is not None",
            "test_a_promoted_replica_never_says_absent[redis-older]",
        ),
        (
            "redis: racing identities",
            "pipe.watch(SERVER_KEY)",
            "pass",
            "test_a_plan_that_loses_the_race_for_the_identity_tries_again[redis]",
        ),
    ),
    *cut(
        REDIS,
        "def must_be_primary(",
        AUTHORITY,
        (
            "redis: only a primary",
            'if found["role"] != "master":',
            "if False:",
            "test_a_replica_is_not_believed[redis]",
        ),
    ),
    *cut(
        REDIS,
        "def meaning(",
        ERRORS,
        (
            "redis: no password in an error",
            '_SECRET.sub("(secret)", " ".join(str(error).split()))',
            '" ".join(str(error).split())',
            "test_no_error_shows_a_password[redis-piped]",
        ),
        (
            "redis: errors by their code",
            "if code in MEANS:",
            "if False:",
            "test_a_server_that_refuses_writes_is_away[redis-piped-NOREPLICAS]",
        ),
    ),
    *cut(
        REDIS,
        "",
        CREATE,
        (
            "redis: a customer may not reach others' keys",
            "f\"~{keys.escape(manifest['prefix'])}*\", *commands",
            '"~*", *commands',
            "test_a_customer_reaches_its_own_keys_and_nothing_else",
        ),
    ),
    *cut(
        "worker/backends/redis/commands.py",
        "",
        COMMANDS,
        *(
            (f"redis: a customer may not {what}", old, new, f"{HIDDEN}[redis]")
            for what, old, new in (
                ("scan", '"-@all",', '"-@all", "+@keyspace",'),
                ("track others' keys", '"client|getname", ', '"client|getname", "client|tracking", '),
                ("list others' channels", '("publish", ', '("publish", "pubsub", '),
                ("do what is dangerous", '("dangerous", "scripting")', '("scripting",)'),
                ("run scripts", "SCRIPTING if session.server.scripting else ()", "SCRIPTING"),
            )
        ),
        (
            "redis: commands that a version does not have",
            "[name for name in NEWER if name in connection]",
            "NEWER",
            "test_scripting_where_it_is_meant[redis]",
        ),
    ),
    *cut(
        REDIS,
        "    Absent means that nothing of the manifest is there: no",
        IDENTITY,
        (
            "redis: server mark",
            "if why := wrong_server(session, manifest, servers, ours=ours):",
            "if why := None:",
            f"{KINDS}::test_another_server_is_refused_and_its_absence_does_not_count",
        ),
        (
            "redis: the mark under another name",
            "if user is None and bearers:",
            "if False:",
            f"{AUTHORITY}::test_a_user_under_another_name_is_found_by_its_mark[redis]",
        ),
        (
            "redis: generation key",
            'if found not in (None, manifest["generation"]):',
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
            "if stray := next(keys.under_prefix(session, manifest), None):",
            "if stray := None:",
            "test_keys_without_user_or_generation_are_not_deleted",
        ),
    ),
    *cut(
        REDIS,
        '_UNLINK_IF_OURS = """',
        DESTROY,
        (
            "redis: generation compared with each unlink",
            "if generation ~= ARGV[1] then return -1 end",
            "",
            "test_each_unlink_compares_the_generation_in_its_own_script[another]",
        ),
        (
            "redis: generation there with each unlink",
            "if not generation then return -2 end",
            "if not generation then generation = ARGV[1] end",
            "test_each_unlink_compares_the_generation_in_its_own_script[None]",
        ),
    ),
    *cut(
        REDIS,
        "def shut(",
        QUARANTINE,
        (
            "redis: login off",
            '"off", *was_on)',
            "*was_on)",
            f"{KINDS}::test_a_quarantine_cuts_a_live_client_and_a_release_gives_all_back",
        ),
        (
            "redis: open connections are ended",
            ', ("CLIENT", "KILL", "USER", name)]',
            "]",
            "test_a_quarantine_cuts_off_connections_and_its_repetition_those_that_came_meanwhile[redis]",
        ),
        (
            "redis: what was off is not switched on",
            '[SHUT] if "on" in user["flags"] else []',
            "[SHUT]",
            "test_a_user_that_was_off_before_is_off_again[redis-adopted]",
        ),
    ),
    *cut(
        REDIS,
        "def _opened(",
        QUARANTINE,
        (
            "redis: a release opens only what a quarantine shut",
            'if SHUT not in user["channels"]:',
            "if False:",
            "test_a_user_that_was_off_before_is_off_again[redis-adopted]",
        ),
        (
            "redis: a release leaves nothing of the quarantine",
            "if channel != SHUT]",
            "]",
            "test_what_was_there_before_comes_back_to_the_letter[redis]",
        ),
    ),
    *cut(
        REDIS,
        "def release(",
        QUARANTINE,
        (
            "redis: a release takes over",
            "changes.take_over(session, manifest)",
            "pass",
            f"{STILL_SHUT}[redis-there-enough]",
        ),
        (
            "redis: a release is saved",
            "\n        session.save_acl()",
            "",
            "test_what_was_there_before_comes_back_to_the_letter[redis]",
        ),
    ),
    *cut(
        REDIS,
        "def quarantine(",
        QUARANTINE,
        (
            "redis: a quarantine takes over",
            "away = _taken_over(session, manifest)",
            "away = None",
            f"{STILL_OPEN}[redis-enough]",
        ),
        (
            "redis: a quarantine that could not take over has not ended",
            "if away is not None:",
            "if False:",
            "test_a_server_that_takes_no_writes_shuts_at_once_and_the_step_ends_only_when_it_does[redis]",
        ),
        (
            "redis: a quarantine is saved",
            "\n        session.save_acl()",
            "",
            "test_what_was_there_before_comes_back_to_the_letter[redis]",
        ),
    ),
    *cut(
        REDIS,
        "    server, lose their connection with their user.",
        QUARANTINE,
        (
            "redis: who cannot watch loses its connection",
            'session.execute_command("ACL", "DELUSER", helper(manifest))',
            "pass",
            f"{STILL_SHUT}[redis-there-full]",
        ),
        (
            "redis: the generation key is written anew",
            "if not keys.rewrite(session, manifest):",
            "if keys.generation(session, manifest) is None:",
            f"{STILL_SHUT}[redis-there-enough]",
        ),
        (
            "redis: a generation key that is gone is written again",
            "        fence(session, manifest)",
            "        pass",
            f"{STILL_SHUT}[redis-flushed-enough]",
        ),
    ),
    *cut(
        "worker/backends/redis/keys.py",
        '_REWRITE = """',
        QUARANTINE,
        (
            "redis: a full server takes the generation key anew",
            " flags=allow-oom",
            "",
            "test_a_server_without_memory_shuts_and_opens[redis]",
        ),
        (
            "redis: only our own generation is written anew",
            "if redis.call('GET', KEYS[1]) ~= ARGV[1] then return false end",
            "",
            "test_who_takes_over_too_late_writes_no_other_owner_s_key",
        ),
    ),
    *cut(
        REDIS,
        "    def checked(",
        QUARANTINE,
        (
            "redis: a claim is asked for under the WATCH",
            "        still()",
            "        pass",
            "test_a_claim_that_is_lost_changes_nothing[redis]",
        ),
    ),
    *cut(
        REDIS,
        "    def alone(",
        QUARANTINE,
        (
            "redis: a message without a transaction ends with its user",
            "connection.send_packed_command(connection.pack_commands(asked))\n"
            "            return [connection.read_response() for _ in asked]",
            "return _in_one_message(session, asked)",
            f"{STILL_SHUT}[redis-there-full]",
        ),
    ),
    *cut(
        REDIS,
        "def prove(",
        QUARANTINE,
        (
            "redis: a login proves a restore",
            "customer.ping()",
            "pass",
            "test_a_login_that_finds_no_server_is_no_failed_login[redis]",
        ),
        (
            "redis: what is in quarantine is not restored",
            'if SHUT in user["channels"]:',
            "if False:",
            "test_no_proof_without_a_login[redis]",
        ),
        (
            "redis: a user that is off is not restored",
            'if "on" not in user["flags"]:',
            "if False:",
            "test_a_user_that_was_off_before_is_off_again[redis-provisioned]",
        ),
        (
            "redis: a failed login quotes no server",
            "raise _not_let_in(name, error) from None",
            "raise",
            "test_a_server_that_quotes_a_password_is_not_quoted[redis]",
        ),
    ),
    *cut(
        REDIS,
        "    The user is read after the key is written. If it still",
        DESTROY,
        (
            "redis: a flushed generation key is written again",
            "if keys.generation(session, manifest) is not None:",
            "if True:",
            "test_a_namespace_without_its_generation_key_is_still_torn_down[flushed]",
        ),
        (
            "redis: the user is read after the key is written",
            'if planted and not identity.is_marked(identity.acl_user(session, manifest["user"]), manifest):',
            "if False:",
            "test_a_zombie_that_would_write_the_generation_key_again_removes_it",
        ),
    ),
    *cut(
        REDIS,
        '_PLANT = """',
        ERRORS,
        (
            "redis: a full server takes the generation key",
            " flags=allow-oom",
            "",
            "test_a_server_without_memory_is_freed_by_a_teardown[redis-flushed]",
        ),
        (
            "redis: an older version's key is compared",
            "if KEYS[2] and redis.call('GET', KEYS[2]) ~= ARGV[1] then return false end",
            "",
            f"{DESTROY}::test_only_an_older_key_of_its_own_generation_is_taken_over",
        ),
    ),
    *cut(
        REDIS,
        "def _if_still_ours(",
        DESTROY,
        (
            "redis: WATCH",
            "pipe.watch(keys.generation_key(manifest))",
            "pass",
            "test_a_zombie_cannot_reach_the_new_owner_of_the_names",
        ),
        (
            "redis: identity under the WATCH",
            "if not isinstance(seen := identity.judge(session, manifest), Same):",
            "if not isinstance(seen := Same({}), Same):",
            "test_a_zombie_cannot_reach_the_new_owner_of_the_names[before]",
        ),
        (
            "redis: a user that took the name is made again",
            "if before is not None and not identity.is_marked(identity.read_user(before), manifest):",
            "if False:",
            f"{REPLACED}[replaced-DELUSER-redis]",
        ),
        (
            "redis: switching off makes no user",
            'if before is None and acts[0][:2] == ("ACL", "SETUSER"):',
            "if False:",
            f"{REPLACED}[removed-off-redis]",
        ),
        (
            "redis: a full server has no transactions",
            'if code_of(error) != "OOM":',
            "if True:",
            f"{ERRORS}::test_a_server_without_memory_is_freed_by_a_teardown[redis-there]",
        ),
    ),
    *cut(
        REDIS,
        "def _rules(",
        DESTROY,
        (
            "redis: selectors of a user that is made again",
            'for one in (user, *user["selectors"])',
            "for one in (user,)",
            f"{REPLACED}[replaced-off-redis]",
        ),
        (
            "redis: databases of a user that is made again",
            ', "databases")',
            ")",
            f"{REPLACED}[replaced-DELUSER-valkey]",
        ),
    ),
    *cut(
        REDIS,
        "def must_stay_inside(",
        RIGHTS,
        (
            "redis: selectors of an adopted user",
            'if user["selectors"]:',
            "if False:",
            f"{BEYOND}[redis-a selector]",
        ),
        (
            "redis: keys of an adopted user",
            "if beginning(pattern).startswith(prefix)]",
            "]",
            f"{BEYOND}[redis-writing another's keys]",
        ),
        (
            "redis: channels of an adopted user",
            "if pattern == mark or beginning(pattern).startswith(prefix)]",
            "]",
            f"{BEYOND}[redis-every channel]",
        ),
        (
            "redis: commands of an adopted user",
            "if beyond := granted -",
            "if beyond := set() and granted -",
            f"{BEYOND}[redis-one ACL command]",
        ),
    ),
    *cut(
        REDIS,
        "def granted(",
        RIGHTS,
        (
            "redis: a command with one allowed argument",
            'if sign == "+":',
            "if False:",
            f"{BEYOND}[redis-FLUSHALL with one argument]",
        ),
    ),
    *cut(
        "worker/backends/redis/check.py",
        "",
        "tests/worker/backends/redis/test_check.py",
        (
            "redis: the check finds a user without its commands",
            "    if missing:",
            "    if False:",
            "test_rights_too_few_or_too_many_are_found_and_the_statement_mends_them[redis-a category less]",
        ),
        (
            "redis: the check finds a user with dangerous commands",
            "    if excess:",
            "    if False:",
            "test_rights_too_few_or_too_many_are_found_and_the_statement_mends_them[redis-a dangerous command]",
        ),
        (
            "redis: the check finds an open default user",
            'and "nopass" in default["flags"]:',
            "and False:",
            "test_a_default_user_without_a_password_is_found[redis]",
        ),
    ),
    *cut(
        REDIS,
        "def beginning(",
        RIGHTS,
        (
            "redis: a pattern's wildcards end its beginning",
            'if letter in "*?[":',
            "if False:",
            "test_a_wildcard_in_a_pattern_is_no_letter_of_the_prefix[redis]",
        ),
    ),
    *cut(
        "worker/backends/redis/logins.py",
        "",
        LOGINS,
        (
            "redis: attempts at this user alone",
            '(one["reason"], one["username"]) == ("auth", manifest["user"])',
            'one["reason"] == "auth"',
            "test_attempts_are_counted_with_where_they_came_from[redis]",
        ),
        (
            "redis: attempts to log in alone",
            '(one["reason"], one["username"]) == ("auth", manifest["user"])',
            'one["username"] == manifest["user"]',
            "test_what_the_customer_may_not_do_is_no_attempt_to_log_in[redis]",
        ),
        (
            "redis: attempts after a moment alone",
            "> since]",
            "]",
            "test_only_attempts_after_a_moment_are_told[redis]",
        ),
        (
            "redis: long texts in the log are not read",
            "server.connect(longest=LONGEST)",
            "server.connect()",
            "test_long_names_in_the_log_are_not_read[redis]",
        ),
        (
            "redis: an account without the right to the log",
            'if code_of(error) != "NOPERM":',
            "if True:",
            "test_an_account_that_may_not_read_the_log_tells_nothing[redis]",
        ),
        (
            "redis: attempts at another server",
            "identity.must_be_right_server(session, manifest)",
            "pass",
            "test_another_server_is_not_asked[redis]",
        ),
    ),
    *cut(
        REDIS,
        "def _must_be_there(",
        QUARANTINE,
        (
            "redis: identity at release",
            "if not isinstance(identity.judge(session, manifest), Same):",
            "if False:",
            "test_no_proof_of_what_is_not_ours[redis]",
        ),
    ),
    *cut(
        REDIS,
        "def _destroy(",
        DESTROY,
        (
            "redis: the removal of the user is saved",
            "session.save_acl()  #",
            "pass  #",
            "test_the_user_stays_gone_after_the_acl_file_is_loaded_again",
        ),
    ),
    *cut(
        REDIS,
        "def must_not_be_protected(",
        CREATE,
        *(
            (f"redis: {name}", guard, "if False:", f"test_a_prefix_that_matches_others_keys_is_refused[{case}]")
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
            'if manifest["user"] in server.protected:',
            "if False:",
            f"{IDENTITY}::test_default_is_never_adopted_or_torn_down",
        ),
    ),
    *cut(
        REDIS,
        "def teardown(",
        IDENTITY,
        (
            "redis: protected at teardown",
            "identity.must_not_be_protected(server, manifest)",
            "pass",
            "test_default_is_never_adopted_or_torn_down",
        ),
    ),
    *cut(
        REDIS,
        "def quarantine(",
        IDENTITY,
        (
            "redis: protected at quarantine",
            "identity.must_not_be_protected(server, manifest)",
            "pass",
            "test_default_is_never_adopted_or_torn_down",
        ),
    ),
    *(
        mutant
        for block, entry in {
            "def adopt(": (
                (
                    "redis: protected at adoption",
                    "identity.must_not_be_protected(server, manifest)",
                    "pass",
                    f"{IDENTITY}::test_default_is_never_adopted_or_torn_down",
                ),
                (
                    "redis: another resource's prefix",
                    'if not planted and keys.generation(session, full) != full["generation"]:',
                    "if False:",
                    "test_another_resource_s_user_or_prefix_cannot_be_adopted[prefix]",
                ),
                (
                    "redis: a prefix inside another's",
                    "if overlap := _overlap(session, full):",
                    "if overlap := None:",
                    "test_a_prefix_inside_a_provisioned_resource_s_cannot_be_adopted",
                ),
                (
                    "redis: a server to trust at adoption",
                    "identity.must_keep_promises(session)",
                    "pass",
                    f"{AUTHORITY}::test_a_server_that_forgets_its_users_is_refused_at_birth[redis]",
                ),
                (
                    "redis: the right server at adoption",
                    "identity.must_be_right_server(session, full)",
                    "pass",
                    "test_an_adoption_on_the_wrong_server_is_refused",
                ),
            ),
            "def _must_end_a_name(": (
                (
                    "redis: a prefix ends with a colon",
                    'if not manifest["prefix"].endswith(":"):',
                    "if False:",
                    "test_a_prefix_that_matches_others_keys_is_refused[open]",
                ),
            ),
            "def _must_be_another(": (
                (
                    "redis: its own user",
                    'if full["user"] == session.acl_whoami():',
                    "if False:",
                    "test_the_user_that_the_service_works_with_is_not_adopted",
                ),
            ),
            "def _checks(": (
                (
                    "redis: an adopted user stays inside its prefix",
                    "yield partial(rights.must_stay_inside, session, full, user)",
                    "yield lambda: None",
                    f"{RIGHTS}::{BEYOND}[redis-every key]",
                ),
            ),
            "def _must_bear_no_other_mark(": (
                (
                    "redis: another resource's user",
                    "if _other_mark(user, full):",
                    "if False:",
                    "test_another_resource_s_user_or_prefix_cannot_be_adopted[user]",
                ),
                (
                    "redis: another resource's prefix, of an older version",
                    'if _is_uuid(older := keys.older_generation(session, full)) and older != full["generation"]:',
                    "if False:",
                    "test_an_older_version_s_user_or_prefix_cannot_be_adopted[key]",
                ),
            ),
            "def _overlap(": (
                (
                    "redis: a prefix inside another's, of an older version",
                    "if any(one and prefix.startswith(one) for one in reached):",
                    "if False:",
                    "test_an_older_version_s_user_or_prefix_cannot_be_adopted[user]",
                ),
                (
                    "redis: a prefix around another's",
                    "if inside := next((one for one in reached if one and one.startswith(prefix)), None):",
                    "if inside := None:",
                    "test_a_prefix_inside_another_s_or_around_it_cannot_be_adopted",
                ),
            ),
        }.items()
        for mutant in cut("worker/backends/redis/adopt.py", block, CREATE, *entry)
    ),
    *cut(
        REDIS,
        "def provision(",
        CREATE,
        (
            "redis: the right server at provision",
            "identity.must_be_right_server(session, manifest)",
            "pass",
            f"{KINDS}::test_another_server_is_refused_and_its_absence_does_not_count",
        ),
        (
            "redis: provision takes nothing of another's",
            "if isinstance(seen := identity.judge(session, manifest), Different):",
            "if False:",
            "test_provision_takes_over_nothing_that_existed_before",
        ),
    ),
    *cut(
        REDIS,
        "def under_prefix(",
        DESTROY,
        (
            "redis: glob characters are escaped",
            "f\"{escape(manifest['prefix'])}*\"",
            "f\"{manifest['prefix']}*\"",
            "test_glob_characters_in_an_adopted_prefix_are_only_characters",
        ),
    ),
)
