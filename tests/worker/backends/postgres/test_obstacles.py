"""What stands in a teardown's way, with the account that docs/backends.md documents."""

import uuid
from contextlib import closing
from typing import Any

import psycopg2
import pytest
from psycopg2 import extras
from psycopg2.extensions import make_dsn

from outbox.errors import Refused, Transient
from tests.support.servers import Servers
from tests.support.sessions import reconnecting
from tests.support.witness import PgServer
from worker.backends import Absent, Same
from worker.backends.postgres import Postgres, quarantine


@pytest.fixture(params=["18", "15"])
def pg(request: pytest.FixtureRequest, servers: Servers) -> PgServer:
    return servers.pg if request.param == "18" else request.getfixturevalue("postgres15")


def test_a_superuser_s_session_is_named_and_saves_no_other_session(
    backend: Postgres, pg: PgServer, provisioned: dict[str, Any]
) -> None:
    inside = make_dsn(pg.dsn, dbname=provisioned["database"], application_name="exporter\x1b[2J")
    with closing(psycopg2.connect(inside)) as theirs, closing(psycopg2.connect(provisioned["dsn"])) as customers:
        customers.cursor().execute("SELECT 1")
        pid = theirs.info.backend_pid
        with pytest.raises(Transient, match=rf"cannot end: pid {pid} of 'postgres' \(exporter"):
            backend.teardown(provisioned, 1)
        with pytest.raises(psycopg2.OperationalError):
            customers.cursor().execute("SELECT 1")
    backend.teardown(provisioned, 2)
    assert not pg.bears(provisioned)


def test_superusers_that_reconnect_do_not_keep_the_database_alive(
    superuser: Postgres, pg: PgServer, provisioned: dict[str, Any]
) -> None:
    # Only a superuser's account may end a superuser's sessions; the test above has the documented one.
    with reconnecting(make_dsn(pg.dsn, dbname=provisioned["database"]), clients=4):
        superuser.teardown(provisioned, 1)
    assert not pg.bears(provisioned)


def test_a_quarantine_that_died_with_the_door_closed_can_be_released_or_finished(
    backend: Postgres, pg: PgServer, provisioned: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    class DiedError(BaseException):
        pass

    def die(*_: object) -> None:
        raise DiedError

    with monkeypatch.context() as patch:
        patch.setattr(quarantine, "_rename_away", die)
        with pytest.raises(DiedError):
            backend.quarantine(provisioned)
    shown = "SELECT datallowconn, datconnlimit FROM pg_database WHERE datname = %s"
    assert pg.query(shown, provisioned["database"]) == [(False, -1)]
    assert isinstance(backend.inspect(provisioned), Same)
    backend.release(provisioned)
    assert pg.query(shown, provisioned["database"]) == [(True, -1)]
    psycopg2.connect(provisioned["dsn"]).close()
    with monkeypatch.context() as patch:
        patch.setattr(quarantine, "_rename_away", die)
        with pytest.raises(DiedError):
            backend.teardown(provisioned, 1)
    backend.teardown(provisioned, 2)
    assert isinstance(backend.inspect(provisioned), Absent)


def _prepare(dsn: str, gid: str) -> None:
    with closing(psycopg2.connect(dsn)) as session:
        session.tpc_begin(session.xid(1, gid, "b"))
        session.cursor().execute(f"CREATE TABLE t_{gid} (n int)")
        session.tpc_prepare()


def test_a_prepared_transaction_of_the_customer_is_rolled_back_as_its_owner(
    backend: Postgres, pg: PgServer, provisioned: dict[str, Any]
) -> None:
    _prepare(provisioned["dsn"], uuid.uuid4().hex)
    backend.teardown(provisioned, 1)
    assert not pg.bears(provisioned)
    assert pg.query("SELECT 1 FROM pg_prepared_xacts WHERE database = %s", provisioned["database"]) == []


def test_a_prepared_transaction_of_another_role_is_refused_and_named(
    backend: Postgres, pg: PgServer, provisioned: dict[str, Any]
) -> None:
    gid = uuid.uuid4().hex
    inside = make_dsn(pg.dsn, dbname=provisioned["database"])
    _prepare(inside, gid)
    with pytest.raises(Refused, match=r"that this account may not roll back: .* of 'postgres'"):
        backend.teardown(provisioned, 1)
    assert pg.query("SELECT datallowconn FROM pg_database WHERE datname = %s", provisioned["database"]) == [(False,)]
    pg.query(f'ALTER DATABASE "{provisioned["database"]}" ALLOW_CONNECTIONS true')
    [(full,)] = pg.query("SELECT gid FROM pg_prepared_xacts WHERE database = %s", provisioned["database"])
    pg.query(f"ROLLBACK PREPARED '{full}'", database=provisioned["database"])
    backend.teardown(provisioned, 2)
    assert not pg.bears(provisioned)


def test_a_prepared_transaction_of_a_dropped_role_is_refused_and_named(
    backend: Postgres, pg: PgServer, provisioned: dict[str, Any]
) -> None:
    role = f"gone_{uuid.uuid4().hex}"
    pg.query(f"CREATE ROLE {role} LOGIN PASSWORD 'p' SUPERUSER")
    pg.query("CREATE TABLE kept (n int)", database=provisioned["database"])
    theirs = make_dsn(pg.dsn, dbname=provisioned["database"], user=role, password="p")
    with closing(psycopg2.connect(theirs)) as session:
        session.cursor().execute("INSERT INTO kept VALUES (1)")
        session.cursor().execute(f"PREPARE TRANSACTION '{role}'")
    pg.query(f"DROP ROLE {role}")
    with pytest.raises(Refused, match=r"that this account may not roll back: .* of a dropped role"):
        backend.teardown(provisioned, 1)
    pg.query(f'ALTER DATABASE "{provisioned["database"]}" ALLOW_CONNECTIONS true')
    [(full,)] = pg.query("SELECT gid FROM pg_prepared_xacts WHERE database = %s", provisioned["database"])
    pg.query(f"ROLLBACK PREPARED '{full}'", database=provisioned["database"])
    backend.teardown(provisioned, 2)
    assert not pg.bears(provisioned)


def test_a_subscription_is_refused_at_once_and_named(
    backend: Postgres, pg: PgServer, provisioned: dict[str, Any]
) -> None:
    name = f"s_{uuid.uuid4().hex}"
    create = f"CREATE SUBSCRIPTION {name} CONNECTION 'host=127.0.0.1' PUBLICATION p WITH (connect = false)"
    pg.query(create, database=provisioned["database"])
    with pytest.raises(Refused, match=f"has subscriptions, drop them first: '{name}'"):
        backend.teardown(provisioned, 1)
    pg.query(f'ALTER DATABASE "{provisioned["database"]}" ALLOW_CONNECTIONS true')
    pg.query(f"ALTER SUBSCRIPTION {name} SET (slot_name = NONE)", database=provisioned["database"])
    pg.query(f"DROP SUBSCRIPTION {name}", database=provisioned["database"])
    backend.teardown(provisioned, 2)
    assert not pg.bears(provisioned)


def test_an_active_replication_slot_is_named_and_one_that_nothing_reads_dies_with_its_database(
    backend: Postgres, pg: PgServer, provisioned: dict[str, Any]
) -> None:
    slot = f"slot_{uuid.uuid4().hex}"
    reader = psycopg2.connect(
        make_dsn(pg.dsn, dbname=provisioned["database"]), connection_factory=extras.LogicalReplicationConnection
    )
    with closing(reader), reader.cursor() as cursor:
        cursor.create_replication_slot(slot, output_plugin="test_decoding")
        cursor.start_replication(slot)
        named = f"pid {reader.info.backend_pid} of 'postgres' .* reads replication slot '{slot}'"
        with pytest.raises(Transient, match=named):
            backend.teardown(provisioned, 1)
    backend.teardown(provisioned, 2)
    assert not pg.bears(provisioned)
    assert pg.query("SELECT 1 FROM pg_replication_slots WHERE slot_name = %s", slot) == []


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_superuser_s_grant_is_refused_at_once_and_named_with_its_database(
    backend: Postgres, pg: PgServer, provisioned: dict[str, Any], elsewhere: bool
) -> None:
    table, database = f"t_{uuid.uuid4().hex}", f"n_{uuid.uuid4().hex}" if elsewhere else "postgres"
    if elsewhere:
        pg.query(f"CREATE DATABASE {database}")
    pg.query(f"CREATE TABLE {table} ()", database=database)
    pg.query(f'GRANT SELECT ON {table} TO "{provisioned["role"]}"', database=database)
    with pytest.raises(Refused, match=f"table (public.)?{table} in '{database}'"):
        backend.teardown(provisioned, 1)
    pg.query(f'DROP OWNED BY "zz_del_{provisioned["generation"]}"', database=database)
    backend.teardown(provisioned, 2)
    assert not pg.bears(provisioned)
    pg.query(f"DROP TABLE {table}", database=database)


def test_a_neighbour_s_object_that_depends_on_the_role_s_is_refused_and_named(
    backend: Postgres, pg: PgServer, provisioned: dict[str, Any]
) -> None:
    owner = f"o_{uuid.uuid4().hex}"
    database = f"n_{uuid.uuid4().hex}"
    pg.query(f"CREATE ROLE {owner}")
    pg.query(f"CREATE DATABASE {database}")
    pg.query("CREATE TABLE kept ()", database=database)
    role = provisioned["role"]
    pg.query(f'GRANT SELECT ON kept TO "{role}" WITH GRANT OPTION', database=database)
    pg.query(f'SET ROLE "{role}"; GRANT SELECT ON kept TO {owner}', database=database)
    with pytest.raises(Refused, match=f"role .* still has rights.*: table public.kept in .{database}"):
        backend.teardown(provisioned, 1)
    assert pg.query(f"SELECT has_table_privilege('{owner}', 'kept', 'SELECT')", database=database) == [(True,)]
    pg.query(f"DROP DATABASE {database}")
    backend.teardown(provisioned, 2)
    assert not pg.bears(provisioned)


@pytest.mark.parametrize("anywhere", ["18-service", "15-service"], indirect=True)
def test_the_service_account_of_each_version_ends_what_it_may_and_names_the_rest(
    anywhere: tuple[Postgres, PgServer],
) -> None:
    backend, server = anywhere
    plan = backend.plan(uuid.uuid4(), uuid.uuid4())
    manifest = backend.provision(plan.manifest, plan.credentials)
    table = f"t_{uuid.uuid4().hex}"
    server.query(f"CREATE TABLE {table} ()")
    server.query(f'GRANT SELECT ON {table} TO "{manifest["role"]}"')
    customers = psycopg2.connect(plan.credentials["dsn"])
    inside = make_dsn(server.dsn, dbname=manifest["database"])
    with closing(psycopg2.connect(inside)), pytest.raises(Transient, match="that this account cannot end"):
        backend.teardown(manifest, 1)
    with pytest.raises(psycopg2.OperationalError):
        customers.cursor().execute("SELECT 1")
    with pytest.raises(Refused, match=f"{table} in 'postgres'"):
        backend.teardown(manifest, 2)
    server.query(f"DROP TABLE {table}")
    backend.teardown(manifest, 3)
    assert not server.bears(manifest)
