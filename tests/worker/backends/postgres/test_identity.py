"""What is the resource's own on the server, and what only bears its name."""

import uuid
from typing import Any

import pytest

from outbox.errors import Refused
from tests.support.witness import PgServer
from worker.backends import Different, Same
from worker.backends.postgres import Postgres


def test_a_database_made_again_under_the_name_is_untouched(
    backend: Postgres, pg: PgServer, provisioned: dict[str, Any]
) -> None:
    pg.query(f'DROP DATABASE "{provisioned["database"]}"')
    pg.query(f'CREATE DATABASE "{provisioned["database"]}"')
    pg.query("CREATE TABLE precious AS SELECT 42 AS n", database=provisioned["database"])
    assert isinstance(backend.inspect(provisioned), Different)
    with pytest.raises(Refused):
        backend.teardown(provisioned, 1)
    assert pg.query("SELECT n FROM precious", database=provisioned["database"]) == [(42,)]
    assert provisioned["role"] in pg.roles(), "nothing is done while identity is in doubt"


def test_a_new_database_with_a_copied_comment_is_told_by_its_oid(
    backend: Postgres, pg: PgServer, provisioned: dict[str, Any]
) -> None:
    pg.query(f'DROP DATABASE "{provisioned["database"]}"')
    pg.query(f'CREATE DATABASE "{provisioned["database"]}"')
    pg.query(f"COMMENT ON DATABASE \"{provisioned['database']}\" IS 'deprovisioner gen={provisioned['generation']}'")
    with pytest.raises(Refused):
        backend.teardown(provisioned, 1)
    assert provisioned["database"] in pg.databases()


def test_a_role_made_again_under_the_name_is_untouched(
    backend: Postgres, pg: PgServer, provisioned: dict[str, Any]
) -> None:
    pg.query(f'DROP DATABASE "{provisioned["database"]}"')
    pg.query(f'DROP ROLE "{provisioned["role"]}"')
    pg.query(f'CREATE ROLE "{provisioned["role"]}" LOGIN')
    with pytest.raises(Refused):
        backend.teardown(provisioned, 1)
    assert provisioned["role"] in pg.roles()
    assert pg.query("SELECT rolcanlogin FROM pg_roles WHERE rolname = %s", provisioned["role"]) == [(True,)]


def test_a_role_without_its_database_is_not_absent(
    backend: Postgres, pg: PgServer, provisioned: dict[str, Any]
) -> None:
    pg.query(f'DROP DATABASE "{provisioned["database"]}"')
    assert isinstance(backend.inspect(provisioned), Same), "it is a working credential"
    backend.teardown(provisioned, 1)
    assert not pg.bears(provisioned)


def test_a_database_that_bears_another_generation_is_different(backend: Postgres, pg: PgServer) -> None:
    name, generation = f"old_{uuid.uuid4().hex}", uuid.uuid4()
    pg.query(f'CREATE DATABASE "{name}"')
    manifest = backend.adopt({"database": name, "generation": str(generation)}, generation)
    assert isinstance(backend.inspect(manifest), Same)
    assert isinstance(backend.inspect(manifest | {"generation": str(uuid.uuid4())}), Different)


def test_a_database_that_was_renamed_is_different_and_untouched(
    backend: Postgres, pg: PgServer, provisioned: dict[str, Any]
) -> None:
    moved = f"moved_{uuid.uuid4().hex}"
    pg.query(f'ALTER DATABASE "{provisioned["database"]}" RENAME TO "{moved}"')
    assert isinstance(backend.inspect(provisioned), Different)
    with pytest.raises(Refused, match="renamed"):
        backend.teardown(provisioned, 1)
    assert moved in pg.databases()


@pytest.mark.parametrize("name", ["postgres", "template0", "template1", "control_db"])
def test_protected_names_are_refused_whatever_the_manifest_says(backend: Postgres, pg: PgServer, name: str) -> None:
    manifest = {"database": name, "role": None, "oid": None, "generation": str(uuid.uuid4())}
    with pytest.raises(Refused, match="protected"):
        backend.teardown(manifest, 1)
    with pytest.raises(Refused, match="protected"):
        backend.adopt(manifest, uuid.uuid4())
    with pytest.raises(Refused, match="protected"):
        backend.quarantine(manifest)
