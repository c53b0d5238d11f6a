"""The hands of one worker process: they claim as many jobs as are free, keep the leases alive, and sweep.

A doorbell only makes them look. Every job that ends makes them look again, and a sweep looks every few
seconds whatever the broker does.
"""

import math
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from sqlalchemy import Connection

from outbox import audit, db, jobs
from outbox.events import log
from outbox.rows import Claim
from worker.backends import Backend
from worker.runner import Run


@dataclass(frozen=True)
class Served:
    """A backend this worker serves, and how many of its jobs it runs at once."""

    backend: Backend
    concurrency: int


class Hands:
    """At most `slots` jobs at once; `lease_seconds` and `sweep_seconds` set the two rhythms."""

    def __init__(
        self, served: Mapping[str, Served], *, worker: str, slots: int, lease_seconds: float, sweep_seconds: float
    ) -> None:
        self._served = dict(served)
        self._worker = worker
        self._slots = slots
        self._lease_seconds = lease_seconds
        self._beat_seconds = lease_seconds / 3  # one heartbeat may be lost, one late
        self._sweep_seconds = sweep_seconds
        self._pool = ThreadPoolExecutor(slots, thread_name_prefix="hand")
        self._running: dict[tuple[int, int], Claim] = {}  # by job and fence: a lost claim may come again
        self._claiming = threading.Lock()
        self._asked = threading.Event()
        self._more = False
        self._doubt_until = -math.inf
        self._stopping = threading.Event()
        self._idle = threading.Condition()  # also guards _running

    def start(self) -> None:
        """Begin to keep leases and to sweep."""
        for name, task in (("heartbeat", self._keep_leases), ("sweep", self._keep_sweeping)):
            threading.Thread(target=task, name=name, daemon=True).start()

    def stop(self) -> None:
        """Claim nothing more; what runs goes on."""
        self._stopping.set()

    def join(self, timeout: float) -> bool:
        """Wait at most `timeout` seconds for what runs to end; whether it did."""
        with self._idle:
            return self._idle.wait_for(lambda: not self._running, timeout)

    def drain(self) -> None:
        """There may be work: claim what the free hands can hold, and return while they work."""
        self._fill(rung=True)

    def sweep(self) -> None:
        """Put back what dead workers held, enqueue what has expired, look for work; once an hour, a checkpoint."""
        with db.statement() as session:
            expired = jobs.expire(session, actor=self._worker)
            swept = jobs.sweep(session, actor=self._worker)
        if expired or swept:
            log.warning("swept", actor=self._worker, lost=swept, expired=expired)
        self.drain()
        with db.transaction() as session:
            audit.checkpoint(session, actor=self._worker)

    def _fill(self, *, rung: bool) -> None:
        """Claim, or have whoever is claiming do it once more: nobody waits for another's claim."""
        self._more = self._more or rung
        self._asked.set()
        while self._asked.is_set() and self._claiming.acquire(blocking=False):
            try:
                self._asked.clear()
                self._claim_what_fits()
            finally:
                self._claiming.release()

    def _claim_what_fits(self) -> None:
        while self._more and not self._stopping.is_set():
            slots = self._slots - len(self._held())
            rooms = self._rooms(slots)
            if not rooms:
                return  # all hands are full: the first to end comes by here
            self._more = False  # a bell from here on makes it true again
            try:
                with db.statement() as session:
                    claims = self._read_back(session, slots)
                    found = bool(claims)
                    claims = claims or jobs.claim(session, rooms, slots=slots, worker=self._worker)
            except BaseException:
                self._more = True
                # It may have been done and its answer lost, or may yet be.
                self._doubt_until = time.monotonic() + self._lease_seconds
                raise
            taken = Counter(claim.backend for claim in claims)
            for claim in claims:
                with self._idle:
                    self._running[claim.id, claim.fence] = claim
                self._pool.submit(self._work, claim)
            # A backend that filled its room, or has none, or was probed with one job, may have more.
            if (
                found
                or len(claims) == slots
                or len(rooms) < len(self._served)
                or any(taken[name] == room for name, room in rooms.items())
                or any(claim.probing for claim in claims)
            ):
                self._more = True
            if not claims:
                return

    def _read_back(self, session: Connection, slots: int) -> list[Claim]:
        """What was claimed and never heard of. Later its lease has passed, and it is the sweep's."""
        if time.monotonic() > self._doubt_until:
            return []
        claims = jobs.claimed_before(session, self._held(), slots=slots, worker=self._worker)
        for claim in claims:
            log.warning("claim_read_back", job_id=claim.id, fence=claim.fence, actor=self._worker)
        return claims

    def _rooms(self, slots: int) -> dict[str, int]:
        """How many jobs of each backend there is room for, the backends in a new order each time."""
        if slots <= 0:
            return {}
        held = Counter(claim.backend for claim in self._held())
        names = random.sample(list(self._served), len(self._served))
        # However many hands one backend holds by not answering, each other backend finds one.
        most = max(1, self._slots - (len(names) - 1))
        rooms = {name: min(slots, most - held[name], self._served[name].concurrency - held[name]) for name in names}
        return {name: room for name, room in rooms.items() if room > 0}

    def _held(self) -> list[Claim]:
        with self._idle:
            return list(self._running.values())

    def _work(self, claim: Claim) -> None:
        try:
            Run(claim, self._served[claim.backend].backend, worker=self._worker)()
        except Exception:  # noqa: BLE001 - a bug, or a database gone for long: the lease passes, the sweep takes over
            log.exception("run_failed", job_id=claim.id, fence=claim.fence, actor=self._worker)
        finally:
            with self._idle:
                del self._running[claim.id, claim.fence]
                self._idle.notify_all()
        self._guarded(lambda: self._fill(rung=False))

    def _keep_leases(self) -> None:
        while True:
            time.sleep(self._beat_seconds)
            self._guarded(self._beat)

    def _beat(self) -> None:
        claims = self._held()
        if not claims:
            return
        with db.statement() as session:
            kept = jobs.heartbeat(session, claims)
        for claim in claims:
            if claim.id not in kept and claim in self._held():
                log.warning("lease_lost", job_id=claim.id, fence=claim.fence, actor=self._worker)

    def _keep_sweeping(self) -> None:
        while not self._stopping.is_set():
            self._guarded(self.sweep)
            # Spread, so that many workers do not look at the same moment.
            self._stopping.wait(self._sweep_seconds * random.uniform(0.8, 1.2))  # noqa: S311 - jitter, not a secret

    def _guarded(self, act: Callable[[], None]) -> None:
        """A failed look is not the end of looking."""
        try:
            act()
        except Exception as error:  # noqa: BLE001 - whatever it was, the next sweep tries again
            log.error("look_failed", actor=self._worker, error=repr(error), exc_info=not db.unreachable(error))
