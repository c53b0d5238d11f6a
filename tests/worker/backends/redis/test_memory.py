"""What Redis keeps of the control database: a key and a user's mark, on Redis 7 and Valkey 9, each test's own."""

import threading
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import redis as client

from outbox.errors import OutOfService, Refused
from outbox.memory import BYTES, Memory, Note
from tests.support import redis_servers
from tests.support.witness import RedisServer, eventually
from tests.worker.backends.test_memory import AT
from worker.backends import Absent
from worker.backends.redis import Redis
from worker.backends.redis import memory as memories


@pytest.fixture(params=["redis", "valkey"])
def program(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def own(program: str, tmp_path: Path) -> Iterator[RedisServer]:
    with redis_servers.running(program, tmp_path / "own") as server:
        yield server


@pytest.fixture
def kept() -> Memory:
    note = Note(99, "0123456789abcdef", AT, "hold_engaged", None, {"why": "disk"})
    return Memory(uuid.uuid4(), 2, 100, "aa", notes=(note,))


def _name(memory: Memory) -> str:
    return f"deprovisioner:memory:{memory.installation}"


def _marked(memory: Memory) -> Memory:
    return replace(memory, notes=())


@pytest.mark.parametrize("how", ["flushed", "evicted"])
@pytest.mark.parametrize("still", [False, True], ids=["", "still"])
def test_a_lost_key_leaves_the_users_mark(own: RedisServer, kept: Memory, how: str, still: bool) -> None:
    kept, backend = replace(kept, still=still), Redis(own.service_dsn)
    backend.remember(kept)
    if how == "flushed":
        own.client.flushall()
    else:
        own.client.config_set("maxmemory-policy", "allkeys-random")
        own.client.config_set("maxmemory", "3mb")
        numbers = iter(range(100_000))
        eventually(lambda: own.client.set(f"fill{next(numbers)}", "x" * 100_000) and not own.client.exists(_name(kept)))
        own.client.config_set("maxmemory", "0")
    assert backend.recall(kept.installation) == _marked(kept)
    assert backend.installations() == [kept.installation]
    early = replace(kept, event=99, still=False, notes=None)
    assert backend.remember(early) == _marked(kept)
    assert own.client.get(_name(kept)) is None, "what is told of a place is not written by the way"
    assert backend.remember(replace(kept, event=101, hash="bb")) is None
    assert backend.recall(kept.installation) == replace(kept, event=101, hash="bb")


def test_the_mark_may_do_nothing_and_says_what_the_key_says(own: RedisServer, kept: Memory) -> None:
    backend = Redis(own.service_dsn)
    for memory in (kept, replace(kept, event=101, hash="bb"), replace(kept, event=101, hash="bb", still=True)):
        backend.remember(memory)
        user = own.client.acl_getuser(_name(kept))
        assert (user["enabled"], user["passwords"], user["keys"], user["commands"]) == (False, [], [], [])
        assert user["categories"] == ["-@all"]
        said = f"&deprovisioner:memory:2:{memory.event}:{memory.hash}:{int(memory.still)}"
        assert user["channels"] == [said]


@pytest.mark.parametrize("what", ["a later event", "still"])
def test_a_restart_with_an_aclfile_keeps_it(program: str, tmp_path: Path, kept: Memory, what: str) -> None:
    """The server is killed and keeps no keys. What is a first mark or a new `still` is saved at once."""
    with redis_servers.running(program, tmp_path / "own") as server:
        backend = Redis(server.service_dsn)
        backend.remember(replace(kept, installation=uuid.uuid4()))
        backend.remember(replace(kept, notes=None))
        later = replace(kept, still=what == "still", event=101, hash="bb", notes=None)
        backend.remember(later)
    with redis_servers.running(program, tmp_path / "own") as server:
        assert server.client.get(_name(kept)) is None
        expected = _marked(later if what == "still" else kept)
        assert Redis(server.service_dsn).recall(kept.installation) == expected


def test_mere_progress_is_saved_once_a_minute(
    own: RedisServer, tmp_path: Path, kept: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def saved() -> str:
        return (tmp_path / "own" / "users.acl").read_text()

    backend = Redis(own.service_dsn)
    backend.remember(kept)
    assert ":2:100:aa:0" in saved()
    for event in range(101, 105):
        backend.remember(replace(kept, event=event, notes=None))
    assert ":2:100:aa:0" in saved()
    monkeypatch.setattr(memories, "SAVE_SECONDS", 0.0)
    backend.remember(replace(kept, event=105, notes=None))
    assert ":2:105:aa:0" in saved()


def test_a_server_that_takes_no_writes_is_no_place(own: RedisServer, kept: Memory) -> None:
    backend = Redis(own.service_dsn)
    backend.remember(kept)
    own.client.config_set("min-replicas-to-write", 1)
    with pytest.raises(OutOfService, match="NOREPLICAS"):
        backend.remember(replace(kept, event=101))
    assert backend.recall(kept.installation) == kept, "neither half of it"
    assert ":2:100:aa:0" in own.client.acl_getuser(_name(kept))["channels"][0]


def test_a_promoted_replica_has_the_key_without_the_mark(
    program: str, own: RedisServer, tmp_path: Path, kept: Memory
) -> None:
    Redis(own.service_dsn).remember(kept)
    with redis_servers.running(program, tmp_path / "replica") as replica:
        redis_servers.replicate(replica, own)
        replica.client.replicaof("no", "one")
        promoted = Redis(replica.service_dsn)
        assert _name(kept) not in replica.users()
        assert promoted.recall(kept.installation) == kept
        assert promoted.installations() == [kept.installation]
        assert promoted.remember(replace(kept, event=99, notes=None)) == kept
        assert promoted.remember(kept) is None
        assert _name(kept) in replica.users()


def test_a_key_from_an_older_dump_is_told_until_it_is_written_again(own: RedisServer, kept: Memory) -> None:
    """Dumps have keys and no users: so the key lags behind the mark, which it never does otherwise."""
    backend = Redis(own.service_dsn)
    backend.remember(kept)
    dump = own.client.get(_name(kept))
    later = replace(kept, event=500, hash="55", notes=None)
    backend.remember(later)
    own.client.set(_name(kept), dump)
    there = replace(kept, event=500, hash="55", lagging=100)
    assert backend.recall(kept.installation) == there
    offered = replace(later, event=501)
    assert backend.remember(offered, (2, 500)) == there
    assert backend.remember(replace(kept, event=3, still=True), (2, 500)) == replace(there, still=True)
    assert backend.recall(kept.installation) == replace(there, still=True)
    assert own.client.get(_name(kept)) == dump, "for all to see"
    recovered = replace(later, epoch=3, event=50, notes=None)
    assert backend.remember(recovered) is None
    assert backend.recall(kept.installation) == replace(recovered, notes=kept.notes)
    own.client.set(_name(kept), dump)
    found = backend.recall(kept.installation)
    assert found == replace(recovered, notes=kept.notes, lagging=0)
    assert found.least < (3, 50), "although the number of its event is higher"


GARBAGE = {
    "a list": (("DEL", "NAME"), ("RPUSH", "NAME", "x"), "it is a list; .*UNLINK"),
    "another's": (("SET", "NAME", "OTHER"), (), "it is that of installation .*UNLINK"),
    "bytes": (("SET", "NAME", b"\xff\xfe"), (), "no JSON: .*UNLINK"),
    "a user without a mark": (("ACL", "SETUSER", "NAME", "resetchannels"), (), "'';.*ACL DELUSER"),
    "two marks": (("ACL", "SETUSER", "NAME", "&x"), (), "has no mark of ours, but .*ACL DELUSER"),
    "a mark of another kind": (("ACL", "SETUSER", "NAME", "resetchannels", "&x"), (), "'&x'.*ACL DELUSER"),
}


@pytest.mark.parametrize("what", GARBAGE)
def test_what_is_no_memory_is_an_error_and_its_statement_mends_it(own: RedisServer, kept: Memory, what: str) -> None:
    backend, other = Redis(own.service_dsn), replace(kept, installation=uuid.uuid4())
    for memory in (kept, other):
        backend.remember(memory)
    words = {"NAME": _name(kept), "OTHER": own.client.get(_name(other))}
    *commands, says = GARBAGE[what]
    for command in filter(None, commands):
        own.client.execute_command(*(words.get(word, word) for word in command))
    for verb in (backend.recall, lambda _: backend.remember(kept)):
        with pytest.raises(OutOfService, match=says) as caught:
            verb(kept.installation)
    own.client.execute_command(*str(caught.value).rpartition("remove it: ")[2].split())
    found = backend.recall(kept.installation)
    assert found is not None
    assert (found.event, found.hash) == (100, "aa"), "the other half has it"


def test_a_customer_can_neither_read_nor_change_it(own: RedisServer, kept: Memory) -> None:
    backend = Redis(own.service_dsn)
    backend.remember(kept)
    plan = backend.plan(uuid.uuid4(), uuid.uuid4())
    made = backend.provision(plan.manifest, plan.credentials)
    customer, name = client.Redis.from_url(plan.credentials["url"]), _name(kept)
    for command in (
        ("GET", name),
        ("SET", name, "x"),
        ("DEL", name),
        ("RENAME", name, f"{made['prefix']}x"),
        ("COPY", name, f"{made['prefix']}x"),
        ("EVAL", "return redis.call('GET', KEYS[1])", 1, name),
        ("ACL", "SETUSER", name, "reset"),
        ("ACL", "GETUSER", name),
        ("PUBLISH", "deprovisioner:memory:9:9:99:0", "x"),
        ("FLUSHALL",),
    ):
        with pytest.raises(
            (client.exceptions.NoPermissionError, client.exceptions.ResponseError), match=r"(?i)permission"
        ):
            customer.execute_command(*command)
    for prefix in ("deprovisioner:memory:", "deprovisioner:", f"{name}:"):
        with pytest.raises(Refused, match="is deprovisioner's own"):
            backend.adopt({"user": made["user"], "prefix": prefix}, uuid.uuid4())
    assert backend.recall(kept.installation) == kept


def test_a_full_server_keeps_it_so_that_a_teardown_can_make_room(own: RedisServer, kept: Memory) -> None:
    """Redis 7 queues no command at all for a transaction then; Valkey 9 none that may need memory."""
    backend = Redis(own.service_dsn)
    plan = backend.plan(uuid.uuid4(), uuid.uuid4())
    made = backend.provision(plan.manifest, plan.credentials)
    backend.remember(kept)
    own.client.config_set("maxmemory-policy", "noeviction")
    own.client.config_set("maxmemory", 1)
    with pytest.raises(client.exceptions.OutOfMemoryError):
        own.client.set("a", 1)
    later = replace(kept, event=101, hash="bb", notes=None)
    assert backend.remember(later) is None
    assert backend.remember(replace(later, event=100)) == replace(later, notes=kept.notes)
    first = replace(kept, installation=uuid.uuid4())
    assert backend.remember(first) is None
    backend.teardown(made, 1)
    assert isinstance(backend.inspect(made), Absent)
    own.client.flushall()
    assert backend.recall(kept.installation) == _marked(later), "the mark was written too"


def test_workers_at_once_never_lower_the_mark_of_a_full_server(own: RedisServer, kept: Memory) -> None:
    backend = Redis(own.service_dsn)
    backend.remember(kept)
    own.client.config_set("maxmemory-policy", "noeviction")
    own.client.config_set("maxmemory", 1)
    start, raised = threading.Barrier(8), list[Exception]()

    def work(worker: int) -> None:
        start.wait()
        try:
            for step in range(5):
                backend.remember(replace(kept, event=200 + step * 8 + worker, notes=None))
        except Exception as error:  # noqa: BLE001 - whatever a thread raises, the test tells
            raised.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert raised == []
    own.client.flushall()
    assert backend.recall(kept.installation) == _marked(replace(kept, event=239))


def test_a_mark_that_was_replaced_meanwhile_is_set_again_on_a_full_server(
    own: RedisServer, kept: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another worker's later mark comes between this one's look at it and its write of its own."""
    backend, honest = Redis(own.service_dsn), memories._without_room
    backend.remember(kept)
    own.client.config_set("maxmemory-policy", "noeviction")
    own.client.config_set("maxmemory", 1)
    later = "&deprovisioner:memory:2:900:ee:0"

    def overtaken(*words: object) -> None:
        own.client.execute_command("ACL", "SETUSER", _name(kept), "reset", "resetchannels", later)
        honest(*words)

    monkeypatch.setattr(memories, "_without_room", overtaken)
    backend.remember(replace(kept, event=101, hash="bb", notes=None))
    assert own.client.acl_getuser(_name(kept))["channels"] == [later]


def test_a_key_stays_small(own: RedisServer, kept: Memory) -> None:
    notes = tuple(replace(kept.notes[0], event=n, detail={"why": "x" * 5000}) for n in range(1000))
    Redis(own.service_dsn).remember(replace(kept, notes=notes))
    assert own.client.strlen(_name(kept)) <= BYTES
