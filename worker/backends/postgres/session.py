"""Connections to a PostgreSQL server: timeouts, the lock on an object, transactions, and what each failure means."""

import contextlib
import hashlib
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg2
from psycopg2 import errors, extensions, sql

from outbox.errors import BackendError, SettingsError, Transient, Unavailable

CONNECT_TIMEOUT_SECONDS = 5
# DROP DATABASE waits for a checkpoint and unlinks every file: minutes for terabytes.
STATEMENT_TIMEOUT_MS = 300_000
# The same limit on the worker's side, for a server that stops answering; an inspection takes milliseconds.
WORK_SECONDS = STATEMENT_TIMEOUT_MS / 1000 + 30
INSPECT_SECONDS = 15
# How long to wait for another worker inside the same object.
LOCK_TIMEOUT_MS = 10_000
NEVER = frozenset({"template0", "template1", "postgres"})
_PARAMETERS = {
    "connect_timeout": str(CONNECT_TIMEOUT_SECONDS),
    "application_name": "deprovisioner",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    # The server's own keepalive and idle limits: a worker that vanished must not hold its lock for hours.
    "options": f"-c statement_timeout={STATEMENT_TIMEOUT_MS} -c lock_timeout={LOCK_TIMEOUT_MS}"
    f" -c idle_session_timeout={STATEMENT_TIMEOUT_MS} -c idle_in_transaction_session_timeout={LOCK_TIMEOUT_MS}"
    " -c tcp_keepalives_idle=30 -c tcp_keepalives_interval=10 -c tcp_keepalives_count=3",
}


class Server:
    """One cluster, reached through the maintenance database that `dsn` names; `protected`: names never torn down."""

    def __init__(self, dsn: str, protected: frozenset[str]) -> None:
        try:
            self.parameters = dict(extensions.parse_dsn(dsn))
        except psycopg2.ProgrammingError:
            raise SettingsError("the dsn is not one of libpq's (it is not shown: it may hold a password)") from None
        self.dsn = dsn
        self.protected = NEVER | protected

    @contextmanager
    def connect(
        self, database: str | None = None, *, seconds: float = WORK_SECONDS, forbidden: type[BackendError] = Transient
    ) -> Iterator["Session"]:
        """An autocommit connection; its errors come out as Unavailable, Transient or `forbidden`.

        A server that is stopped neither answers nor times out: the worker cuts the connection after `seconds`.
        """
        parameters = _PARAMETERS | self.parameters | ({"dbname": database} if database else {})
        parameters["options"] = f"{self.parameters.get('options', '')} {_PARAMETERS['options']}"
        try:
            session = psycopg2.connect(extensions.make_dsn(**parameters), connection_factory=Session)
        except psycopg2.OperationalError as error:
            raise Unavailable(first_line(error)) from error
        watch = threading.Timer(seconds, _cut, (session.fileno(),))
        watch.daemon = True
        watch.start()
        try:
            session.server = self
            session.autocommit = True
            yield session
        except errors.InsufficientPrivilege as error:
            raise forbidden(f"the server forbids it: {first_line(error)}") from error
        except psycopg2.Error as error:
            raise (Unavailable if _lost(error) else Transient)(first_line(error)) from error
        finally:
            watch.cancel()
            session.close()


class Session(extensions.connection):  # type: ignore[misc]  # psycopg2 ships no types
    """A connection that records the statements that it executed: the evidence of a teardown."""

    server: Server

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.executed: list[str] = []

    def execute(self, statement: str, **words: Any) -> None:
        """Run a statement and record it; a plain string among `words` is a name and is quoted as one."""
        quoted = {key: sql.Identifier(word) if isinstance(word, str) else word for key, word in words.items()}
        with self.cursor() as cursor:
            cursor.execute(sql.SQL(statement).format(**quoted))
        self.executed.append(statement.format(**{key: getattr(word, "string", "…") for key, word in quoted.items()}))

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """BEGIN, then COMMIT, or ROLLBACK when the body raises."""
        self.execute("BEGIN")
        try:
            yield
        except BaseException:
            if not self.closed:
                self.execute("ROLLBACK")
            raise
        self.execute("COMMIT")

    def lock(self, *names: str | None) -> None:
        """Wait until no other worker, zombies included, is at these objects; the lock ends with the session.

        The key depends on the DSN, which customers do not know: they can connect to the maintenance database, and
        must not be able to take the lock and so delay a teardown.
        """
        with self.cursor() as cursor:
            for name in filter(None, names):
                digest = hashlib.blake2b(name.encode(), key=self.server.dsn.encode()[:64], digest_size=8).digest()
                cursor.execute("SELECT pg_advisory_lock(%s)", (int.from_bytes(digest, signed=True),))


def first_line(error: BaseException) -> str:
    """The first line of an error's message; what follows may quote the statement."""
    return (str(error).strip().splitlines() or [repr(error)])[0]


def _cut(descriptor: int) -> None:
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as line:
        line.shutdown(socket.SHUT_RDWR)


def _lost(error: psycopg2.Error) -> bool:
    # No SQLSTATE: libpq lost the server. 57P0x: shutting down, crashed, starting; 53300: no connection slot.
    state = error.pgcode
    return state is None or state[:2] == "08" or state in ("57P01", "57P02", "57P03", "53300")
