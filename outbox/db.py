"""The control database: one engine for each process, and the three ways to use it."""

import hashlib
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection, Engine, ExecutionContext, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError

from outbox import settings
from outbox.commits import (
    CONFIRM,
    DriverError,
    NotConfirmed,
    PooledConnection,
    WatchedConnection,
    WatchedCursor,
    doubted,
)
from outbox.errors import Rewound, SettingsError, Unconfirmed
from outbox.opening import Opener

# No statement runs long: one that does is waiting for a lock or for a lost server.
STATEMENT_TIMEOUT_MS = 15_000
# A caller that waits for a locked row keeps a thread and a connection from others.
LOCK_TIMEOUT_MS = 4_000
# A transaction left open by a stopped process must not hold back vacuum or a row lock.
IDLE_IN_TRANSACTION_TIMEOUT_MS = 15_000
# The API's threads (40), or a worker's, share these; more connections than cores gain nothing.
POOL_SIZE = 20
# What each session has, whatever server, database and role say: options of a connection beat ALTER ROLE and ALTER
# DATABASE ... SET (docs/design.md, What a promise stands on). docs/scaling.md has them for a role behind a pooler.
PINS = {
    "statement_timeout": f"{STATEMENT_TIMEOUT_MS // 1000}s",
    "lock_timeout": f"{LOCK_TIMEOUT_MS // 1000}s",
    "idle_in_transaction_session_timeout": f"{IDLE_IN_TRANSACTION_TIMEOUT_MS // 1000}s",
    "idle_session_timeout": "0",
    "default_transaction_isolation": "read committed",
    "default_transaction_read_only": "off",
    "default_transaction_deferrable": "off",
    "row_security": "on",
    "transform_null_equals": "off",
    "standard_conforming_strings": "on",
    "client_encoding": "UTF8",
    "client_min_messages": "warning",  # a commit that no standby confirmed is a warning
    "timezone": "UTC",
    "datestyle": "ISO, MDY",
    "intervalstyle": "postgres",
    "jit": "off",
    # The planner overestimates array parameters, and would plan a prepared statement anew at each call.
    "plan_cache_mode": "force_generic_plan",
    # A plan must suit a growing table, and the rows asked for are in memory, so it must use an index.
    "random_page_cost": "1.1",
}
# A schema that others may write to could hide a table of ours; `pg_temp` must not come first.
SEARCH_PATH = "public"
READ_ONLY = "25006"
# SQLSTATEs: shutting down, crashed, starting up; this process left a transaction open for too long; a standby.
_UNREACHABLE = ("57P01", "57P02", "57P03", "25P03", READ_ONLY)
# Classes of SQLSTATEs: connection lost; no disk, memory or connection slot left.
_UNREACHABLE_CLASSES = ("08", "53")
# SQLSTATEs of a wait that was too long: lock timeout, statement timeout, deadlock, serialization.
_IN_THE_WAY = ("55P03", "57014", "40P01", "40001")
# What the triggers of revision 0013 say.
REWOUND = "DP015"
# No prepared statement has that name, or one has it already.
_NOT_PREPARED = ("26000", "42P05")


def control_url() -> URL:
    """DATABASE_URL with the one driver this project uses. Raises SettingsError when the URL cannot be read."""
    try:
        url = make_url(settings.get().need("database_url"))
    except ArgumentError as error:
        raise SettingsError(f"DEPROVISIONER_DATABASE_URL must be a postgresql:// URL: {error}") from error
    if url.get_backend_name() not in ("postgresql", "postgres"):
        raise SettingsError(f"DEPROVISIONER_DATABASE_URL must be a postgresql:// URL, not {url.drivername}://")
    return url.set(drivername="postgresql+psycopg2")


@lru_cache(maxsize=1)
def engine() -> Engine:
    """This process's engine. A process that forks must call `engine.cache_clear()` in the child."""
    url, direct = control_url(), settings.get().prepared_statements
    made = sa.create_engine(
        url,
        use_native_hstore=False,  # saves three statements on each new connection: no column here is an hstore
        # Set for the whole engine: set at each checkout, it would cost a round trip to reset.
        isolation_level="AUTOCOMMIT",
        pool_size=POOL_SIZE,
        max_overflow=0,
        pool_timeout=10,
        pool_use_lifo=True,
        connect_args={
            "application_name": "deprovisioner",
            "client_encoding": PINS["client_encoding"],  # else the variable PGCLIENTENCODING would win
            "connection_factory": WatchedConnection if direct else PooledConnection,
            "cursor_factory": WatchedCursor,
            "connect_timeout": 5,
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": 20_000,
            "options": _options(url.query.get("options", "")),
        },
    )

    sa.event.listen(made, "handle_error", _discard_stale_connections)
    # Behind a pooler the second would be said to one of its sessions: there the role must have it.
    first = f"{_AGAINST_VARIABLES};{_DURABLE}" if direct else _AGAINST_VARIABLES
    sa.event.listen(made, "connect", partial(_say, first))
    if direct:
        sa.event.listen(made, "do_connect", partial(_open, Opener()))
        sa.event.listen(made, "before_cursor_execute", _execute_prepared, retval=True)
        sa.event.listen(made, "handle_error", _log_pooler_hint)
    return made


def on_reconnect(act: Callable[[], object]) -> None:
    """Have `act` called when a connection of this process is made or lost: the server may have been restarted."""
    for moment in ("connect", "invalidate"):
        sa.event.listen(engine(), moment, lambda *_: act())


def _options(given: str | tuple[str, ...]) -> str:
    """The `options` of a connection: those of DATABASE_URL, then our pins, which win. Its `search_path` stays."""
    own = " ".join(given) if isinstance(given, tuple) else given
    path = _SEARCH_PATH.findall(own) or [SEARCH_PATH]
    pins = (f"-c {name}={value.replace(' ', _SPACE)}" for name, value in PINS.items())
    return " ".join([own, *pins, f"-c search_path={path[-1]},{_SPACE}pg_temp"]).strip()


_SPACE = "\\ "
# The value ends at a space without a backslash.
_SEARCH_PATH = re.compile(r"(?:-c\s*|--)search_path=((?:\\.|\S)*)", re.IGNORECASE)


# libpq sends the variables PGTZ and PGDATESTYLE beside the options of a connection, and they would win. A pooler keeps
# these two settings for each of its clients.
_AGAINST_VARIABLES = "SELECT " + ", ".join(
    f"pg_catalog.set_config('{name}', '{PINS[name]}', false)" for name in ("timezone", "datestyle")
)
# Whatever server, database and role say: when a commit returns, it is on disk, on synchronous standbys too. Not an
# option of the connection: that would lower `remote_apply`, too.
_DURABLE = """
    SELECT CASE WHEN pg_catalog.current_setting('synchronous_commit') IN ('off', 'local', 'remote_write')
                THEN pg_catalog.set_config('synchronous_commit', 'on', false) END"""


def _say(first: str, connection: Any, _record: Any) -> None:
    """What a new connection sends before anything else, as one message."""
    with connection.cursor() as asked:
        asked.execute(first)


def _open(opener: Opener, dialect: Any, _record: Any, given: Any, named: dict[str, Any]) -> Any:
    """Connect as SQLAlchemy does; `given` and `named` are the driver's arguments."""
    return opener.open(lambda options: dialect.connect(*given, **named | {"options": options}), named["options"])


def prepared(sql: str) -> sa.TextClause:
    """A statement that each connection parses and plans only once: for the few statements that every job needs.

    psycopg2 does not offer libpq's prepared statements, so this uses SQL's PREPARE and EXECUTE. There a list of strings
    is a `text[]`; the statement casts its elements. Statements that `;` separates go as one message.
    """
    return sa.text(sql).execution_options(prepared=True)


def _execute_prepared(
    connection: Connection, _cursor: Any, statement: str, parameters: Any, context: ExecutionContext, _many: bool
) -> tuple[str, Any]:
    if not context.execution_options.get("prepared"):
        return statement, parameters
    executes = connection.info.setdefault("prepared", {})  # lives as long as the connection and its statements
    if statement not in executes:
        executes[statement] = "; ".join(_prepare(connection, part) for part in statement.split(";"))
    return executes[statement], parameters


def _prepare(connection: Connection, statement: str) -> str:
    """Prepare one statement; returns what executes it."""
    places = list(dict.fromkeys(_PARAMETER.findall(statement)))
    numbered = _PARAMETER.sub(lambda place: f"${places.index(place[1]) + 1}", statement)
    # The name is a hash of the text: behind a pooler an EXECUTE may fail, but never runs another statement.
    name = f"deprovisioner_{hashlib.sha256(numbered.encode()).hexdigest()[:16]}"
    prepare = f"PREPARE {name} AS {numbered.replace('%%', '%')}"
    # Through SQLAlchemy, which sees from the error whether the connection is lost.
    connection.exec_driver_sql(prepare, execution_options={"no_parameters": True})
    return f"EXECUTE {name} ({', '.join(f'%({place})s' for place in places)})" if places else f"EXECUTE {name}"


_PARAMETER = re.compile(r"%\((\w+)\)s")


def _discard_stale_connections(context: sa.engine.ExceptionContext) -> None:
    """Drop a connection to a server that is now read-only (a failover), or with outdated plans (a migration)."""
    state = getattr(context.original_exception, "pgcode", None)
    if state == READ_ONLY or (state == "0A000" and "cached plan" in str(context.original_exception)):
        context.is_disconnect = True


def _log_pooler_hint(context: sa.engine.ExceptionContext) -> None:
    """A prepared statement disappears from a living connection only when a pooler gives it another server session."""
    if getattr(context.original_exception, "pgcode", None) in _NOT_PREPARED:
        from outbox.logs import log  # noqa: PLC0415 - keeps the start of the command line short

        log.error(
            "prepared_statement_of_another_session",
            hint="behind a pooler in transaction mode set DEPROVISIONER_PREPARED_STATEMENTS=false (docs/scaling.md)",
        )


@contextmanager
def transaction() -> Iterator[Connection]:
    """Everything inside commits together, or not at all. Raises Unconfirmed."""
    with _session("READ COMMITTED") as db, db.begin():
        yield db


@contextmanager
def statement() -> Iterator[Connection]:
    """Each statement inside is a transaction of its own: one round trip, and committed when it returns.

    Raises Unconfirmed.
    """
    with _session(None) as db:
        yield db


@contextmanager
def snapshot() -> Iterator[Connection]:
    """Everything inside sees one moment of the database, and cannot write."""
    with _session("REPEATABLE READ") as db, db.begin():
        db.execute(sa.text("SET TRANSACTION READ ONLY"))
        yield db


@contextmanager
def _session(isolation: Any) -> Iterator[Connection]:
    """A connection of the pool. Every error of it is SQLAlchemy's or ours, never the driver's own."""
    made = engine() if isolation is None else engine().execution_options(isolation_level=isolation)
    try:
        opened = made.connect()
    except DriverError as error:  # setting the isolation level of a dead connection: SQLAlchemy passes it on as it is
        engine().dispose()  # as SQLAlchemy does: the other connections of the pool are as old
        raise DBAPIError.instance(None, None, error, DriverError, connection_invalidated=True) from error
    try:
        with opened as db:
            yield db
    except DBAPIError as error:
        if isinstance(error.orig, NotConfirmed):
            raise Unconfirmed(
                "the control database has committed, but no synchronous standby confirmed it: a failover may take it "
                "back. Repair the standby, or take it out of synchronous_standby_names; then ask again"
            ) from error
        if getattr(error.orig, "pgcode", None) == REWOUND:
            raise Rewound from error
        raise


def must_confirm(*, always: bool = False) -> None:
    """Raises Unconfirmed while no synchronous standby confirms commits: what is committed now may be taken back.

    It commits nothing to see that; and, unless `always`, only after a commit of this process that was not confirmed.
    """
    if always or doubted.is_set():
        with statement() as db:
            db.execute(sa.text(f"SELECT {CONFIRM}"))
        doubted.clear()


def busy(error: BaseException) -> bool:
    """Whether the control database answers, and another transaction or all connections were in the way for too long."""
    return isinstance(error, sa.exc.TimeoutError) or (
        isinstance(error, DBAPIError) and getattr(error.orig, "pgcode", None) in _IN_THE_WAY
    )


def passing(error: BaseException) -> bool:
    """Whether the same statement may succeed later: `unreachable` or `busy`."""
    return unreachable(error) or busy(error)


def unreachable(error: BaseException) -> bool:
    """Whether the control database could not be reached, was lost during a statement, or is out of resources."""
    if not isinstance(error, DBAPIError) or isinstance(error.orig, NotConfirmed):
        return False
    if error.connection_invalidated:
        return True
    state: Any = getattr(error.orig, "pgcode", None)
    if state is None:  # libpq lost the connection, or never had one
        return isinstance(error, sa.exc.OperationalError | sa.exc.InterfaceError)
    return state[:2] in _UNREACHABLE_CLASSES or state in _UNREACHABLE
