"""Natural group commit: what is asked for while a statement is under way shares the next one. No timers."""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

from outbox.events import log

A = TypeVar("A")
R = TypeVar("R")
# A statement for more takes longer than it saves.
MAX_BATCH = 100
# More than any statement may take. Whoever has waited longer asks by itself: a connection that stands still (its server
# process is stopped, a proxy half dead) must not stop all who share it.
PATIENCE_SECONDS = 20
# So long at most a statement that stands still keeps others of its process from going beside it.
TURN_SECONDS = 0.01


class Gate:
    """One statement at a time of those that share it: each finds more to do, and a job costs less. No guard at all."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Wait for the turn; without it, when that takes too long."""
        mine = self._lock.acquire(timeout=TURN_SECONDS)
        try:
            yield
        finally:
            if mine:
                self._lock.release()


class GroupCommit(Generic[A, R]):
    """Asks for many at once. `act` returns one answer for each, durable by then; None where it came to nothing.

    Whoever gets None asks by itself: for the reason, for a row that it must wait for, or because the statement failed
    for all. `act` must wait for no row: whoever comes next waits for it. What must not happen twice when only an answer
    was lost is its own affair, as it is for a single one.
    """

    def __init__(
        self, name: str, act: Callable[[Sequence[A]], Sequence[R | None]], *, gate: Gate | None = None
    ) -> None:
        self._name = name
        self._act = act
        self._gate = gate or Gate()
        self._asked: SimpleQueue[tuple[A, Future[R | None]]] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def ask(self, asked: A) -> "Future[R | None]":
        """Its answer, once the statement that it shared was committed."""
        answer: Future[R | None] = Future()
        answer.set_running_or_notify_cancel()  # it is under way: nobody can take it back
        self._asked.put((asked, answer))
        if self._thread is None:
            self._start()
        return answer

    def wait(self, asked: A) -> R | None:
        """The same, for a thread that has nothing else to do; None when its patience ends."""
        try:
            return self.ask(asked).result(PATIENCE_SECONDS)
        except TimeoutError:
            return None

    def _start(self) -> None:
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while True:
            batch = [self._asked.get()]
            with self._gate.taken():
                with suppress(Empty):
                    while len(batch) < MAX_BATCH:
                        batch.append(self._asked.get_nowait())
                answers = self._answers([asked for asked, _ in batch])
            for (_, answer), came in zip(batch, answers, strict=True):
                answer.set_result(came)

    def _answers(self, asked: Sequence[A]) -> Sequence[R | None]:
        try:
            return self._act(asked)
        except Exception as error:  # noqa: BLE001 - each of them meets it again by itself, and knows what to do
            with suppress(Exception):  # a log that takes nothing (a full disk) must not be the end of this thread
                log.warning("asked_together_in_vain", name=self._name, count=len(asked), error=repr(error))
            return [None] * len(asked)
