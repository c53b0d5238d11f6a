"""One job, from its claim to its outcome. No transaction is open across a backend call.

- `deprovision`  a teardown: inspect, start, tear down, inspect, complete
- `provision`    a provision or an adoption; and the undoing of one that came too late
- `snapshot`     the final snapshot of a teardown
- `restore`      giving back what is in quarantine
- `release`      out of management: the mark is taken off
- `retries`      how long a call is repeated in this process

This module has what both kinds need, and the one table from what went wrong to what becomes of the job.
"""

import random
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, assert_never

from sqlalchemy import Connection
from tenacity import RetryCallState, retry_if_exception, retry_if_exception_type

from outbox import breakers, db, holds, jobs
from outbox.errors import (
    BackendError,
    BrakeHit,
    Busy,
    ClaimLost,
    DeprovisionerError,
    Early,
    Held,
    OutOfService,
    Refused,
    Rewound,
    Unavailable,
    Unconfirmed,
    Unwanted,
)
from outbox.events import Event, emit
from outbox.logs import log
from outbox.rows import Claim, Json, StartMark
from outbox.states import JobKind, Step, StuckReason
from worker.backends import Backend
from worker.backends.caller import calling
from worker.intake import Intake
from worker.memory import Memories
from worker.run.deprovision import Batches, deprovision
from worker.run.provision import AttemptsSpent, provision, undo_late
from worker.run.release import release
from worker.run.restore import restore, shut_again
from worker.run.retries import retrying

__all__ = ["BUSY_DELAY_SECONDS", "Batches", "Run"]

# Another job of the resource is running, which is soon over.
BUSY_DELAY_SECONDS = 1.0
_SPENT = StuckReason.ATTEMPTS_EXHAUSTED

_Within = Callable[[], AbstractContextManager[Connection]]


class Run:
    """One claim, carried to its outcome. With `batches`, it shares statements with its worker's other jobs.

    With `memories`, a backend remembers each destruction before it begins.
    """

    def __init__(
        self,
        claim: Claim,
        backend: Backend,
        *,
        worker: str,
        batches: Batches | None = None,
        memories: Memories | None = None,
    ) -> None:
        self.claim = claim
        self.backend = Intake(backend)
        self.worker = worker
        self.batches = batches
        self.memories = memories
        self.mark: StartMark | None = None  # of this attempt's start of a teardown
        self.started = False  # this attempt's start is recorded: from here on the backend may have been changed
        self.probed = not claim.probing  # False while this job is its backend's probe, and nothing is known of its work
        self.made: Json | None = None  # what a provision may have made, from the moment the backend is asked
        self.log = log.bind(
            job_id=claim.id,
            fence=claim.fence,
            resource_id=str(claim.resource_id),
            backend=claim.backend,
            kind=claim.kind,
            actor=worker,
        )

    def __call__(self) -> None:
        """Run the job. It ends in a transition; without a control database, in a lease that passes."""
        with calling(self.claim.id, self.claim.fence):
            self._carry_out()

    def _carry_out(self) -> None:
        try:
            match self.claim.kind:
                case JobKind.DEPROVISION:
                    deprovision(self)
                case JobKind.PROVISION:
                    provision(self)
                case JobKind.RESTORE:
                    restore(self)
                case JobKind.RELEASE:
                    release(self)
                case never:
                    assert_never(never)
        except ClaimLost as error:
            self._end_lost(error)
        except Unconfirmed as error:  # not even a start: the next attempt begins with an inspection
            self.log.error("outcome_not_recorded", error=repr(error))
            return
        except Exception as error:  # noqa: BLE001 - the one place where every error ends, and becomes a transition
            if db.passing(error):
                self.log.error("outcome_not_recorded", error=repr(error))  # the lease passes, and a sweep takes over
                return
            self._end_failed(error)
        if not self.probed:
            self.transact(lambda session: breakers.give_back(session, self.claim.backend))

    def _end_failed(self, error: Exception) -> None:
        """The one table from what went wrong to what becomes of the job."""
        # Tenants read last_error, and the message of an unexpected error may hold a secret.
        expected = isinstance(error, DeprovisionerError | AttemptsSpent)
        text = str(error) if expected else f"unexpected {type(error).__name__}: the worker's log has it"
        try:
            match error:
                case Unavailable():
                    self._open_breaker(text)
                    if self.started:
                        self.retry(text, free=isinstance(error, OutOfService))
                    else:
                        self.record(jobs.defer, error=text)
                        emit(Event.DEFERRED, self.log, error=text)
                case Busy() | Early():
                    # Two jobs that wait for each other must not come back at the same moment.
                    jitter = BUSY_DELAY_SECONDS * random.uniform(0.5, 1.5)  # noqa: S311 - jitter, not a secret
                    delay = error.seconds if isinstance(error, Early) else jitter
                    self.record(jobs.defer, error=text, delay=delay)
                    emit(Event.DEFERRED, self.log, error=text)
                case Held():
                    self.record(jobs.defer, error=text, hold=error.hold_id)
                    emit(Event.DEFERRED, self.log, error=text, hold_id=error.hold_id)
                case BrakeHit():
                    self._engage_brake(error)
                case Unwanted() | Refused() | AttemptsSpent():
                    why = StuckReason.REFUSED if isinstance(error, Refused | Unwanted) else _SPENT
                    self._give_up(why, text, getattr(error, "did", None))
                case _ if self.started and self.destroys and not self.backend.observable:
                    self.stick(StuckReason.OUTCOME_UNKNOWN, text)
                case _:
                    self.log.warning("failed", error=text, exc_info=not isinstance(error, BackendError))
                    self.retry(text)
        except ClaimLost as lost:
            self._end_lost(lost)
        except Exception as worse:
            if not (isinstance(worse, Unconfirmed | Rewound) or db.passing(worse)):
                raise  # after a rewind the job stays as it is, for the recovery
            self.log.error("outcome_not_recorded", error=repr(worse))

    def _end_lost(self, error: ClaimLost) -> None:
        """Another claim has the job by now, and decides its outcome."""
        self.log.warning("claim_lost", error=str(error))
        undo_late(self)

    def retry(self, error: str, *, free: bool = False) -> None:
        """Try the job again later; without attempts left, give it up. `free`: this attempt does not count."""
        if not self.started and (over := self.transact(lambda session: holds.over(session, self.claim.id))):
            # The hold would have refused the start anyway, so this failure costs no attempt.
            self.record(jobs.defer, error=f"{over[0].name} is in force; {error}", hold=over[0].id)
            return
        if self.claim.attempts >= self.claim.max_attempts and not free:
            acted = self.destroys and (self.started or self.in_doubt)
            self._give_up(StuckReason.OUTCOME_UNKNOWN if acted and not self.backend.observable else _SPENT, error)
        else:
            self.record(jobs.retry, error=error, free=free)
            emit(Event.RETRIED, self.log, error=error)

    @property
    def in_doubt(self) -> bool:
        """Whether an earlier attempt may have destroyed, and no two operators have forced a new one since."""
        started, forced = self.claim.started_fence, self.claim.forced_fence
        return self.claim.destroying and started is not None and (forced is None or started > forced)

    @property
    def destroys(self) -> bool:
        """Whether this job destroys now; what the other steps do can be repeated, and be taken back."""
        return self.claim.kind is JobKind.DEPROVISION and self.claim.step not in (Step.QUARANTINE, Step.SNAPSHOT)

    def still(self) -> None:
        """Raises ClaimLost where the claim is lost, as by a restore; waits where the control database was restarted."""
        ask = partial(self.transact, lambda session: jobs.still(session, self.claim))
        retrying(retry_if_exception_type(Busy))(ask)

    def keep(self, mark: StartMark) -> None:
        """Have the backend remember this start before it destroys. Raises ClaimLost where it was told to keep still."""
        if self.memories is not None and mark.installation is not None:
            self.memories.before_destroy(self.claim.backend, mark)

    def kept(self, mark: StartMark | None) -> None:
        """After the destruction: what `keep` wrote is durable, with all that the teardown did."""
        if self.memories is not None and mark is not None and mark.installation is not None:
            self.memories.destroyed(self.claim.backend, mark)

    def _give_up(self, why: StuckReason, error: str, did: Json | None = None) -> None:
        """Undo a provision by the same path as a DELETE; leave any other job stuck, with what was done (`did`)."""
        if self.claim.kind is JobKind.RESTORE:
            try:
                worse = shut_again(self)
            except Unavailable as away:
                self._postpone(f"{error}; and it cannot be put back into quarantine: {away}", away)
                return
            error = f"{error}; {worse}" if worse else error
        if self.claim.kind is JobKind.PROVISION:
            try:
                self.record(jobs.rollback, error=error)
            except ClaimLost:
                if not self.claim.adopted:
                    raise
            else:
                emit(Event.ROLLED_BACK, self.log, error=error)
                return
        if self.started and self.claim.step is Step.SNAPSHOT:
            why = StuckReason.SNAPSHOT_FAILED
        self.stick(why, error, did=did)

    def _postpone(self, error: str, away: Unavailable) -> None:
        """Give up later: what was released must not stay open."""
        self._open_breaker(str(away))
        if self.started:
            self.retry(error, free=True)
        else:
            self.record(jobs.defer, error=error)
            emit(Event.DEFERRED, self.log, error=error)

    def stick(self, why: StuckReason, error: str, seen: Json | None = None, did: Json | None = None) -> None:
        """Leave the job to an operator."""
        self.record(jobs.stick, why=why, error=error, seen=seen, did=did)
        emit(Event.STUCK, self.log, stuck_reason=why, error=error)

    def _engage_brake(self, hit: BrakeHit) -> None:
        """The brake refuses starts only for its window; its hold lasts until an operator releases it."""
        engaged = self.transact(lambda session: holds.engage_brake(session, hit, actor=self.worker))
        if engaged is None:  # an operator released the hold at this very moment
            self.record(jobs.defer, error="a brake was hit")
            return
        hold, new = engaged
        if new:
            self.log.error("brake_hit", hold_id=hold.id, scope=hit.scope, subject=hit.subject, reason=str(hit))
        self.record(jobs.defer, error=f"{hold.name} is in force: a brake was hit", hold=hold.id)

    def close_breaker(self) -> None:
        """The backend has done this job's work: if the job is its probe, the other jobs may go on."""
        if not self.probed:
            self.transact(lambda session: breakers.close(session, self.claim.backend))
            self.probed = True

    def _open_breaker(self, reason: str) -> None:
        probing = not self.probed
        self.transact(lambda session: breakers.trip(session, self.claim.backend, reason=reason, probing=probing))
        self.probed = True

    def record(self, transition: Callable[..., Any], *, within: _Within = db.statement, **words: Any) -> Any:
        """Make one transition of this claim. Raises what the transition raises, ClaimLost above all."""
        return self.transact(lambda session: transition(session, self.claim, worker=self.worker, **words), within)

    def transact(self, act: Callable[[Connection], Any], within: _Within = db.statement) -> Any:
        """Run `act` on a session of its own; repeat it while the control database is unreachable, for a minute."""
        for attempt in retrying(retry_if_exception(db.passing), before_sleep=self._control_database_lost):
            with attempt, within() as session:
                return act(session)
        raise AssertionError("tenacity returns or raises")  # pragma: no cover

    def _control_database_lost(self, state: RetryCallState) -> None:
        self.log.warning("control_database_lost", error=repr(state.outcome.exception()) if state.outcome else None)
