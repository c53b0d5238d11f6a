"""The doorbell: a wake-up that says "there is work" and nothing else. Lost, doubled or late, it does no harm.

A process rings it after commit, from a thread of its own, so that no request waits for the broker. On Redis it is a
sorted set with at most one member. A worker with a free thread waits for the member and takes it before it claims:
rings before that are one wake-up, and a commit after that rings again. Each backend has a doorbell too: a worker
without capacity for the backend rings it for other workers. On any other broker, and for the inspections that operators
ask for, the doorbell is a Celery message.
"""

import threading
import time
import uuid
from collections.abc import Iterable

from outbox import settings
from outbox.doorbell.celery import CONFIG, DRAIN, OBSERVE, QUEUE, SWEEP, sender
from outbox.doorbell.redis import BELL, TIMEOUT_SECONDS, ask, key_of, on_redis, put, take
from outbox.doorbell.redis import recall as _recall
from outbox.doorbell.redis import remember as _remember
from outbox.logs import log
from outbox.memory import Memory

__all__ = [
    "BELL",
    "CONFIG",
    "DRAIN",
    "OBSERVE",
    "QUEUE",
    "SWEEP",
    "TIMEOUT_SECONDS",
    "Bell",
    "bell",
    "broker_alive",
    "describe",
    "on_redis",
    "recall",
    "remember",
    "ring_now",
    "ring_to_observe",
    "wait",
]


class Bell:
    """Rings from a daemon thread; all calls of `ring` while it is ringing lead to one more ring."""

    def __init__(self) -> None:
        self._wanted = threading.Event()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def start(self) -> None:
        """Start the thread, which connects to the broker before the first ring needs it."""
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="doorbell", daemon=True)
                self._thread.start()

    def ring(self) -> None:
        """Ask for a ring and return at once; never raises."""
        self._wanted.set()
        if self._thread is None:
            self.start()

    def _run(self) -> None:
        broker_alive()
        while True:
            self._wanted.wait()
            self._wanted.clear()
            if not ring_now():
                time.sleep(TIMEOUT_SECONDS)  # a dead broker is tried once a second, not once for each request


bell = Bell()


def ring_now(backends: Iterable[str] = ()) -> bool:
    """Ring these backends' doorbells, or the one for all; False when the broker did not take it.

    Takes bounded time and never raises.
    """
    try:
        if on_redis():
            for key in [key_of(name) for name in backends] or [BELL]:
                put(key)
        else:
            sender().send_task(DRAIN, expires=settings.get().sweep_seconds, ignore_result=True)
    except Exception as error:  # noqa: BLE001 - any failure of any broker means the same: the sweep finds the work
        log.warning("doorbell_failed", error=describe(error))
        return False
    return True


def ring_to_observe() -> bool:
    """Send the message that an operator waits for an inspection; False when the broker did not take it. Never raises.

    Takes bounded time, like a ring. Sends a message each time: operators ask rarely, and a sweep finds requests too.
    """
    try:
        sender().send_task(OBSERVE, expires=settings.get().sweep_seconds, ignore_result=True)
    except Exception as error:  # noqa: BLE001 - as in ring_now
        log.warning("doorbell_failed", error=describe(error))
        return False
    return True


def wait(backends: Iterable[str], seconds: float) -> bool:
    """Wait on Redis for the doorbell or those of these backends; whether one rang. A ring wakes one waiting worker."""
    return take([BELL, *map(key_of, backends)], seconds)


def remember(memory: Memory) -> Memory | None:
    """Keep a memory in the broker's Redis; None when it was kept, or the broker is another one, else what is there.

    Raises BackendError. As a client's error it names no address.
    """
    return _remember(memory) if on_redis() else None


def recall(installation: uuid.UUID) -> Memory | None:
    """What the broker keeps of an installation: None where that is nothing, and always on a broker other than Redis."""
    return _recall(installation) if on_redis() else None


def describe(error: Exception) -> str:
    """The error's type and message: the `repr` of redis-py's errors has no message."""
    return f"{type(error).__name__}: {error}"


def broker_alive() -> bool:
    """Whether the broker takes a connection now; bounded by TIMEOUT_SECONDS."""
    try:
        if on_redis():
            return bool(ask("PING"))
        with sender().connection_for_write() as connection:
            connection.ensure_connection(max_retries=1, timeout=TIMEOUT_SECONDS)
    except Exception:  # noqa: BLE001 - every transport raises its own
        return False
    return True
