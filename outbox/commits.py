"""Commits that no standby confirms: with `synchronous_standby_names`, a COMMIT waits for standbys without limit.

No timeout of the server ends that wait, and a cancel turns it into a success with a warning: the commit is there, and a
failover may take it back. So a watch ends such waits, and what was ended so is an error.
"""

import threading
import time
from typing import Any

import psycopg2
from psycopg2.extensions import connection, cursor

# Longer than a standby needs that lives; below the statement timeout, so that a caller learns of it in time.
CONFIRM_SECONDS = 5
# The words of the server's warning, in English: who cancels from outside is found by them.
_WORDS = "synchronous replication"
_CANCEL = """SELECT pid FROM pg_catalog.pg_stat_activity
              WHERE pid = ANY(%s) AND wait_event = 'SyncRep' AND pg_catalog.pg_cancel_backend(pid)"""


DriverError = psycopg2.Error


class NotConfirmed(psycopg2.OperationalError):  # type: ignore[misc]  # psycopg2 has no types
    """The commit is on the server's disk, and no standby confirmed it."""


class WatchedConnection(connection):  # type: ignore[misc]
    """A connection whose statements and commits are watched."""

    cancelled = False

    def commit(self) -> None:
        """COMMIT. Raises NotConfirmed."""
        with _Watched(self):
            super().commit()


class WatchedCursor(cursor):  # type: ignore[misc]
    """A cursor whose statements are watched: outside of a transaction each of them commits."""

    def execute(self, query: Any, vars: Any = None) -> None:
        """Execute. Raises NotConfirmed."""
        with _Watched(self.connection):
            super().execute(query, vars)


class _Watched:
    def __init__(self, watched: Any) -> None:
        self.watched = watched

    def __enter__(self) -> None:
        self.watched.cancelled = False
        self.watched.notices.clear()
        _watch.add(self.watched)

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        _watch.remove(self.watched)
        if kind is None and (self.watched.cancelled or any(_WORDS in notice for notice in self.watched.notices)):
            raise NotConfirmed("the commit waited for a synchronous standby, and none confirmed it")


class _Watch:
    """One thread that cancels commits which have waited for a standby for too long."""

    def __init__(self) -> None:
        self._since: dict[Any, float] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def add(self, watched: Any) -> None:
        with self._lock:
            self._since[watched] = time.monotonic()
            if self._thread is None or not self._thread.is_alive():  # a child process has no thread of its parent
                self._thread = threading.Thread(target=self._run, name="commits", daemon=True)
                self._thread.start()

    def remove(self, watched: Any) -> None:
        with self._lock:
            self._since.pop(watched, None)

    def _run(self) -> None:
        while True:
            time.sleep(1)
            oldest = time.monotonic() - CONFIRM_SECONDS
            with self._lock:
                late = [watched for watched, since in self._since.items() if since < oldest]
            if late:
                try:
                    self._cancel(late)
                except psycopg2.Error:
                    continue  # the server is away: then the watched connection is lost too, or the next round asks

    def _cancel(self, late: list[Any]) -> None:
        by_pid = {watched.info.backend_pid: watched for watched in late}
        asked = psycopg2.connect(late[0].dsn, password=late[0].info.password, connect_timeout=5)
        try:
            asked.autocommit = True
            with asked.cursor() as answer:
                answer.execute(_CANCEL, ([*by_pid],))
                for (pid,) in answer.fetchall():
                    by_pid[pid].cancelled = True
        finally:
            asked.close()


_watch = _Watch()
