"""One function for each measure, on the product's own tables and processes; each asserts that its work was done.

Times of jobs are the database's own. `events.at` is `clock_timestamp()`, taken inside the transaction. The time of a
commit is that of its record, before the flush to disk.
"""

import json
import os
import random
import statistics
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

from sqlalchemy import text

from bench import floors
from bench.load import Client, resource_id
from bench.noop_worker import TEARDOWN_MS
from bench.stack import BACKEND, TENANT, Stack
from outbox import db, doorbell, holds, jobs
from outbox.batching import MAX_BATCH
from outbox.states import HoldScope

CLIENTS = 16
# Connections of pgbench that claim, start and complete: one for each slot that a worker has by default.
DRAINERS = 8
# Connections of pgbench that do so for MAX_BATCH jobs at a time: just enough to keep two cores busy.
SHARERS = 2
# Left out of the figures: the first doorbell of an API process connects to the broker, which takes far longer than a
# DELETE, and for each new client connection an API process prepares its statements.
WARM_UP = 3
WARM_UP_EACH = 10
# Longer than any drain takes: a bench that hangs is a bug, not a figure.
DRAIN_TIMEOUT_SECONDS = 180
# A teardown that waits for a server: 5 ms, the quickest of the real ones.
SLEEP_MS = 5
LIST_RUNS = 4
Figures = dict[str, float]

# Only a superuser can do this: the product's triggers forbid the removal of events, jobs and resources. What is left is
# a new installation: the broker and the backends remember the old one, whose events are gone.
_EMPTY = """
    SET session_replication_role = replica;
    TRUNCATE resources, outbox, events, breakers, holds, memories, installation;
    RESET session_replication_role"""
_SEED = f"""
    INSERT INTO resources (id, tenant, kind, backend, name, status, generation, manifest, activated_at, expires_at)
    SELECT md5(n::text)::uuid, '{TENANT}', 'noop', '{BACKEND}', 'bench-' || n, 'active', md5(n::text)::uuid,
           jsonb_build_object('generation', md5(n::text)::uuid), now(), CASE WHEN :expired THEN now() END
      FROM generate_series(1, :count) AS n"""


def query(statement: str, **parameters: Any) -> list[Any]:
    """Run a statement on the control database."""
    with db.statement() as session:
        result = session.execute(text(statement), parameters)
        return list(result.all()) if result.returns_rows else []


def seed(count: int, *, enqueued: bool = False) -> list[uuid.UUID]:
    """Empty the tables and add active resources 1 to `count`; with `enqueued`, `jobs.expire` gives each a job."""
    query(_EMPTY)
    query(_SEED, count=count, expired=enqueued)
    if enqueued:
        enqueue_all(count)
    query("VACUUM ANALYZE resources, outbox, events")
    return [resource_id(number) for number in range(1, count + 1)]


def enqueue_all(count: int) -> None:
    """Enqueue a job for each of the `count` resources, all of which have expired."""
    with db.statement() as session:
        assert jobs.expire(session, actor="bench", batch=count) == count


def _assert_jobs(state: str, status: str, count: int) -> None:
    """Assert that there are exactly `count` jobs, all in `state`, each of its own resource, which is `status`."""
    row = query(
        """
        SELECT count(DISTINCT resource_id) FILTER (WHERE outbox.state = :state AND resources.status = :status) AS fit,
               count(*) AS jobs
          FROM outbox JOIN resources ON resources.id = outbox.resource_id""",
        state=state,
        status=status,
    )[0]
    assert (row.fit, row.jobs) == (count, count), f"{row.fit} of {row.jobs} jobs are {state}, not {count}"


# -- idle ------------------------------------------------------------------------------------------------------------


def idle(stack: Stack, count: int) -> Figures:
    """Milliseconds from a DELETE to the start of its teardown: one DELETE at a time, with nothing else queued."""
    ids = seed(WARM_UP + count)
    answered = {}
    with stack.workers(1, 8):
        client = Client(stack.api_port, stack.token)
        for id in ids:
            time.sleep(random.uniform(0.02, 0.08))  # random, so that it is not in step with a poll or a heartbeat
            client.delete(id)
            answered[id] = time.time()
        wait_drained()
    rows = query("""
        SELECT enqueued.resource_id,
               1000 * extract(epoch FROM started.at - pg_xact_commit_timestamp(enqueued.xmin))::float AS ms,
               extract(epoch FROM started.at)::float AS started
          FROM events AS enqueued JOIN events AS started USING (job_id)
         WHERE enqueued.event = 'enqueued' AND started.event = 'started' ORDER BY enqueued.id""")
    assert len(rows) == WARM_UP + count, f"{len(rows)} of {WARM_UP + count} jobs were started"
    del rows[:WARM_UP]
    since_commit = [row.ms for row in rows]
    since_answer = [1000 * (row.started - answered[row.resource_id]) for row in rows]
    return {
        "p50": statistics.median(since_commit),
        "p99": p99(since_commit),
        "answer p50": statistics.median(since_answer),
        "answer p99": p99(since_answer),
    }


def p99(values: list[float]) -> float:
    """The 99th percentile; of fewer than 100 values, the second worst."""
    return sorted(values)[int(0.99 * (len(values) - 1))]


# -- drain -----------------------------------------------------------------------------------------------------------


def drain(stack: Stack, count: int, *, processes: int, slots: int) -> Figures:
    """Jobs a second from the first claim to the last completion, and the commits and fsyncs of each."""
    seed(count, enqueued=True)
    before = _counters()
    with stack.workers(processes, slots):
        wait_drained()
    after = _counters()  # the workers' connections are closed: only then are their counts complete
    cost = {name: (after[name] - before[name]) / count for name in before}
    return {"rate": count / drained_in(count)} | cost


def drained_in(count: int) -> float:
    """Seconds from the first claim to the last completion of `count` jobs; asserts that each has each event once."""
    row = query("""
        SELECT count(*) FILTER (WHERE event = 'claimed') AS claimed,
               count(*) FILTER (WHERE event = 'started') AS started,
               count(*) FILTER (WHERE event = 'completed') AS completed,
               extract(epoch FROM max(at) FILTER (WHERE event = 'completed')
                                - min(at) FILTER (WHERE event = 'claimed'))::float AS seconds
          FROM events""")[0]
    assert (row.claimed, row.started, row.completed) == (count,) * 3, (
        f"not every job was claimed, started and completed once: {row}"
    )
    _assert_jobs("succeeded", "deleted", count)
    return float(row.seconds)


def wait_drained() -> None:
    """Wait until no job is pending or running; TimeoutError after DRAIN_TIMEOUT_SECONDS."""
    deadline = time.monotonic() + DRAIN_TIMEOUT_SECONDS
    while query("SELECT EXISTS (SELECT FROM outbox WHERE state IN ('pending', 'running'))")[0][0]:
        if time.monotonic() > deadline:
            raise TimeoutError(f"jobs are still pending or running after {DRAIN_TIMEOUT_SECONDS} s")
        time.sleep(0.1)


def _counters() -> Figures:
    row = query("""
        SELECT xact_commit::float AS commits,
               (SELECT sum(fsyncs)::float FROM pg_stat_io WHERE object = 'wal') AS fsyncs
          FROM pg_stat_database WHERE datname = current_database()""")[0]
    return dict(row._mapping)


def drain_floor(stack: Stack, count: int) -> float:
    """Jobs a second when pgbench claims, starts and completes them one by one, each step durable."""
    seed(count, enqueued=True)
    rate = floors.pgbench(stack.dsn, floors.drain_script(), DRAINERS, count // DRAINERS)
    drained_in(count)
    return rate


def shared_drain_floor(stack: Stack, count: int) -> float:
    """The same with MAX_BATCH jobs in each statement, as a busy worker has: the rate of a worker without any cost."""
    seed(count, enqueued=True)
    rounds = floors.pgbench(stack.dsn, floors.shared_drain_script(), SHARERS, count // (SHARERS * MAX_BATCH))
    drained_in(count)
    return rounds * MAX_BATCH


# -- more processes --------------------------------------------------------------------------------------------------


def sleepers(stack: Stack, count: int, *, processes: int, slots: int) -> float:
    """Jobs a second of workers whose teardown sleeps, while all of them work.

    A hold keeps the workers waiting until all are ready; then the doorbell wakes them. The measure begins when the last
    worker makes its first claim, and ends when the first worker that finishes makes its last completion.
    """
    seed(count, enqueued=True)
    with db.statement() as session:
        hold = holds.engage(session, HoldScope.GLOBAL, None, actor="bench", reason="until all workers are ready")
    with stack.workers(processes, slots, more={TEARDOWN_MS: str(SLEEP_MS)}):
        with db.statement() as session:
            holds.release(session, hold.id, actor="bench", reason="all workers are ready")
        assert doorbell.ring_now()  # a worker whose slots it fills rings for the next worker
        wait_drained()
    drained_in(count)
    row = query("""
        WITH worker AS (
            SELECT actor, min(at) FILTER (WHERE event = 'claimed') AS first,
                   max(at) FILTER (WHERE event = 'completed') AS last
              FROM events WHERE event IN ('claimed', 'completed') GROUP BY actor
        ), overlap AS (
            SELECT count(*) AS workers, max(first) AS since, min(last) AS until FROM worker
        )
        SELECT workers, extract(epoch FROM overlap.until - overlap.since)::float AS seconds,
               (SELECT count(*) FROM events WHERE event = 'completed' AND at > since AND at <= until) AS done
          FROM overlap""")[0]
    assert row.workers == processes, f"only {row.workers} of {processes} workers did a job"
    assert row.done > count / 3, (
        f"all {processes} workers worked at the same time on only {row.done} of {count} jobs: give more jobs"
    )
    return float(row.done / row.seconds)


# -- DELETE ----------------------------------------------------------------------------------------------------------


def deletes(stack: Stack, api: Any, count: int) -> Figures:
    """DELETE each resource once over CLIENTS connections, with no worker running; `api` is the API's main process.

    Returns the rate, the latencies, the share of a core that the load took, and the share of the connections that the
    API's busiest process got. The kernel assigns the connections.
    """
    warm = WARM_UP_EACH * CLIENTS
    seed(warm + count)
    load = subprocess.Popen(
        [sys.executable, "-m", "bench.load", *map(str, (stack.api_port, CLIENTS, warm, count))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert load.stdin
        assert load.stdout
        load.stdin.write(f"{stack.token}\n")
        load.stdin.flush()
        assert load.stdout.readline() == "ready\n", "the process that sends the load did not get ready"
        shares = _connections(stack, api)
        load.stdin.write("\n")
        load.stdin.flush()
        result = json.loads(load.stdout.readline())
    finally:
        load.kill()
        load.wait()
    assert len(result["ms"]) == count, f"{len(result['ms'])} of {count} DELETEs were answered"
    _assert_jobs("pending", "deleting", warm + count)
    return {
        "rate": count / result["seconds"],
        "p50": statistics.median(result["ms"]),
        "p99": p99(result["ms"]),
        "load": result["cpu_seconds"] / result["seconds"],
        "busiest": max(shares) / CLIENTS,
    }


def _connections(stack: Stack, api: Any) -> list[int]:
    """The number of the clients' connections that each process of the API has."""
    found = []
    for process in (api, *api.children(recursive=True)):
        lines = process.net_connections(kind="tcp")
        found.append(sum(one.status == "ESTABLISHED" and one.laddr.port == stack.api_port for one in lines))
    assert sum(found) == CLIENTS, f"the API's processes have {found} connections, not {CLIENTS} in all"
    return found


def delete_floor(stack: Stack, count: int) -> float:
    """DELETEs a second when pgbench sends the DELETE's statement on CLIENTS connections."""
    seed(count)
    rate = floors.pgbench(stack.dsn, floors.delete_script(CLIENTS), CLIENTS, count // CLIENTS)
    _assert_jobs("pending", "deleting", count)
    return rate


# -- the command line ------------------------------------------------------------------------------------------------


def listing(stack: Stack) -> list[float]:  # noqa: ARG001 - every measure takes the stack
    """Seconds that `deprovisioner jobs list` takes to show a page, in LIST_RUNS runs; one before them is left out."""
    seed(200, enqueued=True)
    command = [str(Path(sys.executable).with_name("deprovisioner")), "jobs", "list"]
    compiled = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    took = []
    for _ in range(1 + LIST_RUNS):
        began = time.perf_counter()
        done = subprocess.run(command, env=compiled, capture_output=True, text=True, check=True)
        took.append(time.perf_counter() - began)
        assert done.stdout.count("pending") >= 50, done.stdout
    return took[1:]


# -- the machine -----------------------------------------------------------------------------------------------------


def server_version() -> str:
    """The version of PostgreSQL, and its settings that say whether a commit waits for the disk."""
    row = query(
        "SELECT current_setting('server_version'), current_setting('fsync'), current_setting('synchronous_commit'),"
        " current_setting('wal_sync_method')"
    )
    return "PostgreSQL {} (fsync {}, synchronous_commit {}, {})".format(*row[0])


def flush_ms(folder: Path, times: int = 50) -> float:
    """The median milliseconds that the disk takes to confirm 8 kB: a commit waits for such a confirmation."""
    took = []
    with open(folder / "flush", "wb", buffering=0) as file:
        for _ in range(times):
            file.write(os.urandom(8192))
            began = time.perf_counter()
            os.fdatasync(file.fileno())
            took.append(1000 * (time.perf_counter() - began))
    return statistics.median(took)
