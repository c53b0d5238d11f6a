"""Objects of a size that no answer may be read whole: constant memory, progress to be seen, and a kill half-way."""

import os
import signal
from typing import Any

import httpx
import psutil
import pytest
import redis
from sqlalchemy import Connection, text

from tests.support.api import create, until
from tests.support.processes import System
from tests.support.servers import Servers
from tests.support.witness import eventually

pytestmark = [pytest.mark.proof, pytest.mark.timeout(600)]
MEGABYTE = 1 << 20
# TEST_BIG=1 runs the full sizes, in two minutes; a third of them shows the same.
FULL = "TEST_BIG" in os.environ
KEYS = 1_000_000 if FULL else 300_000
TABLES = 10_000 if FULL else 3_000
# What the runner, its statements and a batch of keys take; all names at once would take 30 MB or 100.
GROWS_AT_MOST = 25 * MEGABYTE
_FILL = """
for n = tonumber(ARGV[2]), tonumber(ARGV[3]) do redis.call('SET', ARGV[1] .. n, n) end"""
_PROGRESS = text("SELECT progress FROM outbox WHERE kind = 'deprovision'")


def pid_of(worker: Any) -> int:
    return int(worker.container._container.pid)


def memory(pid: int) -> int:
    """The most that this process has had in memory, in bytes."""
    with open(f"/proc/{pid}/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:")) * 1024


def test_a_namespace_of_many_keys_is_unlinked_in_constant_memory_and_resumed_after_a_kill(
    acme: httpx.Client, db: Connection, system: System, servers: Servers
) -> None:
    first = system.worker(DEPROVISIONER_LEASE_SECONDS="1.5")
    resource, other = (until(acme, create(acme, "redis"), "active") for _ in range(2))
    with redis.Redis.from_url(servers.redis.url) as server:
        for begin in range(1, KEYS, 50_000):
            server.eval(_FILL, 0, resource["manifest"]["prefix"], begin, begin + 49_999)
        server.eval(_FILL, 0, other["manifest"]["prefix"], 1, 1000)
        before = memory(pid_of(first))
        job = acme.delete(f"/v1/resources/{resource['id']}").json()["job"]
        told = eventually(lambda: db.execute(_PROGRESS).scalar_one(), 60, "a heartbeat tells how far it has come")
        assert told["what"] == "keys"
        psutil.Process(pid_of(first)).send_signal(signal.SIGKILL)
        eventually(lambda: first.container.status == "exited", what="it is dead")
        left = server.dbsize()
        assert 1000 < left < KEYS, "it was killed in the middle"
        second = system.worker()
        until(acme, resource, "deleted", 120)
        assert memory(pid_of(second)) - before < GROWS_AT_MOST
        story = acme.get(job["url"]).json()
        assert (story["state"], story["fence"]) == ("succeeded", 2)
        undone = [event["detail"]["did"]["keys_unlinked"] for event in story["events"] if event["event"] == "completed"]
        assert undone[0] <= left, "the second worker did only what was left"
        assert not servers.redis.bears(resource["manifest"])
        assert len(list(server.scan_iter(match=f"{other['manifest']['prefix']}*", count=1000))) == 1000


def test_a_database_of_many_tables_is_dropped_in_constant_memory_with_its_lease_alive(
    acme: httpx.Client, system: System, servers: Servers
) -> None:
    worker = system.worker(DEPROVISIONER_LEASE_SECONDS="3")
    resource = until(acme, create(acme), "active")
    database = resource["manifest"]["database"]
    owner = f'SET ROLE "{resource["manifest"]["role"]}"'
    for begin in range(0, TABLES, 1000):
        servers.pg.query(
            f"{owner}; DO $$ BEGIN FOR n IN {begin}..{begin + 999} LOOP"
            " EXECUTE format('CREATE TABLE t%s (a int PRIMARY KEY, b text)', n); END LOOP; END $$",
            database=database,
        )
    servers.pg.query(
        f"{owner}; INSERT INTO t1 SELECT n, repeat('x', 1000) FROM generate_series(1, 200000) AS n", database=database
    )
    before = memory(pid_of(worker))
    job = acme.delete(f"/v1/resources/{resource['id']}").json()["job"]
    until(acme, resource, "deleted", 300)
    assert memory(pid_of(worker)) - before < GROWS_AT_MOST
    story = acme.get(job["url"]).json()
    assert (story["state"], story["fence"]) == ("succeeded", 1), "its lease never passed"
    assert servers.pg.drops_of(resource["manifest"]) == 1
