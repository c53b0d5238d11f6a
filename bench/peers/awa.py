"""awa-pg: its Rust core on queue storage, with up to WORKERS handlers at once in each process."""

import asyncio
import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from awa import AsyncClient, Client, Job

from bench.peers import harness
from bench.peers.harness import Queue, Servers

WORKERS = 512
# The minimum by its guide: 20, and 4 for each queue.
CONNECTIONS = 24
# Finished rows are removed when their slot is pruned: by default after one second, before we could count them.
ROTATE_MILLISECONDS = 60_000

# A finished job is in one of two tables; the view of all jobs, `awa.jobs`, takes seconds for some thousand jobs.
_watch = functools.partial(
    harness.tables,
    busy="""
        SELECT (SELECT coalesce(sum(completed_count), 0) FROM awa.receipt_completion_batches)
             + (SELECT count(*) FROM awa.done_entries) < (SELECT count(*) FROM awa.ready_entries)""",
    span="""
        SELECT count(DISTINCT job_id), extract(epoch FROM min(attempted_at)), extract(epoch FROM max(finalized_at))
          FROM (SELECT unnest(job_ids) AS job_id, unnest(attempted_ats) AS attempted_at, finalized_at
                  FROM awa.receipt_completion_batches
                 UNION ALL
                SELECT job_id, attempted_at, finalized_at FROM awa.done_entries WHERE state = 'completed') AS ended""",
)


@dataclass
class Noop:
    """A job that does nothing."""


@dataclass
class Stamp:
    """A job that notes the time."""

    number: int


def _install(servers: Servers) -> None:
    client = Client(servers.dsn)
    client.migrate()
    client.install_queue_storage()
    client.close()


def _enqueue(servers: Servers, count: int) -> None:
    client = Client(servers.dsn)
    client.enqueue_many_copy([Noop()] * count, queue="bench")
    client.close()


def _work(servers: Servers, ready: Callable[[], None]) -> None:
    async def work() -> None:
        client = AsyncClient(servers.dsn, max_connections=CONNECTIONS)

        @client.task(Noop, queue="bench")
        async def noop(_: Job) -> None:
            pass

        @client.task(Stamp, queue="bench")
        async def stamp(job: Job) -> None:
            harness.stamp(job.args.number)

        ready()
        await client.start(
            [("bench", WORKERS)],
            queue_storage_queue_rotate_interval_ms=ROTATE_MILLISECONDS,
            queue_storage_claim_rotate_interval_ms=ROTATE_MILLISECONDS,
        )
        await asyncio.Event().wait()

    asyncio.run(work())


@contextlib.contextmanager
def _sender(servers: Servers) -> Iterator[Callable[[int], float]]:
    client = Client(servers.dsn)

    def send(number: int) -> float:
        client.insert(Stamp(number), queue="bench")
        return time.time()

    yield send
    client.close()


QUEUE = Queue("awa-pg", _install, _enqueue, _work, _watch, _sender)

if __name__ == "__main__":
    harness.main("bench.peers.awa")
