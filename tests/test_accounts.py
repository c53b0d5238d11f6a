"""The service's accounts: the documented statements, on every supported version."""

import uuid
from contextlib import suppress
from pathlib import Path

import psycopg2
import pytest
import redis

from outbox.errors import BackendError
from tests.support import accounts, redis_servers
from tests.support.servers import Servers
from tests.support.witness import PgServer, RedisServer, an_acl_user
from worker.backends import Absent
from worker.backends.redis import Redis


@pytest.fixture(params=["18", "15"])
def pg(request: pytest.FixtureRequest, servers: Servers) -> PgServer:
    return servers.pg if request.param == "18" else request.getfixturevalue("postgres15")


@pytest.fixture(params=["valkey9", "redis7"])
def cache(request: pytest.FixtureRequest, servers: Servers) -> RedisServer:
    return servers.redis if request.param == "valkey9" else request.getfixturevalue("redis7")


def test_the_documented_role_is_no_superuser(pg: PgServer) -> None:
    psycopg2.connect(pg.service_dsn).close()
    rights = "SELECT rolsuper, rolcreatedb, rolcreaterole, rolreplication, rolbypassrls FROM pg_roles"
    assert pg.query(f"{rights} WHERE rolname = %s", accounts.NAME) == [(False, True, True, False, False)]


def test_the_documented_user_may_not_stop_or_empty_its_server(cache: RedisServer) -> None:
    with redis.Redis.from_url(cache.service_dsn) as client:
        assert client.acl_whoami() == accounts.NAME
        for command in ("SHUTDOWN", "FLUSHALL", "CONFIG SET maxmemory 1", "REPLICAOF NO ONE", "KEYS *"):
            with pytest.raises(redis.exceptions.NoPermissionError):
                client.execute_command(*command.split())


# Commands without which the product goes on, and why they are granted all the same.
_KEPT = {
    "ping",  # an administrator tries the account with it
    "config|get",  # without it, a server that has no aclfile looks like one that cannot write it
}


def _granted() -> list[str]:
    """The commands that the documented Redis user may run, as its rules name them."""
    (rules,) = accounts.documented("redis")
    return [word[1:] for word in rules.split() if word.startswith("+")]


def _lives(server: RedisServer, url: str) -> None:
    """Use everything that the account is for, on a server without an identity: raises where one command is missing."""
    backend = Redis(url)
    plan = backend.plan(uuid.uuid4(), uuid.uuid4())
    made = backend.provision(plan.manifest, plan.credentials)
    other = redis.Redis.from_url(server.url, db=1)
    other.set(f"{made['prefix']}elsewhere", 1)
    other.close()
    backend.quarantine(made)
    backend.release(made)
    existing = {"user": an_acl_user(server), "prefix": f"{uuid.uuid4()}:"}
    adopted = backend.adopt(existing, uuid.uuid4())
    for manifest in (made, adopted):
        backend.teardown(manifest, 1)
        assert isinstance(backend.inspect(manifest), Absent)
    assert server.client.keys(f"{made['prefix']}*") == []


@pytest.mark.parametrize("program", ["valkey", "redis"])
def test_every_command_of_the_documented_user_is_needed(program: str, folder: Path) -> None:
    with redis_servers.running(program, folder / program) as server:
        url = accounts.valkey(server.url)
        _lives(server, url)
        needless = []
        for command in _granted():
            for user in server.client.acl_users():
                if user not in ("default", accounts.NAME):
                    server.client.acl_deluser(user)
            server.client.flushall()
            server.client.execute_command("ACL", "SETUSER", accounts.NAME, f"-{command}")
            with suppress(BackendError):
                _lives(server, url)
                needless.append(command)
            server.client.execute_command("ACL", "SETUSER", accounts.NAME, f"+{command}")
        assert set(needless) == _KEPT
