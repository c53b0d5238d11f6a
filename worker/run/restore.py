"""A restore: release what is in quarantine, and see a login work."""

from typing import TYPE_CHECKING

from tenacity import retry_if_exception_type

from outbox import credentials, db, jobs, resources
from outbox.errors import BackendError, ClaimLost, Refused, Transient, Unavailable
from outbox.events import Event, emit
from worker.backends import Absent, Different, Same, prove
from worker.run.provision import AttemptsSpent
from worker.run.retries import retrying

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
    manifest = claim.manifest | before.get("completes", {})  # as the start has stored it
    backend.release(manifest, run.still)
    with db.statement() as session:
        _, sealed = resources.find(session, claim.resource_id)
    seen = prove(backend, manifest, None if sealed is None else credentials.unseal(sealed))
    run.close_breaker()
    run.record(jobs.give_back, seen=seen)
    emit(Event.RESTORED, run.log)


def shut_again(run: "Run") -> str | None:
    """Put the object of a restore that is given up back into quarantine; what prevented it, in words, if anything did.

    Raises ClaimLost; and Unavailable: while the server cannot be asked, the restore is not given up.
    """
    if run.claim.manifest is None or not (run.started or run.claim.started_fence):
        return None
    try:
        retrying(retry_if_exception_type(Transient))(run.backend.quarantine, run.claim.manifest, run.still)
    except (ClaimLost, Unavailable):
        raise
    except Exception as error:  # whatever it is, an operator must hear that the object may be open
        if db.passing(error):
            raise
        run.log.error("restore_left_open", error=str(error), exc_info=not isinstance(error, BackendError))
        why = str(error) if isinstance(error, BackendError) else f"unexpected {type(error).__name__}"
        return f"and it is not in quarantine: {why}"
    return None
