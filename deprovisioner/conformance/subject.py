"""A kind under test: its backends, and how a customer and an independent witness see its objects."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Protocol

from deprovisioner.sdk import Backend, Json


class Subject(Protocol):
    """What the suite must know of a kind. No method uses the backend that is tested, and none asks its counters.

    `calls` and `not_shown` are attributes of the class: the table of docs/backends.md is made without a server. What
    the subject made by hand goes when the factory's context manager ends.
    """

    # Dotted names of the functions through which the backend changes or asks its server, such as
    # "pymysql.connections.Connection.query". The suite kills a process before and after each call, one by one.
    calls: tuple[str, ...]
    # By the name of a property (`properties.py`): why it cannot be shown for this kind. Any other must be shown.
    not_shown: Mapping[str, str]

    def backend(self) -> Backend:
        """A new instance, with the documented account; another process may use it."""

    def dead(self) -> Backend:
        """One whose address nothing answers at."""

    def secrets(self, credentials: Json) -> list[str]:
        """What no error and no log may show: the customer's passwords and keys, and those of the service's account."""

    def bears(self, manifest: Json) -> bool:
        """Whether anything of the object is left: by the server's own catalog, as an administrator sees it."""

    def put(self, credentials: Json) -> None:
        """Write something as the customer."""

    def has(self, credentials: Json) -> bool:
        """Whether the customer can log in, and finds all that `put` wrote."""

    def can_log_in(self, credentials: Json) -> bool:
        """Whether the customer's credentials open the object."""

    def session(self, credentials: Json) -> AbstractContextManager[Callable[[], None]]:
        """A customer's open session; what it gives uses that session, and raises any error once it was cut."""

    def made_by_hand(self) -> tuple[Json, Json]:
        """An object that this service did not make, and that `adopt` may take: its manifest, and credentials."""

    def disguises(self) -> Iterable[Callable[[Json], None]]:
        """What a person's hand can do to an object so that only a part of it still matches its manifest."""

    def neighbours(self, manifest: Json) -> list[Json]:
        """Make objects by hand whose names a careless prefix, glob or LIKE would match; credentials that open them."""

    def elsewhere(self) -> AbstractContextManager[Backend]:
        """Another server of this kind, on which the account is the same."""

    def not_authoritative(self) -> AbstractContextManager[tuple[Backend, Backend]]:
        """A server, and one that repeats it and lags (a standby, a replica)."""

    def weaker(self) -> Iterable[tuple[str, Backend]]:
        """Backends whose accounts each lack one documented right, with that right's name."""

    def destroyed_by_hand(self, manifest: Json) -> None:
        """Remove the object as an administrator would, its credentials too."""

    # Optional: `flood(credentials)` puts, as the customer, what could make the evidence long or strange. Without it,
    # `put` is used.
