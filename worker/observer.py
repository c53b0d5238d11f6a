"""Inspects a stuck job's backend for an operator who asked. It changes nothing there, and moves no job."""

from outbox import db, observations
from outbox.errors import BackendError
from outbox.events import Event, emit
from outbox.logs import log
from outbox.observations import Inspection
from outbox.rows import Json
from outbox.states import Found
from worker.backends import Absent, Backend, Different, Same
from worker.intake import Intake


def observe(look: Inspection, backend: Backend, *, worker: str) -> None:
    """Inspect, and record what was seen. If recording fails, another worker inspects after a while."""
    found, seen = inspect(look, backend)
    with db.statement() as session:
        recorded = observations.record(session, look, worker=worker, found=found, seen=seen)
    if recorded:
        emit(Event.OBSERVED, log, job_id=look.job_id, found=found, actor=worker)
    else:
        log.info("observation_too_late", job_id=look.job_id, found=found, actor=worker)


def inspect(look: Inspection, backend: Backend) -> tuple[Found, Json]:
    """What is there now. Never raises: a backend that cannot be inspected is an answer too."""
    if look.manifest is None:
        return Found.ABSENT, {"never_made": True}
    asked = Intake(backend)
    try:
        if not asked.observable:
            return Found.UNOBSERVABLE, {}
        match asked.inspect(look.manifest):
            case Absent(seen=seen):
                return Found.ABSENT, seen
            case Same(seen=seen):
                # A part that the manifest never named, such as the role of an adopted database, is not missing.
                unnamed = {name for name, value in look.manifest.items() if value is None}
                return Found.SAME, {name: value for name, value in seen.items() if value or name not in unnamed}
            case Different(seen=seen, why=why):
                return Found.DIFFERENT, seen | {"why": why}
    except BackendError as error:
        return Found.UNAVAILABLE, {"error": str(error)}
    except Exception as error:  # noqa: BLE001 - an operator must hear of a backend's bug, but not its words: secrets
        log.exception("inspection_failed", job_id=look.job_id)
        return Found.UNAVAILABLE, {"error": f"unexpected {type(error).__name__}: the worker's log has it"}
