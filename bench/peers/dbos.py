"""DBOS: a queue polled every POLL_SECONDS, CONCURRENCY workflows at once in each process."""

import contextlib
import functools
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator

from dbos import DBOS, DBOSClient, DBOSConfig

from bench.peers import harness
from bench.peers.harness import Queue, Servers

CONCURRENCY = int(os.environ.get("C", 100))
POLL_SECONDS = float(os.environ.get("POLL", 0.05))
THREADS = int(os.environ.get("T", 0)) or None
POOL = int(os.environ.get("POOL", 0)) or 20
ASYNC = bool(os.environ.get("ASYNC"))

# Both times are the database's, of the statements that claim and record; whole milliseconds.
_watch = functools.partial(
    harness.tables,
    busy="SELECT EXISTS (SELECT FROM dbos.workflow_status WHERE status IN ('ENQUEUED', 'PENDING'))",
    span="""
        SELECT count(*) FILTER (WHERE status = 'SUCCESS'), min(started_at_epoch_ms) / 1000.0, max(completed_at) / 1000.0
          FROM dbos.workflow_status""",
)


def _register():
    if ASYNC:
        @DBOS.workflow(name="noop")
        async def noop() -> None:
            pass
    else:
        @DBOS.workflow(name="noop")
        def noop() -> None:
            pass

    @DBOS.workflow(name="stamp")
    def stamp(number: int) -> None:
        harness.stamp(number)


def _install(servers: Servers) -> None:
    _launch(servers)
    DBOS.register_queue("bench", worker_concurrency=CONCURRENCY, polling_interval_sec=POLL_SECONDS)
    DBOS.destroy(destroy_registry=True)


def _enqueue(servers: Servers, count: int) -> None:
    import sqlalchemy as sa
    client = DBOSClient(system_database_url=servers.dsn)
    engine = sa.create_engine(servers.dsn.replace("postgresql://", "postgresql+psycopg://"))
    try:
        with engine.begin() as c:
            for _ in range(count):
                client.enqueue_in_transaction(c, {"queue_name": "bench", "workflow_name": "noop"})
    finally:
        client.destroy()


def _launch(servers: Servers) -> None:
    config = DBOSConfig(
        name="bench",
        system_database_url=servers.dsn,
        sys_db_pool_size=POOL,
        executor_id=str(uuid.uuid4()),
        application_version="bench",
        log_level="WARNING",
    )
    if THREADS: config["max_executor_threads"] = THREADS
    DBOS(config=config)
    _register()
    DBOS.launch()


def _work(servers: Servers, ready: Callable[[], None]) -> None:
    ready()
    _launch(servers)
    threading.Event().wait()


@contextlib.contextmanager
def _sender(servers: Servers) -> Iterator[Callable[[int], float]]:
    client = DBOSClient(system_database_url=servers.dsn)

    def send(number: int) -> float:
        client.enqueue({"queue_name": "bench", "workflow_name": "stamp"}, number)
        return time.time()

    try:
        yield send
    finally:
        client.destroy()


if __name__ == "__main__":
    harness.main(Queue("DBOS", _install, _enqueue, _work, _watch, _sender), "bench.peers.dbos")
