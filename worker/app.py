"""The Celery application, and the life of a worker process.

A process runs Celery's pool `threads`. A message only wakes the process's own `Pool`, whose threads do the work. For
more threads, set DEPROVISIONER_WORKER_SLOTS higher; for more cores, run more processes.
"""

import gc
import os
import secrets
import signal
import socket
from functools import lru_cache
from typing import Any

from celery import Celery, bootsteps
from celery.apps import worker as celery_worker
from celery.signals import worker_init, worker_shutdown
from celery.worker import state as celery_state
from kombu.transport.redis import Channel

from outbox import credentials, db, doorbell, logs, settings
from outbox.errors import DeprovisionerError, SettingsError
from outbox.logs import log
from worker import backends, checks, logins, reconcile
from worker.pool import Pool, ServedBackend
from worker.snapshots import expiry

# A started teardown may take this long to end before the process does. After it, the process leaves it to its lease.
SHUTDOWN_SECONDS = 120

app = Celery("deprovisioner", broker=settings.get().need("broker_url"))
app.conf.update(doorbell.CONFIG)
app.conf.update(
    worker_consumer="worker.messages:MessageConsumer",
    worker_enable_remote_control=False,  # it would stop and reconfigure workers for anybody at the broker
    broker_channel_error_retry=True,
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

# A message that waits for a thread when the broker goes away is not put back: Kombu would try that on the lost
# connection, and dump the message into a file when it fails.
Channel.do_restore = False

_pool: Pool | None = None


def _ask_to_stop(*_: Any) -> None:
    """The handler of SIGTERM and SIGINT: plain assignments, which Celery's loop and the pool's threads read.

    Celery's own handlers take locks, and a second signal would wait for a lock that its own thread holds.
    """
    _close()
    celery_state.should_stop = 0


def _handle_stop_signals(worker: Any) -> None:  # noqa: ARG001 - Celery's signature
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _ask_to_stop)


# Celery calls these two where it would install its own handlers.
celery_worker.install_worker_term_handler = _handle_stop_signals
celery_worker.install_worker_int_handler = _handle_stop_signals


def pool() -> Pool:
    """This process's pool."""
    if _pool is None:
        raise SettingsError("this process has no pool, since it is not a worker; start one with `deprovisioner worker`")
    return _pool


@worker_init.connect
def _open(sender: Any, **_: Any) -> None:
    global _pool  # noqa: PLW0603 - one a process, like the Celery application itself
    logs.configure()
    try:
        if "thread" not in str(sender.pool_cls):
            raise SettingsError(
                f"run Celery with its pool `threads`, the default, not {sender.pool_cls}: threads do not survive a fork"
            )
        credentials.check()
        configured = settings.backends()
        settings.brakes("", "")  # a malformed brake is an error now, not at the first teardown
        protected = frozenset(name for name in (db.control_url().database,) if name)
        served = {
            name: ServedBackend(backends.build(config, protected=protected), config.concurrency)
            for name, config in configured.items()
        }
    except DeprovisionerError as error:
        log.error("worker_refused", error=str(error))
        raise SystemExit(2) from error
    current = settings.get()
    _pool = Pool(
        served,
        worker=_name(),
        slots=current.worker_slots,
        lease_seconds=current.lease_seconds,
        sweep_seconds=current.sweep_seconds,
    )


@lru_cache(maxsize=1)
def _name() -> str:
    """Unique to this process: a container that restarts has the same host name and the same pid."""
    return f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(3)}"


class _StartPool(bootsteps.StartStopStep):  # type: ignore[misc]  # Celery has no types
    """Starts the pool after Celery's last write to the environment: libpq reads it without a lock, and would crash.

    That is before the worker reaches the broker, since the consumer is always the last step. So a worker sweeps, and
    works, while the broker is dead.
    """

    def start(self, parent: Any) -> None:  # noqa: ARG002 - Celery's signature
        # Imported modules stay for good. Each search for garbage among them would stop every thread.
        gc.collect()
        gc.freeze()
        pool().start()
        checks.keep_checking(pool().backends, worker=_name())
        logins.keep_looking(pool().backends, worker=_name())
        expiry.keep_removing(worker=_name())
        reconcile.keep_reconciling(pool().backends, worker=_name())
        log.info("worker_ready", actor=_name(), backends=sorted(settings.backends()), slots=settings.get().worker_slots)


app.steps["worker"].add(_StartPool)


def _close() -> None:
    if _pool is not None:
        _pool.stop()


@worker_shutdown.connect
def _last(sender: Any, **_: Any) -> None:
    _close()  # a process may end without a signal
    if _pool is not None and not _pool.join(SHUTDOWN_SECONDS):
        log.warning("stopped_while_working", seconds=SHUTDOWN_SECONDS)
        os._exit(1)  # Python would wait for the threads for ever; their leases pass, and another worker takes over
    if sender.exitcode:
        raise SystemExit(sender.exitcode)  # worker_main drops it, and a supervisor would not see a failure
