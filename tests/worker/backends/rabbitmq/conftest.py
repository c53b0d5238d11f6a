"""A RabbitMQ node for the session, a backend on it, and a vhost that it provisioned."""

import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support import rabbitmq_servers
from tests.support.rabbitmq_servers import RabbitmqServer
from worker.backends.rabbitmq import Rabbitmq


@pytest.fixture(scope="session")
def server() -> Iterator[RabbitmqServer]:
    with rabbitmq_servers.running() as started:
        yield started


@pytest.fixture
def backend(server: RabbitmqServer) -> Rabbitmq:
    return Rabbitmq(server.service_dsn)


@pytest.fixture
def provisioned(backend: Rabbitmq) -> tuple[dict[str, Any], dict[str, Any]]:
    """A manifest, and its customer's credentials."""
    plan = backend.plan(uuid.uuid4(), uuid.uuid4())
    return backend.provision(plan.manifest, plan.credentials), plan.credentials
