"""Sessions on a MariaDB server: pinned settings, timeouts, and only a writable primary is believed."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pymysql
from pymysql.connections import Connection

from outbox.errors import BackendError, OutOfService, Refused
from worker.backends.mysql import errors
from worker.backends.mysql.endpoint import Address
from worker.backends.mysql.names import account, identifier, literal

CONNECT_TIMEOUT_SECONDS = 5
# How long the worker waits for an answer: a DROP DATABASE unlinks every file, which takes minutes for terabytes.
WORK_SECONDS = 330
INSPECT_SECONDS = 15
# How long a statement waits for a metadata lock or a row: then whoever holds it is ended or named.
LOCK_WAIT_SECONDS = 5
CONNECTION_LIMIT = 50  # sessions of a customer's user, where the backends file does not say
SEEING = ("PROCESS", "SHOW DATABASES")  # what shows all sessions, and all schemas
NEVER_SCHEMAS = frozenset({"mysql", "information_schema", "performance_schema", "sys"})
NEVER_USERS = frozenset({"root", "mysql", "mariadb.sys", "PUBLIC", "event_scheduler", "system user"})
# What others set for all sessions, or for this account, must not change what a statement means here.
_PINNED = (
    "SET SESSION sql_mode = 'STRICT_TRANS_TABLES,NO_ENGINE_SUBSTITUTION', autocommit = 1, "
    f"lock_wait_timeout = {LOCK_WAIT_SECONDS}, innodb_lock_wait_timeout = {LOCK_WAIT_SECONDS}, "
    "tx_isolation = 'READ-COMMITTED', tx_read_only = 0, foreign_key_checks = 1, "
    "sql_safe_updates = 0, sql_select_limit = 18446744073709551615, max_statement_time = 0, time_zone = '+00:00', "
    "wait_timeout = 600, completion_type = 'NO_CHAIN', collation_connection = 'utf8mb4_bin'"
)
# Settings of a server that answers, and takes no writes: what is wrong unless the value is the one here.
_WRITABLE = {
    "read_only": ("OFF", "0"),
    "super_read_only": ("OFF", "0"),
    "innodb_read_only": ("OFF", "0"),
    "innodb_force_recovery": ("0",),
}


class Server:
    """One server, reached by a mysql:// URL whose path is the service's own schema."""

    def __init__(self, dsn: str, protected: frozenset[str], connection_limit: int = CONNECTION_LIMIT) -> None:
        self.address = Address.read(dsn)
        self.connection_limit = connection_limit
        self.protected_schemas = NEVER_SCHEMAS | protected | {self.address.schema}
        self.protected_users = NEVER_USERS | protected | {self.address.user}

    @contextmanager
    def connect(self, *, seconds: int = WORK_SECONDS) -> Iterator["Session"]:
        """A session on a writable primary; its errors come out as the table in `errors` says.

        Raises OutOfService on a replica or a server that is read-only, Unavailable after `seconds` without an answer.
        """
        try:
            session = Session(self, self.opened(self.address.user, self.address.password, None, seconds))
        except pymysql.Error as error:
            raise errors.meaning(error) from error
        try:
            session.run(_PINNED)
            session.must_be_writable_primary()
            yield session
        except pymysql.Error as error:
            raise session.with_evidence(errors.meaning(error)) from error
        finally:
            session.close()

    def opened(self, user: str, password: str, database: str | None, seconds: int) -> "Connection[Any]":
        """A connection with this account: no statement brings a second one, and no file of ours can be asked for."""
        connection = pymysql.connect(
            **self.address.reached(),
            user=user,
            password=password,
            database=database,
            charset="utf8mb4",
            autocommit=True,
            local_infile=False,
            connect_timeout=CONNECT_TIMEOUT_SECONDS,
            read_timeout=CONNECT_TIMEOUT_SECONDS,  # a server that is stopped still takes connections
            write_timeout=INSPECT_SECONDS,
            program_name="deprovisioner",
        )
        connection._read_timeout = seconds  # type: ignore[attr-defined]
        return connection


class Session:
    """An autocommit connection that remembers what it changed."""

    def __init__(self, server: Server, connection: "Connection[Any]") -> None:
        self.server = server
        self._connection = connection
        self._sees_all = False
        self.executed: list[str] = []
        self.told: list[str] = []

    def close(self) -> None:
        """End the session, which gives its locks back."""
        with suppress(pymysql.Error):
            self._connection.close()

    def ask(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        """The rows of a question; `%s` stands for a value."""
        with self._connection.cursor() as cursor:
            cursor.execute(statement, values or None)
            return list(cursor.fetchall())

    def rows(self, statement: str, *values: Any) -> list[dict[str, Any]]:
        """The same, each row by the names of its columns."""
        with self._connection.cursor() as cursor:
            cursor.execute(statement, values or None)
            columns = [column[0] for column in cursor.description or ()]
            return [dict(zip(columns, row, strict=True)) for row in cursor.fetchall()]

    def stream(self, statement: str, *values: Any) -> Iterator[tuple[Any, ...]]:
        """The rows one by one, in constant memory; the session can do nothing else meanwhile."""
        with self._connection.cursor(pymysql.cursors.SSCursor) as cursor:
            cursor.execute(statement, values or None)
            yield from cursor.fetchall_unbuffered()

    def run(self, statement: str, *values: Any) -> int:
        """A statement of our own housekeeping; how many rows it changed."""
        with self._connection.cursor() as cursor:
            return int(cursor.execute(statement, values or None))

    def execute(self, statement: str, *, secret: str | None = None) -> None:
        """Change an object; the statement is evidence. `secret` is sent where it has `'(secret)'`."""
        sent = statement if secret is None else statement.replace("'(secret)'", literal(secret), 1)
        with self._connection.cursor() as cursor:
            cursor.execute(sent)
        self.executed.append(statement)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """BEGIN and COMMIT around statements on our own tables; anything that is raised rolls them back."""
        self._connection.begin()
        try:
            yield
        except BaseException:
            with suppress(pymysql.Error):
                self._connection.rollback()
            raise
        self._connection.commit()

    def tell(self, done: str) -> None:
        """Note what was done to others' sessions, for the evidence."""
        self.told.append(done)

    def with_evidence(self, error: BackendError) -> BackendError:
        """The error with what was told before it."""
        return type(error)("; ".join([str(error), *self.told])) if self.told else error

    def me(self) -> tuple[str, str]:
        """The user and the host of the account that the server takes the service for."""
        ((me,),) = self.ask("SELECT CURRENT_USER()")
        user, _, host = str(me).rpartition("@")
        return user, host

    @property
    def own(self) -> str:
        """The service's own schema, quoted."""
        return identifier(self.server.address.schema)

    def must_see_all(self) -> None:
        """Raises Refused where the account lacks a right without which the server shows less than there is.

        Without these rights no error comes: schemas, sessions and foreign keys are just not shown.
        """
        if self._sees_all:
            return
        has = {right for (right,) in self.ask("SELECT PRIVILEGE_TYPE FROM information_schema.USER_PRIVILEGES")}
        if missing := [right for right in SEEING if right not in has]:
            mend = f"GRANT {', '.join(missing)} ON *.* TO {account(*self.me())}"
            raise Refused(f"the service's account has no {missing[0]}, so it is not shown all that is there: {mend}")
        self._sees_all = True

    def must_be_writable_primary(self) -> None:
        """Raises OutOfService on a replica, a server that takes no writes, or one that is no primary of its cluster."""
        version = str(self._connection.get_server_info())  # type: ignore[no-untyped-call]
        if "mariadb" not in version.lower():
            raise Refused(f"the server says that it is version {version!r}: this kind works with MariaDB alone")
        names = ", ".join(map(literal, (*_WRITABLE, "wsrep_on")))
        found = {
            str(name).lower(): str(value)
            for name, value in self.ask(f"SHOW GLOBAL VARIABLES WHERE Variable_name IN ({names})")
        }
        for name, values in _WRITABLE.items():
            if found.get(name, values[0]) not in values:
                raise OutOfService(f"the server has {name} = {found[name]}: only a writable primary is believed")
        if found.get("wsrep_on", "OFF") not in ("OFF", "0"):
            raise Refused("the server is part of a Galera cluster, whose named locks are of one node alone")
        if replicas := self.rows("SHOW ALL SLAVES STATUS"):
            primary = f"{replicas[0].get('Master_Host')}:{replicas[0].get('Master_Port')}"
            raise OutOfService(f"the server is a replica (of {primary}): only a writable primary is believed")
