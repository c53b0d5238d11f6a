"""What every peer's module shares: its command line, fresh servers, worker processes, and the two measures.

It runs with the peers' interpreter, so it imports nothing but the standard library, psycopg and `outbox.embedded`
(which itself needs nothing).
"""

import argparse
import contextlib
import functools
import importlib
import json
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import redis

from deprovisioner.up.servers import Child

# Longer than any drain we would wait for: one that does not end is an error, not a figure.
DRAIN_SECONDS = 60
START_SECONDS = 30
# One job that is waited for; most start within 0.05 s, DBOS and a fallback to polling take longer.
PICK_UP_SECONDS = 15
# The first jobs connect, prepare and wake what sleeps: not what an idle queue costs.
WARM_UP = 3
_SEED = 20
_STAMPS = "BENCH_PEERS_STAMPS"


@dataclass(frozen=True)
class Servers:
    """Where they are: a PostgreSQL URL of a database that may be filled, and a Redis URL whose database may be."""

    dsn: str
    redis: str


@dataclass(frozen=True)
class Span:
    """What the peer itself has recorded: jobs ended, first pick-up and last record of an end (Unix time, s)."""

    ended: int
    first: float
    last: float


@dataclass(frozen=True)
class Watch:
    """Asks every so many seconds whether jobs are left, and at the end for the span."""

    busy: Callable[[], bool]
    span: Callable[[], Span]
    seconds: float


@dataclass(frozen=True)
class Queue:
    """A peer as functions; each opens and closes what it needs.

    install(servers)         make its tables
    enqueue(servers, count)  that many no-op jobs, in bulk
    work(servers, ready)     work until killed; calls `ready()` once connected, before it takes the first job
    watch(servers)           a context with a Watch
    sender(servers)          a context with send(number) -> Unix time just after the commit of a job that calls `stamp`
    """

    name: str
    install: Callable[[Servers], None]
    enqueue: Callable[[Servers, int], None]
    work: Callable[[Servers, Callable[[], None]], None]
    watch: Callable[[Servers], AbstractContextManager[Watch]]
    sender: Callable[[Servers], AbstractContextManager[Callable[[int], float]]]


def main(module: str) -> None:
    """The command line of a module with a QUEUE: `drain` and `latency` print a line of JSON, and start `work`."""
    # By its own name: some peers look for their jobs in the module that made them, and `__main__` is none.
    queue: Queue = importlib.import_module(module).QUEUE
    parser = argparse.ArgumentParser(prog=f"python -m {module}")
    parser.add_argument("act", choices=("drain", "latency", "work"))
    parser.add_argument("--dsn", required=True, help="a superuser's; a database is made there and dropped")
    parser.add_argument("--redis", required=True, help="its database 15 is emptied")
    parser.add_argument("--jobs", type=int, default=5000, help="drain: how many")
    parser.add_argument("--processes", type=int, default=2, help="drain: worker processes")
    parser.add_argument("--count", type=int, default=60, help="latency: how many are measured")
    parser.add_argument("--ready", type=Path, help="work: a file to make when ready")
    asked = parser.parse_args()
    servers = Servers(asked.dsn, asked.redis)
    if asked.act == "work":
        queue.work(servers, functools.partial(_gate, asked.ready))
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # with its workers, and what it made
    with _fresh(servers, f"peer_{module.rpartition('.')[2]}") as own:
        queue.install(own)
        if asked.act == "drain":
            print(json.dumps({"rate": _drain(queue, module, own, asked.jobs, asked.processes)}))
        else:
            print(json.dumps(_latency(queue, module, own, asked.count)))


def stamp(number: int) -> None:
    """Note that this job's function has begun: its first line."""
    now = time.time()
    os.write(_stamps(), f"{number} {now!r}\n".encode())


@contextlib.contextmanager
def tables(servers: Servers, *, busy: str, span: str, seconds: float = 0.05) -> Iterator[Watch]:
    """A Watch on the peer's own tables: `busy` selects a boolean, `span` ended, first and last.

    Where the tables hold no time of the record, last is NULL, and the moment we saw it is taken: look often there.
    """
    with psycopg.connect(servers.dsn, autocommit=True) as connection:
        seen = 0.0

        def look() -> bool:
            nonlocal seen
            left = bool(connection.execute(busy).fetchone()[0])
            seen = time.time()
            return left

        def measure() -> Span:
            ended, first, last = connection.execute(span).fetchone()
            return Span(ended, float(first or 0), seen if last is None else float(last))

        yield Watch(look, measure, seconds)


def _drain(queue: Queue, module: str, servers: Servers, jobs: int, processes: int) -> float:
    """Jobs a second, from the first pick-up to the last recorded end."""
    queue.enqueue(servers, jobs)
    with psycopg.connect(servers.dsn, autocommit=True) as connection:
        connection.execute("VACUUM ANALYZE")
    with queue.watch(servers) as watch, _workers(module, servers, processes) as workers:
        deadline = time.monotonic() + DRAIN_SECONDS
        while watch.busy():
            _all_alive(workers)
            if time.monotonic() > deadline:
                raise TimeoutError(f"{queue.name}: jobs are left after {DRAIN_SECONDS} s; {watch.span()}")
            time.sleep(watch.seconds)
        span = watch.span()
    if span.ended != jobs or span.last <= span.first:
        raise RuntimeError(f"{queue.name}: {jobs} jobs were enqueued, and its records say {span}")
    return jobs / (span.last - span.first)


def _latency(queue: Queue, module: str, servers: Servers, count: int) -> dict[str, float]:
    """Milliseconds from the enqueue's commit to the function's first line, one job at a time."""
    pauses = random.Random(_SEED)
    sent: list[float] = []
    with _workers(module, servers, 1) as workers, queue.sender(servers) as send:
        for number in range(WARM_UP + count):
            time.sleep(pauses.uniform(0.02, 0.08))  # not in step with anything that beats
            sent.append(send(number))
            _wait_begun(queue, workers, number)
        begun = _begun()
    if sorted(begun) != list(range(WARM_UP + count)):
        raise RuntimeError(f"{queue.name}: {WARM_UP + count} jobs were enqueued, {len(begun)} began")
    waits = sorted(1000 * (begun[number] - sent[number]) for number in range(WARM_UP, WARM_UP + count))
    return {"p50": statistics.median(waits), "p99": waits[int(0.99 * (count - 1))]}


def _wait_begun(queue: Queue, workers: list[Child], number: int) -> None:
    deadline = time.monotonic() + PICK_UP_SECONDS
    while number not in _begun():
        _all_alive(workers)
        if time.monotonic() > deadline:
            raise TimeoutError(f"{queue.name}: job {number} has not begun after {PICK_UP_SECONDS} s")
        time.sleep(0.005)


def _begun() -> dict[int, float]:
    lines = Path(os.environ[_STAMPS]).read_text().splitlines()
    pairs = [line.split() for line in lines]
    if len({number for number, _ in pairs}) != len(pairs):
        raise RuntimeError("a job began twice")
    return {int(number): float(at) for number, at in pairs}


@functools.cache
def _stamps() -> int:
    return os.open(os.environ[_STAMPS], os.O_WRONLY | os.O_APPEND)


# -- servers and processes -------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _fresh(servers: Servers, database: str) -> Iterator[Servers]:
    """A database made for this call, and one of Redis's emptied, so that repetitions are alike."""
    own = replace(
        servers,
        dsn=urlsplit(servers.dsn)._replace(path=f"/{database}").geturl(),
        redis=urlsplit(servers.redis)._replace(path="/15").geturl(),
    )
    drop = f"DROP DATABASE IF EXISTS {database} WITH (FORCE)"
    with psycopg.connect(servers.dsn, autocommit=True) as admin, redis.Redis.from_url(own.redis) as broker:
        admin.execute(drop)
        broker.flushdb()
        admin.execute(f"CREATE DATABASE {database}")
        try:
            yield own
        finally:
            admin.execute(drop)
            broker.flushdb()


@contextlib.contextmanager
def _workers(module: str, servers: Servers, processes: int) -> Iterator[list[Child]]:
    """Worker processes that all begin at the same moment: a start takes longer than some drains."""
    with tempfile.TemporaryDirectory(prefix="bench-peers-") as folder, ExitStack() as running:
        home = Path(folder)
        stamps = home / "stamps"
        stamps.touch()
        os.environ[_STAMPS] = str(stamps)
        argv = [sys.executable, "-m", module, "work", "--dsn", servers.dsn, "--redis", servers.redis, "--ready"]
        files = [home / f"ready-{number}" for number in range(processes)]
        workers = [
            # Killed at the end: what counts has been recorded by then, and some take seconds to stop.
            Child(f"worker {file.name}", [*argv, file], file.with_suffix(".log"), stop_signal=signal.SIGKILL)
            for file in files
        ]
        for worker in workers:
            running.callback(worker.stop)
            worker.spawn()
        for worker, file in zip(workers, files, strict=True):
            worker.wait_until(file.exists, START_SECONDS)
        _go(home).touch()
        yield workers


def _gate(ready: Path) -> None:
    """In a worker: say that we are ready, and wait until all are."""
    ready.touch()
    while not _go(ready.parent).exists():
        time.sleep(0.001)


def _go(folder: Path) -> Path:
    return folder / "go"


def _all_alive(workers: list[Child]) -> None:
    for worker in workers:
        if not worker.alive():
            raise RuntimeError(f"{worker.name} ended by itself; its log says:\n{worker.tail(20)}")
