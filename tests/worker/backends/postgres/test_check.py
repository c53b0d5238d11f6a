"""What `check` finds on a server: each thing is set wrong, and its statement mends it; on PostgreSQL 18 and 15."""

import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from psycopg2.extensions import make_dsn

from outbox.errors import Unavailable
from tests.support import accounts
from tests.support.servers import Servers
from tests.support.witness import PgServer
from worker import backends
from worker.backends import Finding
from worker.backends.postgres import Postgres
from worker.backends.postgres import check as checks


class Fresh:
    """The documented account with a maintenance database that nobody else may enter, both of the test's own."""

    def __init__(self, server: PgServer) -> None:
        self.server, self.name = server, f"fresh_{uuid.uuid4().hex}"
        server.query(f"CREATE ROLE {self.name} LOGIN CREATEDB CREATEROLE PASSWORD 'p'")
        server.query(f"CREATE DATABASE {self.name} OWNER {self.name}")
        server.query(f"REVOKE ALL ON DATABASE {self.name} FROM PUBLIC")
        if self.is_new:
            server.query(f"GRANT pg_use_reserved_connections TO {self.name}")
        self.backend = Postgres(make_dsn(server.dsn, user=self.name, password="p", dbname=self.name))

    @property
    def is_new(self) -> bool:
        return int(self.server.query("SHOW server_version_num")[0][0]) >= 160000

    def found(self) -> list[Finding]:
        """Without the doors of databases that are not this test's."""
        every = backends.check(self.backend)
        return [one for one in every if one.code != "public_connect" or self.name in one.what]

    def mend(self, finding: Finding) -> None:
        for statement in finding.mend.partition("  -- ")[0].split("; "):
            self.server.query(statement, database=self.name)

    def clean(self) -> None:
        self.server.query(f"DROP DATABASE {self.name} WITH (FORCE)")
        self.server.query(f"DROP OWNED BY {self.name}")
        self.server.query(f"DROP ROLE {self.name}")


@pytest.fixture(params=["18", "15"])
def fresh(request: pytest.FixtureRequest, servers: Servers) -> Iterator[Fresh]:
    made = Fresh(servers.pg if request.param == "18" else request.getfixturevalue("postgres15"))
    yield made
    made.clean()


# What is set wrong (ME is the account), the code, and what the words name.
WRONG = {
    "no CREATEDB": ("ALTER ROLE ME NOCREATEDB", "rights_too_few", "CREATEDB"),
    "no CREATEROLE": ("ALTER ROLE ME NOCREATEROLE", "rights_too_few", "CREATEROLE"),
    "REPLICATION": ("ALTER ROLE ME REPLICATION", "rights_too_many", "REPLICATION"),
    "BYPASSRLS": ("ALTER ROLE ME BYPASSRLS", "rights_too_many", "BYPASSRLS"),
    "programs": ("GRANT pg_execute_server_program TO ME", "rights_too_many", "'pg_execute_server_program'"),
    "every row": ("GRANT pg_read_all_data TO ME", "rights_too_many", "'pg_read_all_data'"),
    "a member of a superuser": ("GRANT postgres TO ME", "rights_too_many", "'postgres'"),
    "few sessions": ("ALTER ROLE ME CONNECTION LIMIT 5", "slots_too_few", "may have 5 sessions"),
    "an open door": ("GRANT CONNECT ON DATABASE ME TO PUBLIC", "public_connect", "'ME'"),
    "no schema for the memory": ("REVOKE CREATE ON DATABASE ME FROM ME", "rights_too_few", "deprovisioner_memory"),
    "another's schema": ("CREATE SCHEMA deprovisioner_memory", "rights_too_few", "belongs to 'postgres'"),
    "an open schema": ("GRANT CREATE ON SCHEMA public TO PUBLIC", "public_create", "'ME'"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_each_thing_that_is_wrong_is_found_and_its_statement_mends_it(fresh: Fresh, wrong: str) -> None:
    assert fresh.found() == []
    statement, code, words = WRONG[wrong]
    fresh.server.query(statement.replace("ME", fresh.name), database=fresh.name)
    (finding,) = fresh.found()
    assert (finding.code, words.replace("ME", fresh.name) in finding.what) == (code, True), finding
    fresh.mend(finding)
    assert fresh.found() == []


def test_a_superuser_is_found_whatever_else_it_lacks(fresh: Fresh) -> None:
    fresh.server.query(f"ALTER ROLE {fresh.name} SUPERUSER NOCREATEDB")
    (finding,) = fresh.found()
    assert (finding.code, "superuser" in finding.what) == ("rights_too_many", True)
    assert accounts.documented("postgres")[0].partition(" PASSWORD")[0] in finding.mend


def test_settings_under_which_data_is_lost_are_found_unless_the_server_is_a_throw_away(fresh: Fresh) -> None:
    for setting in ("zero_damaged_pages = on", "password_encryption = md5", "deprovisioner.throwaway = off"):
        fresh.server.query(f"ALTER ROLE {fresh.name} SET {setting}")
    found = fresh.found()
    assert {one.code for one in found} == {"setting_unsafe"}
    said = {one.what.split(" ")[0]: one.mend for one in found}
    assert set(said) == {"fsync", "full_page_writes", "password_encryption", "zero_damaged_pages"}, (
        "tests run without fsync"
    )
    assert said["password_encryption"].startswith("ALTER SYSTEM SET password_encryption = 'scram-sha-256'; ")
    fresh.server.query(f"ALTER ROLE {fresh.name} SET deprovisioner.throwaway = on")
    assert fresh.found() == []


def test_customers_can_take_every_slot_where_none_is_reserved_or_the_role_may_not_use_it(servers: Servers) -> None:
    for server, words in ((servers.control, "reserved_connections"), (servers.pg, "pg_use_reserved_connections")):
        made = Fresh(server)
        try:
            server.query(f"REVOKE pg_use_reserved_connections FROM {made.name}")
            (finding,) = made.found()
            assert (finding.code, words in finding.mend) == ("slots_too_few", True)
            if words.startswith("pg_"):
                made.mend(finding)
                assert made.found() == []
        finally:
            made.clean()


def test_an_old_version_is_found(fresh: Fresh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "OLDEST", 190000)
    assert [one.code for one in fresh.found()] == ["version_old"]


def test_a_server_that_cannot_be_asked_is_an_error(fresh: Fresh) -> None:
    backend: Any = Postgres(make_dsn(fresh.server.dsn, user=fresh.name, password="wrong", dbname=fresh.name))
    with pytest.raises(Unavailable, match="password authentication failed"):
        backends.check(backend)
