"""The Subjects of this run: one a `--backend`, each entered once."""

from collections.abc import Iterator

import pytest

from deprovisioner.conformance import plugin
from deprovisioner.conformance.objects import backend, make, only_what_can_be_shown
from deprovisioner.conformance.subject import Subject

__all__ = ["backend", "make", "only_what_can_be_shown"]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Each test once for each backend."""
    if "subject" in metafunc.fixturenames:
        metafunc.parametrize("subject", metafunc.config.getoption("--backend"), indirect=True, scope="session")


@pytest.fixture(scope="session")
def subject(request: pytest.FixtureRequest) -> Iterator[Subject]:
    """What the factory gives; without it nothing can be shown, so its error ends the run."""
    factory = plugin.find(request.param)
    try:
        entered = factory()
        made = entered.__enter__()
    except Exception as error:  # noqa: BLE001 - a third party's code: whatever it is, the run ends with its words
        pytest.exit(f"--backend={request.param}: the factory failed: {type(error).__name__}: {error}", returncode=4)
    yield made
    entered.__exit__(None, None, None)
