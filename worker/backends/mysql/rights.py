"""Who has which rights on a schema by its name, and the statements that take them and give them back."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

from outbox.rows import Json
from worker.backends.mysql import names
from worker.backends.mysql.session import Session

# What a customer's user may do in its schema, and what the service's account must have there, with GRANT OPTION.
ALL = (
    *("SELECT", "INSERT", "UPDATE", "DELETE", "CREATE", "DROP", "REFERENCES", "INDEX", "ALTER"),
    *("CREATE TEMPORARY TABLES", "LOCK TABLES", "CREATE VIEW", "SHOW VIEW", "CREATE ROUTINE", "ALTER ROUTINE"),
    *("EXECUTE", "EVENT", "TRIGGER", "DELETE HISTORY"),
)
_COLUMN_WORDS = {"Create_tmp_table_priv": "CREATE TEMPORARY TABLES"}
_SET_WORDS = {"DELETE VERSIONING ROWS": "DELETE HISTORY"}


@dataclass(frozen=True)
class Grant:
    """Rights of one account on one thing. `on`: what stands behind ON; `option`: it may hand them on."""

    user: str
    host: str  # empty for a role
    on: str
    privileges: tuple[str, ...]
    option: bool
    pattern: str | None = None  # of a grant on all of a schema: the name as it was granted, perhaps with wildcards

    @property
    def account(self) -> str:
        """The grantee, as statements name it."""
        return names.account(self.user, self.host)

    def give(self) -> str:
        """The statement that gives these rights."""
        option = " WITH GRANT OPTION" if self.option else ""
        return f"GRANT {', '.join(self.privileges) or 'USAGE'} ON {self.on} TO {self.account}{option}"

    def take(self) -> Iterator[str]:
        """The statements that take these rights."""
        for privileges in filter(None, (", ".join(self.privileges), "GRANT OPTION" if self.option else "")):
            yield f"REVOKE {privileges} ON {self.on} FROM {self.account}"

    def as_json(self) -> Json:
        """As `read` takes it."""
        return asdict(self)

    @classmethod
    def read(cls, written: Json) -> "Grant":
        """From a note of ours."""
        return cls(**written | {"privileges": tuple(written["privileges"])})


def on_schema(session: Session, database: str, *, own: bool = False) -> list[Grant]:
    """All rights on this schema, its tables, columns and routines; not those of patterns that match others too.

    `own`: those of the service's account, which an adoption needs; else those of all others.
    """
    exact, me = names.pattern(database), session.server.address.user
    schema_wide = [
        grant
        for grant in _schema_grants(session, "Db IN (%s, %s)", database, exact)
        if grant.pattern == exact or not reaches(session, str(grant.pattern), database)
    ]
    found = (*schema_wide, *_narrower(session, "Db", database))
    return [grant for grant in found if (grant.user == me and bool(grant.host)) == own]


def of_user(session: Session, user: str) -> list[Grant]:
    """All rights of a user, at whatever host, on schemas and what is in them."""
    return [*_schema_grants(session, "User = %s AND Host <> ''", user), *_narrower(session, "User", user)]


def reaches(session: Session, pattern: str, database: str) -> list[str]:
    """The other schemas that a grant's pattern matches."""
    rows = session.ask(
        """SELECT SCHEMA_NAME FROM information_schema.SCHEMATA
            WHERE BINARY SCHEMA_NAME LIKE %s AND BINARY SCHEMA_NAME <> %s ORDER BY 1 LIMIT 3""",
        pattern,
        database,
    )
    return [name for (name,) in rows]


def missing(session: Session, database: str, others: Iterable[Grant]) -> str | None:
    """The statement that gives the service's account what it needs on a schema; None where it has that.

    `others`: the rights that it must be able to take. Those that were granted on the name without escapes are of a
    pattern, which only an account can take that has its rights on the same pattern.
    """
    wild = any(grant.pattern == database != names.pattern(database) for grant in others)
    user, host = session.me()
    where = "User = %s AND Host = %s AND " + ("%s = Db" if wild else "%s LIKE Db")
    granted = _schema_grants(session, where, user, host, database)
    if any(grant.option and set(ALL) <= set(grant.privileges) for grant in granted):
        return None
    on = f"{names.identifier(database)}.*" if wild else names.schema(database)
    return f"GRANT {', '.join(ALL)} ON {on} TO {names.account(user, host)} WITH GRANT OPTION"


def _schema_grants(session: Session, where: str, *values: Any) -> Iterator[Grant]:
    for row in session.rows(f"SELECT * FROM mysql.db WHERE {where} ORDER BY User, Host, Db", *values):
        yes = [name for name, value in row.items() if name.endswith("_priv") and value == "Y"]
        yield Grant(
            user=row["User"],
            host=row["Host"],
            on=f"{names.identifier(row['Db'])}.*",
            privileges=tuple(_of_column(name) for name in yes if name != "Grant_priv"),
            option="Grant_priv" in yes,
            pattern=row["Db"],
        )


def _of_column(name: str) -> str:
    return _COLUMN_WORDS.get(name) or name.removesuffix("_priv").replace("_", " ").upper()


_NARROWER = """
    SELECT 'table' AS level, User, Host, Db, Table_name AS name, '' AS detail, CAST(Table_priv AS CHAR) AS privileges
      FROM mysql.tables_priv WHERE {where} AND Table_priv <> ''
     UNION ALL
    SELECT 'column', User, Host, Db, Table_name, Column_name, CAST(Column_priv AS CHAR)
      FROM mysql.columns_priv WHERE {where}
     UNION ALL
    SELECT 'routine', User, Host, Db, Routine_name, CAST(Routine_type AS CHAR), CAST(Proc_priv AS CHAR)
      FROM mysql.procs_priv WHERE {where}
     ORDER BY 1, 2, 3, 4, 5, 6"""


def _narrower(session: Session, column: str, value: str) -> Iterator[Grant]:
    """Rights on single tables, columns and routines."""
    rows = session.ask(_NARROWER.format(where=f"{column} = %s"), value, value, value)
    for (level, user, host, database, name), details in groupby(rows, key=lambda row: row[:5]):
        on = f"{names.identifier(database)}.{names.identifier(name)}"
        if level == "column":
            words = [f"{word} ({names.identifier(column)})" for *_, column, found in details for word in _words(found)]
            yield _grant(user, host, on, words)
            continue
        for *_, detail, privileges in details:
            yield _grant(user, host, f"{detail} {on}".strip(), _words(privileges))


def _words(privileges: str) -> list[str]:
    found = (word.upper() for word in privileges.split(",") if word)
    return [_SET_WORDS.get(word, word) for word in found]


def _grant(user: str, host: str, on: str, words: Iterable[str]) -> Grant:
    listed = list(words)
    return Grant(user, host, on, tuple(word for word in listed if word != "GRANT"), "GRANT" in listed)
