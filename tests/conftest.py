"""The fixtures: servers for the whole run, a migrated database for each test, and the product's processes."""

import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg2
import pytest
from sqlalchemy import Connection, text

from deprovisioner import grants
from outbox import db as database
from outbox import tokens
from tests.support.processes import System, client
from tests.support.servers import (
    BACKENDS,
    KEPT,
    Copies,
    Servers,
    clear_caches,
    database_dsn,
    server_folder,
    serving,
    serving_old_postgres,
    serving_old_redis,
    use_environment,
)
from tests.support.witness import PgServer, RedisServer

# The files that take longest, longest first: begun last, one of them would keep the other processes waiting.
_LONG = (
    "acceptance/test_infrastructure.py",
    "acceptance/test_up_restarts.py",
    "acceptance/test_crash_matrix.py",
    "acceptance/test_up.py",
    "acceptance/test_faults.py",
    "acceptance/test_signals.py",
    "acceptance/test_resolve.py",
    "acceptance/test_zombies.py",
    "acceptance/test_holds.py",
    "outbox/test_doctor.py",
    "acceptance/test_ambiguity.py",
    "acceptance/test_wrong_clocks.py",
    "outbox/test_model.py",
    "acceptance/test_operations.py",
    "acceptance/test_main_job.py",
    "postgres/test_heir.py",
    "conformance/test_postgres15.py",
    "conformance/test_postgres.py",
)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put the long files first where several processes share the tests; a file's own tests keep their order."""
    if hasattr(config, "workerinput"):
        places = {item: f"{item.path.parent.name}/{item.path.name}" for item in items}
        items.sort(key=lambda item: _LONG.index(places[item]) if places[item] in _LONG else len(_LONG))


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    """The servers that the variable KEPT_SERVERS describes, else new ones for this session."""
    if kept := os.environ.get(KEPT):
        yield Servers.from_json(kept)
        return
    with serving() as started:
        yield started


@pytest.fixture(scope="session")
def postgres15() -> Iterator[PgServer]:
    """A PostgreSQL 15 of this session's own, its service account at `.service_dsn`; started by the first who asks."""
    with serving_old_postgres() as started:
        yield started


@pytest.fixture(scope="session")
def redis7() -> Iterator[RedisServer]:
    """A Redis 7 of this session's own, its service account at `.service_dsn`; started by the first who asks."""
    with serving_old_redis() as started:
        yield started


@pytest.fixture(scope="session")
def template(servers: Servers) -> str:
    """A migrated database that each test's is copied from."""
    servers.control.query("CREATE DATABASE tpl")
    with pytest.MonkeyPatch.context() as patch:
        use_environment(patch, {"DEPROVISIONER_DATABASE_URL": database_dsn(servers.control.dsn, "tpl")})
        import migrations

        migrations.upgrade()
        clear_caches()
    return "tpl"


@pytest.fixture(scope="session")
def copies(servers: Servers, template: str) -> Iterator[Copies]:
    with Copies(servers.control, template) as made:
        yield made


@pytest.fixture
def env(servers: Servers, copies: Copies, tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of a test's own installation: a fresh control database, the shared backends."""
    name = copies.take()
    backends = tmp_path / "backends.toml"
    backends.write_text(BACKENDS)
    yield {
        "DEPROVISIONER_DATABASE_URL": database_dsn(servers.control.dsn, name),
        # A broker database of its own, so that no test hears another's bell.
        "DEPROVISIONER_BROKER_URL": servers.broker.url.removesuffix("/0")
        + f"/{int(name.rsplit('_', maxsplit=1)[-1]) % 15 + 1}",
        "DEPROVISIONER_BACKENDS": str(backends),
        "DEPROVISIONER_CREDENTIALS_KEY": "QqzGw4kG3n6pTgU3aYQ1n8cYqH1m3C5v0b7xJ2r9d0E=",
        "DEPROVISIONER_LEASE_SECONDS": "15",  # no live worker loses it on a busy machine; tests of lost leases set it
        "DEPROVISIONER_SWEEP_SECONDS": "0.5",
        "DEPROVISIONER_BACKOFF_BASE_SECONDS": "0.2",
        "PG_MAIN_DSN": servers.pg.service_dsn,
        "REDIS_MAIN_URL": servers.redis.service_dsn,
    }
    copies.drop(name)


@pytest.fixture
def settled(env: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """This process takes `env` for its own settings."""
    use_environment(monkeypatch, env)
    yield env
    clear_caches()


@pytest.fixture
def db(settled: dict[str, str]) -> Iterator[Connection]:
    """A connection to the test's control database; each statement is its own transaction."""
    with database.statement() as session:
        yield session


@pytest.fixture
def service(db: Connection, settled: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Connection]:
    """A connection as the service's role, which is no superuser; the product in this process has it too."""
    role = f"service_{uuid.uuid4().hex}"
    grants.make_role(db, role, "secret")
    grants.grant(db, role)
    url = re.sub(r"//[^@]+@", f"//{role}:secret@", settled["DEPROVISIONER_DATABASE_URL"])
    use_environment(monkeypatch, settled | {"DEPROVISIONER_DATABASE_URL": url})
    with database.statement() as session:
        assert session.execute(text("SELECT current_user")).scalar_one() == role
        yield session
    database.engine().dispose()
    use_environment(monkeypatch, settled)
    db.execute(text(f"DROP OWNED BY {role}; DROP ROLE {role}"))


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
    """A folder for a test's own servers."""
    made = server_folder("test")
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
    return tokens.create(db, actor="op", role="operator", tenant=None, name="op")[1]


@pytest.fixture
def tenant(db: Connection) -> str:
    """A token of tenant `acme`."""
    return tokens.create(db, actor="op", role="tenant", tenant="acme", name="acme")[1]


@pytest.fixture
def acme(system: System, tenant: str):
    """An HTTP client of tenant `acme`, on an API process of its own."""
    with client(system.api(), tenant) as made:
        yield made
