"""The traps of Redis in quarantine and teardown, each on a real server."""

import threading
import uuid
from typing import Any

import pytest
import redis as client

from outbox.errors import Refused, Transient
from tests.support.witness import RedisServer, an_acl_user
from worker.backends import Absent, Same
from worker.backends.redis import Redis, destroy, identity


@pytest.mark.parametrize("now", ["somebody-else", None], ids=str)
def test_the_generation_is_compared_in_the_same_breath_as_each_unlink(
    backend: Redis, server: RedisServer, born: dict[str, Any], monkeypatch: pytest.MonkeyPatch, now: str | None
) -> None:
    """The prefix changes hands after the look and before the first UNLINK."""
    for n in range(50):
        server.client.set(f"{born['prefix']}{n}", n)
    honest = destroy._quarantine

    def meanwhile(*words: Any) -> bool:
        done = honest(*words)
        server.client.delete(f"{born['prefix']}gen")
        if now:
            server.client.set(f"{born['prefix']}gen", now)
        return done

    monkeypatch.setattr(destroy, "_quarantine", meanwhile)
    with pytest.raises(Refused if now else Transient):
        backend.teardown(born, 1)
    assert len(server.keys(born["prefix"])) == 50 + bool(now)


def test_glob_characters_in_an_adopted_prefix_are_only_characters(backend: Redis, server: RedisServer) -> None:
    prefix = f"ten[ant]*?{uuid.uuid4().hex}:"
    lookalike = f"tena-x-{prefix.rsplit('?')[1]}"
    user = f"u_{uuid.uuid4().hex}"
    server.client.execute_command("ACL", "SETUSER", user, "on", ">p", "~x", "+@all")
    server.client.set(f"{prefix}a", 1)
    server.client.set(f"{lookalike}a", 2)
    generation = uuid.uuid4()
    manifest = backend.adopt({"user": user, "prefix": prefix, "generation": str(generation)}, generation)
    backend.teardown(manifest, 1)
    assert server.client.get(f"{lookalike}a") == "2"
    assert not server.bears(manifest)


def test_a_neighbour_whose_prefix_begins_alike_survives(
    backend: Redis, server: RedisServer, born: dict[str, Any]
) -> None:
    neighbours = [f"{born['prefix'][:-1]}x:a", born["prefix"][:-1], f"{born['prefix'][:-3]}:a"]
    for key in neighbours:
        server.client.set(key, 1)
    backend.teardown(born, 1)
    assert all(server.client.exists(key) for key in neighbours)


def test_keys_in_other_logical_databases_go_too(backend: Redis, server: RedisServer, born: dict[str, Any]) -> None:
    elsewhere = client.Redis.from_url(born["url"].removesuffix("/0") + "/3")
    elsewhere.set(f"{born['prefix']}a", 1)
    backend.teardown(born, 1)
    assert client.Redis.from_url(server.url.removesuffix("/0") + "/3").exists(f"{born['prefix']}a") == 0


def test_a_customer_that_removed_its_own_generation_key_is_still_torn_down(
    backend: Redis, server: RedisServer, born: dict[str, Any]
) -> None:
    customer = client.Redis.from_url(born["url"])
    customer.set(f"{born['prefix']}a", 1)
    customer.delete(f"{born['prefix']}gen")
    assert isinstance(backend.inspect(born), Same), "the user's own mark proves it"
    backend.teardown(born, 1)
    assert not server.bears(born)


def test_the_user_stays_gone_after_the_acl_file_is_loaded_again(
    backend: Redis, server: RedisServer, born: dict[str, Any]
) -> None:
    server.client.execute_command("ACL", "LOAD")
    assert born["user"] in server.users(), "birth was saved"
    backend.teardown(born, 1)
    server.client.execute_command("ACL", "LOAD")
    assert born["user"] not in server.users(), "so was death"


def test_a_quarantine_ends_connections_that_are_open(backend: Redis, born: dict[str, Any]) -> None:
    held = client.Redis.from_url(born["url"], single_connection_client=True, retry=None)
    held.ping()
    backend.quarantine(born)
    with pytest.raises((client.AuthenticationError, client.ConnectionError)):
        held.ping()
    backend.teardown(born, 1)


def test_two_workers_inside_one_namespace_both_come_to_a_good_end(
    backend: Redis, server: RedisServer, born: dict[str, Any]
) -> None:
    for n in range(3000):
        server.client.set(f"{born['prefix']}{n}", n)
    barrier, failures = threading.Barrier(4), []

    def tear() -> None:
        barrier.wait()
        try:
            backend.teardown(born, 1)
        except Transient as error:  # it lost the race, and would look again
            failures.append(error)

    threads = [threading.Thread(target=tear) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(failures) < 4
    assert isinstance(backend.inspect(born), Absent)
    assert not server.bears(born)


# Its looks at who has the names: the first, the one right before it shuts the user out, and before it removes it.
LOOKS = {"before": 1, "off": 2, "DELUSER": 3}


@pytest.mark.parametrize("step", LOOKS)
def test_a_zombie_cannot_reach_who_has_the_names_now(
    backend: Redis, server: RedisServer, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """It stood still between its look and its act; meanwhile the teardown was done, and the names are used again."""
    user, prefix, generation = an_acl_user(server), f"{uuid.uuid4().hex}:", uuid.uuid4()
    old = backend.adopt({"user": user, "prefix": prefix}, generation)
    honest = identity.judge
    looks = 0

    def stands_still(session: Any, manifest: Any) -> Any:
        nonlocal looks
        seen = honest(session, manifest)
        looks += 1
        if looks == LOOKS[step]:
            monkeypatch.setattr(identity, "judge", honest)
            Redis(server.url).teardown(old, 2)
            server.client.execute_command("ACL", "SETUSER", user, "on", ">new", "~x", "+@all")
            server.client.set(f"{prefix}precious", 42)
        return seen

    monkeypatch.setattr(identity, "judge", stands_still)
    with pytest.raises((Transient, Refused)):
        backend.teardown(old, 1)
    assert looks == LOOKS[step], "the zombie did stand still"
    assert server.client.get(f"{prefix}precious") == "42"
    assert server.client.acl_getuser(user)["enabled"] is True


def test_a_generation_key_that_is_about_to_expire_does_not_leave_keys_behind(
    backend: Redis, server: RedisServer, born: dict[str, Any]
) -> None:
    customer = client.Redis.from_url(born["url"])
    many = customer.pipeline(transaction=False)
    for n in range(50_000):  # more than can be removed within the key's life
        many.set(f"{born['prefix']}{n}", n)
    many.execute()
    customer.pexpire(f"{born['prefix']}gen", 60)
    backend.teardown(born, 1)
    assert not server.bears(born)
