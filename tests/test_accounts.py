"""The service's accounts: the documented statements, on every supported version."""

import uuid
from contextlib import suppress
from pathlib import Path

import psycopg2
import pytest
import redis

from deprovisioner.up import accounts as up_accounts
from outbox.errors import BackendError
from outbox.kinds.postgres import KIND
from tests.support import accounts, redis_servers
from tests.support.servers import Servers
from tests.support.snapshots import Sink
from tests.support.witness import PgServer, RedisServer, an_acl_user
from worker.backends import Absent, always, mark
from worker.backends.postgres import Postgres
from worker.backends.redis import Redis


@pytest.fixture(params=["18", "15"])
def pg(request: pytest.FixtureRequest, servers: Servers) -> PgServer:
    return servers.pg if request.param == "18" else request.getfixturevalue("postgres15")


@pytest.fixture(params=["valkey9", "redis7"])
def cache(request: pytest.FixtureRequest, servers: Servers) -> RedisServer:
    return servers.redis if request.param == "valkey9" else request.getfixturevalue("redis7")


def test_up_makes_the_documented_accounts() -> None:
    assert accounts.documented("postgres") == [*up_accounts.POSTGRES]
    assert accounts.documented("redis") == [up_accounts.REDIS]
    assert accounts.documented("mysql") == [*up_accounts.MYSQL]
    assert accounts.documented("slots") == [up_accounts.SLOTS]
    assert accounts.NAME == up_accounts.NAME
    takeover = "\n".join(accounts.documented("takeover")).split(" \\gexec")
    assert [statement.strip() for statement in takeover if statement] == [s.strip() for s in up_accounts.TAKEOVER]


def test_what_a_superuser_made_and_adopted_is_handed_over(pg: PgServer) -> None:
    """`up` runs these statements, and so do the administrators of other servers; a stranger's database stays."""
    adopted, stranger, app = [f"{word}_{uuid.uuid4().hex}" for word in ("adopted", "stranger", "app")]
    for statement in (f"CREATE ROLE {app}", f"CREATE DATABASE {adopted} OWNER {app}", f"CREATE DATABASE {stranger}"):
        pg.query(statement)
    generation, superuser, service = uuid.uuid4(), Postgres(pg.dsn), Postgres(pg.service_dsn)
    plan = superuser.plan(uuid.uuid4(), uuid.uuid4())
    made = superuser.provision(plan.manifest, plan.credentials)
    taken = superuser.adopt(KIND.manifest(database=adopted, role=app, generation=str(generation)), generation)
    boss = f"boss_{uuid.uuid4().hex}"
    pg.query(f"CREATE ROLE {boss} SUPERUSER")
    pg.query(f"COMMENT ON ROLE {boss} IS %s", mark(str(uuid.uuid4())))
    for statement in up_accounts.TAKEOVER:
        for (handover,) in pg.query(statement):
            pg.query(handover)
    members = "SELECT pg_has_role(%s, %s, 'MEMBER')"
    assert pg.query(members, accounts.NAME, boss) == [(False,)], "a service that is granted a superuser is one"
    for manifest in (made, taken):
        service.teardown(manifest, 1)
        assert not pg.bears(manifest)
    owner = "SELECT rolname FROM pg_roles JOIN pg_database ON datdba = pg_roles.oid WHERE datname = %s"
    assert pg.query(owner, stranger) == [("postgres",)]
    pg.query(f"DROP DATABASE {stranger}")
    pg.query(f"DROP ROLE {boss}")


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
    "acl|log",  # without it, nobody hears who still logs in to what is in quarantine
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
    sink = Sink()
    source = backend.snapshot(made, sink.write, always)
    backend.verify_snapshot(made, sink.read, source, always)
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
        _lives(server, server.service_dsn)
        needless = []
        for command in _granted():
            for user in server.client.acl_users():
                if user not in ("default", accounts.NAME):
                    server.client.acl_deluser(user)
            server.client.flushall()
            server.client.execute_command("ACL", "SETUSER", accounts.NAME, f"-{command}")
            with suppress(BackendError):
                _lives(server, server.service_dsn)
                needless.append(command)
            server.client.execute_command("ACL", "SETUSER", accounts.NAME, f"+{command}")
        assert set(needless) == _KEPT
