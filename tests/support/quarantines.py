"""Processes that quarantine or release one database, with the boundaries of `crash_points.py`; and what they change."""

import multiprocessing
import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from outbox.errors import ClaimLost
from outbox.rows import Json
from tests.support.witness import PgServer, eventually

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.support.preload"])

QUARANTINE = (
    "end sessions",
    "BEGIN",
    "ALTER ROLE role NOLOGIN",
    "COMMENT ON ROLE name",
    "COMMIT",
    "BEGIN#2",
    "ALTER DATABASE name ALLOW_CONNECTIONS",
    "COMMENT ON DATABASE name",
    "COMMIT#2",
    "end sessions#2",
    "BEGIN#3",
    "ALTER DATABASE name ALLOW_CONNECTIONS#2",
    "ALTER DATABASE old RENAME",
    "COMMIT#3",
)
RELEASE = (
    "end sessions",
    "BEGIN",
    "ALTER DATABASE old RENAME",
    "ALTER DATABASE name ALLOW_CONNECTIONS",
    "COMMENT ON DATABASE name",
    "ALTER ROLE role LOGIN",
    "COMMENT ON ROLE name",
    "COMMIT",
)


def shown(pg: PgServer, manifest: Json) -> list[tuple[Any, ...]]:
    """All that a quarantine may change of a database and its role, by their OIDs."""
    return pg.query(
        """
        SELECT datname, datallowconn, datconnlimit, shobj_description(oid, 'pg_database'), NULL
          FROM pg_database WHERE oid = %s
         UNION ALL
        SELECT rolname, rolcanlogin, rolconnlimit, shobj_description(oid, 'pg_authid'), rolvaliduntil::text
          FROM pg_authid WHERE oid = %s""",
        manifest["oid"],
        manifest.get("role_oid"),
    )


def run(verb: str, dsn: str, manifest: Json, env: Mapping[str, str]) -> None:
    """Run one verb in this process. Its claim is lost from the moment at which the file CLAIM_LOST exists."""
    from tests.support import crash_points
    from worker.backends.postgres import Postgres

    crash_points._around_postgres(crash_points._Reach(env))

    def still() -> None:
        if Path(env["CLAIM_LOST"]).exists():
            raise ClaimLost("another worker has it")

    with suppress(ClaimLost):
        getattr(Postgres(dsn), verb)(manifest, still)


class Acting:
    """A process at one verb of one database. `lost` makes its claim lost."""

    def __init__(self, verb: str, dsn: str, manifest: Json, folder: Path, **env: str) -> None:
        self.lost = folder / "lost"
        words = (verb, dsn, manifest, env | {"CLAIM_LOST": str(self.lost)})
        self._process = _CONTEXT.Process(target=run, args=words, daemon=True)
        self._process.start()

    def ends(self) -> int:
        """Its exit code."""
        self._process.join(60)
        assert self._process.exitcode is not None
        return self._process.exitcode

    def stops_itself(self) -> None:
        """Wait until it has sent itself SIGSTOP."""
        process = psutil.Process(self._process.pid)
        eventually(lambda: process.status() == psutil.STATUS_STOPPED, what="it stops itself")

    def wake(self) -> None:
        assert self._process.pid
        os.kill(self._process.pid, signal.SIGCONT)

    def kill(self) -> None:
        self._process.kill()
        self._process.join()


@contextmanager
def stopped(verb: str, dsn: str, manifest: Json, folder: Path, at: str) -> Iterator[Acting]:
    """A process that stands still at that boundary of the verb."""
    acting = Acting(verb, dsn, manifest, folder, CRASH_AT=at, CRASH_SIGNAL="SIGSTOP")
    try:
        acting.stops_itself()
        yield acting
    finally:
        acting.kill()
