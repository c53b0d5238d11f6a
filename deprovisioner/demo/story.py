"""`deprovisioner demo`: a DELETE taken back, concurrent DELETEs, a killed worker, and what the servers' records say.

The demo starts an installation of its own in a temporary home. It works there as customers do: through HTTP, and with
the credentials that the API gave them. It uses the administrator's DSNs only to make neighbours and to read the
servers' records.
"""

import json
import os
import secrets
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import click
import httpx
import psutil
import psycopg2
import redis
from psycopg2 import sql
from psycopg2.extensions import make_dsn

from deprovisioner.demo import witnesses
from deprovisioner.demo.undo import take_back
from deprovisioner.demo.witnesses import Answer, Finding, Holding, Servers, contents, finding
from deprovisioner.up import servers
from outbox.errors import DeprovisionerError
from outbox.settings import PREFIX, read_env

KINDS = {"postgres": "pg-main", "redis": "redis-main"}
WORKERS = 2  # one is killed, the other continues
# Short, so that the killed worker's jobs come back within seconds.
FAST_SETTINGS = {f"{PREFIX}LEASE_SECONDS": "5", f"{PREFIX}SWEEP_SECONDS": "1"}
THREADS = 8  # for everything but the concurrent DELETEs: enough to keep two cores busy
LOGGED_IN = 10  # customers who are still logged in when the DELETEs come
STALL_SECONDS = 60  # without any progress; a killed worker's jobs come back within ten seconds
START_SECONDS = 120  # for all of `up`: it takes ten seconds on an idle machine of two cores
POLL_SECONDS = 0.2
PAGE = 200  # the longest page that a listing returns
BAR = 40  # characters

Json = dict[str, Any]
T = TypeVar("T")
R = TypeVar("R")


class Demo:
    """One demonstration: `resources` of each kind, `deletes` concurrent DELETEs of each."""

    def __init__(self, resources: int, deletes: int, *, as_json: bool) -> None:
        self.resources = resources
        self.deletes = deletes
        self.prose = sys.stderr if as_json else sys.stdout
        self.as_json = as_json
        self.started = time.monotonic()
        self.ended = threading.Event()  # no more DELETEs: the teardowns are done, or have stalled

    def run(self) -> bool:
        """Run the demo; True when every promise was kept. Stops all its processes, also after an error."""
        self.home = Path(tempfile.mkdtemp(prefix="deprovisioner-demo-"))
        keep = False
        try:
            with self._installation():
                findings, killed = self._story()
            keep = not self._report(findings, killed)
        finally:
            if not keep:
                shutil.rmtree(self.home, ignore_errors=True)
        return not keep

    @contextmanager
    def _installation(self) -> Iterator[None]:
        """An `up` of our own, without the environment's variables of any other installation."""
        self._say(f"starting PostgreSQL and Valkey servers, the API and {WORKERS} workers in {self.home}")
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.default_int_handler)  # they end the demo as Ctrl-C does
        options = ["--home", str(self.home), "--port", str(servers.free_port()), "--workers", str(WORKERS)]
        clean = {k: v for k, v in os.environ.items() if not k.startswith((PREFIX, "PG", "REDIS_MAIN"))}
        argv = [sys.executable, "-m", "deprovisioner.cli", "up", *options]
        self.up = servers.Child("up", argv, self.home / "log" / "up.log", env=clean | FAST_SETTINGS)
        try:
            self.up.spawn()
            self.up.wait_until(lambda: "Ctrl-C stops everything" in self.up.tail(), START_SECONDS)
            env = read_env(self.home / "env")
            self.redis_url = env["REDIS_MAIN_URL"]
            valkey = redis.Redis.from_url(self.redis_url, decode_responses=True)
            self.servers = Servers(self.home, env["PG_MAIN_DSN"], valkey)
            bearer = {"Authorization": f"Bearer {env[f'{PREFIX}TENANT_TOKEN']}"}
            limits = httpx.Limits(max_connections=self.deletes + THREADS)
            with httpx.Client(base_url=env[f"{PREFIX}API_URL"], headers=bearer, limits=limits, timeout=30) as self.http:
                yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)  # a second Ctrl-C must not leave servers running
            self.up.stop()
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _story(self) -> tuple[list[Finding], Json | None]:
        victims, neighbours = self._provision()
        neighbours += self._make_by_hand(victims)
        self._say(f"putting {witnesses.ROWS} rows or keys into each, with the customers' own credentials")
        _in_parallel(witnesses.fill, [*victims, *neighbours])
        findings = take_back(self.http, self.servers, victims[: len(KINDS)], self._say)
        self.snapshots_of = victims[: len(KINDS)]
        before = [contents(neighbour) for neighbour in neighbours]
        deluser_before = witnesses.deluser_calls(self.servers)
        logged_in = [psycopg2.connect(v.url) for v in victims if v.kind == "postgres"][:LOGGED_IN]
        self._say(
            f"{self.deletes} concurrent DELETEs of each of {len(victims)}; {len(logged_in)} customers are logged in; "
            "one of each kind gets a final snapshot"
        )
        with ThreadPoolExecutor(1) as pool:
            try:
                storm = pool.submit(self._storm, victims)
                killed = self._watch(len(victims))
                answers = storm.result()
            finally:
                self.ended.set()
        self._say("reading the servers' own records")
        untouched = [n for n, was in zip(neighbours, before, strict=True) if was and contents(n) == was]
        gone = {resource["id"] for resource in self._listing("/v1/resources", status="deleted")}
        findings += [
            *witnesses.from_answers(answers, self.resources, self.deletes),
            *witnesses.from_records(self.servers, victims, gone),
            finding("old credentials that log in", (v for v in victims if contents(v) is not None), 0, "logging in"),
            finding("neighbours untouched", untouched, len(neighbours) // len(KINDS), "their own credentials"),
            Finding(
                "acl|deluser calls",
                None,
                witnesses.deluser_calls(self.servers) - deluser_before,
                None,
                "INFO commandstats",
            ),
        ]
        return findings, self._jobs_of_killed(killed) if killed else None

    # -- before the DELETEs --------------------------------------------------------------------------------------

    def _provision(self) -> tuple[list[Holding], list[Holding]]:
        """The victims, kinds in turn; and one more resource of each kind, which is never deleted."""
        wanted = [(kind, f"customer-{number}") for number in range(self.resources) for kind in KINDS]
        wanted += [(kind, "stays") for kind in KINDS]
        self._say(f"provisioning {self.resources} databases and {self.resources} namespaces, and one more of each")
        ids = _in_parallel(self._create, wanted)
        if not self._wait("active", len(ids)):
            raise DeprovisionerError(
                f"provisioning made no progress for {STALL_SECONDS} s; is the machine busy? Run the demo again"
            )
        holdings = _in_parallel(self._open, ids)
        return holdings[: -len(KINDS)], holdings[-len(KINDS) :]

    def _create(self, wanted: tuple[str, str]) -> str:
        kind, name = wanted
        body = {"kind": kind, "backend": KINDS[kind], "name": name}
        return str(self.http.post("/v1/resources", json=body).raise_for_status().json()["resource"]["id"])

    def _open(self, resource_id: str) -> Holding:
        where = f"/v1/resources/{resource_id}"
        resource = self.http.get(where).raise_for_status().json()
        secret = self.http.get(f"{where}/credentials").raise_for_status().json()
        return Holding(resource["kind"], resource["manifest"], secret.get("dsn") or secret["url"], resource_id)

    def _make_by_hand(self, victims: list[Holding]) -> list[Holding]:
        """Neighbours that the product does not know; one of each kind is named almost like a victim."""
        self._say("making neighbours by hand, some with names and prefixes that begin like a victim's")
        database, namespace = victims[:2]
        return [
            self._database_by_hand("billing", "billing_app"),
            self._database_by_hand(database.names["database"][:-1], database.names["role"][:-1]),
            self._namespace_by_hand("sessions", "sessions:"),
            self._namespace_by_hand(namespace.names["user"][:-1], namespace.names["prefix"][:-1] + "-archive:"),
        ]

    def _database_by_hand(self, database: str, role: str) -> Holding:
        password = secrets.token_hex(8)
        words = {"database": sql.Identifier(database), "role": sql.Identifier(role), "password": sql.Literal(password)}
        with closing(psycopg2.connect(self.servers.pg_dsn)) as session:
            session.autocommit = True
            for statement in (
                "CREATE ROLE {role} LOGIN PASSWORD {password}",
                "CREATE DATABASE {database} OWNER {role}",
            ):
                session.cursor().execute(sql.SQL(statement).format(**words))
        url = make_dsn(self.servers.pg_dsn, dbname=database, user=role, password=password)
        return Holding("postgres", {"database": database, "role": role}, url)

    def _namespace_by_hand(self, user: str, prefix: str) -> Holding:
        password = secrets.token_hex(8)
        self.servers.valkey.execute_command(
            "ACL", "SETUSER", user, "on", f">{password}", f"~{prefix}*", "+@all", "-@dangerous"
        )
        url = httpx.URL(self.redis_url).copy_with(username=user, password=password)
        return Holding("redis", {"user": user, "prefix": prefix}, str(url))

    # -- the DELETEs ---------------------------------------------------------------------------------------------

    def _storm(self, victims: list[Holding]) -> list[Answer]:
        """Delete victim after victim; all DELETEs of one victim are sent at the same moment."""
        answers: list[Answer] = []
        barrier = threading.Barrier(self.deletes)
        with ThreadPoolExecutor(self.deletes) as pool:
            for victim in victims:
                if not self.ended.is_set():
                    answers += pool.map(self._delete, [victim] * self.deletes, [barrier] * self.deletes)
        return answers

    def _delete(self, victim: Holding, barrier: threading.Barrier) -> Answer:
        barrier.wait()
        try:
            how = {"grace": "0s", "snapshot": "required" if victim in self.snapshots_of else "off"}
            answer = self.http.delete(f"/v1/resources/{victim.id}", params=how)
        except httpx.HTTPError as error:
            return Answer(victim, type(error).__name__, None)
        return Answer(victim, answer.status_code, answer.json()["job"]["id"] if answer.is_success else None)

    def _watch(self, total: int) -> int | None:
        """Follow the teardowns to their end. After a third of them, kill a worker that is inside one; its pid."""
        killed: list[int] = []

        def kill_one(done: int) -> None:
            if not killed and done >= total // 3 and (pid := self._worker_inside()):
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
                self._say(f"killed worker {pid} with SIGKILL, inside a teardown; {done} of {total} were done")

        self._wait("deleted", total, kill_one)
        return killed[0] if killed else None

    def _worker_inside(self) -> int | None:
        """The pid of a worker that is inside a teardown; it is a child of our `up`."""
        assert self.up.process  # noqa: S101 - it was spawned
        ours = {child.pid for child in psutil.Process(self.up.process.pid).children()}
        for job in self._listing("/v1/jobs", state="running", kind="deprovision", backend="pg-main"):
            for attempt in self._attempts(job):
                pid = _pid(attempt["worker"])
                if attempt["started_at"] and not attempt["finished_at"] and pid in ours:
                    return pid
        return None

    def _jobs_of_killed(self, pid: int) -> Json:
        """How many jobs the killed worker held, and what became of them."""
        again = [job for job in self._listing("/v1/jobs", kind="deprovision") if job["fence"] > 1]
        attempts = [(job, attempt) for job in again for attempt in self._attempts(job)]
        held = [(j, a) for j, a in attempts if a["outcome"] == "swept" and _pid(a["worker"]) == pid]
        return {
            "pid": pid,
            "held": len(held),
            "begun": sum(attempt["started_at"] is not None for _, attempt in held),
            "finished_by_others": sum(job["state"] == "succeeded" for job, _ in held),
        }

    def _attempts(self, job: Json) -> list[Json]:
        history: list[Json] = self.http.get(job["url"]).raise_for_status().json()["attempt_history"]
        return history

    def _wait(self, status: str, total: int, at_each_poll: Callable[[int], None] | None = None) -> bool:
        """Show a bar until `total` resources have the status; False when none reaches it for STALL_SECONDS."""
        moved, done = time.monotonic(), 0
        while done < total and time.monotonic() < moved + STALL_SECONDS:
            time.sleep(POLL_SECONDS)
            before, done = done, len(self._listing("/v1/resources", status=status))
            moved = time.monotonic() if done != before else moved
            self._bar(status, before, done, total)
            if at_each_poll:
                at_each_poll(done)
        return done >= total

    def _listing(self, path: str, **filters: str) -> list[Json]:
        items: list[Json] = []
        page: Json = {"next_cursor": ""}
        while (cursor := page["next_cursor"]) is not None:
            words = filters | ({"cursor": cursor} if cursor else {}) | {"limit": str(PAGE)}
            page = self.http.get(path, params=words).raise_for_status().json()
            items += page["items"]
        return items

    # -- the report ----------------------------------------------------------------------------------------------

    def _report(self, findings: list[Finding], killed: Json | None) -> bool:
        """Print the table, or with `--json` the same facts; True when every promise was kept."""
        seconds = round(time.monotonic() - self.started, 1)
        broken = [finding.what for finding in findings if not finding.kept]
        if self.as_json:
            facts = {"kept": not broken, "broken": broken, "seconds": seconds, "killed_worker": killed}
            asked = {"resources": self.resources, "deletes": self.deletes}
            click.echo(json.dumps(facts | asked | {"findings": [asdict(finding) for finding in findings]}, indent=2))
        row = "{:<32}{:>11}{:>11}{:>11}   {}{}".format
        lines = [row("", "PostgreSQL", "Valkey", "promised", "seen in", "")]
        for f in findings:
            numbers = ("-" if number is None else number for number in (f.postgres, f.redis, f.promised))
            lines.append(row(f.what, *numbers, f.witness, "" if f.kept else "   <- BROKEN"))
        click.echo("\n" + "\n".join(lines), file=self.prose)
        click.echo(f"\n{_describe_killed(killed)}", file=self.prose)
        if broken:
            click.echo(f"logs and data stay in {self.home}", file=self.prose)
        verdict = f"PROMISE BROKEN: {'; '.join(broken)}" if broken else "PROMISE KEPT"
        click.echo(f"{verdict} ({seconds} s)", file=self.prose)
        return not broken

    def _say(self, line: str) -> None:
        clear = "\r\033[K" if self.prose.isatty() else ""
        click.echo(f"{clear}{time.monotonic() - self.started:5.1f} s  {line}", file=self.prose)

    def _bar(self, what: str, before: int, done: int, total: int) -> None:
        """Draw a bar on a terminal; elsewhere print a line for each quarter."""
        if self.prose.isatty():
            full = BAR * done // total
            end = "\n" if done == total else ""
            click.echo(f"\r         [{'#' * full:-<{BAR}}] {done}/{total} {what}{end}", file=self.prose, nl=False)
        elif done * 4 // total > before * 4 // total:
            self._say(f"{done} of {total} {what}")


def _in_parallel(act: Callable[[T], R], items: Iterable[T]) -> list[R]:
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(act, items))


def _describe_killed(killed: Json | None) -> str:
    if killed is None:
        return "no worker was killed: all teardowns ended before the demo saw a worker inside one"
    return (
        "the killed worker {pid} held {held} jobs and had started {begun}; other workers finished {finished_by_others}"
    ).format(**killed)


def _pid(worker: str) -> int:
    """The pid in a worker's name, which is HOST:PID:DIGITS."""
    return int(worker.split(":")[-2])
