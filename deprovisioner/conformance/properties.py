"""The properties of a kind, as data: the tests name them, a Subject excuses them, the table lists them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar


@dataclass(frozen=True)
class Property:
    """What every kind must do. `name` is what a Subject's `not_shown` says; `sentence` is for the table."""

    name: str
    sentence: str


PROPERTIES = (
    Property("provision twice", "A provision that is repeated makes no second object"),
    Property("adopt", "An existing object is adopted, as it is, for one generation alone"),
    Property("told apart", "Same, different and absent are told apart"),
    Property("unreachable", "A server out of reach is `Unavailable` to every verb"),
    Property("not authoritative", "A standby or replica that lags is `OutOfService` to every verb"),
    Property("destroy repeated", "A teardown is repeated without harm, and ends open sessions"),
    Property("two teardowns at once", "Two teardowns at once end with one object gone"),
    Property("name reuse", "An object made again under the same names is refused"),
    Property("neighbours", "Neighbours whose names a prefix, glob or LIKE would match survive"),
    Property("any match is not absence", "An object of which a part matches is different, never absent"),
    Property("quarantine and release", "A quarantine cuts a live client off, a release gives all back"),
    Property("lost claim", "A worker whose claim is lost neither closes nor opens"),
    Property("killed and resumed", "Killed before and after each call, and resumed: the same end"),
    Property("wrong server", "Another server is refused, and its word for absence does not count"),
    Property("least rights", "The documented account suffices; without one of its rights, the verbs refuse"),
    Property("secrets", "No error, no log line, no evidence shows a secret"),
    Property("bounded evidence", "Evidence, errors and manifests are bounded and can be stored"),
    Property("inventory", "What `objects` tells is what `adopt` takes"),
)
NAMES = tuple(one.name for one in PROPERTIES)

_Test = TypeVar("_Test", bound=Callable[..., Any])


def shows(name: str) -> Callable[[_Test], _Test]:
    """Decorator of a test: which property it shows. The test is skipped for a Subject that excuses it."""
    assert name in NAMES, name

    def mark(test: _Test) -> _Test:
        test.shows = name  # type: ignore[attr-defined]
        return test

    return mark


def unknown(excuses: Any) -> list[str]:
    """Names in a Subject's `not_shown` that are no property, or have no reason."""
    return sorted(name for name, reason in excuses.items() if name not in NAMES or not reason)
