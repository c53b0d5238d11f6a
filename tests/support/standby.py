"""A primary of its own, and a standby that has stopped to replay: it knows less than the primary, and answers."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from deprovisioner.up import servers as embedded
from tests.support import accounts
from tests.support.servers import server_folder
from tests.support.witness import PgServer

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
