"""DBOS: a queue polled every POLL_SECONDS; each process claims up to CONCURRENCY workflows and runs THREADS of them."""

import contextlib
import functools
import threading
import time
import uuid
from collections.abc import Callable, Iterator

import sqlalchemy
from dbos import DBOS, DBOSClient, DBOSConfig

from bench.peers import harness
from bench.peers.harness import Queue, Servers

CONCURRENCY = 500
# The default, one thread for each claimed workflow, was slower; 4 to 32 threads were equally fast.
THREADS = 8
POLL_SECONDS = 0.02

# Both times are the database's, from the statements that claim and record, in whole milliseconds.
_watch = functools.partial(
    harness.tables,
    busy="SELECT EXISTS (SELECT FROM dbos.workflow_status WHERE status IN ('ENQUEUED', 'PENDING'))",
    span="""
        SELECT count(*) FILTER (WHERE status = 'SUCCESS'), min(started_at_epoch_ms) / 1000.0, max(completed_at) / 1000.0
          FROM dbos.workflow_status""",
)


def _install(servers: Servers) -> None:
    _launch(servers)
    DBOS.register_queue("bench", worker_concurrency=CONCURRENCY, polling_interval_sec=POLL_SECONDS)
    DBOS.destroy(destroy_registry=True)


def _enqueue(servers: Servers, count: int) -> None:
    engine = sqlalchemy.create_engine(servers.dsn.replace("postgresql:", "postgresql+psycopg:", 1))
    with _client(servers) as client, engine.begin() as connection:
        for _ in range(count):
            client.enqueue_in_transaction(connection, {"queue_name": "bench", "workflow_name": "noop"})
    engine.dispose()


def _launch(servers: Servers) -> None:
    DBOS(
        config=DBOSConfig(
            name="bench",
            system_database_url=servers.dsn,
            executor_id=str(uuid.uuid4()),
            application_version="bench",
            max_executor_threads=THREADS,
            log_level="WARNING",
        )
    )

    @DBOS.workflow(name="noop")
    def noop() -> None:
        pass

    @DBOS.workflow(name="stamp")
    def stamp(number: int) -> None:
        harness.stamp(number)

    DBOS.launch()


def _work(servers: Servers, ready: Callable[[], None]) -> None:
    ready()
    _launch(servers)
    threading.Event().wait()


@contextlib.contextmanager
def _sender(servers: Servers) -> Iterator[Callable[[int], float]]:
    with _client(servers) as client:

        def send(number: int) -> float:
            client.enqueue({"queue_name": "bench", "workflow_name": "stamp"}, number)
            return time.time()

        yield send


@contextlib.contextmanager
def _client(servers: Servers) -> Iterator[DBOSClient]:
    client = DBOSClient(system_database_url=servers.dsn)
    try:
        yield client
    finally:
        client.destroy()


QUEUE = Queue("DBOS", _install, _enqueue, _work, _watch, _sender)

if __name__ == "__main__":
    harness.main("bench.peers.dbos")
