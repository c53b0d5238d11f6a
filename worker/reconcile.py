"""Reads a backend and compares it with the rows: once a day by one of the workers, and when a person asks for it."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from typing import TypeVar, assert_never

from sqlalchemy.exc import SQLAlchemyError

from outbox import advice, db, kinds, reconcile, rewinds, settings
from outbox.errors import BackendError, Conflict, DeprovisionerError, Rewound, SettingsError, Transient, Unavailable
from outbox.logs import log
from outbox.reconcile import Item, Looked, Run, Seen
from outbox.rows import Json
from outbox.settings import BackendConfig
from outbox.states import Difference
from worker import backends
from worker.backends import Absent, Backend, Different, MarkedObject, Same
from worker.backends.fleet import Measured, UnmarkedObject
from worker.intake import Intake

# Objects that are stored at once: some hundred kB.
PAGE = 500
# Whether a run is due: one small statement.
LOOK_SECONDS = 600.0
# What is found without being asked for.
ALWAYS = (Difference.UNKNOWN, Difference.SURVIVES, Difference.MISSING, Difference.DIFFERS)
Tell = Callable[[str], object]
T = TypeVar("T")


@dataclass(frozen=True)
class Ended:
    """How a run ended. `error`: why it failed, None where it did not, or was not due.

    `young`: how many differences it left aside, which are less than an hour old.
    """

    error: str | None = None
    young: int = 0


class Unread(DeprovisionerError):
    """The backend could not be read, or not to its end; the words can be shown."""


def keep_reconciling(served: Mapping[str, Backend], *, worker: str) -> None:
    """Reconcile each backend once a day, in a thread that ends with the process: it takes no job's slot."""
    threading.Thread(target=_keep_reconciling, args=(served, worker), name="reconcile", daemon=True).start()


def _keep_reconciling(served: Mapping[str, Backend], worker: str) -> None:
    while True:
        reconcile_due(served, worker=worker)
        time.sleep(LOOK_SECONDS)


def reconcile_due(served: Mapping[str, Backend], *, worker: str) -> None:
    """One round: each backend whose daily run is due, and which no other worker has begun. Never raises."""
    try:
        with db.statement() as session:
            due = reconcile.due(session, [*served])
        for name in due:
            ended = run(settings.backends()[name], served[name], actor=worker, only_due=True)
            if ended.error:
                log.warning("reconciliation_failed", backend=name, actor=worker, error=ended.error)
    except Rewound:
        return  # a worker that noticed it has told
    except (SQLAlchemyError, DeprovisionerError) as error:
        log.warning("reconciliation_not_recorded", actor=worker, error=str(error))
    except Exception:  # noqa: BLE001 - a bug must not end the thread
        log.exception("reconciliation_failed", actor=worker)


def of(config: BackendConfig, *, actor: str, unmarked: bool = False, tell: Tell = lambda _: None) -> Ended:
    """Build the backend of a configuration, and reconcile it.

    Raises Rewound, and Conflict where no run may begin.
    """
    try:
        backend = backends.build(config, protected=_protected())
    except SettingsError as error:
        return Ended(str(error))
    return run(config, backend, actor=actor, unmarked=unmarked, tell=tell)


def _protected() -> frozenset[str]:
    return frozenset(name for name in (db.control_url().database,) if name)


def run(
    config: BackendConfig,
    backend: Backend,
    *,
    actor: str,
    unmarked: bool = False,
    only_due: bool = False,
    tell: Tell = lambda _: None,
) -> Ended:
    """One run. A run that fails stores only why.

    No transaction is open while the backend is asked. Raises Rewound, Conflict, and what the control database raises.
    """
    with db.statement() as session:
        begun = reconcile.begin(session, config.name, actor=actor, only_due=only_due)
    if begun is None:
        return Ended()
    try:
        return _reconcile(begun, config.kind, Intake(backend), unmarked=unmarked, tell=tell)
    except Rewound:
        raise
    except (Unread, Conflict) as error:
        with db.statement() as session:
            reconcile.fail(session, begun, str(error))
        return Ended(str(error))


def _reconcile(run: Run, kind: str, served: Intake, *, unmarked: bool, tell: Tell) -> Ended:
    """Read all, compare, inspect each difference once more, store what stands; says what was not inspected."""
    field = _field(kind)
    tell(f"reading {run.backend}")
    for page in _pages(run, served, kind, unmarked=unmarked):
        with db.statement() as session:
            reconcile.keep(session, run, page)
    with db.statement() as session:
        installation = rewinds.here(session, []).installation
    with _asking(run.backend):  # after the objects: who makes one has left a memory before
        shared = any(other != installation for other in served.installations())
        memory = served.recall(installation)
    notes = memory.notes or () if memory else ()
    noted = {str(note.resource) for note in notes} | {str(note.detail.get("generation")) for note in notes}
    tell(f"comparing {run.backend}")
    with db.statement() as session:
        counts = reconcile.compare(session, run, shared=shared, noted=noted, field=field)
    error = _inspect(run, served, kind, tell)
    codes = [*ALWAYS, *([Difference.UNMARKED] if unmarked else [])]
    with db.transaction() as session:
        reconcile.conclude(session, run, counts, codes, field=field, error=error)
    return Ended(error, counts.young)


def _inspect(run: Run, served: Intake, kind: str, tell: Tell) -> str | None:
    """Inspect what may differ. What the backend refuses to inspect is not known: an error, but the others count."""
    after, inspected, refused = 0, 0, 0
    first = ""
    while items := _waiting(run, after):
        seen = []
        for item in items:
            try:
                with _asking(run.backend):
                    seen.append(_look(served, kind, item))
            except Unread as error:
                if isinstance(error.__cause__, Unavailable | Transient):
                    raise
                refused, first = refused + 1, first or str(error)
        with db.statement() as session:
            reconcile.looked(session, run, seen)
        after, inspected = items[-1].n, inspected + len(items)
        tell(f"{run.backend}: {inspected} differences inspected")
    return f"{refused} differences could not be inspected, and are not known; the first: {first}" if refused else None


def _waiting(run: Run, after: int) -> list[Item]:
    with db.statement() as session:
        return reconcile.waiting(session, run, after)


def _pages(run: Run, served: Intake, kind: str, *, unmarked: bool) -> Iterator[list[Seen]]:
    """What stands on the backend. An error of the backend becomes Unread; an error of storing it does not."""
    seen: Iterator[Seen] = map(_marked, _told(run.backend, served.objects()))
    if unmarked:
        seen = chain(seen, (_unmarked(kind, one) for one in _told(run.backend, served.unmarked())))
    while page := list(islice(seen, PAGE)):
        yield page


def _told(name: str, found: Iterator[T]) -> Iterator[T]:
    while True:
        with _asking(name):
            one = next(found, None)
        if one is None:
            return
        yield one


@contextmanager
def _asking(name: str) -> Iterator[None]:
    try:
        yield
    except BackendError as error:
        raise Unread(str(error)) from error
    except Exception as error:  # a bug of a kind; its words may hold secrets
        log.exception("backend_reading_failed", backend=name)
        raise Unread(f"unexpected {type(error).__name__}") from error


def _marked(one: MarkedObject) -> Seen:
    return Seen(
        one.generation,
        one.names,
        one.parts,
        one.resource_id,
        one.quarantined,
        one.contradictory,
        one.why,
        one.size_bytes,
        one.created_at,
        one.last_used_at,
    )


def _unmarked(kind: str, one: UnmarkedObject) -> Seen:
    """Its parts are its names, as they are no secret: those that the kind requires, or of an unknown kind the first."""
    known = kinds.find(kind)
    named = {name: value for name, value in one.names.items() if value is not None}
    told = [f.name for f in known.fields if f.required and not f.secret] if known else list(named)[:1]
    parts = tuple(f"{name} {named[name]!r}" for name in told if name in named)
    return Seen(
        None,
        one.names,
        parts,
        size_bytes=one.size_bytes,
        created_at=one.created_at,
        last_used_at=one.last_used_at,
    )


def _field(kind: str) -> str | None:
    """The manifest's field that names an object; None for a kind that does not say."""
    known = kinds.find(kind)
    return known.fields[0].name if known else None


def _look(served: Intake, kind: str, item: Item) -> Looked:
    """Inspect once more: whether it stands, and as what. A job that ran meanwhile, or a person, may have ended it."""
    match item.code:
        case Difference.MISSING | Difference.DIFFERS:
            code, why = _of_row(served, item)
        case Difference.UNKNOWN | Difference.SURVIVES:
            code, why = (item.code if _stands(served, kind, item) else None), item.why
        case Difference.UNMARKED:
            code, why = item.code, item.why
        case never:
            assert_never(never)
    measures = Measured(item.size_bytes, item.created_at, item.last_used_at)
    if code in (Difference.UNKNOWN, Difference.SURVIVES, Difference.UNMARKED) and measures.size_bytes is None:
        measures = _measured(served, item)
    return Looked(item.n, code is not None, code or item.code, why, **vars(measures))


def _of_row(served: Intake, item: Item) -> tuple[Difference | None, str]:
    """What an active row's object is; None where it is as it should be."""
    manifest = item.manifest or {}
    match served.inspect(manifest):
        case Absent():
            return Difference.MISSING, "the server has nothing of it"
        case Different(why=why):
            return Difference.DIFFERS, why
        case Same() if item.quarantined:
            return Difference.DIFFERS, "it is in quarantine, though its resource is active: its customer is shut out"
        case Same(seen=seen) if _in_part(manifest, item.names) and (gone := advice.missing_parts(seen)):
            return Difference.DIFFERS, f"part of it is gone: {', '.join(gone)}"
        case Same():
            return None, ""


def _in_part(manifest: Json, names: Json) -> bool:
    """Whether the inventory lacked a name that the manifest has."""
    return any(manifest.get(name) is not None and value is None for name, value in names.items())


def _stands(served: Intake, kind: str, item: Item) -> bool:
    """Whether something still bears the mark. What cannot be named cannot be inspected: it stands as it was read."""
    known = kinds.find(kind)
    required = [field.name for field in known.fields if field.required] if known else list(item.names)
    whole = bool(item.names) and all(item.names.get(name) is not None for name in required)
    manifest = item.names if whole else item.manifest
    if manifest is None:
        return True
    match served.inspect(manifest):
        case Absent():
            return False
        case Same():
            return True
        case Different(marked=marked):
            return marked or item.contradictory


def _measured(served: Intake, item: Item) -> Measured:
    """Its size and age; nothing where the server does not tell: that is no reason to miss the finding."""
    try:
        return served.measured(item.names)
    except BackendError:
        return Measured()
