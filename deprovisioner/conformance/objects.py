"""The fixtures of the suite: a backend, and objects of it that go when the test ends."""

import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

import pytest

from deprovisioner.conformance import properties
from deprovisioner.conformance.subject import Subject
from deprovisioner.sdk import Backend, BackendError, Json


@dataclass(frozen=True)
class Made:
    """An object that a backend has provisioned."""

    resource_id: uuid.UUID
    manifest: Json
    credentials: Json


Make = Callable[[], Made]


def works(use: Callable[[], None]) -> bool:
    """Whether a customer's open session still can be used."""
    try:
        use()
    except Exception:  # noqa: BLE001 - the error of the kind's client
        return False
    return True


@pytest.fixture(autouse=True)
def only_what_can_be_shown(request: pytest.FixtureRequest, subject: Subject) -> None:
    """Skip a test with the Subject's own reason; fail where it excuses what is no property."""
    assert properties.unknown(subject.not_shown) == [], "`not_shown` has names that are no property, or no reason"
    name = getattr(request.function, "shows", "")
    if name in subject.not_shown:
        pytest.skip(f"{name}: {subject.not_shown[name]}")


@pytest.fixture
def backend(subject: Subject) -> Backend:
    """A backend with the documented account."""
    return subject.backend()


@pytest.fixture
def make(backend: Backend) -> Iterator[Make]:
    """Provisions a new object at each call."""
    made: list[Made] = []

    def provision() -> Made:
        resource_id = uuid.uuid4()
        plan = backend.plan(resource_id, uuid.uuid4())
        manifest = backend.provision(plan.manifest, plan.credentials)
        made.append(Made(resource_id, manifest, plan.credentials))
        return made[-1]

    yield provision
    for one in made:
        with suppress(BackendError):  # a test may have disguised it: then it goes with its server
            backend.teardown(one.manifest, 99)
