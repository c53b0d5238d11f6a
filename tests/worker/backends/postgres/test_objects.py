"""What bears a mark on a PostgreSQL server: told once, whole or with what contradicts it, and never cut short."""

import tracemalloc
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from outbox.errors import BackendError, Transient, Unavailable
from outbox.kinds.postgres import KIND
from outbox.memory import Memory
from tests.support import accounts
from tests.support.witness import PgServer
from worker.backends import IN_QUARANTINE, MarkedObject, mark, remember
from worker.backends.postgres import Postgres, objects

Anywhere = tuple[Postgres, PgServer]


# The session of a reading between two pages.
READER = "FROM pg_stat_activity WHERE query LIKE 'FETCH%marked%'"


def made(backend: Postgres) -> dict[str, Any]:
    plan = backend.plan(uuid.uuid4(), uuid.uuid4())
    return backend.provision(plan.manifest, plan.credentials)


def told(backend: Postgres, generation: str) -> list[MarkedObject]:
    return [one for one in backend.objects() if one.generation == generation]


def the_one(backend: Postgres, generation: object) -> MarkedObject:
    (one,) = told(backend, str(generation))
    return one


def test_a_database_and_its_role_are_one_object_for_every_account(pg: PgServer, backend: Postgres) -> None:
    """Also for the account of another installation: a mark does not say whose it is."""
    manifest = made(backend)
    other = Postgres(accounts.fresh(pg, f"other_{uuid.uuid4().hex}"))
    for reader in (backend, other):
        one = the_one(reader, manifest["generation"])
        assert one.names == manifest == KIND.check(one.names)
        assert one.resource_id == uuid.UUID(manifest["database"].removeprefix("db_"))
        assert (one.quarantined, one.contradictory, one.why) == (False, False, "")
    backend.teardown(manifest, 1)
    assert told(other, manifest["generation"]) == []


def test_what_bears_no_mark_is_not_told(backend: Postgres, pg: PgServer) -> None:
    name = f"plain_{uuid.uuid4().hex}"
    pg.query(f'CREATE ROLE "{name}"')
    accounts.adoptable(pg, name, name)
    pg.query(f"COMMENT ON DATABASE \"{name}\" IS 'made by hand; deprovisioner has nothing to do with it'")
    pg.query(f'CREATE ROLE "zz_del_{name}"')
    remember(backend, Memory(uuid.uuid4(), 1, 1, "aa"))
    shown = [part for one in backend.objects() for part in one.parts]
    assert not [part for part in shown if name in part or accounts.NAME in part or "template" in part]


def test_an_adopted_object_is_told_with_its_names_and_without_an_id(backend: Postgres, pg: PgServer) -> None:
    name, generation = f"old_{uuid.uuid4().hex}", uuid.uuid4()
    accounts.adoptable(pg, name)
    pg.query(f"COMMENT ON DATABASE \"{name}\" IS 'billing, ask Ann'")
    manifest = backend.adopt({"database": name, "generation": str(generation)}, generation)
    one = the_one(backend, generation)
    assert (one.names, one.resource_id, one.why) == (manifest, None, "")


def test_a_lost_row_s_object_is_adopted_again_by_its_mark_and_by_no_other(anywhere: Anywhere) -> None:
    backend, pg = anywhere
    manifest = made(backend)
    names = the_one(backend, manifest["generation"]).names
    before = pg.query("SELECT * FROM pg_shdescription ORDER BY 1, 2")
    assert backend.adopt(names, uuid.UUID(manifest["generation"])) == manifest
    stranger = uuid.uuid4()
    with pytest.raises(BackendError, match="belongs to another resource"):
        backend.adopt(names | {"generation": str(stranger)}, stranger)
    assert pg.query("SELECT * FROM pg_shdescription ORDER BY 1, 2") == before
    backend.teardown(names, 1)
    assert not pg.bears(manifest)


@pytest.mark.parametrize("closed", ["whole", "the role alone", "the database alone"])
def test_what_is_in_quarantine_is_told_and_not_adopted_until_it_is_released(anywhere: Anywhere, closed: str) -> None:
    backend, pg = anywhere
    manifest = made(backend)
    backend.quarantine(manifest)
    name, dying = manifest["database"], f"zz_del_{manifest['generation']}"
    if closed != "whole":  # what a worker leaves that dies between its transactions, or whose role is locked by others
        pg.query(f'ALTER DATABASE "{dying}" RENAME TO "{name}"')
    if closed == "the database alone":
        pg.query(f'ALTER ROLE "{manifest["role"]}" LOGIN')
        pg.query(f"COMMENT ON ROLE \"{manifest['role']}\" IS '{mark(manifest['generation'])}'")
    if closed == "the role alone":
        pg.query(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')
        pg.query(f"COMMENT ON DATABASE \"{name}\" IS '{mark(manifest['generation'])}'")
    one = the_one(backend, manifest["generation"])
    assert (one.names, one.quarantined, one.contradictory, one.why) == (manifest, True, False, IN_QUARANTINE)
    with pytest.raises(BackendError, match="is in quarantine"):
        backend.adopt(one.names, uuid.UUID(one.generation))
    assert the_one(backend, manifest["generation"]) == one, "nothing was opened"
    backend.release(one.names)
    one = the_one(backend, manifest["generation"])
    assert (one.names, one.quarantined, one.why) == (manifest, False, "")
    assert backend.adopt(one.names, uuid.UUID(one.generation)) == manifest
    backend.teardown(manifest, 1)


def test_an_adopted_database_in_quarantine_has_lost_its_name(backend: Postgres, pg: PgServer) -> None:
    name, generation = f"old_{uuid.uuid4().hex}", uuid.uuid4()
    accounts.adoptable(pg, name)
    manifest = backend.adopt({"database": name, "generation": str(generation)}, generation)
    backend.quarantine(manifest)
    one = the_one(backend, generation)
    assert one.names == manifest | {"database": None}
    assert (one.quarantined, one.why) == (True, IN_QUARANTINE)
    with pytest.raises(BackendError, match="is in quarantine"):
        backend.adopt(manifest, generation)
    backend.teardown(manifest, 1)


# By hand: what a worker that dies leaves, and what people do to marks. What is told then; {..} is of the manifest.
STATES = {
    "a role alone": (['DROP DATABASE "{database}"'], False, "no database bears its mark"),
    "a role in destruction": (
        ['DROP DATABASE "{database}"', 'ALTER ROLE "{role}" RENAME TO "zz_del_{generation}"'],
        False,
        "no database bears its mark",
    ),
    "a database alone": (['COMMENT ON ROLE "{role}" IS NULL'], False, "no role bears its mark"),
    "an unfinished database": (
        ['ALTER DATABASE "{database}" RENAME TO "zz_new_{generation}"'],
        False,
        "its provision was not finished",
    ),
    "an unfinished database without its comment": (
        [
            'ALTER DATABASE "{database}" RENAME TO "zz_new_{generation}"',
            'COMMENT ON DATABASE "zz_new_{generation}" IS NULL',
        ],
        False,
        "its provision was not finished",
    ),
    "closed without a note": (['ALTER ROLE "{role}" NOLOGIN'], False, "is closed"),
    "a DROP that died": (
        [
            'ALTER DATABASE "{database}" RENAME TO "zz_del_{generation}"',
            "UPDATE pg_database SET datconnlimit = -2 WHERE datname = 'zz_del_{generation}'",
        ],
        False,
        "DROP DATABASE was begun",
    ),
    "a copied role": (
        [
            'CREATE ROLE "copy_{generation}"',
            "COMMENT ON ROLE \"copy_{generation}\" IS 'deprovisioner gen={generation}'",
        ],
        True,
        "several roles bear this mark",
    ),
    "a copied database": (
        [
            'CREATE DATABASE "copy_{generation}"',
            "COMMENT ON DATABASE \"copy_{generation}\" IS 'deprovisioner gen={generation}'",
        ],
        True,
        "several databases bear this mark",
    ),
    "two marks in one comment": (
        ["COMMENT ON ROLE \"{role}\" IS 'deprovisioner gen=x deprovisioner gen={generation}'"],
        True,
        "more than one mark",
    ),
    "another's passing name": (
        ['ALTER DATABASE "{database}" RENAME TO "zz_del_{other}"'],
        True,
        "a name of another generation",
    ),
    "a passing name without a mark": (
        [
            'ALTER DATABASE "{database}" RENAME TO "zz_del_{generation}"',
            'COMMENT ON DATABASE "zz_del_{generation}" IS NULL',
        ],
        True,
        "a name that only deprovisioner gives",
    ),
}


@pytest.mark.parametrize("state", STATES)
def test_what_is_not_whole_is_told_as_such(anywhere: Anywhere, state: str) -> None:
    backend, pg = anywhere
    manifest = made(backend)
    statements, contradictory, why = STATES[state]
    for statement in statements:
        pg.query(statement.format(**manifest, other=uuid.uuid4()))
    one = the_one(backend, manifest["generation"])
    assert (one.contradictory, one.quarantined) == (contradictory, "passing name without" in state)
    assert why in one.why
    assert (one.names["oid"], one.names["role_oid"]) == (
        None if state in ("a role alone", "a role in destruction", "a copied database") else manifest["oid"],
        None if state in ("a database alone", "a copied role") else manifest["role_oid"],
    )
    assert len(one.parts) == 2 + state.startswith("a copied") - ("alone" in state or state == "a role in destruction")


@pytest.mark.parametrize(
    "comment",
    [
        "deprovisioner gen=",
        "deprovisioner gen=7",
        "deprovisioner gen={upper}",
        "deprovisioner gen={generation} and more",
        "x" * 200_000 + "deprovisioner gen={generation}\n",
    ],
    ids=["nothing", "no UUID", "upper case", "words behind it", "a long one"],
)
def test_a_mark_of_another_form_is_told_alone_and_joins_no_object(
    backend: Postgres, pg: PgServer, comment: str
) -> None:
    manifest = made(backend)
    before = [one.parts for one in backend.objects()]
    wrong = comment.format(generation=manifest["generation"], upper=manifest["generation"].upper())
    whose = {kind: f'{kind} "{manifest[kind]}"' for kind in ("database", "role")}
    for one in whose.values():
        pg.query(f"COMMENT ON {one} IS %s", wrong)
    found = [one for one in backend.objects() if one.parts not in before]
    assert sorted(one.parts for one in found) == [
        (f"database {manifest['database']!r} (OID {manifest['oid']})",),
        (f"role {manifest['role']!r} (OID {manifest['role_oid']})",),
    ]
    assert all(one.contradictory and "does not end with one as we write it" in one.why for one in found)
    assert all(len(one.generation) <= 100 for one in found)
    for one in whose.values():
        pg.query(f"COMMENT ON {one} IS %s", mark(manifest["generation"]))
    backend.teardown(manifest, 1)


def test_a_snapshot_s_copy_is_told_as_one(backend: Postgres, pg: PgServer) -> None:
    generation = uuid.uuid4()
    scratch = uuid.uuid5(generation, "scratch")
    pg.query(f'CREATE ROLE "zz_scratch_{generation}"')
    pg.query(f"COMMENT ON ROLE \"zz_scratch_{generation}\" IS '{mark(str(scratch))}'")
    one = the_one(backend, scratch)
    assert (one.contradictory, str(generation) in one.why) == (False, True)


def test_a_reading_that_is_broken_off_raises_and_looks_never_complete(
    backend: Postgres, pg: PgServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifests = [made(backend) for _ in range(4)]
    monkeypatch.setattr(objects, "PAGE", 2)
    reading = backend.objects()
    next(reading)
    pg.query(f"SELECT pg_terminate_backend(pid) {READER}")
    with pytest.raises((Unavailable, Transient)):
        list(reading)
    for manifest in manifests:
        backend.teardown(manifest, 1)


def test_a_reading_sees_one_moment_and_keeps_no_snapshot(
    backend: Postgres, pg: PgServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is quarantined, renamed and made while the answer is fetched changes nothing in it."""
    manifests = [made(backend) for _ in range(4)]
    expected = {one.generation for one in backend.objects()}
    monkeypatch.setattr(objects, "PAGE", 2)
    reading = backend.objects()
    seen = [next(reading).generation]
    assert pg.query(f"SELECT backend_xmin {READER}") == [(None,)], "a slow reader holds back no VACUUM"
    for manifest in manifests:
        backend.quarantine(manifest)
    late = made(backend)
    seen += [one.generation for one in reading]
    assert sorted(seen) == sorted(expected)
    for manifest in [*manifests, late]:
        backend.teardown(manifest, 1)


@pytest.fixture
def three_thousand(pg: PgServer) -> Iterator[set[str]]:
    """Roles with marks; their generations."""
    name = f"many_{uuid.uuid4().hex[:8]}"
    pg.query(
        f"""
        DO $$ DECLARE role text; BEGIN
            FOR n IN 1..3000 LOOP
                role := '{name}_' || n;
                EXECUTE format('CREATE ROLE %I', role);
                EXECUTE format('COMMENT ON ROLE %I IS %L', role, 'deprovisioner gen=' || gen_random_uuid());
            END LOOP; END $$"""
    )
    found = f"FROM pg_roles WHERE rolname LIKE '{name}%'"
    yield {one for (one,) in pg.query(f"SELECT right(shobj_description(oid, 'pg_authid'), 36) {found}")}
    pg.query(
        f"DO $$ DECLARE r text; BEGIN FOR r IN SELECT rolname {found} LOOP EXECUTE 'DROP ROLE ' || r; END LOOP; END $$"
    )


def test_three_thousand_marks_are_read_in_constant_memory(backend: Postgres, three_thousand: set[str]) -> None:
    next(backend.objects())  # what is loaded once
    missing = set(three_thousand)
    tracemalloc.start()
    for one in backend.objects():
        missing.discard(one.generation)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert missing == set()
    assert peak < 500_000, "one object at a time, not 3,000"
