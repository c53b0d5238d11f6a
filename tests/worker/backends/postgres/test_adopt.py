"""What an adoption would refuse is told beforehand, in full; and a release takes the mark off, and nothing else."""

import uuid
from typing import Any

import pytest

from outbox.errors import Refused
from tests.support import accounts
from tests.support.witness import PgServer
from worker.backends import Absent, Different, Same
from worker.backends.fleet import adoptable, unmark
from worker.backends.postgres import Postgres


@pytest.fixture
def existing(pg: PgServer) -> dict[str, Any]:
    name = f"old_{uuid.uuid4().hex}"
    pg.query(f'CREATE ROLE "{name}" LOGIN')
    accounts.adoptable(pg, name, name)
    return {"database": name, "role": name}


def comments(pg: PgServer, names: dict[str, Any]) -> list[tuple[Any, ...]]:
    return pg.query(
        """SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = %s UNION ALL
           SELECT shobj_description(oid, 'pg_authid') FROM pg_roles WHERE rolname = %s""",
        names["database"],
        names["role"],
    )


def told(backend: Postgres, manifest: dict[str, Any]) -> list[str]:
    return [f"{one.code}: {one.what}" for one in adoptable(backend, manifest)]


def test_what_can_be_adopted_has_no_finding_and_is_left_as_it_is(
    backend: Postgres, pg: PgServer, existing: dict[str, Any]
) -> None:
    assert adoptable(backend, existing) == []
    assert comments(pg, existing) == [(None,), (None,)]
    generation = uuid.uuid4()
    manifest = backend.adopt(existing, generation)
    assert adoptable(backend, manifest) == [], "it may be adopted again by its own mark"
    assert (
        told(backend, existing)
        == [
            f"refused: database {existing['database']!r} belongs to another resource already",
            f"refused: role {existing['role']!r} belongs to another resource already",
        ][:1]
    )


def test_each_reason_is_told_and_not_the_first_alone(backend: Postgres, pg: PgServer, existing: dict[str, Any]) -> None:
    name = f"by_{uuid.uuid4().hex}"
    pg.query(f"CREATE ROLE {name} LOGIN SUPERUSER")
    pg.query(f"CREATE DATABASE {name} OWNER {name} IS_TEMPLATE true")
    try:
        wrong = told(backend, {"database": f"{existing['database']}x", "role": name})
        assert [words.split("(")[0] for words in wrong] == [
            f"refused: role {name!r} is a superuser, so not a customer's",
            f"refused: role {name!r} owns another database too: {name!r}",
            f"not_there: there is no database '{existing['database']}x' to adopt",
            f"refused: role {name!r} has rights or objects in other databases too ",
        ]
        assert told(backend, existing | {"system_identifier": 1})[0].startswith("refused: this server is")
        assert len(told(backend, existing | {"system_identifier": 1})) == 1
        assert told(backend, existing | {"role": "no_such_role"})[0].startswith("not_there: there is no role")
        assert "protected" in told(backend, {"database": "postgres"})[0]
    finally:
        pg.query(f"ALTER DATABASE {name} IS_TEMPLATE false")
        pg.query(f"DROP DATABASE {name}")
        pg.query(f"DROP ROLE {name}")


def test_a_missing_right_comes_with_the_statement_that_grants_it(backend: Postgres, pg: PgServer) -> None:
    name = f"theirs_{uuid.uuid4().hex}"
    pg.query(f"CREATE ROLE {name} LOGIN")
    pg.query(f"CREATE DATABASE {name} OWNER {name}")
    wanted = {"database": name, "role": name}
    (finding,) = adoptable(backend, wanted)
    assert finding.code == "right_missing"
    assert finding.mend.startswith(f'GRANT "{name}" TO ')
    pg.query(finding.mend)
    assert adoptable(backend, wanted) == []


@pytest.mark.parametrize("what", ["a table in it", "a right on it"])
def test_a_role_that_another_database_needs_does_not_die_with_this_one(
    backend: Postgres, pg: PgServer, existing: dict[str, Any], what: str
) -> None:
    """One role of several databases: a teardown of one would cut its application off the others."""
    other = f"other_{uuid.uuid4().hex}"
    pg.query(f"CREATE DATABASE {other}")
    if what == "a table in it":
        pg.query(f"CREATE TABLE t (); GRANT SELECT ON t TO {existing['role']}", database=other)
    else:
        pg.query(f"GRANT CONNECT ON DATABASE {other} TO {existing['role']}")
    with pytest.raises(Refused, match=f"has rights or objects in other databases too \\('{other}'\\)"):
        backend.adopt(existing, uuid.uuid4())
    assert comments(pg, existing) == [(None,), (None,)]
    generation = uuid.uuid4()
    alone = backend.adopt({"database": existing["database"]}, generation)
    backend.teardown(alone, 1)
    assert existing["role"] in pg.roles()
    pg.query(f"DROP DATABASE {other}")
    pg.query(f"DROP ROLE {existing['role']}")


def test_one_of_several_roles_of_a_database_dies_with_it_and_the_others_stay(
    backend: Postgres, pg: PgServer, existing: dict[str, Any]
) -> None:
    reader = f"reader_{uuid.uuid4().hex}"
    pg.query(f"CREATE ROLE {reader} LOGIN")
    pg.query(f"CREATE TABLE t (); GRANT SELECT ON t TO {reader}", database=existing["database"])
    manifest = backend.adopt(existing, uuid.uuid4())
    with pytest.raises(Refused, match="belongs to another resource already"):
        backend.adopt({"database": existing["database"], "role": reader}, uuid.uuid4())
    backend.teardown(manifest, 1)
    assert reader in pg.roles()
    assert existing["role"] not in pg.roles()
    pg.query(f"DROP ROLE {reader}")


@pytest.mark.parametrize("before", [None, "billing, ask Ann", "ends with a blank "])
def test_a_release_leaves_the_comments_as_they_were(
    backend: Postgres, pg: PgServer, existing: dict[str, Any], before: str | None
) -> None:
    if before:
        pg.query(f"COMMENT ON DATABASE {existing['database']} IS '{before}'")
    manifest = backend.adopt(existing, uuid.uuid4())
    assert isinstance(backend.inspect(manifest), Same)
    done = unmark(backend, manifest)
    assert done == {"unmarked": [f"database {existing['database']}", f"role {existing['role']}"]}
    assert comments(pg, existing) == [(before,), (None,)]
    assert isinstance(backend.inspect(manifest), Different)
    assert unmark(backend, manifest) == {"unmarked": []}, "it may be repeated"
    assert adoptable(backend, existing) == []


def test_a_release_takes_no_mark_off_what_is_not_the_manifests(
    backend: Postgres, pg: PgServer, existing: dict[str, Any]
) -> None:
    manifest = backend.adopt(existing, uuid.uuid4())
    with pytest.raises(Refused, match="wrong server"):
        unmark(backend, manifest | {"system_identifier": 1})
    with pytest.raises(Refused, match="bears this resource's mark, and is not"):
        unmark(backend, manifest | {"oid": 1})
    pg.query(f"ALTER DATABASE {existing['database']} RENAME TO moved_{existing['database'][4:]}")
    with pytest.raises(Refused, match="renamed, or is a copy"):
        unmark(backend, manifest)
    pg.query(f"ALTER DATABASE moved_{existing['database'][4:]} RENAME TO {existing['database']}")
    backend.quarantine(manifest)
    with pytest.raises(Refused, match="in quarantine"):
        unmark(backend, manifest)
    backend.teardown(manifest, 1)
    assert isinstance(backend.inspect(manifest), Absent)
    assert unmark(backend, manifest) == {"unmarked": []}
