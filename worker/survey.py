"""What a recovery and a rebind read from the backends: memories, marked objects, and inspections of single objects."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from uuid import UUID

from outbox import doorbell
from outbox.actions import At, Look, Looked, Seen
from outbox.errors import BackendError, SettingsError
from outbox.logs import log
from outbox.memory import Memory
from outbox.rewinds import BROKER
from outbox.rows import Json
from outbox.settings import BackendConfig
from outbox.states import Found
from worker import backends
from worker.backends import Absent, Different, MarkedObject, Observation, Same
from worker.intake import Intake

# Objects that are stored at once: some hundred kB.
PAGE = 500
Keep = Callable[[str, Sequence[Seen]], object]
Tell = Callable[[str], object]


@dataclass(frozen=True)
class Places:
    """The backends of a backends file, as a worker reaches them, and the broker. Nothing here raises."""

    configured: Mapping[str, BackendConfig]

    def look(self, installation: UUID, keep: Keep, tell: Tell) -> dict[str, Looked]:
        """Read each place's memory and all marked objects, which `keep` stores page by page."""
        looked = {}
        for name, config in sorted(self.configured.items()):
            tell(f"reading {name}")
            looked[name] = one = _look(config, installation, keep)
            if one.error:
                tell(f"{name} could not be read: {one.error}")
        looked[BROKER] = _broker(installation)
        return looked

    def inspect(self, name: str, manifest: Json) -> Look:
        """What a backend shows of one object now."""
        return self._look(name, lambda backend: backend.inspect(manifest))

    def locate(self, name: str, manifest: Json) -> Look:
        """Where a backend, whose server moved, has one object now: `seen["manifest"]`, where it found it."""
        return self._look(name, lambda backend: backend.locate(manifest))

    def _look(self, name: str, ask: Callable[[Intake], Observation]) -> Look:
        try:
            with _errors(name):
                match ask(_built(self.configured[name])):
                    case Absent(seen=seen):
                        return Look(Found.ABSENT, seen)
                    case Same(seen=seen):
                        return Look(Found.SAME, seen)
                    case Different(seen=seen, why=why):
                        return Look(Found.DIFFERENT, seen | {"why": why})
        except _Unread as error:
            return Look(Found.UNAVAILABLE, {"error": str(error)})

    def server(self, name: str, installation: UUID) -> At:
        """Which server a backend is on now, and what it remembers."""
        try:
            with _errors(name):
                backend = _built(self.configured[name])
                return At(backend.server_identity(), backend.recall(installation), backend.keeps_memory)
        except _Unread as error:
            return At(error=str(error))

    def remember(self, memory: Memory) -> dict[str, str | None]:
        """Write a memory to every place that keeps one; by place, why it was not kept there, None where it was."""
        written = {}
        for name in [*sorted(self.configured), BROKER]:
            try:
                with _errors(name):
                    keeper = None if name == BROKER else _built(self.configured[name])
                    if keeper is not None and not keeper.keeps_memory:
                        continue  # it would seem to have lost what it never kept
                    there = (keeper or doorbell).remember(memory)
                    written[name] = None if there is None else _refusal(memory, there)
            except _Unread as error:
                written[name] = str(error)
        return written


def _refusal(memory: Memory, there: Memory) -> str | None:
    """Why a place did not take a memory, None where it only had to take `still`."""
    if memory.still and there.still:
        return None
    return f"it has epoch {there.epoch}, event {there.event}, which is later"


class _Unread(Exception):
    """A place could not be asked; the words can be shown."""


@contextmanager
def _errors(name: str) -> Iterator[None]:
    try:
        yield
    except (BackendError, SettingsError) as error:
        raise _Unread(str(error)) from error
    except _Unread:
        raise
    except Exception as error:  # a bug of a kind; its words may hold secrets
        log.exception("backend_survey_failed", backend=name)
        raise _Unread(f"unexpected {type(error).__name__}") from error


def _built(config: BackendConfig) -> Intake:
    return Intake(backends.build(config, protected=frozenset()))


def _look(config: BackendConfig, installation: UUID, keep: Keep) -> Looked:
    try:
        with _errors(config.name):
            backend = _built(config)
            memory = backend.recall(installation)
            shared = any(other != installation for other in backend.installations())
            objects = _marked(config.name, backend)
            while page := [_seen(one) for one in islice(objects, PAGE)]:
                keep(config.name, page)
    except _Unread as error:
        return Looked(error=str(error))
    return Looked(memory, shared)


def _marked(name: str, backend: Intake) -> Iterator[MarkedObject]:
    """The marked objects. An error of the backend becomes _Unread; an error of storing them does not."""
    found = backend.objects()
    while True:
        with _errors(name):
            one = next(found, None)
        if one is None:
            return
        yield one


def _seen(one: MarkedObject) -> Seen:
    return Seen(one.generation, one.names, one.parts, one.resource_id, one.quarantined, one.why)


def _broker(installation: UUID) -> Looked:
    """The broker's memory. A broker that is lost, or has lost its memory, is no sign of a rewind."""
    try:
        with _errors(BROKER):
            return Looked(doorbell.recall(installation))
    except _Unread as error:
        return Looked(error=str(error))
