"""Customers that a statement of ours waits for: their sessions are ended, their prepared transactions rolled back.

A customer is a role that bears our mark, a resource's of any backend: only an administrator can write that comment, so
no customer can lose it, and no operator's role has it by chance. The database says less: operators work in there too.
"""

import contextlib
from typing import TYPE_CHECKING

import psycopg2
from psycopg2 import extensions, sql

from outbox.errors import BackendError

if TYPE_CHECKING:
    from worker.backends.postgres.session import Server

# How long a statement waits before whoever it waits for is ended. It is less than `deadlock_timeout` (1 s): a customer
# that waits for us in turn must not make the server choose our statement as the one that fails.
GRACE_SECONDS = 0.5
# How many of those that were ended the evidence of one session names.
TOLD = 20
# Another resource's mark than the one of the teardown, so no generation is named here.
MARKED = "description ~ 'deprovisioner gen=[0-9a-f-]{36}$'"
CUSTOMERS = f"""
    SELECT objoid FROM pg_catalog.pg_shdescription
     WHERE classoid = 'pg_catalog.pg_authid'::pg_catalog.regclass AND {MARKED}"""
_WAITS = """
           wanted.pid = %(pid)s AND NOT wanted.granted
       AND wanted.waitstart < pg_catalog.clock_timestamp() - pg_catalog.make_interval(secs => %(grace)s)"""
# A session and its start, so that no other process that got the number meanwhile is ended.
_BLOCKERS = f"""
    SELECT pid, usename, application_name, backend_start::pg_catalog.text, datname, usesysid
      FROM pg_catalog.unnest(pg_catalog.pg_blocking_pids(%(pid)s)) AS p JOIN pg_catalog.pg_stat_activity ON pid = p
     WHERE backend_start IS NOT NULL AND usesysid IN ({CUSTOMERS})
       AND EXISTS (SELECT FROM pg_catalog.pg_locks AS wanted WHERE {_WAITS})"""
# The other sessions of a role whose session was ended for its locks already, as far as they are in a transaction.
_MORE = """
    SELECT pid, usename, application_name, backend_start::pg_catalog.text, datname, usesysid
      FROM pg_catalog.pg_stat_activity
     WHERE backend_start IS NOT NULL AND xact_start IS NOT NULL AND usesysid = ANY(%s::pg_catalog.oid[])"""
# A session that waits for its client's data (COPY FROM STDIN) answers no barrier, so DROP DATABASE waits for it, in
# whichever database it is. One that waits until its client reads does answer.
_SILENT = f"""
    SELECT pid, usename, application_name, backend_start::pg_catalog.text, datname, usesysid
      FROM pg_catalog.pg_stat_activity
     WHERE backend_start IS NOT NULL AND state = 'active' AND wait_event = 'ClientRead'
       AND usesysid IN ({CUSTOMERS})"""
# How many looks in a row see a session wait for data before it is ended: data that flows is not stopped.
SILENT_LOOKS = 4
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
     WHERE {_WAITS}
       AND owner IN (SELECT rolname FROM pg_catalog.pg_roles WHERE oid IN ({CUSTOMERS}))"""


class Blockers:
    """Ends the customers that one session waits for, look by look. `evidence` gets a line for each."""

    def __init__(self, pid: int, server: "Server", evidence: list[str]) -> None:
        self._pid, self._server, self._evidence = pid, server, evidence
        self._roles: set[int] = set()
        self._silent: dict[tuple[int, str], int] = {}
        self._told = 0

    def end(self, second: extensions.connection) -> None:
        """One look, through a second session."""
        with second.cursor() as cursor:
            waits = {"pid": self._pid, "grace": GRACE_SECONDS}
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

    def end_at_barrier(self, second: extensions.connection) -> None:
        """One look while our statement waits until each process of the server has answered."""
        with second.cursor() as cursor:
            cursor.execute(_SILENT)
            found = {(row[0], row[3]): row for row in cursor}
        self._silent = {session: self._silent.get(session, 0) + 1 for session in found}
        for session, (pid, user, application, since, database, _) in found.items():
            if self._silent[session] >= SILENT_LOOKS:
                self._end(second, pid, since, f"pid {pid} of {user!r} ({application}) since {since} in {database!r}")

    def _end(self, second: extensions.connection, pid: int, since: str, who: str) -> None:
        told = f"ended a customer's session that we waited for: {who}"
        self._tell(told)  # before: our statement goes on in the moment at which the session has ended
        with contextlib.suppress(psycopg2.Error), second.cursor() as cursor:
            cursor.execute(
                """
                SELECT pg_catalog.pg_terminate_backend(pid) FROM pg_catalog.pg_stat_activity
                 WHERE pid = %s AND backend_start = %s::pg_catalog.timestamptz""",
                (pid, since),
            )
            if cursor.fetchone() == (True,):
                return
        with contextlib.suppress(ValueError):
            self._evidence.remove(told)

    def _roll_back(self, transactions: list[tuple[str, str, str]]) -> None:
        for gid, owner, database in transactions:
            told = f"rolled back a customer's prepared transaction that we waited for: {gid!r} of {owner!r}"
            with (
                contextlib.suppress(BackendError, psycopg2.Error),
                self._server.connect(database, watched=False) as inside,
            ):
                inside.execute("SET ROLE {owner}", owner=owner)
                self._tell(f"{told} in {database!r}")
                inside.execute("ROLLBACK PREPARED {gid}", gid=sql.Literal(gid))

    def _tell(self, told: str) -> None:
        """Bounded, since a customer decides how often it comes back."""
        self._told += 1
        if self._told <= TOLD:
            self._evidence.append(told)
        elif self._told == TOLD + 1:
            self._evidence.append("ended more customers' sessions that we waited for")
