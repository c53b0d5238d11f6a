"""What keeps a database or a role alive: it is ended where the account may end it, and named where it may not."""

import contextlib
import time
from collections.abc import Iterable

import psycopg2
from psycopg2 import errors as sqlstates
from psycopg2 import sql

from outbox.errors import Refused, Transient
from worker.backends.postgres.blockers import CUSTOMERS
from worker.backends.postgres.errors import clean
from worker.backends.postgres.identity import Database, Role
from worker.backends.postgres.session import Session, afterwards
from worker.backends.postgres.waits import Client

# How long all sessions together may take to end.
TERMINATE_SECONDS = 5.0
# How many obstacles one error names.
NAMED = 5


def end_sessions(
    session: Session,
    database: Database | None,
    role: Role | None,
    *,
    spared: int = 0,
    seconds: float = TERMINATE_SECONDS,
) -> list[Client]:
    """End every session in the database or of the role; those that are left after `seconds`.

    Each is asked to end by itself: one that the account may not end does not save the others. `spared`: a pid of ours.
    """
    forbidden: set[int] = set()
    deadline = time.monotonic() + seconds
    while True:
        left = _clients(session, database, role, spared)
        for client in left:
            if client.pid in forbidden:
                continue
            try:
                with session.cursor() as cursor:
                    cursor.execute("SELECT pg_catalog.pg_terminate_backend(%s)", (client.pid,))
            except sqlstates.InsufficientPrivilege:
                forbidden.add(client.pid)
        if all(client.pid in forbidden for client in left) or time.monotonic() > deadline:
            return left
        time.sleep(0.02)  # until the server has ended them


def _clients(session: Session, database: Database | None, role: Role | None, spared: int) -> list[Client]:
    with session.cursor() as cursor:
        # Processes without a user are the server's own: it ends autovacuum by itself.
        cursor.execute(
            """
            SELECT pid, usename, application_name, backend_start::text,
                   (SELECT slot_name FROM pg_catalog.pg_replication_slots WHERE active_pid = pid LIMIT 1)
              FROM pg_catalog.pg_stat_activity
             WHERE (datid = %s OR usesysid = %s) AND usesysid IS NOT NULL AND pid <> ALL(%s) ORDER BY pid""",
            (database.oid if database else None, role.oid if role else None, [session.info.backend_pid, spared]),
        )
        return [Client(*row) for row in cursor]


def end_customers(session: Session, database: int, why: str) -> None:
    """End the customers' sessions in a database, with evidence."""
    with session.cursor() as cursor:
        cursor.execute(
            f"SELECT pid FROM pg_catalog.pg_stat_activity WHERE datid = %s AND usesysid IN ({CUSTOMERS})", (database,)
        )
        pids = [pid for (pid,) in cursor]
        for pid in pids:
            with contextlib.suppress(sqlstates.InsufficientPrivilege):
                cursor.execute("SELECT pg_catalog.pg_terminate_backend(%s)", (pid,))
    if pids:
        session.tell(f"ended {len(pids)} customers' sessions {why}")


def is_disowned(session: Session, role: Role) -> bool:
    """Whether nothing in this database depends on the role."""
    with session.cursor() as cursor:
        cursor.execute(
            """
            SELECT 1 FROM pg_catalog.pg_shdepend
             WHERE refclassid = 'pg_catalog.pg_authid'::pg_catalog.regclass AND refobjid = %s
               AND dbid = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())
             LIMIT 1""",
            (role.oid,),
        )
        return cursor.fetchone() is None


def must_be_ended(clients: list[Client], name: str) -> None:
    """Raises Transient that names the sessions which the account may not end, or which did not end."""
    if clients:
        raise Transient(clean(f"sessions in {name!r} that this account cannot end: {_some(map(str, clients))}"))


def must_not_subscribe(session: Session, database: Database, name: str) -> None:
    """Raises Refused for a database with subscriptions: it cannot be dropped, and waiting changes nothing."""
    with session.cursor() as cursor:
        cursor.execute("SELECT subname FROM pg_catalog.pg_subscription WHERE subdbid = %s ORDER BY 1", (database.oid,))
        if names := [subscription for (subscription,) in cursor]:
            raise Refused(clean(f"database {name!r} has subscriptions, drop them first: {_some(map(repr, names))}"))


def prepared(session: Session, name: str) -> list[tuple[str, str | None]]:
    """The prepared transactions of a database: gid and owner, None for an owner that was dropped.

    They keep the database in use after their sessions end.
    """
    with session.cursor() as cursor:
        cursor.execute("SELECT gid, owner FROM pg_catalog.pg_prepared_xacts WHERE database = %s ORDER BY 1", (name,))
        return [(gid, owner) for gid, owner in cursor]


def roll_back(inside: Session, name: str, transactions: list[tuple[str, str | None]]) -> None:
    """Roll back prepared transactions as their owners; Refused names those that the account may not end."""
    left = []
    for gid, owner in transactions:
        if owner is None:
            left.append(f"{gid!r} of a dropped role")
            continue
        try:
            with afterwards(lambda: inside.execute("RESET ROLE")):
                inside.execute("SET ROLE {owner}", owner=owner)
                inside.execute("ROLLBACK PREPARED {gid}", gid=sql.Literal(gid))
        except sqlstates.InsufficientPrivilege:
            left.append(f"{gid!r} of {owner!r}")
        except sqlstates.UndefinedObject:  # it has ended meanwhile
            continue
    if left:
        raise Refused(clean(f"prepared transactions in {name!r} that this account may not roll back: {_some(left)}"))


def must_be_disowned(session: Session, role: Role, name: str) -> None:
    """Raises Refused that names what still depends on a role after DROP OWNED: another role granted it, or owns it."""
    with session.cursor() as cursor:
        cursor.execute(
            """
            SELECT datname, classid, objid, objsubid, pg_catalog.pg_describe_object(classid, objid, objsubid)
              FROM pg_catalog.pg_shdepend LEFT JOIN pg_catalog.pg_database ON pg_database.oid = dbid
             WHERE refclassid = 'pg_catalog.pg_authid'::pg_catalog.regclass AND refobjid = %s ORDER BY dbid LIMIT %s""",
            (role.oid, NAMED + 1),
        )
        found = cursor.fetchall()
    if found:
        told = [_described(session, *row) for row in found]
        raise Refused(clean(f"role {name!r} still has rights or objects that this account may not take: {_some(told)}"))


def _described(session: Session, database: str | None, *object_: object) -> str:
    if database is None or database == session.info.dbname:
        return f"{object_[-1]} in {database or 'the cluster'!r}"
    try:
        with session.server.connect(database) as inside, inside.cursor() as cursor:
            cursor.execute("SELECT pg_catalog.pg_describe_object(%s, %s, %s)", object_[:3])
            return f"{cursor.fetchone()[0]} in {database!r}"
    except (Transient, psycopg2.Error):
        return f"an object in {database!r}"


def _some(words: Iterable[str]) -> str:
    told = list(words)
    more = f", and {len(told) - NAMED} more" if len(told) > NAMED else ""
    return ", ".join(told[:NAMED]) + more
