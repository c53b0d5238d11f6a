"""The threads of one worker process: they run the jobs that it claims, extend their leases, and sweep.

A wake-up only makes the pool claim. Every job that ends does so too, and a sweep every few seconds, whatever the broker
does. `claiming` claims, `listening` waits at the doorbell, `state` is what the threads share.
"""

import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from outbox import audit, db, doorbell, jobs, operations
from outbox.errors import Unconfirmed
from outbox.events import Event, emit
from outbox.logs import log
from outbox.observations import Inspection
from outbox.rows import Claim
from worker import adoptions, observer
from worker.backends import Backend, fleet
from worker.claiming import Claimer
from worker.listening import Listener
from worker.memory import Memories
from worker.run import Batches, Run
from worker.state import PoolState

# While another worker runs the step, the operation still looks due; this floor prevents busy-waiting.
SHORTEST_PAUSE_SECONDS = 0.1
# Other workers sweep too, and between two batches of one backlog there is other work.
MOST_A_SWEEP = 10_000
# A loop that waits for a database that is away does not delay the end of the process.
LOOPS_END_SECONDS = 2


@dataclass(frozen=True)
class ServedBackend:
    """A backend that this worker serves, and how many of its jobs run at once."""

    backend: Backend
    concurrency: int


class Pool:
    """At most `slots` jobs and inspections at once; `lease_seconds` and `sweep_seconds` set the two rhythms."""

    def __init__(
        self,
        served: Mapping[str, ServedBackend],
        *,
        worker: str,
        slots: int,
        lease_seconds: float,
        sweep_seconds: float,
    ) -> None:
        self._served = dict(served)
        self._worker = worker
        self._due: jobs.Due | None = None
        self._heartbeat_seconds = lease_seconds / 3  # one heartbeat may be lost, one late
        self._sweep_seconds = sweep_seconds
        self._threads = ThreadPoolExecutor(slots, thread_name_prefix="slot")
        self._batches = Batches(worker=worker)
        self._memories = Memories(self.backends, worker=worker, go_on=self._go_on)
        self._state = PoolState(slots)
        self._ended = threading.Event()  # no job runs any more, nor will
        self._loops: list[threading.Thread] = []
        self._claimer = Claimer(
            self._state,
            {name: one.concurrency for name, one in served.items()},
            worker=worker,
            slots=slots,
            lease_seconds=lease_seconds,
            gate=self._batches.gate,
            run=self._run,
            inspect=self._inspect,
        )
        self._listener = Listener(self._state, self._claimer, backends=frozenset(served), worker=worker)

    @property
    def backends(self) -> dict[str, Backend]:
        """The backends that it serves, by name."""
        return {name: one.backend for name, one in self._served.items()}

    def start(self) -> None:
        """Begin to extend leases, to sweep, to advance operations, to inspect for them, and to wait at the doorbell."""
        self._loops.append(self._memories.keep_comparing(self._sweep_seconds, self._is_over))
        loops = {"heartbeat": self._keep_leases, "sweep": self._keep_sweeping, "operations": self._keep_advancing}
        loops["adoptions"] = self._keep_inspecting
        for name, loop in loops.items():
            self._loops.append(threading.Thread(target=loop, name=name, daemon=True))
            self._loops[-1].start()
        if doorbell.on_redis():  # it waits for seconds, so that nothing waits for it
            threading.Thread(target=self._keep_listening, name="doorbell", daemon=True).start()

    def stop(self) -> None:
        """Claim nothing more; jobs that run go on. Safe in a signal handler: it takes no lock."""
        self._state.stop()

    def join(self, timeout: float) -> bool:
        """Wait at most `timeout` seconds for all jobs and inspections to end; whether they have."""
        if not self._state.join(timeout):
            return False
        if self._state.stopping:
            self._end_loops()
        return True

    def _end_loops(self) -> None:
        """Have the loops end, each after what it does at the moment, and wait a little for that."""
        self._ended.set()
        self._memories.end()
        until = time.monotonic() + LOOPS_END_SECONDS
        for loop in self._loops:
            loop.join(max(0, until - time.monotonic()))

    # -- what wakes the pool -----------------------------------------------------------------------------------

    def drain(self) -> None:
        """There may be work: claim as many jobs as slots are free, and return while they run."""
        self._claimer.fill(may_have_more=True)

    def observe(self) -> None:
        """Operators may wait for inspections of stuck jobs: the next free slots take them, before any claim."""
        self._state.want_inspections()
        self._claimer.fill(may_have_more=False)

    def sweep(self) -> None:
        """Reset the jobs that dead workers held, enqueue what has expired, claim, and inspect stuck jobs.

        Once an hour it adds a checkpoint to the audit. Raises Unconfirmed while no standby confirms commits.
        """
        db.must_confirm()
        expired = self._expire()
        lost = self._sweep_step(jobs.sweep, actor=self._worker)
        woken = self._sweep_step(jobs.wake)
        if expired or lost or woken:
            emit(Event.SWEPT, log, actor=self._worker, lost=lost, expired=expired, woken=woken)
        self._state.want_inspections()
        self._claim_anew()
        with db.transaction() as session:
            audit.checkpoint(session, actor=self._worker)

    def _sweep_step(self, step: Callable[..., int], **words: Any) -> int:
        """One step of a sweep, in batches until no row is left. If it fails, the other steps are done all the same."""
        moved, more = 0, 1
        while more and moved < MOST_A_SWEEP:
            more = 0
            with self._failure_logged("sweep_failed", step=step.__name__):
                with db.statement() as session:
                    batch = step(session, **words)
                more = batch
            moved += more
        return moved

    def _expire(self) -> int:
        """Enqueue what has expired; the next sweep goes on behind what waits for a hold, where that is very much."""
        moved = self._sweep_step(jobs.expire, actor=self._worker, after=self._due)
        if moved < MOST_A_SWEEP:
            with self._failure_logged("sweep_failed", step="last_due"), db.statement() as session:
                self._due = jobs.last_due(session, after=self._due)
        return moved

    def advance(self) -> float | None:
        """Run a step of an operation, if one is due; the seconds until the next step, None while none runs.

        Raises Unconfirmed while no standby confirms commits.
        """
        db.must_confirm()
        with db.transaction() as session:
            moved, wait = operations.advance(session, worker=self._worker)
        if moved:
            doorbell.bell.ring()
            self._claimer.fill(may_have_more=True)
        return wait

    def _is_over(self) -> bool:
        """It claims nothing more, and no job runs."""
        return self._state.stopping and not self._state.held_claims()

    def _go_on(self) -> None:
        """Claims found nothing for a while, since the control database was not compared."""
        with self._failure_logged("claim_failed"):
            self._claim_anew()

    def _claim_anew(self) -> None:
        """Claim from the front of each queue."""
        self._state.reset_cursors()
        self._claimer.fill(may_have_more=True)

    # -- what a slot runs --------------------------------------------------------------------------------------

    def _run(self, claim: Claim) -> None:
        self._state.add_job(claim)
        self._threads.submit(self._run_job, claim)

    def _run_job(self, claim: Claim) -> None:
        try:
            with fleet.hearing(partial(self._state.note_progress, claim)):
                Run(
                    claim,
                    self._served[claim.backend].backend,
                    worker=self._worker,
                    batches=self._batches,
                    memories=self._memories,
                )()
        except Exception:  # noqa: BLE001 - a bug, or no database for long: the lease passes, and a sweep takes over
            log.exception("run_failed", job_id=claim.id, fence=claim.fence, actor=self._worker)
        finally:
            self._state.remove_job(claim)
        # A probe that succeeded has opened its backend to all slots.
        self._refill(may_have_more=claim.probing)

    def _inspect(self, look: Inspection) -> None:
        self._state.add_inspection(look)
        self._threads.submit(self._run_inspection, look)

    def _run_inspection(self, look: Inspection) -> None:
        try:
            observer.observe(look, self._served[look.backend].backend, worker=self._worker)
        except Exception:  # noqa: BLE001 - as in _run_job: after a while another worker inspects
            log.exception("observation_not_recorded", job_id=look.job_id, actor=self._worker)
        finally:
            self._state.remove_inspection(look)
        self._refill(may_have_more=False)

    def _refill(self, *, may_have_more: bool) -> None:
        with self._failure_logged("claim_failed"):
            self._claimer.fill(may_have_more=may_have_more)

    # -- the loops ---------------------------------------------------------------------------------------------

    def _keep_leases(self) -> None:
        while not self._ended.wait(self._heartbeat_seconds):  # also while the pool stops: its last jobs still run
            with self._failure_logged("heartbeat_failed"):
                self._heartbeat()

    def _heartbeat(self) -> None:
        claims = self._state.held_claims()
        if not claims:
            return
        with db.statement() as session:
            kept = jobs.heartbeat(session, claims, self._state.progress_of(claims))
        for claim in claims:
            if claim.id not in kept and claim in self._state.held_claims():
                log.warning("lease_lost", job_id=claim.id, fence=claim.fence, actor=self._worker)

    def _keep_sweeping(self) -> None:
        while not self._state.stopping:
            with self._failure_logged("sweep_failed"):
                self.sweep()
            # Spread, so that many workers do not sweep at the same moment.
            self._ended.wait(self._sweep_seconds * random.uniform(0.8, 1.2))  # noqa: S311 - jitter, not a secret

    def _keep_listening(self) -> None:
        while not self._state.stopping:
            with self._failure_logged("claim_failed"):
                self._listener.listen()

    def _keep_advancing(self) -> None:
        while not self._state.stopping:
            wait = None
            with self._failure_logged("operation_step_failed"):
                wait = self.advance()
            self._ended.wait(self._sweep_seconds if wait is None else max(wait, SHORTEST_PAUSE_SECONDS))

    def _keep_inspecting(self) -> None:
        """Inspect what an adoption's preview lists."""
        while not self._state.stopping:
            taken = 0
            with self._failure_logged("adoptions_failed"):
                taken = adoptions.inspect_some(self.backends, worker=self._worker)
            if not taken:
                self._ended.wait(self._sweep_seconds)

    @contextmanager
    def _failure_logged(self, event: str, **words: Any) -> Iterator[None]:
        """Log an error as `event` and go on: whatever failed, the next sweep tries again."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - no error may end a loop
            expected = isinstance(error, Unconfirmed) or db.unreachable(error)
            log.error(event, actor=self._worker, error=repr(error), exc_info=not expected, **words)
