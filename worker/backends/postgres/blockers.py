"""Customers that a statement of ours waits for: their sessions are ended, their prepared transactions rolled back.

A customer is a role that bears our mark, a resource's of any backend: only an administrator can write that comment, so
no customer can lose it, and no operator's role has it by chance. The database says less: operators work in there too.
"""

import contextlib
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psycopg2
from psycopg2 import extensions, sql

from outbox.errors import BackendError

if TYPE_CHECKING:
    from worker.backends.postgres.session import Session

# How old a customer's transaction may become while a statement of ours waits for it, and how long that waits for any.
# More than a transaction that changes a row takes; less than `deadlock_timeout` (1 s): a customer that waits for us in
# turn must not make the server choose our statement as the one that fails.
GRACE_SECONDS = 0.1
# How many of those that were ended the evidence of one session names.
TOLD = 20
# Another resource's mark than the one of the teardown, so no generation is named here.
MARKED = "description ~ 'deprovisioner gen=[0-9a-f-]{36}$'"
CUSTOMERS = f"""
    SELECT objoid FROM pg_catalog.pg_shdescription
     WHERE classoid = 'pg_catalog.pg_authid'::pg_catalog.regclass AND {MARKED}"""
_OLD = "< pg_catalog.clock_timestamp() - pg_catalog.make_interval(secs => %(grace)s)"
# A session and its start, so that no other process that got the number meanwhile is ended.
_BLOCKERS = f"""
    SELECT pid, usename, application_name, backend_start::pg_catalog.text, datname, usesysid
      FROM pg_catalog.unnest(pg_catalog.pg_blocking_pids(%(pid)s)) AS p JOIN pg_catalog.pg_stat_activity ON pid = p
     WHERE backend_start IS NOT NULL AND usesysid IN ({CUSTOMERS})
       AND (xact_start {_OLD} OR usesysid = ANY(%(roles)s::pg_catalog.oid[])
            OR EXISTS (SELECT FROM pg_catalog.pg_locks WHERE pid = %(pid)s AND NOT granted AND waitstart {_OLD}))"""
# The other sessions of a role whose session was ended for its locks already, as far as they are in a transaction.
_MORE = """
    SELECT pid, usename, application_name, backend_start::pg_catalog.text, datname, usesysid
      FROM pg_catalog.pg_stat_activity
     WHERE backend_start IS NOT NULL AND xact_start IS NOT NULL AND usesysid = ANY(%s::pg_catalog.oid[])"""
# A session that waits for its client's data (COPY FROM STDIN) answers no barrier, so DROP DATABASE waits for it, in
# whichever database it is. It answers with the next row. One that waits until its client reads does answer.
_SILENT = f"""
    SELECT s.pid, usename, application_name, backend_start::pg_catalog.text, s.datname, bytes_processed
      FROM pg_catalog.pg_stat_activity AS s LEFT JOIN pg_catalog.pg_stat_progress_copy AS c ON c.pid = s.pid
     WHERE backend_start IS NOT NULL AND state = 'active' AND wait_event = 'ClientRead'
       AND usesysid IN ({CUSTOMERS})"""
# How long a client may send no data before its session is ended. It may be an innocent slow one, whose load is rolled
# back: so this is longer than TCP takes to send a lost packet again.
SILENT_SECONDS = 1.0
# How long its session may be in the way all the same: a row that is sent byte by byte never ends.
DRIBBLE_SECONDS = 5.0
_PREPARED = f"""
    SELECT gid, owner, x.database
      FROM pg_catalog.pg_locks AS wanted
      JOIN pg_catalog.pg_locks AS held
        ON held.granted AND held.pid IS NULL AND held.locktype = wanted.locktype
       AND held.database IS NOT DISTINCT FROM wanted.database AND held.relation IS NOT DISTINCT FROM wanted.relation
       AND held.transactionid IS NOT DISTINCT FROM wanted.transactionid
       AND held.classid IS NOT DISTINCT FROM wanted.classid AND held.objid IS NOT DISTINCT FROM wanted.objid
      JOIN pg_catalog.pg_locks AS own ON own.virtualtransaction = held.virtualtransaction AND own.pid IS NULL
      JOIN pg_catalog.pg_prepared_xacts AS x ON x.transaction = own.transactionid
     WHERE wanted.pid = %(pid)s AND NOT wanted.granted AND (x.prepared {_OLD} OR wanted.waitstart {_OLD})
       AND owner IN (SELECT rolname FROM pg_catalog.pg_roles WHERE oid IN ({CUSTOMERS}))"""


@dataclass(frozen=True)
class _Silence:
    """Since when a session has been seen at each look, and since when it has got no data, by `time.monotonic()`."""

    first: float
    since: float
    sent: int | None


class Blockers:
    """Ends the customers that one session waits for, look by look. The session's evidence gets a line for each."""

    def __init__(self, session: "Session") -> None:
        self._session, self._pid = session, session.info.backend_pid
        self._roles: set[int] = set()
        self._silent: dict[tuple[int, str], _Silence] = {}
        self._told = 0

    def end(self, second: extensions.connection) -> bool:
        """One look, through a second session; whether it ended anything."""
        with second.cursor() as cursor:
            waits = {"pid": self._pid, "grace": GRACE_SECONDS, "roles": sorted(self._roles)}
            cursor.execute(_BLOCKERS, waits)
            found = cursor.fetchall()
            again = {role for *_, role in found} & self._roles
            self._roles |= {role for *_, role in found}
            if again:  # each of its sessions may hold the next lock
                cursor.execute(_MORE, (sorted(again),))
                found = list({row[0]: row for row in found + cursor.fetchall()}.values())
            cursor.execute(_PREPARED, waits)
            prepared = cursor.fetchall()
        for pid, user, application, since, database, _ in found:
            self._end(second, pid, since, f"pid {pid} of {user!r} ({application}) since {since} in {database!r}")
        self._roll_back(prepared)
        return bool(found or prepared)

    def end_at_barrier(self, second: extensions.connection) -> None:
        """One look while our statement waits until each process of the server has answered."""
        with second.cursor() as cursor:
            cursor.execute(_SILENT)
            found = {(row[0], row[3]): row for row in cursor}
        now = time.monotonic()
        seen = {session: self._silent.get(session, _Silence(now, now, row[5])) for session, row in found.items()}
        self._silent = {
            session: silence if silence.sent == found[session][5] else _Silence(silence.first, now, found[session][5])
            for session, silence in seen.items()
        }
        for session, (pid, user, application, since, database, _) in found.items():
            silence = self._silent[session]
            if now - silence.since >= SILENT_SECONDS or now - silence.first >= DRIBBLE_SECONDS:
                self._end(second, pid, since, f"pid {pid} of {user!r} ({application}) since {since} in {database!r}")

    def _end(self, second: extensions.connection, pid: int, since: str, who: str) -> None:
        told = f"ended a customer's session that we waited for: {who}"
        counts = self._tell(told)  # before: our statement goes on in the moment at which the session has ended
        with contextlib.suppress(psycopg2.Error), second.cursor() as cursor:
            cursor.execute(
                """
                SELECT pg_catalog.pg_terminate_backend(pid) FROM pg_catalog.pg_stat_activity
                 WHERE pid = %s AND backend_start = %s::pg_catalog.timestamptz""",
                (pid, since),
            )
            if cursor.fetchone() == (True,):
                return
        if counts:
            self._session.take_back(told)

    def _roll_back(self, transactions: list[tuple[str, str, str]]) -> None:
        for gid, owner, database in transactions:
            told = f"rolled back a customer's prepared transaction that we waited for: {gid!r} of {owner!r}"
            with (
                contextlib.suppress(BackendError, psycopg2.Error),
                self._session.server.connect(database, watched=False) as inside,
            ):
                inside.execute("SET ROLE {owner}", owner=owner)
                self._tell(f"{told} in {database!r}")
                inside.execute("ROLLBACK PREPARED {gid}", gid=sql.Literal(gid))

    def _tell(self, told: str) -> bool:
        """Bounded, since a customer decides how often it comes back; whether it is told."""
        self._told += 1
        if self._told <= TOLD:
            self._session.tell(told)
        elif self._told == TOLD + 1:
            self._session.tell("ended more customers' sessions that we waited for")
        return self._told <= TOLD
