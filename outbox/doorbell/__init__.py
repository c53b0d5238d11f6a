"""The doorbell: it says "there is work" and nothing else. Lost, doubled or late, it does no harm.

Rung after commit, from a thread of its own, so that no request ever waits for the broker. On Redis it is a set of one
member that a worker with a free hand waits at, and takes before it claims: however often it is rung, it waits once, and
what commits after that look rings anew. Workers have one more for each backend, for what they have no room for. To any
other broker, and for a look, it is a Celery message.
"""

import threading
import time
from collections.abc import Iterable

from outbox import settings
from outbox.doorbell.celery import CONFIG, DRAIN, OBSERVE, QUEUE, SWEEP, sender
from outbox.doorbell.redis import BELL, TIMEOUT_SECONDS, ask, key_of, on_redis
from outbox.events import log

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
    "on_redis",
    "ring_now",
    "ring_to_observe",
    "told",
    "wait",
]


class Bell:
    """Rings from a daemon thread; what is asked for while it rings becomes one more ring."""

    def __init__(self) -> None:
        self._wanted = threading.Event()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def start(self) -> None:
        """Start the thread, which meets the broker before the first ring needs it."""
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
                time.sleep(TIMEOUT_SECONDS)  # a dead broker is asked once a second, not once a request


bell = Bell()


def ring_now(backends: Iterable[str] = ()) -> bool:
    """Ring for these backends, or for whatever there is; False when the broker did not take it.

    Bounded, never raises.
    """
    try:
        if on_redis():
            for key in [key_of(name) for name in backends] or [BELL]:
                ask("ZADD", key, 0, DRAIN)
        else:
            sender().send_task(DRAIN, expires=settings.get().sweep_seconds, ignore_result=True)
    except Exception as error:  # noqa: BLE001 - any failure of any broker means the same: the sweep will find the work
        log.warning("doorbell_failed", error=told(error))
        return False
    return True


def ring_to_observe() -> bool:
    """Send the message that an operator waits for a look; False when the broker did not take it. Never raises.

    Bounded like a ring. A message each time: nobody asks for looks in crowds, and a sweep takes them too.
    """
    try:
        sender().send_task(OBSERVE, expires=settings.get().sweep_seconds, ignore_result=True)
    except Exception as error:  # noqa: BLE001 - as in ring_now
        log.warning("doorbell_failed", error=told(error))
        return False
    return True


def wait(backends: Iterable[str], seconds: float) -> bool:
    """Wait at the bell and at those of these backends, on Redis; whether one rang. Of those who wait one hears it."""
    return bool(ask("BZPOPMIN", BELL, *map(key_of, backends), seconds, takes=seconds))


def told(error: Exception) -> str:
    """The error in words: redis-py's own `repr` has none."""
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
