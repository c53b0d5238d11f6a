"""The one door for what a backend returns or raises, of every kind: bounded and storable before it goes further."""

import datetime as dt
import json
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from itertools import islice
from typing import Any

from outbox import foreign
from outbox.errors import (
    BackendError,
    DeprovisionerError,
    MemoryForbidden,
    OutOfService,
    Refused,
    StartRefused,
    Transient,
    Unavailable,
)
from outbox.memory import Memory, Moment
from outbox.rows import Json
from worker import backends
from worker.backends import (
    Absent,
    Backend,
    Different,
    Finding,
    LoginAttempts,
    MarkedObject,
    Observation,
    Plan,
    Read,
    Same,
    Still,
    Write,
    fleet,
)
from worker.backends.fleet import Measured, UnmarkedObject

# A manifest is identity, so it is never cut. The largest that a kind of ours makes has 500 characters.
MANIFEST = 16_000
FINDINGS = 100
ADDRESS = 100  # characters
ADDRESSES = 20
GROUPS = 200
PART = 200  # characters of what names one part of an object
PARTS = 20
INSTALLATIONS = 1_000
_KINDS = (MemoryForbidden, OutOfService, Unavailable, Transient, Refused)


class Intake:
    """A backend whose answers and errors can be stored, logged and shown, whatever its server's customers wrote.

    Manifests are not cut: Refused says that one cannot be stored.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    @cached_property
    def observable(self) -> bool:
        """See Backend; asked once, so that one attempt has one answer."""
        with _errors():
            return bool(getattr(self._backend, "observable", False))

    def plan(self, resource_id: uuid.UUID, generation: uuid.UUID) -> Plan:
        """See Backend."""
        with _errors():
            plan = self._backend.plan(resource_id, generation)
            return Plan(_manifest(plan.manifest), plan.credentials)

    def provision(self, manifest: Json, credentials: Json) -> Json:
        """See Backend."""
        with _errors():
            return _manifest(self._backend.provision(manifest, credentials))

    def adopt(self, manifest: Json, generation: uuid.UUID) -> Json:
        """See Backend."""
        with _errors():
            return _manifest(self._backend.adopt(manifest, generation))

    def adoptable(self, manifest: Json) -> list[Finding]:
        """See `worker.backends.fleet.adoptable`."""
        with _errors():
            return _findings(fleet.adoptable(self._backend, manifest))

    def pinned(self, manifest: Json) -> Json:
        """See `worker.backends.fleet.pinned`. Refused where the backend would change what the manifest says."""
        with _errors():
            return manifest | _lacking(manifest, fleet.pinned(self._backend, manifest))

    def unmark(self, manifest: Json) -> Json:
        """See `worker.backends.fleet.unmark`."""
        with _errors():
            return _evidence(fleet.unmark(self._backend, manifest))

    def inspect(self, manifest: Json) -> Observation:
        """See Backend."""
        with _errors():
            match self._backend.inspect(manifest):
                case Absent(seen=seen):
                    return Absent(_evidence(seen))
                case Same(seen=seen):
                    completes = {"completes": _lacking(manifest, seen["completes"])} if "completes" in seen else {}
                    return Same(_evidence(seen) | completes)
                case Different(seen=seen, why=why, marked=marked):
                    return Different(_evidence(seen), foreign.line(why), marked)

    def locate(self, manifest: Json) -> Observation:
        """See `worker.backends.fleet.locate`. Refused for another generation, or a manifest that lost a field."""
        with _errors():
            match fleet.locate(self._backend, manifest):
                case Different(seen=seen, why=why, marked=marked):
                    return Different(_evidence(seen), foreign.line(why), marked)
                case Same(seen=seen):
                    return Same(_located(manifest, seen | {"manifest": seen["manifest"]}))
                case Absent(seen=seen):
                    return Absent(_located(manifest, seen))

    def quarantine(self, manifest: Json, still: Still = backends.always) -> None:
        """See Backend."""
        with _errors():
            self._backend.quarantine(manifest, still)

    def release(self, manifest: Json, still: Still = backends.always) -> None:
        """See Backend."""
        with _errors():
            self._backend.release(manifest, still)

    def prove(self, manifest: Json, credentials: Json | None) -> Json:
        """See Backend."""
        with _errors():
            return _evidence(backends.prove(self._backend, manifest, credentials))

    def teardown(self, manifest: Json, fence: int) -> Json:
        """See Backend."""
        with _errors():
            return _evidence(self._backend.teardown(manifest, fence))

    def snapshot(self, manifest: Json, write: Write, still: Still) -> Json:
        """See `worker.backends.snapshot`; what it returns is compared, and not kept."""
        with _errors():
            return backends.snapshot(self._backend, manifest, write, still)

    def verify_snapshot(self, manifest: Json, read: Read, source: Json, still: Still) -> Json:
        """See `worker.backends.verify_snapshot`."""
        with _errors():
            return _evidence(backends.verify_snapshot(self._backend, manifest, read, source, still))

    def restore_snapshot(self, manifest: Json, credentials: Json, read: Read, still: Still) -> Json:
        """See `worker.backends.restore_snapshot`."""
        with _errors():
            return _evidence(backends.restore_snapshot(self._backend, manifest, credentials, read, still))

    def login_attempts(self, manifest: Json, since: dt.datetime) -> LoginAttempts | None:
        """See `worker.backends.login_attempts`."""
        with _errors():
            found = backends.login_attempts(self._backend, manifest, since)
            if found is None:
                return None
            return LoginAttempts(
                _count(found.count),
                found.last_at.astimezone(dt.UTC),
                [foreign.line(one, ADDRESS) for one in islice(found.addresses, ADDRESSES)],
                {foreign.line(one, ADDRESS): _count(so_far) for one, so_far in islice(found.groups.items(), GROUPS)},
            )

    def check(self) -> list[Finding]:
        """See `worker.backends.check`."""
        with _errors():
            return _findings(backends.check(self._backend))

    def objects(self) -> Iterator[MarkedObject]:
        """See `worker.backends.objects`; words are cut, and a manifest is not: `why` says that it cannot be stored."""
        with _errors():
            for one in backends.objects(self._backend):
                yield _object(one)

    def unmarked(self) -> Iterator[UnmarkedObject]:
        """See `worker.backends.fleet.unmarked`. Left out is what could not be adopted: names that cannot be stored."""
        with _errors():
            for one in fleet.unmarked(self._backend):
                if (names := _storable(one.names)) is not None:
                    yield UnmarkedObject(names, *_measures(one))

    def measured(self, names: Json) -> Measured:
        """See `worker.backends.fleet.measured`."""
        with _errors():
            return Measured(*_measures(fleet.measured(self._backend, names)))

    @property
    def keeps_memory(self) -> bool:
        """See `worker.backends.keeps_memory`."""
        return backends.keeps_memory(self._backend)

    def remember(self, memory: Memory, least: Moment | None = None) -> Memory | None:
        """See `worker.backends.remember`."""
        with _errors():
            return _memory(backends.remember(self._backend, memory, least), memory.installation)

    def recall(self, installation: uuid.UUID) -> Memory | None:
        """See `worker.backends.recall`."""
        with _errors():
            return _memory(backends.recall(self._backend, installation), installation)

    def server_identity(self) -> str | None:
        """See `worker.backends.server_identity`."""
        with _errors():
            found = backends.server_identity(self._backend)
            return None if found is None else foreign.line(str(found), ADDRESS)

    def installations(self) -> list[uuid.UUID]:
        """See `worker.backends.installations`."""
        with _errors():
            found = list(islice(backends.installations(self._backend), INSTALLATIONS))
            if not all(isinstance(one, uuid.UUID) for one in found):
                raise OutOfService(f"the backend names installations that are no UUIDs: {foreign.line(repr(found))}")
            return found


def _findings(found: Iterable[Finding]) -> list[Finding]:
    """The first of them; what mends something is a statement, and longer than words."""
    return [
        Finding(
            foreign.line(one.code), foreign.line(one.what), foreign.line(one.mend, foreign.EVIDENCE), bool(one.inherent)
        )
        for one in islice(found, FINDINGS)
    ]


@contextmanager
def _errors() -> Iterator[None]:
    """The errors that are meant, with bounded words. The words of any other go to the log alone, which bounds them."""
    try:
        yield
    except StartRefused:  # the claim was lost, says our own database
        raise
    except DeprovisionerError as error:
        kind = next((kind for kind in _KINDS if isinstance(error, kind)), BackendError)
        meant = kind(foreign.line(str(error)))
        meant.did = _evidence(error.did) if isinstance(error, BackendError) and error.did else None
        raise meant from error


def _count(number: int) -> int:
    return min(max(int(number), 0), 2**53)


def _memory(there: Memory | None, installation: uuid.UUID) -> Memory | None:
    """Read once more, as foreign text is. What is no memory is an error: it must not count as nothing remembered."""
    if there is None:
        return None
    try:
        read = replace(Memory.read(there.as_json()), lagging=there.lagging)
        wrong = "" if isinstance(read.lagging, int | None) else "its `lagging` is no number"
        wrong = wrong if read.installation == installation else f"it is that of installation {read.installation}"
    except (AttributeError, TypeError, ValueError, RecursionError) as error:
        wrong = foreign.line(str(error) or "no reason")  # no `repr` of what it is: that may have no end
    if wrong:
        raise OutOfService(f"what the backend keeps of installation {installation} is no memory: {wrong}")
    return read


def _evidence(seen: Any) -> Json:
    bounded = foreign.evidence(seen)
    return bounded if isinstance(bounded, dict) else {"seen": bounded}


def _lacking(manifest: Json, completes: Json) -> Json:
    """What an inspection adds to a manifest. Raises Refused where the manifest has another value already."""
    if changed := [name for name, value in _manifest(completes).items() if manifest.get(name) not in (None, value)]:
        raise Refused(f"the backend would change {foreign.line(', '.join(changed))} of the manifest; it may only add")
    return completes


def _located(manifest: Json, seen: Json) -> Json:
    """The evidence, and the manifest on the server that moved, where the kind gives one."""
    shown = _evidence({name: value for name, value in seen.items() if name != "manifest"})
    if (moved := seen.get("manifest")) is None:
        return shown
    if _manifest(moved).get("generation") != manifest.get("generation") or manifest.keys() - moved.keys():
        raise Refused(f"the backend found an object that is not the manifest's: {foreign.line(repr(moved))}")
    return shown | {"manifest": moved}


def _manifest(manifest: Json) -> Json:
    try:
        written = json.dumps(manifest, ensure_ascii=False, allow_nan=False)
        unstorable = "\\u0000" in written or len(written.encode()) > MANIFEST
    except (TypeError, ValueError, RecursionError):
        unstorable = True
    if unstorable:
        raise Refused(f"the backend's manifest cannot be stored: {foreign.line(repr(manifest))}")
    return manifest


def _storable(names: Json) -> Json | None:
    try:
        return _manifest(names)
    except Refused:
        return None


def _measures(one: Any) -> tuple[int | None, dt.datetime | None, dt.datetime | None]:
    size, times = one.size_bytes, (one.created_at, one.last_used_at)
    created, used = (None if time is None else time.astimezone(dt.UTC) for time in times)
    return None if size is None else _count(size), created, used


def _object(one: MarkedObject) -> MarkedObject:
    try:
        names, why = _manifest(one.names), foreign.line(one.why)
    except Refused as error:
        names, why = {}, str(error)
    size, created, used = _measures(one)
    parts = tuple(foreign.line(part, PART) for part in islice(one.parts, PARTS))
    return replace(
        one,
        generation=foreign.line(one.generation, PART),
        names=names,
        parts=parts,
        contradictory=one.contradictory or names != one.names,
        why=why,
        size_bytes=size,
        created_at=created,
        last_used_at=used,
    )
