"""The product on servers of its own, so that a test may kill, stop or fill control PostgreSQL, pg-main and broker."""

import contextlib
import itertools
import os
import shutil
import signal
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import psycopg2
import pytest

from deprovisioner.up import servers as embedded
from deprovisioner.up.servers import Child
from outbox import db as database
from outbox import jobs, tokens
from tests.support import accounts, forked, small_disk
from tests.support.crash_cells import Deletions
from tests.support.final_checks import all_is_well
from tests.support.forked import Kept
from tests.support.processes import client
from tests.support.servers import BACKENDS, Servers, clear_caches, server_folder, use_environment
from tests.support.witness import PgServer, RedisServer, eventually, slowness

LEASE, SWEEP = 3.0, 0.5
DATABASES, NAMESPACES, CALLERS = 12, 10, 4  # two of the namespaces are deleted after the storm
KINDS = {"postgres": "pg-main", "redis": "redis-main"}


class OwnServers:
    """These servers, the product's processes on them, and storms of DELETEs."""

    def __init__(self, servers: Servers) -> None:
        self.folder = server_folder("installation")
        self.cache, self.deletions = servers.redis, Deletions(servers.redis)
        self.small_disk: Path | None = None
        self.children: list[Child] = []
        self.control_server: Child | None = None
        self.pg_server: Child | None = None
        self.kept: list[Kept] = []
        self.deaths = 0  # of workers that the test itself killed
        self._stack = contextlib.ExitStack()

    # -- servers and processes ---------------------------------------------------------------------------------

    def start(self) -> None:
        self.deletions.start()
        fast = {"fsync": "off", "full_page_writes": "off"}  # but synchronous_commit stays on: tests kill this server
        self.control_server, dsn = self._postgres("control", fast | {"max_connections": "80"})
        self.pg_server, pg_dsn = self._postgres("pg-main", fast | {"log_statement": "ddl", "synchronous_commit": "off"})
        self.pg = PgServer(pg_dsn, self.pg_server.log, accounts.postgres(pg_dsn))
        port = embedded.free_port()
        self.broker_server = embedded.valkey(self.folder, "broker", port, durable=False)
        self.broker = RedisServer(embedded.valkey_url(port))
        self.start_server(self.broker_server, lambda: embedded.valkey_ready(self.broker.url))
        where = self._small_disk(PgServer(dsn, self.control_server.log))
        PgServer(dsn, self.control_server.log).query(f"CREATE DATABASE ours {where}")
        self.control = PgServer(dsn.rpartition("/")[0] + "/ours", self.control_server.log)
        (self.folder / "backends.toml").write_text(BACKENDS)
        self.env = {
            "PATH": os.environ["PATH"],
            "DEPROVISIONER_DATABASE_URL": self.control.dsn,
            "DEPROVISIONER_BROKER_URL": self.broker.url,
            "DEPROVISIONER_BACKENDS": str(self.folder / "backends.toml"),
            "DEPROVISIONER_CREDENTIALS_KEY": "QqzGw4kG3n6pTgU3aYQ1n8cYqH1m3C5v0b7xJ2r9d0E=",
            "DEPROVISIONER_LEASE_SECONDS": str(LEASE),
            "DEPROVISIONER_SWEEP_SECONDS": str(SWEEP),
            "DEPROVISIONER_MAX_ATTEMPTS": "50",
            "DEPROVISIONER_BACKOFF_BASE_SECONDS": "0.2",
            "DEPROVISIONER_BACKOFF_MAX_SECONDS": "2",
            "DEPROVISIONER_WORKER_SLOTS": "4",
            "PG_MAIN_DSN": self.pg.service_dsn,
            "REDIS_MAIN_URL": self.cache.service_dsn,
        }
        use_environment(self._stack.enter_context(pytest.MonkeyPatch.context()), self.env)
        self._stack.callback(clear_caches)
        import migrations

        migrations.upgrade()
        with database.statement() as session:
            self.token = tokens.create(session, actor="op", role="tenant", tenant="acme", name="acme")[1]
        self.api, url = forked.api(self.env, self.folder / "api.log")
        self.callers = [self._stack.enter_context(client(url, self.token)) for _ in range(CALLERS + 1)]
        self.acme = self.callers.pop()
        self.kept = [Kept("worker", self.env, self.folder / f"worker-{n}.log") for n in range(2)]

    def stop(self) -> None:
        for kept in self.kept:
            kept.stop()
        if hasattr(self, "api"):
            self.api.kill()
        self._stack.close()
        self.deletions.stop()
        for child in self.children:
            if child in (self.control_server, self.pg_server):
                child.stop_signal = signal.SIGQUIT  # at once: their data is not needed any more
            child.stop()
        if self.small_disk:
            small_disk.unmount(self.small_disk)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _postgres(self, name: str, options: dict[str, str]) -> tuple[Child, str]:
        port = embedded.free_port()
        child = embedded.postgres(self.folder, name, port, "secret", options)
        dsn = embedded.postgres_dsn(port, "secret")
        self.start_server(child, lambda: embedded.postgres_ready(dsn))
        return child, dsn

    def start_server(self, child: Child, ready: Any) -> None:
        if child not in self.children:
            self.children.append(child)
        child.spawn()
        child.wait_until(ready)

    def restart_control(self, how: signal.Signals) -> None:
        self.control_server.process.send_signal(how)
        self.control_server.process.wait()
        self.start_server(self.control_server, lambda: embedded.postgres_ready(self.control.dsn))

    def _small_disk(self, server: PgServer) -> str:
        """The control database's files on a file system that can be filled, where this user may mount one."""
        self.small_disk = small_disk.mounted(self.folder / "disk", server, "small", size="64m")
        return "TABLESPACE small" if self.small_disk else ""

    def processes_of(self, child: Child) -> list[psutil.Process]:
        first = psutil.Process(child.process.pid)
        return [first, *first.children(recursive=True)]

    def signal(self, child: Child, number: signal.Signals) -> None:
        for process in self.processes_of(child):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    # -- storms ------------------------------------------------------------------------------------------------

    @contextmanager
    def storm(self) -> Iterator[list[dict[str, Any]]]:
        """DELETEs are sent while the body causes faults; after it, every job must end well without help."""
        kinds = ["postgres"] * DATABASES + ["redis"] * NAMESPACES
        made = [self.create(kind) for kind in kinds]
        eventually(lambda: self.status(made) == Counter(active=len(made)), what="all are provisioned", every=0.1)
        things, probes = made[:-2], made[-2:]
        answers: list[httpx.Response] = []
        threads = [
            threading.Thread(target=self._delete, args=(caller, things[n::CALLERS], answers))
            for n, caller in enumerate(self.callers)
        ]
        for thread in threads:
            thread.start()
        eventually(lambda: len(answers) >= CALLERS, what="the storm has begun")
        yield things
        for thread in threads:
            thread.join(60)
        told = Counter(
            (a.status_code, a.json()["code"], a.headers.get("Retry-After"))
            for a in answers
            if a.status_code not in (200, 202)
        )
        assert set(told) <= {(503, "database_unavailable", "2")}, told
        accepted = {a.json()["resource"]["id"] for a in answers if a.status_code in (200, 202)}
        assert accepted == {thing["id"] for thing in things}, "every DELETE was accepted in the end"
        eventually(lambda: self.status(things) == Counter(deleted=len(things)), what=self.state(things), every=0.1)
        database.engine().dispose()  # the fault may have broken this process's own connections
        self.each_worker_sweeps(probes)
        all_is_well(self.control, [t["id"] for t in made], pg=self.pg, cache=self.cache, deletions=self.deletions)
        died, self.deaths = sum(kept.deaths for kept in self.kept) - self.deaths, sum(kept.deaths for kept in self.kept)
        last_words = "\n".join(kept.last_words for kept in self.kept)
        assert died == 0, f"{died} workers had to be started again:\n{last_words}"

    def create(self, kind: str) -> dict[str, Any]:
        answer = self.acme.post("/v1/resources", json={"kind": kind, "backend": KINDS[kind], "name": "orders"})
        assert answer.status_code == 202, answer.text
        return answer.json()["resource"]

    def _delete(self, caller: httpx.Client, things: list[dict[str, Any]], answers: list[httpx.Response]) -> None:
        for thing in things:
            for _ in range(300):
                try:
                    answers.append(caller.delete(f"/v1/resources/{thing['id']}"))
                except httpx.TransportError:
                    time.sleep(0.1)
                    continue
                if answers[-1].status_code in (200, 202):
                    break
                time.sleep(0.1)
            time.sleep(0.4)  # the storm must outlast the beginning of the fault

    def status(self, things: list[dict[str, Any]]) -> Counter[str]:
        asked = "SELECT status, count(*) FROM resources WHERE id::text = ANY(%s) GROUP BY status"
        try:
            return Counter(dict(self.control.query(asked, [thing["id"] for thing in things])))
        except psycopg2.OperationalError:
            return Counter()

    def state(self, things: list[dict[str, Any]]) -> str:
        return f"all deleted; was {self.status(things)}; see {self.folder}"

    def each_worker_sweeps(self, probes: list[dict[str, Any]]) -> None:
        """Each worker still sweeps: with the other one paused and no wake-up sent, it finds and does a DELETE."""
        for probe, paused in zip(probes, self.kept, strict=True):
            paused.fork.pause()
            try:
                with database.statement() as session:
                    jobs.enqueue(session, uuid.UUID(probe["id"]), actor="test")
                eventually(lambda probe=probe: self.status([probe]) == Counter(deleted=1), what="found by a sweep")
            finally:
                paused.fork.wake()
        self.claimed_in_time(probes)

    def claimed_in_time(self, things: list[dict[str, Any]]) -> None:
        """Their DELETEs were claimed within two sweeps plus the time that this machine needs now."""
        asked = """SELECT outbox.resource_id::text, min(at) FILTER (WHERE event = 'claimed')
                                                    - min(at) FILTER (WHERE event = 'enqueued')
                     FROM events JOIN outbox ON outbox.id = job_id
                    WHERE outbox.resource_id::text = ANY(%s) AND kind = 'deprovision' GROUP BY 1"""
        waited = dict(self.control.query(asked, [thing["id"] for thing in things]))
        assert len(waited) == len(things)
        assert max(waited.values()).total_seconds() < 2 * 1.2 * SWEEP + 2 * slowness(), waited


def seconds(duration: float, every: float) -> Iterator[int]:
    """Yield 0, 1, 2 …, one every `every` seconds, for `duration` seconds."""
    began = time.monotonic()
    for n in itertools.count():
        if time.monotonic() - began > duration:
            return
        yield n
        time.sleep(every)
