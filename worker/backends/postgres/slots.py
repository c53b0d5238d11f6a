"""The session that a worker keeps: it looks at what the others wait for, and frees slots when no other gets in."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psycopg2
from psycopg2 import extensions, sql

from worker.backends.postgres.blockers import CUSTOMERS

# A role has taken too much from this part of the slots on; where no customer has, the server is simply full.
PART = 10
# How long one that finds no slot waits for the session that is kept: another may be at freeing some.
FREE_SECONDS = 5.0
# How long to wait for the session that is kept: others have it for milliseconds, unless the server is stopped.
_TURN_SECONDS = 0.05
# Slots that are free for a moment, or taken by connections that are still being made.
_MARGIN = 3
# Whether the server is full, and the customer with the most sessions.
_EATER = f"""
    SELECT usesysid, usename, pg_catalog.count(*), rolconnlimit
      FROM pg_catalog.pg_stat_activity JOIN pg_catalog.pg_roles ON pg_roles.oid = usesysid
     WHERE usesysid IN ({CUSTOMERS})
       AND (SELECT pg_catalog.count(*) FROM pg_catalog.pg_stat_activity WHERE COALESCE(usesysid, datid) IS NOT NULL)
           >= pg_catalog.current_setting('max_connections')::pg_catalog.int4 - {_MARGIN}
            - pg_catalog.current_setting('superuser_reserved_connections')::pg_catalog.int4
            - COALESCE(pg_catalog.current_setting('reserved_connections', true)::pg_catalog.int4, 0)
     GROUP BY usesysid, usename, rolconnlimit
    HAVING pg_catalog.count(*) * {PART} >= pg_catalog.current_setting('max_connections')::pg_catalog.int4
     ORDER BY pg_catalog.count(*) DESC LIMIT 1"""


class Slots:
    """The session that is kept; `limit` is what a role of ours without a connection limit is given."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._kept: extensions.connection | None = None
        self._lock = threading.Lock()

    def keep(self, connect: Callable[[], extensions.connection]) -> None:
        """Keep a session, unless there is one. What `connect` raises is not told: it is tried again the next time."""
        with self._turn(0) as ours:
            if ours and (self._kept is None or self._kept.closed):
                with contextlib.suppress(psycopg2.Error):
                    self._kept = connect()
                    self._kept.autocommit = True

    @contextmanager
    def lent(self) -> Iterator[extensions.connection | None]:
        """The session that is kept, for a moment; None where there is none, or others have it."""
        with self._turn(_TURN_SECONDS) as ours:
            yield self._kept if ours and self._kept is not None and not self._kept.closed else None

    @contextmanager
    def _turn(self, seconds: float) -> Iterator[bool]:
        ours = self._lock.acquire(timeout=seconds)
        try:
            yield ours
        finally:
            if ours:
                self._lock.release()

    def free(self) -> str:
        """End the sessions of the customer with the most, where the server is full; the evidence, else empty."""
        with self._turn(FREE_SECONDS) as ours:
            if not ours or self._kept is None:
                return ""
            try:
                return self._free(self._kept)
            except psycopg2.Error:
                self._kept.close()
                self._kept = None
                return ""

    def _free(self, kept: extensions.connection) -> str:
        with kept.cursor() as cursor:
            cursor.execute("SET lock_timeout = '1s'")
            cursor.execute(_EATER)
            if (found := cursor.fetchone()) is None:
                return ""
            oid, user, sessions, limit = found
            cursor.execute("SELECT pid FROM pg_catalog.pg_stat_activity WHERE usesysid = %s", (oid,))
            for (pid,) in cursor.fetchall():
                with contextlib.suppress(psycopg2.errors.InsufficientPrivilege):
                    cursor.execute("SELECT pg_catalog.pg_terminate_backend(%s)", (pid,))
            if limit == -1:  # made by an older version, or adopted: else it takes them again
                lowered = sql.SQL("ALTER ROLE {} CONNECTION LIMIT {}").format(
                    sql.Identifier(user), sql.Literal(self.limit)
                )
                with contextlib.suppress(psycopg2.errors.LockNotAvailable, psycopg2.errors.InternalError_):
                    cursor.execute(lowered)
        return f"ended the {sessions} sessions of {user!r}, a customer: the server had no connection slot left"
