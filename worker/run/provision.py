"""A provision: plan, record the start, make (or adopt), activate; and the undoing of what was made too late."""

from typing import TYPE_CHECKING

from tenacity import retry_if_exception_type

from outbox import credentials, db, jobs
from outbox.errors import BackendError, ClaimLost, Transient, Unavailable
from outbox.events import Event, emit
from outbox.rows import Json
from worker.run.retries import retrying

if TYPE_CHECKING:
    from worker.run import Run


class AttemptsSpent(Exception):
    """A provision was claimed once more than it has attempts: its worker died in the last one."""


def provision(run: "Run") -> None:
    """Carry a provision or an adoption to its outcome. Raises what stops it, which `Run` turns into a transition."""
    claim = run.claim
    if claim.attempts > claim.max_attempts:
        raise AttemptsSpent("its worker died in every attempt")
    if claim.adopted:
        assert claim.manifest is not None  # noqa: S101 - register wrote it
        run.backend.inspect(claim.manifest)  # an unavailable server is found here, before the attempt counts
        run.record(jobs.start_provision, manifest=claim.manifest, credentials=None)
        run.started = True
        run.made = manifest = run.backend.adopt(claim.manifest, claim.generation)
    else:
        planned, sealed = _plan(run)
        run.started = True
        run.made = planned
        run.made = manifest = run.backend.provision(planned, credentials.unseal(sealed))
    run.close_breaker()
    run.record(jobs.activate, manifest=manifest)
    emit(Event.ACTIVATED, run.log)


def _plan(run: "Run") -> tuple[Json, bytes]:
    plan = run.backend.plan(run.claim.resource_id, run.claim.generation)
    sealed = credentials.seal(plan.credentials)
    planned, stored = run.record(jobs.start_provision, manifest=plan.manifest, credentials=sealed)
    return planned, stored


def undo_late(run: "Run") -> None:
    """After the claim is lost: record what this attempt made, and remove it if its resource is being deleted.

    The resource's teardown may have seen it absent, so no other job would remove it. What a hold covers, and what could
    still be restored, is left; so is everything where the control database went back in time.
    """
    if run.made is None:
        return
    mark = run.record(jobs.note_late, news={"provisioned": run.made})
    with db.statement() as session:
        may = jobs.may_undo(session, run.claim)
    if mark is None or not may:
        run.log.info("late_birth_kept", manifest=run.made)
        return
    try:
        run.keep(mark)
    except ClaimLost as error:
        run.log.warning("late_birth_kept", error=str(error), manifest=run.made)
    else:
        _undo(run, run.made)


def _undo(run: "Run", manifest: Json) -> None:
    try:
        retrying(retry_if_exception_type((Transient, Unavailable)))(run.backend.teardown, manifest, run.claim.fence)
    except BackendError as error:
        run.log.error("late_birth_left", error=str(error), manifest=manifest)  # the doctor finds it too
    else:
        run.record(jobs.note_late, news={"undone": manifest})
