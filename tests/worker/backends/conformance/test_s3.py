"""The conformance suite on S3, moto's server, with the documented account."""

from collections.abc import Iterator

import pytest

from deprovisioner.conformance.suite import *  # noqa: F403 - its tests and fixtures
from tests.support.s3_server import S3Server
from tests.support.subjects import s3


@pytest.fixture(scope="module")
def subject(s3_server: S3Server) -> Iterator[s3.Subject]:
    with s3.on(s3_server) as made:
        yield made
