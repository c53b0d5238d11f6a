"""What a worker's claims cost while a snapshot is held open."""

import os
import queue
import statistics
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import psycopg2

from bench.bulk import Bulk
from bench.noop_worker import TEARDOWN_MS
from bench.scale import CLAIM, WORKER_SLOTS, Figures, Size, count, serve, tell
from bench.scale.claims import claim_costs
from bench.stack import Stack
from outbox import db, jobs


class Feeder:
    """Threads that enqueue as many jobs as `feed` asks for, with the product's own `jobs.enqueue`."""

    def __init__(self, base: Bulk) -> None:
        found = base.run("SELECT id FROM resources WHERE status = 'active' ORDER BY id")
        self._todo = iter([uuid.UUID(id) for (id,) in found])
        self._requested: queue.Queue[Any] = queue.Queue()
        self._pool = ThreadPoolExecutor(4)
        self._runs = [self._pool.submit(self._run) for _ in range(4)]
        self.fed = 0

    def feed(self, count: int) -> None:
        """Ask for `count` more; returns at once."""
        for _ in range(count):
            self._requested.put(next(self._todo))
        self.fed += count

    def stop(self) -> None:
        """Wait until all jobs are enqueued; raises the error of a thread that failed."""
        for _ in self._runs:
            self._requested.put(None)
        for run in self._runs:
            run.result()
        self._pool.shutdown()

    def _run(self) -> None:
        while (resource_id := self._requested.get()) is not None:
            with db.statement() as session:
                assert jobs.enqueue(session, resource_id, actor="bench").won


def measure_churn(stack: Stack, base: Bulk, size: Size) -> Figures:
    """The cost of a worker's claims in a steady drain, before and while a snapshot is held open.

    Also the cost of a first claim, which begins at the front of the index: before the snapshot, at its end, and after
    it was closed and the tables were vacuumed.
    """
    serve(stack, 1)
    base.empty()
    base.grow(size.backlog + 3 * size.claimed, "deleting")
    base.grow(int(1.5 * size.churn_rate * size.churn_seconds) + 1_000, "active")
    base.settle()
    first_claims = {"before": claim_costs(base, size)}
    os.environ[TEARDOWN_MS] = str(1000 * WORKER_SLOTS / size.churn_rate)
    feeder = Feeder(base)
    with closing(psycopg2.connect(stack.dsn)) as holder:
        try:
            with stack.workers(1, WORKER_SLOTS):
                churning = _watch(base, feeder, size.churn_seconds / 10, intervals=6, held=False)
                holder.set_session(isolation_level="REPEATABLE READ")
                holder.cursor().execute("SELECT count(*) FROM breakers")
                churning += _watch(base, feeder, size.churn_seconds, intervals=60, held=True)
        finally:
            feeder.stop()
            del os.environ[TEARDOWN_MS]
        held = base.run("SELECT backend_xmin IS NOT NULL FROM pg_stat_activity WHERE pid = %(pid)s", pid=_pid(holder))
        assert held == [(True,)], "the snapshot was not held"
        base.run("ANALYZE outbox")
        dead = base.run("SELECT n_dead_tup FROM pg_stat_user_tables WHERE relname = 'outbox'")[0][0]
        done = sum(interval["jobs"] for interval in churning)
        assert dead > done / 2, f"{done} jobs left only {dead} dead rows: the snapshot did not keep them"
        first_claims["held"] = claim_costs(base, size)
    base.settle()
    first_claims["after"] = claim_costs(base, size)
    left = count(base, "pending")
    assert left > size.backlog / 2, f"only {left} jobs are pending: the backlog was not kept up"
    before = statistics.median(interval["ms"] for interval in churning if not interval["held"])
    at_last = statistics.median(interval["ms"] for interval in churning[-6:])
    tell(f"{done:,} jobs, {dead:,} dead rows: a first claim before", first_claims["before"])
    tell("a first claim under the snapshot", first_claims["held"])
    tell("a first claim after the snapshot", first_claims["after"])
    print(f"  the worker's claims: {before:.3f} ms before, {at_last:.3f} ms at the end: {at_last / before:.2f}")
    return {
        "seconds": size.churn_seconds,
        "jobs": done,
        "dead_rows": dead,
        "intervals": churning,
        "first_claims": first_claims,
        "last_to_before": at_last / before,
    }


def _pid(connection: "psycopg2.extensions.connection") -> int:
    return int(connection.get_backend_pid())


def _watch(base: Bulk, feeder: Feeder, seconds: float, *, intervals: int, held: bool) -> list[Figures]:
    """The claims of each interval. For every claimed job a new one is added, so that the backlog keeps its size."""
    found = []
    before, owed = base.statements(CLAIM), 0.0
    for _ in range(intervals):
        ends, start = time.monotonic() + seconds / intervals, before
        while time.monotonic() < ends:
            time.sleep(max(0.0, min(0.5, ends - time.monotonic())))
            now = base.statements(CLAIM)
            owed = now["rows"] - before["rows"]
            feeder.feed(int(owed))
            before = now
        claims = before["calls"] - start["calls"]
        assert claims > 0, f"no claim in {seconds / intervals:.0f} s"
        spent = sum(before[name] - start[name] for name in ("executing", "planning"))
        claimed = before["rows"] - start["rows"]
        found.append(
            {"held": held, "claims": claims, "jobs": claimed, "ms": spent / claims, "seconds": seconds / intervals}
        )
    return found
