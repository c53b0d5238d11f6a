"""The Celery application, and the life of a worker process.

One process, `threads` pool: a message only wakes the process's hands, which do the work in threads of their
own. More hands: a higher DEPROVISIONER_WORKER_SLOTS; more cores: more processes.
"""

import gc
import os
import secrets
import socket
from functools import lru_cache
from typing import Any

from celery import Celery, bootsteps
from celery.signals import worker_init, worker_shutdown, worker_shutting_down
from kombu.transport.redis import Channel

from outbox import credentials, db, doorbell, events, settings
from outbox.errors import DeprovisionerError, SettingsError
from outbox.events import log
from worker import backends
from worker.pool import Pool, ServedBackend

# A started teardown may end before the process does; after this its lease will pass.
SHUTDOWN_SECONDS = 120

app = Celery("deprovisioner", broker=settings.get().need("broker_url"), include=["worker.tasks"])
app.conf.update(doorbell.CONFIG)
app.conf.update(
    task_acks_late=False,
    worker_prefetch_multiplier=1,
    worker_pool="threads",
    worker_concurrency=2,
    worker_cancel_long_running_tasks_on_connection_loss=False,
    worker_hijack_root_logger=False,
    worker_send_task_events=False,
    beat_schedule={
        "sweep": {
            "task": doorbell.SWEEP,
            "schedule": settings.get().sweep_seconds,
            "options": {"expires": settings.get().sweep_seconds},
        }
    },
)

# A bell that waits for a thread when the broker goes away is not put back: Kombu would try it on the connection that is
# gone, and dump into a file what it could not put back.
Channel.do_restore = False

_hands: Pool | None = None


def hands() -> Pool:
    """This process's hands."""
    if _hands is None:
        raise SettingsError("no hands in this process: it is no worker")
    return _hands


@worker_init.connect
def _open(sender: Any, **_: Any) -> None:
    global _hands  # noqa: PLW0603 - one a process, like the Celery application itself
    events.configure()
    try:
        if "thread" not in str(sender.pool_cls):
            raise SettingsError(
                f"run with the pool `threads`, the default, not {sender.pool_cls}: hands do not survive a fork"
            )
        credentials.check()
        configured = settings.backends()
        settings.brakes("", "")  # a malformed one is an error now, not at the first teardown
        protected = frozenset(name for name in (db.control_url().database,) if name)
        served = {
            name: ServedBackend(backends.build(config, protected=protected), config.concurrency)
            for name, config in configured.items()
        }
    except DeprovisionerError as error:
        log.error("worker_refused", error=str(error))
        raise SystemExit(2) from error
    current = settings.get()
    _hands = Pool(
        served,
        worker=_name(),
        slots=current.worker_slots,
        lease_seconds=current.lease_seconds,
        sweep_seconds=current.sweep_seconds,
    )


@lru_cache(maxsize=1)
def _name() -> str:
    """One process's for ever: a container that restarts has the same host name and the same pid."""
    return f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(3)}"


class _StartHands(bootsteps.StartStopStep):  # type: ignore[misc]  # Celery has no types
    """After Celery's last write to the environment, which libpq reads without a lock: both at once is a SIGSEGV.

    Still before the broker is reached, for the consumer is always the last step: a worker sweeps, and so
    works, while the broker is dead.
    """

    def start(self, parent: Any) -> None:  # noqa: ARG002 - Celery's signature
        # What was imported stays: to look through all of it for garbage again and again stops every hand.
        gc.collect()
        gc.freeze()
        hands().start()
        log.info("worker_ready", actor=_name(), backends=sorted(settings.backends()), slots=settings.get().worker_slots)


app.steps["worker"].add(_StartHands)


@worker_shutting_down.connect
def _close(**_: Any) -> None:
    if _hands is not None:
        _hands.stop()


@worker_shutdown.connect
def _last(sender: Any, **_: Any) -> None:
    _close()  # nobody may have asked for this end
    if _hands is not None and not _hands.join(SHUTDOWN_SECONDS):
        log.warning("stopped_while_working", seconds=SHUTDOWN_SECONDS)
        os._exit(1)  # Python would wait for the threads for ever; their leases pass, and another worker looks
    if sender.exitcode:
        raise SystemExit(sender.exitcode)  # worker_main forgets it, and who restarts what failed would not
