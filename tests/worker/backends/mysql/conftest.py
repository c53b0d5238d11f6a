"""A MariaDB of these tests' own, a backend on it, and a schema that it provisioned."""

import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support import accounts, mariadb_servers
from tests.support.mariadb_servers import MariadbServer, customer
from worker.backends.mysql import Mysql
from worker.backends.mysql.names import identifier, literal, schema
from worker.backends.mysql.rights import ALL


@pytest.fixture(scope="session")
def server() -> Iterator[MariadbServer]:
    with mariadb_servers.serving() as made:
        yield made


@pytest.fixture
def backend(server: MariadbServer) -> Mysql:
    return Mysql(server.service_dsn, protected=frozenset({"control_db"}))


Make = Callable[[], dict[str, Any]]


@pytest.fixture
def make(backend: Mysql) -> Make:
    """Provisions a new schema at each call: its manifest, with `opens`, what opens it."""

    def provision() -> dict[str, Any]:
        plan = backend.plan(uuid.uuid4(), uuid.uuid4())
        return backend.provision(plan.manifest, plan.credentials) | {"opens": plan.credentials}

    return provision


@pytest.fixture
def provisioned(make: Make) -> dict[str, Any]:
    return make()


def say(manifest: dict[str, Any], *statements: str) -> Any:
    """Run statements as the customer; the session stays open."""
    opened = customer(manifest["opens"])
    with opened.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)
    return opened


def recorded(server: MariadbServer, manifest: dict[str, Any]) -> bool:
    """Whether the service's own schema has a record of the object."""
    generation = manifest["generation"]
    return bool(server.query(f"SELECT 1 FROM deprovisioner_service.objects WHERE generation = '{generation}'"))


def by_hand(server: MariadbServer, database: str, user: str, *, escaped: bool = True) -> dict[str, Any]:
    """A schema and a user that an administrator made, and that the service's account may manage; what to adopt."""
    on = f"{schema(database)}" if escaped else f"{identifier(database)}.*"
    server.query(
        f"CREATE DATABASE {identifier(database)}",
        f"CREATE USER {literal(user)} IDENTIFIED BY 'made-by-hand'",
        f"GRANT ALL ON {on} TO {literal(user)}",
        f"GRANT {', '.join(ALL)} ON {on} TO {accounts.NAME} WITH GRANT OPTION",
    )
    opens = {"database": database, "user": user, "password": "made-by-hand"}
    return {
        "database": database,
        "user": user,
        "generation": None,
        "server": None,
        "opens": opens | {"url": f"mysql://127.0.0.1:{server.port}"},
    }
