"""A worker compares the control database with the memories of its places, as it starts and sweeps, and writes them.

No transaction of the control database is open while a place is asked.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace
from functools import partial

from sqlalchemy.exc import SQLAlchemyError

from outbox import db, doorbell, rewinds
from outbox.batching import GroupCommit
from outbox.errors import ClaimLost, MemoryForbidden
from outbox.logs import log
from outbox.memory import Memory, Moment
from outbox.rewinds import BROKER, Here
from outbox.rows import StartMark
from worker.backends import Backend
from worker.intake import Intake

# This process is a place too: it remembers what it saw a moment ago.
ITSELF = "(this worker)"
# While the control database is away, a worker tries to compare so often; it starts no job before it has compared.
AWAY_SECONDS = 0.5
# A place that hangs delays the comparison of the others so long; its answer is judged when it comes.
ANSWER_SECONDS = 1.0


class Memories:
    """The places of one worker: its backends, the broker, and itself."""

    def __init__(self, served: Mapping[str, Backend], *, worker: str, go_on: Callable[[], None] = lambda: None) -> None:
        """`go_on` is called when places were compared, so that jobs may start there."""
        self._backends = {name: Intake(backend) for name, backend in served.items()}
        self._places = [*self._backends, BROKER]
        self._worker = worker
        self._threads = ThreadPoolExecutor(len(self._places), thread_name_prefix="memory")
        # Jobs that start together share a write.
        self._batches = {name: GroupCommit("memories", partial(self._keep_last, name)) for name in self._backends}
        # What this process has kept last at each backend. A backend that has less later went back in time.
        self._kept: dict[str, Moment] = {}
        self._seen: Memory | None = None
        self._soon = threading.Event()
        self._told_still: Here | None = None
        self._go_on = go_on
        self._incarnation = ""  # the last that was seen to be compared
        # The last question to each place; and the answers to be judged that a comparison did not wait for.
        self._asked: dict[str, Future[Memory | None]] = {}
        self._late: dict[str, Here] = {}

    def keep_comparing(self, seconds: float, over: Callable[[], bool] = lambda: False) -> threading.Thread:
        """Compare now and every so many seconds, in a thread of its own, until `over`.

        A connection that is lost or made may tell of a server's restart: so it compares at once.
        """
        db.on_reconnect(self._soon.set)
        thread = threading.Thread(target=self._keep_comparing, args=(seconds, over), name="comparisons", daemon=True)
        thread.start()
        return thread

    def end(self) -> None:
        """Have the thread see at once whether it is over."""
        self._soon.set()

    def _keep_comparing(self, seconds: float, over: Callable[[], bool]) -> None:
        while not over():
            wait = seconds
            try:
                self.compare()
            except Exception as error:  # noqa: BLE001 - no error may end the loop: without it nothing starts
                expected = isinstance(error, SQLAlchemyError) and db.passing(error)
                log.error("comparison_failed", actor=self._worker, error=repr(error), exc_info=not expected)
                wait = min(seconds, AWAY_SECONDS)
            self._soon.wait(wait)
            self._soon.clear()  # before `over` is asked

    def compare(self) -> None:
        """Compare the places that are due, and write what they are to keep. Most often none is: one statement.

        Raises what the control database raises.
        """
        self._conclude_late()
        with db.statement() as session:
            here = rewinds.here(session, self._places)
        if here.rewound:
            return self._keep_still(here)
        # A new process has seen nothing yet: it asks all places, even if another worker has just done so.
        due = sorted(here.due) if here.settled and self._seen else self._places
        if not due and not self._has_lost(here):
            self._seen = here.memory()
            if here.incarnation != self._incarnation:  # another worker has compared it
                self._incarnation = here.incarnation
                self._go_on()
            return None
        found = self._each(due, lambda place: self._recall(place, here), late=here)
        if self._seen is not None and self._seen.installation == here.installation:
            found[ITSELF] = self._seen
        if self._conclude(here, found):
            self._seen = here.memory()
        return None

    def _conclude(self, here: Here, found: dict[str, Memory | None]) -> bool:
        """Judge what places answered that were asked after `here` was read; if it may go on, they remember it."""
        with db.statement() as session:
            verdict = rewinds.judge(session, here, found)
        others = {place for place in verdict.behind if self._is_another_server(place, here, found[place])}
        behind = verdict.behind.keys() - others
        for place in behind:
            self._note_behind(place, verdict.behind[place])
        with db.statement() as session:
            if verdict.rewound:
                if rewinds.engage(
                    session, actor=self._worker, reason=verdict.rewound, epoch=here.epoch, incarnation=here.incarnation
                ):
                    log.error("control_database_rewound", why=verdict.rewound, actor=self._worker)
                # Else it was replaced or recovered meanwhile, and the next comparison tells.
                if rewinds.rewound(session):
                    self._keep_still(here)
                return False
            fine = [place for place in found if place != ITSELF and place not in behind]
            if not (here.settled or rewinds.tells(here, found)) or not rewinds.settle(session, here, fine):
                return False
            notes = rewinds.notes(session)
        if here.promoted:
            log.warning("control_database_promoted", actor=self._worker)
        self._incarnation = here.incarnation
        self._go_on()
        places = [place for place in fine if place not in others]
        self._each(places, lambda place: self._remember(place, replace(here.memory(), notes=notes), here))
        return True

    def _conclude_late(self) -> None:
        """Judge what came too late for the comparison that had asked."""
        for place, here in [*self._late.items()]:
            if (future := self._asked[place]).done():
                del self._late[place]
                if place in (found := self._answers({place: future})):
                    self._conclude(here, found)

    def before_destroy(self, backend: str, mark: StartMark) -> None:
        """Write the start to its backend before the destruction. Raises ClaimLost where that was told to keep still."""
        assert mark.installation is not None  # noqa: S101 - else nothing was compared
        assert mark.epoch is not None  # noqa: S101
        memory = Memory(mark.installation, mark.epoch, mark.event, mark.hash, still=False, notes=None)
        alone = partial(self._keep_last, backend, [memory])
        try:
            there, least = self._batches[backend].do(memory, alone=lambda: alone()[0])
        except MemoryForbidden:
            if backend in self._kept:
                raise
            return  # as in `_recall`
        if there is None:
            return
        if least is not None and there.least < least:
            self._note_behind(
                backend, f"it remembers event {there.least[1]}, but this worker wrote event {least[1]} there"
            )
            raise ClaimLost(f"backend {backend!r} went back in time; nothing was destroyed")
        if there.still or there.epoch > memory.epoch or not self._knows(there) or not self._knows(memory):
            self._soon.set()
            raise ClaimLost(
                f"backend {backend!r} was told to keep still, or remembers event {there.event} (epoch {there.epoch}), "
                "which is not here, or this start is not: the control database went back in time, or was recovered; "
                "nothing was destroyed"
            )

    def _knows(self, there: Memory) -> bool:
        """Whether what is there is another worker's event; else the database was restored since it was compared."""
        with db.statement() as session:
            return rewinds.knows(session, there)

    def destroyed(self, backend: str, mark: StartMark) -> None:
        """After a destruction, whose end made durable what was kept before it: the backend must never have less."""
        if mark.epoch is not None and self._backends[backend].keeps_memory:
            self._kept[backend] = max(self._kept.get(backend, (0, 0)), (mark.epoch, mark.event))

    def _keep_last(self, backend: str, memories: Sequence[Memory]) -> list[tuple[Memory | None, Moment | None]]:
        """Keep the last of these, which vouches for all; for each what is there instead, and the least it must be."""
        last = max(memories, key=lambda memory: memory.least)
        least = self._kept.get(backend)  # as of now: while the backend answers, another thread may raise it
        return [(self._backends[backend].remember(last, least), least)] * len(memories)

    def _is_another_server(self, place: str, here: Here, memory: Memory | None) -> bool:
        """Whether a place that remembers nothing is at a wrong address: each job there finds that out for itself."""
        if memory is not None or place not in here.servers:
            return False
        is_now = self._backends[place].server_identity()
        if is_now == here.servers[place]:
            return False
        log.error(
            "backend_is_another_server", backend=place, was=here.servers[place], is_now=is_now, actor=self._worker
        )
        return True

    def _note_behind(self, backend: str, why: str) -> None:
        with db.statement() as session:
            if rewinds.went_back(session, backend, why):
                log.error("backend_went_back", backend=backend, why=why, actor=self._worker)

    def _has_lost(self, here: Here) -> bool:
        """Whether this database lacks what this process has seen in it."""
        return self._seen is not None and (self._seen.epoch, self._seen.event) > (here.epoch, here.event)

    def _keep_still(self, here: Here) -> None:
        """Tell each place once to keep still: a worker that is suspended before a destruction then destroys nothing."""
        if self._told_still is not None and self._told_still.epoch == here.epoch:
            return
        told = self._each(self._places, lambda place: self._tell_still(place, here))
        if len(told) == len(self._places):
            self._told_still = here

    def _tell_still(self, place: str, here: Here) -> None:
        there = self._recall(place, here)
        if there is None or there.epoch <= here.epoch:
            self._keep(place, replace(there or here.memory(), still=True, notes=None))

    def _remember(self, place: str, memory: Memory, here: Here) -> None:
        if place != BROKER and not self._backends[place].keeps_memory:
            return  # it would seem to have lost what it never kept
        if self._keep(place, memory, here.written.get(place)) is None:
            self._kept[place] = memory.least
            server = None if place == BROKER else self._backends[place].server_identity()
            with db.statement() as session:
                rewinds.wrote(session, place, memory, server=server)

    def _recall(self, place: str, here: Here) -> Memory | None:
        if place == BROKER:
            return doorbell.recall(here.installation)
        try:
            return self._backends[place].recall(here.installation)
        except MemoryForbidden as error:
            if place in here.written:
                raise
            log.warning("memory_forbidden", place=place, actor=self._worker, error=str(error))
            return None  # it never remembered anything of this database, as a kind without memories

    def _keep(self, place: str, memory: Memory, least: Moment | None = None) -> Memory | None:
        return doorbell.remember(memory) if place == BROKER else self._backends[place].remember(memory, least)

    def _each(
        self, places: list[str], ask: Callable[[str], Memory | None], *, late: Here | None = None
    ) -> dict[str, Memory | None]:
        """What each place answers within a second, all asked at once; one that still owes an answer is not asked.

        `late`: what comes later is judged then, as asked after this was read.
        """
        asked = {}
        for place in places:
            if place not in self._asked or (self._asked[place].done() and place not in self._late):
                self._asked[place] = asked[place] = self._threads.submit(ask, place)
        wait(asked.values(), ANSWER_SECONDS)
        done = {place: future for place, future in asked.items() if future.done()}
        for place in asked.keys() - done.keys():
            log.warning("memory_slow", place=place, actor=self._worker)
            if late is not None:
                self._late[place] = late
                asked[place].add_done_callback(lambda _: self._soon.set())
        return self._answers(done)

    def _answers(self, futures: Mapping[str, "Future[Memory | None]"]) -> dict[str, Memory | None]:
        """What places have answered; one that failed is left out, and the log says why."""
        answers: dict[str, Memory | None] = {}
        for place, future in futures.items():
            try:
                answers[place] = future.result()
            except Exception as error:  # noqa: BLE001 - one place's trouble; its words may hold secrets
                log.warning("memory_unreachable", place=place, actor=self._worker, error=type(error).__name__)
        return answers
