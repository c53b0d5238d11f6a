"""PgQueuer: asyncpg, uvloop, batches of 500; completions of a batch share a statement, sent at 500 or after 0.1 s."""

import asyncio
import contextlib
import functools
import time
from collections.abc import Callable, Iterator

import asyncpg
import uvloop
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgDriver
from pgqueuer.models import Job
from pgqueuer.queries import Queries

from bench.peers import harness
from bench.peers.harness import Queue, Servers

BATCH = 500

# The rows of its log have the start time of their statement, which is shortly before the commit.
_watch = functools.partial(
    harness.tables,
    busy="SELECT EXISTS (SELECT FROM pgqueuer)",
    span="""
        SELECT count(*) FILTER (WHERE status = 'successful'),
               extract(epoch FROM min(created) FILTER (WHERE status = 'picked')),
               extract(epoch FROM max(created) FILTER (WHERE status = 'successful'))
          FROM pgqueuer_log""",
)


def queue(batch: int) -> Queue:
    """A statement claims up to `batch` jobs, and up to `batch` completions are kept back."""
    return Queue("PgQueuer", _install, _enqueue, functools.partial(_work, batch), _watch, _sender)


def _install(servers: Servers) -> None:
    async def install() -> None:
        queries = Queries(AsyncpgDriver(await asyncpg.connect(servers.dsn)))
        await queries.install()
        await queries.optimize_autovacuum()

    uvloop.run(install())


def _enqueue(servers: Servers, count: int) -> None:
    async def enqueue() -> None:
        queries = Queries(AsyncpgDriver(await asyncpg.connect(servers.dsn)))
        await queries.enqueue(["noop"] * count, [None] * count, [0] * count)

    uvloop.run(enqueue())


def _work(batch: int, servers: Servers, ready: Callable[[], None]) -> None:
    async def work() -> None:
        worker = PgQueuer(AsyncpgDriver(await asyncpg.connect(servers.dsn)))

        @worker.entrypoint("noop")
        async def noop(_: Job) -> None:
            pass

        @worker.entrypoint("stamp")
        async def stamp(job: Job) -> None:
            harness.stamp(int(job.payload or b""))

        ready()
        await worker.run(batch_size=batch)

    uvloop.run(work())


@contextlib.contextmanager
def _sender(servers: Servers) -> Iterator[Callable[[int], float]]:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        queries = Queries(AsyncpgDriver(runner.run(asyncpg.connect(servers.dsn))))

        async def send(number: int) -> float:
            await queries.enqueue("stamp", str(number).encode())
            return time.time()

        yield lambda number: runner.run(send(number))


QUEUE = queue(BATCH)

if __name__ == "__main__":
    harness.main("bench.peers.pgqueuer")
