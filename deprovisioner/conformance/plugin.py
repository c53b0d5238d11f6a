"""The option `--backend=module:factory`. Every run of pytest loads this module where the package is installed."""

import importlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest

_SUITE = "deprovisioner.conformance"
_USAGE = f"pytest --pyargs {_SUITE} --backend=MODULE:FACTORY"


def pytest_addoption(parser: pytest.Parser) -> None:
    """The option; it may be given several times."""
    parser.getgroup("deprovisioner", "conformance of a kind of backend").addoption(
        "--backend",
        action="append",
        default=[],
        metavar="MODULE:FACTORY",
        help=f"a function without arguments that returns a context manager of a {_SUITE}.Subject; may be repeated",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Find the factories before anything runs. Raises UsageError, which says what is wrong with the option."""
    config.addinivalue_line("markers", "proof: takes long, since it shows a property at length")
    named = config.getoption("--backend")
    if not named and any(str(word).startswith(_SUITE) for word in config.args):
        raise pytest.UsageError(f"no kind is given to be tested: {_USAGE}")
    for name in named:
        find(name)


def find(name: str) -> Callable[[], AbstractContextManager[Any]]:
    """The factory of `module:factory`. Raises UsageError where there is none."""
    module, colon, attribute = name.partition(":")
    if not (module and colon and attribute):
        raise pytest.UsageError(f"--backend={name} is not MODULE:FACTORY: {_USAGE}")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        raise pytest.UsageError(f"--backend={name}: {module!r} cannot be imported here: {error}") from error
    except AttributeError:
        raise pytest.UsageError(f"--backend={name}: module {module!r} has no {attribute!r}") from None
    if not callable(found):
        raise pytest.UsageError(f"--backend={name}: it is {found!r}, and no function")
    factory: Callable[[], AbstractContextManager[Any]] = found
    return factory
