"""Logins to what is in quarantine, counted from the server's own log where a superuser lets the service read it."""

import contextlib
import datetime as dt
import shutil
import uuid
from collections.abc import Iterator

import psycopg2
import pytest

from deprovisioner.up import servers as embedded
from outbox.rows import Json
from tests.support import accounts
from tests.support.servers import OLD_POSTGRES_PROGRAMS, database_dsn, server_folder
from tests.support.witness import PgServer, eventually
from worker.backends import LoginAttempts
from worker.backends.postgres import Postgres, attempts

LONG_AGO = dt.datetime(2000, 1, 1, tzinfo=dt.UTC)


@pytest.fixture(scope="module", params=["18", "15"])
def logging(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PgServer]:
    """A server that writes a log in JSON, in a time zone of its own."""
    old = request.param == "15"
    if old and not (OLD_POSTGRES_PROGRAMS / "postgres").exists():
        pytest.skip(f"no PostgreSQL 15 in {OLD_POSTGRES_PROGRAMS}")
    port = embedded.free_port()
    settings = {"logging_collector": "on", "log_destination": "jsonlog", "log_timezone": "Asia/Tokyo", "fsync": "off"}
    programs = OLD_POSTGRES_PROGRAMS if old else None
    folder = server_folder("logging")
    child = embedded.postgres(folder, "logging", port, "p", settings, programs=programs)
    dsn = embedded.postgres_dsn(port, "p")
    try:
        child.spawn()
        child.wait_until(lambda: embedded.postgres_ready(dsn))
        yield PgServer(dsn, child.log, accounts.postgres(dsn))
    finally:
        child.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def told(logging: PgServer) -> Iterator[PgServer]:
    """The same, with the documented function."""
    for statement in accounts.documented("log"):
        logging.query(statement, database=accounts.NAME)
    yield logging
    logging.query("DROP SCHEMA deprovisioner CASCADE", database=accounts.NAME)


def quarantined(backend: Postgres) -> tuple[Json, Json]:
    plan = backend.plan(uuid.uuid4(), uuid.uuid4())
    manifest = backend.provision(plan.manifest, plan.credentials)
    backend.quarantine(manifest)
    return manifest, plan.credentials


def try_to_log_in(dsn: str) -> None:
    with contextlib.suppress(psycopg2.OperationalError):
        psycopg2.connect(dsn).close()


def count(backend: Postgres, manifest: Json, since: dt.datetime = LONG_AGO) -> int:
    found = backend.login_attempts(manifest, since)
    assert found is not None
    return found.count


def test_attempts_after_a_moment_are_counted_with_where_they_came_from(told: PgServer) -> None:
    backend = Postgres(told.service_dsn)
    (manifest, credentials), (other, others) = quarantined(backend), quarantined(backend)
    assert backend.login_attempts(manifest, LONG_AGO) == LoginAttempts(0, LONG_AGO, [])
    try_to_log_in(credentials["dsn"])
    try_to_log_in(credentials["dsn"].replace(credentials["password"], "wrong"))
    try_to_log_in(database_dsn(told.dsn, manifest["database"]))
    try_to_log_in(database_dsn(told.dsn, f"zz_del_{manifest['generation']}"))
    try_to_log_in(others["dsn"])
    eventually(lambda: count(backend, manifest) == 4, what="the server writes its log")
    found = backend.login_attempts(manifest, LONG_AGO)
    assert found is not None
    assert found.addresses == ["127.0.0.1"]
    [(now,)] = told.query("SELECT now()")
    assert now - dt.timedelta(minutes=1) < found.last_at < now
    assert backend.login_attempts(manifest, found.last_at) == LoginAttempts(0, found.last_at, [])
    try_to_log_in(credentials["dsn"])
    eventually(lambda: count(backend, manifest, found.last_at) == 1, what="the server writes its log")
    assert count(backend, other) == 1
    for one in (manifest, other):
        backend.teardown(one, 1)


def test_the_sessions_that_a_quarantine_ends_are_no_attempts(told: PgServer) -> None:
    backend = Postgres(told.service_dsn)
    plan = backend.plan(uuid.uuid4(), uuid.uuid4())
    manifest = backend.provision(plan.manifest, plan.credentials)
    live = [psycopg2.connect(plan.credentials["dsn"]) for _ in range(3)]
    backend.quarantine(manifest)
    try_to_log_in(plan.credentials["dsn"])
    eventually(lambda: count(backend, manifest) > 0, what="the server writes its log")
    assert count(backend, manifest) == 1
    for session in live:
        session.close()
    backend.teardown(manifest, 1)


def test_words_of_a_customer_in_the_log_are_no_attempts_and_break_nothing(told: PgServer) -> None:
    backend = Postgres(told.service_dsn)
    manifest, _ = quarantined(backend)
    forged = (
        f'{{"error_severity":"FATAL","user":"{manifest["role"]}","state_code":"28000","timestamp":"2030-01-01 UTC"}}'
    )
    for words in (forged, f"x\n{forged}\n{forged}", "[" * 5000):
        with pytest.raises(psycopg2.Error):
            told.query("SELECT %s FROM nowhere", words)
        with contextlib.suppress(psycopg2.OperationalError):
            psycopg2.connect(told.dsn, user=words[:60])
    assert count(backend, manifest) == 0
    backend.teardown(manifest, 1)


def test_only_the_end_of_a_long_log_is_read(told: PgServer, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = Postgres(told.service_dsn)
    manifest, credentials = quarantined(backend)
    monkeypatch.setattr(attempts, "TAIL_BYTES", 2_000)
    for _ in range(20):
        try_to_log_in(credentials["dsn"])
    eventually(lambda: count(backend, manifest) > 0, what="the server writes its log")
    assert 0 < count(backend, manifest) < 10
    backend.teardown(manifest, 1)


def test_without_a_superuser_s_function_nothing_is_told(logging: PgServer) -> None:
    backend = Postgres(logging.service_dsn)
    manifest, credentials = quarantined(backend)
    try_to_log_in(credentials["dsn"])
    assert backend.login_attempts(manifest, LONG_AGO) is None
    where = accounts.NAME
    logging.query(f"CREATE SCHEMA deprovisioner AUTHORIZATION {where}", database=where)
    function = "CREATE FUNCTION deprovisioner.log_tail(bigint) RETURNS bytea SECURITY DEFINER LANGUAGE sql"
    logging.query(f"SET ROLE {where}; {function} AS $$ SELECT '{{}}'::bytea $$", database=where)
    assert backend.login_attempts(manifest, LONG_AGO) is None, "it is no superuser's"
    logging.query("DROP SCHEMA deprovisioner CASCADE", database=where)
    for statement in accounts.documented("log"):
        logging.query(statement, database=where)
    assert count(backend, manifest) >= 0
    logging.query("DROP SCHEMA deprovisioner CASCADE", database=where)
    backend.teardown(manifest, 1)


def test_a_server_without_a_log_in_json_tells_nothing(pg: PgServer) -> None:
    backend = Postgres(pg.service_dsn)
    manifest, _ = quarantined(backend)
    for statement in accounts.documented("log"):
        pg.query(statement, database=accounts.NAME)
    assert backend.login_attempts(manifest, LONG_AGO) is None
    pg.query("DROP SCHEMA deprovisioner CASCADE", database=accounts.NAME)
    backend.teardown(manifest, 1)
