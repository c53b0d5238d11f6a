"""The memory of the control database on PostgreSQL: one row for each installation, in the service's own database.

The documented account owns that database, and no customer may enter it. The schema is not `deprovisioner`: a superuser
makes that one, where the service may read the server's log.
"""

import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg2
from psycopg2 import errors as sqlstates

from outbox.errors import MemoryForbidden, OutOfService
from outbox.memory import LONGEST, Memory, Moment, nothing, offered
from outbox.rows import Json
from worker.backends.postgres import errors
from worker.backends.postgres.rights import quoted
from worker.backends.postgres.session import INSPECT_SECONDS, Server, Session

SCHEMA = "deprovisioner_memory"
TABLE = f"{SCHEMA}.memories"
# A row is written again and again. None of its indexed columns changes, so its versions stay within their page.
_MAKE = f"""
    CREATE TABLE {TABLE} (
        installation uuid PRIMARY KEY, epoch bigint NOT NULL, event bigint NOT NULL, hash text NOT NULL,
        still boolean NOT NULL, notes text NOT NULL, at timestamptz NOT NULL
    ) WITH (fillfactor = 50)"""
# What most often is true, in one statement; whatever it does not write is decided by `offered`, behind a lock.
_KEEP = f"""
    UPDATE {TABLE}
       SET epoch = %(epoch)s, event = %(event)s, hash = %(hash)s, still = %(still)s,
           notes = COALESCE(%(notes)s, notes), at = pg_catalog.now()
     WHERE installation = %(installation)s
       AND ((epoch, event) < (%(epoch)s, %(event)s) OR (epoch, event, hash) = (%(epoch)s, %(event)s, %(hash)s))
       AND (NOT still OR %(still)s OR epoch < %(epoch)s)
       AND (epoch, event) >= (%(least_epoch)s, %(least_event)s)"""
_PUT = f"""
    INSERT INTO {TABLE} AS there (installation, epoch, event, hash, still, notes, at)
    VALUES (%(installation)s, %(epoch)s, %(event)s, %(hash)s, %(still)s, %(notes)s, pg_catalog.now())
        ON CONFLICT (installation) DO UPDATE
       SET epoch = excluded.epoch, event = excluded.event, hash = excluded.hash, still = excluded.still,
           notes = excluded.notes, at = excluded.at"""
# Foreign text: only as much is read as a memory can have, and its whole length.
_READ = f"""
    SELECT epoch, event, pg_catalog.left(hash, 100), still, pg_catalog.length(notes),
           CASE WHEN pg_catalog.length(notes) <= {LONGEST} THEN notes END
      FROM {TABLE} WHERE installation = %s"""
_LOCKED = f"{_READ} FOR UPDATE"
_NOT_MADE = (sqlstates.UndefinedTable, sqlstates.InvalidSchemaName)
# The table is not ours, or not as we made it.
_OTHER = (psycopg2.ProgrammingError, psycopg2.DataError, psycopg2.IntegrityError)


def remember(server: Server, memory: Memory, least: Moment | None = None) -> Memory | None:
    """See `worker.backends.remember`: most often one statement. What no synchronous standby confirms was not kept.

    The session is a new one: the one that is kept may lead to an old primary after a failover, and must never wait.
    """
    with server.connect(seconds=INSPECT_SECONDS) as session, _ours():
        if _kept(session, memory, least):
            return None
        with session.transaction():
            _lock(session)
            there = _read(session, memory.installation, "FOR UPDATE")
            left, kept = offered(there, memory, least)
            if left is not None and left != there:
                with session.cursor() as cursor:
                    cursor.execute(_PUT, _values(left))
        return None if kept else left or nothing(memory.installation)


def recall(server: Server, installation: uuid.UUID) -> Memory | None:
    """See `worker.backends.recall`."""
    with server.connect(seconds=INSPECT_SECONDS) as session, _ours():
        return _read(session, installation) if _is_there(session) else None


def installations(server: Server) -> list[uuid.UUID]:
    """See `worker.backends.installations`."""
    with server.connect(seconds=INSPECT_SECONDS) as session, _ours():
        if not _is_there(session):
            return []
        with session.cursor() as cursor:
            cursor.execute(f"SELECT installation::pg_catalog.text FROM {TABLE} ORDER BY installation")
            return [uuid.UUID(one) for (one,) in cursor]


def missing_right(session: Session) -> tuple[str, str] | None:
    """Why the account cannot keep a memory by itself, and the statement that mends it; None where it can."""
    with session.cursor() as cursor:
        cursor.execute(
            """
            SELECT pg_catalog.current_database(), current_user,
                   pg_catalog.has_database_privilege(pg_catalog.current_database(), 'CREATE'),
                   (SELECT pg_catalog.pg_get_userbyid(nspowner) FROM pg_catalog.pg_namespace WHERE nspname = %s)""",
            (SCHEMA,),
        )
        database, me, may_create, owner = cursor.fetchone()
    if owner is None and not may_create:
        what = f"the service's role may not create the schema {SCHEMA} in {database!r}"
        return what, f"GRANT CREATE ON DATABASE {quoted(database)} TO {quoted(me)}"
    if owner not in (None, me):
        what = f"the schema {SCHEMA} in {database!r} belongs to {owner!r}, who can change what is kept there"
        return what, f"ALTER SCHEMA {SCHEMA} OWNER TO {quoted(me)}  -- in {quoted(database)}; and the table in it"
    return None


@contextmanager
def _ours() -> Iterator[None]:
    """Raise OutOfService where the table is not as the service made it, or the account may not use it."""
    try:
        yield
    except sqlstates.InsufficientPrivilege as error:
        raise MemoryForbidden(
            f"the service's account may not use {TABLE}: {errors.describe(error)}; find out who changed it, "
            "then give it to the service's role"
        ) from error
    except _OTHER as error:
        raise OutOfService(
            f"{TABLE} in the service's own database does not keep what the control database had, since it is not as "
            f"the service made it: {errors.describe(error)}; find out who changed it, then give it to the service's "
            f"role, or remove the schema {SCHEMA}"
        ) from error


def _kept(session: Session, memory: Memory, least: Moment | None) -> bool:
    epoch, event = (0, 0) if least is None or memory.still else least
    try:
        with session.cursor() as cursor:
            cursor.execute(_KEEP, _values(memory) | {"least_epoch": epoch, "least_event": event})
            return bool(cursor.rowcount)
    except _NOT_MADE:
        return False


def _values(memory: Memory) -> Json:
    written = memory.as_json()
    return written | {"notes": None if written["notes"] is None else json.dumps(written["notes"])}


def _lock(session: Session) -> None:
    """Lock out other workers, even before there is a row to lock; create the table if it is missing."""
    session.lock(SCHEMA)
    if _is_there(session):
        return
    if missing := missing_right(session):
        raise MemoryForbidden(f"the server cannot keep what the control database had: {missing[0]}; {missing[1]}")
    with session.cursor() as cursor:
        cursor.execute("SELECT pg_catalog.to_regnamespace(%s) IS NULL", (SCHEMA,))
        if cursor.fetchone() == (True,):  # else an administrator has made it for the account, which may make none
            cursor.execute(f"CREATE SCHEMA {SCHEMA}")
        cursor.execute(_MAKE)


def _is_there(session: Session) -> bool:
    with session.cursor() as cursor:
        cursor.execute("SELECT pg_catalog.to_regclass(%s) IS NOT NULL", (TABLE,))
        return bool(cursor.fetchone()[0])


def _read(session: Session, installation: uuid.UUID, locking: str = "") -> Memory | None:
    """The row, as it can be read. Raises OutOfService where it is no memory."""
    with session.cursor() as cursor:
        cursor.execute(f"{_READ} {locking}", (str(installation),))
        rows = cursor.fetchall()
    if not rows:
        return None
    epoch, event, digest, still, length, notes = rows[0]
    try:
        if len(rows) > 1:
            raise ValueError(f"it has {len(rows)} rows")
        if notes is None:
            raise ValueError(f"its notes have {length} characters")
        made = {"epoch": epoch, "event": event, "hash": digest, "still": still, "notes": json.loads(notes)}
        return Memory.read(made | {"installation": str(installation)})
    except (ValueError, RecursionError) as error:
        raise OutOfService(
            f"what the server keeps of the control database, the row of {installation} in {TABLE}, is no memory: "
            f"{error}; find out who wrote it, then remove it: DELETE FROM {TABLE} WHERE installation = '{installation}'"
        ) from error
