"""`python -m bench.costs`: what one job costs, counted: round trips, commits, WAL, row versions, and CPU.

There are two passes. In the first the server logs each statement, and has autovacuum and full-page images off, since
these would change the counts. In the second the server runs as usual, and the CPU time is read: logging costs CPU.
Each step runs one job at a time through the product's own functions. The drain is a worker process whose teardowns do
nothing.
"""

import argparse
import json
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import psycopg2
from psycopg2.extras import RealDictCursor
from sqlalchemy import text

from bench.measures import DRAIN_TIMEOUT_SECONDS, seed, server_version
from bench.stack import BACKEND, TENANT, Stack, stack
from outbox import db, doorbell, holds, jobs
from outbox.rows import Claim
from outbox.settings import Brake
from outbox.states import HoldScope
from tests.support.witness import PgServer, commits

WORKER = "bench"
SLOTS = 8
# The first jobs of each step open connections, prepare statements and make plans: they are not counted.
WARM_UP = 3
# So wide that it is never hit: the cost of checking it is counted.
BRAKE = Brake("backend", BACKEND, limit=1_000_000, window=timedelta(minutes=10))
COUNTING = {"log_statement": "all", "autovacuum": "off", "full_page_writes": "off"}
Figures = dict[str, float]
Costs = dict[str, Figures]


@dataclass(frozen=True)
class Reading:
    """The server's counters at one moment."""

    log: int  # bytes
    wal: int  # bytes
    figures: Figures


class Meter:
    """Reads the server's own counters, log and CPU time, in sessions whose statements are left out of the counts."""

    def __init__(self, stack: Stack) -> None:
        self._server = PgServer(stack.dsn, stack.home / "log" / "control.log")
        self._postmaster = psutil.Process(int((stack.home / "control" / "postmaster.pid").read_text().split()[0]))
        self._tables = psycopg2.connect(stack.dsn)
        self._aside = psycopg2.connect(stack.dsn, dbname="template1")  # its commits count for another database
        self._tables.autocommit = self._aside.autocommit = True
        self.counting = False

    def close(self) -> None:
        """Close the meter's own sessions."""
        self._tables.close()
        self._aside.close()

    def count(self, on: bool) -> None:
        """Switch the settings of the counting pass on or off, for every session from its next statement on."""
        self.counting = on
        for name, value in COUNTING.items():
            self._ask(f"ALTER SYSTEM SET {name} = '{value}'" if on else f"ALTER SYSTEM RESET {name}")
        self._ask("SELECT pg_reload_conf()")
        for name, value in COUNTING.items():
            _until(lambda n=name, v=value: (self._ask("SELECT current_setting(%s)", n)[0][0] == v) == on)

    def cost(
        self, act: Callable[[], None], count: int, cpu_seconds: Callable[[], float], *, but: int | None = None
    ) -> Figures:
        """The cost of `act` per job, over `count` jobs; `cpu_seconds` reads the CPU time of the product's processes.

        Round trips of the session with the pid `but` are left out.
        """
        idle, before, began = self._read(), self._read(), cpu_seconds()
        act()
        spent = cpu_seconds() - began
        after = self._read()
        said = self._server.said(before.log, "postgres", but={self._tables.info.backend_pid, but})
        said = [one for one in said if one.sql != _FLUSH]
        # Two readings with nothing in between show what a reading itself costs: it is subtracted.
        figures = {
            name: after.figures[name] - before.figures[name] - (before.figures[name] - idle.figures[name])
            for name in after.figures
        }
        figures |= {"WAL bytes": after.wal - before.wal, "our CPU ms": 1000 * spent}
        figures |= {"round trips": len(said), "commits in the log": commits(said)}
        return {name: value / count for name, value in figures.items()}

    def _read(self) -> Reading:
        with db.statement() as session:
            session.execute(text(_FLUSH))
        with self._tables.cursor(cursor_factory=RealDictCursor) as cursor:
            cursor.execute(_FLUSH)
            cursor.execute(_TABLES)
            figures = {name: float(value) for name, value in cursor.fetchone().items()}
        ((wal, done),) = self._ask(_SERVER)
        figures |= {"commits": float(done), "PostgreSQL CPU ms": 1000 * self._cpu()}
        return Reading(self._server.log.stat().st_size, int(wal), figures)

    def _cpu(self) -> float:
        """The CPU seconds of the server: the postmaster, the sessions that have ended, and those that are open."""
        own = self._postmaster.cpu_times()
        return own.user + own.system + own.children_user + own.children_system + _cpu_of(self._postmaster.children())

    def _ask(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        with self._aside.cursor() as cursor:
            cursor.execute(statement, values or None)
            return cursor.fetchall() if cursor.description else []


# It reads a table, since a session reports its commits only when it has used a table since its last report.
_FLUSH = "SELECT pg_stat_force_next_flush() FROM alembic_version"
_TABLES = """
    SELECT sum(n_tup_ins)::bigint AS "rows inserted", sum(n_tup_upd)::bigint AS "rows updated",
           sum(n_tup_hot_upd)::bigint AS "of them HOT", sum(n_dead_tup)::bigint AS "dead tuples"
      FROM pg_stat_user_tables"""
_SERVER = """
    SELECT pg_current_wal_insert_lsn() - '0/0',
           (SELECT xact_commit FROM pg_stat_database WHERE datname = 'postgres')"""


def costs(stack: Stack, count: int) -> Costs:
    """The cost of one job for each step, measured over `count` jobs; AssertionError unless all of them were done."""
    meter = Meter(stack)
    try:
        meter.count(True)
        counted = _steps(stack, meter, count)
        meter.count(False)
        run = _steps(stack, meter, count)
    finally:
        meter.close()
    for step, figures in counted.items():
        figures |= {name: value for name, value in run[step].items() if "CPU" in name}
    return counted


def _steps(stack: Stack, meter: Meter, count: int) -> Costs:
    return _one_by_one(meter, count) | _under_a_brake(meter, count) | {"drain": _drain(stack, meter, count)}


def _one_by_one(meter: Meter, count: int) -> Costs:
    ids = seed(WARM_UP + count)
    claims: list[Claim] = []

    def delete(which: slice) -> None:
        for id in ids[which]:
            with db.statement() as session:
                assert jobs.enqueue(session, id, actor=WORKER, tenant=TENANT).won

    def claim(which: slice) -> None:
        for _ in ids[which]:
            with db.statement() as session:
                claims.extend(jobs.claim(session, {BACKEND: 1}, slots=1, worker=WORKER))

    def start(which: slice) -> None:
        for each in claims[which]:
            with db.statement() as session:
                jobs.start(session, each, worker=WORKER, seen={})

    def complete(which: slice) -> None:
        for each in claims[which]:
            with db.statement() as session:
                jobs.complete(session, each, worker=WORKER, seen={})

    acts = {"DELETE": delete, "claim": claim, "start": start, "complete": complete}
    found = {step: _step(meter, act, count) for step, act in acts.items()}
    _all_done(WARM_UP + count)
    return found | {"one by one": {name: sum(step[name] for step in found.values()) for name in found["DELETE"]}}


def _under_a_brake(meter: Meter, count: int) -> Costs:
    seed(WARM_UP + count, enqueued=True)
    with db.statement() as session:
        claims = jobs.claim(session, {BACKEND: WARM_UP + count}, slots=WARM_UP + count, worker=WORKER)

    def start(which: slice) -> None:
        for each in claims[which]:
            with db.transaction() as session:
                jobs.start(session, each, worker=WORKER, seen={}, under=[BRAKE])

    found = {"start, under a brake": _step(meter, start, count)}
    assert _count("SELECT count(*) FROM events WHERE event = 'started'") == WARM_UP + count
    return found


def _step(meter: Meter, act: Callable[[slice], None], count: int) -> Figures:
    act(slice(WARM_UP))
    figures = meter.cost(lambda: act(slice(WARM_UP, None)), count, time.process_time)
    if meter.counting:
        assert figures["round trips"] >= 1, f"the server logged no statement: {figures}"
        assert figures["commits"] == figures["commits in the log"], (
            f"the server's counter of commits and its log differ: {figures}"
        )
    return figures


def _drain(stack: Stack, meter: Meter, count: int) -> Figures:
    """The cost of a job in a drain by one worker process, with the worker's heartbeats and sweeps.

    A hold keeps the jobs back until the worker is up.
    """
    seed(count, enqueued=True)
    with db.statement() as session:
        hold = holds.engage(session, HoldScope.GLOBAL, None, actor=WORKER, reason="until the worker is up")
        here = session.execute(text("SELECT pg_backend_pid()")).scalar_one()
    with ExitStack() as running:
        running.enter_context(stack.workers(1, SLOTS))
        workers = [p for p in psutil.Process().children(recursive=True) if "bench.noop_worker" in p.cmdline()]
        assert workers
        spent: list[float] = []

        def act() -> None:
            with db.statement() as session:
                holds.release(session, hold.id, actor=WORKER, reason="the worker is up")
            doorbell.ring_now()
            _until(lambda: _count("SELECT count(*) FROM outbox WHERE state IN ('pending', 'running')") == 0)
            spent.append(_cpu_of(workers))
            running.close()  # a session's counters are complete only when it has ended

        figures = meter.cost(act, count, lambda: spent[0] if spent else _cpu_of(workers), but=here)
    _all_done(count)
    # The server's counter includes the commits of the worker's start, which it reported only now; the log has none.
    return figures | {"commits": figures["commits in the log"]}


def _all_done(count: int) -> None:
    for event in ("claimed", "started", "completed"):
        done = _count(f"SELECT count(DISTINCT job_id) FROM events WHERE event = '{event}'")
        assert done == _count(f"SELECT count(*) FROM events WHERE event = '{event}'") == count, (event, done)
    assert _count("SELECT count(*) FROM resources WHERE status = 'deleted'") == count


def _count(statement: str) -> int:
    with db.statement() as session:
        return int(session.execute(text(statement)).scalar_one())


def _cpu_of(processes: list[psutil.Process]) -> float:
    spent = 0.0
    for process in processes:
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:  # a session that just ended: its time is now in the postmaster's
            continue
        spent += times.user + times.system
    return spent


def _until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DRAIN_TIMEOUT_SECONDS
    while not happened():
        if time.monotonic() > deadline:
            raise TimeoutError(f"a drain or a change of settings took longer than {DRAIN_TIMEOUT_SECONDS} s")
        time.sleep(0.05)


COLUMNS = (
    *("round trips", "commits", "WAL bytes", "rows inserted", "rows updated", "of them HOT", "dead tuples"),
    *("PostgreSQL CPU ms", "our CPU ms"),
)


def main() -> None:
    """Count and print; stop everything that was started."""
    parser = argparse.ArgumentParser(prog="python -m bench.costs", description=__doc__)
    parser.add_argument("--jobs", type=int, default=500, metavar="N", help="how many jobs in each step (default 500)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to FILE")
    options = parser.parse_args()
    with stack() as running:
        version = server_version()
        found = costs(running, options.jobs)
    print(f"{version}; the cost of one job, over {options.jobs} jobs\n")
    width = max(map(len, found))
    print(" " * width, *COLUMNS, sep="  ")
    for step, figures in found.items():
        cells = (f"{figures[name]:>{len(name)}.{0 if 'bytes' in name else 2}f}" for name in COLUMNS)
        print(f"{step:<{width}}", *cells, sep="  ")
    if options.json:
        options.json.write_text(
            json.dumps({"postgresql": version, "jobs": options.jobs, "costs": found}, indent=2) + "\n"
        )


if __name__ == "__main__":
    main()
