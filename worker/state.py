"""What the threads of one pool share, all of it under one lock."""

import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from threading import Condition, Lock

from outbox.jobs import CROWDED
from outbox.observations import Inspection
from outbox.rows import Claim, Json
from worker.backends.fleet import Progress

# Where no inspection could be taken, each job that ends would cost a round trip that asks again.
INSPECTION_PAUSE_SECONDS = 0.5


class PoolState:
    """The jobs and inspections that run, and the flags by which the pool's threads tell each other what to do.

    Every attribute but `stopping` is read and written under the lock, and so only in this class. No method but
    `wait_for_round` waits for a claim.
    """

    def __init__(self, slots: int) -> None:
        self._slots = slots
        lock = Lock()
        self._thread_ended = Condition(lock)
        self._round_ended = Condition(lock)
        self._capacity_found = Condition(lock)

        # The pool claims nothing more. `stop` sets it, for good. A plain attribute, which is polled: a signal handler
        # sets it, and a lock taken there may be held by the very thread that the signal interrupts.
        self.stopping = False

        # The jobs that have a slot, by job and fence: a job whose claim was lost may be claimed again meanwhile.
        # The claiming thread adds a job; the job's thread removes it.
        self._jobs: dict[tuple[int, int], Claim] = {}
        # What the verbs of these jobs have told last of their progress. A job's thread tells; its heartbeat reads.
        self._progress: dict[tuple[int, int], Progress] = {}
        # The inspections that have a slot. The claiming thread adds one; the inspection's thread removes it.
        self._inspections: list[Inspection] = []

        # A thread is in a round of claiming. The thread that begins the round sets it, and clears it at the end.
        self._claiming = False
        # How many rounds have ended. The claiming thread counts.
        self._rounds = 0
        # A round is wanted that has not begun. Set by every thread that asks for one; cleared as the round begins.
        self._round_wanted = False
        # There may be due jobs that no round has seen. Set by wake-ups, sweeps, a probe that ended, and by the claiming
        # thread itself after a claim that came back full or failed; cleared by the claiming thread before each claim.
        self._may_have_more = False
        # Slots are free, and the last round left no due job: only a wake-up or a sweep tells of work for them. The
        # claiming thread sets or clears it at the end of each round.
        self._has_capacity = False

        # An operator may wait for an inspection. Set by messages, sweeps, and by the claiming thread when it took some
        # and there may be more; cleared by the claiming thread before it takes them.
        self._inspections_wanted = False
        # When the next inspection may be taken (`time.monotonic()`). The claiming thread puts it off when it found
        # none; messages, sweeps and an inspection that ends reset it.
        self._next_inspection = -math.inf

        # The next claim begins at the front of each backend's queue. A sweep sets it; the claiming thread clears it.
        self._cursors_reset = False

    def stop(self) -> None:
        """Have the threads claim nothing more. Safe in a signal handler."""
        self.stopping = True

    def join(self, timeout: float) -> bool:
        """Wait at most `timeout` seconds until no slot is taken; whether that is so."""
        with self._thread_ended:
            return self._thread_ended.wait_for(lambda: not self._jobs and not self._inspections, timeout)

    # -- rounds of claiming ------------------------------------------------------------------------------------

    def want_round(self, *, may_have_more: bool) -> None:
        """Ask for a round: of claims, if there may be more jobs; of inspections in any case, where they are wanted."""
        with self._round_ended:
            self._may_have_more = self._may_have_more or may_have_more
            self._round_wanted = True

    def begin_round(self) -> bool:
        """Whether this thread is to do a round. No thread waits: one that is in a round does one more afterwards."""
        with self._round_ended:
            if self._claiming or not self._round_wanted:
                return False
            self._claiming, self._round_wanted = True, False
            return True

    def end_round(self, *, full: bool) -> None:
        """End this thread's round; `full` if all slots were taken and there may be more jobs for them."""
        with self._round_ended:
            self._claiming = False
            self._rounds += 1
            self._has_capacity = not full
            self._round_ended.notify_all()
            if self._has_capacity:
                self._capacity_found.notify_all()

    def wait_for_round(self) -> None:
        """Wait until no round is under way, or until one that began after this call has ended."""
        with self._round_ended:
            last = self._rounds + 1
            self._round_ended.wait_for(lambda: not self._claiming or self._rounds > last)

    def wait_for_capacity(self, timeout: float) -> bool:
        """Wait at most `timeout` seconds until a round has left slots free; whether one has."""
        with self._capacity_found:
            return self._capacity_found.wait_for(lambda: self._has_capacity, timeout)

    def wait_for_slot(self, timeout: float) -> None:
        """Wait at most `timeout` seconds until a job or an inspection ends."""
        with self._thread_ended:
            self._thread_ended.wait(timeout)

    @property
    def may_have_more(self) -> bool:
        """Whether there may be due jobs that no round has seen."""
        with self._round_ended:
            return self._may_have_more

    def set_may_have_more(self, value: bool) -> None:
        """For the claiming thread. A wake-up that comes after it has cleared the flag sets it again."""
        with self._round_ended:
            self._may_have_more = value

    def reset_cursors(self) -> None:
        """Have the next claim begin at the front. A claim that is under way has read its cursors already."""
        with self._round_ended:
            self._cursors_reset = True

    def take_cursors_reset(self) -> bool:
        """Whether the claim that begins now must forget its cursors; said once."""
        with self._round_ended:
            reset, self._cursors_reset = self._cursors_reset, False
            return reset

    # -- inspections -------------------------------------------------------------------------------------------

    def want_inspections(self) -> None:
        """Have the next round take inspections, before it claims."""
        with self._round_ended:
            self._inspections_wanted, self._next_inspection = True, -math.inf

    def inspections_due(self) -> bool:
        """Whether the round is to take inspections now."""
        with self._round_ended:
            return self._inspections_wanted and time.monotonic() >= self._next_inspection

    def begin_inspections(self) -> None:
        """The round takes inspections now: a message that comes from here on asks for more."""
        with self._round_ended:
            self._inspections_wanted = False

    def end_inspections(self, *, found: bool, more: bool) -> None:
        """The round has `found` inspections, or none; there may be `more`, for the next slot that is free."""
        with self._round_ended:
            self._inspections_wanted = self._inspections_wanted or more
            if not found:
                self._next_inspection = time.monotonic() + INSPECTION_PAUSE_SECONDS

    # -- slots -------------------------------------------------------------------------------------------------

    def free_slots(self) -> int:
        """How many more jobs and inspections fit."""
        with self._thread_ended:
            return self._slots - len(self._jobs) - len(self._inspections)

    def taken_slots(self) -> Counter[str]:
        """By backend: how many slots its jobs and inspections have."""
        with self._thread_ended:
            taken = Counter(claim.backend for claim in self._jobs.values())
            taken.update(look.backend for look in self._inspections)
            return taken

    def crowded_slots(self) -> Counter[str]:
        """By backend: how many slots the jobs of crowded lanes have."""
        with self._thread_ended:
            return Counter(claim.backend for claim in self._jobs.values() if claim.lane >= CROWDED)

    def held_claims(self) -> list[Claim]:
        """The claims whose jobs run."""
        with self._thread_ended:
            return list(self._jobs.values())

    def add_job(self, claim: Claim) -> None:
        """Give a claimed job its slot."""
        with self._thread_ended:
            self._jobs[claim.id, claim.fence] = claim

    def remove_job(self, claim: Claim) -> None:
        """Free the slot of a job that has ended."""
        with self._thread_ended:
            del self._jobs[claim.id, claim.fence]
            self._progress.pop((claim.id, claim.fence), None)
            self._thread_ended.notify_all()

    def note_progress(self, claim: Claim, progress: Progress) -> None:
        """How far the verb of a job has come."""
        with self._thread_ended:
            self._progress[claim.id, claim.fence] = progress

    def progress_of(self, claims: Sequence[Claim]) -> dict[int, Json]:
        """By job, how far the verbs of these claims have come, those that told."""
        with self._thread_ended:
            told = {claim.id: self._progress.get((claim.id, claim.fence)) for claim in claims}
        return {id: asdict(one) for id, one in told.items() if one is not None}

    def add_inspection(self, look: Inspection) -> None:
        """Give an inspection its slot."""
        with self._thread_ended:
            self._inspections.append(look)

    def remove_inspection(self, look: Inspection) -> None:
        """Free the slot of an inspection that has ended; the next one may be taken at once."""
        with self._thread_ended:
            self._inspections.remove(look)
            self._next_inspection = -math.inf
            self._thread_ended.notify_all()
