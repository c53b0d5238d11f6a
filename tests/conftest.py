"""Servers for the whole run, a migrated database for each test, and the product's own processes on request."""

import itertools
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psycopg2
import pytest
from sqlalchemy import Connection

from deprovisioner.up import servers as embedded
from deprovisioner.up.servers import Child
from outbox import credentials, doorbell, settings, tokens
from outbox import db as database
from tests.support.processes import System, client
from tests.support.witness import PgServer, RedisServer

_NUMBERS = itertools.count()
KEPT = "KEPT_SERVERS"
# Crash-safety of the servers' own disks is not what is tested here, and fsync would be most of the time.
_FAST = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
BACKENDS = """
[backends.pg-main]
kind = "postgres"
dsn = "env:PG_MAIN_DSN"
concurrency = 8

[backends.redis-main]
kind = "redis"
dsn = "env:REDIS_MAIN_URL"
concurrency = 8
"""


@dataclass
class Servers:
    """The embedded servers: where they are, how to stop and start them, what they say."""

    home: Path
    control: PgServer
    pg: PgServer
    redis: RedisServer
    broker: RedisServer
    children: dict[str, Child] = field(default_factory=dict)  # none where somebody else keeps them

    def tell(self) -> str:
        """Where they are, for another process."""
        pg = {name: [server.dsn, str(server.log)] for name, server in (("control", self.control), ("pg", self.pg))}
        return json.dumps(pg | {"home": str(self.home), "redis": self.redis.url, "broker": self.broker.url})

    @classmethod
    def told(cls, words: str) -> "Servers":
        """What `tell` told of."""
        said = json.loads(words)
        control, pg = (PgServer(dsn, Path(log)) for dsn, log in (said["control"], said["pg"]))
        return cls(Path(said["home"]), control, pg, RedisServer(said["redis"]), RedisServer(said["broker"]))


@contextmanager
def serving() -> Iterator[Servers]:
    """Servers of one's own, for as long as the block lasts."""
    home = Path(tempfile.mkdtemp(prefix="deprovisioner-tests-"))
    started: dict[str, Child] = {}

    def postgres(name: str, **options: str) -> PgServer:
        port = embedded.free_port()
        child = started[name] = embedded.postgres(home, name, port, "secret", _FAST | options)
        dsn = embedded.postgres_dsn(port, "secret")
        child.spawn()
        child.wait_until(lambda: embedded.postgres_ready(dsn))
        return PgServer(dsn, child.log)

    def valkey(name: str, *, durable: bool) -> RedisServer:
        port = embedded.free_port()
        child = started[name] = embedded.valkey(home, name, port, durable=durable)
        url = embedded.valkey_url(port)
        child.spawn()
        child.wait_until(lambda: embedded.valkey_ready(url))
        return RedisServer(url)

    try:
        yield Servers(
            home,
            control=postgres("control"),
            pg=postgres("pg-main", log_statement="ddl", max_prepared_transactions="10", wal_level="logical"),
            redis=valkey("redis-main", durable=True),
            broker=valkey("broker", durable=False),
            children=started,
        )
    finally:
        for child in started.values():
            child.stop()
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    """Those that KEPT_SERVERS tells of, where somebody keeps them from run to run; else new ones."""
    if kept := os.environ.get(KEPT):
        yield Servers.told(kept)
        return
    with serving() as made:
        yield made


@pytest.fixture(scope="session")
def template(servers: Servers) -> str:
    """A migrated database that each test's is copied from."""
    servers.control.query("CREATE DATABASE tpl")
    with pytest.MonkeyPatch.context() as patch:
        _settle(patch, {"DEPROVISIONER_DATABASE_URL": _in(servers.control.dsn, "tpl")})
        import migrations

        migrations.upgrade()
        _forget()
    return "tpl"


@pytest.fixture
def env(servers: Servers, template: str, tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of a test's own installation: a fresh control database, the shared backends."""
    name = f"t{os.getpid()}_{next(_NUMBERS)}"
    servers.control.query(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy")
    backends = tmp_path / "backends.toml"
    backends.write_text(BACKENDS)
    yield {
        "DEPROVISIONER_DATABASE_URL": _in(servers.control.dsn, name),
        # A broker database of its own, so that no test hears another's bell.
        "DEPROVISIONER_BROKER_URL": servers.broker.url.removesuffix("/0")
        + f"/{int(name.rsplit('_', maxsplit=1)[-1]) % 15 + 1}",
        "DEPROVISIONER_BACKENDS": str(backends),
        "DEPROVISIONER_CREDENTIALS_KEY": "QqzGw4kG3n6pTgU3aYQ1n8cYqH1m3C5v0b7xJ2r9d0E=",
        "DEPROVISIONER_LEASE_SECONDS": "3",
        "DEPROVISIONER_SWEEP_SECONDS": "0.5",
        "DEPROVISIONER_BACKOFF_BASE_SECONDS": "0.2",
        "PG_MAIN_DSN": servers.pg.dsn,
        "REDIS_MAIN_URL": servers.redis.url,
    }
    servers.control.query(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def settled(env: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """This process takes `env` for its own settings."""
    _settle(monkeypatch, env)
    yield env
    _forget()


@pytest.fixture
def db(settled: dict[str, str]) -> Iterator[Connection]:
    """A connection to the test's control database; each statement is its own transaction."""
    with database.statement() as session:
        yield session


@pytest.fixture
def connect(env: dict[str, str]) -> Iterator[Callable[[], "psycopg2.extensions.connection"]]:
    """Further connections to the test's control database, outside the product's pool."""
    opened = []

    def open_one() -> "psycopg2.extensions.connection":
        opened.append(psycopg2.connect(env["DEPROVISIONER_DATABASE_URL"]))
        return opened[-1]

    yield open_one
    for connection in opened:
        connection.close()


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder for servers of a test's own. Not `tmp_path`: pytest shuts root's off from the user they run as."""
    made = Path(tempfile.mkdtemp(prefix="deprovisioner-test-"))
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture
def system(env: dict[str, str], tmp_path: Path) -> Iterator[System]:
    """The product's processes; none runs until asked for."""
    made = System(env, tmp_path)
    yield made
    made.stop()


@pytest.fixture
def operator(db: Connection) -> str:
    """An operator's token."""
    return tokens.create(db, role="operator", tenant=None, name="op")[1]


@pytest.fixture
def tenant(db: Connection) -> str:
    """A token of tenant `acme`."""
    return tokens.create(db, role="tenant", tenant="acme", name="acme")[1]


@pytest.fixture
def acme(system: System, tenant: str):
    """An HTTP client of tenant `acme`, on an API process of its own."""
    with client(system.api(), tenant) as made:
        yield made


def _in(dsn: str, name: str) -> str:
    return dsn.rsplit("/", 1)[0] + f"/{name}"


def _settle(patch: pytest.MonkeyPatch, env: dict[str, str]) -> None:
    for name in [name for name in os.environ if name.startswith("DEPROVISIONER_")]:
        patch.delenv(name)
    for name, value in env.items():
        patch.setenv(name, value)
    _forget()


def _forget() -> None:
    if database.engine.cache_info().currsize:
        database.engine().dispose()
    for cached in (
        settings.get,
        settings.backends,
        settings._tenants,
        database.engine,
        credentials._keys,
        doorbell.celery.sender,
        doorbell.redis.client_for,
    ):
        cached.cache_clear()
