"""A session of the control database has what the promises need, whatever role, database and server say."""

import re
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

import migrations
from outbox import db as database
from outbox import jobs
from outbox.db import PINS
from tests.support.factories import a_resource
from tests.support.servers import Servers, clear_caches, database_dsn, use_environment
from tests.support.sessions import WRONG_ENVIRONMENT
from tests.support.witness import PgServer

ROOT = Path(__file__).parents[2]
WRONG = {
    "search_path": "pg_temp",
    "statement_timeout": "30ms",
    "lock_timeout": "1ms",
    "idle_in_transaction_session_timeout": "3s",
    "idle_session_timeout": "3s",
    "default_transaction_isolation": "serializable",
    "default_transaction_read_only": "on",
    "default_transaction_deferrable": "on",
    "row_security": "off",
    "transform_null_equals": "on",
    "standard_conforming_strings": "off",
    "client_encoding": "LATIN1",
    "client_min_messages": "error",
    "timezone": "Asia/Kathmandu",
    "datestyle": "SQL, DMY",
    "intervalstyle": "sql_standard",
    "jit": "on",
    "plan_cache_mode": "auto",
    "random_page_cost": "100",
    "synchronous_commit": "off",
}
NEWER = {"transaction_timeout": "1ms"}  # 17 and newer
RIGHT = PINS | {"search_path": "public, pg_temp", "synchronous_commit": "on", "transaction_timeout": "0"}


@pytest.fixture(params=["18", "15"])
def empty(request: pytest.FixtureRequest, servers: Servers) -> Iterator[tuple[PgServer, str]]:
    """A server and the name of a new database on it."""
    server = servers.control if request.param == "18" else request.getfixturevalue("postgres15")
    name = f"pins_{uuid.uuid4().hex}"
    server.query(f"CREATE DATABASE {name}")
    yield server, name
    clear_caches()
    server.query(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.mark.parametrize("where", ["ROLE", "DATABASE"])
def test_what_role_and_database_have_set_wrong_does_not_reach_a_session(
    empty: tuple[PgServer, str], env: dict[str, str], monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    server, name = empty
    use_environment(monkeypatch, env | {"DEPROVISIONER_DATABASE_URL": database_dsn(server.dsn, name)})
    migrations.upgrade()
    with database.statement() as db:
        deleted = [a_resource(db) for _ in range(2)]
    role = f"r_{uuid.uuid4().hex}"
    server.query(f"CREATE ROLE {role} LOGIN PASSWORD 'p'; GRANT pg_read_all_data, pg_write_all_data TO {role}")
    newer = server.query("SELECT current_setting('server_version_num')::int >= 170000") == [(True,)]
    wrong = WRONG | (NEWER if newer else {})
    for setting, value in wrong.items():
        server.query(f"ALTER {where} {role if where == 'ROLE' else name} SET {setting} = '{value}'")
    try:
        dsn = re.sub(r"//[^@]*@", f"//{role}:p@", database_dsn(server.dsn, name))
        own = psycopg2.connect(dsn, options="-c transaction_timeout=0" if newer else "")
        with own.cursor() as asked:
            asked.execute("SHOW timezone")
            assert asked.fetchone() == ("Asia/Kathmandu",), "what is wrong is in force for others"
        own.close()
        use_environment(monkeypatch, env | {"DEPROVISIONER_DATABASE_URL": dsn})
        with database.statement() as db:
            has = {each: db.execute(text(f"SHOW {each}")).scalar_one() for each in wrong}
            assert has == {each: RIGHT[each] for each in wrong}
            assert jobs.enqueue(db, deleted[0], actor="a").won
        with database.transaction() as db:
            assert db.execute(text("SHOW transaction_isolation")).scalar_one() == "read committed"
            assert jobs.enqueue(db, deleted[1], actor="a").won
    finally:
        clear_caches()
        server.query(f"DROP ROLE {role}")


@pytest.mark.parametrize("prepared", ["true", "false"])
def test_variables_of_libpq_do_not_reach_a_session(
    env: dict[str, str], monkeypatch: pytest.MonkeyPatch, prepared: str
) -> None:
    use_environment(monkeypatch, env | WRONG_ENVIRONMENT | {"DEPROVISIONER_PREPARED_STATEMENTS": prepared})
    with database.transaction() as db:
        db.rollback()
    with database.statement() as db:
        assert {each: db.execute(text(f"SHOW {each}")).scalar_one() for each in PINS} == PINS
    clear_caches()


def test_every_pin_is_set_wrong_by_the_test_above() -> None:
    assert set(WRONG | NEWER) == set(RIGHT)


def test_a_control_database_in_a_schema_that_its_url_names(
    empty: tuple[PgServer, str], env: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, name = empty
    server.query("CREATE SCHEMA ours", database=name)
    url = (
        database_dsn(server.dsn, name) + "?options=-c%20work_mem%3D5MB%20-csearch_path%3Dours%20-cstatement_timeout%3D1"
    )
    use_environment(monkeypatch, env | {"DEPROVISIONER_DATABASE_URL": url})
    migrations.upgrade()
    with database.statement() as db:
        assert [db.execute(text(f"SHOW {each}")).scalar_one() for each in ("search_path", "work_mem")] == [
            "ours, pg_temp",
            "5MB",
        ]
        assert db.execute(text("SHOW statement_timeout")).scalar_one() == PINS["statement_timeout"]
        assert migrations.current(db) == migrations.head()
        assert jobs.enqueue(db, a_resource(db), actor="a").won
    assert server.query("SELECT count(*) FROM ours.outbox", database=name) == [(1,)]


def test_the_scaling_page_gives_a_pooled_role_all_that_a_session_pins() -> None:
    page = (ROOT / "docs" / "scaling.md").read_text()
    said = dict(re.findall(r"^ALTER ROLE deprovisioner_service SET (\w+) = (.*);$", page, re.MULTILINE))
    wanted = {each: f"'{value}'" for each, value in RIGHT.items() if each != "transaction_timeout"}
    assert said == wanted | {"search_path": "public, pg_temp"}


@pytest.mark.parametrize("moment", ["check-out", "first statement", "commit", "rollback"])
@pytest.mark.parametrize("within", [database.statement, database.transaction, database.snapshot])
def test_a_pooled_connection_that_dies_is_unreachable_at_each_moment(
    settled: dict[str, str], servers: Servers, within: Any, moment: str
) -> None:
    name = settled["DEPROVISIONER_DATABASE_URL"].rsplit("/", 1)[1]

    def kill(at: str) -> None:
        if at == moment:
            asked = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = %s"
            assert servers.control.query(asked, name) == [(True,)]

    def use() -> None:
        kill("check-out")
        with within() as session:
            kill("first statement")
            session.execute(text("SELECT 1"))
            kill("commit")
            kill("rollback")
            if moment == "rollback":
                raise KeyError("the caller's own")

    with database.statement() as session:
        session.execute(text("SELECT 1"))
    raised: BaseException | None = None
    try:
        use()
    except (KeyError, DBAPIError) as error:
        raised = error
    if raised is None:
        assert (moment, within) == ("commit", database.statement), "nothing was left to do"
    else:
        assert database.unreachable(raised) or (moment == "rollback" and isinstance(raised, KeyError)), repr(raised)
    for _ in range(2):  # the one that died is noticed at its next use at the latest
        with suppress(DBAPIError), database.transaction() as session:
            session.execute(text("SELECT 1"))
    with database.transaction() as session:
        assert session.execute(text("SELECT 1")).scalar_one() == 1
