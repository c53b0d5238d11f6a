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
    return Postgres(pg.dsn, protected=frozenset({"control_db"}))


@pytest.fixture
def provisioned(backend: Postgres) -> dict[str, Any]:
    plan = backend.plan(uuid.uuid4(), uuid.uuid4())
    return backend.provision(plan.manifest, plan.credentials) | {"dsn": plan.credentials["dsn"]}
