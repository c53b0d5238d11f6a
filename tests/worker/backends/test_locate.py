"""Objects whose server moved, on real servers: what is found again by its mark, and what is no match."""

import uuid
from typing import Any

import pytest

from tests.support.servers import Servers
from tests.support.witness import PgServer, RedisServer
from worker.backends import Absent, Different, Observation, Same
from worker.backends.postgres import Postgres
from worker.backends.redis import Redis
from worker.intake import Intake


def born(backend: Postgres | Redis) -> dict[str, Any]:
    plan = backend.plan(uuid.uuid4(), uuid.uuid4())
    return backend.provision(plan.manifest, plan.credentials)


def why(found: Observation) -> str:
    assert isinstance(found, Different), found
    return found.why


# -- PostgreSQL --------------------------------------------------------------------------------------------------------


@pytest.fixture
def pg(servers: Servers) -> PgServer:
    return servers.pg


@pytest.fixture
def postgres(pg: PgServer) -> Postgres:
    return Postgres(pg.service_dsn)


@pytest.fixture
def made(postgres: Postgres) -> dict[str, Any]:
    return born(postgres)


def elsewhere(manifest: dict[str, Any]) -> dict[str, Any]:
    """The manifest as it was on a server that is gone."""
    return manifest | {"system_identifier": 1, "oid": 2, "role_oid": 3}


def test_an_object_is_found_by_its_mark_whatever_its_numbers_were(postgres: Postgres, made: dict[str, Any]) -> None:
    assert isinstance(postgres.inspect(elsewhere(made)), Different)
    found = Intake(postgres).locate(elsewhere(made))
    assert isinstance(found, Same)
    assert found.seen["manifest"] == made
    postgres.quarantine(made)
    assert postgres.locate(elsewhere(made)).seen["manifest"] == made
    postgres.teardown(made, 1)
    gone = postgres.locate(elsewhere(made))
    assert isinstance(gone, Absent)
    assert gone.seen["manifest"] == made | {"oid": None, "role_oid": None}


def test_a_database_of_that_name_without_the_mark_differs(
    postgres: Postgres, pg: PgServer, made: dict[str, Any]
) -> None:
    pg.query(f"COMMENT ON DATABASE {made['database']} IS 'deprovisioner gen={uuid.uuid4()}'")
    assert "has the name of this resource's, and not its mark" in why(postgres.locate(elsewhere(made)))


def test_a_database_that_came_without_its_role_differs(postgres: Postgres, pg: PgServer, made: dict[str, Any]) -> None:
    pg.query(f"ALTER DATABASE {made['database']} OWNER TO postgres")
    for database in ("postgres", made["database"]):
        pg.query(f"DROP OWNED BY {made['role']}", database=database)
    pg.query(f"DROP ROLE {made['role']}")
    assert "no role bears the mark" in why(postgres.locate(elsewhere(made)))


def test_a_role_that_came_without_its_comment_differs(postgres: Postgres, pg: PgServer, made: dict[str, Any]) -> None:
    pg.query(f"COMMENT ON ROLE {made['role']} IS NULL")
    assert "not its mark" in why(postgres.locate(elsewhere(made)))


def test_two_databases_with_one_mark_differ(postgres: Postgres, pg: PgServer, made: dict[str, Any]) -> None:
    copy = f"copy_{uuid.uuid4().hex}"
    pg.query(f"CREATE DATABASE {copy}")
    pg.query(f"COMMENT ON DATABASE {copy} IS 'deprovisioner gen={made['generation']}'")
    assert "one is a copy" in why(postgres.locate(elsewhere(made)))
    pg.query(f"DROP DATABASE {copy}")


def test_a_database_that_a_person_renamed_differs(postgres: Postgres, pg: PgServer, made: dict[str, Any]) -> None:
    name = f"mine_{uuid.uuid4().hex}"
    pg.query(f"ALTER DATABASE {made['database']} RENAME TO {name}")
    assert "has another name than the manifest" in why(postgres.locate(elsewhere(made)))


# -- Redis -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def redis(servers: Servers) -> Redis:
    return Redis(servers.redis.service_dsn)


@pytest.fixture
def server(servers: Servers) -> RedisServer:
    return servers.redis


@pytest.fixture
def namespace(redis: Redis) -> dict[str, Any]:
    return born(redis)


def test_a_namespace_is_found_by_its_marks_whatever_the_server_was(redis: Redis, namespace: dict[str, Any]) -> None:
    old = namespace | {"server": str(uuid.uuid4())}
    assert isinstance(redis.inspect(old), Different)
    assert Intake(redis).locate(old).seen["manifest"] == namespace
    redis.teardown(namespace, 1)
    gone = redis.locate(old)
    assert isinstance(gone, Absent)
    assert gone.seen["manifest"] == namespace


def test_a_namespace_of_which_only_a_part_came_differs(
    redis: Redis, server: RedisServer, namespace: dict[str, Any]
) -> None:
    key = f"deprovisioner:gen:{namespace['prefix']}"
    server.client.delete(key)
    assert "the generation key" in why(redis.locate(namespace))
    server.client.set(key, namespace["generation"])
    server.client.execute_command("ACL", "DELUSER", namespace["user"])
    assert "is missing" in why(redis.locate(namespace))


def test_a_second_user_with_the_same_mark_is_a_copy(
    redis: Redis, server: RedisServer, namespace: dict[str, Any]
) -> None:
    other = f"copy_{uuid.uuid4().hex}"
    server.client.execute_command("ACL", "SETUSER", other, f"&deprovisioner:gen:{namespace['generation']}")
    assert "a copy" in why(redis.locate(namespace))
    server.client.execute_command("ACL", "DELUSER", other)


def test_a_server_with_no_identity_or_with_two_is_no_place_to_rebind_to(
    redis: Redis, server: RedisServer, namespace: dict[str, Any]
) -> None:
    other = f"deprovisioner:server:{uuid.uuid4()}"
    server.client.execute_command("ACL", "SETUSER", other, "reset")
    assert "an aclfile was copied" in why(redis.locate(namespace))
    server.client.execute_command("ACL", "DELUSER", other)
    own = f"deprovisioner:server:{namespace['server']}"
    server.client.execute_command("ACL", "DELUSER", own)
    try:
        assert "ACL SETUSER deprovisioner:server:" in why(redis.locate(namespace))
    finally:
        server.client.execute_command("ACL", "SETUSER", own, "reset")
