"""The traps of Redis in quarantine and teardown, each on a real server."""

import threading
import uuid
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest
import redis as client

from outbox.errors import Refused, Transient
from tests.support import redis_servers
from tests.support.proxy import Proxy
from tests.support.witness import RedisServer, an_acl_user
from worker.backends import Absent, Different, Same
from worker.backends.redis import Redis, changes, identity, keys
from worker.backends.redis.session import Server


@pytest.mark.parametrize("now", ["another", None], ids=str)
def test_each_unlink_compares_the_generation_in_its_own_script(
    backend: Redis, server: RedisServer, provisioned: dict[str, Any], monkeypatch: pytest.MonkeyPatch, now: str | None
) -> None:
    """The generation key changes after the check of identity and before the first UNLINK."""
    for n in range(50):
        server.client.set(f"{provisioned['prefix']}{n}", n)
    honest = changes.fence

    def then_replace(*words: Any) -> None:
        honest(*words)
        server.client.delete(f"deprovisioner:gen:{provisioned['prefix']}")
        if now:
            server.client.set(f"deprovisioner:gen:{provisioned['prefix']}", now)

    monkeypatch.setattr(changes, "fence", then_replace)
    with pytest.raises(Refused if now else Transient):
        backend.teardown(provisioned, 1)
    assert len(server.keys(provisioned["prefix"])) == 50


def test_glob_characters_in_an_adopted_prefix_are_only_characters(backend: Redis, server: RedisServer) -> None:
    prefix = f"ten[ant]*?{uuid.uuid4().hex}:"
    lookalike = f"tena-x-{prefix.rsplit('?')[1]}"
    user = an_acl_user(server)
    server.client.set(f"{prefix}a", 1)
    server.client.set(f"{lookalike}a", 2)
    generation = uuid.uuid4()
    manifest = backend.adopt({"user": user, "prefix": prefix, "generation": str(generation)}, generation)
    backend.teardown(manifest, 1)
    assert server.client.get(f"{lookalike}a") == "2"
    assert not server.bears(manifest)


def test_a_neighbour_whose_prefix_begins_alike_survives(
    backend: Redis, server: RedisServer, provisioned: dict[str, Any]
) -> None:
    neighbours = [f"{provisioned['prefix'][:-1]}x:a", provisioned["prefix"][:-1], f"{provisioned['prefix'][:-3]}:a"]
    for key in neighbours:
        server.client.set(key, 1)
    backend.teardown(provisioned, 1)
    assert all(server.client.exists(key) for key in neighbours)


def test_keys_in_other_logical_databases_go_too(
    backend: Redis, server: RedisServer, provisioned: dict[str, Any]
) -> None:
    elsewhere = client.Redis.from_url(provisioned["url"].removesuffix("/0") + "/3")
    elsewhere.set(f"{provisioned['prefix']}a", 1)
    backend.teardown(provisioned, 1)
    assert client.Redis.from_url(server.url.removesuffix("/0") + "/3").exists(f"{provisioned['prefix']}a") == 0


@pytest.mark.parametrize("how", ["flushed", "older", "another's in the older key", "nothing in the older key"])
def test_a_namespace_without_its_generation_key_is_still_torn_down(
    backend: Redis, server: RedisServer, provisioned: dict[str, Any], how: str
) -> None:
    """Keys are flushed and evicted, and older versions kept the generation where the customer could change it."""
    customer, older = client.Redis.from_url(provisioned["url"]), f"{provisioned['prefix']}gen"
    customer.set(f"{provisioned['prefix']}a", 1)
    server.client.delete(f"deprovisioner:gen:{provisioned['prefix']}")
    if how == "older":
        server.client.set(older, provisioned["generation"])
    elif how == "another's in the older key":
        customer.set(older, str(uuid.uuid4()))
    assert isinstance(backend.inspect(provisioned), Same), "the user's own mark proves it"
    backend.teardown(provisioned, 1)
    assert isinstance(backend.inspect(provisioned), Absent)
    assert not server.bears(provisioned)


def test_a_customer_cannot_reach_the_key_that_says_whose_its_prefix_is(
    backend: Redis, provisioned: dict[str, Any]
) -> None:
    customer = client.Redis.from_url(provisioned["url"])
    for act in (customer.delete, customer.get, customer.strlen, lambda key: customer.set(key, "x")):
        with pytest.raises(client.exceptions.NoPermissionError):
            act(f"deprovisioner:gen:{provisioned['prefix']}")
    backend.teardown(provisioned, 1)


def test_an_older_version_s_teardown_that_died_after_its_user_was_removed_is_ended(
    backend: Redis, server: RedisServer, provisioned: dict[str, Any]
) -> None:
    server.client.acl_deluser(provisioned["user"])
    server.client.rename(f"deprovisioner:gen:{provisioned['prefix']}", f"{provisioned['prefix']}gen")
    server.client.set(f"{provisioned['prefix']}a", 1)
    assert isinstance(backend.inspect(provisioned), Same)
    stranger = provisioned | {"generation": str(uuid.uuid4())}
    assert isinstance(backend.inspect(stranger), Different)
    with pytest.raises(Refused):
        backend.teardown(stranger, 1)
    backend.teardown(provisioned, 1)
    assert isinstance(backend.inspect(provisioned), Absent)
    assert not server.bears(provisioned)


@pytest.mark.parametrize("older", ["another's", "long", "a list", None])
def test_only_an_older_key_of_its_own_generation_is_taken_over(
    backend: Redis, server: RedisServer, provisioned: dict[str, Any], older: str | None
) -> None:
    key, ours = f"{provisioned['prefix']}gen", f"deprovisioner:gen:{provisioned['prefix']}"
    server.client.acl_deluser(provisioned["user"])
    server.client.delete(ours)
    if older == "a list":
        server.client.rpush(key, provisioned["generation"])
    elif older:
        server.client.set(key, str(uuid.uuid4()) if older == "another's" else provisioned["generation"] * 1000)
    assert isinstance(backend.inspect(provisioned), Different if older else Absent)
    with Server(server.service_dsn, frozenset()).connect() as session, suppress(client.ResponseError):
        assert not keys.take_over_older(session, provisioned)
    assert server.client.exists(ours) == 0


def test_the_user_stays_gone_after_the_acl_file_is_loaded_again(
    backend: Redis, server: RedisServer, provisioned: dict[str, Any]
) -> None:
    server.client.execute_command("ACL", "LOAD")
    assert provisioned["user"] in server.users(), "provision saved the user"
    backend.teardown(provisioned, 1)
    server.client.execute_command("ACL", "LOAD")
    assert provisioned["user"] not in server.users(), "the teardown saved its removal"


def test_a_quarantine_ends_connections_that_are_open(backend: Redis, provisioned: dict[str, Any]) -> None:
    held = client.Redis.from_url(provisioned["url"], single_connection_client=True, retry=None)
    held.ping()
    backend.quarantine(provisioned)
    with pytest.raises((client.AuthenticationError, client.ConnectionError)):
        held.ping()
    backend.teardown(provisioned, 1)


def test_workers_that_race_at_one_namespace_leave_it_absent(
    backend: Redis, server: RedisServer, provisioned: dict[str, Any]
) -> None:
    for n in range(3000):
        server.client.set(f"{provisioned['prefix']}{n}", n)
    barrier, failures = threading.Barrier(4), []

    def tear() -> None:
        barrier.wait()
        try:
            backend.teardown(provisioned, 1)
        except Transient as error:  # it lost the race, and the runner would try again
            failures.append(error)

    threads = [threading.Thread(target=tear) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(failures) < 4
    assert isinstance(backend.inspect(provisioned), Absent)
    assert not server.bears(provisioned)


# Which of the zombie's checks of identity: its first, the one before it disables the user, before it removes it.
NTH_CHECK = {"before": 1, "off": 2, "DELUSER": 3}


@pytest.mark.parametrize("step", NTH_CHECK)
def test_a_zombie_cannot_reach_the_new_owner_of_the_names(
    backend: Redis, server: RedisServer, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """It is paused between a check and what follows; another worker ends the teardown, and the names are used again."""
    user, prefix, generation = an_acl_user(server), f"{uuid.uuid4().hex}:", uuid.uuid4()
    old = backend.adopt({"user": user, "prefix": prefix}, generation)
    honest = identity.judge
    checks = 0

    def pauses(session: Any, manifest: Any) -> Any:
        nonlocal checks
        seen = honest(session, manifest)
        checks += 1
        if checks == NTH_CHECK[step]:
            monkeypatch.setattr(identity, "judge", honest)
            Redis(server.service_dsn).teardown(old, 2)
            server.client.execute_command("ACL", "SETUSER", user, "on", ">new", "~x", "+@all")
            server.client.set(f"{prefix}precious", 42)
        return seen

    monkeypatch.setattr(identity, "judge", pauses)
    with pytest.raises((Transient, Refused)) as caught:
        backend.teardown(old, 1)
    assert "was replaced by another" not in str(caught.value), "it was not even switched off"
    assert checks == NTH_CHECK[step], "the zombie was paused"
    assert server.client.get(f"{prefix}precious") == "42"
    assert server.client.acl_getuser(user)["enabled"] is True


def test_a_zombie_that_would_write_the_generation_key_again_removes_it(
    backend: Redis, server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The key was flushed; the zombie is paused before it writes it, and meanwhile the names are another's."""
    user, prefix = an_acl_user(server), f"{uuid.uuid4().hex}:"
    old = backend.adopt({"user": user, "prefix": prefix}, uuid.uuid4())
    server.client.delete(f"deprovisioner:gen:{prefix}")
    honest = keys.plant

    def pauses(session: Any, manifest: Any) -> bool:
        monkeypatch.setattr(keys, "plant", honest)
        Redis(server.service_dsn).teardown(old, 2)
        server.client.execute_command("ACL", "SETUSER", user, "on", ">new", "~x", "+@all")
        server.client.set(f"{prefix}precious", 42)
        return honest(session, manifest)

    monkeypatch.setattr(keys, "plant", pauses)
    with pytest.raises(Transient, match="was removed or replaced"):
        backend.teardown(old, 1)
    assert server.client.get(f"{prefix}precious") == "42"
    assert server.client.exists(f"deprovisioner:gen:{prefix}") == 0


@pytest.mark.parametrize("program", ["redis", "valkey"])
@pytest.mark.parametrize("step", ["off", "DELUSER"])
@pytest.mark.parametrize("how", ["replaced", "removed"])
def test_a_user_that_takes_the_name_between_check_and_act_is_made_again(
    program: str, tmp_path: Path, step: str, how: str
) -> None:
    with redis_servers.running(program, tmp_path) as own:
        proxy = Proxy(own.client.connection_pool.connection_kwargs["port"])
        backend = Redis(f"redis://127.0.0.1:{proxy.port}/0")
        plan = backend.plan(uuid.uuid4(), uuid.uuid4())
        made = backend.provision(plan.manifest, plan.credentials)
        database = ("db=0,3",) if program == "valkey" else ()
        rules = ("nopass", "~theirs:*", "%R~more:*", "&c*", "-@all", "+@read", "+info", *database, "(~s:* +set)")

        def users() -> list[str]:  # `reset` sets a flag of Redis 7 that is the default anyway
            return [line.replace(" sanitize-payload", "") for line in own.client.acl_list()]

        def take() -> None:
            own.client.acl_deluser(made["user"])
            if how == "replaced":
                own.client.execute_command("ACL", "SETUSER", made["user"], "on", *rules)
                own.client.execute_command("ACL", "SETUSER", made["user"], "resetpass", ">new", ">second")
                stranger.append(users())

        stranger: list[Any] = []
        proxy.hold("DELUSER" if step == "DELUSER" else "\r\noff\r\n", take)
        if how == "replaced":
            with pytest.raises(Refused, match="was replaced by another"):
                backend.teardown(made, 1)
            assert users() == stranger[0]
            own.client.execute_command("ACL", "LOAD")
            assert users() == stranger[0], "it was saved"
            assert client.Redis.from_url(own.url.replace("redis://", f"redis://{made['user']}:second@")).info()
            assert isinstance(backend.inspect(made), Different)
        else:
            with pytest.raises(Transient) if step == "off" else nullcontext():
                backend.teardown(made, 1)
            backend.teardown(made, 1)
            assert isinstance(backend.inspect(made), Absent)
            assert not own.bears(made)
        assert proxy.cuts == 1, "the statement was held"
        proxy.close()
