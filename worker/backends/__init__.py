"""What every kind of backend can do. One package a kind; a third party adds its own by entry point.

The order of a teardown: quarantine, verify identity at the last moment, destroy, verify absence. `plan` makes
the names from the resource's UUID, and the manifest stores them; a teardown never derives a name.
"""

import datetime as dt
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Any, Protocol

from outbox.errors import Refused, SettingsError, Transient
from outbox.memory import Memory, Moment
from outbox.rows import Json
from outbox.settings import BackendConfig
from worker.backends.addresses import address_of

ENTRY_POINTS = "deprovisioner.backends"


@dataclass(frozen=True)
class Absent:
    """The right server does not have the object. `seen` is the evidence."""

    seen: Json


@dataclass(frozen=True)
class Same:
    """The server has the manifest's own object, whole or in part.

    `seen` may have `completes`: fields that the manifest lacks, stored in it when the teardown starts.
    """

    seen: Json


@dataclass(frozen=True)
class Different:
    """The name belongs to another object, or this is another server. Never touch it.

    `marked`: something there bears this resource's mark all the same.
    """

    seen: Json
    why: str
    marked: bool = False


Observation = Absent | Same | Different


@dataclass(frozen=True)
class Plan:
    """What `provision` will make: names and identity, and the secrets that open it."""

    manifest: Json
    credentials: Json


@dataclass(frozen=True)
class Finding:
    """What is not as it should be on a backend: a code that stays the same, words, and what mends it.

    `inherent`: it is so with every server of the kind, and no operator can mend it: it is told, and is no fault.
    """

    code: str
    what: str
    mend: str
    inherent: bool = False


@dataclass(frozen=True)
class LoginAttempts:
    """Who tried to log in to an object in quarantine, as far as its server tells; `last_at` by the server's clock.

    `count` and `addresses` are of the attempts after the asked moment. A server that counts attempts in groups, which
    go on growing, gives `groups`: the count of each group so far. Then `count` is their sum.
    """

    count: int
    last_at: dt.datetime
    addresses: list[str]
    groups: Mapping[str, int] = field(default_factory=dict)


# Raises ClaimLost where the caller's claim is lost.
Still = Callable[[], None]


def always() -> None:
    """Nobody can take the object back."""


class Backend(Protocol):
    """One configured server. Methods raise Unavailable, Transient or Refused; no transaction is open while they run."""

    @property
    def observable(self) -> bool:
        """Whether `inspect` shows after a crash if the teardown took effect; a class attribute, where it never changes.

        Asked once an attempt, before anything else. It may raise Unavailable.
        """

    def plan(self, resource_id: uuid.UUID, generation: uuid.UUID) -> Plan:
        """Names, secrets and the server's identity for a new object; changes nothing on the server."""

    def provision(self, manifest: Json, credentials: Json) -> Json:
        """Make the object of a plan, or finish making it; the manifest with its identity. Safe to repeat."""

    def adopt(self, manifest: Json, generation: uuid.UUID) -> Json:
        """Verify that an existing object is the manifest's, mark it with the generation, return its full manifest."""

    def inspect(self, manifest: Json) -> Observation:
        """Whether the server has the object; changes nothing."""

    def quarantine(self, manifest: Json, still: Still = always) -> None:
        """Take the object out of use, reversibly: no logins, no sessions, where possible no name. Safe to repeat.

        Just before it changes the object, behind whatever keeps `release` out, it calls `still`, which raises where a
        restore has taken the object meanwhile.
        """

    def release(self, manifest: Json, still: Still = always) -> None:
        """Undo `quarantine`, and bring back what was there before it. Safe to repeat.

        A worker that is still at a quarantine of this object is kept from its end. `still` as there: a worker that
        wakes after the restore was given up opens nothing.
        """

    def teardown(self, manifest: Json, fence: int) -> Json:
        """Quarantine and destroy the object and every credential to it; what was done, as evidence.

        Safe to repeat, and to race with itself.
        """


def build(config: BackendConfig, *, protected: frozenset[str]) -> Backend:
    """The backend of a configuration. `protected`: names that are never torn down, whatever a manifest says."""
    found = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    if config.kind not in found:
        raise SettingsError(
            f"backend {config.name!r}: kind {config.kind!r} is not installed; known: {', '.join(sorted(found))}"
        )
    try:
        kind: Any = found[config.kind].load()
    except ImportError as error:
        raise SettingsError(
            f"backend {config.name!r}: kind {config.kind!r} needs {error.name!r}: install deprovisioner[{config.kind}]"
        ) from error
    takes = frozenset(getattr(kind, "options", ()))
    if unknown := sorted(config.options.keys() - takes):
        raise SettingsError(
            f"backend {config.name!r}: kind {config.kind!r} has no option {unknown[0]!r}; "
            f"remove it from [backends.{config.name}] (its options: {', '.join(sorted(takes)) or 'none'})"
        )
    try:
        backend: Backend = kind(address_of(config.name), protected=protected, **config.options)
    except SettingsError as error:
        raise SettingsError(f"backend {config.name!r}: {error}") from error
    return backend


def check(backend: Backend) -> list[Finding]:
    """What is not as it should be on the server, seen as the service's account; changes nothing.

    A kind gives it by a method `check() -> list[Finding]`. Without it nothing of the server is found, but whether the
    kind keeps a memory always is. Raises BackendError when the server cannot be asked.
    """
    found: list[Finding] = getattr(backend, "check", list)()
    return found if keeps_memory(backend) else [*found, _NO_MEMORY]


_NO_MEMORY = Finding(
    "no_memory",
    "this kind of backend remembers nothing of the control database: one that went back in time is not noticed by it",
    "nothing on the server: only a version of the kind with `remember`, `recall` and `installations` would "
    "(deprovisioner/sdk.py)",
    inherent=True,
)


def keeps_memory(backend: Backend) -> bool:
    """Whether the kind has `remember`, `recall` and `installations`: all three, or it keeps nothing."""
    return all(hasattr(backend, name) for name in ("remember", "recall", "installations"))


def remember(backend: Backend, memory: Memory, least: Moment | None = None) -> Memory | None:
    """Keep a memory on the server, by the rule of `outbox.memory.offered`; None when it was kept, else what is there.

    `least`: what was kept there before. A server that has less went back in time and is left as it is: the answer is
    what it has, `nothing` where that is nothing. A kind gives this by a method `remember(memory, least)`, atomic for
    all workers; its parts may not be changed by customers. A kind without it keeps nothing, and answers None.
    """
    if not keeps_memory(backend):
        return None
    there: Memory | None = backend.remember(memory, least)  # type: ignore[attr-defined]
    return there


def recall(backend: Backend, installation: uuid.UUID) -> Memory | None:
    """What the server keeps of an installation; None where that is nothing, or the kind keeps nothing.

    A kind gives it by a method `recall(installation)`. Raises OutOfService where what is kept cannot be read: that is
    no answer, as that of a standby is none.
    """
    if not keeps_memory(backend):
        return None
    there: Memory | None = backend.recall(installation)  # type: ignore[attr-defined]
    return there


def server_identity(backend: Backend) -> str | None:
    """What the server is known by, and keeps over a restart; None where it has nothing, or the kind does not tell.

    A kind gives it by a method `server_identity()`. By it a wrong address is told from a server that lost its memory.
    """
    found: str | None = getattr(backend, "server_identity", lambda: None)()
    return found


def installations(backend: Backend) -> list[uuid.UUID]:
    """All installations of which the server keeps a memory; a kind gives it by a method `installations()`."""
    if not keeps_memory(backend):
        return []
    found: list[uuid.UUID] = backend.installations()  # type: ignore[attr-defined]
    return found


def prove(backend: Backend, manifest: Json, credentials: Json | None) -> Json:
    """What shows that a released object can be used again: a login with these credentials, None for an adopted one.

    A kind gives it by a method `prove(manifest, credentials) -> dict`, which raises Transient where the login fails;
    without that method it is enough that the object is there.
    """
    if hasattr(backend, "prove"):
        seen: Json = backend.prove(manifest, credentials)
        return seen
    match backend.inspect(manifest):
        case Same(seen=seen):
            return seen
        case other:
            raise Transient(f"it is not there after its release: {other}")


def login_attempts(backend: Backend, manifest: Json, since: dt.datetime) -> LoginAttempts | None:
    """Who tried to log in to a quarantined object after `since`; None where the server does not tell.

    A kind gives it by a method `login_attempts(manifest, since) -> LoginAttempts | None`.
    """
    found: LoginAttempts | None = getattr(backend, "login_attempts", _untold)(manifest, since)
    return found


def _untold(_manifest: Json, _since: dt.datetime) -> None:
    return None


# A snapshot is streamed: what takes its bytes; and what gives them, at most as many as asked for, none at its end.
Write = Callable[[bytes], object]
Read = Callable[[int], bytes]


def snapshot(backend: Backend, manifest: Json, write: Write, still: Still) -> Json:
    """Write a snapshot of an object in quarantine; what it holds, for `verify_snapshot` in the same process.

    `still` is called every few seconds. A kind gives snapshots by three methods: this one, `verify_snapshot` and
    `restore_snapshot`, with these words. Raises Refused for a kind without them.
    """
    return _of(backend, "snapshot", manifest, write, still)


def verify_snapshot(backend: Backend, manifest: Json, read: Read, source: Json, still: Still) -> Json:
    """Restore a snapshot beside its source, compare both, remove it again; what was compared, as evidence.

    Raises Transient where they differ. It leaves nothing, and removes what an attempt that died has left.
    """
    return _of(backend, "verify_snapshot", manifest, read, source, still)


def restore_snapshot(backend: Backend, manifest: Json, credentials: Json, read: Read, still: Still) -> Json:
    """Fill a new and empty object, the manifest's, from a snapshot of another one; what was done, as evidence."""
    return _of(backend, "restore_snapshot", manifest, credentials, read, still)


def _of(backend: Backend, name: str, *words: Any) -> Json:
    if not hasattr(backend, name):
        raise Refused('this kind of backend takes no snapshots: set `snapshot = "off"` for it')
    seen: Json = getattr(backend, name)(*words)
    return seen


def mark(generation: str) -> str:
    """The words that an object carries on its server, and that say which resource's it is."""
    return f"deprovisioner gen={generation}"


# Why `adopt` refuses what `quarantine` has closed: it would be active, and nobody could log in.
IN_QUARANTINE = (
    "it is in quarantine: a teardown has cut it off, and an adoption does not give back what was deleted; when its "
    'owner wants it back, open it by hand first (docs/runbook.md, "Objects that no row knows")'
)


@dataclass(frozen=True)
class MarkedObject:
    """What bears one mark on a server, all its parts as one. `adopt(names, generation)` takes it where `why` is empty.

    A mark does not say which installation made it: the objects of others on this server are told too.
    """

    generation: str  # as the mark says it; no UUID where the mark is not one of ours
    names: Json  # a manifest of the kind; None for what the server does not show, or shows twice
    parts: tuple[str, ...]  # what bears the mark, in words
    resource_id: uuid.UUID | None = None  # where the names hold it: an adopted object's do not
    quarantined: bool = False  # a teardown has cut it off; `release(names)` gives it back
    contradictory: bool = False  # its parts contradict each other, or its mark is not one of ours
    why: str = ""  # why it is not to be adopted as it stands; empty where its names and marks show nothing against it
    size_bytes: int | None = None  # these three where the reading has them anyway; else `fleet.measured` tells
    created_at: dt.datetime | None = None
    last_used_at: dt.datetime | None = None


def objects(backend: Backend) -> Iterator[MarkedObject]:
    """All on the server that bears a mark of ours, an object at a time, in no certain order; changes nothing.

    What bears its mark all the while is told exactly once. Whatever stops the reading raises, as every verb does: an
    end without an error is the end of what there is. The caller takes each soon, since the server's answer is waiting.
    A kind gives it by a method `objects() -> Iterator[MarkedObject]`. Raises Refused for a kind without it.
    """
    if not hasattr(backend, "objects"):
        raise Refused("this kind of backend does not tell which objects bear our mark: compare by hand")
    found: Iterator[MarkedObject] = backend.objects()
    return found
