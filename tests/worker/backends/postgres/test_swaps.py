"""A stranger takes the name while the statement that uses it is on its way: the stranger's object stays as it is."""

import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from psycopg2 import extensions

from outbox.errors import Refused
from outbox.rows import Json
from tests.support.accounts import NAME
from tests.support.proxy import Proxy
from tests.support.servers import Servers
from tests.support.witness import PgServer
from worker.backends.postgres import Postgres

ROLE = "SELECT rolcanlogin, shobj_description(oid, 'pg_authid') FROM pg_roles WHERE oid = %s"
DATABASE = """
    SELECT datname, datallowconn, datconnlimit, shobj_description(oid, 'pg_database') FROM pg_database WHERE oid = %s"""


@dataclass
class Swapped:
    """A backend behind a proxy, which lets a stranger act while a statement waits there.

    The service has all rights to what the stranger makes: no lack of rights stands in for a check.
    """

    backend: Postgres
    pg: PgServer
    proxy: Proxy
    strangers: int = 0

    def role(self, name: str, *, login: bool) -> None:
        """The stranger's role takes the name; the one that had it bears another."""
        self.pg.query(f'ALTER ROLE "{name}" RENAME TO "old_{uuid.uuid4().hex}"')
        self.pg.query(f'CREATE ROLE "{name}" {"LOGIN" if login else "NOLOGIN"} ADMIN {NAME}')
        [(self.strangers,)] = self.pg.query("SELECT oid FROM pg_roles WHERE rolname = %s", name)

    def database(self, name: str) -> None:
        """The stranger's database takes the name."""
        self.pg.query(f'ALTER DATABASE "{name}" RENAME TO "old_{uuid.uuid4().hex}"')
        self.pg.query(f'CREATE DATABASE "{name}" OWNER {NAME}')
        [(self.strangers,)] = self.pg.query("SELECT oid FROM pg_database WHERE datname = %s", name)

    def refuses(self, words: str, act: Callable[[], object], verb: Callable[[], object]) -> None:
        """The verb is refused when `act` happens while the statement with these words waits."""
        self.proxy.hold(words, act)
        with pytest.raises(Refused):
            verb()
        assert self.proxy.cuts == 1, f"nothing asked {words!r}"


@pytest.fixture(params=["18", "18-service", "15-service"])
def swapped(request: pytest.FixtureRequest, servers: Servers) -> Iterator[Swapped]:
    server = request.getfixturevalue("postgres15") if request.param == "15-service" else servers.pg
    dsn = server.service_dsn if "service" in request.param else server.dsn
    proxy = Proxy(int(extensions.parse_dsn(dsn)["port"]))
    yield Swapped(Postgres(extensions.make_dsn(dsn, port=proxy.port)), server, proxy)
    proxy.close()


@pytest.fixture
def manifest(swapped: Swapped) -> Json:
    plan = swapped.backend.plan(uuid.uuid4(), uuid.uuid4())
    return swapped.backend.provision(plan.manifest, plan.credentials)


@pytest.mark.parametrize("verb", ["quarantine", "teardown"])
def test_a_stranger_s_role_keeps_its_login(swapped: Swapped, manifest: Json, verb: str) -> None:
    run = {
        "quarantine": lambda: swapped.backend.quarantine(manifest),
        "teardown": lambda: swapped.backend.teardown(manifest, 1),
    }
    name = manifest["role"]
    swapped.refuses(f'ALTER ROLE "{name}" NOLOGIN', lambda: swapped.role(name, login=True), run[verb])
    assert swapped.pg.query(ROLE, swapped.strangers) == [(True, None)]
    assert swapped.pg.query(DATABASE, manifest["oid"])[0][:3] == (manifest["database"], True, -1)


def test_a_stranger_s_role_is_given_no_login(swapped: Swapped, manifest: Json) -> None:
    swapped.backend.quarantine(manifest)
    name = manifest["role"]
    swapped.refuses(
        f'ALTER ROLE "{name}" LOGIN',
        lambda: swapped.role(name, login=False),
        lambda: swapped.backend.release(manifest),
    )
    assert swapped.pg.query(ROLE, swapped.strangers) == [(False, None)]


def test_a_stranger_s_database_is_not_given_the_customer_s_name(swapped: Swapped, manifest: Json) -> None:
    swapped.backend.quarantine(manifest)
    dying = f"zz_del_{manifest['generation']}"
    swapped.refuses(
        f'ALTER DATABASE "{dying}" RENAME',
        lambda: swapped.database(dying),
        lambda: swapped.backend.release(manifest),
    )
    assert swapped.pg.query(DATABASE, swapped.strangers) == [(dying, True, -1, None)]


def test_a_stranger_s_role_is_not_renamed_nor_dropped_and_keeps_what_it_owns(swapped: Swapped, manifest: Json) -> None:
    name, table = manifest["role"], f"t_{uuid.uuid4().hex}"

    def take_the_name() -> None:
        swapped.role(name, login=True)
        swapped.pg.query(f"CREATE TABLE {table} ()")
        swapped.pg.query(f'ALTER TABLE {table} OWNER TO "{name}"')

    try:
        swapped.refuses(f'ALTER ROLE "{name}" RENAME', take_the_name, lambda: swapped.backend.teardown(manifest, 1))
        owner = "SELECT relowner FROM pg_class WHERE relname = %s"
        assert swapped.pg.query(owner, table) == [(swapped.strangers,)]
        assert swapped.pg.query("SELECT oid FROM pg_roles WHERE rolname = %s", name) == [(swapped.strangers,)]
        assert swapped.pg.query(ROLE, swapped.strangers) == [(True, None)]
        assert len(swapped.pg.query(ROLE, manifest["role_oid"])) == 1
    finally:
        swapped.pg.query(f"DROP TABLE IF EXISTS {table}")


@pytest.mark.parametrize("verb", ["quarantine", "teardown"])
@pytest.mark.parametrize("times", [1, 2])
def test_a_stranger_s_database_is_not_closed_nor_renamed(
    swapped: Swapped, manifest: Json, verb: str, times: int
) -> None:
    """Before the door is closed, and before the rename: the same statement."""
    run = {"quarantine": swapped.backend.quarantine, "teardown": lambda manifest: swapped.backend.teardown(manifest, 1)}
    name = manifest["database"]
    words = f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false'

    def again() -> None:
        swapped.proxy.hold(words, lambda: swapped.database(name))

    swapped.refuses(words, again if times == 2 else lambda: swapped.database(name), lambda: run[verb](manifest))
    assert swapped.pg.query(DATABASE, swapped.strangers) == [(name, True, -1, None)]


@pytest.mark.parametrize("what", ["database", "role"])
def test_a_stranger_s_object_is_not_marked_by_an_adoption(swapped: Swapped, manifest: Json, what: str) -> None:
    """What is adopted was made by this account, and bears no mark any more."""
    pg, name = swapped.pg, manifest[what]
    pg.query(f'COMMENT ON DATABASE "{manifest["database"]}" IS NULL')
    pg.query(f'COMMENT ON ROLE "{manifest["role"]}" IS NULL')
    generation = uuid.uuid4()
    existing = {"database": manifest["database"], "role": manifest["role"], "generation": str(generation)}
    take = {"database": lambda: swapped.database(name), "role": lambda: swapped.role(name, login=True)}
    swapped.refuses(
        f'COMMENT ON {what.upper()} "{name}"', take[what], lambda: swapped.backend.adopt(existing, generation)
    )
    shown = DATABASE if what == "database" else ROLE
    assert pg.query(shown, swapped.strangers)[0][-1] is None
    for oid, catalog in ((manifest["oid"], "pg_database"), (manifest["role_oid"], "pg_authid")):
        assert pg.query("SELECT shobj_description(%s, %s)", oid, catalog) == [(None,)]


def test_a_stranger_s_database_is_not_marked_by_a_provision(swapped: Swapped) -> None:
    plan = swapped.backend.plan(uuid.uuid4(), uuid.uuid4())
    new = f"zz_new_{plan.manifest['generation']}"
    swapped.refuses(
        f'REVOKE ALL ON DATABASE "{new}"',
        lambda: swapped.database(new),
        lambda: swapped.backend.provision(plan.manifest, plan.credentials),
    )
    assert swapped.pg.query(DATABASE, swapped.strangers) == [(new, True, -1, None)]
