"""A teardown: inspect, record the start, tear down, inspect again, record the outcome.

With a grace or a snapshot it has steps, each with its own start and its own end; the last one is the teardown itself.

The jobs of one worker share the statements of their starts and of their completions.
"""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, assert_never

from outbox import db, foreign, jobs, settings
from outbox.batching import Gate, GroupCommit
from outbox.errors import Busy, ClaimLost
from outbox.events import Event, emit
from outbox.rows import Json, StartMark
from outbox.states import Step, StuckReason
from worker.backends import Absent, Different, Same
from worker.run.snapshot import snapshot

if TYPE_CHECKING:
    from worker.run import Run

_MARK_LEFT = (
    "the adoption never ended, and left its mark there: find its owner, take the mark back, then re-drive this job"
)


class Batches:
    """The statements that the jobs of one worker share.

    Claims pass the same gate: without it each statement would carry only the few requests that have just arrived.
    """

    def __init__(self, *, worker: str) -> None:
        self.gate = Gate()
        self.starts = GroupCommit("starts", partial(_start_all, worker), gate=self.gate)
        self.completions = GroupCommit("completions", partial(_complete_all, worker), gate=self.gate)


# By fence too: two claims of one job, the lost one and its successor, may share a statement.
def _start_all(worker: str, requests: Sequence[tuple[Any, ...]]) -> list[StartMark | None]:
    with db.statement() as session:
        marks = jobs.start_all(session, requests, worker=worker, waits=False)
    return [marks.get((claim.id, claim.fence)) for claim, *_ in requests]


def _complete_all(worker: str, requests: Sequence[tuple[Any, ...]]) -> list[bool | None]:
    with db.statement() as session:
        done = jobs.complete_all(session, requests, worker=worker, waits=False)
    return [(claim.id, claim.fence) in done or None for claim, *_ in requests]


def deprovision(run: "Run") -> None:
    """Carry a teardown to its outcome. Raises what stops it, which `Run` turns into a transition."""
    claim, backend = run.claim, run.backend
    if claim.contended:
        # A provision that started before the DELETE may still make the object, so its absence now proves nothing. A
        # provision that has not started never will: a claim that is not contended has the resource's last manifest.
        raise Busy("another job of the resource is running")
    if claim.manifest is None:
        return _complete(run, {"never_made": True})
    if not backend.observable and run.in_doubt:
        return run.stick(StuckReason.OUTCOME_UNKNOWN, f"the attempt with fence {claim.started_fence} may have acted")
    match backend.inspect(claim.manifest):
        case Absent(seen=seen):
            return _complete(run, _already_gone(run, seen))
        case Different() as other if claim.adopted and not claim.activated:
            return _never_adopted(run, other)
        case Different(seen=seen, why=why):
            return run.stick(StuckReason.REFUSED, why, seen)
        case Same(seen=before):
            run.mark = _start(run, before)
            if run.destroys:
                run.keep(run.mark)
            # The manifest as the start has stored it.
            return _DO[claim.step or Step.DESTROY](run, claim.manifest | before.get("completes", {}), before)
        case never:
            assert_never(never)


def _quarantine(run: "Run", manifest: Json, before: Json) -> None:
    run.backend.quarantine(manifest, run.still)
    _advance(run, Event.QUARANTINED, before)


def _snapshot(run: "Run", manifest: Json, before: Json) -> None:
    did = snapshot(run, manifest)
    _advance(run, Event.SNAPSHOT_VERIFIED, before, did)


def _destroy(run: "Run", manifest: Json, _: Json) -> None:
    did = run.backend.teardown(manifest, run.claim.fence)
    run.kept(run.mark)
    run.close_breaker()
    match run.backend.inspect(manifest):
        case Absent(seen=seen):
            return _complete(run, seen, did)
        case Different(seen=seen, why=why):
            return run.stick(StuckReason.REFUSED, why, seen)
        case Same(seen=seen):
            return run.retry(foreign.line(f"still there after the teardown: {seen}"))
        case never:
            assert_never(never)


# By the step of the claim; the destruction is what waiting was for.
_DO = {Step.QUARANTINE: _quarantine, Step.SNAPSHOT: _snapshot, Step.WAIT: _destroy, Step.DESTROY: _destroy}


def _never_adopted(run: "Run", other: Different) -> None:
    """The adoption never ended, so the object there never became this resource's."""
    if other.marked:  # its worker died after it had marked something: an operator says whose that is now
        return run.stick(StuckReason.REFUSED, f"{other.why}; {_MARK_LEFT}", other.seen)
    return _complete(run, {"never_adopted": other.why} | other.seen)


def _already_gone(run: "Run", seen: Json) -> Json:
    if not run.claim.destroying:
        return seen | {"already_gone": True}
    return seen | {"done_by_fence": run.claim.started_fence}


def _start(run: "Run", before: Json) -> StartMark:
    alone = partial(run.record, jobs.start, seen=before)
    mark: StartMark
    if brakes := settings.brakes(run.claim.backend, run.claim.tenant):
        mark = run.record(jobs.start, within=db.transaction, seen=before, under=brakes)
    elif run.batches is None:
        mark = alone()
    else:
        mark = run.batches.starts.do((run.claim, before), alone=alone)
    run.started = True
    return mark


def _advance(run: "Run", event: Event, seen: Json, did: Json | None = None) -> None:
    run.close_breaker()
    run.record(jobs.advance, event=event, seen=seen, did=did)
    emit(event, run.log)


def _complete(run: "Run", seen: Json, did: Json | None = None) -> None:
    alone = partial(run.record, jobs.complete, seen=seen, did=did)
    try:
        if run.batches is None:
            alone()
        else:
            run.batches.completions.do((run.claim, seen, did), alone=alone)
    except ClaimLost:
        run.record(jobs.note_late, news={"completed": seen, "did": did})
        raise
    emit(Event.COMPLETED, run.log)
