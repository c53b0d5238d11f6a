"""Natural group commit: requests that arrive while a statement runs share the next statement. There are no timers."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

from outbox.errors import Unconfirmed
from outbox.logs import log

A = TypeVar("A")
R = TypeVar("R")
# A longer statement takes more time than it saves.
MAX_BATCH = 100
# Longer than any statement may run. After it a caller acts alone: a connection that hangs (its server process is
# stopped, a proxy is half dead) must not stop all callers that share it.
PATIENCE_SECONDS = 20
# A statement that hangs delays the other statements behind its gate by at most this.
GATE_SECONDS = 0.01


class Gate:
    """Lets one statement through at a time, so that each finds more requests to carry: a job then costs less.

    It saves work and guards nothing.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait for the statement before; after GATE_SECONDS go ahead beside it."""
        mine = self._lock.acquire(timeout=GATE_SECONDS)
        try:
            yield
        finally:
            if mine:
                self._lock.release()


class GroupCommit(Generic[A, R]):
    """Collects requests, and executes one statement for all that wait.

    `act` gets the requests of one batch, and returns one answer for each, durable by then: None where the batch could
    not do it. It must not wait for a locked row, since the next batch waits for it.

    A caller that gets no answer from the batch acts alone, by the function that it passes: to learn the reason, to wait
    for a locked row, or because the statement failed for the whole batch. The batch may have acted and lost only its
    answer, so that function must be as safe to repeat as after any lost answer.
    """

    def __init__(
        self, name: str, act: Callable[[Sequence[A]], Sequence[R | None]], *, gate: Gate | None = None
    ) -> None:
        self._name = name
        self._act = act
        self._gate = gate or Gate()
        self._requests: SimpleQueue[tuple[A, Future[R | None]]] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def do(self, request: A, *, alone: Callable[[], R]) -> R:
        """The batch's answer, or else what `alone` returns. Blocks the thread; raises what `alone` raises."""
        try:
            answer = self.submit(request).result(PATIENCE_SECONDS)
        except TimeoutError:
            answer = None
        return alone() if answer is None else answer

    async def do_async(self, request: A, *, alone: Callable[[], Awaitable[R]]) -> R:
        """`do`, for an event loop."""
        answer = None
        with suppress(TimeoutError):
            answer = await asyncio.wait_for(asyncio.wrap_future(self.submit(request)), PATIENCE_SECONDS)
        return await alone() if answer is None else answer

    def submit(self, request: A) -> "Future[R | None]":
        """The batch's answer, as soon as its statement is committed; None where the caller must act alone."""
        answer: Future[R | None] = Future()
        answer.set_running_or_notify_cancel()  # a request that is under way cannot be cancelled
        self._requests.put((request, answer))
        if self._thread is None:
            self._start()
        return answer

    def _start(self) -> None:
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while True:
            batch = [self._requests.get()]
            with self._gate.turn():
                with suppress(Empty):
                    while len(batch) < MAX_BATCH:
                        batch.append(self._requests.get_nowait())
                try:
                    answers = self._answers([request for request, _ in batch])
                except Unconfirmed as error:
                    for _, future in batch:
                        future.set_exception(error)
                    continue
            for (_, future), answer in zip(batch, answers, strict=True):
                future.set_result(answer)

    def _answers(self, requests: Sequence[A]) -> Sequence[R | None]:
        try:
            return self._act(requests)
        except Unconfirmed:  # a caller that acts alone would read the commit as done
            raise
        except Exception as error:  # noqa: BLE001 - each caller meets the error again alone, and handles it there
            with suppress(Exception):  # a log that cannot be written (a full disk) must not end this thread
                log.warning("batch_failed", name=self._name, count=len(requests), error=repr(error))
            return [None] * len(requests)
