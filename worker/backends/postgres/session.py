"""Connections to a PostgreSQL server: timeouts, the lock on an object, transactions, and what each failure means."""

import contextlib
import hashlib
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import psycopg2
from psycopg2 import errors as sqlstates
from psycopg2 import extensions, sql

from outbox.errors import BackendError, OutOfService, SettingsError, Transient, Unavailable
from outbox.opening import Opener
from worker.backends.postgres import errors
from worker.backends.postgres.slots import Slots
from worker.backends.postgres.waits import Watch

CONNECT_TIMEOUT_SECONDS = 5
# DROP DATABASE waits for a checkpoint and unlinks every file: minutes for terabytes.
STATEMENT_TIMEOUT_MS = 300_000
# The same limit on the worker's side, for a server that stops answering; an inspection takes milliseconds.
WORK_SECONDS = STATEMENT_TIMEOUT_MS / 1000 + 30
INSPECT_SECONDS = 15
# How long to wait for another worker inside the same object.
LOCK_TIMEOUT_MS = 10_000
# How many sessions a customer's role may have, where the backends file does not say.
CONNECTION_LIMIT = 50
# How often a connection is tried while customers' sessions are ended for it.
OPEN_TRIES = 5
# How soon a server session whose client is gone gives up its statement and its lock.
CLIENT_CHECK_MS = 10_000
# More than fits into the memory that it may use: the server writes half a megabyte to its disk for it.
_TAKES_ROOM = """
    SELECT pg_catalog.set_config('work_mem', '64kB', false);
    SELECT pg_catalog.count(*) FROM pg_catalog.generate_series(1, 20000)"""
STANDBY = "the server is a standby (in recovery): only a primary can say what exists"
READ_ONLY = "the server keeps its transactions read-only: only a writable primary can say what exists"
UNCONFIRMED = (
    "the server commits, and no synchronous standby confirms it{}:"
    " repair the standby, or take it out of synchronous_standby_names"
)
# The session that is kept: idle for as long as it takes, and no look at catalogs that somebody has locked takes long.
_KEPT = " -c idle_session_timeout=0 -c statement_timeout=5000"
NEVER = frozenset({"template0", "template1", "postgres"})
_PARAMETERS = {
    "connect_timeout": str(CONNECT_TIMEOUT_SECONDS),
    "application_name": "deprovisioner",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    # The server's own keepalive and idle limits: a worker that vanished must not hold its lock for hours.
    # Each of these beats what ALTER ROLE and ALTER DATABASE set. docs/design.md says what each protects.
    "options": "-c search_path=pg_catalog,pg_temp -c default_transaction_read_only=off"
    " -c default_transaction_isolation=read\\ committed -c default_transaction_deferrable=off"
    " -c standard_conforming_strings=on -c DateStyle=ISO,MDY -c TimeZone=UTC -c row_security=on -c default_tablespace="
    " -c client_min_messages=log"  # `waits` reads which process DROP DATABASE waits for
    f" -c statement_timeout={STATEMENT_TIMEOUT_MS} -c lock_timeout={LOCK_TIMEOUT_MS}"
    f" -c idle_session_timeout={STATEMENT_TIMEOUT_MS} -c idle_in_transaction_session_timeout={LOCK_TIMEOUT_MS}"
    " -c tcp_keepalives_idle=30 -c tcp_keepalives_interval=10 -c tcp_keepalives_count=3",
}


PACE = 1  # as one administrator drops, one database after the other


class Server:
    """One cluster, reached through the maintenance database that `dsn` names; `protected`: names never torn down.

    `pace`: how many databases are dropped at once.
    """

    def __init__(
        self, dsn: str, protected: frozenset[str], connection_limit: int = CONNECTION_LIMIT, pace: int = PACE
    ) -> None:
        try:
            self.parameters = dict(extensions.parse_dsn(dsn))
        except psycopg2.ProgrammingError:
            raise SettingsError("the dsn is not one of libpq's (it is not shown: it may hold a password)") from None
        self.dsn = dsn
        self._opener = Opener()
        self.slots = Slots(connection_limit)
        self.protected = NEVER | protected
        self.pace = pace

    @contextmanager
    def connect(
        self, database: str | None = None, *, seconds: float = WORK_SECONDS, watched: bool = True, frees: bool = True
    ) -> Iterator["Session"]:
        """An autocommit connection; its errors come out as the table in `errors` says.

        Where `database` is not the maintenance database, trouble of that database alone is Transient.

        A server that is stopped neither answers nor times out: the worker cuts the connection after `seconds`. Unless
        it `frees`, no customer's sessions are ended where the server is full: what only looks is not that urgent.
        """
        try:
            session = self._with_a_slot(database) if frees else self._opened(database, Session)
        except psycopg2.OperationalError as error:
            raise self._translated(error, database) from error
        if watched and database is None:
            self.slots.keep(lambda: self._opened(None, extensions.connection, _KEPT))
        limit = threading.Timer(seconds, cut, (session.fileno(),))
        limit.daemon = True
        limit.start()
        session.server = self
        session.watch = watch = Watch(session, self._looking)
        if watched:
            watch.start()
        try:
            session.autocommit = True
            if away := _settle(session):
                raise self.blamed(OutOfService, away, database)
            yield session
            if watched and database is None and session.standbys:
                session.confirm()
        except psycopg2.Error as error:
            limit.cancel()  # the connection may be closed by now, and its number another file's
            raise session.with_evidence(self._translated(error, database, watch.told(error))) from error
        except BackendError as error:
            if (told := session.with_evidence(error)) is error:
                raise
            raise told from error
        finally:
            watch.stop()
            limit.cancel()
            session.close()

    @contextmanager
    def _looking(self) -> Iterator[extensions.connection]:
        """The session that is kept; a new one where that is away, which nothing watches."""
        with self.slots.lent() as kept:
            if kept is not None:
                yield kept
                return
        with self.connect(watched=False) as second:
            yield second

    def _with_a_slot(self, database: str | None) -> "Session":
        """A new session; where the server is full of one customer's sessions, they are ended, and it says so."""
        told: list[str] = []
        while True:
            try:
                session: Session = self._opened(database, Session)
            except psycopg2.OperationalError:
                if len(told) == OPEN_TRIES or not (freed := self.slots.free()):
                    raise
                told.append(freed)
            else:
                for freed in told:
                    session.tell(freed)
                return session

    def _opened(self, database: str | None, kind: type[extensions.connection], more: str = "") -> Any:
        parameters = _PARAMETERS | self.parameters | ({"dbname": database} if database else {})
        parameters["client_encoding"] = "UTF8"
        return self._opener.open(
            lambda options: psycopg2.connect(
                extensions.make_dsn(**parameters | {"options": options}), connection_factory=kind
            ),
            f"{self.parameters.get('options', '')} {_PARAMETERS['options']}{more}",
        )

    def _translated(self, error: psycopg2.Error, database: str | None, waited: str = "") -> BackendError:
        return self.blamed(errors.meaning(error), errors.clean(errors.describe(error) + waited), database)

    def blamed(self, meaning: type[BackendError], said: str, database: str | None) -> BackendError:
        """`meaning`; but what looks like the server's trouble is one database's alone while the server itself works."""
        if database is None:
            return meaning(said)
        said = f"in database {errors.clean(database)!r}: {said}"
        return (Transient if issubclass(meaning, Unavailable) and self._works() else meaning)(said)

    def _works(self) -> bool:
        """Whether the server lets us in, is a writable primary, and has room on its disk."""
        try:
            with self.connect(seconds=INSPECT_SECONDS, watched=False) as session, session.cursor() as cursor:
                cursor.execute(_TAKES_ROOM)
        except Unavailable:
            return False
        except BackendError:
            return True
        return True


class Session(extensions.connection):  # type: ignore[misc]  # psycopg2 ships no types
    """A connection that records the statements that it executed: the evidence of a teardown."""

    server: Server
    watch: Watch
    standbys = ""  # the server's synchronous_standby_names
    since: datetime | None = None  # its start, by the server's clock

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.executed: list[str] = []
        self.told: list[str] = []  # what of it was done to others, such as sessions that were ended

    def tell(self, done: str) -> None:
        """Record what was done to others. An attempt that fails says it in its error, since it returns no evidence."""
        self.executed.append(done)
        self.told.append(done)

    def take_back(self, done: str) -> None:
        """Undo one `tell`: it was not done after all."""
        self.executed.remove(done)
        self.told.remove(done)

    def with_evidence(self, error: BackendError) -> BackendError:
        """The error with what was done before it; what was done to others is in its words too."""
        inner = (error.did or {}).get("statements", [])  # of a session in another database
        if self.told:
            error = type(error)(f"{error}; before: {errors.clean('; '.join(self.told))}")
        if self.executed or inner:
            error.did = {"statements": [*self.executed, *inner]}
        return error

    def execute(self, statement: str, **words: Any) -> None:
        """Run a statement and record it; a plain string among `words` is a name and is quoted as one."""
        quoted = {key: sql.Identifier(word) if isinstance(word, str) else word for key, word in words.items()}
        with self.cursor() as cursor:
            cursor.execute(sql.SQL(statement).format(**quoted))
        self._must_be_confirmed()
        told = statement.format(**{key: getattr(word, "string", "…") for key, word in quoted.items()})
        if self.executed[-1:] != [told]:  # a customer decides how many batches there are
            self.executed.append(told)

    def confirm(self) -> None:
        """Commit after all that this session has done or seen. Raises OutOfService if no standby confirms that.

        A commit whose wait somebody cancels succeeds, and everybody sees what it did: the object is absent, for one.
        The next commit waits for all before it. A cancel of that one is a warning, in the server's language.
        """
        with self.cursor() as cursor:
            cursor.execute("SET client_min_messages = warning")
            del self.notices[:]
            cursor.execute("SELECT pg_catalog.pg_logical_emit_message(true, 'deprovisioner', 'confirm')")
        self._must_be_confirmed(warned=bool(self.notices))

    def _must_be_confirmed(self, *, warned: bool = False) -> None:
        with self.watch.ending:
            if self.watch.unconfirmed or warned:
                names = f" (synchronous_standby_names = {errors.clean(self.standbys)!r})" if self.standbys else ""
                raise OutOfService(UNCONFIRMED.format(names))

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """BEGIN, then COMMIT, or ROLLBACK when the body raises."""
        self.execute("BEGIN")
        try:
            yield
        except BaseException:
            with contextlib.suppress(psycopg2.Error):  # the first error counts, and the session may have ended with it
                self.execute("ROLLBACK")
            raise
        self.execute("COMMIT")

    def lock(self, *names: str | None) -> None:
        """Wait until no other worker, zombies included, is at these objects; the lock ends with the session.

        No customer may log in to the service's own database, so its keys need not be secret. Where the DSN names a
        database that customers may enter, one that takes the lock is ended like any other that is waited for.
        """
        with self.cursor() as cursor:
            for name in filter(None, names):
                cursor.execute("SELECT pg_catalog.pg_advisory_lock(%s)", (lock_key(name),))


def lock_key(name: str) -> int:
    """The key of an object's advisory lock; the same for all workers, however their DSNs are written."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), signed=True)


@contextmanager
def afterwards(act: Callable[[], None]) -> Iterator[None]:
    """`act` at the end of the body, also when that raises; then the first error counts, whatever becomes of `act`."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(psycopg2.Error, BackendError):
            act()
        raise
    act()


def _settle(session: Session) -> str:
    """Pin what no option can, or a variable would take back (PGTZ, PGDATESTYLE).

    Returns why the server is no writable primary, empty where it is one.

    A session never goes back into recovery, so whatever it reads after this has a primary's authority.
    """
    with session.cursor() as cursor:
        cursor.execute(
            """
            SELECT pg_catalog.pg_is_in_recovery(), pg_catalog.current_setting('transaction_read_only') = 'on',
                   CASE WHEN pg_catalog.current_setting('synchronous_commit') IN ('off', 'local')
                        THEN pg_catalog.set_config('synchronous_commit', 'on', false) END,
                   pg_catalog.current_setting('synchronous_standby_names'),
                   (SELECT backend_start FROM pg_catalog.pg_stat_get_activity(pg_catalog.pg_backend_pid())),
                   pg_catalog.set_config('TimeZone', 'UTC', false),
                   pg_catalog.set_config('DateStyle', 'ISO, MDY', false)"""
        )
        standby, read_only, _, session.standbys, session.since, *_ = cursor.fetchone()
        if standby or read_only:
            return STANDBY if standby else READ_ONLY
        with contextlib.suppress(sqlstates.InvalidParameterValue):  # a platform that cannot watch its sockets
            cursor.execute(
                "SELECT pg_catalog.set_config('client_connection_check_interval', %s, false)", (str(CLIENT_CHECK_MS),)
            )
    return ""


def cut(descriptor: int) -> None:
    """Break a connection from our own side: a server that is stopped neither answers nor times out."""
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as line:
        line.shutdown(socket.SHUT_RDWR)
