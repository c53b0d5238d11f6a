"""A restore: release what is in quarantine, and see a login work."""

from typing import TYPE_CHECKING

from outbox import credentials, db, jobs, resources
from outbox.errors import BackendError, Refused, Unavailable
from outbox.events import Event, emit
from worker.backends import Absent, Different, Same, prove
from worker.run.provision import AttemptsSpent

if TYPE_CHECKING:
    from worker.run import Run


def restore(run: "Run") -> None:
    """Carry a restore to its outcome. Raises what stops it, which `Run` turns into a transition."""
    claim, backend = run.claim, run.backend
    if claim.attempts > claim.max_attempts:
        raise AttemptsSpent("its worker died in every attempt")
    assert claim.manifest is not None  # noqa: S101 - it was active once
    match backend.inspect(claim.manifest):
        case Absent():
            raise Refused("the object is no longer there: it cannot be given back")
        case Different(why=why):
            raise Refused(why)
        case Same(seen=before):
            run.record(jobs.start, seen=before)
    run.started = True
    backend.release(claim.manifest, run.still)
    with db.statement() as session:
        _, sealed = resources.find(session, claim.resource_id)
    seen = prove(backend, claim.manifest, None if sealed is None else credentials.unseal(sealed))
    run.close_breaker()
    run.record(jobs.give_back, seen=seen)
    emit(Event.RESTORED, run.log)


def shut_again(run: "Run") -> str | None:
    """Put the object of a restore that is given up back into quarantine; what prevented it, in words, if anything did.

    Raises Unavailable: while the server cannot be asked, the restore is not given up.
    """
    if run.claim.manifest is None or not (run.started or run.claim.started_fence):
        return None
    try:
        run.backend.quarantine(run.claim.manifest, run.still)
    except Unavailable:
        raise
    except BackendError as error:
        return f"and it is not in quarantine: {error}"
    return None
