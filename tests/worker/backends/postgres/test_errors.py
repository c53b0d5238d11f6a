"""What errors of PostgreSQL mean, and what an operator reads of them."""

import re
import uuid
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from psycopg2.extensions import parse_dsn

from outbox.errors import OutOfService, Refused, Transient, Unavailable
from tests.support import small_disk
from tests.support.servers import database_dsn
from tests.support.witness import PgServer
from worker.backends import Absent
from worker.backends.postgres import Postgres, errors, session
from worker.backends.postgres.session import Server


def test_the_runbook_has_the_table_of_errors() -> None:
    page = (Path(__file__).parents[4] / "docs/runbook.md").read_text()
    part = re.search(r"<!-- postgres errors -->\n(.*?)<!-- /postgres errors -->", page, re.DOTALL)
    assert part
    rows = [tuple(cell.strip() for cell in line.strip("| ").split("|")) for line in part[1].splitlines()[2:]]
    assert rows == [(code, meaning.__name__, why) for code, meaning, why in errors.TABLE]


@pytest.mark.parametrize(
    ("code", "meaning"),
    [
        *((code, OutOfService) for code in ("25006", "53100", "53300")),
        *((code, Unavailable) for code in ("57P01", "57P02", "57P03", "08006", "28P01")),
        *(
            (code, Transient)
            for code in ("53200", "55P03", "55006", "57014", "58030", "XX000", "XX001", "40P01", "42704")
        ),
        *((code, Refused) for code in ("2BP01", "42501")),
    ],
)
def test_an_error_is_taken_for_what_its_code_says(pg: PgServer, code: str, meaning: type[Exception]) -> None:
    raised = f"DO $$ BEGIN RAISE EXCEPTION 'boom' USING ERRCODE = '{code}'; END $$"
    with pytest.raises(meaning, match=r"^boom$") as told, Server(pg.service_dsn, frozenset()).connect() as session:
        session.execute(raised)
    assert told.type is meaning


def test_an_error_keeps_its_detail_hint_and_place_on_one_line_of_bounded_length(pg: PgServer) -> None:
    long = "x" * 100_000
    raise_it = """DO $$ BEGIN RAISE EXCEPTION 'first' USING DETAIL = E'two\\nlines\\x1b[2J', HINT = 'h',
                  SCHEMA = 's', TABLE = 't'; END $$"""
    with pytest.raises(Transient) as told, Server(pg.service_dsn, frozenset()).connect() as session:
        session.execute(raise_it)
    assert str(told.value) == "first; DETAIL: two lines [2J; HINT: h; at s.t"
    with pytest.raises(Transient) as told, Server(pg.service_dsn, frozenset()).connect() as session:
        session.execute(f"DO $$ BEGIN RAISE EXCEPTION 'first' USING DETAIL = '{long}'; END $$")
    assert len(str(told.value)) == errors.MAX_CHARACTERS
    assert str(told.value).startswith("first; DETAIL: xxx")


def test_a_rollback_does_not_hide_the_error_that_ended_the_session(pg: PgServer) -> None:
    def ended_inside() -> None:
        with Server(pg.service_dsn, frozenset()).connect() as session, session.transaction():
            session.execute("SELECT pg_terminate_backend(pg_backend_pid())")

    with pytest.raises(Unavailable, match=r"server closed the connection|terminating connection"):
        ended_inside()


@pytest.mark.parametrize(
    ("closed", "opened", "said"),
    [
        (
            "ALTER DATABASE {} ALLOW_CONNECTIONS false",
            "ALTER DATABASE {} ALLOW_CONNECTIONS true",
            "not currently accepting",
        ),
        ("ALTER DATABASE {} CONNECTION LIMIT 0", "ALTER DATABASE {} CONNECTION LIMIT -1", "too many connections"),
        (
            "UPDATE pg_database SET datconnlimit = -2 WHERE datname = '{}'",
            "UPDATE pg_database SET datconnlimit = -1 WHERE datname = '{}'",
            "(invalid database|too many connections)",
        ),
    ],
)
def test_a_neighbour_s_database_that_cannot_be_entered_is_this_job_s_trouble_and_named(
    backend: Postgres, pg: PgServer, provisioned: dict[str, Any], closed: str, opened: str, said: str
) -> None:
    neighbour = f"n_{uuid.uuid4().hex}"
    pg.query(f'CREATE DATABASE "{neighbour}" OWNER {parse_dsn(pg.service_dsn)["user"]}')
    pg.query(f'CREATE SCHEMA theirs AUTHORIZATION "{provisioned["role"]}"', database=neighbour)
    pg.query(closed.format(neighbour))
    with pytest.raises(Transient, match=f"in database '{neighbour}': .*{said}"):
        backend.teardown(provisioned, 1)
    pg.query(opened.format(neighbour))
    backend.teardown(provisioned, 2)
    assert isinstance(backend.inspect(provisioned), Absent)


_OF_A_SERVER = [code.ljust(5, "0") for code, meaning, _ in errors.TABLE if issubclass(meaning, Unavailable)]
_FAILS = """
    CREATE FUNCTION fails() RETURNS event_trigger LANGUAGE plpgsql AS $$
    BEGIN RAISE EXCEPTION 'boom' USING ERRCODE = '{}'; END $$;
    CREATE EVENT TRIGGER fails ON ddl_command_start EXECUTE FUNCTION fails()"""


@pytest.mark.parametrize("anywhere", ["18-service", "15-service"], indirect=True)
def test_what_a_server_says_of_itself_is_not_believed_from_a_neighbour_s_database_while_the_server_works(
    anywhere: tuple[Postgres, PgServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    backend, pg = anywhere
    plan = backend.plan(uuid.uuid4(), uuid.uuid4())
    manifest = backend.provision(plan.manifest, plan.credentials)
    neighbour = f"n_{uuid.uuid4().hex}"
    pg.query(f'CREATE DATABASE "{neighbour}"')
    pg.query(f'GRANT USAGE ON SCHEMA public TO "{manifest["role"]}"', database=neighbour)
    for code in set(_OF_A_SERVER) - {"none0"}:
        pg.query(_FAILS.format(code), database=neighbour)
        with pytest.raises(Transient, match=f"^in database '{neighbour}': boom$"):
            backend.teardown(manifest, 1)
        pg.query("DROP EVENT TRIGGER fails; DROP FUNCTION fails()", database=neighbour)
    with monkeypatch.context() as pooler_that_drops_options:
        pins = session._PARAMETERS["options"].replace(" -c default_transaction_read_only=off", "")
        pooler_that_drops_options.setitem(session._PARAMETERS, "options", pins)
        pg.query(f'ALTER DATABASE "{neighbour}" SET default_transaction_read_only = on')
        with pytest.raises(Transient, match=f"in database '{neighbour}': .*read-only"):
            backend.teardown(manifest, 1)
    pg.query(f'DROP DATABASE "{neighbour}"')
    backend.teardown(manifest, 2)
    assert isinstance(backend.inspect(manifest), Absent)


def test_a_full_disk_is_the_server_s_trouble_or_that_of_a_neighbour_s_tablespace_alone(
    backend: Postgres, pg: PgServer, provisioned: dict[str, Any], folder: Path
) -> None:
    name = f"n_{uuid.uuid4().hex}"
    disk = small_disk.mounted(folder / "disk", pg, name, size="32m")
    if disk is None:
        pytest.skip("this user may not mount a small tmpfs")
    try:
        _fill(backend, pg, provisioned, disk, name)
    finally:
        pg.query(f"DROP DATABASE IF EXISTS {name}")
        pg.query(f"DROP TABLESPACE {name}")
        small_disk.unmount(disk)


def _fill(backend: Postgres, pg: PgServer, provisioned: dict[str, Any], disk: Path, name: str) -> None:
    pg.query(f"CREATE DATABASE {name} TABLESPACE {name}")
    tables = ";".join(f'CREATE TABLE t{n} (); ALTER TABLE t{n} OWNER TO "{provisioned["role"]}"' for n in range(300))
    pg.query(tables, database=name)
    pg.query("VACUUM FULL pg_class", database=name)  # no room is left in the pages that there are
    pg.query("CHECKPOINT", database=name)  # else the one of DROP DATABASE fails; and a session finds its files later
    with small_disk.full(disk):
        with pytest.raises(Transient, match=f"in database '{name}': .*No space left on device"):
            backend.teardown(provisioned, 1)
        here = Server(database_dsn(pg.service_dsn, name), frozenset())  # as if all of the server were on this disk
        full = "DO $$ BEGIN RAISE EXCEPTION 'boom' USING ERRCODE = '53100'; END $$"
        with pytest.raises(OutOfService, match="boom"), here.connect("postgres") as another:
            another.execute(full)
    backend.teardown(provisioned, 2)
    assert isinstance(backend.inspect(provisioned), Absent)


def test_a_prepared_transaction_s_error_is_not_hidden_by_the_end_of_its_session(
    backend: Postgres, pg: PgServer, provisioned: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The session that rolls back ends, and then the one that closes the door: neither's clean-up is what is told."""
    with closing(psycopg2.connect(provisioned["dsn"])) as theirs:
        theirs.tpc_begin(theirs.xid(1, uuid.uuid4().hex, "b"))
        theirs.cursor().execute("CREATE TABLE t ()")
        theirs.tpc_prepare()
    honest = session.Session.execute

    def ended(ours: session.Session, statement: str, **words: Any) -> None:
        if statement.startswith("ROLLBACK PREPARED"):
            others = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = %s"
            pg.query(others, "deprovisioner")
            raise Transient("the first error; DETAIL: what it was about")
        honest(ours, statement, **words)

    with monkeypatch.context() as patch:
        patch.setattr(session.Session, "execute", ended)
        with pytest.raises(Transient, match=r"the first error; DETAIL: what it was about$"):
            backend.teardown(provisioned, 1)
    backend.teardown(provisioned, 2)
    assert isinstance(backend.inspect(provisioned), Absent)


def test_another_database_is_unavailable_when_the_server_is() -> None:
    nowhere = Server("postgresql://x@127.0.0.1:1/x", frozenset())
    with pytest.raises(Unavailable), nowhere.connect("another"):
        pass


def test_an_error_never_holds_the_statement_or_its_password(pg: PgServer) -> None:
    with pytest.raises(Transient) as told, Server(pg.service_dsn, frozenset()).connect() as session:
        session.execute("CREATE ROLE x PASSWORD 'hunter2' FROBNICATE")
    assert "hunter2" not in str(told.value)
    assert isinstance(told.value.__cause__, psycopg2.Error)


def test_a_teardown_that_stops_half_way_says_what_it_had_done(
    backend: Postgres, pg: PgServer, provisioned: dict[str, Any]
) -> None:
    pg.query(f'ALTER DATABASE "{provisioned["database"]}" OWNER TO postgres')
    with pytest.raises(Refused, match="must be owner of database") as stopped:
        backend.teardown(provisioned, 1)
    assert pg.query("SELECT rolcanlogin FROM pg_roles WHERE rolname = %s", provisioned["role"]) == [(False,)]
    assert stopped.value.did
    assert any("NOLOGIN" in one for one in stopped.value.did["statements"])
