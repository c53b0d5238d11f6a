"""The conformance suite on RabbitMQ 3.10, with the documented account."""

from collections.abc import Iterator

import pytest

from deprovisioner.conformance.suite import *  # noqa: F403 - its tests and fixtures
from tests.support.rabbitmq_servers import RabbitmqServer
from tests.support.subjects import rabbitmq


@pytest.fixture(scope="module")
def subject(rabbitmq_server: RabbitmqServer) -> Iterator[rabbitmq.Subject]:
    with rabbitmq.on(rabbitmq_server) as made:
        yield made
