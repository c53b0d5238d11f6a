"""Procrastinate: an asynchronous worker with up to CONCURRENCY jobs at once, woken by LISTEN; finished jobs stay."""

import asyncio
import contextlib
import functools
import time
from collections.abc import Callable, Iterator

from procrastinate import App, PsycopgConnector, SyncPsycopgConnector

from bench.peers import harness
from bench.peers.harness import Queue, Servers

CONCURRENCY = 10

# Its own trigger writes an event for each claim ("started") and each end ("succeeded").
_watch = functools.partial(
    harness.tables,
    busy="SELECT EXISTS (SELECT FROM procrastinate_jobs WHERE status IN ('todo', 'doing'))",
    span="""
        SELECT count(*) FILTER (WHERE type = 'succeeded'),
               extract(epoch FROM min(at) FILTER (WHERE type = 'started')),
               extract(epoch FROM max(at) FILTER (WHERE type = 'succeeded'))
          FROM procrastinate_events""",
)


def _app(connector: PsycopgConnector | SyncPsycopgConnector) -> App:
    app = App(connector=connector)

    @app.task(name="noop")
    async def noop() -> None:
        pass

    @app.task(name="stamp")
    async def stamp(number: int) -> None:
        harness.stamp(number)

    return app


def _install(servers: Servers) -> None:
    with _app(SyncPsycopgConnector(conninfo=servers.dsn)).open() as app:
        app.schema_manager.apply_schema()


def _enqueue(servers: Servers, count: int) -> None:
    with _app(SyncPsycopgConnector(conninfo=servers.dsn)).open() as app:
        app.tasks["noop"].batch_defer(*({} for _ in range(count)))


def _work(servers: Servers, ready: Callable[[], None]) -> None:
    async def work() -> None:
        async with _app(PsycopgConnector(conninfo=servers.dsn)).open_async() as app:
            ready()
            await app.run_worker_async(concurrency=CONCURRENCY)

    asyncio.run(work())


@contextlib.contextmanager
def _sender(servers: Servers) -> Iterator[Callable[[int], float]]:
    with _app(SyncPsycopgConnector(conninfo=servers.dsn)).open() as app:

        def send(number: int) -> float:
            app.tasks["stamp"].defer(number=number)
            return time.time()

        yield send


QUEUE = Queue("Procrastinate", _install, _enqueue, _work, _watch, _sender)

if __name__ == "__main__":
    harness.main("bench.peers.procrastinate")
