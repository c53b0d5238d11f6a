"""Undo on PostgreSQL, through the product: how soon a DELETE cuts a customer off, and how soon a restore lets it in.

    python -m bench.undo [--runs 30] [--megabytes 1,5000] [--json FILE]

A customer has 50 sessions and one prepared transaction. The clock runs from the moment at which the DELETE is sent
until the server shows none of its sessions; and from the moment at which the restore is asked for until the customer's
own connection string logs in, and until the resource is `active`.
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import psycopg2

from bench.stack import PRODUCT, Stack, stack
from outbox.settings import PREFIX

SESSIONS = 50
# For a wait that ends at all: a database of 5 GB is filled within it.
PATIENCE_SECONDS = 900.0
# How often the server is asked, and so how exact a figure is.
POLL_SECONDS = 0.002
_FILE = '[backends.pg-main]\nkind = "postgres"\ndsn = "{dsn}"\ngrace = "10m"\nmin_grace = "0s"\n'
_LIVE = "SELECT count(*) FROM pg_stat_activity WHERE datname = ANY(%s) OR usename = %s"
# A thousand bytes a row, too short to be compressed.
_FILL = "CREATE TABLE filling AS SELECT n, repeat(md5(n::text), 30) AS words FROM generate_series(1, {rows}) AS n"


class Customer:
    """One resource of the tenant, seen from outside."""

    def __init__(self, running: Stack, http: httpx.Client, name: str) -> None:
        self._running, self._http = running, http
        asked = {"kind": "postgres", "backend": "pg-main", "name": name}
        made = _accepted(http.post("/v1/resources", json=asked))
        self.id = made["resource"]["id"]
        self.until("active")
        answer = http.get(f"/v1/resources/{self.id}/credentials").raise_for_status().json()
        self.dsn: str = answer.get("credentials", answer)["dsn"]
        self.manifest = http.get(f"/v1/resources/{self.id}").raise_for_status().json()["manifest"]

    def until(self, status: str) -> None:
        """Wait for the resource's status, and for the end of its job's step."""
        _poll(lambda: self._http.get(f"/v1/resources/{self.id}").raise_for_status().json()["status"] == status, 0.02)

    def ask(self, statement: str) -> list[Any]:
        """Run a statement as the customer."""
        with closing(psycopg2.connect(self.dsn)) as session, session.cursor() as cursor:
            session.autocommit = True
            cursor.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def prepare(self) -> None:
        """Leave a prepared transaction."""
        with closing(psycopg2.connect(self.dsn)) as session:
            session.tpc_begin(session.xid(1, self.manifest["database"], "bench"))
            session.cursor().execute("CREATE TABLE prepared (n int)")
            session.tpc_prepare()

    def cut_off(self) -> float:
        """Seconds from the DELETE to the end of the last of 50 sessions."""
        names = [self.manifest["database"], f"zz_del_{self.manifest['generation']}"]
        with ExitStack() as live, closing(psycopg2.connect(self._running.pg_main_admin_dsn)) as witness:
            for _ in range(SESSIONS):
                live.enter_context(closing(psycopg2.connect(self.dsn)))
            witness.autocommit = True
            cursor = witness.cursor()

            def sessions() -> int:
                cursor.execute(_LIVE, (names, self.manifest["role"]))
                return int(cursor.fetchall()[0][0])

            assert sessions() >= SESSIONS
            began = time.perf_counter()
            _accepted(self._http.delete(f"/v1/resources/{self.id}"))
            _poll(lambda: sessions() == 0, POLL_SECONDS)
            seconds = time.perf_counter() - began
        _poll(self._is_quarantined, 0.02)
        return seconds

    def restore(self) -> tuple[float, float]:
        """Seconds from the restore to a login with the old connection string, and to `active`."""
        began = time.perf_counter()
        _accepted(self._http.post(f"/v1/resources/{self.id}/restore", json={"reason": "bench"}))
        _poll(self._logs_in, POLL_SECONDS)
        logged_in = time.perf_counter() - began
        self.until("active")
        return logged_in, time.perf_counter() - began

    def destroy(self) -> None:
        """Delete it for good."""
        _accepted(self._http.delete(f"/v1/resources/{self.id}", params={"grace": "0s"}))
        self.until("deleted")

    def _logs_in(self) -> bool:
        try:
            psycopg2.connect(self.dsn).close()
        except psycopg2.OperationalError:
            return False
        return True

    def _is_quarantined(self) -> bool:
        items = self._http.get("/v1/jobs", params={"kind": "deprovision"}).raise_for_status().json()["items"]
        return any(
            job["resource_id"] == self.id and (job["step"], job["state"]) == ("wait", "pending") for job in items
        )


def main() -> None:
    """Measure and print; the servers are removed at the end."""
    parser = argparse.ArgumentParser(prog="python -m bench.undo", description=__doc__)
    parser.add_argument("--runs", type=int, default=30, metavar="N")
    parser.add_argument(
        "--megabytes", default="1,5000", metavar="N,...", help="sizes of the databases that are restored"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every sample to FILE")
    options = parser.parse_args()
    with _product() as (running, http):
        samples = _cut_offs(running, http, options.runs)
        for megabytes in map(int, options.megabytes.split(",")):
            samples |= _restores(running, http, megabytes, options.runs)
    for what, seconds in samples.items():
        print(f"{what:60} p50 {_at(seconds, 0.5):6.3f} s  p99 {_at(seconds, 0.99):6.3f} s  of {len(seconds)}")
    print(f"load {os.getloadavg()[0]:.1f}")
    if options.json:
        options.json.write_text(json.dumps(samples, indent=2) + "\n")


def _cut_offs(running: Stack, http: httpx.Client, runs: int) -> dict[str, list[float]]:
    customer = Customer(running, http, "cut-off")
    customer.prepare()
    found: dict[str, list[float]] = {f"DELETE to no session, {SESSIONS} sessions, 1 prepared transaction": []}
    for _ in range(runs):
        for seconds in found.values():
            seconds.append(customer.cut_off())
        customer.restore()
    customer.destroy()
    return found


def _restores(running: Stack, http: httpx.Client, megabytes: int, runs: int) -> dict[str, list[float]]:
    customer = Customer(running, http, f"restored-{megabytes}")
    customer.ask(_FILL.format(rows=1000 * megabytes))
    ((size,),) = customer.ask("SELECT pg_database_size(current_database()) / 1000000")
    rows = customer.ask("SELECT count(*) FROM filling")
    cut, logins, active = [], [], []
    for _ in range(runs):
        cut.append(customer.cut_off())
        logged_in, done = customer.restore()
        logins.append(logged_in)
        active.append(done)
    assert customer.ask("SELECT count(*) FROM filling") == rows
    customer.destroy()
    return {
        f"DELETE to no session, {SESSIONS} sessions, {size} MB": cut,
        f"restore to login, {size} MB": logins,
        f"restore to active, {size} MB": active,
    }


@contextmanager
def _product() -> Iterator[tuple[Stack, httpx.Client]]:
    """One API process, one worker, and a client of the tenant."""
    with stack() as running, running.real_backends({"max_prepared_transactions": "5"}):
        path = running.home / "undo.toml"
        path.write_text(_FILE.format(dsn=running.pg_main_dsn))
        os.environ[f"{PREFIX}BACKENDS"] = str(path)
        address = f"http://127.0.0.1:{running.api_port}"
        headers = {"Authorization": f"Bearer {running.token}"}
        with (
            running.api(),
            running.workers(1, 8, argv=[*PRODUCT, "worker"], backends=path),
            httpx.Client(base_url=address, headers=headers, timeout=30) as http,
        ):
            yield running, http


def _accepted(answer: httpx.Response) -> Any:
    assert answer.status_code == httpx.codes.ACCEPTED, answer.text
    return answer.json()


def _poll(happened: Callable[[], bool], every: float) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not happened():
        assert time.monotonic() < deadline, f"not after {PATIENCE_SECONDS:.0f} s"
        time.sleep(every)


def _at(samples: list[float], part: float) -> float:
    return sorted(samples)[min(len(samples) - 1, int(part * len(samples)))]


if __name__ == "__main__":
    main()
