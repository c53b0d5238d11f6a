"""What a kind may offer beside its verbs, for many objects at once: adoption, inventory, servers that move, progress.

Each is an optional method of the backend; a function here calls it, and says what is true of a kind without it.
"""

import datetime as dt
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from outbox.errors import Refused
from outbox.rows import Json
from worker.backends import Backend, Finding, Observation


def adoptable(backend: Backend, manifest: Json) -> list[Finding]:
    """Why `adopt` would refuse this manifest, in full; nothing where it would not. Changes nothing on the server.

    Codes: `not_there`, `refused`, `right_missing`; the last has the statement that grants the right in `mend`. A kind
    gives it by a method `adoptable(manifest) -> list[Finding]`. Raises Refused for a kind without it.
    """
    if not hasattr(backend, "adoptable"):
        raise Refused("this kind of backend does not tell beforehand what it would adopt")
    found: list[Finding] = backend.adoptable(manifest)
    return found


def pinned(backend: Backend, manifest: Json) -> Json:
    """The manifest with what tells the object that bears its names now from one that takes them later.

    That is what `adopt` would return, less the generation, as far as the server shows it; what is not there stays as it
    is. It adds to the manifest, and changes nothing. A kind gives it by a method `pinned(manifest) -> dict`; without
    it an object that was made again since its preview is adopted in the other's place.
    """
    found: Json = getattr(backend, "pinned", lambda given: given)(manifest)
    return found


def unmark(backend: Backend, manifest: Json) -> Json:
    """Take our mark off an object that goes out of management, and change nothing else; what was done, as evidence.

    Safe to repeat. Refused for what is in quarantine, or is not the manifest's object. A kind gives it by a method
    `unmark(manifest) -> dict`; without it a resource of the kind cannot be released.
    """
    if not hasattr(backend, "unmark"):
        raise Refused("this kind of backend cannot take its mark off an object")
    done: Json = backend.unmark(manifest)
    return done


def locate(backend: Backend, manifest: Json) -> Observation:
    """As `inspect`, by mark and generation alone: whatever server the manifest names, and whatever numbers it has.

    `Same.seen["manifest"]` is the object's manifest on this server: the same names and generation, and all parts are
    there, once. What is there in part, or twice, is Different. `Absent.seen["manifest"]`, where a kind gives it, is
    what a provision on this server would have. For servers that moved, and only for a person who confirmed it. A kind
    gives it by a method `locate(manifest) -> Observation`. Raises Refused for a kind without it.
    """
    if not hasattr(backend, "locate"):
        raise Refused("this kind of backend cannot find an object whose server has moved")
    found: Observation = backend.locate(manifest)
    return found


@dataclass(frozen=True)
class UnmarkedObject:
    """What stands on a server without a mark of ours, and is none of the server's own."""

    names: Json  # as `adopt` takes them
    size_bytes: int | None = None
    created_at: dt.datetime | None = None
    last_used_at: dt.datetime | None = None


def unmarked(backend: Backend) -> Iterator[UnmarkedObject]:
    """All objects of the kind on the server that bear no mark of ours, one at a time, in no certain order.

    A kind gives it by a method `unmarked() -> Iterator[UnmarkedObject]`. Raises Refused for a kind without it.
    """
    if not hasattr(backend, "unmarked"):
        raise Refused("this kind of backend does not tell what stands on its server without our mark")
    found: Iterator[UnmarkedObject] = backend.unmarked()
    return found


@dataclass(frozen=True)
class Measured:
    """What is known of one object, each where its server tells: bytes, and times by the server's clock."""

    size_bytes: int | None = None
    created_at: dt.datetime | None = None
    last_used_at: dt.datetime | None = None


def measured(backend: Backend, names: Json) -> Measured:
    """Size and age of one object, by its names as `objects` and `unmarked` give them; bounded in time.

    It may cost the server more than the whole list, so it is asked for findings alone. A kind gives it by a method
    `measured(names) -> Measured`; of a kind without it nothing is known.
    """
    found: Measured = getattr(backend, "measured", lambda _: Measured())(names)
    return found


@dataclass(frozen=True)
class Progress:
    """How far a verb has come: `done` of `total` (None where nobody knows) of what `what` counts, such as `keys`."""

    done: int
    total: int | None
    what: str


_heard: ContextVar[Callable[[Progress], None]] = ContextVar("progress", default=lambda _: None)


def tell(done: int, total: int | None, what: str) -> None:
    """For a backend, in the thread of the verb: how far it has come. Cheap enough to be called after each batch."""
    _heard.get()(Progress(done, total, what))


@contextmanager
def hearing(hear: Callable[[Progress], None]) -> Iterator[None]:
    """What verbs of this thread tell of their progress goes to `hear`, which must return soon and raise nothing."""
    token = _heard.set(hear)
    try:
        yield
    finally:
        _heard.reset(token)
