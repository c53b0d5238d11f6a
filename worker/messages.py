"""What a message from the broker can do: it names one of three wake-ups, and nothing else in it is read.

Anybody who may write to the broker can write any message. Celery would obey what stands in one: arguments, times,
callbacks, addresses for replies, compressed bodies. So this consumer takes the name of the task and drops the rest.
"""

import time
from collections.abc import Callable
from typing import Any

from celery.utils.functional import noop
from celery.worker.consumer import Consumer
from kombu import compression
from kombu.message import Message

from outbox import db, doorbell
from outbox.logs import log
from worker.app import pool
from worker.pool import Pool

WAKE_UPS: dict[str, Callable[[Pool], None]] = {
    doorbell.DRAIN: Pool.drain,  # the doorbell rang, at a broker other than Redis
    doorbell.OBSERVE: Pool.observe,  # an operator waits for the inspection of a stuck job
    doorbell.SWEEP: Pool.sweep,  # Celery beat asks; every worker sweeps without it too
}
# However many messages are refused, the log has a line a minute.
QUIET_SECONDS = 60


def _refuse(_: bytes) -> bytes:
    raise ValueError("a wake-up is never compressed")


# Kombu decompresses a body before anything else sees the message, and a megabyte can become a gigabyte.
for content_type in compression.encoders():
    compression.register(_refuse, _refuse, content_type)


class MessageConsumer(Consumer):  # type: ignore[misc]  # Celery has no types
    """Celery's consumer for messages that carry no authority. `worker.app` names it as `worker_consumer`."""

    def __init__(self, *words: Any, **options: Any) -> None:
        # Workers coordinate in the database. They believe nothing that other programs say of themselves at the broker.
        alone = {"without_gossip": True, "without_mingle": True, "without_heartbeat": True}
        super().__init__(*words, **options | alone)
        # Kombu raises what it likes over a malformed message or a key of another type. By default that ends the worker;
        # as a channel's error it costs a new connection, at most one a second.
        self.channel_errors = (Exception,)
        self._waiting: set[str] = set()
        self._quiet_until = 0.0

    def create_task_handler(self, *_: Any) -> Callable[[Message], None]:
        """What Celery's event loop does with each message."""
        return self._take

    def on_decode_error(self, message: Message, exc: Exception) -> None:
        """Drop a message that Kombu could not make: a compressed one."""
        message.ack()
        self._log_refused(type(exc).__name__)

    def _take(self, message: Message) -> None:
        message.ack()
        name = message.headers.get("task")
        if not isinstance(name, str) or name not in WAKE_UPS:
            self._log_refused(name if isinstance(name, str) else type(name).__name__)
        elif name not in self._waiting:  # however many messages ask, one call of each kind waits for a thread
            self._waiting.add(name)
            self.pool.apply_async(self._wake, (name,), callback=noop)

    def _wake(self, name: str) -> None:
        self._waiting.discard(name)
        try:
            WAKE_UPS[name](pool())
        except Exception as error:  # noqa: BLE001 - whatever failed, the next sweep tries again
            log.error("wake_up_failed", task=name, error=repr(error), exc_info=not db.unreachable(error))

    def _log_refused(self, what: str) -> None:
        if time.monotonic() >= self._quiet_until:
            self._quiet_until = time.monotonic() + QUIET_SECONDS
            log.warning("message_refused", task=what[:100])
