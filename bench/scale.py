"""`make bench-scale`: what grows with the backlog, under a held snapshot, with tenants; and what one delete costs.

Costs of claims are the server's own: what pg_stat_statements counted for the product's `jobs.claim`, planning
included, without the commit's wait for the disk. Each measure fails unless its work was done.
"""

import argparse
import datetime as dt
import http.client
import json
import os
import platform
import queue
import random
import signal
import statistics
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import psycopg2

from bench.bulk import SETTINGS, Bulk, bulk
from bench.noop_worker import TEARDOWN_MS
from bench.stack import BACKEND, TENANT, Stack, stack
from outbox import db, jobs, settings, tokens

Figures = dict[str, Any]
# The product's claim, in pg_stat_statements.
CLAIM = "%served AS (%SKIP LOCKED%"
# How many jobs a claim takes: a busy worker's, one at a time, and an idle one's that finds a backlog.
SLOTS = (1, 32)
# The first claims of a connection plan, and read what nobody has read.
WARM_UP = 20
WORKER_SLOTS = 8
CLIENTS = 8
# Longer than any wait for work that goes on: a bench that hangs is a bug, not a figure.
DEADLINE_SECONDS = 300


@dataclass(frozen=True)
class Size:
    """How much of each; with the defaults all of it takes about half an hour on two idle cores."""

    pending: tuple[int, ...] = (10_000, 100_000, 1_000_000, 5_000_000)
    finished: int = 10_000_000  # beside the largest backlog
    samples: int = 200
    churn_seconds: int = 600
    churn_rate: int = 200  # jobs/s
    backlog: int = 10_000
    tenants: int = 1_000
    backends: int = 50
    memory: tuple[int, ...] = (1_000, 1_000_000)
    drained: int = 5_000
    deletes: int = 3_000

    @property
    def claimed(self) -> int:
        """How many jobs `claim_costs` takes away."""
        return (WARM_UP + self.samples) * sum(SLOTS)


# -- claims ----------------------------------------------------------------------------------------------------------


def claim_costs(base: Bulk, size: Size, *, backends: int = 1) -> Figures:
    """By jobs a claim: milliseconds in the server, the median and the 90th percentile of `size.samples` claims."""
    return {str(slots): _claim_cost(base, slots, size.samples, backends) for slots in SLOTS}


def _claim_cost(base: Bulk, slots: int, samples: int, backends: int) -> Figures:
    spent = []
    with db.statement() as session:
        for _ in range(WARM_UP + samples):
            before = base.statements(CLAIM)
            claims = jobs.claim(session, _rooms(backends, slots), slots=slots, worker="bench")
            after = base.statements(CLAIM)
            assert len(claims) == slots, f"{len(claims)} jobs claimed, not {slots}"
            assert after["calls"] == before["calls"] + 1, "somebody else claimed"
            base.finish([claim.id for claim in claims])
            spent.append({name: after[name] - before[name] for name in ("executing", "planning")})
    del spent[:WARM_UP]
    both = sorted(sum(one.values()) for one in spent)
    return {
        "ms": statistics.median(both),
        "p90": both[int(0.9 * (samples - 1))],
        "planning": statistics.median(one["planning"] for one in spent),
    }


def _rooms(backends: int, slots: int) -> dict[str, int]:
    """As a worker's hands ask: the backends in a new order each time, one hand kept for each other one."""
    names = random.sample(range(backends), backends)
    return {f"{BACKEND}-{name}": max(1, slots - (backends - 1)) for name in names}


def measure_claims(stack: Stack, base: Bulk, size: Size) -> Figures:
    """The cost of a claim at each backlog; the last one beside a history of finished jobs.

    Once without the images of whole pages, and once right after a checkpoint, when each page that is touched is logged
    as a whole: of a small table that is soon over, of a large one it lasts until the next checkpoint.
    """
    _serve(stack, 1)
    base.empty()
    rows = []
    for pending in size.pending:
        base.grow(size.finished if pending == size.pending[-1] else 0, "deleted")
        base.grow(pending + 2 * size.claimed - _count(base, "pending"), "deleting")
        base.settle()
        finished, row = _count(base, "succeeded"), {}
        for name, images in (("claim", False), ("after_checkpoint", True)):
            base.checkpoint(images=images)
            row[name] = claim_costs(base, size)
            _tell(f"{pending:,} pending, {finished:,} finished{', right after a checkpoint' * images}", row[name])
        left = _count(base, "pending")
        assert left == pending, f"{left} pending, not {pending}"
        rows.append({"pending": left, "finished": finished, "database_mb": base.megabytes()} | row)
    base.checkpoint(images=False)
    return {"rows": rows} | {
        f"last_to_first_{name}": {slots: rows[-1][name][slots]["ms"] / rows[0][name][slots]["ms"] for slots in costs}
        for name, costs in row.items()
    }


def measure_tenants(stack: Stack, base: Bulk, size: Size) -> Figures:
    """The cost of a claim by a worker that serves many backends of many tenants, against one of one."""
    found: Figures = {}
    for name, tenants, backends in (("one", 1, 1), ("many", size.tenants, size.backends)):
        _serve(stack, backends)
        base.empty()
        base.grow(10 * size.tenants + size.claimed, "deleting", tenants=tenants, backends=backends)
        base.settle()
        served = base.run("SELECT count(DISTINCT tenant), count(DISTINCT backend) FROM resources")[0]
        assert served == (tenants, backends), served
        costs = claim_costs(base, size, backends=backends)
        found[name] = {"tenants": tenants, "backends": backends, "claim": costs}
        _tell(f"{tenants:,} tenants, {backends} backends", costs)
    many, one = found["many"]["claim"], found["one"]["claim"]
    return found | {"many_to_one": {slots: many[slots]["ms"] / one[slots]["ms"] for slots in one}}


# -- a held snapshot -------------------------------------------------------------------------------------------------


class Feeder:
    """Threads that DELETE, through the product's own function, as many as they are told."""

    def __init__(self, base: Bulk) -> None:
        found = base.run("SELECT id FROM resources WHERE status = 'active' ORDER BY id")
        self._todo = iter([uuid.UUID(id) for (id,) in found])
        self._told: queue.Queue[Any] = queue.Queue()
        self._pool = ThreadPoolExecutor(4)
        self._runs = [self._pool.submit(self._run) for _ in range(4)]
        self.fed = 0

    def feed(self, count: int) -> None:
        """That many more, soon."""
        for _ in range(count):
            self._told.put(next(self._todo))
        self.fed += count

    def stop(self) -> None:
        """Return when all are enqueued; raise what went wrong."""
        for _ in self._runs:
            self._told.put(None)
        for run in self._runs:
            run.result()
        self._pool.shutdown()

    def _run(self) -> None:
        while (resource_id := self._told.get()) is not None:
            with db.statement() as session:
                assert jobs.enqueue(session, resource_id, actor="bench").won


def measure_churn(stack: Stack, base: Bulk, size: Size) -> Figures:
    """What a real worker's claims cost while it drains what is fed to it, before and while a snapshot is held open.

    Beside it a claim that knows nothing of the claims before it, as a worker's first: before, at the end, and after
    the snapshot was given up and the tables were vacuumed.
    """
    _serve(stack, 1)
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
        assert dead > done / 2, f"{done} jobs left {dead} dead rows: no snapshot held them"
        first_claims["held"] = claim_costs(base, size)
    base.settle()
    first_claims["after"] = claim_costs(base, size)
    left = _count(base, "pending")
    assert left > size.backlog / 2, f"only {left} pending: this was no backlog"
    before = statistics.median(interval["ms"] for interval in churning if not interval["held"])
    at_last = statistics.median(interval["ms"] for interval in churning[-6:])
    _tell(f"{done:,} jobs, {dead:,} dead rows: a first claim before", first_claims["before"])
    _tell("a first claim under the snapshot", first_claims["held"])
    _tell("a first claim after it", first_claims["after"])
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
    """The claims of each interval; what was claimed is fed again, so that the backlog stays as it is."""
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


# -- memory ----------------------------------------------------------------------------------------------------------


def measure_memory(stack: Stack, base: Bulk, size: Size) -> Figures:
    """A worker's resident memory when it has drained as many jobs of a small backlog and of a large one."""
    _serve(stack, 1)
    rows = []
    for pending in size.memory:
        base.empty()
        base.grow(pending + size.drained, "deleting")
        base.settle()
        claimed = base.statements(CLAIM)["rows"]
        with stack.workers(1, WORKER_SLOTS):
            _until(lambda at=claimed: base.statements(CLAIM)["rows"] >= at + size.drained)
            (worker,) = _ours("bench.noop_worker")
            resident = worker.memory_info().rss
            done, left = _count(base, "succeeded"), _count(base, "pending")
        assert done >= size.drained - WORKER_SLOTS, f"only {done} were drained"
        assert left >= pending / 2, f"only {left} of {pending} are pending: the backlog was not there"
        rows.append({"pending": pending, "drained": done, "rss_mb": resident / 2**20})
        print(f"  {pending:,} pending, {done:,} drained: {resident / 2**20:.1f} MB resident", flush=True)
    return {"rows": rows, "last_to_first": rows[-1]["rss_mb"] / rows[0]["rss_mb"]}


# -- what one delete costs -------------------------------------------------------------------------------------------


def measure_costs(stack: Stack, base: Bulk, size: Size) -> Figures:
    """Processor time by part, statements and write-ahead log of one delete, from the request to `succeeded`."""
    _serve(stack, 1)
    base.empty()
    base.grow(size.deletes + CLIENTS * WARM_UP, "active")
    base.settle()
    ids = [id for (id,) in base.run("SELECT id FROM resources ORDER BY random()")]
    with db.statement() as session:
        _, token = tokens.create(session, role="tenant", tenant=f"{TENANT}-0", name="scale")
    with stack.api(), stack.workers(1, WORKER_SLOTS):
        _delete(stack, token, ids[size.deletes :])
        _until(lambda: _count(base, "succeeded") == len(ids) - size.deletes)
        before = _spent(base)
        _delete(stack, token, ids[: size.deletes])
        _until(lambda: _count(base, "succeeded") == len(ids))
        after = _spent(base)
    cost = {name: (after[name] - before[name]) / size.deletes for name in before}
    print("  " + ", ".join(f"{name} {value:.2f}" for name, value in cost.items()) + " a delete", flush=True)
    return {"deletes": size.deletes, "a_delete": cost}


def _spent(base: Bulk) -> dict[str, float]:
    return {
        "api_cpu_ms": _cpu_ms("deprovisioner.cli"),
        "worker_cpu_ms": _cpu_ms("bench.noop_worker"),
        "postgresql_cpu_ms": _cpu_ms("/postgres"),
        "statements": base.statements()["calls"],
        "wal_bytes": float(base.run("SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn")[0][0]),
    }


def _delete(stack: Stack, token: str, ids: list[Any]) -> None:
    """DELETE each over HTTP, by several clients at once; each must be the first."""

    def run(share: list[Any]) -> None:
        with closing(http.client.HTTPConnection("127.0.0.1", stack.api_port, timeout=30)) as api:
            for resource_id in share:
                api.request("DELETE", f"/v1/resources/{resource_id}", headers={"Authorization": f"Bearer {token}"})
                answer = api.getresponse()
                body = answer.read()
                assert answer.status == 202, body

    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(run, [ids[number::CLIENTS] for number in range(CLIENTS)]))


def _ours(word: str) -> list[psutil.Process]:
    """Our own children whose command line has the word."""
    found = [child for child in psutil.Process().children() if word in " ".join(child.cmdline())]
    assert found, f"no process {word}"
    return found


def _cpu_ms(word: str) -> float:
    """What these processes used so far, and their children, those that have ended too."""
    spent = 0.0
    for parent in _ours(word):
        for process in (parent, *parent.children(recursive=True)):
            try:
                times = process.cpu_times()
            except psutil.NoSuchProcess:  # its parent has its times by now, or soon
                continue
            spent += times.user + times.system + times.children_user + times.children_system
    return 1000 * spent


# -- the run ---------------------------------------------------------------------------------------------------------

PARTS = {
    "costs": measure_costs,
    "memory": measure_memory,
    "tenants": measure_tenants,
    "claims": measure_claims,
    "churn": measure_churn,
}


def _serve(stack: Stack, backends: int) -> None:
    """From here on the product is configured with so many backends."""
    tables = [f'[backends.{BACKEND}-{n}]\nkind = "noop"\ndsn = "none"\nconcurrency = 1000\n' for n in range(backends)]
    (stack.home / "backends.toml").write_text("\n".join(tables))
    settings.backends.cache_clear()


def _count(base: Bulk, state: str) -> int:
    return int(base.run("SELECT count(*) FROM outbox WHERE state = %(state)s", state=state)[0][0])


def _until(reached: Any) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not reached():
        assert time.monotonic() < deadline, f"not within {DEADLINE_SECONDS} s"
        time.sleep(0.2)


def _tell(what: str, costs: Figures) -> None:
    told = ", ".join(f"{cost['ms']:.3f} ms for {slots}" for slots, cost in costs.items())
    print(f"  {what}: {told}", flush=True)


@contextmanager
def _ground() -> Iterator[tuple[Stack, Bulk]]:
    with stack(SETTINGS) as running, bulk(running) as base:
        base.checkpoint(images=False)  # what they come to depends on how old the last checkpoint is
        yield running, base


def main() -> None:
    """Measure, print, renew these parts of the JSON file; Ctrl-C and SIGTERM end it after the statement in hand."""
    parser = argparse.ArgumentParser(prog="python -m bench.scale", description=__doc__)
    parser.add_argument("--only", help=f"parts, by commas, of: {', '.join(PARTS)}", default=",".join(PARTS))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there; other parts are left")
    for field in fields(Size):
        kind = _numbers if isinstance(field.default, tuple) else int
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=kind, default=field.default, metavar="N")
    asked = vars(parser.parse_args())
    size = replace(Size(), **{field.name: asked[field.name] for field in fields(Size)})
    only = asked["only"].split(",")
    if unknown := set(only) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with _ground() as (running, base):
            for name in PARTS:
                if name in only:
                    _part(name, running, base, size, asked["json"])
    except KeyboardInterrupt:
        raise SystemExit("\nbench: interrupted; everything it started is stopped") from None


def _numbers(words: str) -> tuple[int, ...]:
    return tuple(int(word) for word in words.split(","))


def _part(name: str, running: Stack, base: Bulk, size: Size, file: Path | None) -> None:
    began = time.monotonic()
    load = os.getloadavg()[0]
    print(f"bench: {name} ...", flush=True)
    found = PARTS[name](running, base, size)
    print(f"  {time.monotonic() - began:.0f} s", flush=True)
    if file is None:
        return
    whole = json.loads(file.read_text()) if file.exists() else {}
    whole[name] = {
        "at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, load {load:.1f} as it began",
        "postgresql": base.run("SELECT current_setting('server_version')")[0][0],
        "shared_buffers": SETTINGS["shared_buffers"],
        "deprovisioner": version("deprovisioner"),
        "took_seconds": round(time.monotonic() - began),
    } | found
    file.write_text(json.dumps(whole, indent=1) + "\n")


if __name__ == "__main__":
    main()
