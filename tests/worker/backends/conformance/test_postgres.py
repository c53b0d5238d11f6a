"""The conformance suite on PostgreSQL 18, with the documented account."""

from collections.abc import Iterator

import pytest

from deprovisioner.conformance.suite import *  # noqa: F403 - its tests and fixtures
from tests.support.servers import Servers
from tests.support.subjects import postgres


@pytest.fixture(scope="module")
def subject(servers: Servers) -> Iterator[postgres.Subject]:
    with postgres.on(servers.pg) as made:
        yield made
