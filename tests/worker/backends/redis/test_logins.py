"""Who tried to log in to a user in quarantine, by the server's own log; on Redis 7.0 and Valkey 9."""

import datetime as dt
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis as client

from outbox.errors import Refused, Transient
from tests.support import accounts, redis_servers
from tests.support.witness import RedisServer
from worker.backends import LoginAttempts
from worker.backends.redis import Redis, logins

BEFORE = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)


@pytest.fixture(params=["redis", "valkey"])
def own(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RedisServer]:
    with redis_servers.running(request.param, tmp_path) as server:
        yield server


@pytest.fixture
def backend(own: RedisServer) -> Redis:
    return Redis(own.service_dsn)


@pytest.fixture
def made(backend: Redis) -> dict[str, Any]:
    plan = backend.plan(uuid.uuid4(), uuid.uuid4())
    manifest = backend.provision(plan.manifest, plan.credentials)
    backend.quarantine(manifest)
    return manifest


def _tries(own: RedisServer, user: str, times: int = 1, *, host: str = "127.0.0.1", how: str = "AUTH") -> None:
    """Somebody tries to log in, and is told no."""
    port = own.client.connection_pool.connection_kwargs["port"]
    words = ("AUTH", user, "p") if how == "AUTH" else ("HELLO", "3", "AUTH", user, "p")
    with client.Redis(host=host, port=port, retry=None, single_connection_client=True) as one:
        for _ in range(times):
            with pytest.raises(client.AuthenticationError):
                one.execute_command(*words)


def _found(backend: Redis, made: dict[str, Any], since: dt.datetime = BEFORE) -> LoginAttempts:
    found = backend.login_attempts(made, since)
    assert found is not None
    return found


def test_attempts_are_counted_with_where_they_came_from(own: RedisServer, backend: Redis, made: dict[str, Any]) -> None:
    assert backend.login_attempts(made, BEFORE) is None
    own.client.acl_log_reset()
    began = dt.datetime.now(dt.UTC)
    _tries(own, made["user"], 3)
    _tries(own, made["user"], 2, how="HELLO")
    _tries(own, f"usr_{uuid.uuid4().hex}")
    found = _found(backend, made)
    assert (found.count, found.addresses) == (5, ["127.0.0.1"])
    assert sum(found.groups.values()) == 5
    assert abs(found.last_at - began) < dt.timedelta(seconds=30)


def test_what_the_customer_may_not_do_is_no_attempt_to_log_in(own: RedisServer, backend: Redis) -> None:
    plan = backend.plan(uuid.uuid4(), uuid.uuid4())
    made = backend.provision(plan.manifest, plan.credentials)
    with client.Redis.from_url(plan.credentials["url"]) as customer, pytest.raises(client.exceptions.NoPermissionError):
        customer.get("not mine")
    assert backend.login_attempts(made, BEFORE) is None


def test_only_attempts_after_a_moment_are_told(own: RedisServer, backend: Redis, made: dict[str, Any]) -> None:
    _tries(own, made["user"])
    found = _found(backend, made)
    assert backend.login_attempts(made, found.last_at + dt.timedelta(seconds=1)) is None


def test_a_group_that_grows_keeps_its_name(own: RedisServer, backend: Redis, made: dict[str, Any]) -> None:
    _tries(own, made["user"], 2)
    first = _found(backend, made)
    _tries(own, made["user"], 3)
    second = _found(backend, made, first.last_at - dt.timedelta(milliseconds=5))
    assert (first.groups.keys(), first.count, second.count) == (second.groups.keys(), 2, 5)


def test_long_names_in_the_log_are_not_read(own: RedisServer, backend: Redis, made: dict[str, Any]) -> None:
    _tries(own, made["user"])
    _tries(own, "u" * (logins.LONGEST + 1))
    with pytest.raises(Transient, match="are read"):
        backend.login_attempts(made, BEFORE)


def test_an_account_that_may_not_read_the_log_tells_nothing(own: RedisServer, made: dict[str, Any]) -> None:
    _tries(own, made["user"])
    own.client.execute_command("ACL", "SETUSER", accounts.NAME, "-acl|log")
    assert Redis(own.service_dsn).login_attempts(made, BEFORE) is None


def test_another_server_is_not_asked(own: RedisServer, backend: Redis, made: dict[str, Any]) -> None:
    with pytest.raises(Refused):
        backend.login_attempts(made | {"server": "another"}, BEFORE)


@pytest.mark.parametrize(
    ("info", "address"),
    [
        ("id=1 addr=10.0.0.1:5 laddr=127.0.0.1:1 fd=8 name=addr=9.9.9.9:1", "10.0.0.1"),
        ("id=1 addr=[2001:db8::1]:5 laddr=[::1]:1 fd=8 name=", "[2001:db8::1]"),
        ("id=1 addr=/run/redis.sock:0 laddr=/run/redis.sock:0 fd=8", "/run/redis.sock"),
    ],
)
def test_an_address_is_read_without_its_port(info: str, address: str) -> None:
    found = logins._ADDRESS.search(info)
    assert found is not None
    assert found[1] == address
