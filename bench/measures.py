"""One function a measure, on the product's own tables and processes; each asserts that its work was done.

Times of jobs are the database's own: `events.at` is `clock_timestamp()`, taken inside the transaction, and a commit's
is its record's, before the flush to disk.
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
# Connections of pgbench that claim, start and complete: as many as one worker has slots by default.
DRAINERS = 8
# Connections that do so for MAX_BATCH jobs at a time: as many as keep two cores busy, and no more.
SHARERS = 2
# The first ring of an API process connects to the broker, which takes long enough to be all there is to see; and
# each connection of the clients has an API process prepare what it needs.
WARM_UP = 3
WARM_UP_EACH = 10
# Longer than any drain we would wait for: a bench that hangs is a bug, not a figure.
DRAIN_TIMEOUT_SECONDS = 180
# A teardown that waits for a server: 5 ms, the quickest of the real ones.
SLEEP_MS = 5
LIST_RUNS = 4
Figures = dict[str, float]

# Only a superuser can: the product's triggers keep events, jobs and resources from vanishing.
_EMPTY = """
    SET session_replication_role = replica;
    TRUNCATE resources, outbox, events, breakers, holds;
    RESET session_replication_role"""
_SEED = f"""
    INSERT INTO resources (id, tenant, kind, backend, name, status, generation, manifest, activated_at, expires_at)
    SELECT md5(n::text)::uuid, '{TENANT}', 'noop', '{BACKEND}', 'bench-' || n, 'active', md5(n::text)::uuid,
           jsonb_build_object('generation', md5(n::text)::uuid), now(), CASE WHEN :expired THEN now() END
      FROM generate_series(1, :count) AS n"""


def query(statement: str, **words: Any) -> list[Any]:
    """Run a statement on the control database."""
    with db.statement() as session:
        result = session.execute(text(statement), words)
        return list(result.all()) if result.returns_rows else []


def seed(count: int, *, enqueued: bool = False) -> list[uuid.UUID]:
    """Resources 1 to `count`, active, in empty tables; `enqueued`, the product's own `expire` gives each a job."""
    query(_EMPTY)
    query(_SEED, count=count, expired=enqueued)
    if enqueued:
        enqueue_all(count)
    query("VACUUM ANALYZE resources, outbox, events")
    return [resource_id(number) for number in range(1, count + 1)]


def enqueue_all(count: int) -> None:
    """A job for each of the `count` resources, which all have expired."""
    with db.statement() as session:
        assert jobs.expire(session, actor="bench", batch=count) == count


def _assert_jobs(state: str, status: str, count: int) -> None:
    """As many jobs in `state`, each of another resource that is `status`, and no others."""
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
    """DELETE one resource at a time over HTTP, nothing else queued: how long until its teardown has started."""
    ids = seed(WARM_UP + count)
    answered = {}
    with stack.workers(1, 8):
        client = Client(stack.api_port, stack.token)
        for id in ids:
            time.sleep(random.uniform(0.02, 0.08))  # not in step with anything that beats
            client.delete(id)
            answered[id] = time.time()
        wait_drained()
    rows = query("""
        SELECT asked.resource_id,
               1000 * extract(epoch FROM begun.at - pg_xact_commit_timestamp(asked.xmin))::float AS ms,
               extract(epoch FROM begun.at)::float AS begun
          FROM events AS asked JOIN events AS begun USING (job_id)
         WHERE asked.event = 'enqueued' AND begun.event = 'started' ORDER BY asked.id""")
    assert len(rows) == WARM_UP + count, f"{len(rows)} of {WARM_UP + count} jobs were started"
    del rows[:WARM_UP]
    since_commit = [row.ms for row in rows]
    since_answer = [1000 * (row.begun - answered[row.resource_id]) for row in rows]
    return {
        "p50": statistics.median(since_commit),
        "p99": p99(since_commit),
        "answer p50": statistics.median(since_answer),
        "answer p99": p99(since_answer),
    }


def p99(values: list[float]) -> float:
    """The value that 1 in 100 is above; of fewer than 100, the second worst."""
    return sorted(values)[int(0.99 * (len(values) - 1))]


# -- drain -----------------------------------------------------------------------------------------------------------


def drain(stack: Stack, count: int, *, processes: int, slots: int) -> Figures:
    """Jobs a second from the first claim to the last completion, and what each cost the database."""
    seed(count, enqueued=True)
    before = _counters()
    with stack.workers(processes, slots):
        wait_drained()
    after = _counters()  # the workers' connections are closed: only then are their counts complete
    cost = {name: (after[name] - before[name]) / count for name in before}
    return {"rate": count / drained_in(count)} | cost


def drained_in(count: int) -> float:
    """The seconds from the first claim to the last completion of `count` jobs, each of which had each event once."""
    row = query("""
        SELECT count(*) FILTER (WHERE event = 'claimed') AS claimed,
               count(*) FILTER (WHERE event = 'started') AS started,
               count(*) FILTER (WHERE event = 'completed') AS completed,
               extract(epoch FROM max(at) FILTER (WHERE event = 'completed')
                                - min(at) FILTER (WHERE event = 'claimed'))::float AS seconds
          FROM events""")[0]
    assert (row.claimed, row.started, row.completed) == (count,) * 3, f"not each once: {row}"
    _assert_jobs("succeeded", "deleted", count)
    return float(row.seconds)


def wait_drained() -> None:
    """Until no job is open; TimeoutError when that takes too long."""
    deadline = time.monotonic() + DRAIN_TIMEOUT_SECONDS
    while query("SELECT EXISTS (SELECT FROM outbox WHERE state IN ('pending', 'running'))")[0][0]:
        if time.monotonic() > deadline:
            raise TimeoutError(f"jobs are still open after {DRAIN_TIMEOUT_SECONDS} s")
        time.sleep(0.1)


def _counters() -> Figures:
    row = query("""
        SELECT xact_commit::float AS commits,
               (SELECT sum(fsyncs)::float FROM pg_stat_io WHERE object = 'wal') AS fsyncs
          FROM pg_stat_database WHERE datname = current_database()""")[0]
    return dict(row._mapping)


def drain_floor(stack: Stack, count: int) -> float:
    """Claim, start and complete one by one, each durable, no Python."""
    seed(count, enqueued=True)
    rate = floors.pgbench(stack.dsn, floors.drain_script(), DRAINERS, count // DRAINERS)
    drained_in(count)
    return rate


def shared_drain_floor(stack: Stack, count: int) -> float:
    """The same, as many jobs to a statement as a full worker's: what a worker that cost nothing would come to."""
    seed(count, enqueued=True)
    rounds = floors.pgbench(stack.dsn, floors.shared_drain_script(), SHARERS, count // (SHARERS * MAX_BATCH))
    drained_in(count)
    return rounds * MAX_BATCH


# -- more processes --------------------------------------------------------------------------------------------------


def sleepers(stack: Stack, count: int, *, processes: int, slots: int) -> float:
    """Jobs a second of workers whose teardown sleeps, while all of them work.

    A hold keeps all of them waiting until the last one is ready, and a bell wakes them. It counts from the
    first claim of the last one to begin to the last completion of the first one to end.
    """
    seed(count, enqueued=True)
    with db.statement() as session:
        hold = holds.engage(session, HoldScope.GLOBAL, None, actor="bench", reason="until all workers are ready")
    with stack.workers(processes, slots, more={TEARDOWN_MS: str(SLEEP_MS)}):
        with db.statement() as session:
            holds.release(session, hold.id, actor="bench", reason="all workers are ready")
        assert doorbell.ring_now()  # who fills its hands by it rings for the next
        wait_drained()
    drained_in(count)
    row = query("""
        WITH worker AS (
            SELECT actor, min(at) FILTER (WHERE event = 'claimed') AS first,
                   max(at) FILTER (WHERE event = 'completed') AS last
              FROM events WHERE event IN ('claimed', 'completed') GROUP BY actor
        ), together AS (
            SELECT count(*) AS workers, max(first) AS since, min(last) AS until FROM worker
        )
        SELECT workers, extract(epoch FROM together.until - together.since)::float AS seconds,
               (SELECT count(*) FROM events WHERE event = 'completed' AND at > since AND at <= until) AS done
          FROM together""")[0]
    assert row.workers == processes, f"{row.workers} of {processes} workers worked"
    assert row.done > count / 3, f"all {processes} workers worked together on {row.done} of {count} jobs: give more"
    return float(row.done / row.seconds)


# -- DELETE ----------------------------------------------------------------------------------------------------------


def deletes(stack: Stack, api: Any, count: int) -> Figures:
    """What CLIENTS connections get answered, each resource DELETEd once, no worker running; `api` is its process.

    The rate, the latencies, the share of a core that the load took, and the share of the connections that the API's
    busiest process got: the kernel deals them out.
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
        assert load.stdout.readline() == "ready\n", "the load did not get ready"
        shares = _connections(stack, api)
        load.stdin.write("\n")
        load.stdin.flush()
        told = json.loads(load.stdout.readline())
    finally:
        load.kill()
        load.wait()
    assert len(told["ms"]) == count, f"{len(told['ms'])} of {count} DELETEs were answered"
    _assert_jobs("pending", "deleting", warm + count)
    return {
        "rate": count / told["seconds"],
        "p50": statistics.median(told["ms"]),
        "p99": p99(told["ms"]),
        "load": told["cpu_seconds"] / told["seconds"],
        "busiest": max(shares) / CLIENTS,
    }


def _connections(stack: Stack, api: Any) -> list[int]:
    """How many of the clients' connections each process of the API has."""
    found = []
    for process in (api, *api.children(recursive=True)):
        lines = process.net_connections(kind="tcp")
        found.append(sum(one.status == "ESTABLISHED" and one.laddr.port == stack.api_port for one in lines))
    assert sum(found) == CLIENTS, f"the API's processes have {found} connections, not {CLIENTS} in all"
    return found


def delete_floor(stack: Stack, count: int) -> float:
    """The DELETE's statement alone: CLIENTS connections, no Python."""
    seed(count)
    rate = floors.pgbench(stack.dsn, floors.delete_script(CLIENTS), CLIENTS, count // CLIENTS)
    _assert_jobs("pending", "deleting", count)
    return rate


# -- the command line ------------------------------------------------------------------------------------------------


def listing(stack: Stack) -> list[float]:  # noqa: ARG001 - every measure takes it
    """The seconds that `deprovisioner jobs list` takes to show a page, LIST_RUNS times, after one unmeasured."""
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
    """Which PostgreSQL, and whether a commit waits for the disk."""
    row = query(
        "SELECT current_setting('server_version'), current_setting('fsync'), current_setting('synchronous_commit'),"
        " current_setting('wal_sync_method')"
    )
    return "PostgreSQL {} (fsync {}, synchronous_commit {}, {})".format(*row[0])


def flush_ms(folder: Path, times: int = 50) -> float:
    """The median of how long the disk takes to confirm 8 kB, which is what a commit waits for: milliseconds."""
    took = []
    with open(folder / "flush", "wb", buffering=0) as file:
        for _ in range(times):
            file.write(os.urandom(8192))
            began = time.perf_counter()
            os.fdatasync(file.fileno())
            took.append(1000 * (time.perf_counter() - began))
    return statistics.median(took)
