"""The doorbell as a Celery message: for every other broker, and for inspections that an operator waits for."""

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from outbox import settings
from outbox.doorbell.redis import TIMEOUT_SECONDS

if TYPE_CHECKING:
    from celery import Celery

QUEUE = "deprovisioner"
DRAIN = "deprovisioner.drain"
SWEEP = "deprovisioner.sweep"
OBSERVE = "deprovisioner.observe"


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


@lru_cache(maxsize=1)
def sender() -> "Celery":
    """A Celery application that only sends."""
    from celery import Celery  # noqa: PLC0415 - what only rings, and on Redis, starts without it

    app = Celery("deprovisioner", broker=settings.get().need("broker_url"), set_as_current=False)
    app.conf.update(CONFIG)
    app.conf.broker_transport_options = CONFIG["broker_transport_options"] | {"socket_timeout": TIMEOUT_SECONDS}
    return app
