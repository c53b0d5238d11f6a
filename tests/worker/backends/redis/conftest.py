"""A server, a backend on it, and a namespace that it provisioned."""

import uuid
from typing import Any

import pytest

from tests.support.servers import Servers
from tests.support.witness import RedisServer
from worker.backends.redis import Redis


@pytest.fixture
def server(servers: Servers) -> RedisServer:
    return servers.redis


@pytest.fixture
def backend(server: RedisServer) -> Redis:
    return Redis(server.service_dsn)


@pytest.fixture
def provisioned(backend: Redis) -> dict[str, Any]:
    plan = backend.plan(uuid.uuid4(), uuid.uuid4())
    return backend.provision(plan.manifest, plan.credentials) | {"url": plan.credentials["url"]}
