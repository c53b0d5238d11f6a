"""What bears a mark on a Redis or Valkey: told once, whole or with what contradicts it, and never cut short."""

import threading
import tracemalloc
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from outbox.errors import OutOfService, Refused, Transient
from outbox.kinds.redis import KIND
from outbox.memory import Memory
from tests.support import redis_servers
from tests.support.proxy import Proxy
from tests.support.witness import RedisServer, an_acl_user
from worker.backends import IN_QUARANTINE, MarkedObject, remember
from worker.backends.redis import Redis, objects, session

MARKS = "deprovisioner:gen:"


@pytest.fixture(params=["valkey", "redis"])
def program(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def own(program: str, tmp_path: Path) -> Iterator[RedisServer]:
    with redis_servers.running(program, tmp_path / "own") as server:
        yield server


def made(backend: Redis) -> dict[str, Any]:
    plan = backend.plan(uuid.uuid4(), uuid.uuid4())
    return backend.provision(plan.manifest, plan.credentials)


def the_one(backend: Redis, generation: object) -> MarkedObject:
    (one,) = [one for one in backend.objects() if one.generation == str(generation)]
    return one


def adopted(backend: Redis, server: RedisServer) -> dict[str, Any]:
    generation = uuid.uuid4()
    return backend.adopt({"user": an_acl_user(server), "prefix": f"{uuid.uuid4().hex}:"}, generation)


def test_a_user_and_its_key_are_one_object_for_every_account(own: RedisServer) -> None:
    """Also for the account of another installation: a mark does not say whose it is."""
    backend = Redis(own.service_dsn)
    assert list(backend.objects()) == []
    manifests = [made(backend), adopted(backend, own)]
    own.client.set(f"{manifests[0]['prefix']}k", "a customer's")
    for reader in (backend, Redis(own.url)):
        assert len(list(reader.objects())) == 2
        for manifest in manifests:
            one = the_one(reader, manifest["generation"])
            assert one.names == manifest == KIND.check(one.names)
            assert (one.quarantined, one.contradictory, one.why) == (False, False, "")
        assert the_one(reader, manifests[0]["generation"]).resource_id == uuid.UUID(manifests[0]["prefix"][:-1])
        assert the_one(reader, manifests[1]["generation"]).resource_id is None
    for manifest in manifests:
        backend.teardown(manifest, 1)
    assert list(backend.objects()) == []


def test_what_bears_no_mark_is_not_told(own: RedisServer) -> None:
    """Neither what the service keeps of itself, under names that begin as the marks do."""
    own.client.execute_command("ACL", "SETUSER", "plain", "on", ">p", "~*", "&*", "+@all")
    own.client.mset({"deprovisioner:gen": "x", f"plain:{MARKS}x:": str(uuid.uuid4())})
    backend = Redis(own.service_dsn)
    backend.plan(uuid.uuid4(), uuid.uuid4())
    remember(backend, Memory(uuid.uuid4(), 1, 1, "aa"))
    assert list(backend.objects()) == []


def test_a_lost_row_s_object_is_adopted_again_by_its_mark_and_by_no_other(own: RedisServer) -> None:
    backend = Redis(own.service_dsn)
    manifest = made(backend)
    names = the_one(backend, manifest["generation"]).names
    before = own.client.acl_list()
    assert backend.adopt(names, uuid.UUID(manifest["generation"])) == manifest
    stranger = uuid.uuid4()
    with pytest.raises(Refused, match="belongs to another resource"):
        backend.adopt(names | {"generation": str(stranger)}, stranger)
    assert own.client.acl_list() == before
    backend.teardown(names, 1)
    assert not own.bears(manifest)


def test_what_is_in_quarantine_is_told_and_not_adopted_until_it_is_released(own: RedisServer) -> None:
    backend = Redis(own.service_dsn)
    manifest = made(backend)
    backend.quarantine(manifest)
    before = own.client.acl_list()
    one = the_one(backend, manifest["generation"])
    assert (one.names, one.quarantined, one.contradictory, one.why) == (manifest, True, False, IN_QUARANTINE)
    with pytest.raises(Refused, match="is in quarantine"):
        backend.adopt(one.names, uuid.UUID(one.generation))
    assert own.client.acl_list() == before, "nothing was opened"
    backend.release(one.names)
    one = the_one(backend, manifest["generation"])
    assert (one.names, one.quarantined, one.why) == (manifest, False, "")
    assert backend.adopt(one.names, uuid.UUID(one.generation)) == manifest


def test_flushed_keys_leave_what_was_made_adoptable_and_what_was_adopted_to_a_person(own: RedisServer) -> None:
    backend = Redis(own.service_dsn)
    ours, theirs = made(backend), adopted(backend, own)
    own.client.flushall()
    one = the_one(backend, ours["generation"])
    assert (one.names, one.why) == (ours, "")
    assert backend.adopt(one.names, uuid.UUID(one.generation)) == ours
    one = the_one(backend, theirs["generation"])
    assert one.names == theirs | {"prefix": None}
    assert (one.contradictory, "has no generation key any more" in one.why) == (False, True)


def test_lost_users_leave_keys_that_name_no_user(own: RedisServer) -> None:
    backend = Redis(own.service_dsn)
    manifest = made(backend)
    own.client.acl_deluser(manifest["user"])
    one = the_one(backend, manifest["generation"])
    assert one.names == manifest | {"user": None}
    assert (one.contradictory, "no ACL user bears its mark" in one.why) == (False, True)


# By hand: what people do to marks, and what is told then; {..} is of the manifest, and `other` of a second object.
STATES = {
    "a copied user": (["ACL SETUSER copy reset &deprovisioner:gen:{generation}"], "several ACL users bear this mark"),
    "a copied key": (["SET deprovisioner:gen:copy: {generation}"], "the keys of several prefixes have this mark"),
    "two marks on one user": (["ACL SETUSER {user} &deprovisioner:gen:{other}"], "bears more than one mark"),
    "another's key under its prefix": (["SET deprovisioner:gen:{prefix} {other}"], "has another mark"),
    "a user of another prefix": (["ACL SETUSER {user} resetkeys ~other:*"], "does not reach the keys under"),
}


@pytest.mark.parametrize("state", STATES)
def test_parts_that_contradict_each_other_are_told_as_such(own: RedisServer, state: str) -> None:
    backend = Redis(own.service_dsn)
    manifest = made(backend)
    commands, why = STATES[state]
    for command in commands:
        own.client.execute_command(*command.format(**manifest, other=uuid.uuid4()).split())
    one = the_one(backend, manifest["generation"])
    assert one.contradictory
    assert why in one.why
    assert one.names["user"] == (None if state == "a copied user" else manifest["user"])
    assert one.names["prefix"] == (None if state == "a copied key" else manifest["prefix"])


@pytest.mark.parametrize(
    "value",
    ["7", "", "{upper}", "{generation} and more", "x" * 200_000, None],
    ids=["no UUID", "nothing", "upper case", "words behind it", "a long one", "a list"],
)
def test_a_mark_of_another_form_is_told_alone_and_joins_no_object(own: RedisServer, value: str | None) -> None:
    backend = Redis(own.service_dsn)
    manifest = made(backend)
    key = f"{MARKS}{manifest['prefix']}"
    if value is None:
        own.client.delete(key)
        own.client.rpush(key, manifest["generation"])
    else:
        own.client.set(key, value.format(generation=manifest["generation"], upper=manifest["generation"].upper()))
    for user in ("odd", "odder"):
        own.client.execute_command("ACL", "SETUSER", user, "reset", f"&{MARKS}7")
    found = list(backend.objects())
    assert sorted(one.parts for one in found if one.generation != manifest["generation"]) == [
        ("ACL user 'odd'",),
        ("ACL user 'odder'",),
        (f"key {key!r}",),
    ]
    assert all(one.contradictory and len(one.generation) <= 100 for one in found)


def test_a_prefix_of_any_bytes_is_told(own: RedisServer) -> None:
    own.client.set(MARKS.encode() + b"\xff\0:", str(uuid.uuid4()))
    (one,) = Redis(own.service_dsn).objects()
    assert one.parts == (r"key 'deprovisioner:gen:\udcff\x00:'",)


def test_keys_that_stay_are_told_once_while_others_come_and_go(
    own: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SCAN may tell a key twice while the server's table of keys grows or shrinks, and misses none that stays."""
    backend = Redis(own.service_dsn)
    stay = {f"stay{n}:": str(uuid.uuid4()) for n in range(2_000)}
    own.client.mset({f"{MARKS}{prefix}": generation for prefix, generation in stay.items()})
    own.client.mset({f"{MARKS}go{n}:": str(uuid.uuid4()) for n in range(20_000)})
    monkeypatch.setattr(objects, "BATCH", 100)
    scan, calls, before = objects.Session.scan, iter(range(1_000_000)), []

    def meanwhile(self: Any, cursor: Any, **words: Any) -> Any:
        if (n := next(calls)) < 200:
            own.client.delete(*(f"{MARKS}go{100 * n + k}:" for k in range(100)))
        following, found = scan(self, cursor, **words)
        again = before[-1:]
        before.extend(found)
        return following, [*found, *again]

    monkeypatch.setattr(objects.Session, "scan", meanwhile)
    found = [one for one in backend.objects() if one.parts[0].startswith(f"key '{MARKS}stay")]
    assert {one.names["prefix"]: one.generation for one in found} == stay
    assert len(found) == len(stay)
    assert not any(one.contradictory for one in found)


@pytest.mark.parametrize("becomes", ["another server", "a replica"])
def test_a_server_that_changes_while_it_is_read_gives_no_complete_answer(
    program: str, own: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, becomes: str
) -> None:
    """The client connects again by itself, and the cursor of its SCAN means nothing there, which no error tells."""
    for _ in range(5):
        made(Redis(own.service_dsn))
    with redis_servers.running(program, tmp_path / "other") as other:
        first, second = (one.client.connection_pool.connection_kwargs["port"] for one in (own, other))
        proxy = Proxy(first)
        backend = Redis(own.service_dsn.replace(f":{first}", f":{proxy.port}"))
        assert len(list(backend.objects())) == 5
        evaluate = objects.Session.eval

        def changed(self: Any, *words: Any) -> Any:
            answer = evaluate(self, *words)
            if becomes == "a replica":
                own.client.replicaof("127.0.0.1", second)
            else:
                proxy.upstream = second
                self.connection_pool.disconnect()
            return answer

        monkeypatch.setattr(objects.Session, "eval", changed)
        monkeypatch.setattr(objects, "BATCH", 1)
        with pytest.raises(OutOfService if becomes == "a replica" else Transient):
            list(backend.objects())
        proxy.close()


def test_the_list_of_users_may_take_longer_than_other_answers(
    own: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one after a start of the server writes out the rules of each user."""
    made(Redis(own.service_dsn))
    port = own.client.connection_pool.connection_kwargs["port"]
    proxy = Proxy(port)
    monkeypatch.setattr(session, "TIMEOUT_SECONDS", 0.5)
    proxy.hold("LIST", lambda: threading.Event().wait(1))
    assert len(list(Redis(own.service_dsn.replace(f":{port}", f":{proxy.port}")).objects())) == 1
    assert proxy.cuts == 1
    proxy.close()


def test_a_user_s_prefix_is_not_guessed_once_its_key_is_gone(own: RedisServer) -> None:
    """Also of names that we might have made: only the patterns say what the user reaches."""
    backend = Redis(own.service_dsn)
    manifest = made(backend)
    own.client.execute_command("ACL", "SETUSER", manifest["user"], "resetkeys", "~other:*")
    own.client.flushall()
    one = the_one(backend, manifest["generation"])
    assert one.names == manifest | {"prefix": None}
    assert "has no generation key any more" in one.why


def test_a_cluster_s_node_is_refused(program: str, tmp_path: Path) -> None:
    with (
        redis_servers.running(program, tmp_path / "node", "--cluster-enabled", "yes") as node,
        pytest.raises(Refused, match="Redis Cluster"),
    ):
        list(Redis(node.service_dsn).objects())


def test_a_user_who_may_not_list_the_users_is_refused(own: RedisServer) -> None:
    made(Redis(own.service_dsn))
    own.client.execute_command("ACL", "SETUSER", "weak", "on", ">p", "~*", "+@all", "-acl|list")
    with pytest.raises(Refused, match="NOPERM"):
        list(Redis(own.url.replace("redis://", "redis://weak:p@")).objects())


@pytest.mark.proof
def test_ten_thousand_users_are_read_in_three_kilobytes_each(own: RedisServer) -> None:
    backend = Redis(own.service_dsn)
    made(backend)
    (name,) = (one.names["user"] for one in backend.objects())
    (rules,) = (line.split()[2:] for line in own.client.acl_list() if line.split()[1] == name)
    rest = [rule for rule in rules if rule[0] not in "~&" and rule != "resetchannels"]
    for _ in range(100):
        with own.client.pipeline(transaction=False) as pipe:
            for resource in (uuid.uuid4() for _ in range(100)):
                generation = uuid.uuid4()
                marks = f"~{resource}:*", "resetchannels", f"&{resource}:*", f"&{MARKS}{generation}"
                pipe.execute_command("ACL", "SETUSER", f"usr_{resource.hex}", "reset", *rest, *marks)
                pipe.set(f"{MARKS}{resource}:", str(generation))
            pipe.execute()
    tracemalloc.start()
    found = sum(one.why == "" for one in backend.objects())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found == 10_001
    assert peak < 30_000_000, "the answer of ACL LIST has one of them"
