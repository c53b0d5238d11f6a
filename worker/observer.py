"""One look at a stuck job's backend, for an operator who asked: it changes nothing there, and moves no job."""

from outbox import db, observations
from outbox.errors import BackendError
from outbox.events import log
from outbox.observations import Look
from outbox.rows import Json
from outbox.states import Found
from worker.backends import Absent, Backend, Different, Same


def look(turn: Look, backend: Backend, *, worker: str) -> None:
    """Look, and record what was seen; where that fails, the turn passes and another one looks."""
    found, seen = see(turn, backend)
    with db.statement() as session:
        told = observations.record(session, turn, worker=worker, found=found, seen=seen)
    log.info("observed" if told else "observed_too_late", job_id=turn.job_id, found=found, actor=worker)


def see(turn: Look, backend: Backend) -> tuple[Found, Json]:
    """What is there now; never raises, for that nothing could be seen is an answer too."""
    if turn.manifest is None:
        return Found.ABSENT, {"never_made": True}
    if not backend.observable:
        return Found.UNOBSERVABLE, {}
    try:
        match backend.inspect(turn.manifest):
            case Absent(seen=seen):
                return Found.ABSENT, seen
            case Same(seen=seen):
                # What it never had, as an adopted database may have no role, is no part of it that is gone.
                named = {name: value for name, value in turn.manifest.items() if value is None}
                return Found.SAME, {name: value for name, value in seen.items() if value or name not in named}
            case Different(seen=seen, why=why):
                return Found.DIFFERENT, seen | {"why": why}
    except BackendError as error:
        return Found.UNAVAILABLE, {"error": str(error)}
    except Exception as error:  # noqa: BLE001 - a bug of a backend's must reach the operator, and not its words: secrets
        log.exception("look_failed", job_id=turn.job_id)
        return Found.UNAVAILABLE, {"error": f"unexpected {type(error).__name__}: the worker's log has it"}
