"""Servers that the tests of several folders share."""

from collections.abc import Iterator

import pytest

from tests.support import rabbitmq_servers
from tests.support.rabbitmq_servers import RabbitmqServer
from tests.support.s3_server import S3Server
from tests.support.subjects import s3


@pytest.fixture(scope="session")
def rabbitmq_server() -> Iterator[RabbitmqServer]:
    """A RabbitMQ node, one a session: it takes some seconds to start."""
    with rabbitmq_servers.running() as started:
        yield started


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """moto's server, one a session."""
    with s3.serving() as server:
        yield server
