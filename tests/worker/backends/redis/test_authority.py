"""Which server may say that a namespace is gone, and how it is known; on Redis 7 and Valkey 9, each test's own."""

import shutil
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis as client

from deprovisioner.conformance.verbs import every_verb
from outbox.errors import OutOfService, Refused, Transient, Unavailable
from tests.support import accounts, redis_servers
from tests.support.proxy import Proxy
from tests.support.witness import RedisServer, an_acl_user
from worker.backends import Absent, Different, Same
from worker.backends.redis import Redis, identity

KEY = identity.SERVER_KEY


@pytest.fixture(params=["redis", "valkey"])
def program(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def own(program: str, tmp_path: Path) -> Iterator[RedisServer]:
    with redis_servers.running(program, tmp_path / "own") as server:
        yield server


def _made(server: RedisServer) -> dict[str, Any]:
    backend = Redis(server.service_dsn)
    plan = backend.plan(uuid.uuid4(), uuid.uuid4())
    made = backend.provision(plan.manifest, plan.credentials)
    server.client.set(f"{made['prefix']}a", 1)
    return made | {"url": plan.credentials["url"]}


def _as_an_older_version_left_it(server: RedisServer, manifest: dict[str, Any]) -> None:
    server.client.acl_deluser(f"{identity.SERVER_USER}{manifest['server']}")
    server.client.set(KEY, manifest["server"])


def test_a_life_with_the_documented_rights(own: RedisServer) -> None:
    backend = Redis(accounts.valkey(own.url))
    plan = backend.plan(uuid.uuid4(), uuid.uuid4())
    made = backend.provision(plan.manifest, plan.credentials)
    client.Redis.from_url(plan.credentials["url"]).set(f"{made['prefix']}a", 1)
    backend.quarantine(made)
    backend.release(made)
    assert isinstance(backend.inspect(made), Same)
    backend.teardown(made, 1)
    assert isinstance(backend.inspect(made), Absent)
    user = an_acl_user(own)
    adopted = backend.adopt({"user": user, "prefix": f"{uuid.uuid4().hex}:"}, uuid.uuid4())
    backend.teardown(adopted, 1)
    assert own.users() == {"default", accounts.NAME, f"{identity.SERVER_USER}{made['server']}"}


def test_the_server_s_identity_may_do_nothing(own: RedisServer) -> None:
    made = _made(own)
    user = own.client.acl_getuser(f"{identity.SERVER_USER}{made['server']}")
    assert (user["enabled"], user["passwords"], user["keys"], user["channels"]) == (False, [], [], [])
    assert user["categories"] == ["-@all"]
    assert user["commands"] == []
    own.client.execute_command("ACL", "LOAD")
    assert Redis(own.service_dsn).plan(uuid.uuid4(), uuid.uuid4()).manifest["server"] == made["server"], "it was saved"


@pytest.mark.parametrize("how", ["flushed", "evicted"])
def test_lost_keys_change_no_identity(own: RedisServer, how: str) -> None:
    made, backend = _made(own), Redis(own.service_dsn)
    if how == "flushed":
        own.client.flushall()
    else:
        own.client.config_set("maxmemory-policy", "allkeys-lru")
        own.client.config_set("maxmemory", "3mb")
        for n in range(60):
            own.client.set(f"fill{n}", "x" * 100_000)
        own.client.delete(
            f"deprovisioner:gen:{made['prefix']}", KEY, f"{made['prefix']}a"
        )  # which ones go first is the server's choice
        own.client.config_set("maxmemory", "0")
    assert Redis(own.service_dsn).plan(uuid.uuid4(), uuid.uuid4()).manifest["server"] == made["server"]
    assert isinstance(backend.inspect(made), Same)
    backend.teardown(made, 1)
    assert isinstance(backend.inspect(made), Absent)
    assert not own.bears(made)


def test_a_replica_is_not_believed(program: str, own: RedisServer, tmp_path: Path) -> None:
    made = _made(own)
    with redis_servers.running(program, tmp_path / "replica") as replica:
        redis_servers.replicate(replica, own)
        for act in every_verb(Redis(replica.service_dsn), made, {"password": "p"}):
            with pytest.raises(Unavailable, match="is a replica"):
                act()
    assert isinstance(Redis(own.service_dsn).inspect(made), Same)


@pytest.mark.parametrize("older", [False, True], ids=["now", "older"])
def test_a_promoted_replica_never_says_absent(program: str, own: RedisServer, tmp_path: Path, older: bool) -> None:
    made = _made(own)
    if older:
        _as_an_older_version_left_it(own, made)
    with redis_servers.running(program, tmp_path / "replica") as replica:
        redis_servers.replicate(replica, own)
        replica.client.replicaof("no", "one")
        promoted = Redis(replica.service_dsn)
        for _ in range(2):
            seen = promoted.inspect(made)
            assert isinstance(seen, Different)
            with pytest.raises(Refused):
                promoted.teardown(made, 1)
            promoted.plan(uuid.uuid4(), uuid.uuid4())  # a birth there gives it an identity of its own
        assert replica.client.get(f"{made['prefix']}a") == "1"
    assert client.Redis.from_url(made["url"]).ping(), "the old primary's user lives"


def test_an_older_version_s_server_is_taken_over(own: RedisServer) -> None:
    first, second = _made(own), _made(own)
    backend = Redis(own.service_dsn)
    _as_an_older_version_left_it(own, first)
    before = own.users()
    assert isinstance(backend.inspect(first), Same)
    assert own.users() == before, "an inspection writes nothing"
    backend.teardown(first, 1)
    assert isinstance(backend.inspect(first), Absent)
    assert backend.plan(uuid.uuid4(), uuid.uuid4()).manifest["server"] == second["server"]
    backend.teardown(second, 1)
    assert isinstance(backend.inspect(second), Absent)


def test_a_plan_that_loses_the_race_for_the_identity_tries_again(own: RedisServer) -> None:
    proxy = Proxy(own.client.connection_pool.connection_kwargs["port"])
    slow, winners = Redis(f"redis://127.0.0.1:{proxy.port}/0"), []
    proxy.hold(
        f"\r\n{identity.SERVER_USER}",
        lambda: winners.append(Redis(own.url).plan(uuid.uuid4(), uuid.uuid4()).manifest["server"]),
    )
    with pytest.raises(Transient, match="names the server at this moment"):
        slow.plan(uuid.uuid4(), uuid.uuid4())
    assert [slow.plan(uuid.uuid4(), uuid.uuid4()).manifest["server"]] == winners
    assert own.users() - {"default", accounts.NAME} == {f"{identity.SERVER_USER}{winners[0]}"}
    proxy.close()


def test_an_identity_whose_planter_died_before_it_was_saved_is_saved_with_the_first_user(own: RedisServer) -> None:
    proxy = Proxy(own.client.connection_pool.connection_kwargs["port"])
    proxy.cut("before", "SAVE")
    with pytest.raises(Unavailable):
        Redis(f"redis://127.0.0.1:{proxy.port}/0").plan(uuid.uuid4(), uuid.uuid4())
    proxy.close()
    (planted,) = own.users() - {"default", accounts.NAME}
    made = _made(own)
    own.client.execute_command("ACL", "LOAD")
    assert own.users() - {"default", accounts.NAME} == {planted, made["user"]}
    assert isinstance(Redis(own.url).inspect(made), Same)


def test_racing_plans_agree_on_one_identity(own: RedisServer) -> None:
    barrier, found, lost = threading.Barrier(8), [], []

    def plan() -> None:
        barrier.wait()
        try:
            found.append(Redis(own.service_dsn).plan(uuid.uuid4(), uuid.uuid4()).manifest["server"])
        except Transient as error:
            lost.append(error)

    threads = [threading.Thread(target=plan) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found
    assert {f"{identity.SERVER_USER}{one}" for one in found} == own.users() - {"default", accounts.NAME}


def test_a_server_with_two_identities_is_not_believed(own: RedisServer) -> None:
    made, backend = _made(own), Redis(own.service_dsn)
    own.client.execute_command("ACL", "SETUSER", f"{identity.SERVER_USER}{uuid.uuid4()}", "reset")
    seen = backend.inspect(made)
    assert isinstance(seen, Different)
    assert "aclfile was copied" in seen.why
    for act in (lambda: backend.plan(uuid.uuid4(), uuid.uuid4()), lambda: backend.teardown(made, 1)):
        with pytest.raises(Refused, match="aclfile was copied"):
            act()


def test_a_user_under_another_name_is_found_by_its_mark(own: RedisServer) -> None:
    made, backend = _made(own), Redis(own.service_dsn)
    own.client.execute_command(
        "ACL", "SETUSER", "copy", "on", ">p", f"~{made['prefix']}*", "+@all", f"&deprovisioner:gen:{made['generation']}"
    )
    own.client.acl_deluser(made["user"])
    for _ in range(2):
        seen = backend.inspect(made)
        assert isinstance(seen, Different)
        assert "'copy'" in seen.why
        own.client.delete(f"deprovisioner:gen:{made['prefix']}", f"{made['prefix']}a")
    assert "copy" in own.users()


def test_keys_of_a_user_that_was_removed_by_hand_are_torn_down(own: RedisServer) -> None:
    made, backend = _made(own), Redis(own.service_dsn)
    own.client.acl_deluser(made["user"])
    assert isinstance(backend.inspect(made), Same)
    backend.teardown(made, 1)
    assert isinstance(backend.inspect(made), Absent)
    assert not own.bears(made)


def test_a_server_that_lost_everything_says_that_nothing_is_left(own: RedisServer) -> None:
    made, backend = _made(own), Redis(own.service_dsn)
    own.client.acl_deluser(f"{identity.SERVER_USER}{made['server']}")
    own.client.delete(KEY)
    seen = backend.inspect(made)
    assert isinstance(seen, Different)
    assert seen.seen["nothing_here"] is False
    own.client.acl_deluser(made["user"])
    own.client.flushall()
    for _ in range(2):
        seen = backend.inspect(made)
        assert isinstance(seen, Different)
        assert seen.seen["nothing_here"] is True
        assert "nothing of this resource is on this server" in seen.why
        backend.plan(uuid.uuid4(), uuid.uuid4())  # the new identity changes nothing for what was lost


def test_a_cluster_is_refused_at_birth(program: str, tmp_path: Path) -> None:
    with redis_servers.running(program, tmp_path, "--cluster-enabled", "yes") as server:
        with pytest.raises(Refused, match="Redis Cluster"):
            Redis(server.service_dsn).plan(uuid.uuid4(), uuid.uuid4())
        assert server.users() == {"default", accounts.NAME}


def test_a_server_that_forgets_its_users_is_refused_at_birth(program: str, tmp_path: Path) -> None:
    with redis_servers.running(program, tmp_path, aclfile=False) as server:
        for backend in (Redis(server.service_dsn),):
            with pytest.raises(Refused, match="volatile_users = true"):
                backend.plan(uuid.uuid4(), uuid.uuid4())
            with pytest.raises(Refused, match="volatile_users = true"):
                backend.adopt({"user": "u", "prefix": "u:"}, uuid.uuid4())
        assert server.users() == {"default", accounts.NAME}
        meant = Redis(server.service_dsn, volatile_users=True)
        plan = meant.plan(uuid.uuid4(), uuid.uuid4())
        made = meant.provision(plan.manifest, plan.credentials)
        Redis(server.service_dsn).teardown(made, 1)
        assert isinstance(meant.inspect(made), Absent)


@pytest.mark.parametrize("aclfile", [True, False])
def test_a_server_without_config_is_clear_at_birth_and_tolerated_at_death(
    program: str, tmp_path: Path, aclfile: bool
) -> None:
    with redis_servers.running(program, tmp_path, aclfile=aclfile) as server:
        plan = Redis(server.service_dsn, volatile_users=True).plan(uuid.uuid4(), uuid.uuid4())
        made = Redis(server.service_dsn, volatile_users=True).provision(plan.manifest, plan.credentials)
        server.client.execute_command("ACL", "SETUSER", "managed", "on", ">p", "~*", "&*", "+@all", "-config")
        managed = Redis(server.url.replace("redis://", "redis://managed:p@"))
        if aclfile:
            assert managed.plan(uuid.uuid4(), uuid.uuid4()).manifest["server"] == made["server"]
        else:
            with pytest.raises(Refused, match="keep its ACL users"):
                managed.plan(uuid.uuid4(), uuid.uuid4())
        managed.teardown(made, 1)
        assert isinstance(managed.inspect(made), Absent)
        assert not server.bears(made)


def test_an_aclfile_that_cannot_be_written_is_not_taken_for_none(program: str, folder: Path) -> None:
    with redis_servers.running(program, folder / "own") as server:
        made = _made(server)
        server.client.execute_command("ACL", "SETUSER", accounts.NAME, "-config")
        shutil.rmtree(folder / "own")
        with pytest.raises(OutOfService, match="cannot write its aclfile"):
            Redis(server.service_dsn).teardown(made, 1)
        assert not server.client.acl_getuser(made["user"])["enabled"], "switched off all the same"
        with pytest.raises(OutOfService, match="cannot write its aclfile"):
            Redis(server.service_dsn).plan(uuid.uuid4(), uuid.uuid4())
        assert server.bears(made), "a restart would bring its user back"
        (folder / "own").mkdir()
        Redis(server.service_dsn).teardown(made, 2)
        assert not server.bears(made)
        assert made["user"] not in (folder / "own" / "users.acl").read_text()
