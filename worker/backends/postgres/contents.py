"""What a database holds, in numbers that are compared: rows by table, sequences, large objects.

Only COPY of a table reads its rows here. A query would be planned, and the planner evaluates expressions of indexes and
statistics, which are a customer's code; COPY calls nothing but the server's own output functions.
"""

from collections.abc import Callable, Iterable

from psycopg2 import sql

from outbox.errors import Refused, Transient
from outbox.rows import Json
from worker.backends.postgres.errors import clean
from worker.backends.postgres.rights import quoted
from worker.backends.postgres.session import Session

# What one error names.
NAMED = 5
_PIECE = 1 << 20
_MASK = (1 << 64) - 1
LARGE_OBJECTS = "the large objects"
# Both sides must write a value in the same way. What takes long is bounded by its caller, not by the server.
_SAME = """
    SET row_security = off; SET extra_float_digits = 1; SET bytea_output = 'hex'; SET IntervalStyle = 'postgres';
    SET lc_monetary = 'C'; SET xmloption = 'content'; SET synchronize_seqscans = off;
    SET statement_timeout = 0; SET idle_in_transaction_session_timeout = 0; SET idle_session_timeout = 0"""
# Tables of customers: an extension makes its own again.
_TABLES = """
    FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
   WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' AND c.relpersistence <> 't'
     AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend
                      WHERE classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND objid = c.oid AND deptype = 'e')"""
# Generated columns are computed, by a customer's code for one.
_COLUMNS = f"""
    SELECT n.nspname, c.relname,
           ARRAY(SELECT attname FROM pg_catalog.pg_attribute
                  WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped AND attgenerated = '' ORDER BY attnum)
    {_TABLES} AND c.relkind = 'r' ORDER BY 1, 2"""
_SEQUENCES = f"""
    SELECT n.nspname, c.relname, pg_catalog.pg_sequence_last_value(c.oid) {_TABLES} AND c.relkind = 'S'"""
_UNREADABLE = f"""
    SELECT n.nspname, c.relname, pg_catalog.pg_get_userbyid(c.relowner),
           pg_catalog.has_schema_privilege(n.oid, 'USAGE') AND pg_catalog.has_table_privilege(c.oid, 'SELECT')
    {_TABLES} AND c.relkind IN ('r', 'p', 'S')
          AND (NOT pg_catalog.has_schema_privilege(n.oid, 'USAGE')
               OR NOT pg_catalog.has_table_privilege(c.oid, 'SELECT')
               OR (c.relkind = 'r' AND pg_catalog.row_security_active(c.oid)))
   ORDER BY 1, 2 LIMIT {NAMED}"""


def prepare(session: Session) -> None:
    """Make the session write values as every other prepared one does."""
    with session.cursor() as cursor:
        cursor.execute(_SAME)


def must_be_readable(session: Session) -> None:
    """Raises Refused, with the statement that gives the right, where this account may not read every row."""
    with session.cursor() as cursor:
        cursor.execute("SELECT current_user")
        ((me,),) = cursor.fetchall()
        cursor.execute(_UNREADABLE)
        found = cursor.fetchall()
    for schema, name, owner, readable in found:
        table = f"{quoted(schema)}.{quoted(name)}"
        if readable:
            raise Refused(
                f"row security hides rows of {table} even from its owner: a snapshot would not be whole; as its owner"
                f" or a superuser run in this database: ALTER TABLE {table} NO FORCE ROW LEVEL SECURITY"
            )
        options = " WITH INHERIT TRUE, SET TRUE" if session.server_version >= 160000 else ""
        raise Refused(
            f"the service's account may not read {table}, so no snapshot can be whole; when its owner agrees, run as a"
            f" superuser, then re-drive: GRANT {quoted(owner)} TO {quoted(me)}{options};"
        )


def read(session: Session, moved: Callable[[], None]) -> Json:
    """How many rows each table has and the sum of their hashes, in any order; each sequence; large objects.

    The hashes are this process's own. `moved` is called now and then.
    """
    found: Json = {}
    with session.cursor() as cursor:
        cursor.execute(_COLUMNS)
        tables = cursor.fetchall()
        for schema, name, columns in tables:
            rows = _Rows(moved)
            words = sql.SQL("COPY {}{} TO STDOUT").format(
                sql.Identifier(schema, name),
                sql.SQL(" ({})").format(sql.SQL(", ").join(map(sql.Identifier, columns))) if columns else sql.SQL(""),
            )
            cursor.copy_expert(words, rows, 1 << 16)
            found[f"table {quoted(schema)}.{quoted(name)}"] = [rows.count, rows.sum]
        cursor.execute(_SEQUENCES)
        for schema, name, value in cursor.fetchall():
            found[f"sequence {quoted(schema)}.{quoted(name)}"] = value
        cursor.execute("SELECT oid::pg_catalog.int8 FROM pg_catalog.pg_largeobject_metadata")
        count = mixed = 0  # a customer decides how many there are
        for (oid,) in cursor.fetchall():
            count, mixed = count + 1, (mixed + _large_object(session, oid)) & _MASK
            moved()
    return found | {LARGE_OBJECTS: [count, mixed]}


class _Rows:
    """Takes the lines of a COPY: one call has one line, however long."""

    def __init__(self, moved: Callable[[], None]) -> None:
        self.count = self.sum = 0
        self._moved = moved

    def write(self, line: bytes) -> None:
        self.count += 1
        self.sum = (self.sum + hash(line)) & _MASK
        if not self.count & 0xFFFF:
            self._moved()


def _large_object(session: Session, oid: int) -> int:
    size, mixed = 0, hash(oid)
    with session.cursor() as cursor:
        while True:
            cursor.execute("SELECT pg_catalog.lo_get(%s::pg_catalog.oid, %s, %s)", (oid, size, _PIECE))
            piece = bytes(cursor.fetchone()[0])
            size, mixed = size + len(piece), hash((mixed, piece))
            if len(piece) < _PIECE:
                return hash((size, mixed))


def must_be_equal(source: Json, restored: Json, said: str = "") -> None:
    """Raises Transient that names where what was restored differs from its source; `said`: by pg_restore."""
    differ = [name for name in source.keys() | restored.keys() if source.get(name, ()) != restored.get(name, ())]
    if differ:
        told = ", ".join(_difference(name, source, restored) for name in sorted(differ)[:NAMED])
        why = f"; pg_restore said: {said}" if said else ""
        raise Transient(clean(f"the restored snapshot differs from its source in {len(differ)} places: {told}{why}"))


def _difference(name: str, source: Json, restored: Json) -> str:
    if name not in restored:
        return f"{name} is not in it"
    if name not in source:
        return f"{name} is in it alone"
    had, has = source[name], restored[name]
    if isinstance(had, list) and isinstance(has, list):
        return f"{name} has {has[0]} of {had[0]}" if had[0] != has[0] else f"{name} has other contents"
    return f"{name} is at {has}, not {had}"


def summary(found: Json) -> Json:
    """What a snapshot holds, in a few words that evidence can keep."""
    tables = [value for name, value in found.items() if name.startswith("table ")]
    return {
        "tables": len(tables),
        "rows": sum(count for count, _ in tables),
        "sequences": _count(found, "sequence "),
        "large_objects": found[LARGE_OBJECTS][0],
    }


def _count(names: Iterable[str], kind: str) -> int:
    return sum(name.startswith(kind) for name in names)
