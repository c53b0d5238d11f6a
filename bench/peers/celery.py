"""Celery on Redis alone: a job runs in the worker's own process, without result or event, and increments a counter."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator

import redis
from celery import Celery

from bench.peers import harness
from bench.peers.harness import Queue, Servers, Span, Watch

# The value that its guide recommends for many short tasks.
PREFETCH = 128
POOL = "--pool=solo"
_JOBS, _ENDED, _FIRST = "peer:jobs", "peer:ended", "peer:first"


def _app(servers: Servers) -> Celery:
    app = Celery("bench", broker=servers.redis)
    app.conf.update(
        task_default_queue="bench",
        task_ignore_result=True,
        worker_prefetch_multiplier=PREFETCH,
        worker_disable_rate_limits=True,
        worker_send_task_events=False,
        worker_enable_remote_control=False,
        worker_hijack_root_logger=False,
    )
    counter = redis.Redis.from_url(servers.redis)

    @app.task(name="noop")
    def noop() -> None:
        began = time.time()
        if counter.incr(_ENDED) == 1:
            counter.set(_FIRST, began)

    @app.task(name="stamp")
    def stamp(number: int) -> None:
        harness.stamp(number)

    return app


def _install(_: Servers) -> None:
    pass


def _enqueue(servers: Servers, count: int) -> None:
    with _app(servers) as app, app.producer_pool.acquire() as producer:
        for _ in range(count):
            app.tasks["noop"].apply_async(producer=producer)
    with redis.Redis.from_url(servers.redis) as broker:
        broker.set(_JOBS, count)


def _work(servers: Servers, ready: Callable[[], None]) -> None:
    app = _app(servers)
    ready()
    alone = ("--without-gossip", "--without-mingle", "--without-heartbeat")
    app.worker_main(["worker", "--loglevel=WARNING", f"--hostname=bench-{os.getpid()}", *alone, POOL])


@contextlib.contextmanager
def _watch(servers: Servers) -> Iterator[Watch]:
    with redis.Redis.from_url(servers.redis, decode_responses=True) as broker:
        seen = 0.0

        def busy() -> bool:
            nonlocal seen
            ended, jobs = broker.mget(_ENDED, _JOBS)
            seen = time.time()
            return int(ended or 0) < int(jobs)

        def span() -> Span:
            return Span(int(broker.get(_ENDED) or 0), float(broker.get(_FIRST) or 0), seen)

        yield Watch(busy, span, seconds=0.01)


@contextlib.contextmanager
def _sender(servers: Servers) -> Iterator[Callable[[int], float]]:
    with _app(servers) as app:

        def send(number: int) -> float:
            app.tasks["stamp"].delay(number)
            return time.time()

        yield send


QUEUE = Queue("Celery", _install, _enqueue, _work, _watch, _sender)

if __name__ == "__main__":
    harness.main("bench.peers.celery")
