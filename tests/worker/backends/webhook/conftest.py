"""A reference provisioner of the test's own, a backend on it, and an object that it provisioned."""

import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.support.provisioners import Served
from worker.backends.webhook import Webhook

Serve = Callable[..., Served]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts provisioners, which end with the test; see `Served`."""
    with ExitStack() as life:

        def start(**words: Any) -> Served:
            served = Served(**words)
            life.callback(lambda: shutil.rmtree(served.notebooks.file.parent, ignore_errors=True))
            life.callback(served.stop)
            return served

        yield start


@pytest.fixture
def served(serve: Serve) -> Served:
    return serve()


@pytest.fixture
def backend(served: Served) -> Webhook:
    return Webhook(served.dsn(timeout=2))


@pytest.fixture
def made(backend: Webhook) -> dict[str, Any]:
    """The manifest of a provisioned object."""
    return provisioned(backend)


def provisioned(backend: Webhook) -> dict[str, Any]:
    plan = backend.plan(uuid.uuid4(), uuid.uuid4())
    return backend.provision(plan.manifest, plan.credentials)
