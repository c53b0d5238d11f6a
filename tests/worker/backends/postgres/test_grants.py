"""Rights that neighbours gave a role, whoever granted them and with whatever option, do not keep it alive."""

import psycopg2
import pytest

from tests.support.customers import Customer, a_customer
from tests.support.servers import Servers, database_dsn
from tests.support.witness import PgServer
from worker.backends.postgres import Postgres


@pytest.fixture(params=["18", "15"])
def pg(request: pytest.FixtureRequest, servers: Servers) -> PgServer:
    return servers.pg if request.param == "18" else request.getfixturevalue("postgres15")


_OBJECTS = (
    "TABLE t", "SEQUENCE s", "FUNCTION f(int)", "PROCEDURE p(int)", "TYPE e", "SCHEMA \"a b'\"", "LARGE OBJECT 4711",
)  # fmt: skip


def _make(owner: Customer) -> None:
    with owner.inside(
        "CREATE TABLE t (n int)", "CREATE SEQUENCE s", "CREATE FUNCTION f(int) RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "CREATE PROCEDURE p(int) LANGUAGE sql AS 'SELECT 1'", "CREATE TYPE e AS ENUM ('a')", "CREATE SCHEMA \"a b'\"",
        "SELECT lo_create(4711)",
    ) as session:  # fmt: skip
        session.commit()


def _grant(dsn: str, to: Customer, option: str = "") -> None:
    connection = psycopg2.connect(dsn)
    for one in _OBJECTS:
        connection.cursor().execute(f"GRANT ALL ON {one} TO {to.quoted} {option}")
    connection.cursor().execute(f"GRANT SELECT (n) ON t TO {to.quoted} {option}")
    connection.commit()
    connection.close()


def test_a_neighbour_s_rights_with_grant_option_do_not_keep_an_older_role_alive(
    backend: Postgres, pg: PgServer
) -> None:
    victim = a_customer(backend)
    neighbour = a_customer(backend)
    _make(neighbour)
    _grant(neighbour.dsn, victim, "WITH GRANT OPTION")
    backend.teardown(victim.manifest, 1)
    assert not pg.bears(victim.manifest)
    backend.teardown(neighbour.manifest, 1)


@pytest.mark.parametrize("account", ["service", "superuser"])
def test_rights_that_a_third_customer_passed_on_do_not_keep_a_role_alive(
    backend: Postgres, pg: PgServer, account: str
) -> None:
    owner, third, victim = (a_customer(backend) for _ in range(3))
    _make(owner)
    _grant(owner.dsn, third, "WITH GRANT OPTION")
    database = owner.manifest["database"]
    pg.query(f'GRANT CONNECT ON DATABASE "{database}" TO {third.quoted}')
    _grant(database_dsn(third.dsn, database), victim)
    (backend if account == "service" else Postgres(pg.dsn)).teardown(victim.manifest, 1)
    assert not pg.bears(victim.manifest)
    backend.teardown(owner.manifest, 1)
    backend.teardown(third.manifest, 1)
