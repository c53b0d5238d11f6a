"""A server, a backend on it, and a database that it provisioned."""

import os
import uuid
from collections.abc import Iterator
from typing import Any

import psycopg2
import pytest
from psycopg2 import extensions

from tests.support.servers import Servers
from tests.support.witness import PgServer
from worker.backends.postgres import Postgres


@pytest.fixture
def pg(servers: Servers) -> PgServer:
    return servers.pg


@pytest.fixture
def backend(pg: PgServer) -> Postgres:
    return Postgres(pg.service_dsn, protected=frozenset({"control_db"}))


@pytest.fixture
def superuser(pg: PgServer) -> Postgres:
    """The backend with a superuser's account: each test that uses it says why."""
    return Postgres(pg.dsn)


@pytest.fixture
def provisioned(backend: Postgres) -> dict[str, Any]:
    plan = backend.plan(uuid.uuid4(), uuid.uuid4())
    return backend.provision(plan.manifest, plan.credentials) | {"dsn": plan.credentials["dsn"]}


@pytest.fixture(scope="session")
def service(servers: Servers) -> str:
    """The DSN of an account with the rights that docs/configuration.md asks for, and no others."""
    name = f"svc_{uuid.uuid4().hex}"
    servers.pg.query(f"CREATE ROLE {name} LOGIN CREATEDB CREATEROLE PASSWORD 'p'")
    return servers.pg.dsn.replace("postgres:secret", f"{name}:p")


@pytest.fixture
def plain(service: str) -> Postgres:
    """The backend, worked with that account."""
    return Postgres(service)


@pytest.fixture
def made(plain: Postgres) -> dict[str, Any]:
    """A database that this account provisioned."""
    plan = plain.plan(uuid.uuid4(), uuid.uuid4())
    return plain.provision(plan.manifest, plan.credentials) | {"dsn": plan.credentials["dsn"]}


@pytest.fixture(params=["18", "18-service", "15-service"])
def anywhere(request: pytest.FixtureRequest, servers: Servers) -> Iterator[tuple[Postgres, PgServer]]:
    """A backend, as a superuser and as the documented service account, and its server."""
    version, _, account = request.param.partition("-")
    server = servers.pg if version == "18" else PgServer(_second_server(), servers.pg.log)
    if not account:
        yield Postgres(server.dsn), server
        return
    name = f"service_{uuid.uuid4().hex}"
    server.query(f"CREATE ROLE {name} LOGIN CREATEDB CREATEROLE PASSWORD 'p'")
    try:
        yield Postgres(extensions.make_dsn(server.dsn, user=name, password="p")), server
    finally:
        server.query(f"DROP OWNED BY {name}")
        server.query(f"DROP ROLE {name}")


def _second_server() -> str:
    dsn = os.environ.get("TEST_OLD_POSTGRES_DSN", "postgresql://postgres@127.0.0.1:5432/postgres")
    try:
        psycopg2.connect(dsn, connect_timeout=2).close()
    except psycopg2.OperationalError as error:
        pytest.skip(f"no second PostgreSQL: {str(error).splitlines()[0]}")
    return dsn
