"""What a snapshot of a database must withstand: missing rights, other versions, and customers whose dump is code."""

import threading
import time
import uuid
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from outbox.errors import ClaimLost, Refused, Transient
from outbox.kinds.postgres import KIND
from tests.support import accounts
from tests.support.customers import Customer, a_customer
from tests.support.snapshots import Sink, nothing_of_scratch
from tests.support.witness import PgServer
from worker.backends import always
from worker.backends.postgres import Postgres, client, snapshot


def taken(backend: Postgres, manifest: dict[str, Any]) -> tuple[Sink, dict[str, Any]]:
    backend.quarantine(manifest)
    sink = Sink()
    return sink, backend.snapshot(manifest, sink.write, always)


def filled(customer: Customer, *statements: str) -> None:
    with customer.inside(*statements) as connection:
        connection.commit()


def test_a_dump_is_restored_beside_its_source_on_every_version(anywhere: tuple[Postgres, PgServer]) -> None:
    backend, pg = anywhere
    customer = a_customer(backend)
    filled(
        customer,
        "CREATE TABLE parts (a int, b text) PARTITION BY RANGE (a)",
        "CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (1000)",
        "INSERT INTO parts SELECT i, repeat('x', i) FROM generate_series(0, 999) AS i",
        "CREATE UNLOGGED TABLE loud AS SELECT 1.5::float8 AS f, '1 day 2 seconds'::interval AS i, 'x'::bytea AS b",
        "CREATE TYPE mood AS ENUM ('well', 'bad')",
        "CREATE SCHEMA other CREATE TABLE moods (m mood[], n money, j jsonb)",
        """INSERT INTO other.moods VALUES ('{well}', 3, '{"a": 1}')""",
    )
    sink, source = taken(backend, customer.manifest)
    seen = backend.verify_snapshot(customer.manifest, sink.read, source, always)
    assert (seen["tables"], seen["rows"]) == (3, 1002)
    nothing_of_scratch(pg, customer.manifest)
    new = a_customer(backend)
    plan = {"password": new.dsn.split(":")[2].split("@")[0]}
    sink.place = 0
    backend.restore_snapshot(new.manifest, plan, sink.read, always)
    with new.inside("SELECT count(*) FROM parts") as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*), (SELECT relowner::regrole::text FROM pg_class WHERE relname = 'parts') FROM parts"
        )
        assert cursor.fetchone() == (1000, new.quoted.strip('"'))
    for one in (customer, new):
        backend.teardown(one.manifest, 1)
        assert not pg.bears(one.manifest)


def test_a_dump_that_was_cut_is_not_equal(backend: Postgres, pg: PgServer) -> None:
    customer = a_customer(backend)
    filled(customer, "CREATE TABLE t AS SELECT i, md5(i::text) FROM generate_series(1, 20000) AS i")
    sink, source = taken(backend, customer.manifest)
    del sink.data[len(sink.data) // 2 :]
    with pytest.raises(Transient, match="differs"):
        backend.verify_snapshot(customer.manifest, sink.read, source, always)
    nothing_of_scratch(pg, customer.manifest)
    backend.teardown(customer.manifest, 1)


def test_a_value_that_changed_on_its_way_is_no_proof(backend: Postgres, pg: PgServer) -> None:
    customer, other = a_customer(backend), a_customer(backend)
    filled(customer, "CREATE TABLE t (a int)", "INSERT INTO t VALUES (1)")
    filled(other, "CREATE TABLE t (a int)", "INSERT INTO t VALUES (2)")
    sink, _ = taken(backend, customer.manifest)
    _, elsewhere = taken(backend, other.manifest)
    with pytest.raises(Transient, match="has other contents"):
        backend.verify_snapshot(customer.manifest, sink.read, elsewhere, always)
    for one in (customer, other):
        backend.teardown(one.manifest, 1)


# What the service may do, and no customer: each is tried by the code of the dump as it is restored.
_CRIMES = """
    CREATE FUNCTION public.crime() RETURNS boolean IMMUTABLE LANGUAGE plpgsql AS $$
    BEGIN
        BEGIN PERFORM set_config('role', 'none', false); EXCEPTION WHEN OTHERS THEN NULL; END;
        BEGIN EXECUTE 'RESET SESSION AUTHORIZATION'; EXCEPTION WHEN OTHERS THEN NULL; END;
        IF session_user = 'deprovisioner_service' OR pg_has_role(session_user, 'deprovisioner_service', 'MEMBER')
           OR (SELECT rolcreaterole OR rolcreatedb OR rolsuper FROM pg_roles WHERE rolname = session_user) THEN
            RAISE LOG 'CRIME of %: %', current_database(), session_user;
        END IF;
        RAISE LOG 'ATTEMPT in %', current_database();
        RETURN true;
    END $$"""


def test_no_code_of_a_customer_runs_with_the_service_s_rights(anywhere: tuple[Postgres, PgServer]) -> None:
    backend, pg = anywhere
    customer = a_customer(backend)
    filled(
        customer,
        _CRIMES,
        "CREATE FUNCTION one() RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT public.crime()::int'",
        "CREATE FUNCTION told(t int) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT public.crime()::int'",
        "CREATE TABLE t (a int CHECK (public.crime()), b int GENERATED ALWAYS AS (one()) STORED)",
        "CREATE DOMAIN d AS int CHECK (public.crime())",
        "CREATE TABLE u (a d)",
        # A query on the table would evaluate both as it is planned.
        "CREATE INDEX i ON t (one())",
        "CREATE INDEX j ON t (a) WHERE one() = 1",
        "CREATE STATISTICS s ON (told(1) + a), a FROM t",
        "CREATE FUNCTION as_text(t) RETURNS text LANGUAGE sql AS 'SELECT public.crime()::text'",
        "CREATE CAST (t AS text) WITH FUNCTION as_text(t)",
        "CREATE FUNCTION watch() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM public.crime(); RETURN NEW; END'",
        "CREATE TRIGGER w BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION watch()",
        "CREATE POLICY p ON u USING (public.crime())",
        "ALTER TABLE u ENABLE ROW LEVEL SECURITY",
        "CREATE FUNCTION length(text) RETURNS int LANGUAGE sql AS 'SELECT public.crime()::int'",
        "CREATE MATERIALIZED VIEW v AS SELECT public.crime()",
        "CREATE VIEW w AS SELECT public.crime()",
        "INSERT INTO t (a) VALUES (1), (2)",
        "INSERT INTO u VALUES (1)",
        f"ALTER ROLE {customer.quoted} SET search_path = public, pg_catalog",
    )
    since = len(pg.log.read_text(errors="replace"))
    sink, source = taken(backend, customer.manifest)
    here = pg.log.read_text(errors="replace")[since:]
    assert "LOG:  ATTEMPT" not in here, "a dump runs nothing of a customer"
    backend.verify_snapshot(customer.manifest, sink.read, source, always)
    there = pg.log.read_text(errors="replace")[since:]
    assert f"LOG:  ATTEMPT in zz_scratch_{customer.manifest['generation']}" in there, (
        "a restore does, under its own role"
    )
    assert "LOG:  CRIME" not in there
    nothing_of_scratch(pg, customer.manifest)
    backend.teardown(customer.manifest, 1)
    assert not pg.bears(customer.manifest)


def test_a_restore_that_a_customer_s_code_holds_up_is_ended(
    backend: Postgres, pg: PgServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "STALL_SECONDS", 2.0)
    customer = a_customer(backend)
    filled(
        customer,
        "CREATE FUNCTION slow() RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN"
        " IF current_database() LIKE 'zz_scratch%' THEN PERFORM pg_sleep(20); END IF; RETURN true; END $$",
        "CREATE TABLE t (a int CHECK (slow()))",
        "INSERT INTO t VALUES (1)",
    )
    sink, source = taken(backend, customer.manifest)
    with pytest.raises(Transient, match="moved nothing for 2 s"):
        backend.verify_snapshot(customer.manifest, sink.read, source, always)
    nothing_of_scratch(pg, customer.manifest)
    backend.teardown(customer.manifest, 1)


@pytest.mark.proof
def test_indexes_of_a_new_resource_may_take_long(
    backend: Postgres, pg: PgServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    customer, plan = a_customer(backend), backend.plan(uuid.uuid4(), uuid.uuid4())
    filled(
        customer,
        "CREATE FUNCTION slow(int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS"
        " $$ BEGIN PERFORM pg_sleep(3); RETURN 1; END $$",
        "CREATE TABLE t AS SELECT 1 AS a",
        "CREATE INDEX i ON t (slow(a))",
    )
    sink, _ = taken(backend, customer.manifest)
    new = backend.provision(plan.manifest, plan.credentials)
    monkeypatch.setattr(client, "STALL_SECONDS", 1.0)
    assert backend.restore_snapshot(new, plan.credentials, sink.read, always) == {}
    assert pg.query("SELECT count(*) FROM pg_indexes WHERE indexname = 'i'", database=new["database"]) == [(1,)]
    for one in (customer.manifest, new):
        backend.teardown(one, 1)


def test_a_right_that_is_missing_is_named_with_its_statement(backend: Postgres, pg: PgServer) -> None:
    customer, other = a_customer(backend), f"other_{uuid.uuid4().hex}"
    pg.query(f"CREATE ROLE {other}")
    name = customer.manifest["database"]
    pg.query(f"CREATE TABLE theirs (a int); ALTER TABLE theirs OWNER TO {other}", database=name)
    backend.quarantine(customer.manifest)
    with pytest.raises(Refused, match="may not read") as refused:
        backend.snapshot(customer.manifest, Sink().write, always)
    statement = str(refused.value).rpartition("re-drive: ")[2]
    assert statement.startswith(f'GRANT "{other}" TO "{accounts.NAME}"')
    pg.query(statement)
    sink = Sink()
    source = backend.snapshot(customer.manifest, sink.write, always)
    backend.verify_snapshot(customer.manifest, sink.read, source, always)
    pg.query(f"REVOKE {other} FROM {accounts.NAME}")
    backend.teardown(customer.manifest, 1)
    pg.query(f"DROP ROLE {other}")


def test_row_security_that_would_hide_rows_is_named(backend: Postgres, pg: PgServer) -> None:
    customer = a_customer(backend)
    filled(
        customer,
        "CREATE TABLE hidden (a int)",
        "ALTER TABLE hidden ENABLE ROW LEVEL SECURITY",
        "ALTER TABLE hidden FORCE ROW LEVEL SECURITY",
    )
    backend.quarantine(customer.manifest)
    with pytest.raises(Refused, match=r'ALTER TABLE "public"\."hidden" NO FORCE ROW LEVEL SECURITY'):
        backend.snapshot(customer.manifest, Sink().write, always)
    backend.teardown(customer.manifest, 1)


def test_a_client_older_than_the_server_is_refused(
    backend: Postgres, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("pg_dump", "pg_restore"):
        (tmp_path / name).write_text("#!/bin/sh\necho 'pg_dump (PostgreSQL) 14.2'\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setattr(client, "_folders", lambda: iter([tmp_path]))
    with pytest.raises(Refused, match=r"no pg_dump of version 18 or later .*is of version 14"):
        client.folder(180006)
    assert client.folder(140000) == tmp_path


def test_a_door_is_closed_again_where_no_dump_came_in(
    backend: Postgres, pg: PgServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "pg_dump").write_text("#!/bin/sh\necho 'no such library' >&2\nexit 127\n")
    (tmp_path / "pg_dump").chmod(0o755)
    monkeypatch.setattr(client, "folder", lambda _: tmp_path)
    customer = a_customer(backend)
    backend.quarantine(customer.manifest)
    with pytest.raises(Transient, match="pg_dump did not come into the database: no such library"):
        backend.snapshot(customer.manifest, Sink().write, always)
    dying = f"zz_del_{customer.manifest['generation']}"
    assert pg.query("SELECT datallowconn FROM pg_database WHERE datname = %s", dying) == [(False,)]
    backend.teardown(customer.manifest, 1)


def test_a_restore_ends_a_dump_at_once(backend: Postgres, pg: PgServer) -> None:
    """Its session holds the object's lock, and others of ours are in the database."""
    customer = a_customer(backend)
    filled(customer, "CREATE TABLE t AS SELECT i, md5(i::text) FROM generate_series(1, 300000) AS i")
    backend.quarantine(customer.manifest)
    begun, go_on = threading.Event(), threading.Event()
    ended: list[BaseException] = []

    def slowly(_: bytes) -> None:
        begun.set()
        go_on.wait(60)

    def lost() -> None:
        if go_on.is_set():
            raise ClaimLost("restored")

    def dump() -> None:
        try:
            backend.snapshot(customer.manifest, slowly, lost)
        except BaseException as error:  # noqa: BLE001 - told to the test
            ended.append(error)

    thread = threading.Thread(target=dump)
    thread.start()
    try:
        assert begun.wait(60)
        began = time.monotonic()
        backend.release(customer.manifest)
        with closing(psycopg2.connect(customer.dsn)):
            assert time.monotonic() - began < 5
    finally:
        go_on.set()
        thread.join(60)
    assert ended
    with closing(psycopg2.connect(customer.dsn)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM t")
        assert cursor.fetchone() == (300000,)
    backend.teardown(customer.manifest, 1)


def test_a_door_that_a_dead_attempt_left_open_is_closed_and_who_came_in_is_ended(
    backend: Postgres, pg: PgServer
) -> None:
    customer = a_customer(backend)
    filled(customer, "CREATE TABLE t (a int)")
    backend.quarantine(customer.manifest)
    dying = f"zz_del_{customer.manifest['generation']}"
    pg.query(f'ALTER DATABASE "{dying}" ALLOW_CONNECTIONS true CONNECTION LIMIT -1')
    guest = f"guest_{uuid.uuid4().hex}"
    pg.query(f"CREATE ROLE {guest} LOGIN PASSWORD 'x' IN ROLE {customer.quoted}")
    accounts.allow(pg, guest)
    came = psycopg2.connect(f"{pg.dsn.replace('postgres:secret', f'{guest}:x').rpartition('/')[0]}/{dying}")
    backend.snapshot(customer.manifest, Sink().write, always)
    with closing(came), pytest.raises(psycopg2.OperationalError):
        came.cursor().execute("SELECT 1")
    assert pg.query("SELECT datallowconn FROM pg_database WHERE datname = %s", dying) == [(False,)]
    pg.query(f"DROP ROLE {guest}")
    backend.teardown(customer.manifest, 1)


def test_a_session_that_comes_in_as_the_dump_begins_is_ended_and_the_dump_with_it(
    backend: Postgres, pg: PgServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    customer = a_customer(backend)
    filled(customer, "CREATE TABLE t (a int)")
    backend.quarantine(customer.manifest)
    dying = f"zz_del_{customer.manifest['generation']}"
    guest = f"guest_{uuid.uuid4().hex}"
    pg.query(f"CREATE ROLE {guest} LOGIN PASSWORD 'x' IN ROLE {customer.quoted}")
    accounts.allow(pg, guest)
    honest = snapshot._Door.close_behind
    came: list[Any] = []

    def beside(self: Any, *words: Any) -> None:
        came.append(psycopg2.connect(f"{pg.dsn.replace('postgres:secret', f'{guest}:x').rpartition('/')[0]}/{dying}"))
        honest(self, *words)

    monkeypatch.setattr(snapshot._Door, "close_behind", beside)
    with pytest.raises(Transient, match=f"a session of '{guest}' came into"):
        backend.snapshot(customer.manifest, Sink().write, always)
    with closing(came[0]), pytest.raises(psycopg2.OperationalError):
        came[0].cursor().execute("SELECT 1")
    assert pg.query("SELECT datallowconn FROM pg_database WHERE datname = %s", dying) == [(False,)]
    pg.query(f"DROP ROLE {guest}")
    backend.teardown(customer.manifest, 1)


def test_a_database_that_was_adopted_is_taken_with_the_rights_of_its_adoption(
    anywhere: tuple[Postgres, PgServer],
) -> None:
    backend, pg = anywhere
    app, name, generation = f"app_{uuid.uuid4().hex}", f"adopted_{uuid.uuid4().hex}", uuid.uuid4()
    pg.query(f"CREATE ROLE {app} LOGIN")
    accounts.adoptable(pg, name, app)
    pg.query(f"SET ROLE {app}; CREATE TABLE theirs AS SELECT 1 AS a; SELECT lo_from_bytea(0, 'x')", database=name)
    for role in (None, app):
        manifest = KIND.manifest(database=name, role=role, generation=str(generation))
        adopted = backend.adopt(manifest, generation)
        sink, source = taken(backend, adopted)
        seen = backend.verify_snapshot(adopted, sink.read, source, always)
        assert (seen["rows"], seen["large_objects"]) == (1, 1)
        nothing_of_scratch(pg, adopted)
        backend.release(adopted)
    backend.teardown(adopted, 1)
    assert not pg.bears({"database": name, "role": app, "generation": str(generation)})


def test_a_large_object_that_changed_is_no_proof(backend: Postgres) -> None:
    one, other = a_customer(backend), a_customer(backend)
    for customer, words in ((one, "x"), (other, "y")):
        filled(customer, f"SELECT lo_from_bytea(4711, '{words}')")
    sink, _ = taken(backend, one.manifest)
    _, elsewhere = taken(backend, other.manifest)
    with pytest.raises(Transient, match="the large objects has other contents"):
        backend.verify_snapshot(one.manifest, sink.read, elsewhere, always)
    for customer in (one, other):
        backend.teardown(customer.manifest, 1)
