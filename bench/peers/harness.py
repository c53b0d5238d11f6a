"""What the peers' modules share: the command line, fresh databases, worker processes, and the two measures.

It runs with the peers' interpreter. So it imports only the standard library, psycopg, redis, and
`deprovisioner.up.servers`, which needs no third-party package.
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

# Longer than any drain takes: a drain that does not end is an error, not a figure.
DRAIN_SECONDS = 60
START_SECONDS = 30
# How long one job may take to start. Most start within 0.05 s; DBOS, and a fallback to polling, take longer.
PICK_UP_SECONDS = 15
# The first jobs open connections and prepare statements: they are left out of the figures.
WARM_UP = 3
_SEED = 20
_STAMPS = "BENCH_PEERS_STAMPS"


@dataclass(frozen=True)
class Servers:
    """The servers of a peer: the URLs of a PostgreSQL database and of a Redis database that it may fill."""

    dsn: str
    redis: str


@dataclass(frozen=True)
class Span:
    """The peer's own records: jobs ended, the first pick-up and the last record of an end (Unix time, s)."""

    ended: int
    first: float
    last: float


@dataclass(frozen=True)
class Watch:
    """How to follow a drain: `busy` is polled every `seconds` until no job is left; then `span` is read."""

    busy: Callable[[], bool]
    span: Callable[[], Span]
    seconds: float


@dataclass(frozen=True)
class Queue:
    """A peer as functions; each opens and closes its own connections.

    install(servers)         create its tables
    enqueue(servers, count)  enqueue `count` no-op jobs in bulk
    work(servers, ready)     work until killed; calls `ready()` once connected, before it takes the first job
    watch(servers)           a context with a Watch
    sender(servers)          a context with send(number), which enqueues a job that calls `stamp` and returns the Unix
                             time just after its commit
    """

    name: str
    install: Callable[[Servers], None]
    enqueue: Callable[[Servers, int], None]
    work: Callable[[Servers, Callable[[], None]], None]
    watch: Callable[[Servers], AbstractContextManager[Watch]]
    sender: Callable[[Servers], AbstractContextManager[Callable[[int], float]]]


def main(module: str) -> None:
    """The command line of a peer's module: `drain` and `latency` start `work` processes and print a line of JSON."""
    # Imported by its name: some peers search for their jobs in the module that defines them, not in `__main__`.
    queue: Queue = importlib.import_module(module).QUEUE
    parser = argparse.ArgumentParser(prog=f"python -m {module}")
    parser.add_argument("act", choices=("drain", "latency", "work"))
    parser.add_argument("--dsn", required=True, help="a superuser's URL; a database is created there and dropped")
    parser.add_argument("--redis", required=True, help="a server whose database 15 is emptied")
    parser.add_argument("--jobs", type=int, default=5000, help="drain: how many jobs")
    parser.add_argument("--processes", type=int, default=2, help="drain: worker processes")
    parser.add_argument("--count", type=int, default=60, help="latency: how many jobs are measured")
    parser.add_argument("--ready", type=Path, help="work: a file to create when ready")
    options = parser.parse_args()
    servers = Servers(options.dsn, options.redis)
    if options.act == "work":
        queue.work(servers, functools.partial(_gate, options.ready))
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # so that its workers end and its database is dropped
    with _fresh(servers, f"peer_{module.rpartition('.')[2]}") as own:
        queue.install(own)
        if options.act == "drain":
            print(json.dumps({"rate": _drain(queue, module, own, options.jobs, options.processes)}))
        else:
            print(json.dumps(_latency(queue, module, own, options.count)))


def stamp(number: int) -> None:
    """Record that this job's function has begun; a job calls it in its first line."""
    now = time.time()
    os.write(_stamps(), f"{number} {now!r}\n".encode())


@contextlib.contextmanager
def tables(servers: Servers, *, busy: str, span: str, seconds: float = 0.05) -> Iterator[Watch]:
    """A Watch on the peer's own tables: `busy` selects a boolean, `span` selects ended, first and last.

    Where the tables do not have the time of the record, `last` is NULL, and the time of the last poll is used instead:
    poll often there.
    """
    with psycopg.connect(servers.dsn, autocommit=True) as connection:
        seen = 0.0

        def poll() -> bool:
            nonlocal seen
            left = bool(connection.execute(busy).fetchone()[0])
            seen = time.time()
            return left

        def measure() -> Span:
            ended, first, last = connection.execute(span).fetchone()
            return Span(ended, float(first or 0), seen if last is None else float(last))

        yield Watch(poll, measure, seconds)


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
                raise TimeoutError(f"{queue.name}: jobs are left after {DRAIN_SECONDS} s: {watch.span()}")
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
            time.sleep(pauses.uniform(0.02, 0.08))  # random, so that it is not in step with a poll or a heartbeat
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
    """Create a database for this call and empty one of Redis's, so that every repetition begins with empty ones."""
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
    """Run worker processes that begin to work at the same moment, since a start takes longer than some drains."""
    with tempfile.TemporaryDirectory(prefix="bench-peers-") as folder, ExitStack() as running:
        home = Path(folder)
        stamps = home / "stamps"
        stamps.touch()
        os.environ[_STAMPS] = str(stamps)
        argv = [sys.executable, "-m", module, "work", "--dsn", servers.dsn, "--redis", servers.redis, "--ready"]
        files = [home / f"ready-{number}" for number in range(processes)]
        workers = [
            # Killed at the end: all records are written by then, and some peers take seconds to stop.
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
    """In a worker: report that it is ready, and wait until all workers are."""
    ready.touch()
    while not _go(ready.parent).exists():
        time.sleep(0.001)


def _go(folder: Path) -> Path:
    return folder / "go"


def _all_alive(workers: list[Child]) -> None:
    for worker in workers:
        if not worker.alive():
            raise RuntimeError(f"{worker.name} ended by itself; its log says:\n{worker.tail(20)}")
