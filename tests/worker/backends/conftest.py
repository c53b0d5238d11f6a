"""Servers that tests of several folders share, one a session."""

from collections.abc import Iterator

import pytest

from tests.support import rabbitmq_servers
from tests.support.rabbitmq_servers import RabbitmqServer


@pytest.fixture(scope="session")
def rabbitmq_server() -> Iterator[RabbitmqServer]:
    """A RabbitMQ node, with the documented account; it takes some seconds to start."""
    with rabbitmq_servers.running() as started:
        yield started
