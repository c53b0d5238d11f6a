"""What an ordinary customer prepares in its database stops no teardown, its own or a neighbour's, and runs as nobody.

Each preparation is made with the customer's own login. The witnesses are the server's catalog and log, as superuser.
"""

import contextlib
import re
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import psycopg2
import pytest
from psycopg2 import extensions, sql
from sqlalchemy import Connection, text

from outbox.rows import Claim
from tests.support import accounts
from tests.support.customers import Customer, in_the_outbox, stored
from tests.support.servers import Servers, database_dsn
from tests.support.witness import PgServer, slowness
from worker.backends import Absent
from worker.backends.postgres import Postgres, heir
from worker.backends.postgres.blockers import SILENT_SECONDS
from worker.backends.postgres.session import Server, lock_key
from worker.run import Run

SECONDS = 30.0
ALONE = "(nothing beside it)"
# Until who blocks is seen and ended: three times `GRACE_SECONDS` of `blockers`, for a machine that has other work too.
ALLOWANCE = 0.3
# What a neighbour can add: the grace of a client that sends no data, and rights on 10,000 tables, which are taken
# one by one.
MORE = {"a_copy_that_waits_for_its_data": SILENT_SECONDS, "ten_thousand_tables_all_granted_to_the_victim": 20.0}
ODD = (
    "a\"b'c",
    "$$;--",
    "%s%(x)s{0}",
    "back\\slash",
    "new\nline",
    "tab\tand\x1b[2J",
    "ünïcödé 名前",
    "/*",
    "current_user",
)
MODES = (
    "ACCESS SHARE", "ROW SHARE", "ROW EXCLUSIVE", "SHARE UPDATE EXCLUSIVE",
    "SHARE", "SHARE ROW EXCLUSIVE", "EXCLUSIVE", "ACCESS EXCLUSIVE",
)  # fmt: skip
_PREPARATIONS: dict[str, tuple[Callable[["Stage"], None], bool]] = {}


def preparation(make: Callable[["Stage"], None]) -> Callable[["Stage"], None]:
    """One of the default part; what takes longer is `proof`."""
    _PREPARATIONS[make.__name__] = make, False
    return make


def proof(make: Callable[["Stage"], None]) -> Callable[["Stage"], None]:
    """One that takes long."""
    _PREPARATIONS[make.__name__] = make, True
    return make


@dataclass
class Stage:
    """Mallory, who prepares; the victim beside her; and what stays open until both are gone."""

    pg: PgServer
    mallory: Customer
    victim: Customer
    life: ExitStack
    x: str = field(default_factory=lambda: f"x{uuid.uuid4().hex[:12]}")
    ending: threading.Event = field(default_factory=threading.Event)

    def session(self, *statements: str, database: str | None = None, **options: Any) -> Any:
        """A session of Mallory's that stays, with these statements in an open transaction."""
        dsn = database_dsn(self.mallory.dsn, database) if database else self.mallory.dsn
        connection = psycopg2.connect(dsn, **options)
        self.life.callback(connection.close)
        for statement in statements:
            connection.cursor().execute(statement)
        return connection

    def run(self, *statements: str, database: str | None = None) -> list[str]:
        """Commit each of these by itself; what the server did not allow comes back, in its words."""
        refused = []
        dsn = database_dsn(self.mallory.dsn, database) if database else self.mallory.dsn
        with contextlib.closing(psycopg2.connect(dsn)) as connection:
            connection.autocommit = True
            for statement in statements:
                try:
                    connection.cursor().execute(statement)
                except psycopg2.Error as error:
                    refused.append(str(error))
        return refused

    def keep_doing(self, clients: int, *statements: str, commit: bool = False) -> None:
        """Clients that log in again each time they are ended, and do this, until both resources are gone."""

        def come_back() -> None:
            while not self.ending.is_set():
                with (
                    contextlib.suppress(psycopg2.Error),
                    contextlib.closing(psycopg2.connect(self.mallory.dsn)) as one,
                ):
                    one.autocommit = commit
                    while not self.ending.is_set():
                        for statement in statements:
                            one.cursor().execute(statement)
                        if not commit:
                            one.cursor().execute("SELECT pg_sleep(1)")

        threads = [threading.Thread(target=come_back, daemon=True) for _ in range(clients)]
        for thread in threads:
            thread.start()
            self.life.callback(thread.join)
        self.life.callback(self.ending.set)

    def in_postgres(self) -> None:
        """As in an older deployment: customers may log in to the database `postgres`."""
        self.life.enter_context(accounts.customers_in_postgres(self.pg))


# -- sessions and locks ------------------------------------------------------------------------------------------------


@preparation
def an_idle_transaction(at: Stage) -> None:
    at.session("SELECT 1", application_name="\x1b[2J'; DROP ROLE x; --")


@preparation
def an_open_change_of_its_password(at: Stage) -> None:
    at.session(f"ALTER ROLE {at.mallory.quoted} PASSWORD 'another'")


@preparation
def an_open_setting_of_its_role(at: Stage) -> None:
    at.session(f"ALTER ROLE {at.mallory.quoted} SET work_mem = '4MB'")


@preparation
def an_open_grant_on_its_database(at: Stage) -> None:
    at.session(f'GRANT CONNECT ON DATABASE "{at.mallory.manifest["database"]}" TO PUBLIC')


@preparation
def an_open_grant_to_the_victim(at: Stage) -> None:
    at.session("CREATE TABLE t ()", f"GRANT SELECT ON t TO {at.victim.quoted}")


@preparation
def an_open_revoke_from_the_victim(at: Stage) -> None:
    at.run("CREATE TABLE t ()", f"GRANT ALL ON t TO {at.victim.quoted} WITH GRANT OPTION")
    at.session(f"REVOKE ALL ON t FROM {at.victim.quoted}")


@preparation
def a_lock_of_every_mode_on_a_table_of_the_victim_s_rights(at: Stage) -> None:
    for n, mode in enumerate(MODES):
        at.run(f"CREATE TABLE t{n} ()", f"GRANT SELECT ON t{n} TO {at.victim.quoted}")
        at.session(f"LOCK TABLE t{n} IN {mode} MODE", f"GRANT INSERT ON t{n} TO PUBLIC")


@preparation
def every_lock_on_the_catalogs_that_it_may_take(at: Stage) -> None:
    taken = at.session()
    taken.autocommit = False
    cursor = taken.cursor()
    for table in (
        "database",
        "authid",
        "auth_members",
        "shdepend",
        "shdescription",
        "class",
        "proc",
        "db_role_setting",
    ):
        for mode in MODES:
            cursor.execute("SAVEPOINT s")
            try:
                cursor.execute(f"LOCK TABLE pg_catalog.pg_{table} IN {mode} MODE")
            except psycopg2.errors.InsufficientPrivilege:
                cursor.execute("ROLLBACK TO SAVEPOINT s")


@preparation
def the_worker_s_advisory_locks(at: Stage) -> None:
    at.in_postgres()
    names = [at.mallory.manifest["database"], at.mallory.role, at.victim.manifest["database"], at.victim.role]
    for database in (None, "postgres"):
        at.session(*(f"SELECT pg_advisory_lock({lock_key(name)})" for name in names), database=database)


@preparation
def fifty_sessions_in_a_transaction(at: Stage) -> None:
    with contextlib.suppress(psycopg2.OperationalError):  # its role's limit
        for _ in range(50):
            at.session("SELECT 1")


@preparation
def sessions_that_reconnect_with_a_lock_on_its_role(at: Stage) -> None:
    at.keep_doing(8, f"ALTER ROLE {at.mallory.quoted} PASSWORD 'another'")


@preparation
def sessions_that_change_its_role_all_the_time(at: Stage) -> None:
    at.keep_doing(4, f"ALTER ROLE {at.mallory.quoted} CONNECTION LIMIT -1", commit=True)
    at.keep_doing(4, f"ALTER ROLE {at.mallory.quoted} PASSWORD 'another'", commit=True)


@preparation
def sessions_that_reconnect_with_a_grant_to_the_victim(at: Stage) -> None:
    at.run(*(f"CREATE TABLE t{n} ()" for n in range(4)))
    for n in range(4):
        at.keep_doing(2, f"GRANT SELECT ON t{n} TO {at.victim.quoted}")


@preparation
def grants_to_the_victim_all_the_time(at: Stage) -> None:
    at.run("CREATE TABLE t ()")
    at.keep_doing(
        2, f"GRANT SELECT ON t TO {at.victim.quoted}", f"REVOKE SELECT ON t FROM {at.victim.quoted}", commit=True
    )


@preparation
def a_loop_that_catches_every_error(at: Stage) -> None:
    at.keep_doing(
        2, "DO $$ BEGIN LOOP BEGIN PERFORM pg_sleep(9); EXCEPTION WHEN OTHERS THEN NULL; END; END LOOP; END $$"
    )


@preparation
def held_cursors_channels_and_temporary_tables(at: Stage) -> None:
    at.session(
        "LISTEN deprovisioner", "CREATE TEMPORARY TABLE pg_database (datname text)",
        "DECLARE c CURSOR WITH HOLD FOR SELECT generate_series(1, 1000)", "NOTIFY deprovisioner, 'x'",
    )  # fmt: skip


@preparation
def a_copy_that_waits_for_its_data(at: Stage) -> None:
    at.run("CREATE TABLE t (n int)")
    port = int(extensions.parse_dsn(at.pg.dsn)["port"])
    at.life.enter_context(socket.create_connection(("127.0.0.1", port)))  # one that never says who it is
    copying = at.session()
    read, write = socket.socketpair()
    at.life.callback(read.close)
    thread = threading.Thread(target=_copy, args=(copying, read), daemon=True)
    thread.start()
    at.life.callback(thread.join)  # before its session is closed: libpq's objects are one thread's at a time
    at.life.callback(write.close)


def _copy(connection: Any, read: socket.socket) -> None:
    with contextlib.suppress(psycopg2.Error), read.makefile("rb") as data:
        connection.cursor().copy_expert("COPY t FROM STDIN", data)


@preparation
def prepared_transactions(at: Stage) -> None:
    for n, statement in enumerate(
        (
            f"ALTER ROLE {at.mallory.quoted} PASSWORD 'another'",
            f'GRANT CONNECT ON DATABASE "{at.mallory.manifest["database"]}" TO PUBLIC',
            f"CREATE TABLE t (); GRANT SELECT ON t TO {at.victim.quoted}",
        )
    ):
        at.session(statement, f"PREPARE TRANSACTION '{at.x}''{n}\"'")


# -- rights ------------------------------------------------------------------------------------------------------------


@preparation
def memberships(at: Stage) -> None:
    """No version since 15 lets a role grant itself."""
    with Server(at.pg.service_dsn, frozenset()).connect() as ours, ours.transaction():
        heirs = {heir._heir(ours), *(role for role in at.pg.roles() if role.startswith("deprovisioner_nobody_"))}
    # What the victim has elsewhere needs the heir.
    theirs = at.victim.quoted
    at.pg.query(f"CREATE TABLE {at.x} (); ALTER TABLE {at.x} OWNER TO {theirs}")
    at.life.callback(at.pg.query, f"DROP TABLE {at.x}")
    for other in (at.victim.role, accounts.NAME, *heirs):
        tried = (f'GRANT {at.mallory.quoted} TO "{other}"', f'GRANT "{other}" TO {at.mallory.quoted}')
        assert len(at.run(*tried)) == len(tried)


@preparation
def default_privileges_for_the_victim(at: Stage) -> None:
    what = ("TABLES", "SEQUENCES", "FUNCTIONS", "TYPES", "SCHEMAS")
    at.run(
        "CREATE SCHEMA s",
        *(f"ALTER DEFAULT PRIVILEGES GRANT ALL ON {one} TO {at.victim.quoted}, PUBLIC" for one in what),
    )
    at.run(f"ALTER DEFAULT PRIVILEGES IN SCHEMA s GRANT ALL ON TABLES TO {at.victim.quoted} WITH GRANT OPTION")


@preparation
def policies_that_call_its_functions(at: Stage) -> None:
    at.run(
        _trap(at), "CREATE TABLE t (n int)", "INSERT INTO t VALUES (1)", "ALTER TABLE t ENABLE ROW LEVEL SECURITY",
        "ALTER TABLE t FORCE ROW LEVEL SECURITY", f"CREATE POLICY p ON t TO {at.victim.quoted}, PUBLIC USING (trap())",
        f"GRANT ALL ON t TO {at.victim.quoted}, PUBLIC",
    )  # fmt: skip


@preparation
def grants_on_everything_under_every_name(at: Stage) -> None:
    with contextlib.closing(psycopg2.connect(at.mallory.dsn)) as one:
        one.autocommit = True
        for name in ODD:
            for statement in (
                "CREATE SCHEMA {x}", "CREATE TABLE {x}.{x} ({x} int)", "CREATE SEQUENCE {x}.{y}",
                "CREATE FUNCTION {x}.{x}(a {x}.{x}) RETURNS int LANGUAGE sql SECURITY DEFINER AS 'SELECT 1'",
                "CREATE TYPE {x}.{z} AS ENUM ('a')", "CREATE DOMAIN {x}.{d} AS int", "GRANT ALL ON SCHEMA {x} TO {v}",
                "GRANT ALL ON {x}.{x}, {x}.{y} TO {v}", "GRANT SELECT ({x}) ON {x}.{x} TO {v}",
                "GRANT ALL ON FUNCTION {x}.{x} TO {v} WITH GRANT OPTION", "GRANT ALL ON TYPE {x}.{z} TO {v}",
                "COMMENT ON TABLE {x}.{x} IS 'deprovisioner gen=00000000-0000-0000-0000-000000000000'",
            ):  # fmt: skip
                words = {key: sql.Identifier(name + key) for key in "xyzd"} | {"v": sql.Identifier(at.victim.role)}
                one.cursor().execute(sql.SQL(statement).format(**words))


@preparation
def settings_of_its_role(at: Stage) -> None:
    for setting in (
        "default_transaction_read_only = on", "statement_timeout = 1", "search_path = public", "row_security = off",
        "default_transaction_isolation = serializable", "role = none", "session_authorization = postgres",
    ):  # fmt: skip
        at.run(f"ALTER ROLE {at.mallory.quoted} SET {setting}")


# -- code --------------------------------------------------------------------------------------------------------------


def _trap(at: Stage) -> str:
    return (
        "CREATE FUNCTION trap() RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN"
        f" RAISE LOG 'TRAP {at.x} %', current_user; RETURN true; END $$"
    )


def _code(at: Stage) -> tuple[str, ...]:
    fire = (
        f"CREATE FUNCTION fire() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN"
        f" RAISE LOG 'TRAP {at.x} %', current_user; RETURN NULL; END $$"
    )
    return (
        "CREATE TABLE t (n int)", _trap(at), fire, f"GRANT ALL ON t TO {at.victim.quoted}, PUBLIC",
        "CREATE TRIGGER fire AFTER INSERT OR UPDATE OR DELETE ON t FOR EACH ROW EXECUTE FUNCTION fire()",
        "CREATE TRIGGER cut AFTER TRUNCATE ON t EXECUTE FUNCTION fire()",
        "CREATE VIEW v AS SELECT trap()", f"GRANT SELECT ON v TO {at.victim.quoted}",
        "CREATE MATERIALIZED VIEW m AS SELECT 1 AS n", "CREATE RULE r AS ON DELETE TO t DO INSTEAD SELECT trap()",
        "CREATE TABLE g (n int, b boolean DEFAULT trap(), CHECK (b OR trap()))",
        "CREATE EVENT TRIGGER e ON ddl_command_start EXECUTE FUNCTION fire()",
        "CREATE EVENT TRIGGER l ON login EXECUTE FUNCTION fire()",
        "CREATE EXTENSION postgres_fdw", "CREATE EXTENSION pg_cron",
        "CREATE SERVER s FOREIGN DATA WRAPPER postgres_fdw",
        "CREATE AGGREGATE a(int) (SFUNC = int4pl, STYPE = int, INITCOND = '0')",
    )  # fmt: skip


@preparation
def code_in_its_database(at: Stage) -> None:
    at.run(*_code(at))


@preparation
def code_in_a_neighbour_s_database(at: Stage) -> None:
    """The victim has let the others in. What they leave there is the heir's, and runs as nobody."""
    database = at.victim.manifest["database"]
    at.pg.query(f'GRANT CONNECT, CREATE ON DATABASE "{database}" TO PUBLIC')
    at.pg.query("GRANT ALL ON SCHEMA public TO PUBLIC", database=database)
    at.run(*_code(at), "SELECT lo_create(0)", "CREATE SCHEMA mine", database=database)


@preparation
def namesakes_of_everything_that_the_service_calls(at: Stage) -> None:
    body = f"LANGUAGE plpgsql AS $$ BEGIN RAISE LOG 'TRAP {at.x} %', current_user; RETURN NULL; END $$"
    at.run(
        *(
            f"CREATE FUNCTION public.{name}({takes}) RETURNS {gives} {body}"
            for name, takes, gives in (
                ("pg_terminate_backend", "int", "boolean"), ("set_config", "text, text, boolean", "text"),
                ("right", "text, int", "text"), ("current_setting", "text", "text"), ("length", "text", "int"),
                ("lo_unlink", "oid", "int"), ("quote_ident", "text", "text"), ("pg_is_in_recovery", "", "boolean"),
                ("like_", "name, text", "boolean"), ("as_int", "text", "int"),
            )
        ),
        "CREATE OPERATOR public.= (LEFTARG = name, RIGHTARG = text, FUNCTION = public.like_)",
        "CREATE DOMAIN public.oid AS int", "CREATE DOMAIN public.int8 AS text", "CREATE TABLE public.pg_database ()",
        "CREATE CAST (text AS int) WITH FUNCTION public.as_int AS IMPLICIT",
        f"GRANT SELECT ON public.pg_database TO {at.victim.quoted}",
    )  # fmt: skip


@preparation
def publications_subscriptions_and_slots(at: Stage) -> None:
    at.run(
        "CREATE TABLE t ()", "CREATE PUBLICATION p FOR TABLE t", "CREATE PUBLICATION q FOR ALL TABLES",
        "CREATE SUBSCRIPTION s CONNECTION 'host=127.0.0.1' PUBLICATION p WITH (connect = false)",
        "SELECT pg_create_logical_replication_slot('hostile', 'test_decoding')",
        "SELECT pg_create_physical_replication_slot('hostile', true)",
    )  # fmt: skip


# -- size --------------------------------------------------------------------------------------------------------------


def _tables(at: Stage, many: int, granted: int) -> None:
    loop = "DO $$ BEGIN FOR n IN 1..{} LOOP EXECUTE {}; END LOOP; END $$"
    for begin in range(0, many, 500):  # each table is a lock of its transaction
        at.run(loop.format(500, f"format('CREATE TABLE t%s ()', n + {begin})"))
    at.run(loop.format(granted, f"format('GRANT SELECT ON t%s TO {at.victim.quoted}', n)"))


@preparation
def two_thousand_tables(at: Stage) -> None:
    _tables(at, 2000, 500)


@proof
def ten_thousand_tables_all_granted_to_the_victim(at: Stage) -> None:
    _tables(at, 10_000, 10_000)


@preparation
def comments_of_a_megabyte(at: Stage) -> None:
    long = "x" * (1 << 20)
    at.run(
        "CREATE TABLE t (n int)", f"COMMENT ON TABLE t IS '{long}'", f"COMMENT ON COLUMN t.n IS '{long}'",
        f"COMMENT ON ROLE {at.mallory.quoted} IS '{long}'", f"ALTER ROLE {at.mallory.quoted} SET my.text = '{long}'",
        f'COMMENT ON DATABASE "{at.mallory.manifest["database"]}" IS \'{long}\'',
    )  # fmt: skip


@preparation
def large_objects_here_and_in_postgres(at: Stage) -> None:
    at.in_postgres()
    for database in (None, "postgres"):
        at.run("SELECT lo_create(0) FROM generate_series(1, 2000)", database=database)
    grant = f"GRANT SELECT ON LARGE OBJECT %s TO {at.victim.quoted}"
    loop = "FOR o IN SELECT oid FROM pg_largeobject_metadata LIMIT 100 LOOP EXECUTE format('{}', o); END LOOP"
    at.run(f"DO $$ DECLARE o oid; BEGIN {loop.format(grant)}; END $$")


@proof
def twenty_thousand_large_objects_in_postgres(at: Stage) -> None:
    at.in_postgres()
    for _ in range(10):
        at.run("SELECT lo_create(0) FROM generate_series(1, 2000)", database="postgres")


@preparation
def sessions_in_postgres(at: Stage) -> None:
    at.in_postgres()
    for _ in range(3):
        at.session("SELECT lo_create(0)", "LISTEN x", "CREATE TEMPORARY TABLE t ()", database="postgres")


# -- what they come to -------------------------------------------------------------------------------------------------


def _accounts() -> Iterator[Any]:
    for name, (_, long) in _PREPARATIONS.items():
        yield pytest.param("18-service", name, id=name, marks=[pytest.mark.proof] if long else [])
    for where in ("18", "15-service"):
        for name in _PREPARATIONS:
            yield pytest.param(where, name, id=f"{name}-{where}", marks=pytest.mark.proof)


def _powers(pg: PgServer, but: set[str]) -> set[tuple[Any, ...]]:
    """Who is what, and who is a member of whom."""
    roles = pg.query(
        "SELECT rolname, rolsuper, rolcreaterole, rolcreatedb, rolreplication, rolbypassrls, rolcanlogin FROM pg_roles"
    )
    members = pg.query("SELECT roleid::regrole::text, member::regrole::text FROM pg_auth_members")
    heirs = "deprovisioner_nobody_"
    return {row for row in [*roles, *members] if not but & set(map(str, row)) and heirs not in str(row[0])}


_LARGE_OBJECTS = "SELECT count(*) FROM pg_largeobject_metadata"


@pytest.fixture(scope="module")
def times() -> Iterator[dict[tuple[str, str], float]]:
    """Seconds that teardowns took, by account and by what was prepared beside them; printed at the end."""
    took: dict[tuple[str, str], float] = {}
    yield took
    for (where, name), seconds in took.items():
        print(f"{where:12} {name:58} {seconds:.3f} s, {seconds / took[where, ALONE]:.1f} times")


def _torn_down(db: Connection, backend: Postgres, deleted: Callable[[], Claim]) -> float:
    claim = deleted()
    began = time.monotonic()
    Run(claim, backend, worker="w")()
    took = time.monotonic() - began
    [end] = db.execute(text("SELECT state, attempts, last_error FROM outbox WHERE id = :id"), {"id": claim.id})
    assert (end.state, end.attempts) == ("succeeded", 1), end
    assert took < SECONDS
    return took


def _prepared(db: Connection, pg: PgServer, backend: Postgres, prepare: Callable[[Stage], None]) -> float:
    """Both are torn down beside what is prepared, and nothing of them is left; the seconds that the victim's took."""
    resources = [in_the_outbox(db, backend) for _ in range(2)]
    both = [victim, mallory] = [customer for _, customer, _ in resources]
    names = {mallory.role, victim.role}
    before, since = _powers(pg, names), pg.log.stat().st_size
    large_objects = pg.query(_LARGE_OBJECTS)
    with ExitStack() as life:
        at = Stage(pg, mallory, victim, life)
        prepare(at)
        had = stored(db)
        # The victim first, while Mallory is there.
        took, _ = [_torn_down(db, backend, deleted) for _, _, deleted in resources]
        assert stored(db) - had < 64_000, "the control database grows by no more"
        for customer in both:
            assert isinstance(backend.inspect(customer.manifest), Absent)
            for dsn in (customer.dsn, re.sub(r":[^:@]*@", ":another@", customer.dsn)):
                with pytest.raises(psycopg2.OperationalError):
                    psycopg2.connect(dsn)
        roles = [one.role for one in both] + [f"zz_del_{one.manifest['generation']}" for one in both]
        oids = [one.manifest["role_oid"] for one in both]
        assert not any(map(pg.bears, [one.manifest for one in both]))
        assert (
            pg.query("SELECT * FROM pg_stat_activity WHERE usesysid = ANY(%s::oid[]) OR datname ~ '^zz_'", oids) == []
        )
        assert pg.query("SELECT * FROM pg_roles WHERE oid = ANY(%s::oid[]) OR rolname = ANY(%s)", oids, roles) == []
        owned = "SELECT * FROM pg_shdepend WHERE refclassid = 'pg_authid'::regclass AND refobjid = ANY(%s::oid[])"
        assert pg.query(owned, oids) == []
        assert pg.query("SELECT * FROM pg_prepared_xacts") == []
        assert pg.query("SELECT * FROM pg_replication_slots WHERE slot_name = 'hostile'") == []
        assert pg.query(_LARGE_OBJECTS) == large_objects
    assert _powers(pg, set()) == before, "no role won a right or a membership, and none is left"
    said = pg.log.read_bytes()[since:].decode(errors="replace")
    runners = set(re.findall(rf"LOG: +TRAP {at.x} (\S+)", said))
    assert runners <= {mallory.role}, "nothing of the customer's ran with another's rights"
    return took


@pytest.mark.parametrize(("where", "name"), list(_accounts()))
def test_what_a_customer_prepares_stops_no_teardown_and_leaves_nothing(
    db: Connection,
    servers: Servers,
    request: pytest.FixtureRequest,
    times: dict[tuple[str, str], float],
    where: str,
    name: str,
) -> None:
    """A neighbour's teardown takes at most twice as long as alone, and ALLOWANCE; the best of three counts."""
    version, _, account = where.partition("-")
    pg = servers.pg if version == "18" else request.getfixturevalue("postgres15")
    backend = Postgres(pg.service_dsn if account else pg.dsn)
    if (where, ALONE) not in times:
        times[where, ALONE] = min(_torn_down(db, backend, in_the_outbox(db, backend)[2]) for _ in range(3))
    bound = 2 * times[where, ALONE] + (ALLOWANCE + MORE.get(name, 0)) * slowness()
    tries = iter(range(3))
    while times.get((where, name), bound + 1) > bound and next(tries, None) is not None:
        took = _prepared(db, pg, backend, _PREPARATIONS[name][0])
        times[where, name] = min(took, times.get((where, name), took))
    assert times[where, name] <= bound, f"{times[where, name]:.3f} s, alone {times[where, ALONE]:.3f} s"
