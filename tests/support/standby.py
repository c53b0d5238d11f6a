"""Standbys: one that lags, which knows less than its primary, and answers; and a synchronous one that is missing."""

import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg2
import pytest

from deprovisioner.up import servers as embedded
from tests.support import accounts
from tests.support.servers import server_folder
from tests.support.witness import PgServer, eventually

_FAST = {"fsync": "off", "full_page_writes": "off", "shared_buffers": "16MB"}


@contextmanager
def lagging(programs: Path | None = None) -> Iterator[tuple[PgServer, PgServer]]:
    """Primary and standby. What happens on the primary from now on never reaches the standby.

    `programs` is the folder of another version of PostgreSQL; the test is skipped where there is none.
    """
    if programs and not (programs / "postgres").exists():
        pytest.skip(f"no PostgreSQL in {programs}")
    programs = programs or embedded._postgres_bin()
    home = server_folder("standby")
    started: list[embedded.Child] = []

    def start(name: str) -> PgServer:
        port = embedded.free_port()
        child = embedded.postgres(home, name, port, "secret", _FAST, programs=programs)
        started.append(child)
        dsn = embedded.postgres_dsn(port, "secret")
        child.spawn()
        child.wait_until(lambda: embedded.postgres_ready(dsn))
        return PgServer(dsn, child.log)

    try:
        primary = start("primary")
        primary.service_dsn = accounts.postgres(primary.dsn)
        _copy(primary, home, programs)
        standby = start("standby")
        standby.service_dsn = accounts.in_its_database(accounts.as_service(standby.dsn))  # the copy has the role too
        standby.query("SELECT pg_wal_replay_pause()")
        yield primary, standby
    finally:
        for child in reversed(started):
            child.stop()
        shutil.rmtree(home, ignore_errors=True)


def _copy(primary: PgServer, home: Path, programs: Path) -> None:
    copy = home / "standby"
    command = [programs / "pg_basebackup", "-d", primary.dsn, "-D", copy, "-R", "-c", "fast", "-N"]
    subprocess.run([str(word) for word in command], check=True, capture_output=True, timeout=120)


def require(server: PgServer, names: str) -> None:
    """Set `synchronous_standby_names`: a standby that does not exist, or none; returns once it is in force."""
    admin = psycopg2.connect(server.dsn)
    admin.autocommit = True
    with admin.cursor() as asked:
        asked.execute("SET synchronous_commit = off")
        asked.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{names}'")
        asked.execute("SELECT pg_reload_conf()")
    admin.close()
    eventually(lambda: _commits_wait(server) == bool(names))


def _commits_wait(server: PgServer) -> bool:
    """Whether a commit of a new session waits for a standby: the server's processes read a new setting one by one."""
    session = psycopg2.connect(server.dsn, options="-c synchronous_commit=on")
    session.autocommit = True
    pid = session.info.backend_pid

    def commit() -> None:
        with session.cursor() as cursor:
            cursor.execute("SELECT pg_logical_emit_message(true, 'test', 'x')")

    def waits() -> bool:
        return server.query("SELECT wait_event = 'SyncRep' FROM pg_stat_activity WHERE pid = %s", pid) == [(True,)]

    caller = threading.Thread(target=commit)
    caller.start()
    eventually(lambda: waits() or not caller.is_alive())
    waited = caller.is_alive()
    server.query("SELECT pg_cancel_backend(%s)", pid)
    caller.join(10)
    session.close()
    return waited
