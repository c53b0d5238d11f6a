"""What the service's account must be allowed to do before an object that others made is adopted."""

import uuid
from contextlib import closing
from typing import Any

import psycopg2
import pytest
from psycopg2.extensions import make_dsn, parse_dsn, quote_ident

from outbox.errors import Refused
from tests.support import accounts
from tests.support.servers import Servers
from tests.support.witness import PgServer
from worker.backends.postgres import Postgres


@pytest.fixture(params=["18", "15"])
def anywhere(request: pytest.FixtureRequest, servers: Servers) -> tuple[Postgres, PgServer]:
    """A backend with an account of its own, made as documented, because these tests give it more; and its server."""
    server = servers.pg if request.param == "18" else request.getfixturevalue("postgres15")
    return Postgres(accounts.fresh(server, f"fresh_{uuid.uuid4().hex}")), server


class Strangers:
    """A database with a role, and a bystander that may connect; all made by a superuser."""

    def __init__(self, server: PgServer, *, owner: str = "role", odd: str = "") -> None:
        self.server, self.name, self.generation = server, f"old_{odd}{uuid.uuid4().hex}", uuid.uuid4()
        self.bystander = f"by_{uuid.uuid4().hex}"
        with closing(psycopg2.connect(server.dsn)) as session:
            self.quoted = quote_ident(self.name, session)
        server.query(f"CREATE ROLE {self.quoted} LOGIN PASSWORD 'p'")
        server.query(f"CREATE ROLE {self.bystander} LOGIN PASSWORD 'p'")
        owners = {"role": self.quoted, "bystander": self.bystander, "superuser": "postgres"}
        server.query(f"CREATE DATABASE {self.quoted} OWNER {owners[owner]}")

    @property
    def manifest(self) -> dict[str, Any]:
        return {"database": self.name, "role": self.name, "generation": str(self.generation)}

    def connect(self, user: str) -> Any:
        return psycopg2.connect(make_dsn(self.server.dsn, dbname=self.name, user=user, password="p"))

    def comments(self) -> list[tuple[Any, ...]]:
        return self.server.query(
            """SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = %s UNION ALL
               SELECT shobj_description(oid, 'pg_authid') FROM pg_roles WHERE rolname = %s""",
            self.name,
            self.name,
        )

    def clean(self) -> None:
        self.server.query(f"DROP DATABASE IF EXISTS {self.quoted} WITH (FORCE)")
        self.server.query(f"DROP ROLE IF EXISTS {self.quoted}, {self.bystander}")


def _statements(refused: Refused) -> str:
    return str(refused).partition("run as a superuser, then re-drive: ")[2]


@pytest.mark.parametrize("owner", ["role", "bystander", "superuser"])
def test_adoption_asks_for_exactly_the_rights_with_which_the_whole_teardown_succeeds(
    anywhere: tuple[Postgres, PgServer], owner: str
) -> None:
    backend, server = anywhere
    theirs = Strangers(server, owner=owner, odd='we"ird; \\ \n\x1b')
    try:
        with pytest.raises(Refused) as refused:
            backend.adopt(theirs.manifest, theirs.generation)
        assert theirs.comments() == [(None,), (None,)]
        assert str(refused.value).isprintable()
        assert _statements(refused.value)
        server.query(_statements(refused.value))
        manifest = backend.adopt(theirs.manifest, theirs.generation)
        with closing(theirs.connect(theirs.name)) as role, closing(theirs.connect(theirs.bystander)) as bystander:
            for session in (role, bystander):
                session.cursor().execute("SELECT 1")
            backend.teardown(manifest, 1)
            for session in (role, bystander):
                with pytest.raises(psycopg2.OperationalError):
                    session.cursor().execute("SELECT 1")
        assert not server.bears(manifest)
        assert theirs.bystander in server.roles(), "only the resource's role is dropped"
    finally:
        theirs.clean()


@pytest.mark.parametrize("left_out", range(2))
def test_each_statement_is_needed(anywhere: tuple[Postgres, PgServer], left_out: int) -> None:
    backend, server = anywhere
    theirs = Strangers(server)
    try:
        with pytest.raises(Refused) as refused:
            backend.adopt(theirs.manifest, theirs.generation)
        statements = _statements(refused.value).rstrip(";").split("; ")
        assert len(statements) == 2, "the role with its database, and the bystander's sessions"
        missing = statements.pop(left_out)
        server.query(";".join(statements))
        with pytest.raises(Refused) as refused:
            backend.adopt(theirs.manifest, theirs.generation)
        assert _statements(refused.value) == f"{missing};", "what is there is not asked for again"
    finally:
        theirs.clean()


@pytest.mark.parametrize("anywhere", ["18"], indirect=True)
def test_a_membership_without_one_of_its_options_is_not_enough(anywhere: tuple[Postgres, PgServer]) -> None:
    backend, pg = anywhere
    theirs, me = Strangers(pg), parse_dsn(backend._server.dsn)["user"]
    pg.query(f"REVOKE CONNECT ON DATABASE {theirs.quoted} FROM PUBLIC")
    for option in ("ADMIN", "INHERIT", "SET"):
        given = ", ".join(f"{one} {one != option}" for one in ("ADMIN", "INHERIT", "SET"))
        pg.query(f"GRANT {theirs.quoted} TO {me} WITH {given}")
        with pytest.raises(Refused, match=f"GRANT {theirs.quoted} TO .* WITH ADMIN TRUE, INHERIT TRUE, SET TRUE;$"):
            backend.adopt(theirs.manifest, theirs.generation)
    pg.query(f"GRANT {theirs.quoted} TO {me} WITH ADMIN TRUE, INHERIT TRUE, SET TRUE")
    backend.teardown(backend.adopt(theirs.manifest, theirs.generation), 1)
    assert theirs.name not in pg.roles() | pg.databases()
    theirs.clean()


@pytest.mark.parametrize("anywhere", ["15"], indirect=True)
def test_on_15_an_account_that_inherits_nothing_and_a_role_that_replicates_are_told(
    anywhere: tuple[Postgres, PgServer],
) -> None:
    backend, server = anywhere
    theirs = Strangers(server)
    me = server.query("SELECT rolname FROM pg_roles WHERE rolname LIKE 'fresh\\_%' ORDER BY oid DESC LIMIT 1")[0][0]
    server.query(f"ALTER ROLE {me} NOINHERIT; ALTER ROLE {theirs.quoted} REPLICATION")
    try:
        with pytest.raises(Refused, match=r'" INHERIT;$') as refused:
            backend.adopt(theirs.manifest, theirs.generation)
        server.query(_statements(refused.value))
        backend.teardown(backend.adopt(theirs.manifest, theirs.generation), 1)
        assert theirs.name not in server.roles() | server.databases()
    finally:
        theirs.clean()
