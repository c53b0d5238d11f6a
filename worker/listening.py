"""Waits at the doorbell while slots are free, and passes a wake-up on that this worker cannot answer alone."""

import time

from outbox import doorbell
from outbox.logs import log
from worker.claiming import Claimer
from worker.state import PoolState

# A worker that died with its connection open can swallow a wake-up for at most this long.
LISTEN_SECONDS = 5


class Listener:
    """One thread of a pool calls it again and again."""

    def __init__(self, state: PoolState, claimer: Claimer, *, backends: frozenset[str], worker: str) -> None:
        self._state = state
        self._claimer = claimer
        self._backends = backends
        self._worker = worker
        self._doorbell_down = False  # the last wait failed, and the log says so; only the listening thread touches it

    def listen(self) -> None:
        """Wait once at the doorbell, for the backends that have capacity; on a wake-up, claim."""
        if not self._state.wait_for_capacity(LISTEN_SECONDS):
            return
        capacity = self._capacity()
        if not capacity:  # inspections have taken all slots
            self._state.wait_for_slot(LISTEN_SECONDS)
            return
        try:
            rung = doorbell.wait(capacity, LISTEN_SECONDS)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with the broker or its URL, sweeps find the work
            if not self._doorbell_down:
                log.warning("doorbell_wait_failed", actor=self._worker, error=doorbell.describe(error))
            self._doorbell_down = True
            time.sleep(doorbell.TIMEOUT_SECONDS)
            return
        self._doorbell_down = False
        if rung:
            self._answer()

    def _answer(self) -> None:
        """Claim; then ring again for the jobs that this worker has no capacity for, so that another worker hears."""
        try:
            self._claimer.fill(may_have_more=True)
        except Exception:
            doorbell.ring_now()  # another worker may reach the database
            time.sleep(LISTEN_SECONDS)
            raise
        self._state.wait_for_round()  # the thread that was claiming has filled the slots by now
        capacity = self._capacity()
        if self._state.stopping or not capacity:
            doorbell.ring_now()
        elif full := self._backends - capacity.keys():
            doorbell.ring_now(full)

    def _capacity(self) -> dict[str, int]:
        return self._claimer.capacity(self._state.free_slots())
