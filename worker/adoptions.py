"""Inspects the objects of an adoption's preview for an operator; it changes nothing on their servers."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from outbox import adoptions, db, kinds
from outbox.adoptions import Candidate
from outbox.errors import BackendError, BadRequest, Refused, Transient, Unavailable
from outbox.logs import log
from outbox.rows import Json
from worker.backends import Backend, Finding
from worker.intake import Intake

# Objects that a worker has at once. It holds them for a minute, and inspects each within some tens of milliseconds.
BATCH = 40
# At once: half as many as a backend's jobs by default, since jobs go on beside them.
THREADS = 2


def inspect_some(backends: Mapping[str, Backend], *, worker: str) -> int:
    """Inspect some objects that wait for it; returns how many were taken, 0 where none waits."""
    with db.statement() as session:
        taken = adoptions.take(session, list(backends), batch=BATCH)
    if taken:
        with ThreadPoolExecutor(THREADS, thread_name_prefix="adoptions") as threads:
            list(threads.map(partial(_inspect, backends, worker), taken))
    return len(taken)


def _inspect(backends: Mapping[str, Backend], worker: str, one: Candidate) -> None:
    found, pinned = _findings(backends[one.backend], one)
    with db.statement() as session:
        if found is None:
            adoptions.later(session, one)
        else:
            said = [{"code": finding.code, "what": finding.what, "mend": finding.mend} for finding in found]
            adoptions.record(session, one, said, worker=worker, pinned=pinned)


def _findings(backend: Backend, one: Candidate) -> tuple[list[Finding] | None, Json | None]:
    """Why it cannot be adopted, None where the backend could not be asked now; and the manifest of what was inspected.

    What is inspected is what was pinned: an object that takes its name in between is found to be another.
    """
    try:
        pinned = kinds.check(one.kind, Intake(backend).pinned(one.manifest))
        return Intake(backend).adoptable(pinned), pinned
    except (Unavailable, Transient) as error:
        log.warning("adoption_not_inspected", operation=one.operation_id, n=one.n, error=str(error))
        return None, None
    except Refused as error:
        return [Finding("refused", str(error), "")], None
    except (BackendError, BadRequest) as error:
        return [Finding("refused", f"it could not be inspected: {error}", "")], None
    except Exception as error:  # noqa: BLE001 - an operator must hear of a backend's bug, but not its words: secrets
        log.exception("adoption_not_inspected", operation=one.operation_id, n=one.n)
        return [Finding("refused", f"unexpected {type(error).__name__}: the worker's log has it", "")], None
