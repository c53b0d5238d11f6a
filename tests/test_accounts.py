"""The service's accounts: the documented statements, on every supported version."""

import psycopg2
import pytest
import redis

from deprovisioner.up import accounts as up_accounts
from tests.support import accounts
from tests.support.servers import Servers
from tests.support.witness import PgServer, RedisServer


@pytest.fixture(params=["18", "15"])
def pg(request: pytest.FixtureRequest, servers: Servers) -> PgServer:
    return servers.pg if request.param == "18" else request.getfixturevalue("postgres15")


@pytest.fixture(params=["valkey9", "redis7"])
def cache(request: pytest.FixtureRequest, servers: Servers) -> RedisServer:
    return servers.redis if request.param == "valkey9" else request.getfixturevalue("redis7")


def test_up_makes_the_documented_accounts() -> None:
    assert accounts.documented("postgres") == [up_accounts.POSTGRES]
    assert accounts.documented("redis") == [up_accounts.REDIS]
    assert accounts.NAME == up_accounts.NAME


def test_the_documented_role_is_no_superuser(pg: PgServer) -> None:
    psycopg2.connect(pg.service_dsn).close()
    rights = "SELECT rolsuper, rolcreatedb, rolcreaterole, rolreplication, rolbypassrls FROM pg_roles"
    assert pg.query(f"{rights} WHERE rolname = %s", accounts.NAME) == [(False, True, True, False, False)]


def test_the_documented_user_may_not_stop_or_empty_its_server(cache: RedisServer) -> None:
    with redis.Redis.from_url(cache.service_dsn) as client:
        assert client.ping()
        for command in ("SHUTDOWN", "FLUSHALL", "CONFIG SET maxmemory 1", "REPLICAOF NO ONE", "KEYS *"):
            with pytest.raises(redis.exceptions.NoPermissionError):
                client.execute_command(*command.split())
