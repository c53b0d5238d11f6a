"""Chancy: its asynchronous executor, with up to CONCURRENCY jobs at once; it polls again as soon as a job ends."""

import asyncio
import contextlib
import functools
import logging
import time
from collections.abc import Callable, Iterator

from chancy import Chancy, Worker, job
from chancy import Queue as ChancyQueue

from bench.peers import harness
from bench.peers.harness import Queue, Servers

CONCURRENCY = 1000
# If this queue does not exist, a worker creates it with an executor whose processes take a second to start.
QUEUE_NAME = "default"
# The default of 1 s would be most of the time of a short drain.
SEND_SECONDS = 0.1
# The default logger writes a line for each job; in production it would not.
_LOG = logging.getLogger("bench.chancy")

# `completed_at` is when the function returned. The record is written up to SEND_SECONDS later; its time is what counts.
_watch = functools.partial(
    harness.tables,
    busy="SELECT EXISTS (SELECT FROM chancy_jobs WHERE state <> 'succeeded')",
    span="""
        SELECT count(*) FILTER (WHERE state = 'succeeded'), extract(epoch FROM min(started_at)), NULL
          FROM chancy_jobs""",
    seconds=0.01,
)


@job(queue=QUEUE_NAME)
async def noop() -> None:
    """Do nothing."""


@job(queue=QUEUE_NAME)
async def stamp(*, number: int) -> None:
    """Note the time."""
    harness.stamp(number)


def _install(servers: Servers) -> None:
    async def install() -> None:
        async with Chancy(servers.dsn, log=_LOG) as chancy:
            await chancy.migrate()
            await chancy.declare(
                ChancyQueue(
                    QUEUE_NAME,
                    concurrency=CONCURRENCY,
                    executor=Chancy.Executor.Async,
                    eager_polling=True,
                )
            )

    asyncio.run(install())


def _enqueue(servers: Servers, count: int) -> None:
    with Chancy(servers.dsn, log=_LOG) as chancy:
        for _ in chancy.sync_push_many([noop.job] * count):
            pass


def _work(servers: Servers, ready: Callable[[], None]) -> None:
    async def work() -> None:
        async with Chancy(servers.dsn, log=_LOG) as chancy:
            worker = Worker(chancy)
            worker.send_outgoing_interval = SEND_SECONDS
            ready()
            await worker.start()
            await worker.wait_for_shutdown()

    asyncio.run(work())


@contextlib.contextmanager
def _sender(servers: Servers) -> Iterator[Callable[[int], float]]:
    with Chancy(servers.dsn, log=_LOG) as chancy:

        def send(number: int) -> float:
            chancy.sync_push(stamp.job.with_kwargs(number=number))
            return time.time()

        yield send


QUEUE = Queue("Chancy", _install, _enqueue, _work, _watch, _sender)

if __name__ == "__main__":
    harness.main("bench.peers.chancy")
