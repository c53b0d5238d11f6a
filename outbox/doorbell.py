"""The doorbell: it says "there is work" and nothing else. Lost, doubled or late, it does no harm.

Rung after commit, from a thread of its own, so that no request ever waits for the broker. On Redis it is a set of one
member that a worker with a free hand waits at, and takes before it claims: however often it is rung, it waits once, and
what commits after that look rings anew. Workers have one more for each backend, for what they have no room for. To any
other broker, and for a look, it is a Celery message.
"""

import re
import threading
import time
from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from outbox import settings
from outbox.events import log

if TYPE_CHECKING:
    from celery import Celery

QUEUE = "deprovisioner"
DRAIN = "deprovisioner.drain"
SWEEP = "deprovisioner.sweep"
OBSERVE = "deprovisioner.observe"
BELL = "deprovisioner:bell"
# How long a ring may wait for a broker that does not answer.
TIMEOUT_SECONDS = 1.0

CONFIG: dict[str, Any] = {
    "task_ignore_result": True,
    "task_default_queue": QUEUE,
    "broker_connection_retry_on_startup": True,
    "broker_connection_max_retries": None,
    "task_publish_retry": False,
    "broker_transport_options": {
        "socket_connect_timeout": TIMEOUT_SECONDS,
        "socket_keepalive": True,
        "health_check_interval": 10,
        "retry_on_timeout": False,
        # Redis only: a message is gone when it is read. To answer it when the broker has been away meanwhile would end
        # the worker with an AttributeError of Kombu's, and a bell that is lost does no harm.
        "ack_emulation": False,
    },
}


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
            for key in [_of(name) for name in backends] or [BELL]:
                _ask("ZADD", key, 0, DRAIN)
        else:
            _sender().send_task(DRAIN, expires=settings.get().sweep_seconds, ignore_result=True)
    except Exception as error:  # noqa: BLE001 - any failure of any broker means the same: the sweep will find the work
        log.warning("doorbell_failed", error=told(error))
        return False
    return True


def ring_to_look() -> bool:
    """Send the message that an operator waits for a look; False when the broker did not take it. Never raises.

    Bounded like a ring. A message each time: nobody asks for looks in crowds, and a sweep takes them too.
    """
    try:
        _sender().send_task(OBSERVE, expires=settings.get().sweep_seconds, ignore_result=True)
    except Exception as error:  # noqa: BLE001 - as in ring_now
        log.warning("doorbell_failed", error=told(error))
        return False
    return True


def on_redis() -> bool:
    """Whether there is a bell to wait at; to another broker every ring is a message."""
    url = settings.get().need("broker_url")
    return url.startswith(("redis://", "rediss://")) and ";" not in url  # several, in turn, are Celery's to choose from


def wait(backends: Iterable[str], seconds: float) -> bool:
    """Wait at the bell and at those of these backends, on Redis; whether one rang. Of those who wait one hears it."""
    return bool(_ask("BZPOPMIN", BELL, *map(_of, backends), seconds, takes=seconds))


def told(error: Exception) -> str:
    """The error in words: redis-py's own `repr` has none."""
    return f"{type(error).__name__}: {error}"


def broker_alive() -> bool:
    """Whether the broker takes a connection now; bounded by TIMEOUT_SECONDS."""
    try:
        if on_redis():
            return bool(_ask("PING"))
        with _sender().connection_for_write() as connection:
            connection.ensure_connection(max_retries=1, timeout=TIMEOUT_SECONDS)
    except Exception:  # noqa: BLE001 - every transport raises its own
        return False
    return True


@lru_cache(maxsize=1)
def _sender() -> "Celery":
    from celery import Celery  # noqa: PLC0415 - what only rings, and on Redis, starts without it

    app = Celery("deprovisioner", broker=settings.get().need("broker_url"), set_as_current=False)
    app.conf.update(CONFIG)
    app.conf.broker_transport_options = CONFIG["broker_transport_options"] | {"socket_timeout": TIMEOUT_SECONDS}
    return app


def _of(backend: str) -> str:
    return f"{BELL}:{backend}"


def _ask(*command: Any, takes: float = 0) -> Any:
    client = _redis(takes + TIMEOUT_SECONDS)
    try:
        return client.execute_command(*command)
    except redis.RedisError:
        # After a failover the connection may be to a server that is up and takes no writes.
        client.connection_pool.disconnect(inuse_connections=False)
        raise


@lru_cache(maxsize=2)
def _redis(answers_within: float) -> "redis.Redis":
    # Celery's URLs may have Python's names for it, redis-py's have Redis's.
    url = re.sub(r"(?<=ssl_cert_reqs=)CERT_\w+", lambda name: name[0][5:].lower(), settings.get().need("broker_url"))
    return redis.Redis.from_url(
        url,
        socket_timeout=answers_within,
        socket_connect_timeout=TIMEOUT_SECONDS,
        socket_keepalive=True,
        # A broker that was restarted is met by the next command, not the one after it; a slow one is not asked twice.
        retry=Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,)),
    )
