"""What errors of PostgreSQL mean, and what an operator reads of them."""

import re
import uuid
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from psycopg2.extensions import parse_dsn

from outbox.errors import OutOfService, Refused, Transient, Unavailable
from tests.support.witness import PgServer
from worker.backends import Absent
from worker.backends.postgres import Postgres, errors
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


def test_another_database_is_unavailable_when_the_server_is() -> None:
    nowhere = Server("postgresql://x@127.0.0.1:1/x", frozenset())
    with pytest.raises(Unavailable), nowhere.connect("another"):
        pass


def test_an_error_never_holds_the_statement_or_its_password(pg: PgServer) -> None:
    with pytest.raises(Transient) as told, Server(pg.service_dsn, frozenset()).connect() as session:
        session.execute("CREATE ROLE x PASSWORD 'hunter2' FROBNICATE")
    assert "hunter2" not in str(told.value)
    assert isinstance(told.value.__cause__, psycopg2.Error)
