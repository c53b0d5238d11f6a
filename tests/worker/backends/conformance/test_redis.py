"""The conformance suite on Valkey 9, with the documented account."""

from collections.abc import Iterator

import pytest

from deprovisioner.conformance.suite import *  # noqa: F403 - its tests and fixtures
from tests.support.servers import Servers
from tests.support.subjects import redis


@pytest.fixture(scope="module")
def subject(servers: Servers) -> Iterator[redis.Subject]:
    with redis.on(servers.redis) as made:
        yield made
