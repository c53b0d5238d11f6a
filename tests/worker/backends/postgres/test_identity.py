"""What is the resource's own on the server, and what only bears its name."""

import re
import uuid
from typing import Any

import pytest

from outbox.errors import Refused
from tests.support import accounts
from tests.support.witness import PgServer
from worker.backends import Different, Same
from worker.backends.postgres import Postgres


def test_a_database_made_again_under_the_name_is_untouched(
    backend: Postgres, pg: PgServer, provisioned: dict[str, Any]
) -> None:
    pg.query(f'DROP DATABASE "{provisioned["database"]}"')
    pg.query(f'CREATE DATABASE "{provisioned["database"]}" OWNER {accounts.NAME}')
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
    pg.query(f'CREATE DATABASE "{provisioned["database"]}" OWNER {accounts.NAME}')
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
    accounts.allow(pg, provisioned["role"])
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
    accounts.adoptable(pg, name)
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


_RENAMED = ['ALTER DATABASE "{database}" RENAME TO "moved_{generation}"']
_RECOMMENTED = ["COMMENT ON DATABASE \"moved_{generation}\" IS 'mine'"]
_ROLE_RENAMED = ['ALTER ROLE "{role}" RENAME TO "r_{generation}"']
_NO_DATABASE = ['DROP DATABASE "{database}"']
_NO_ROLE = ['DROP OWNED BY "{role}"', 'DROP ROLE "{role}"']
# Within the account's reach: only identity keeps it from them.
_COPY = f'CREATE DATABASE "copy_{{generation}}" OWNER {accounts.NAME}'
_ROLE_AGAIN = ['CREATE ROLE "{role}" LOGIN', f'GRANT "{{role}}" TO {accounts.NAME} WITH ADMIN OPTION']
_MARKED = "IS 'deprovisioner gen={generation}'"


@pytest.mark.parametrize(
    ("by_hand", "says"),
    [
        (_RENAMED + _RECOMMENTED, "has the recorded OID"),
        (_RENAMED + _RECOMMENTED + _ROLE_RENAMED, "has the recorded OID"),
        (_NO_DATABASE + _ROLE_RENAMED, "the role was renamed to"),
        (_NO_DATABASE + _ROLE_RENAMED + ["COMMENT ON ROLE \"r_{generation}\" IS 'mine'"], "has the recorded OID"),
        (
            _NO_DATABASE + _NO_ROLE + _ROLE_AGAIN + ['COMMENT ON ROLE "{role}" ' + _MARKED],
            "role .* bears this resource's mark, and is not the one",
        ),
        (
            _NO_DATABASE + _NO_ROLE + [_COPY, 'COMMENT ON DATABASE "copy_{generation}" ' + _MARKED],
            "database .* bears this resource's mark, and is not the one",
        ),
        (
            [_COPY, 'COMMENT ON DATABASE "copy_{generation}" ' + _MARKED],
            "database .* bears this resource's mark, and is not the one",
        ),
    ],
)
@pytest.mark.parametrize("anywhere", ["18-service", "15-service"], indirect=True)
def test_a_part_that_matches_is_never_absent_nor_touched(
    anywhere: tuple[Postgres, PgServer], by_hand: list[str], says: str
) -> None:
    backend, pg = anywhere
    plan = backend.plan(uuid.uuid4(), uuid.uuid4())
    provisioned = backend.provision(plan.manifest, plan.credentials)
    for statement in by_hand:
        pg.query(statement.format(**provisioned))
    before = pg.databases(), pg.query("SELECT oid, rolname, rolcanlogin FROM pg_roles ORDER BY oid")
    seen = backend.inspect(provisioned)
    assert isinstance(seen, Different)
    assert re.search(says, seen.why)
    assert re.search("find (its owner|the owner of the copy)", seen.why), "before anything is made to fit"
    with pytest.raises(Refused, match=says):
        backend.teardown(provisioned, 1)
    with pytest.raises(Refused):
        backend.release(provisioned)
    assert (pg.databases(), pg.query("SELECT oid, rolname, rolcanlogin FROM pg_roles ORDER BY oid")) == before


def test_a_manifest_without_the_role_s_oid_is_completed(
    backend: Postgres, pg: PgServer, provisioned: dict[str, Any]
) -> None:
    old = {key: value for key, value in provisioned.items() if key != "role_oid"}
    assert pg.query("SELECT oid FROM pg_roles WHERE rolname = %s", provisioned["role"]) == [(provisioned["role_oid"],)]
    seen = backend.inspect(old)
    assert isinstance(seen, Same)
    assert seen.seen["completes"] == {"role_oid": provisioned["role_oid"]}
    whole = backend.inspect(provisioned)
    assert isinstance(whole, Same)
    assert "completes" not in whole.seen


@pytest.mark.parametrize("name", ["postgres", "template0", "template1", "control_db"])
def test_protected_names_are_refused_whatever_the_manifest_says(backend: Postgres, pg: PgServer, name: str) -> None:
    manifest = {"database": name, "role": None, "oid": None, "generation": str(uuid.uuid4())}
    with pytest.raises(Refused, match="protected"):
        backend.teardown(manifest, 1)
    with pytest.raises(Refused, match="protected"):
        backend.adopt(manifest, uuid.uuid4())
    with pytest.raises(Refused, match="protected"):
        backend.quarantine(manifest)
