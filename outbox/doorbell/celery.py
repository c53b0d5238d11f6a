"""The doorbell as a Celery message: on brokers other than Redis, and for inspections that an operator asks for."""

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
        # Redis only: reading a message removes it. Acknowledging it after the broker was away would end the worker
        # with an AttributeError in Kombu, and a lost wake-up does no harm.
        "ack_emulation": False,
    },
}


@lru_cache(maxsize=1)
def sender() -> "Celery":
    """A Celery application that only sends."""
    from celery import Celery  # noqa: PLC0415 - a process that only rings on Redis does not need it

    app = Celery("deprovisioner", broker=settings.get().need("broker_url"), set_as_current=False)
    app.conf.update(CONFIG)
    # Kombu would try to connect for seconds, though an operator waits.
    bounds = {"socket_timeout": TIMEOUT_SECONDS, "max_retries": 1, "interval_start": 0, "interval_step": 0}
    app.conf.broker_transport_options = CONFIG["broker_transport_options"] | bounds
    return app
