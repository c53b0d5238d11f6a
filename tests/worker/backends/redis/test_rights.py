"""Which users are adopted: those that reach nothing beyond their prefix; on Redis 7 and Valkey 9."""

import uuid
from collections.abc import Iterator

import pytest
import redis as client

from outbox import foreign
from outbox.errors import Refused
from tests.support import accounts, redis_servers
from tests.support.witness import RedisServer
from worker.backends import Absent
from worker.backends.redis import Redis


@pytest.fixture(scope="module", params=["redis", "valkey"])
def own(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_servers.running(request.param, tmp_path_factory.mktemp(request.param)) as server:
        server.service_dsn = accounts.valkey(server.url)
        yield server


SAFE = "+@string +@hash +del"
GREEDY = "-@dangerous -@scripting -client|tracking -cluster"
# The user's rules (P is its prefix), what the error names, and the statement that mends it.
BEYOND = {
    "every key": (f"~* {SAFE}", "~*", "resetkeys ~P:*"),
    "another's keys": (f"~P:* ~other:* {SAFE}", "(~other:*)", "resetkeys ~P:*"),
    "reading another's keys": (f"%R~other:* {SAFE}", "(%R~other:*)", "resetkeys ~P:*"),
    "writing another's keys": (f"%R~P:* %W~other:* {SAFE}", "(%W~other:*)", "resetkeys %R~P:*"),
    "a pattern that begins as its prefix does not": (f"~?P:* {SAFE}", "(~?P:*)", "resetkeys ~P:*"),
    "a pattern around its own": (f"~P* {SAFE}", "(~P*)", "resetkeys ~P:*"),
    "a pattern that begins with a class": (f"~[P]* {SAFE}", "(~[P]*)", "resetkeys ~P:*"),
    "a selector": ("~P:* -@all +get (+set ~other:*)", "selectors", "clearselectors"),
    "every channel": (f"~P:* &* {SAFE}", "channels outside the prefix (&*)", "resetchannels"),
    "another's channels": (
        f"~P:* &P:* &other:* {SAFE}",
        "channels outside the prefix (&other:*)",
        "resetchannels &P:*",
    ),
    "channels around its own": (f"~P:* &P* {SAFE}", "channels outside the prefix (&P*)", "resetchannels"),
    "everything": ("~P:* +@all", "(acl|deluser, acl|dryrun, acl|getuser and ", GREEDY),
    "all but @admin": ("~P:* +@all -@admin", "(client|tracking, ", GREEDY),
    "all but @dangerous": ("~P:* +@all -@dangerous", "(client|tracking, ", "-@scripting -client|tracking -cluster"),
    "one ACL command": ("~P:* -@all +get +acl|setuser", "(acl|setuser)", "-@dangerous"),
    "all of ACL": ("~P:* -@all +get +acl", "(acl|deluser, ", "-@dangerous"),
    "FLUSHALL": ("~P:* -@all +get +info +flushall", "(flushall, info)", "-@dangerous"),
    "FLUSHALL again": (f"~P:* {SAFE} +flushall", "(flushall)", "-@dangerous"),
    "FLUSHALL with one argument": ("~P:* -@all +get +flushall|async", "(flushall)", "-@dangerous"),
    "SWAPDB, CONFIG": (
        "~P:* -@all +get +swapdb +config",
        "(config|get, config|resetstat, config|rewrite",
        "-@dangerous",
    ),
    "KEYS, beside SORT": ("~P:* -@all +get +keys +sort", "(keys)", "-@dangerous +sort"),
    "SCAN": ("~P:* -@all +get +scan", "(scan)", "-scan"),
    "a scripting command": ("~P:* -@all +get +eval", "(eval)", "-@scripting"),
    "functions": ("~P:* -@all +get +function", "(function|delete, ", "-@scripting"),
    "the channels of others": ("~P:* -@all +get +@pubsub", "(pubsub|channels, ", "-pubsub"),
    "tracking": ("~P:* -@all +get +client|tracking +client|id", "(client|tracking)", "-client"),
    "the memory of all": ("~P:* -@all +get +memory", "(memory|doctor, ", "-memory"),
    "a category": ("~P:* -@all +@keyspace", "may run commands that reach beyond", "-@"),
    "several": (
        "~* &* +@all (+get ~*)",
        "selectors, reaches keys",
        "clearselectors resetkeys ~P:* resetchannels -@dangerous",
    ),
}
INSIDE = [
    f"~P:* {SAFE}",
    "~P:* &P:* -@all +@read +@write -@dangerous -@scripting -@keyspace +rename +sort +lolwut +acl|whoami -memory",
    "%R~P:a* %W~P:b? %RW~P:c ~P:d[ef] -@all +get",
    "~P:* -@all +flushall +client|tracking -@dangerous -@connection +get",
    "-@all",
]


def _user(own: RedisServer, rules: str) -> dict[str, str]:
    name = uuid.uuid4().hex
    head, *selectors = rules.replace("P", name).replace(")", "").split("(")
    words = [*head.split(), *(f"({selector.strip()})" for selector in selectors)]
    own.client.execute_command("ACL", "SETUSER", name, "on", ">p", *words)
    return {"user": name, "prefix": f"{name}:"}


def _is_torn_down(own: RedisServer, manifest: dict[str, str]) -> bool:
    backend = Redis(own.service_dsn)
    own.client.set(f"{manifest['prefix']}a", 1)
    made = backend.adopt(manifest, uuid.uuid4())
    backend.teardown(made, 1)
    return isinstance(backend.inspect(made), Absent) and not own.bears(made)


@pytest.mark.parametrize("what", BEYOND)
def test_a_user_that_reaches_beyond_its_prefix_is_refused_with_the_statement_that_mends_it(
    own: RedisServer, what: str
) -> None:
    rules, named, mend = BEYOND[what]
    manifest = _user(own, rules)
    before = own.client.acl_getuser(manifest["user"])
    with pytest.raises(Refused) as caught:
        Redis(own.service_dsn).adopt(manifest, uuid.uuid4())
    told = str(caught.value)
    assert len(told) < foreign.LINE, "it is not cut"
    assert named.replace("P", manifest["user"]) in told
    statement = told.split("limit it first: ")[1]
    assert statement.startswith(f"ACL SETUSER {manifest['user']} {mend.replace('P', manifest['user'])}")
    assert own.keys(manifest["prefix"]) == set(), "nothing was planted"
    assert own.client.acl_getuser(manifest["user"]) == before
    own.client.execute_command(*statement.split())
    customer = client.Redis.from_url(own.url.replace("redis://", f"redis://{manifest['user']}:p@"))
    for forbidden in (
        lambda: customer.get("other:a"),
        lambda: customer.publish("other:a", "x"),
        customer.flushall,
        customer.scan,
        lambda: customer.acl_setuser("x"),
    ):
        with pytest.raises(client.exceptions.NoPermissionError):
            forbidden()
    assert _is_torn_down(own, manifest)


@pytest.mark.parametrize("rules", INSIDE)
def test_a_user_that_stays_inside_its_prefix_is_adopted(own: RedisServer, rules: str) -> None:
    assert _is_torn_down(own, _user(own, rules))


def test_a_wildcard_in_a_pattern_is_no_letter_of_the_prefix(own: RedisServer) -> None:
    manifest = _user(own, f"~P*:a {SAFE}")
    manifest["prefix"] = f"{manifest['user']}*:"
    with pytest.raises(Refused, match="reaches keys outside") as caught:
        Redis(own.service_dsn).adopt(manifest, uuid.uuid4())
    own.client.execute_command(*str(caught.value).split("limit it first: ")[1].split())
    assert own.client.acl_getuser(manifest["user"])["keys"] == [f"~{manifest['user']}\\*:*"]
    assert _is_torn_down(own, manifest)


def test_where_scripting_is_meant_a_user_that_may_run_scripts_is_adopted(own: RedisServer) -> None:
    backend = Redis(own.service_dsn, scripting=True)
    made = backend.adopt(_user(own, "~P:* +@string +eval +script|load"), uuid.uuid4())
    backend.teardown(made, 1)
    with pytest.raises(Refused, match="fcall"):
        backend.adopt(_user(own, "~P:* +@string +@scripting"), uuid.uuid4())
