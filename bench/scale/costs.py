"""A worker's memory, and what one delete costs, from the request to `succeeded`."""

import http.client
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import psutil

from bench.bulk import Bulk
from bench.scale import CLAIM, WARM_UP, WORKER_SLOTS, Figures, Size, count, serve, until
from bench.stack import TENANT, Stack
from outbox import db, tokens

CLIENTS = 8


def measure_memory(stack: Stack, base: Bulk, size: Size) -> Figures:
    """A worker's resident memory after it drained the same number of jobs from a small and from a large backlog."""
    serve(stack, 1)
    rows = []
    for pending in size.memory:
        base.empty()
        base.grow(pending + size.drained, "deleting")
        base.settle()
        claimed = base.statements(CLAIM)["rows"]
        with stack.workers(1, WORKER_SLOTS):
            until(lambda at=claimed: base.statements(CLAIM)["rows"] >= at + size.drained)
            (worker,) = _children("bench.noop_worker")
            resident = worker.memory_info().rss
            done, left = count(base, "succeeded"), count(base, "pending")
        assert done >= size.drained - WORKER_SLOTS, f"only {done} jobs were drained"
        assert left >= pending / 2, f"only {left} of {pending} jobs are pending: the backlog was not kept up"
        rows.append({"pending": pending, "drained": done, "rss_mb": resident / 2**20})
        print(f"  {pending:,} pending, {done:,} drained: {resident / 2**20:.1f} MB resident", flush=True)
    return {"rows": rows, "last_to_first": rows[-1]["rss_mb"] / rows[0]["rss_mb"]}


def measure_costs(stack: Stack, base: Bulk, size: Size) -> Figures:
    """The cost of one delete, from the request to `succeeded`: processor time by part, statements, write-ahead log."""
    serve(stack, 1)
    base.empty()
    base.grow(size.deletes + CLIENTS * WARM_UP, "active")
    base.settle()
    ids = [id for (id,) in base.run("SELECT id FROM resources ORDER BY random()")]
    with db.statement() as session:
        _, token = tokens.create(session, actor="op", role="tenant", tenant=f"{TENANT}-0", name="scale")
    with stack.api(), stack.workers(1, WORKER_SLOTS):
        _delete(stack, token, ids[size.deletes :])
        until(lambda: count(base, "succeeded") == len(ids) - size.deletes)
        before = _spent(base)
        _delete(stack, token, ids[: size.deletes])
        until(lambda: count(base, "succeeded") == len(ids))
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
    """DELETE each resource over HTTP, by several clients at once; only a 202 is accepted."""

    def run(share: list[Any]) -> None:
        with closing(http.client.HTTPConnection("127.0.0.1", stack.api_port, timeout=30)) as api:
            for resource_id in share:
                api.request("DELETE", f"/v1/resources/{resource_id}", headers={"Authorization": f"Bearer {token}"})
                answer = api.getresponse()
                body = answer.read()
                assert answer.status == 202, body

    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(run, [ids[number::CLIENTS] for number in range(CLIENTS)]))


def _children(word: str) -> list[psutil.Process]:
    """Our own child processes whose command line contains the word."""
    found = [child for child in psutil.Process().children() if word in " ".join(child.cmdline())]
    assert found, f"no process has {word} in its command line"
    return found


def _cpu_ms(word: str) -> float:
    """The CPU milliseconds that these processes and their children have used, with the children that have ended."""
    spent = 0.0
    for parent in _children(word):
        for process in (parent, *parent.children(recursive=True)):
            try:
                times = process.cpu_times()
            except psutil.NoSuchProcess:  # its time is added to its parent's, at once or soon
                continue
            spent += times.user + times.system + times.children_user + times.children_system
    return 1000 * spent
