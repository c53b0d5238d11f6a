"""Redis's own traps, each on a real server."""

import threading
import uuid
from typing import Any

import pytest
import redis as client

from outbox.errors import Refused, Transient
from tests.support.servers import Servers
from tests.support.witness import RedisServer
from worker.backends import Absent, Different, Same
from worker.backends.redis import Redis


@pytest.fixture
def server(servers: Servers) -> RedisServer:
    return servers.redis


@pytest.fixture
def backend(server: RedisServer) -> Redis:
    return Redis(server.url)


@pytest.fixture
def born(backend: Redis) -> dict[str, Any]:
    plan = backend.plan(uuid.uuid4(), uuid.uuid4())
    return backend.provision(plan.manifest, plan.credentials) | {"url": plan.credentials["url"]}


def test_a_customer_reaches_its_own_keys_and_nothing_else(backend: Redis, born: dict[str, Any]) -> None:
    customer = client.Redis.from_url(born["url"])
    assert customer.set(f"{born['prefix']}a", 1)
    assert customer.eval("return redis.call('GET', KEYS[1])", 1, f"{born['prefix']}a") == b"1"
    for forbidden in (
        lambda: customer.set("other", 1),
        customer.flushall,
        lambda: customer.keys("*"),
        customer.scan,
        customer.randomkey,
        customer.dbsize,
        lambda: customer.config_get("*"),
        lambda: customer.execute_command("ACL", "LIST"),
        customer.function_flush,
    ):
        with pytest.raises(client.exceptions.NoPermissionError):
            forbidden()
    backend.teardown(born, 1)


def test_a_foreign_generation_key_is_refused_and_its_data_untouched(
    backend: Redis, server: RedisServer, born: dict[str, Any]
) -> None:
    server.client.set(f"{born['prefix']}gen", "somebody-else")
    server.client.set(f"{born['prefix']}precious", 42)
    assert isinstance(backend.inspect(born), Different)
    with pytest.raises(Refused):
        backend.teardown(born, 1)
    assert server.client.get(f"{born['prefix']}precious") == "42"
    assert born["user"] in server.users()
    assert client.Redis.from_url(born["url"]).ping(), "nothing at all is done where identity is in doubt"


@pytest.mark.parametrize("now", ["somebody-else", None], ids=str)
def test_the_generation_is_compared_in_the_same_breath_as_each_unlink(
    backend: Redis, server: RedisServer, born: dict[str, Any], monkeypatch: pytest.MonkeyPatch, now: str | None
) -> None:
    """The prefix changes hands after the look and before the first UNLINK."""
    for n in range(50):
        server.client.set(f"{born['prefix']}{n}", n)
    honest = Redis._quarantine

    def meanwhile(self: Redis, *words: Any) -> bool:
        done = honest(self, *words)
        server.client.delete(f"{born['prefix']}gen")
        if now:
            server.client.set(f"{born['prefix']}gen", now)
        return done

    monkeypatch.setattr(Redis, "_quarantine", meanwhile)
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


def test_keys_without_user_or_generation_are_nobodys_to_delete(
    backend: Redis, server: RedisServer, born: dict[str, Any]
) -> None:
    backend.teardown(born, 1)
    server.client.set(f"{born['prefix']}new", 1)
    assert isinstance(backend.inspect(born), Different)
    with pytest.raises(Refused):
        backend.teardown(born, 1)


def test_a_user_made_again_under_the_name_is_untouched(
    backend: Redis, server: RedisServer, born: dict[str, Any]
) -> None:
    server.client.acl_deluser(born["user"])
    server.client.execute_command("ACL", "SETUSER", born["user"], "on", ">p", f"~{born['prefix']}*", "+@all")
    with pytest.raises(Refused):
        backend.teardown(born, 1)
    assert born["user"] in server.users()


def test_the_user_stays_gone_after_the_acl_file_is_loaded_again(
    backend: Redis, server: RedisServer, born: dict[str, Any]
) -> None:
    server.client.execute_command("ACL", "LOAD")
    assert born["user"] in server.users(), "birth was saved"
    backend.teardown(born, 1)
    server.client.execute_command("ACL", "LOAD")
    assert born["user"] not in server.users(), "so was death"


def test_default_is_never_adopted_or_torn_down(backend: Redis) -> None:
    manifest = {"user": "default", "prefix": "x:", "generation": str(uuid.uuid4())}
    with pytest.raises(Refused, match="protected"):
        backend.teardown(manifest, 1)
    with pytest.raises(Refused, match="protected"):
        backend.quarantine(manifest)
    with pytest.raises(Refused, match="protected"):
        backend.adopt(manifest, uuid.uuid4())


@pytest.mark.parametrize(
    ("prefix", "why"),
    [
        pytest.param("", "empty prefix", id="empty"),
        pytest.param("deprovisioner:x:", "deprovisioner's own", id="ours"),
        pytest.param("open", "must end with ':'", id="open"),
    ],
)
def test_a_prefix_that_reaches_further_is_refused(backend: Redis, server: RedisServer, prefix: str, why: str) -> None:
    with pytest.raises(Refused, match=why):
        backend.adopt({"user": an_acl_user(server), "prefix": prefix}, uuid.uuid4())


def test_a_quarantine_ends_connections_that_are_open(backend: Redis, born: dict[str, Any]) -> None:
    held = client.Redis.from_url(born["url"], single_connection_client=True, retry=None)
    held.ping()
    backend.quarantine(born)
    with pytest.raises((client.AuthenticationError, client.ConnectionError)):
        held.ping()
    backend.teardown(born, 1)


def test_a_birth_takes_nothing_that_was_there_before(backend: Redis, server: RedisServer) -> None:
    plan = backend.plan(uuid.uuid4(), uuid.uuid4())
    server.client.execute_command("ACL", "SETUSER", plan.manifest["user"], "on", ">theirs", "~x", "+@all")
    before = server.client.acl_getuser(plan.manifest["user"])
    with pytest.raises(Refused, match="is not the one that was made"):
        backend.provision(plan.manifest, plan.credentials)
    assert server.client.acl_getuser(plan.manifest["user"]) == before


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


def an_acl_user(server: RedisServer) -> str:
    user = f"u_{uuid.uuid4().hex}"
    server.client.execute_command("ACL", "SETUSER", user, "on", ">p", "~x", "+@all")
    return user


@pytest.mark.parametrize("order", [("", "inner:"), ("inner:", "")])
def test_a_prefix_inside_another_s_or_around_it_cannot_be_adopted(
    backend: Redis, server: RedisServer, order: tuple[str, str]
) -> None:
    outer = f"{uuid.uuid4().hex}:"
    first, second = (outer + tail for tail in order)
    backend.adopt({"user": an_acl_user(server), "prefix": first}, uuid.uuid4())
    with pytest.raises(Refused, match="inside another"):
        backend.adopt({"user": an_acl_user(server), "prefix": second}, uuid.uuid4())
    assert server.client.get(f"{second}gen") is None, "nothing of the refused one is left"


def test_a_prefix_inside_a_made_resource_s_cannot_be_adopted(
    backend: Redis, server: RedisServer, born: dict[str, Any]
) -> None:
    with pytest.raises(Refused, match="inside another"):
        backend.adopt({"user": an_acl_user(server), "prefix": f"{born['prefix']}mine:"}, uuid.uuid4())
    backend.teardown(born, 1)


@pytest.mark.parametrize("taken", ["user", "prefix"])
def test_another_resource_s_user_or_prefix_cannot_be_adopted(
    backend: Redis, server: RedisServer, born: dict[str, Any], taken: str
) -> None:
    free = {"user": an_acl_user(server), "prefix": f"{uuid.uuid4().hex}:"}
    with pytest.raises(Refused, match="belongs to another"):
        backend.adopt(free | {taken: born[taken]}, uuid.uuid4())
    assert isinstance(backend.inspect(born), Same)
    backend.teardown(born, 1)


def test_an_adoption_on_the_wrong_server_is_refused(backend: Redis, server: RedisServer) -> None:
    theirs = {"user": an_acl_user(server), "prefix": f"{uuid.uuid4().hex}:"}
    with pytest.raises(Refused, match="wrong server"):
        backend.adopt(theirs | {"server": "another"}, uuid.uuid4())
    assert server.keys(theirs["prefix"]) == set()


def test_the_user_that_the_service_works_with_is_not_adopted(server: RedisServer) -> None:
    user = f"service_{uuid.uuid4().hex}"
    server.client.execute_command("ACL", "SETUSER", user, "on", ">p", "~*", "&*", "+@all")
    backend = Redis(server.url.replace("redis://", f"redis://{user}:p@"))
    with pytest.raises(Refused, match="itself works with"):
        backend.adopt({"user": user, "prefix": f"{uuid.uuid4().hex}:"}, uuid.uuid4())


# Its looks at who has the names: the first, the one right before it shuts the user out, and before it removes it.
LOOKS = {"before": 1, "off": 2, "DELUSER": 3}


@pytest.mark.parametrize("step", LOOKS)
def test_a_zombie_cannot_reach_who_has_the_names_now(
    backend: Redis, server: RedisServer, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """It stood still between its look and its act; meanwhile the teardown was done, and the names are used again."""
    user, prefix, generation = an_acl_user(server), f"{uuid.uuid4().hex}:", uuid.uuid4()
    old = backend.adopt({"user": user, "prefix": prefix}, generation)
    honest = Redis._judge
    looks = 0

    def stands_still(self: Redis, connection: Any, manifest: Any) -> Any:
        nonlocal looks
        seen = honest(self, connection, manifest)
        looks += 1
        if looks == LOOKS[step]:
            monkeypatch.setattr(Redis, "_judge", honest)
            Redis(server.url).teardown(old, 2)
            server.client.execute_command("ACL", "SETUSER", user, "on", ">new", "~x", "+@all")
            server.client.set(f"{prefix}precious", 42)
        return seen

    monkeypatch.setattr(Redis, "_judge", stands_still)
    with pytest.raises((Transient, Refused)):
        backend.teardown(old, 1)
    assert looks == LOOKS[step], "the zombie did stand still"
    assert server.client.get(f"{prefix}precious") == "42"
    assert server.client.acl_getuser(user)["enabled"] is True


def test_a_generation_key_that_is_about_to_expire_does_not_leave_keys_behind(
    backend: Redis, server: RedisServer, born: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    customer, generation = client.Redis.from_url(born["url"]), f"{born['prefix']}gen"
    for n in range(10):
        customer.set(f"{born['prefix']}{n}", n)
    customer.expire(generation, 3600)
    honest = client.Redis.execute_command

    def once_its_life_has_ended(self: Any, *words: Any, **options: Any) -> Any:
        if words[0] == "EVAL" and server.client.ttl(generation) > 0:  # keys are removed: the hour is over, if it runs
            server.client.delete(generation)
        return honest(self, *words, **options)

    monkeypatch.setattr(client.Redis, "execute_command", once_its_life_has_ended)
    backend.teardown(born, 1)
    assert not server.bears(born)


def test_a_generation_key_of_another_type_is_another_s(
    backend: Redis, server: RedisServer, born: dict[str, Any]
) -> None:
    server.client.delete(f"{born['prefix']}gen")
    server.client.rpush(f"{born['prefix']}gen", 1)
    assert isinstance(backend.inspect(born), Different)
