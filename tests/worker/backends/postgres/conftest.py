"""A server, a backend on it, and a database that it provisioned."""

import uuid
from typing import Any

import pytest

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


@pytest.fixture(params=["18", "18-service", "15-service"])
def anywhere(request: pytest.FixtureRequest, servers: Servers) -> tuple[Postgres, PgServer]:
    """A backend and its server: with the documented account, and as a superuser, whose rights hide no missing guard."""
    version, _, account = request.param.partition("-")
    server = servers.pg if version == "18" else request.getfixturevalue("postgres15")
    return Postgres(server.service_dsn if account else server.dsn), server
