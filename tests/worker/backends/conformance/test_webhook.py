"""The conformance suite on the reference provisioner."""

from collections.abc import Iterator

import pytest

from deprovisioner.conformance.suite import *  # noqa: F403 - its tests and fixtures
from tests.support.subjects import webhook


@pytest.fixture(scope="module")
def subject() -> Iterator[webhook.Subject]:
    with webhook.subject() as made:
        yield made
