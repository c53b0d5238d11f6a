"""What a dropped role leaves in other databases belongs to a role that can do nothing."""

import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import Any

import psycopg2
import pytest
from psycopg2 import errors as sqlstates

from outbox.errors import Refused
from outbox.rows import Json
from tests.support import accounts
from tests.support.servers import database_dsn
from tests.support.witness import PgServer
from worker.backends import Absent
from worker.backends.postgres import Postgres, heir

Anywhere = tuple[Postgres, PgServer]

# Prepared by a customer who means harm, with the customer's own rights; `{x}` is a name of this test's.
TRAPS = """
    CREATE TABLE {x}_t (n int);
    CREATE TABLE {x}_log (who text);
    GRANT ALL ON {x}_t TO PUBLIC;
    CREATE FUNCTION {x}_who() RETURNS name LANGUAGE sql SECURITY DEFINER AS 'SELECT current_user';
    CREATE FUNCTION {x}_run(text) RETURNS void LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN EXECUTE $1; END $$;
    CREATE FUNCTION "{x}'s ""own""(,;%s"(int DEFAULT 1, VARIADIC text[] DEFAULT '{{}}') RETURNS name
        LANGUAGE sql SECURITY DEFINER AS 'SELECT current_user';
    CREATE PROCEDURE {x}_do(text) LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN EXECUTE $1; END $$;
    CREATE FUNCTION {x}_fire() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS
        $$ BEGIN EXECUTE 'CREATE ROLE {x}_made'; RETURN NULL; END $$;
    CREATE TRIGGER fire AFTER INSERT ON {x}_t FOR EACH ROW EXECUTE FUNCTION {x}_fire();
    CREATE RULE also AS ON UPDATE TO {x}_t DO ALSO INSERT INTO {x}_log VALUES ('rule');
    CREATE VIEW {x}_v AS SELECT rolpassword FROM pg_catalog.pg_authid;
    CREATE VIEW {x}_logs AS SELECT * FROM {x}_log;
    GRANT SELECT ON {x}_v, {x}_logs TO PUBLIC;
    CREATE MATERIALIZED VIEW {x}_m AS SELECT 1 AS n;
    CREATE SEQUENCE {x}_s;
    CREATE PUBLICATION {x}_p FOR TABLE {x}_log;
    CREATE TYPE {x}_e AS ENUM ('a');
    CREATE DOMAIN {x}_d AS int;
    CREATE OPERATOR === (LEFTARG = int, RIGHTARG = int, FUNCTION = int4eq);
    CREATE AGGREGATE {x}_a(int) (SFUNC = int4pl, STYPE = int);
    CREATE COLLATION {x}_c (LOCALE = 'C');
    CREATE TEXT SEARCH CONFIGURATION {x}_ts (COPY = simple);
    CREATE STATISTICS {x}_st ON n, (n + 1) FROM {x}_t;
    ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO PUBLIC;
    SELECT lo_create(0);
    CREATE SCHEMA {x}_own;
    CREATE FUNCTION {x}_own.{x}_who() RETURNS name LANGUAGE sql SECURITY DEFINER AS 'SELECT current_user';
    GRANT USAGE ON SCHEMA {x}_own TO PUBLIC;
"""
OWNED_BY = """
    SELECT DISTINCT rolname
      FROM pg_shdepend JOIN pg_database AS d ON d.oid = dbid JOIN pg_roles AS r ON r.oid = refobjid
     WHERE deptype = 'o' AND datname = current_database() AND rolname LIKE ANY(%s)"""


@contextmanager
def _customer(backend: Postgres) -> Iterator[tuple[Json, str]]:
    plan = backend.plan(uuid.uuid4(), uuid.uuid4())
    manifest = backend.provision(plan.manifest, plan.credentials)
    yield manifest, plan.credentials["dsn"]
    backend.teardown(manifest, 9)


@contextmanager
def _as(dsn: str, database: str) -> Iterator[Any]:
    with closing(psycopg2.connect(database_dsn(dsn, database))) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            yield cursor


def _owns_elsewhere(pg: PgServer, manifest: Json) -> None:
    pg.query(f'CREATE TABLE "{manifest["role"]}" (); ALTER TABLE "{manifest["role"]}" OWNER TO "{manifest["role"]}"')


def _answers(cursor: Any, statement: str) -> list[tuple]:
    cursor.execute(statement)
    return cursor.fetchall() if cursor.description else []


@pytest.mark.parametrize("where", ["neighbour", "maintenance"])
def test_what_a_hostile_customer_left_elsewhere_runs_with_no_rights(anywhere: Anywhere, where: str) -> None:
    backend, pg = anywhere
    x = f"x{uuid.uuid4().hex}"
    with _customer(backend) as (neighbour, neighbours_dsn):
        database = neighbour["database"] if where == "neighbour" else "postgres"
        with _customer(backend) as (mallory, dsn):
            role = mallory["role"]
            pg.query(f'GRANT CONNECT, CREATE ON DATABASE "{database}" TO PUBLIC')
            pg.query("GRANT USAGE, CREATE ON SCHEMA public TO PUBLIC", database=database)
            with _as(dsn, database) as cursor:
                cursor.execute(TRAPS.format(x=x, role=role))
            before = {name for (name,) in pg.query("SELECT rolname FROM pg_roles WHERE rolsuper")}
            if where == "neighbour":  # else as on a cluster that was made by version 14
                pg.query("REVOKE CREATE ON SCHEMA public FROM PUBLIC", database=database)
                pg.query(f'REVOKE CREATE ON DATABASE "{database}" FROM PUBLIC')
            told = backend.teardown(mallory, 1)
            assert isinstance(backend.inspect(mallory), Absent)
            assert "functions, views and rules that lost their owner's rights: 9" in str(told)
        try:
            _runs_with_no_rights(pg, neighbours_dsn, database, x, neighbour["role"])
            assert {name for (name,) in pg.query("SELECT rolname FROM pg_roles WHERE rolsuper")} == before
            assert f"{x}_made" not in pg.roles()
        finally:
            heirs = [r for r in pg.roles() if r.startswith("deprovisioner_nobody_")]
            for role in heirs if where == "maintenance" else []:
                pg.query(f"DROP OWNED BY {role} CASCADE")
            pg.query(f'REVOKE CONNECT, CREATE ON DATABASE "{database}" FROM PUBLIC')
            pg.query("REVOKE CREATE ON SCHEMA public FROM PUBLIC", database=database)


def _runs_with_no_rights(pg: PgServer, dsn: str, database: str, x: str, caller: str) -> None:
    made = "SELECT proowner::regrole::text FROM pg_proc WHERE proname LIKE %s GROUP BY 1"
    owners = pg.query(made, f"{x}%", database=database)
    assert len(owners) == 1, "the heir has taken over"
    [(heir,)] = owners
    assert heir.startswith("deprovisioner_nobody_")
    assert (heir,) in pg.query(OWNED_BY, ["deprovisioner_nobody_%"], database=database)
    made = "SELECT relowner::regrole::text FROM pg_class WHERE relname LIKE %s GROUP BY 1"
    assert pg.query(made, f"{x}%", database=database) == [(heir,)]
    assert pg.query(
        "SELECT rolsuper, rolcanlogin, rolcreaterole, rolcreatedb, rolreplication, rolbypassrls FROM pg_roles"
        " WHERE rolname = %s",
        heir,
    ) == [(False,) * 6]
    assert pg.query("SELECT 1 FROM pg_auth_members WHERE member = %s::regrole", heir) == []
    assert pg.query("SELECT 1 FROM pg_default_acl", database=database) == []
    for lent in (
        ()
        if database == "postgres"
        else (
            "has_schema_privilege(%s, 'public', 'CREATE')",
            "has_database_privilege(%s, current_database(), 'CREATE')",
        )
    ):
        assert pg.query(f"SELECT {lent}", heir, database=database) == [(False,)], "lent for the reassignment alone"
    with _as(dsn, database) as cursor:
        for named in (f"public.{x}_who()", f'public."{x}\'s ""own""(,;%s"()', f"{x}_own.{x}_who()"):
            assert _answers(cursor, f"SELECT {named}") == [(caller,)], "the caller's rights, and no others"
        for harm in (
            f"SELECT public.{x}_run('ALTER ROLE \"{caller}\" SUPERUSER')",
            f"SELECT public.{x}_run('GRANT pg_read_all_data TO \"{caller}\"')",
            f"CALL public.{x}_do('CREATE ROLE {x}_made')",
            f"INSERT INTO public.{x}_t VALUES (1)",
            f"SELECT * FROM public.{x}_v",
            f"SELECT * FROM public.{x}_logs",
        ):
            with pytest.raises(sqlstates.InsufficientPrivilege):
                cursor.execute(harm)
        cursor.execute(f"UPDATE public.{x}_t SET n = 2")
    assert pg.query(f"SELECT count(*) FROM public.{x}_log", database=database) == [(0,)]


@pytest.mark.parametrize(
    ("power", "back"),
    [
        ("ALTER ROLE {heir} LOGIN", "ALTER ROLE {heir} NOLOGIN"),
        ("ALTER ROLE {heir} CREATEROLE", "ALTER ROLE {heir} NOCREATEROLE"),
        ("GRANT pg_read_all_data TO {heir}", "REVOKE pg_read_all_data FROM {heir}"),
        ("GRANT {heir} TO {stranger}", "REVOKE {heir} FROM {stranger}"),
    ],
)
@pytest.mark.parametrize("anywhere", ["18-service", "15-service"], indirect=True)
def test_an_heir_that_can_do_something_is_refused(anywhere: Anywhere, power: str, back: str) -> None:
    backend, pg = anywhere
    with _customer(backend) as (first, _), _customer(backend) as (second, _), _customer(backend) as (third, _):
        _owns_elsewhere(pg, first)
        backend.teardown(first, 1)
        [(account,)] = pg.query("SELECT oid FROM pg_roles WHERE rolname = %s", accounts.NAME)
        heir = f"deprovisioner_nobody_{account}"
        assert (heir,) in pg.query(OWNED_BY, [heir])
        names = {"heir": heir, "stranger": f'"{third["role"]}"'}
        _owns_elsewhere(pg, second)
        pg.query(power.format(**names))
        try:
            with pytest.raises(Refused, match=f"role '{heir}' takes over .* take that away"):
                backend.teardown(second, 1)
            dying = f"zz_del_{second['generation']}"
            assert pg.query(OWNED_BY, [dying]) == [(dying,)], "nothing was handed over"
        finally:
            pg.query(back.format(**names))
            backend.teardown(second, 2)
            pg.query(f"DROP OWNED BY {heir}")


def test_a_role_that_owns_nothing_elsewhere_needs_no_heir(anywhere: Anywhere) -> None:
    backend, pg = anywhere
    before = pg.log.stat().st_size
    with _customer(backend) as (manifest, dsn):
        with _as(dsn, manifest["database"]) as cursor:
            cursor.execute(TRAPS.format(x="y", role=manifest["role"]))
        backend.teardown(manifest, 1)
    said = pg.log.read_bytes()[before:].decode(errors="replace")
    assert "REASSIGN" not in said, "what is in the resource's own database goes with it"
    assert not pg.bears(manifest)


@pytest.mark.parametrize("anywhere", ["18", "15-service"], indirect=True)
def test_teardowns_that_need_a_new_heir_at_one_moment_share_it(anywhere: Anywhere) -> None:
    _, pg = anywhere
    account, x = f"svc_{uuid.uuid4().hex}", f"x{uuid.uuid4().hex}"
    backend = Postgres(accounts.fresh(pg, account))
    pg.query(f"CREATE SCHEMA {x} AUTHORIZATION {account}")
    customers = []
    for _ in range(4):
        plan = backend.plan(uuid.uuid4(), uuid.uuid4())
        customers.append(backend.provision(plan.manifest, plan.credentials))
        pg.query(f'GRANT ALL ON SCHEMA {x} TO "{customers[-1]["role"]}"')
        with accounts.customers_in_postgres(pg), _as(plan.credentials["dsn"], "postgres") as cursor:
            cursor.execute(f"CREATE FUNCTION {x}.f_{plan.manifest['role']}() RETURNS int LANGUAGE sql AS 'SELECT 1'")
    barrier = threading.Barrier(len(customers))

    def tear(manifest: Json) -> None:
        barrier.wait()
        backend.teardown(manifest, 1)

    with ThreadPoolExecutor(len(customers)) as pool:
        list(pool.map(tear, customers))
    [(heir,)] = pg.query("SELECT 'deprovisioner_nobody_' || oid FROM pg_roles WHERE rolname = %s", account)
    assert pg.query(
        "SELECT count(*), min(rolname), max(rolname) FROM pg_proc JOIN pg_roles AS r ON r.oid = proowner"
        " WHERE pronamespace = %s::regnamespace",
        x,
    ) == [(4, heir, heir)]
    assert pg.query(f"SELECT has_schema_privilege('{heir}', '{x}', 'CREATE')") == [(False,)]
    pg.query(f"DROP SCHEMA {x} CASCADE")
    pg.query(f"DROP ROLE {heir}")


@pytest.mark.parametrize("anywhere", ["18-service", "15-service"], indirect=True)
def test_large_objects_in_a_maintenance_database_go_with_their_role(anywhere: Anywhere) -> None:
    """More than one batch; there is no neighbour in `postgres` whose they could be."""
    backend, pg = anywhere
    with _customer(backend) as (neighbour, _), _customer(backend) as (manifest, dsn):
        with accounts.customers_in_postgres(pg), _as(dsn, "postgres") as cursor:
            cursor.execute(f"SELECT lo_create(0) FROM generate_series(1, {heir.LARGE_OBJECTS + 1})")
        pg.query(f'SET ROLE "{manifest["role"]}"; SELECT lo_create(4711)', database=neighbour["database"])
        left = "SELECT lomowner::regrole::text FROM pg_largeobject_metadata"
        kept = len(pg.query(left))
        backend.teardown(manifest, 1)
        assert len(pg.query(left)) == kept - heir.LARGE_OBJECTS - 1
        owners = [owner.rpartition("_")[0] for (owner,) in pg.query(left, database=neighbour["database"])]
        assert owners == ["deprovisioner_nobody"], "a neighbour's database may use it"
