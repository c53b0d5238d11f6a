"""Whom a session believes, and what no setting of a server, a role or a database changes about it."""

import re
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psycopg2
import pytest

from deprovisioner.conformance.verbs import every_verb
from outbox.errors import Unavailable
from tests.support.servers import OLD_POSTGRES_PROGRAMS, Servers, database_dsn
from tests.support.sessions import WRONG_ENVIRONMENT
from tests.support.standby import lagging
from tests.support.witness import PgServer
from worker.backends import Absent, Same
from worker.backends.postgres import Postgres, session
from worker.backends.postgres.session import Server

PRODUCT = Path(session.__file__).parent
# What each setting would be if role or database had their way, and what the session has.
PINNED = {
    "search_path": ("public, pg_catalog", "pg_catalog,pg_temp"),
    "default_transaction_read_only": ("on", "off"),
    "default_transaction_isolation": ("serializable", "read committed"),
    "default_transaction_deferrable": ("on", "off"),
    "synchronous_commit": ("off", "on"),
    "standard_conforming_strings": ("off", "on"),
    "client_encoding": ("LATIN1", "UTF8"),
    "DateStyle": ("SQL, DMY", "ISO, MDY"),
    "TimeZone": ("Asia/Tokyo", "UTC"),
    "client_min_messages": ("error", "log"),
    "row_security": ("off", "on"),
    "default_tablespace": ("pg_global", ""),
    "statement_timeout": ("1ms", "5min"),
    "lock_timeout": ("1ms", "10s"),
    "idle_session_timeout": ("1ms", "5min"),
    "idle_in_transaction_session_timeout": ("1ms", "10s"),
    "client_connection_check_interval": ("0", "10s"),
    "transaction_timeout": ("1ms", "0"),
}


@pytest.fixture(scope="module", params=[None, OLD_POSTGRES_PROGRAMS], ids=["18", "15"])
def replicated(request: pytest.FixtureRequest) -> Iterator[tuple[PgServer, PgServer]]:
    with lagging(request.param) as servers:
        yield servers


def test_no_verb_believes_a_standby(replicated: tuple[PgServer, PgServer]) -> None:
    primary, standby = replicated
    there, lags = (Postgres(server.service_dsn) for server in replicated)
    plan = there.plan(uuid.uuid4(), uuid.uuid4())
    manifest = there.provision(plan.manifest, plan.credentials)
    assert not standby.bears(manifest), "the standby lags"
    for verb in every_verb(lags, manifest, plan.credentials):
        with pytest.raises(Unavailable, match="is a standby"):
            verb()
    assert primary.bears(manifest)
    psycopg2.connect(plan.credentials["dsn"]).close()
    there.teardown(manifest, 1)
    assert isinstance(there.inspect(manifest), Absent)


@pytest.mark.parametrize("of", ["ROLE", "DATABASE"])
def test_settings_of_role_and_database_do_not_reach_a_session(servers: Servers, pg: PgServer, of: str) -> None:
    name = f"wrong_{uuid.uuid4().hex}"
    pg.query(f"CREATE ROLE {name} LOGIN CREATEDB CREATEROLE PASSWORD 'p'")
    pg.query(f"CREATE DATABASE {name}")
    dsn = database_dsn(pg.dsn.replace("postgres:secret", f"{name}:p"), name)
    for setting, (wrong, _) in PINNED.items():
        value = wrong if setting == "search_path" else f"'{wrong}'"
        pg.query(f"ALTER {of} {name} SET {setting} = {value}")
    with Server(dsn, frozenset()).connect() as ours, ours.cursor() as cursor:
        cursor.execute("SELECT name, pg_catalog.current_setting(name) FROM pg_catalog.pg_settings")
        shown = {setting: value for setting, value in cursor if setting in PINNED}
    assert shown == {setting: right for setting, (_, right) in PINNED.items()}


def test_variables_of_libpq_do_not_reach_a_session(pg: PgServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in WRONG_ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    with closing(psycopg2.connect(pg.dsn)) as other, other.cursor() as cursor:
        cursor.execute("SHOW TimeZone")
        assert cursor.fetchone() == (PINNED["TimeZone"][0],), "what is wrong is in force for others"
    with Server(pg.service_dsn, frozenset()).connect() as ours, ours.cursor() as cursor:
        cursor.execute("SELECT name, pg_catalog.current_setting(name) FROM pg_catalog.pg_settings")
        shown = {setting: value for setting, value in cursor if setting in PINNED}
    assert shown == {setting: right for setting, (_, right) in PINNED.items()}


def test_a_stricter_commit_is_kept(servers: Servers, pg: PgServer) -> None:
    name = f"strict_{uuid.uuid4().hex}"
    pg.query(f"CREATE ROLE {name} LOGIN PASSWORD 'p'")
    pg.query(f"ALTER ROLE {name} SET synchronous_commit = remote_apply")
    pg.query(f"GRANT CONNECT ON DATABASE postgres TO {name}")
    dsn = pg.dsn.replace("postgres:secret", f"{name}:p")
    with Server(dsn, frozenset()).connect() as ours, ours.cursor() as cursor:
        cursor.execute("SHOW synchronous_commit")
        assert cursor.fetchone() == ("remote_apply",)


# In `public`, by a customer: a namesake of each built-in function that the product calls, operators of the types that
# it compares, and types with the names of built-in ones, to which text casts. Each tells the server's log.
TRAPS = """
    DO $do$
    DECLARE one record; operator text; pair text[];
    BEGIN
      FOR one IN SELECT proname, pg_get_function_identity_arguments(oid) AS takes FROM pg_proc
                  WHERE pronamespace = 'pg_catalog'::regnamespace AND proname = ANY(%(functions)s)
                    AND prokind = 'f'
                    AND NOT EXISTS (SELECT FROM pg_type AS t WHERE t.oid = ANY(proargtypes) AND typtype = 'p')
      LOOP
        EXECUTE format('CREATE FUNCTION public.%%I(%%s) RETURNS text LANGUAGE plpgsql AS $$ BEGIN RAISE LOG %%L;'
                       ' RETURN NULL; END $$',
                       one.proname, regexp_replace(one.takes, '(, )?OUT [^,]+', '', 'g'), 'TRAP %(x)s');
      END LOOP;
      FOREACH operator IN ARRAY '{=,<>,||,~~,<,>}'::text[] LOOP
        FOR pair IN SELECT ARRAY[l, r] FROM unnest('{name,text,oid,int4,int8,bool,"\\"char\\""}'::text[]) AS l,
                                            unnest('{name,text,oid,int4,int8,bool,"\\"char\\""}'::text[]) AS r LOOP
          EXECUTE format('CREATE OR REPLACE FUNCTION public.trap(pg_catalog.%%s, pg_catalog.%%s) RETURNS bool'
                         ' LANGUAGE plpgsql AS $$ BEGIN RAISE LOG %%L; RETURN true; END $$',
                         pair[1], pair[2], 'TRAP %(x)s');
          EXECUTE format('CREATE OPERATOR public.%%s (LEFTARG = pg_catalog.%%s, RIGHTARG = pg_catalog.%%s,'
                         ' FUNCTION = public.trap)', operator, pair[1], pair[2]);
        END LOOP;
      END LOOP;
      FOREACH operator IN ARRAY '{regclass,regrole,int8,int4,text,name,regprocedure}'::text[] LOOP
        EXECUTE format('CREATE TYPE public.%%I AS (a pg_catalog.int4)', operator);
        EXECUTE format('CREATE FUNCTION public.trap_%%s(pg_catalog.text) RETURNS public.%%I'
                       ' LANGUAGE plpgsql AS $$ BEGIN RAISE LOG %%L; RETURN NULL; END $$',
                       operator, operator, 'TRAP %(x)s');
        EXECUTE format('CREATE CAST (pg_catalog.text AS public.%%I) WITH FUNCTION public.trap_%%s AS IMPLICIT',
                       operator, operator);
      END LOOP;
    END $do$"""
CALLED = sorted(
    {name for file in PRODUCT.glob("*.py") for name in re.findall(r"pg_catalog\.(\w+)\(", file.read_text())}
)


def test_a_customer_s_functions_operators_and_casts_are_never_called(anywhere: tuple[Postgres, PgServer]) -> None:
    _, pg = anywhere
    # The database that a session of ours works in is one that customers may enter, as in an older deployment.
    backend = Postgres(database_dsn(anywhere[0]._server.dsn, "postgres"))
    x = uuid.uuid4().hex
    assert {"pg_terminate_backend", "right", "set_config", "pg_advisory_lock"} <= set(CALLED)
    victim, mallory = (backend.plan(uuid.uuid4(), uuid.uuid4()) for _ in range(2))
    victims, mallorys = (backend.provision(plan.manifest, plan.credentials) for plan in (victim, mallory))
    pg.query("GRANT CREATE ON SCHEMA public TO PUBLIC; GRANT CONNECT ON DATABASE postgres TO PUBLIC")
    pg.query(f'GRANT CONNECT ON DATABASE "{mallorys["database"]}" TO PUBLIC')
    pg.query("GRANT USAGE, CREATE ON SCHEMA public TO PUBLIC", database=mallorys["database"])
    try:
        for database in ("postgres", mallorys["database"]):
            with closing(psycopg2.connect(database_dsn(mallory.credentials["dsn"], database))) as theirs:
                theirs.cursor().execute(TRAPS.replace("%(x)s", x), {"functions": CALLED})
                theirs.commit()
            with closing(psycopg2.connect(database_dsn(victim.credentials["dsn"], database))) as theirs:
                theirs.cursor().execute("CREATE FUNCTION public.mine() RETURNS int LANGUAGE sql RETURN 1")
                theirs.commit()
        before = pg.log.stat().st_size
        pg.query("SET search_path = public, pg_catalog; SELECT \"right\"('a'::pg_catalog.text, 1)")
        pg.query("SET search_path = public, pg_catalog; SELECT 1::pg_catalog.oid = 1::pg_catalog.int8")
        assert _traps(pg, before, x) == 2, "a trap that is called is heard"
        before = pg.log.stat().st_size
        assert isinstance(backend.inspect(victims), Same)
        backend.quarantine(victims)
        backend.release(victims)
        backend.teardown(victims, 1)
        assert isinstance(backend.inspect(victims), Absent)
        said = {one.sql.split(" BY ")[0] for one in pg.said(before, mallorys["database"])}
        assert {"REASSIGN OWNED", "DROP OWNED"} <= said, "the neighbour's database was entered"
        assert _traps(pg, before, x) == 0
    finally:
        pg.query("REVOKE CREATE ON SCHEMA public FROM PUBLIC; REVOKE CONNECT ON DATABASE postgres FROM PUBLIC")
        pg.query(f'DROP OWNED BY "{mallorys["role"]}" CASCADE')
        for (heir,) in pg.query("SELECT rolname FROM pg_roles WHERE rolname LIKE 'deprovisioner_nobody_%%'"):
            pg.query(f"DROP OWNED BY {heir} CASCADE")
        backend.teardown(mallorys, 1)


def _traps(pg: PgServer, since: int, x: str) -> int:
    return len(re.findall(rf"LOG: +TRAP {x}", pg.log.read_bytes()[since:].decode(errors="replace")))
