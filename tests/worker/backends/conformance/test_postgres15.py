"""The conformance suite on PostgreSQL 15, with the documented account."""

from collections.abc import Iterator

import pytest

from deprovisioner.conformance.suite import *  # noqa: F403 - its tests and fixtures
from tests.support.subjects import postgres

del test_killed_at_each_call_and_resumed  # noqa: F821 - once a kind: on the newest version


@pytest.fixture(scope="module")
def subject() -> Iterator[postgres.Subject]:
    with postgres.subject15() as made:
        yield made
