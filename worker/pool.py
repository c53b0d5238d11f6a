"""The hands of one worker process: they claim as many jobs as are free, keep the leases alive, and sweep.

A doorbell only makes them look. Every job that ends makes them look again, and a sweep looks every few
seconds whatever the broker does.
"""

import math
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import Connection

from outbox import audit, db, doorbell, jobs, observations, operations
from outbox.events import log
from outbox.observations import Look
from outbox.rows import Claim
from worker import observer
from worker.backends import Backend
from worker.run import Batches, Run

T = TypeVar("T")
# An operation whose step another worker is at is due: this keeps the wait for it from being a spin.
SHORTEST_PAUSE_SECONDS = 0.1


# Whoever waits at the bell and is gone, its connection not, is rung for no longer than this.
LISTEN_SECONDS = 5


@dataclass(frozen=True)
class ServedBackend:
    """A backend this worker serves, and how many of its jobs it runs at once."""

    backend: Backend
    concurrency: int


# Where a backend has no room, every job that ends would ask for looks anew: a round trip for nothing.
LOOK_AGAIN_SECONDS = 0.5


# Others sweep too, and between two steps of one backlog there is other work.
MOST_A_SWEEP = 10_000


class Pool:
    """At most `slots` jobs at once; `lease_seconds` and `sweep_seconds` set the two rhythms."""

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
        self._batches = Batches(worker=worker)
        self._slots = slots
        self._lease_seconds = lease_seconds
        self._beat_seconds = lease_seconds / 3  # one heartbeat may be lost, one late
        self._sweep_seconds = sweep_seconds
        self._pool = ThreadPoolExecutor(slots, thread_name_prefix="hand")
        self._running: dict[tuple[int, int], Claim] = {}  # by job and fence: a lost claim may come again
        self._looking: list[Look] = []
        self._passed: dict[str, Claim] = {}  # by backend, the last claim of a row of claims that were all filled
        self._from_front = False
        self._claiming = threading.Lock()
        self._asked = threading.Event()
        self._more = False
        self._hungry = threading.Event()  # a hand is free, and only a bell or a sweep tells of work for it
        self._deaf = False
        self._looks_wanted = False
        self._doubt_until = self._next_look = -math.inf
        self._stopping = threading.Event()
        self._idle = threading.Condition()  # also guards _running and _looking

    def start(self) -> None:
        """Begin to keep leases, to sweep and to listen."""
        tasks = {"heartbeat": self._keep_leases, "sweep": self._keep_sweeping, "operations": self._keep_advancing}
        if doorbell.on_redis():
            tasks["bell"] = self._keep_listening
        for name, task in tasks.items():
            threading.Thread(target=task, name=name, daemon=True).start()

    def stop(self) -> None:
        """Claim nothing more; what runs goes on."""
        self._stopping.set()

    def join(self, timeout: float) -> bool:
        """Wait at most `timeout` seconds for what runs to end; whether it did."""
        with self._idle:
            return self._idle.wait_for(lambda: not self._running and not self._looking, timeout)

    def drain(self) -> None:
        """There may be work: claim what the free hands can hold, and return while they work."""
        self._fill(rung=True)

    def observe(self) -> None:
        """Operators may wait for looks at stuck jobs: the next free hands take them, before any claim."""
        self._looks_wanted, self._next_look = True, -math.inf
        self._fill(rung=False)

    def sweep(self) -> None:
        """Put back what dead workers held, enqueue what has expired, look for work and at stuck jobs.

        Once an hour, a checkpoint of the audit.
        """
        expired = self._step(jobs.expire, actor=self._worker)
        lost = self._step(jobs.sweep, actor=self._worker)
        woken = self._step(jobs.wake)
        if expired or lost or woken:
            log.warning("swept", actor=self._worker, lost=lost, expired=expired, woken=woken)
        self._looks_wanted, self._next_look = True, -math.inf
        self._from_front = True  # for whoever claims next: one that is under way has its place already
        self.drain()
        with db.transaction() as session:
            audit.checkpoint(session, actor=self._worker)

    def _step(self, step: Callable[..., int], **words: Any) -> int:
        """One step of a sweep, in batches until there is no more; where it fails, the others are done all the same."""
        moved, more = 0, 1
        while more and moved < MOST_A_SWEEP:
            more = self._guarded(lambda: self._ask(step, **words)) or 0
            moved += more
        return moved

    def _ask(self, step: Callable[..., int], **words: Any) -> int:
        with db.statement() as session:
            return step(session, **words)

    def _fill(self, *, rung: bool) -> None:
        """Claim, or have whoever is claiming do it once more: nobody waits for another's claim."""
        self._more = self._more or rung
        self._asked.set()
        while self._asked.is_set() and self._claiming.acquire(blocking=False):
            full = False
            try:
                self._asked.clear()
                self._take_looks()
                full = self._claim_what_fits()
            finally:
                if full:
                    self._hungry.clear()
                else:
                    self._hungry.set()
                self._claiming.release()

    def _take_looks(self) -> None:
        if not self._looks_wanted or self._stopping.is_set() or time.monotonic() < self._next_look:
            return
        slots = self._free()
        rooms = self._rooms(slots)
        if not rooms:
            return
        self._looks_wanted = False
        with db.statement() as session:
            taken = observations.take(session, rooms, slots=slots)
        for look in taken:
            with self._idle:
                self._looking.append(look)
            self._pool.submit(self._look, look)
        # There may be more, or some of a backend that has no room: the next hand that is free comes by here.
        if taken or len(rooms) < len(self._served):
            self._looks_wanted = True
        if not taken:
            self._next_look = time.monotonic() + LOOK_AGAIN_SECONDS

    def _claim_what_fits(self) -> bool:
        """Whether all hands are full, and there may be more."""
        while self._more and not self._stopping.is_set():
            with self._batches.gate.turn():
                slots = self._free()
                rooms = self._rooms(slots)
                if not rooms:
                    return True  # the first hand to end comes by here
                self._more = False  # a bell from here on makes it true again
                claims, found = self._claim(rooms, slots)
            taken = Counter(claim.backend for claim in claims)
            short = {name for name in rooms if not found and len(claims) < slots and taken[name] < rooms[name]}
            # The bell may have rung for what stands before the place where this claim began.
            unseen = not short.isdisjoint(self._passed)
            if not found:
                self._pass(claims, short=short)
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
                or unseen
            ):
                self._more = True
            if not claims and not unseen:
                break
        return False

    def _claim(self, rooms: Mapping[str, int], slots: int) -> tuple[list[Claim], bool]:
        """What fits, and whether it had been claimed before, and its answer lost."""
        if self._from_front:
            self._from_front, self._passed = False, {}
        try:
            with db.statement() as session:
                if found := self._read_back(session, slots):
                    return found, True
                return jobs.claim(session, rooms, slots=slots, worker=self._worker, passed=self._passed), False
        except BaseException:
            self._more = True
            # It may have been done and its answer lost, or may yet be.
            self._doubt_until = time.monotonic() + self._lease_seconds
            raise

    def _pass(self, claims: Sequence[Claim], *, short: Collection[str]) -> None:
        """While a backend has more than its room, each claim begins behind the one before, not at the front.

        The front of the index is full of dead entries when a long transaction elsewhere keeps vacuum away. What was put
        back there meanwhile is seen at once when a claim comes short, or by the first claim after a sweep.
        """
        passed = self._passed | {claim.backend: claim for claim in claims}
        self._passed = {name: claim for name, claim in passed.items() if name not in short}

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
        with self._idle:
            held = Counter(claim.backend for claim in self._running.values())
            held.update(look.backend for look in self._looking)
        names = random.sample(list(self._served), len(self._served))
        # However many hands one backend holds by not answering, each other backend finds one.
        most = max(1, self._slots - (len(names) - 1))
        rooms = {name: min(slots, most - held[name], self._served[name].concurrency - held[name]) for name in names}
        return {name: room for name, room in rooms.items() if room > 0}

    def _free(self) -> int:
        with self._idle:
            return self._slots - len(self._running) - len(self._looking)

    def _held(self) -> list[Claim]:
        with self._idle:
            return list(self._running.values())

    def _work(self, claim: Claim) -> None:
        try:
            Run(claim, self._served[claim.backend].backend, worker=self._worker, batches=self._batches)()
        except Exception:  # noqa: BLE001 - a bug, or a database gone for long: the lease passes, the sweep takes over
            log.exception("run_failed", job_id=claim.id, fence=claim.fence, actor=self._worker)
        finally:
            with self._idle:
                del self._running[claim.id, claim.fence]
                self._idle.notify_all()
        # A probe that went well opened its backend to all hands.
        self._guarded(lambda: self._fill(rung=claim.probing))

    def _look(self, look: Look) -> None:
        try:
            observer.look(look, self._served[look.backend].backend, worker=self._worker)
        except Exception:  # noqa: BLE001 - as in _work: the turn passes, and another one looks
            log.exception("look_failed", job_id=look.job_id, actor=self._worker)
        finally:
            with self._idle:
                self._looking.remove(look)
                self._idle.notify_all()
            self._next_look = -math.inf  # there is room again
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

    def _keep_listening(self) -> None:
        while not self._stopping.is_set():
            if self._hungry.wait(LISTEN_SECONDS):
                self._guarded(self._listen)

    def _listen(self) -> None:
        """Answer the bell once; what this worker has no room for, it rings for anew, and others hear."""
        rooms = self._rooms(self._free())
        if not rooms:  # looks have taken all hands
            with self._idle:
                self._idle.wait(LISTEN_SECONDS)
            return
        try:
            rung = doorbell.wait(rooms, LISTEN_SECONDS)
        except Exception as error:  # noqa: BLE001 - whatever the broker or its URL has, the sweep looks, and this goes on
            if not self._deaf:
                log.warning("doorbell_not_heard", actor=self._worker, error=doorbell.told(error))
            self._deaf = True
            self._stopping.wait(doorbell.TIMEOUT_SECONDS)
            return
        self._deaf = False
        if rung:
            self._answer()

    def _answer(self) -> None:
        try:
            self.drain()
        except Exception:
            doorbell.ring_now()  # others may reach the database
            self._stopping.wait(LISTEN_SECONDS)
            raise
        with self._claiming:  # a claim that was under way has ended too
            rooms = self._rooms(self._free())
        if self._stopping.is_set() or not rooms:
            doorbell.ring_now()
        elif full := self._served.keys() - rooms.keys():
            doorbell.ring_now(full)

    def _keep_advancing(self) -> None:
        while not self._stopping.is_set():
            wait = self._guarded(self.advance)
            self._stopping.wait(self._sweep_seconds if wait is None else max(wait, SHORTEST_PAUSE_SECONDS))

    def advance(self) -> float | None:
        """A step of an operation, if one is due; the seconds until the next step, None while none runs."""
        with db.transaction() as session:
            moved, wait = operations.advance(session, worker=self._worker)
        if moved:
            doorbell.bell.ring()
            self.drain()
        return wait

    def _guarded(self, act: Callable[[], T]) -> T | None:
        """A failed look is not the end of looking."""
        try:
            return act()
        except Exception as error:  # noqa: BLE001 - whatever it was, the next sweep tries again
            log.error("look_failed", actor=self._worker, error=repr(error), exc_info=not db.unreachable(error))
            return None
