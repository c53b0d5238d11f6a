"""The conformance suite on MariaDB 10.11, with the documented account."""

from collections.abc import Iterator

import pytest

from deprovisioner.conformance.suite import *  # noqa: F403 - its tests and fixtures
from tests.support.subjects import mysql


@pytest.fixture(scope="module")
def subject() -> Iterator[mysql.Subject]:
    with mysql.subject() as made:
        yield made
