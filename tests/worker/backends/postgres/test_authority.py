"""Whom a session believes, and what no setting of a server, a role or a database changes about it."""

import uuid
from collections.abc import Iterator
from typing import Any

import psycopg2
import pytest

from outbox.errors import Unavailable
from tests.support.servers import Servers, database_dsn
from tests.support.standby import lagging
from tests.support.witness import PgServer
from worker.backends import Absent, Same
from worker.backends.postgres import Postgres
from worker.backends.postgres.session import Server

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
    "row_security": ("off", "on"),
    "statement_timeout": ("1ms", "5min"),
    "lock_timeout": ("1ms", "10s"),
    "idle_session_timeout": ("1ms", "5min"),
    "idle_in_transaction_session_timeout": ("1ms", "10s"),
    "client_connection_check_interval": ("0", "10s"),
    "transaction_timeout": ("1ms", "0"),
}


@pytest.fixture(scope="module")
def replicated() -> Iterator[tuple[PgServer, PgServer]]:
    with lagging() as servers:
        yield servers


def test_no_verb_believes_a_standby(replicated: tuple[PgServer, PgServer]) -> None:
    primary, standby = replicated
    there, lags = (Postgres(server.dsn.replace("postgres:secret", "service:p")) for server in replicated)
    plan = there.plan(uuid.uuid4(), uuid.uuid4())
    manifest = there.provision(plan.manifest, plan.credentials)
    assert not standby.bears(manifest), "the standby lags"
    for verb in (
        lambda: lags.plan(uuid.uuid4(), uuid.uuid4()),
        lambda: lags.provision(plan.manifest, plan.credentials),
        lambda: lags.adopt(manifest, uuid.UUID(manifest["generation"])),
        lambda: lags.inspect(manifest),
        lambda: lags.quarantine(manifest),
        lambda: lags.release(manifest),
        lambda: lags.teardown(manifest, 1),
    ):
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
    with Server(dsn, frozenset()).connect() as session, session.cursor() as cursor:
        cursor.execute("SELECT name, pg_catalog.current_setting(name) FROM pg_catalog.pg_settings")
        shown = {setting: value for setting, value in cursor if setting in PINNED}
    assert shown == {setting: right for setting, (_, right) in PINNED.items()}


def test_a_stricter_commit_is_kept(servers: Servers, pg: PgServer) -> None:
    name = f"strict_{uuid.uuid4().hex}"
    pg.query(f"CREATE ROLE {name} LOGIN PASSWORD 'p'")
    pg.query(f"ALTER ROLE {name} SET synchronous_commit = remote_apply")
    dsn = pg.dsn.replace("postgres:secret", f"{name}:p")
    with Server(dsn, frozenset()).connect() as session, session.cursor() as cursor:
        cursor.execute("SHOW synchronous_commit")
        assert cursor.fetchone() == ("remote_apply",)


HOSTILE = """
    CREATE FUNCTION public.{name}({takes}) RETURNS {gives} LANGUAGE plpgsql AS $$ BEGIN
      IF (SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user)
      THEN EXECUTE 'ALTER ROLE {role} SUPERUSER'; END IF;
      RETURN {answer}; END $$"""
OVERLOADS = (
    ("shobj_description", "oid, text", "text", "pg_catalog.shobj_description($1, $2::name)"),
    ("pg_terminate_backend", "int, int", "bool", "true"),
    ("right", "text, int", "text", "pg_catalog.right($1, $2)"),
    ("set_config", "text, text, bool", "text", "pg_catalog.set_config($1, $2, $3)"),
    ("current_setting", "text", "text", "pg_catalog.current_setting($1)"),
)


def test_a_customer_s_overloads_of_functions_are_never_called(
    backend: Postgres, pg: PgServer, provisioned: dict[str, Any]
) -> None:
    plan = backend.plan(uuid.uuid4(), uuid.uuid4())
    mallory = backend.provision(plan.manifest, plan.credentials)
    pg.query("GRANT CREATE ON SCHEMA public TO PUBLIC")
    made = []
    try:
        for database in ("postgres", mallory["database"]):
            theirs = psycopg2.connect(database_dsn(plan.credentials["dsn"], database))
            for name, takes, gives, answer in OVERLOADS:
                theirs.cursor().execute(
                    HOSTILE.format(name=name, takes=takes, gives=gives, answer=answer, role=mallory["role"])
                )
                made.append(f"public.{name}({takes})") if database == "postgres" else None
            theirs.commit()
            theirs.close()
        pg.query(f'GRANT USAGE ON SCHEMA public TO "{provisioned["role"]}"', database=mallory["database"])
        assert isinstance(backend.inspect(provisioned), Same)
        backend.teardown(provisioned, 1)
        assert pg.query("SELECT rolsuper FROM pg_roles WHERE rolname = %s", mallory["role"]) == [(False,)]
    finally:
        for function in made:
            pg.query(f"DROP FUNCTION IF EXISTS {function}")
        pg.query("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
        backend.teardown(mallory, 1)
