"""Claims as many due jobs as the free slots can run, by backend.

Claims come in rounds, and one thread at a time does a round. A round takes the inspections that operators wait for, and
then claims until the slots or the due jobs run out.
"""

import math
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import product

from sqlalchemy import Connection

from outbox import db, jobs, observations
from outbox.batching import Gate
from outbox.logs import log
from outbox.observations import Inspection
from outbox.rows import Claim
from worker.state import PoolState

# So that no lane waits for ever: of so many claims that found jobs, one begins with another lane than the first.
OTHER_LANE_EVERY = 8


class Claimer:
    """`concurrency` says how many jobs of each backend run at once; `run` and `inspect` put work on a thread."""

    def __init__(
        self,
        state: PoolState,
        concurrency: Mapping[str, int],
        *,
        worker: str,
        slots: int,
        lease_seconds: float,
        gate: Gate,
        run: Callable[[Claim], None],
        inspect: Callable[[Inspection], None],
    ) -> None:
        self._state = state
        self._concurrency = dict(concurrency)
        self._worker = worker
        self._slots = slots
        self._lease_seconds = lease_seconds
        self._gate = gate
        self._run = run
        self._inspect = inspect
        # Only the thread whose round is under way touches these.
        # By backend and lane: the last job that was claimed, if the claim came back full.
        self._cursors: dict[tuple[str, int], Claim] = {}
        # The backends' lanes in which a claim has found nothing, though it came back full.
        self._drained: set[tuple[str, int]] = set()
        self._first = 0  # the lane that the last claim began with
        self._found = 0  # how many claims have found jobs
        self._unconfirmed_until = -math.inf  # a claim whose answer was lost may have happened, and lives until then

    def fill(self, *, may_have_more: bool) -> None:
        """Fill the free slots, and return while the work runs. `may_have_more`: there may be jobs not seen so far.

        While another thread claims, that thread does one more round, and this call returns at once. Raises Unconfirmed
        while no standby confirms commits.
        """
        self._state.want_round(may_have_more=may_have_more)
        while self._state.begin_round():
            full = False
            try:
                db.must_confirm()  # each claim costs an attempt, and its job could not even start
                self._take_inspections()
                full = self._claim_what_fits()
            finally:
                self._state.end_round(full=full)

    def _take_inspections(self) -> None:
        if self._state.stopping or not self._state.inspections_due():
            return
        slots = self._state.free_slots()
        capacity = self.capacity(slots)
        if not capacity:
            return
        self._state.begin_inspections()
        with db.statement() as session:
            looks = observations.take(session, capacity, slots=slots)
        for look in looks:
            self._inspect(look)
        # There may be more, or some of a backend without capacity: for the next slot that is free.
        more = bool(looks) or len(capacity) < len(self._concurrency)
        self._state.end_inspections(found=bool(looks), more=more)

    def _claim_what_fits(self) -> bool:
        """Claim until the slots or the due jobs run out. True if the slots did, and there may be more jobs."""
        while self._state.may_have_more and not self._state.stopping:
            with self._gate.turn():
                slots = self._state.free_slots()
                capacity = self.capacity(slots)
                if not capacity:
                    return True  # the first job to end begins a new round
                self._state.set_may_have_more(False)  # a wake-up from here on sets it again
                crowd = self._crowd_capacity(capacity)
                claims, read_back = self._claim(capacity, crowd, slots)
            taken = Counter(claim.backend for claim in claims)
            crowded = Counter(claim.backend for claim in claims if claim.lane >= jobs.CROWDED)
            crowd_full = {name for name, most in crowd.items() if crowded[name] >= most}
            ran_out: set[tuple[str, int]] = set()
            if not read_back and len(claims) < slots:
                short = {name for name, most in capacity.items() if taken[name] < most}
                ran_out = {
                    (name, lane)
                    for name, lane in product(short, range(jobs.LANES))
                    if lane < jobs.CROWDED or name not in crowd_full
                }
            # A claim that ran out behind a cursor has not seen the jobs before it, and the wake-up may be for one.
            unseen = not ran_out.isdisjoint(self._cursors.keys() | self._drained)
            if not read_back:
                self._move_cursors(claims, ran_out, crowd)
            for claim in claims:
                self._run(claim)
            # A backend may have more jobs if the claim filled its capacity, if it had none, or if it was probed.
            more = (
                read_back
                or len(claims) == slots
                or len(capacity) < len(self._concurrency)
                or any(taken[name] == most for name, most in capacity.items())
                or any(claim.probing for claim in claims)
                or unseen
            )
            # A crowd may have more jobs, for the slots that its running ones leave.
            if more or crowd_full:
                self._state.set_may_have_more(True)
            if not more or (not claims and not unseen):
                break
        return False

    def _claim(self, capacity: Mapping[str, int], crowd: Mapping[str, int], slots: int) -> tuple[list[Claim], bool]:
        """The claims, and whether they are read back: made before, and their answer lost."""
        if self._state.take_cursors_reset():
            self._cursors, self._drained = {}, set()
        try:
            with db.statement() as session:
                if claims := self._read_back(session, slots):
                    return claims, True
                self._first = first_lane(self._found)
                claims = jobs.claim(
                    session,
                    capacity,
                    slots=slots,
                    worker=self._worker,
                    cursors=self._cursors,
                    drained=self._drained,
                    crowd=crowd,
                    first=self._first,
                )
                self._found += bool(claims)
                return claims, False
        except BaseException:
            self._state.set_may_have_more(True)
            # The claim may have happened and only its answer be lost, or may yet happen.
            self._unconfirmed_until = time.monotonic() + self._lease_seconds
            raise

    def _read_back(self, session: Connection, slots: int) -> list[Claim]:
        """The claims that this worker made and does not know of. Once their leases have passed, a sweep resets them."""
        if time.monotonic() > self._unconfirmed_until:
            return []
        claims = jobs.claimed_before(session, self._state.held_claims(), slots=slots, worker=self._worker)
        for claim in claims:
            log.warning("claim_read_back", job_id=claim.id, fence=claim.fence, actor=self._worker)
        return claims

    def _move_cursors(self, claims: Sequence[Claim], ran_out: set[tuple[str, int]], crowd: Mapping[str, int]) -> None:
        """While claims of a backend's lane do not run out, each begins behind the one before; then again at the front.

        The front of the index is full of dead entries when a long transaction elsewhere keeps vacuum away. A job that
        came to stand before the cursor is found by the next claim that runs out, or by the first one after a sweep. A
        lane in which a claim found nothing has no such place, and as many dead entries: only its newest part is read.
        """
        cursors = self._cursors | {(claim.backend, claim.lane): claim for claim in claims}
        self._cursors = {place: claim for place, claim in cursors.items() if place not in ran_out}
        lanes = {name: Counter(claim.lane for claim in claims if claim.backend == name) for name in crowd}
        passed = {(name, lane) for name, found in lanes.items() for lane in passed_by(found, self._first, crowd[name])}
        self._drained = (self._drained | passed) - self._cursors.keys() - ran_out

    def capacity(self, slots: int) -> dict[str, int]:
        """By backend: how many more of its jobs `slots` free slots can run; in a new order each time."""
        if slots <= 0:
            return {}
        taken = self._state.taken_slots()
        names = random.sample(list(self._concurrency), len(self._concurrency))
        # However many slots one backend holds by not answering, each other backend finds one.
        most = max(1, self._slots - (len(names) - 1))
        capacity = {name: min(slots, most - taken[name], self._concurrency[name] - taken[name]) for name in names}
        return {name: fits for name, fits in capacity.items() if fits > 0}

    def _crowd_capacity(self, capacity: Mapping[str, int]) -> dict[str, int]:
        """By backend: how many more jobs of crowded lanes it can run; these get at most half of its concurrency."""
        taken = self._state.crowded_slots()
        most = {name: max(1, self._concurrency[name] // 2) for name in capacity}
        return {name: max(0, min(fits, most[name] - taken[name])) for name, fits in capacity.items()}


def passed_by(found: Mapping[int, int], first: int, crowd: int) -> set[int]:
    """The lanes in which a claim found nothing, and went on: it began with `first`, and `found` so many jobs in each.

    Of the crowded lanes, which come together, it took at most `crowd` jobs, and none of those behind that.
    """
    lanes = jobs.lanes_from(first)
    crowded = [lane for lane in lanes if lane >= jobs.CROWDED]
    others = [lane for lane in lanes if lane < jobs.CROWDED]
    empty: set[int] = set()
    for part, after in ((crowded, others), (others, crowded)):
        first_part = (first >= jobs.CROWDED) == (part is crowded)
        went_on = first_part and any(found.get(lane) for lane in after)
        if went_on and part is crowded:
            went_on = sum(found.get(lane, 0) for lane in part) < crowd
        last = len(part) if went_on else max((n for n, lane in enumerate(part) if found.get(lane)), default=0)
        empty |= {lane for lane in part[:last] if not found.get(lane)}
    return empty


def first_lane(found: int) -> int:
    """The lane that a claim begins with, after so many that found jobs: lane 0, or now and then each other in turn."""
    turn, place = divmod(found, OTHER_LANE_EVERY)
    return 1 + turn % (jobs.LANES - 1) if place == OTHER_LANE_EVERY - 1 else 0
