"""What a session of ours waits for: a second session looks, ends customers that are in the way, and the error tells."""

import contextlib
import re
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psycopg2
from psycopg2 import extensions

from outbox.errors import BackendError
from worker.backends.postgres.blockers import Blockers

if TYPE_CHECKING:
    from worker.backends.postgres.session import Session

# When the second session looks first, and how soon again after it has ended a customer's. An inspection is done sooner.
LOOK_SECONDS = 0.02
# The longest pause between two looks; where nothing was ended, each pause is longer than the one before.
PAUSE_SECONDS = 0.1
_LONGER = 1.5
# How long DROP DATABASE may wait until each process of the server has closed the files. That takes milliseconds.
BARRIER_SECONDS = 20.0
# How long a commit may wait for a synchronous standby: longer than a living one needs.
CONFIRM_SECONDS = 5.0
# An error of a wait ends it; what was seen longer ago was another wait.
_FRESH_SECONDS = 5.0
_NAMED = 5
# lock_not_available, and query_canceled: by a timeout, or by us.
_ENDS_OF_WAITS = ("55P03", "57014")


@dataclass(frozen=True)
class Client:
    """A session that is in the way, as pg_stat_activity shows it; an account without pg_monitor sees no `since`."""

    pid: int
    user: str | None
    application: str | None
    since: str | None
    slot: str | None = None

    def __str__(self) -> str:
        if self.pid == 0:
            return "a prepared transaction"
        since = f" since {self.since}" if self.since else ""
        slot = f", reads replication slot {self.slot!r}" if self.slot else ""
        user, application = self.user or "the server", self.application or "no application_name"
        return f"pid {self.pid} of {user!r} ({application}){since}{slot}"


class Watch:
    """Looks at one session until `stop`. `looking` lends the second session, for a look at a time.

    Whoever it waits for is ended where it is a customer.
    """

    def __init__(
        self, session: "Session", looking: Callable[[], AbstractContextManager[extensions.connection]]
    ) -> None:
        self._session, self._pid, self._looking = session, session.info.backend_pid, looking
        self._blockers = Blockers(session)
        self._done = threading.Event()
        self._seen: tuple[float, list[str]] = (0.0, [])
        self._wait: tuple[str, str] | None = None  # without a timeout of the server's: what for, since which statement
        self._waits_since = 0.0
        # While a statement is cancelled, none follows it: so the cancel cannot hit the next one.
        self.ending = threading.Lock()
        self.unconfirmed = False  # whether a commit waited for a synchronous standby until it was cancelled

    def start(self) -> None:
        """Begin to watch, in a thread of its own."""
        threading.Thread(target=self._look_often, daemon=True).start()

    def stop(self) -> None:
        """End it; a look that has begun ends by itself."""
        self._done.set()

    def told(self, error: psycopg2.Error) -> str:
        """What the statement that failed so was waiting for; empty where it did not wait, or nothing was seen."""
        if error.pgcode not in _ENDS_OF_WAITS:
            return ""
        if unanswering := _unanswering(self._session):
            return f"; a process of the server does not answer, perhaps it is stopped: {unanswering}"
        seen_at, blockers = self._seen
        return f"; it waited for {', '.join(blockers)}" if time.monotonic() - seen_at < _FRESH_SECONDS else ""

    def _look_often(self) -> None:
        pause = LOOK_SECONDS
        while not self._done.wait(pause):
            pause = min(_LONGER * pause, PAUSE_SECONDS)
            # Again after an error: there may have been no connection slot.
            with contextlib.suppress(BackendError, psycopg2.Error), self._looking() as second:
                if self._look(second):
                    pause = LOOK_SECONDS

    def _look(self, second: extensions.connection) -> bool:
        """Whether it has ended somebody."""
        if self._session.since is None:
            return False
        with second.cursor() as cursor:
            cursor.execute(
                """
                SELECT wait_event_type, wait_event, query_start::pg_catalog.text
                  FROM pg_catalog.pg_stat_get_activity(%s) WHERE backend_start = %s""",
                (self._pid, self._session.since),
            )
            if (found := cursor.fetchone()) is None:
                if not self._done.is_set():  # this session is another server's, from before a failover
                    second.close()
                return False
            kind, event, query = found
            wait = (event, query) if event in ("ProcSignalBarrier", "SyncRep") else None
            if wait != self._wait:
                self._wait, self._waits_since = wait, time.monotonic()
            if kind == "Lock":
                return self._end_blockers(second)
            if wait is not None:
                if event == "ProcSignalBarrier":
                    self._blockers.end_at_barrier(second)
                self._cancel_late(cursor, event)
            return False

    def _end_blockers(self, second: extensions.connection) -> bool:
        with second.cursor() as cursor:
            cursor.execute(
                """
                SELECT p, usename, application_name, backend_start::pg_catalog.text, datname
                  FROM pg_catalog.unnest(pg_catalog.pg_blocking_pids(%s)) AS p
                  LEFT JOIN pg_catalog.pg_stat_activity ON pid = p ORDER BY p LIMIT %s""",
                (self._pid, _NAMED),
            )
            if blockers := [_in_database(*row) for row in cursor]:
                self._seen = (time.monotonic(), blockers)
        return bool(blockers) and self._blockers.end(second)

    def _cancel_late(self, cursor: extensions.cursor, event: str) -> None:
        limit = BARRIER_SECONDS if event == "ProcSignalBarrier" else CONFIRM_SECONDS
        if time.monotonic() - self._waits_since < limit:
            return
        with self.ending:
            cursor.execute(  # asked again in the same statement: the wait may be over
                """
                SELECT CASE WHEN wait_event = %s THEN pg_catalog.pg_cancel_backend(pid) END
                  FROM pg_catalog.pg_stat_activity WHERE pid = %s""",
                (event, self._pid),
            )
            if cursor.fetchone() == (True,) and event == "SyncRep":
                self.unconfirmed = True


def _unanswering(session: extensions.connection) -> str:
    """The process that the server itself said it waits for at a barrier: its log line, which our session is sent."""
    pids = re.findall(r"PID (\d+) to accept ProcSignalBarrier", "".join(session.notices))
    if not pids:
        return ""
    with contextlib.suppress(psycopg2.Error), session.cursor() as cursor:
        cursor.execute(
            """
            SELECT pid, usename, application_name, backend_start::pg_catalog.text, datname
              FROM pg_catalog.pg_stat_activity WHERE pid = %s""",
            (int(pids[-1]),),
        )
        if row := cursor.fetchone():
            return _in_database(*row)
    return f"pid {pids[-1]}"


def _in_database(pid: int, user: str | None, application: str | None, since: str | None, database: str | None) -> str:
    return f"{Client(pid, user, application, since)}" + (f" in {database!r}" if database else "")
