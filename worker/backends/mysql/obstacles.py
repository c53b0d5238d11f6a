"""What keeps a schema from being dropped: foreign keys of others, metadata locks, prepared transactions."""

import pymysql

from outbox.errors import Refused, Transient
from worker.backends import mark
from worker.backends.mysql import errors, names, registry
from worker.backends.mysql.session import Session

DROP_TRIES = 4  # each waits for LOCK_WAIT_SECONDS
# InnoDB has names as its files have them, such as `db@002d1/t`.
_FOREIGN_KEYS = """
    SELECT k.child, k.child_table, k.name FROM (
        SELECT {FOR_NAME} AS child, SUBSTRING_INDEX(FOR_NAME, '/', -1) AS child_table,
               SUBSTRING_INDEX(ID, '/', -1) AS name, {REF_NAME} AS parent
          FROM information_schema.INNODB_SYS_FOREIGN
         WHERE SUBSTRING_INDEX(FOR_NAME, '/', 1) <> SUBSTRING_INDEX(REF_NAME, '/', 1)) AS k
     WHERE BINARY k.parent = %s LIMIT 3"""
_DECODED = "CONVERT(CONVERT(CAST(SUBSTRING_INDEX({}, '/', 1) AS BINARY) USING filename) USING utf8mb4)"
_LOCKS = """
    SELECT DISTINCT ID, USER FROM information_schema.METADATA_LOCK_INFO
      JOIN information_schema.PROCESSLIST ON ID = THREAD_ID
     WHERE BINARY TABLE_SCHEMA = %s AND LOCK_TYPE <> 'User lock' AND ID <> CONNECTION_ID()"""
# Without that plugin the server does not tell who has a lock: any that has entered the schema, or has a transaction.
_SUSPECTS = """
    SELECT ID, USER FROM information_schema.PROCESSLIST
     WHERE USER <> SUBSTRING_INDEX(CURRENT_USER(), '@', 1) AND (BINARY DB = %s OR ID IN (
           SELECT trx_mysql_thread_id FROM information_schema.INNODB_TRX))"""
_MARKED_USERS = f"SELECT DISTINCT User FROM mysql.roles_mapping WHERE Role LIKE '{mark('')}%' AND Admin_option = 'N'"
_NO_SUCH_TABLE = 1109


def must_not_be_referred_to(session: Session, database: str) -> None:
    """Raises Refused, before anything is dropped, where tables of other schemas have foreign keys to this one.

    Without its parent, a neighbour's table could not be written any more.
    """
    columns = {name: _DECODED.format(name) for name in ("FOR_NAME", "REF_NAME")}
    statement = _FOREIGN_KEYS.replace("{FOR_NAME}", columns["FOR_NAME"]).replace("{REF_NAME}", columns["REF_NAME"])
    if found := session.ask(statement, database):
        child, table, key = found[0]
        raise Refused(
            f"{len(found)} foreign keys of other schemas refer to {database!r}; when their owner agrees: ALTER TABLE "
            f"{names.identifier(child)}.{names.identifier(table)} DROP FOREIGN KEY {names.identifier(key)}"
        )


def drop_schema(session: Session, database: str, customers: list[str]) -> None:
    """DROP DATABASE; sessions of `customers` that are in its way are ended. Raises Transient that names others."""
    for last in (*[False] * (DROP_TRIES - 1), True):
        try:
            session.execute(f"DROP DATABASE {names.identifier(database)}")
        except pymysql.Error as error:
            if errors.number(error) != errors.LOCK_WAIT:
                raise
            left = _end_blockers(session, database, customers)
            if left or last:
                raise Transient(
                    f"schema {database!r} is in use: {'; '.join(left) or errors.describe(error)}"
                ) from error
        else:
            return


def _end_blockers(session: Session, database: str, customers: list[str]) -> list[str]:
    """End customers' sessions that are in the way; who else may be, in words."""
    exact = True
    try:
        found = session.ask(_LOCKS, database)
        customers = [*customers, *(user for (user,) in session.ask(_MARKED_USERS))]  # it came here by a view of its own
    except pymysql.Error as error:
        if errors.number(error) != _NO_SUCH_TABLE:
            raise
        exact, found = False, session.ask(_SUSPECTS, database)
    left, ended = [], 0
    for number, user in found:
        if user in customers:
            registry.kill(session, number)
            session.tell(f"ended session {number} of {user!r}, which kept {database!r} from being dropped")
            ended += 1
        else:
            left.append(f"session {number} of {user!r} {'has' if exact else 'may have'} a lock on it")
    prepared = [xid for *_, xid in session.ask("XA RECOVER FORMAT='SQL'")]
    if prepared:
        left.append(
            "a prepared transaction may have locks on it, and the server does not tell whose it is: when its owner "
            f"agrees, XA ROLLBACK {prepared[0]}" + (f" (or another of {len(prepared)})" if len(prepared) > 1 else "")
        )
    return [] if ended else left[:5]
