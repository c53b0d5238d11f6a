"""A backend with the documented account, a bucket of it, and the hands of an administrator."""

import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from outbox.rows import Json
from tests.support.s3_server import S3Server
from tests.support.subjects import s3
from worker.backends.s3 import S3


@pytest.fixture
def subject(s3_server: S3Server) -> Iterator[s3.Subject]:
    with s3.on(s3_server) as made:
        yield made


@pytest.fixture(scope="session")
def backend(s3_server: S3Server) -> S3:
    return S3(s3_server.dsn())


@pytest.fixture
def root(s3_server: S3Server) -> Any:
    return s3_server.client("root")


@pytest.fixture
def customer(s3_server: S3Server) -> Any:
    return s3_server.client("customer")


@pytest.fixture
def made(subject: s3.Subject, backend: S3) -> Json:
    """The manifest of a bucket that was provisioned."""
    del subject  # it removes what a test leaves
    plan = backend.plan(uuid.uuid4(), uuid.uuid4())
    return backend.provision(plan.manifest, plan.credentials)


@pytest.fixture
def adopted(subject: s3.Subject, backend: S3) -> Json:
    """The manifest of a bucket that was adopted: it has versions, a tag and a policy of its owner's."""
    given, _ = subject.made_by_hand()
    return backend.adopt(given, uuid.uuid4())
