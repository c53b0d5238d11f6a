"""What a customer may run, tried on Redis 7 and Valkey 9, and compared with the list in the document."""

import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis as client

from tests.support import redis_servers
from tests.support.witness import RedisServer
from worker.backends.redis import Redis

DOCUMENT = (Path(__file__).parents[4] / "docs" / "configuration.md").read_text()
OLDER = "+@all -@admin -@dangerous -function -script +script|load +script|exists -scan -randomkey -dbsize"


@pytest.fixture(scope="module", params=["redis", "valkey"])
def own(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_servers.running(request.param, tmp_path_factory.mktemp(request.param)) as server:
        yield server


@pytest.fixture(scope="module")
def made(own: RedisServer) -> dict[str, Any]:
    return _made(own)


def _made(own: RedisServer, **options: bool) -> dict[str, Any]:
    backend = Redis(own.service_dsn, **options)
    plan = backend.plan(uuid.uuid4(), uuid.uuid4())
    return backend.provision(plan.manifest, plan.credentials) | {"url": plan.credentials["url"]}


def _between(mark: str) -> str:
    return DOCUMENT.split(f"<!-- {mark} -->")[1].split(f"<!-- /{mark} -->")[0]


def _given(cell: str) -> list[str]:
    return [word.replace("\\|", "|") for word in re.findall(r"`@?([^`]+)`", cell)]


def _allowed(own: RedisServer, user: str, prefix: str) -> dict[str, set[str]]:
    """By category: what the server itself says that the user may run (ACL DRYRUN); no subcommands' containers."""
    raw = client.Redis.from_url(own.url, decode_responses=True, protocol=2)
    raw.response_callbacks.clear()
    found: dict[str, set[str]] = {}
    for category in raw.execute_command("ACL", "CAT"):
        found[category] = set()
        for name in raw.execute_command("ACL", "CAT", category):
            (about,) = raw.execute_command("COMMAND", "INFO", name)
            if about is None or (len(about) > 9 and about[9]):
                continue
            words = [*name.split("|"), *[f"{prefix}a"] * (abs(about[1]) - len(name.split("|")))]
            try:
                answer = raw.execute_command("ACL", "DRYRUN", user, *words)
            except client.ResponseError as error:
                answer = str(error)
            assert "wrong number" not in answer, name
            if "no permissions to run" not in answer:
                found[category].add(name)
    raw.close()
    return found


def test_the_document_lists_every_category_and_what_customers_get_of_it(own: RedisServer, made: dict[str, Any]) -> None:
    rows = [re.split(r"(?<!\\)\|", line.strip("|")) for line in _between("redis commands").strip().splitlines()[2:]]
    told = {name: given.strip() for names, given, _ in rows for name in _given(names)}
    allowed = _allowed(own, made["user"], made["prefix"])
    assert told.keys() == allowed.keys()
    every = {name: set(own.client.acl_cat(name)) for name in told}
    never = set().union(*(every[name] for name, given in told.items() if given == "none"))
    given = {"time"}
    for name, words in told.items():
        match words:
            case "none":
                assert allowed[name] == set()
            case "all":
                given |= (wanted := allowed[name] - never)
                assert {
                    one for one in every[name] - never if "|" in one or f"{one}|help" not in every["slow"]
                } == wanted
            case "as above":
                pass
            case listed:
                commands = set(_given(listed))
                part = {one for one in every[name] if one in commands or one.partition("|")[0] in commands}
                assert allowed[name] - set().union(*(allowed[n] for n in told if told[n] == "all")) == {
                    one for one in part if one in allowed["fast"] | allowed["slow"]
                }
                given |= part
    assert set().union(*allowed.values()) <= given


HIDDEN = (
    *("CLIENT TRACKING ON BCAST", "CLIENT LIST", "CLIENT KILL ID 1", "CLIENT PAUSE 1", "CLIENT NO-EVICT ON", "MONITOR"),
    *("PUBSUB CHANNELS", "PUBSUB NUMPAT", "PUBSUB SHARDCHANNELS", "MEMORY STATS", "MEMORY PURGE", "OBJECT FREQ a"),
    *("KEYS *", "SCAN 0", "RANDOMKEY", "DBSIZE", "INFO", "CONFIG GET *", "ACL LIST", "ACL WHOAMI", "DEBUG SLEEP 0"),
    *("FLUSHALL", "FLUSHDB", "SWAPDB 0 1", "SHUTDOWN NOSAVE", "REPLICAOF NO ONE", "SLOWLOG GET", "LATENCY LATEST"),
    *("EVAL x 0", "EVALSHA x 0", "EVAL_RO x 0", "FCALL f 0", "FUNCTION LIST", "FUNCTION LOAD x", "SCRIPT LOAD x"),
    *("SCRIPT FLUSH", "SCRIPT KILL", "MODULE LIST", "CLUSTER NODES", "PSYNC ? -1", "SORT a", "RESTORE a 0 x", "LOLWUT"),
    *(
        "MIGRATE h 1 k 0 1",
        "SAVE",
        "BGSAVE",
        "BGREWRITEAOF",
        "ROLE",
        "LASTSAVE",
        "FAILOVER",
        "PFSELFTEST",
        "COMMANDLOG LEN x",
    ),
)


def test_a_customer_neither_sees_nor_stops_its_neighbours(own: RedisServer, made: dict[str, Any]) -> None:
    customer = client.Redis.from_url(made["url"])
    for command in HIDDEN:
        with pytest.raises(
            client.ResponseError, match=r"no permissions to run|unknown command|DEBUG command not allowed"
        ):
            customer.execute_command(*command.split())
    with pytest.raises(client.exceptions.NoPermissionError):
        customer.publish("other:a", "x")
    for pattern in ("*", "other:*", "__keyspace@0__:*", "__redis__:invalidate"):
        with customer.pubsub() as listener:
            listener.psubscribe(pattern)
            with pytest.raises(client.exceptions.NoPermissionError):
                listener.get_message(timeout=5)
    own.client.ping()


def test_scripting_where_it_is_meant(own: RedisServer) -> None:
    made = _made(own, scripting=True)
    customer = client.Redis.from_url(made["url"])
    key = f"{made['prefix']}a"
    assert customer.eval("return redis.call('SET', KEYS[1], 1)", 1, key) == b"OK"
    assert customer.evalsha(customer.script_load("return 7"), 0) == 7
    for command in ("FUNCTION LIST", "FCALL f 0", "SCRIPT FLUSH", "SCRIPT KILL"):
        with pytest.raises(client.exceptions.NoPermissionError):
            customer.execute_command(*command.split())
    with pytest.raises(client.ResponseError, match=r"permissions|ACL failure"):
        customer.eval("return redis.call('GET', KEYS[1])", 1, "other:a")


def test_the_documented_command_limits_users_of_older_versions(own: RedisServer, made: dict[str, Any]) -> None:
    (rules,) = re.findall(r'ACL SETUSER "\$user" (.*)', DOCUMENT.split("<!-- redis limits -->")[1])
    own.client.execute_command("ACL", "SETUSER", "usr_older", "on", ">p", "~usr_older:*", *OLDER.split())
    own.client.execute_command("ACL", "SETUSER", "usr_older", *rules.split())
    newer = {"client|setinfo", "client|no-touch", "waitaof"}
    now, older = (
        _allowed(own, user, prefix) for user, prefix in ((made["user"], made["prefix"]), ("usr_older", "usr_older:"))
    )
    assert {name: found - newer for name, found in now.items()} == older
    own.client.acl_deluser("usr_older")
