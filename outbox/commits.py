"""Commits that no standby confirms: with `synchronous_standby_names`, a COMMIT waits for standbys without limit.

No timeout of the server ends that wait, and a cancel turns it into a success with a warning: the commit is there, and a
failover may take it back. So a watch ends such waits, and what was ended so is an error.
"""

import threading
import time
from typing import Any

import psycopg2
from psycopg2.extensions import TRANSACTION_STATUS_IDLE, connection, cursor

# Longer than a living standby needs; below the statement timeout, so that a caller learns of it in time.
CONFIRM_SECONDS = 5
# Where the watch cannot see what a statement waits for, it ends those that are older than any of ours but a sweep.
UNSEEN_SECONDS = 10
# A session that does not wait for a standby is left alone.
_CANCEL = """SELECT CASE WHEN wait_event = 'SyncRep' THEN pg_catalog.pg_cancel_backend(pid) ELSE false END
               FROM pg_catalog.pg_stat_activity WHERE pid = %(pid)s"""
# Behind a pooler in transaction mode a connection does not know its server process. What this role commits under this
# name has waited for so long; a cancel that comes too late may end the session's next statement, which then is asked
# again like any that was in the way.
_CANCEL_POOLED = """SELECT pg_catalog.pg_cancel_backend(pid) FROM pg_catalog.pg_stat_activity
                     WHERE wait_event = 'SyncRep' AND usename = current_user AND datname = current_database()
                       AND application_name = 'deprovisioner'
                       AND state_change < pg_catalog.clock_timestamp() - %(seconds)s * interval '1 second'"""
# For reads that answer what an earlier commit wrote: such a commit may be unconfirmed, and this one comes after it.
CONFIRM = """CASE WHEN current_setting('synchronous_standby_names') <> '' AND NOT pg_is_in_recovery()
            THEN pg_logical_emit_message(true, 'deprovisioner', 'confirm') END AS confirmed"""

DriverError = psycopg2.Error
# A commit of this process was not confirmed, and none has been since. A new process does not know whether they are.
doubted = threading.Event()
doubted.set()


class NotConfirmed(psycopg2.OperationalError):  # type: ignore[misc]  # psycopg2 has no types
    """The commit is on the server's disk, and no standby confirmed it."""


class WatchedConnection(connection):  # type: ignore[misc]
    """A connection whose statements and commits are watched."""

    pooled = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.cancelled = False
        # While the watch cancels a statement, the statement does not end: so the cancel cannot hit the next one.
        self.ending = threading.Lock()

    def commit(self) -> None:
        """COMMIT. Raises NotConfirmed."""
        with _Watched(self):
            super().commit()


class PooledConnection(WatchedConnection):
    """A watched connection behind a pooler in transaction mode."""

    pooled = True


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
        with self.watched.ending:
            _watch.remove(self.watched)
        if kind is None and (self.watched.cancelled or _warned(self.watched)):
            doubted.set()
            raise NotConfirmed("the commit waited for a synchronous standby, and none confirmed it")


def _warned(watched: Any) -> bool:
    """Whether a commit brought a warning: who cancels the wait from outside is known by nothing else.

    The server writes it in its own language, and psycopg2 shows no code. So any warning of a commit counts, where the
    server has synchronous standbys.
    """
    if not watched.notices or watched.info.transaction_status != TRANSACTION_STATUS_IDLE:
        return False
    with watched.cursor(cursor_factory=cursor) as asked:
        asked.execute("SELECT pg_catalog.current_setting('synchronous_standby_names') <> ''")
        waits: bool = asked.fetchone()[0]
    if not watched.autocommit:
        watched.rollback()
    return waits


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
                late = [(watched, since) for watched, since in self._since.items() if since < oldest]
            if late:
                try:
                    self._cancel(late)
                except psycopg2.Error:
                    continue  # the server is away: then the watched connection is lost too, or the next round asks

    def _cancel(self, late: list[tuple[Any, float]]) -> None:
        first = late[0][0]
        try:
            asked = psycopg2.connect(first.dsn, password=first.info.password, connect_timeout=5)
        except psycopg2.OperationalError:  # perhaps the waiting commits hold every slot of the server
            self._cancel_unseen([each for each in late if each[1] < time.monotonic() - UNSEEN_SECONDS])
            return
        try:
            asked.autocommit = True
            with asked.cursor() as answer:
                if first.pooled:
                    answer.execute(_CANCEL_POOLED, {"seconds": CONFIRM_SECONDS})
                    return
                for watched, since in late:
                    with watched.ending:
                        if self._since.get(watched) == since:  # still the same statement
                            answer.execute(_CANCEL, {"pid": watched.info.backend_pid})
                            watched.cancelled = answer.fetchone() == (True,)
        finally:
            asked.close()

    def _cancel_unseen(self, late: list[tuple[Any, float]]) -> None:
        """Cancel by libpq's request, which needs no slot: a commit then warns, any other statement fails as busy."""
        for watched, since in late:
            with watched.ending:
                if self._since.get(watched) == since:
                    watched.cancel()


_watch = _Watch()
