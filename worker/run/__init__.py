"""One job, read from top to bottom: observe, start, act, observe, record.

No transaction is open across a backend call.
"""

import random
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, assert_never

from sqlalchemy import Connection
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    retry_if_exception_type,
    stop_after_delay,
    wait_random_exponential,
)

from outbox import breakers, credentials, db, holds, jobs, resources, settings
from outbox.batching import Gate, GroupCommit
from outbox.errors import (
    BackendError,
    BrakeHit,
    Busy,
    ClaimLost,
    DeprovisionerError,
    Held,
    Refused,
    Transient,
    Unavailable,
    Unwanted,
)
from outbox.events import log
from outbox.rows import Claim, Json
from outbox.states import JobKind, ResourceStatus, StuckReason
from worker.backends import Absent, Backend, Different, Same

# A control database that restarts is back within this; after it the lease has passed and the sweep takes over.
_GIVE_UP = stop_after_delay(60)
_WAIT = wait_random_exponential(multiplier=0.1, max=2)
# Another job of the resource is at work: look again soon.
BUSY_DELAY_SECONDS = 1.0


_Within = Callable[[], AbstractContextManager[Connection]]


class _Exhausted(Exception):
    """A provision was claimed once more than it has attempts: its worker died under the last."""


class Batches:
    """The statements that the jobs of one worker share: the starts, and the completions, of one moment.

    They and its claims take turns, or each would go out for the few that happen to have come.
    """

    def __init__(self, *, worker: str) -> None:
        self.gate = Gate()
        self.starts = GroupCommit("starts", partial(_together, jobs.start_all, worker), gate=self.gate)
        self.completions = GroupCommit("completions", partial(_together, jobs.complete_all, worker), gate=self.gate)


def _together(
    transition: Callable[..., set[tuple[int, int]]], worker: str, asked: Sequence[tuple[Any, ...]]
) -> list[bool | None]:
    with db.statement() as session:
        done = transition(session, asked, worker=worker, waits=False)
    # By the fence too: an old claim of a job may ask in the same statement as the one that came after it.
    return [(claim.id, claim.fence) in done or None for claim, *_ in asked]


class Run:
    """One claim, carried to its outcome."""

    def __init__(self, claim: Claim, backend: Backend, *, worker: str, batches: Batches | None = None) -> None:
        self.claim = claim
        self.backend = backend
        self.worker = worker
        self.batches = batches
        self.started = False
        self.probed = not claim.probing  # whether the breaker, if this is its probe, has its answer
        self.making: Json | None = None  # what the backend may have made for us, from the moment it is asked to
        self.log = log.bind(
            job_id=claim.id,
            fence=claim.fence,
            resource_id=str(claim.resource_id),
            backend=claim.backend,
            kind=claim.kind,
            actor=worker,
        )

    def __call__(self) -> None:
        """Run the job; whatever happens ends in a transition, or in a lease that passes."""
        try:
            match self.claim.kind:
                case JobKind.DEPROVISION:
                    self._deprovision()
                case JobKind.PROVISION:
                    self._provision()
                case JobKind.RESTORE:
                    self._stick(StuckReason.REFUSED, "this version does not restore")
                case never:
                    assert_never(never)
        except ClaimLost as error:
            self._lost(error)
        except Exception as error:  # noqa: BLE001 - the one place where everything ends: each must become a transition
            if db.unreachable(error):
                self.log.error("outcome_not_recorded", error=repr(error))  # the lease will pass, and the sweep come
                return
            self._fail(error)
        if not self.probed:
            self._do(lambda session: breakers.give_back(session, self.claim.backend))

    # -- deprovision -------------------------------------------------------------------------------------------

    def _deprovision(self) -> None:
        if self.claim.contended:
            # A birth that started before the DELETE: what is absent now may be there when it has ended. One that has
            # not started never will, so whoever is not contended sees the last word, and the manifest with it.
            raise Busy("another job of the resource is running")
        if self.claim.manifest is None:
            return self._complete({"never_made": True})
        if not self.backend.observable and self._in_doubt():
            return self._stick(
                StuckReason.OUTCOME_UNKNOWN, f"the attempt with fence {self.claim.started_fence} may have acted"
            )
        match self._inspect(self.claim.manifest):
            case Absent(seen=seen):
                return self._complete(self._already_gone(seen))
            case Different(seen=seen, why=why) if self.claim.adopted and not self.claim.activated:
                # The adoption never came to be, so nothing there is this resource's to destroy.
                return self._complete({"never_adopted": why} | seen)
            case Different(seen=seen, why=why):
                return self._stick(StuckReason.REFUSED, why, seen)
            case Same(seen=before):
                self._start(before)
            case never:
                assert_never(never)
        did = self.backend.teardown(self.claim.manifest, self.claim.fence)
        match self.backend.inspect(self.claim.manifest):
            case Absent(seen=seen):
                return self._complete(seen, did)
            case Different(seen=seen, why=why):
                return self._stick(StuckReason.REFUSED, why, seen)
            case Same(seen=seen):
                return self._retry(f"still there after the teardown: {seen}")
            case never:
                assert_never(never)

    def _start(self, before: Json) -> None:
        under = settings.brakes(self.claim.backend, self.claim.tenant)
        if under:
            self._record(jobs.start, within=db.transaction, seen=before, under=under)
        elif not (self.batches and self.batches.starts.wait((self.claim, before))):
            self._record(jobs.start, seen=before)
        self.started = True

    def _in_doubt(self) -> bool:
        """Whether an earlier attempt may have acted, and no two operators have answered for it."""
        started, forced = self.claim.started_fence, self.claim.forced_fence
        return started is not None and (forced is None or started > forced)

    def _already_gone(self, seen: Json) -> Json:
        if self.claim.started_fence is None:
            return seen | {"already_gone": True}
        return seen | {"done_by_fence": self.claim.started_fence}

    def _complete(self, seen: Json, did: Json | None = None) -> None:
        try:
            if not (self.batches and self.batches.completions.wait((self.claim, seen, did))):
                self._record(jobs.complete, seen=seen, did=did)
        except ClaimLost:
            self._record(jobs.note_late, news={"completed": seen, "did": did})
            raise
        self.log.info("completed")

    # -- provision ---------------------------------------------------------------------------------------------

    def _provision(self) -> None:
        if self.claim.attempts > self.claim.max_attempts:
            raise _Exhausted("its workers died under it each time")
        if self.claim.adopted:
            assert self.claim.manifest is not None  # noqa: S101 - register wrote it
            self._inspect(self.claim.manifest)  # only to find the server out of reach before the attempt counts
            self._record(jobs.start_provision, manifest=self.claim.manifest, credentials=None)
            self.started = True
            self.making = manifest = self.backend.adopt(self.claim.manifest, self.claim.generation)
        else:
            planned, sealed = self._plan()
            self.started = True
            self.making = planned
            self.making = manifest = self.backend.provision(planned, credentials.unseal(sealed))
        self._breaker_closed()
        self._record(jobs.activate, manifest=manifest)
        self.log.info("activated")

    def _plan(self) -> tuple[Json, bytes]:
        plan = self.backend.plan(self.claim.resource_id, self.claim.generation)
        self._breaker_closed()
        sealed = credentials.seal(plan.credentials)
        planned, stored = self._record(jobs.start_provision, manifest=plan.manifest, credentials=sealed)
        return planned, stored

    def _lost(self, error: ClaimLost) -> None:
        """Another has the job by now. What we made after the resource was seen absent is nobody's: it goes again."""
        self.log.warning("claim_lost", error=str(error))
        if self.making is None:
            return
        self._record(jobs.note_late, news={"provisioned": self.making})
        with db.statement() as session:
            resource, _ = resources.find(session, self.claim.resource_id)
        if resource.status in (ResourceStatus.DELETING, ResourceStatus.DELETED) and not self.claim.adopted:
            self._undo(self.making)

    def _undo(self, manifest: Json) -> None:
        again = Retrying(
            retry=retry_if_exception_type((Transient, Unavailable)), wait=_WAIT, stop=_GIVE_UP, reraise=True
        )
        try:
            again(self.backend.teardown, manifest, self.claim.fence)
        except BackendError as error:
            self.log.error("late_birth_left", error=str(error), manifest=manifest)  # the doctor tells of it too
        else:
            self._record(jobs.note_late, news={"undone": manifest})

    # -- outcomes ----------------------------------------------------------------------------------------------

    def _fail(self, error: Exception) -> None:
        """The one table from what went wrong to what becomes of the job."""
        # The words of an error that nobody expected may hold a secret, and tenants read last_error.
        told = isinstance(error, DeprovisionerError | _Exhausted)
        text = str(error) if told else f"unexpected {type(error).__name__}: the worker's log has it"
        try:
            match error:
                case Unavailable():
                    self._trip(text)
                    if self.started:
                        self._retry(text)
                    else:
                        self._record(jobs.defer, error=text)
                        self.log.warning("deferred", error=text)
                case Busy():
                    # Two that wait for each other must not come back in step.
                    delay = BUSY_DELAY_SECONDS * random.uniform(0.5, 1.5)  # noqa: S311 - jitter, not a secret
                    self._record(jobs.defer, error=text, delay=delay)
                    self.log.info("deferred", error=text)
                case Held():
                    self._record(jobs.defer, error=text, hold=error.hold_id)
                    self.log.info("held", hold_id=error.hold_id)
                case BrakeHit():
                    self._brake(error)
                case Unwanted() | Refused() | _Exhausted():
                    self._give_up(StuckReason.REFUSED if isinstance(error, Refused | Unwanted) else _SPENT, text)
                case _ if self.started and not self.backend.observable:
                    self._stick(StuckReason.OUTCOME_UNKNOWN, text)
                case _:
                    self.log.warning("failed", error=text, exc_info=not isinstance(error, BackendError))
                    self._retry(text)
        except ClaimLost as lost:
            self._lost(lost)
        except Exception as worse:
            if not db.unreachable(worse):
                raise
            self.log.error("outcome_not_recorded", error=repr(worse))

    def _brake(self, hit: BrakeHit) -> None:
        """The count stops starts by itself; the hold keeps them stopped until a person has looked."""
        engaged = self._do(lambda session: holds.engage_brake(session, hit, actor=self.worker))
        if engaged is None:  # released at this very moment
            self._record(jobs.defer, error="a brake was hit")
            return
        hold, new = engaged
        if new:
            self.log.error("brake_hit", hold_id=hold.id, scope=hit.scope, subject=hit.subject, reason=str(hit))
        self._record(jobs.defer, error=f"{hold.name} is in force: a brake was hit", hold=hold.id)

    def _retry(self, error: str) -> None:
        if not self.started and (over := self._do(lambda session: holds.over(session, self.claim.id))):
            # It would not have been let start: that it failed before burns no attempt.
            self._record(jobs.defer, error=f"{over[0].name} is in force; {error}", hold=over[0].id)
            return
        if self.claim.attempts >= self.claim.max_attempts:
            acted = self.started or self._in_doubt()
            self._give_up(StuckReason.OUTCOME_UNKNOWN if acted and not self.backend.observable else _SPENT, error)
        else:
            self._record(jobs.retry, error=error)
            self.log.warning("retried", error=error)

    def _give_up(self, why: StuckReason, error: str) -> None:
        """A birth is undone the way of a DELETE; an adoption and a teardown wait for a person."""
        if self.claim.kind is JobKind.PROVISION:
            try:
                self._record(jobs.rollback, error=error)
            except ClaimLost:
                if not self.claim.adopted:
                    raise
            else:
                self.log.warning("rolled_back", error=error)
                return
        self._stick(why, error)

    def _stick(self, why: StuckReason, error: str, seen: Json | None = None) -> None:
        self._record(jobs.stick, why=why, error=error, seen=seen)
        self.log.error("stuck", stuck_reason=why, error=error)

    def _inspect(self, manifest: Json) -> Absent | Same | Different:
        observed = self.backend.inspect(manifest)
        self._breaker_closed()
        return observed

    def _breaker_closed(self) -> None:
        if not self.probed:
            self._do(lambda session: breakers.close(session, self.claim.backend))
            self.probed = True

    def _trip(self, reason: str) -> None:
        probing = not self.probed
        self._do(lambda session: breakers.trip(session, self.claim.backend, reason=reason, probing=probing))
        self.probed = True

    def _record(self, transition: Callable[..., Any], *, within: _Within = db.statement, **words: Any) -> Any:
        """One transition, tried until the control database takes it or the lease is long gone."""
        return self._do(lambda session: transition(session, self.claim, worker=self.worker, **words), within)

    def _do(self, act: Callable[[Connection], Any], within: _Within = db.statement) -> Any:
        for attempt in Retrying(
            retry=retry_if_exception(db.unreachable),
            wait=_WAIT,
            stop=_GIVE_UP,
            before_sleep=self._control_database_lost,
            reraise=True,
        ):
            with attempt, within() as session:
                return act(session)
        raise AssertionError("tenacity returns or raises")  # pragma: no cover

    def _control_database_lost(self, state: RetryCallState) -> None:
        self.log.warning("control_database_lost", error=repr(state.outcome.exception()) if state.outcome else None)


_SPENT = StuckReason.ATTEMPTS_EXHAUSTED
