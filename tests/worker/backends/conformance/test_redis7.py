"""The conformance suite on Redis 7, with the documented account."""

from collections.abc import Iterator

import pytest

from deprovisioner.conformance.suite import *  # noqa: F403 - its tests and fixtures
from tests.support.subjects import redis

del test_killed_at_each_call_and_resumed  # noqa: F821 - once a kind: on the newest version


@pytest.fixture(scope="module")
def subject() -> Iterator[redis.Subject]:
    with redis.subject7() as made:
        yield made
