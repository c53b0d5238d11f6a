"""The embedded servers that tests run on, and the environment that makes this process use them."""

import itertools
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psycopg2
import pytest

from deprovisioner.up import servers as embedded
from deprovisioner.up.servers import Child
from outbox import credentials, doorbell, settings
from outbox import db as database
from tests.support import accounts
from tests.support.witness import PgServer, RedisServer

KEPT = "KEPT_SERVERS"  # the variable with the servers that outlive a run; see `Servers.to_json`
# No test here crashes a server's machine, and fsync would take most of the time.
_FAST = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "deprovisioner.throwaway": "on",
}
# A test's servers are small, but each makes and drops databases by the hundred: 350 ms each on a disk, 25 ms in memory.
_MEMORY = Path("/dev/shm")
_MEMORY_BYTES = 4 << 30  # twice what two servers with a million rows each take
# Second servers of the oldest versions that are supported; Debian's places.
OLD_POSTGRES_PROGRAMS = Path(os.environ.get("TEST_OLD_POSTGRES_PROGRAMS", "/usr/lib/postgresql/15/bin"))
OLD_REDIS_PROGRAM = Path(os.environ.get("TEST_OLD_REDIS_PROGRAM", "/usr/bin/redis-server"))
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
    """The embedded servers: their addresses, their processes, and what they report."""

    home: Path
    control: PgServer
    pg: PgServer
    redis: RedisServer
    broker: RedisServer
    children: dict[str, Child] = field(default_factory=dict)  # empty where another process started them

    def to_json(self) -> str:
        """Addresses and logs, for another process."""
        named = (("control", self.control), ("pg", self.pg))
        pg = {name: [server.dsn, str(server.log), server.service_dsn] for name, server in named}
        cache = [self.redis.url, self.redis.service_dsn]
        return json.dumps(pg | {"home": str(self.home), "redis": cache, "broker": self.broker.url})

    @classmethod
    def from_json(cls, text: str) -> "Servers":
        """The servers that another process's `to_json` describes."""
        read = json.loads(text)
        control, pg = (PgServer(dsn, Path(log), service) for dsn, log, service in (read["control"], read["pg"]))
        return cls(Path(read["home"]), control, pg, RedisServer(*read["redis"]), RedisServer(read["broker"]))


def server_folder(name: str) -> Path:
    """A new folder for servers' files: in memory where that is large enough, else where the system keeps such files.

    Not `tmp_path`: pytest closes root's to other users, and the servers run as one.
    """
    fits = os.access(_MEMORY, os.W_OK) and shutil.disk_usage(_MEMORY).free > _MEMORY_BYTES
    asked = "TMPDIR" in os.environ
    return Path(tempfile.mkdtemp(prefix=f"deprovisioner-{name}-", dir=_MEMORY if fits and not asked else None))


@contextmanager
def serving() -> Iterator[Servers]:
    """Start servers, and stop them at the end of the block."""
    home = server_folder("tests")
    started: dict[str, Child] = {}
    try:
        yield Servers(
            home,
            control=_postgres(started, home, "control"),
            pg=_postgres(started, home, "pg-main", backend=True),
            redis=_valkey(started, home, "redis-main", backend=True),
            broker=_valkey(started, home, "broker"),
            children=started,
        )
    finally:
        _end(started, home)


@contextmanager
def serving_old_postgres() -> Iterator[PgServer]:
    """A PostgreSQL of OLD_POSTGRES_PROGRAMS with the documented account; skips the test where there is none."""
    if not (OLD_POSTGRES_PROGRAMS / "postgres").exists():
        pytest.skip(f"no PostgreSQL 15 in {OLD_POSTGRES_PROGRAMS}; TEST_OLD_POSTGRES_PROGRAMS names another folder")
    with serving_postgres(OLD_POSTGRES_PROGRAMS) as server:
        yield server


@contextmanager
def serving_postgres(programs: Path | None = None) -> Iterator[PgServer]:
    """One PostgreSQL with the documented account; `programs`: the folder of another version."""
    home, started = server_folder("pg"), {}
    try:
        yield _postgres(started, home, "backend", backend=True, programs=programs)
    finally:
        _end(started, home)


@contextmanager
def serving_old_redis() -> Iterator[RedisServer]:
    """A server of OLD_REDIS_PROGRAM with the documented account; skips the test where there is none."""
    if not OLD_REDIS_PROGRAM.exists():
        pytest.skip(f"no Redis 7 at {OLD_REDIS_PROGRAM}; TEST_OLD_REDIS_PROGRAM names another place")
    with serving_redis(OLD_REDIS_PROGRAM) as server:
        yield server


@contextmanager
def serving_redis(program: Path | None = None) -> Iterator[RedisServer]:
    """One Valkey with the documented account; `program`: another server's."""
    home, started = server_folder("redis"), {}
    try:
        yield _valkey(started, home, "backend", backend=True, program=program)
    finally:
        _end(started, home)


def _postgres(
    started: dict[str, Child], home: Path, name: str, *, backend: bool = False, programs: Path | None = None
) -> PgServer:
    options = {"log_statement": "ddl", "max_prepared_transactions": "10", "wal_level": "logical"} if backend else {}
    if backend and programs is None:
        options |= {"reserved_connections": "5"}  # from version 16 on
    if programs is None:  # older versions do not know the setting
        options["scram_iterations"] = "1"
    port = embedded.free_port()
    child = started[name] = embedded.postgres(home, name, port, "secret", _FAST | options, programs=programs)
    dsn = embedded.postgres_dsn(port, "secret")
    child.spawn()
    child.wait_until(lambda: embedded.postgres_ready(dsn))
    _hash_again(dsn)
    return PgServer(dsn, child.log, accounts.postgres(dsn) if backend else "")


def _hash_again(dsn: str) -> None:
    """Store the superuser's password with the server's `scram_iterations`: they are half of what a log-in costs."""
    with closing(psycopg2.connect(dsn, options="-c log_statement=none")) as session:
        session.autocommit = True
        session.cursor().execute("ALTER ROLE postgres PASSWORD 'secret'")


def _valkey(
    started: dict[str, Child], home: Path, name: str, *, backend: bool = False, program: Path | None = None
) -> RedisServer:
    port = embedded.free_port()
    child = started[name] = embedded.valkey(home, name, port, durable=backend, program=program)
    url = embedded.valkey_url(port)
    child.spawn()
    child.wait_until(lambda: embedded.valkey_ready(url))
    return RedisServer(url, accounts.valkey(url) if backend else "")


def _end(started: dict[str, Child], home: Path) -> None:
    for child in started.values():
        child.stop()
    shutil.rmtree(home, ignore_errors=True)


class Copies:
    """Copies of a database, one for each test: while a test runs, the next is made and the one before is dropped.

    The thread that does it has one connection, and makes none: libpq reads the environment as it connects, and crashes
    where the next test's fixtures are setting it.
    """

    def __init__(self, server: PgServer, template: str) -> None:
        self._server, self._template = server, template
        self._numbers = itertools.count()
        self._connect()
        self._thread = ThreadPoolExecutor(1)
        self._next = self._thread.submit(self._make)

    def _connect(self) -> None:
        self._connection = psycopg2.connect(self._server.dsn)
        self._connection.autocommit = True

    def _execute(self, statement: str) -> None:
        with self._connection.cursor() as cursor:
            cursor.execute(statement)

    def take(self) -> str:
        """The name of a fresh copy."""
        try:
            name = self._next.result()
        except psycopg2.Error:  # a test had stopped the server
            self._connect()
            name = self._make()
        self._next = self._thread.submit(self._make)
        return name

    def drop(self, name: str) -> None:
        """Drop it, unless the server was stopped: then it goes with the server."""
        self._thread.submit(self._execute, f"DROP DATABASE {name} WITH (FORCE)")

    def _make(self) -> str:
        name = f"t{os.getpid()}_{next(self._numbers)}"
        self._execute(f"CREATE DATABASE {name} TEMPLATE {self._template} STRATEGY file_copy")
        return name

    def __enter__(self) -> "Copies":
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()
        self._connection.close()


def database_dsn(dsn: str, name: str) -> str:
    """The DSN of another database on the same server."""
    return dsn.rsplit("/", 1)[0] + f"/{name}"


def use_environment(patch: pytest.MonkeyPatch, env: dict[str, str]) -> None:
    """Let this process read its settings from `env`, and from nothing else."""
    for name in [name for name in os.environ if name.startswith("DEPROVISIONER_")]:
        patch.delenv(name)
    for name, value in env.items():
        patch.setenv(name, value)
    clear_caches()


def clear_caches() -> None:
    """Drop settings, engine and clients that were made from the environment before."""
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
