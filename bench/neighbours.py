"""What a neighbour on the same server feels while a hundred objects are torn down: `python -m bench.neighbours`.

Another customer commits all the while (PostgreSQL), or sets a key (Redis), from a process of its own, one request after
the other. Its 99th percentile is taken idle, beside a bare loop of the same drops one at a time, and beside the product
with the defaults of a backend. All three are of one run, and only their ratio counts.
"""

import argparse
import json
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg2
import redis

from bench import measures, real
from bench.stack import PRODUCT, Stack, stack
from outbox.rows import Json
from worker.backends import Backend
from worker.backends.postgres import Postgres
from worker.backends.redis import Redis

# As a backend without `concurrency` and a worker without settings have them.
CONCURRENCY, SLOTS = 4, 8
IDLE_SECONDS = 4
PAUSE_SECONDS = 0.001  # between two requests of the neighbour


def main() -> None:
    """Measure, print a line a figure, and write them all as JSON where asked."""
    parser = argparse.ArgumentParser(prog="python -m bench.neighbours", description=__doc__)
    parser.add_argument("--count", type=int, default=100, metavar="N", help="how many objects are torn down")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="how many rounds; the median counts")
    parser.add_argument("--kind", choices=("postgres", "redis"), help="only this kind")
    parser.add_argument("--pace", metavar="PACE", help="the backend's `pace`")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every round's figures to FILE")
    options = parser.parse_args()
    found: dict[str, list[dict[str, float]]] = {}
    with stack() as running, running.real_backends():
        Redis(running.redis_main_url).plan(uuid.uuid4(), uuid.uuid4())  # the first names the server
        for kind in [options.kind] if options.kind else list(_KINDS):
            for number in range(options.rounds):
                round_ = _KINDS[kind](running, options.count, options.pace)
                found.setdefault(kind, []).append(round_)
                words = ", ".join(f"{name} {value:.2f}" for name, value in round_.items())
                print(f"{kind}, round {number + 1}: {words}", flush=True)
    for kind, rounds in found.items():
        ratio = measures.statistics.median(one["product p99 ms"] / one["loop p99 ms"] for one in rounds)
        print(f"{kind}: beside the product the neighbour's p99 is {ratio:.2f} times that beside the bare loop")
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


def _postgres(running: Stack, count: int, pace: str | None) -> dict[str, float]:
    def bare(made: list[Json]) -> None:
        with closing(psycopg2.connect(running.pg_main_admin_dsn)) as session:
            session.autocommit = True
            with session.cursor() as cursor:
                for one in made:
                    cursor.execute(f'DROP DATABASE "{one["database"]}"')
                    cursor.execute(f'DROP ROLE "{one["role"]}"')

    backend = Postgres(running.pg_main_dsn)
    return _three(running, "postgres", "pg-main", running.pg_main_dsn, backend, count, bare, pace)


def _redis(running: Stack, count: int, pace: str | None) -> dict[str, float]:
    def bare(made: list[Json]) -> None:
        with redis.Redis.from_url(running.redis_main_admin_url) as server:
            for one in made:
                server.acl_deluser(one["user"])
                found = list(server.scan_iter(match=f"{one['prefix']}*", count=1000))
                for first in range(0, len(found), 100):
                    server.unlink(*found[first : first + 100])
                server.execute_command("ACL", "SAVE")

    backend = Redis(running.redis_main_url)
    return _three(running, "redis", "redis-main", running.redis_main_url, backend, count, bare, pace)


_KINDS: dict[str, Callable[[Stack, int, str | None], dict[str, float]]] = {"postgres": _postgres, "redis": _redis}


def _three(
    running: Stack,
    kind: str,
    name: str,
    dsn: str,
    backend: Backend,
    count: int,
    bare: Callable[[list[Json]], None],
    pace: str | None,
) -> dict[str, float]:
    """The neighbour's 99th percentile idle, beside the bare loop and beside the product; and their seconds."""
    neighbour = running.pg_main_admin_dsn if kind == "postgres" else running.redis_main_admin_url
    figures = {}
    with _felt(kind, neighbour) as felt:
        time.sleep(IDLE_SECONDS)
    figures["idle p99 ms"] = measures.p99(felt())
    made = real._make_all(running, kind, backend, count)
    with _felt(kind, neighbour) as felt:
        began = time.perf_counter()
        bare(made)
        figures["loop s"] = time.perf_counter() - began
    figures["loop p99 ms"] = measures.p99(felt())
    made = real._make_all(running, kind, backend, count)
    path = running.backends(name, kind, dsn, CONCURRENCY)
    if pace:
        path.write_text(path.read_text() + f"pace = {pace}\n")
    measures.seed(0)
    measures.query(real._SEED, kind=kind, backend=name, manifests=json.dumps(made))
    measures.enqueue_all(count)
    with _felt(kind, neighbour) as felt, running.workers(1, SLOTS, argv=[*PRODUCT, "worker"], backends=path):
        measures.wait_drained()
    figures["product s"] = measures.drained_in(count)
    figures["product p99 ms"] = measures.p99(felt(*_while_it_worked()))
    return figures


def _while_it_worked() -> tuple[float, float]:
    """When the first teardown started and the last ended, in seconds since 1970."""
    row = measures.query(
        "SELECT min(extract(epoch FROM at)) FILTER (WHERE event = 'started')::float AS began,"
        " max(extract(epoch FROM at)) FILTER (WHERE event = 'completed')::float AS ended FROM events"
    )[0]
    return row.began, row.ended


@contextmanager
def _felt(kind: str, address: str) -> Iterator[Callable[..., list[float]]]:
    """A neighbour at work in the block; afterwards its requests' milliseconds, all or those that began in between."""
    command = [sys.executable, "-m", "bench.neighbours", "--neighbour", kind, address]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        answers: list[tuple[float, float]] = []

        def felt(began: float = 0, ended: float = float("inf")) -> list[float]:
            return [took for at, took in answers if began <= at <= ended]

        try:
            yield felt
        finally:
            out, _ = process.communicate("")
        answers += json.loads(out)


def _be_a_neighbour(kind: str, address: str) -> None:
    """Until stdin ends: one request after the other. Prints when each began, and its milliseconds."""
    ask: Callable[[], Any]
    if kind == "postgres":
        session = psycopg2.connect(address)
        session.autocommit = True
        cursor = session.cursor()
        cursor.execute("CREATE TABLE IF NOT EXISTS neighbour (n int)")

        def ask() -> None:
            cursor.execute("INSERT INTO neighbour VALUES (1)")
    else:
        server = redis.Redis.from_url(address)

        def ask() -> None:
            server.set("neighbour", 1)

    import threading

    over = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), over.set()), daemon=True).start()
    answers = []
    print("ready", flush=True)
    while not over.is_set():
        at, began = time.time(), time.perf_counter()
        ask()
        answers.append((at, 1000 * (time.perf_counter() - began)))
        time.sleep(PAUSE_SECONDS)
    print(json.dumps(answers))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--neighbour"]:
        _be_a_neighbour(*sys.argv[2:])
    else:
        main()
