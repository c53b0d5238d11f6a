"""A database is planned, provisioned and adopted, on a real server."""

import uuid
from typing import Any

import psycopg2
import pytest

from outbox.errors import Refused
from tests.support import accounts
from tests.support.witness import PgServer
from worker.backends import Same
from worker.backends.postgres import Postgres


def test_names_are_whole_uuids_and_passwords_stay_out_of_the_log(backend: Postgres, pg: PgServer) -> None:
    resource = uuid.uuid4()
    plan = backend.plan(resource, uuid.uuid4())
    manifest = backend.provision(plan.manifest, plan.credentials)
    assert (manifest["database"], manifest["role"]) == (f"db_{resource.hex}", f"usr_{resource.hex}")
    assert (
        manifest["oid"]
        == pg.query("SELECT oid::bigint FROM pg_database WHERE datname = %s", manifest["database"])[0][0]
    )
    assert plan.credentials["password"] not in pg.log.read_text()
    backend.teardown(manifest, 1)


def test_a_provision_leaves_little_for_the_checkpoint_of_a_teardown(anywhere: tuple[Postgres, PgServer]) -> None:
    """A database of 7 MB is no WAL and no dirty pages, for which each DROP DATABASE would wait."""
    backend, pg = anywhere
    plan = backend.plan(uuid.uuid4(), uuid.uuid4())
    [(before,)] = pg.query("SELECT pg_current_wal_lsn()::text")
    manifest = backend.provision(plan.manifest, plan.credentials)
    [(written,)] = pg.query("SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), %s)", before)
    assert written < 2_000_000
    backend.teardown(manifest, 1)


def test_a_customer_cannot_enter_a_neighbours_database(backend: Postgres, provisioned: dict[str, Any]) -> None:
    other = backend.plan(uuid.uuid4(), uuid.uuid4())
    neighbour = backend.provision(other.manifest, other.credentials)
    with pytest.raises(psycopg2.OperationalError, match="permission denied"):
        psycopg2.connect(provisioned["dsn"].rsplit("/", 1)[0] + f"/{neighbour['database']}")
    backend.teardown(neighbour, 1)
    backend.teardown(provisioned, 1)


@pytest.mark.parametrize("what", ["role", "database"])
def test_provision_takes_over_nothing_that_existed_before(backend: Postgres, pg: PgServer, what: str) -> None:
    plan = backend.plan(uuid.uuid4(), uuid.uuid4())
    theirs = f" OWNER {accounts.NAME}" if what == "database" else ""
    pg.query(f'CREATE {what} "{plan.manifest[what]}"{theirs}')
    with pytest.raises(Refused, match="is not of this resource"):
        backend.provision(plan.manifest, plan.credentials)


class TestAdoption:
    @pytest.fixture
    def existing(self, pg: PgServer) -> dict[str, Any]:
        name = f"old_{uuid.uuid4().hex}"
        pg.query(f'CREATE ROLE "{name}" LOGIN')
        accounts.adoptable(pg, name, name)
        pg.query("CREATE TABLE kept AS SELECT 1 AS n", database=name)
        return {"database": name, "role": name}

    def test_an_existing_database_is_marked_and_can_then_be_torn_down(
        self, backend: Postgres, pg: PgServer, existing: dict[str, Any]
    ) -> None:
        generation = uuid.uuid4()
        manifest = backend.adopt(existing | {"generation": str(generation)}, generation)
        assert isinstance(backend.inspect(manifest), Same)
        assert backend.adopt(manifest, generation) == manifest, "adoption may be repeated"
        backend.teardown(manifest, 1)
        assert not pg.bears(manifest)

    def test_adoption_keeps_an_existing_comment(
        self, backend: Postgres, pg: PgServer, existing: dict[str, Any]
    ) -> None:
        pg.query(f"COMMENT ON DATABASE \"{existing['database']}\" IS 'billing, ask Ann'")
        generation = uuid.uuid4()
        backend.adopt(existing | {"generation": str(generation)}, generation)
        comment = pg.query(
            "SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = %s", existing["database"]
        )
        assert comment == [(f"billing, ask Ann deprovisioner gen={generation}",)]

    def test_what_belongs_to_another_resource_cannot_be_adopted(
        self, backend: Postgres, existing: dict[str, Any]
    ) -> None:
        backend.adopt(existing | {"generation": str(uuid.uuid4())}, uuid.uuid4())
        with pytest.raises(Refused, match="belongs to another"):
            backend.adopt(existing | {"generation": str(uuid.uuid4())}, uuid.uuid4())

    @pytest.mark.parametrize(
        "wrong", [{"oid": 1}, {"system_identifier": 1}, {"role": "no_such_role"}, {"database": "no_such_database"}]
    )
    def test_what_does_not_match_is_refused_and_unmarked(
        self, backend: Postgres, pg: PgServer, existing: dict[str, Any], wrong: dict[str, Any]
    ) -> None:
        with pytest.raises(Refused):
            backend.adopt(existing | wrong | {"generation": str(uuid.uuid4())}, uuid.uuid4())
        comments = pg.query(
            "SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = %s", existing["database"]
        )
        assert comments == [(None,)]

    def test_the_service_s_own_role_and_database_are_refused(self, pg: PgServer, existing: dict[str, Any]) -> None:
        name = f"home_{uuid.uuid4().hex}"
        pg.query(f"CREATE ROLE {name} LOGIN SUPERUSER PASSWORD 'p'")
        pg.query(f"CREATE DATABASE {name}")
        backend = Postgres(pg.dsn.replace("postgres:secret", f"{name}:p").replace("/postgres", f"/{name}"))
        pg.query(f"CREATE ROLE super_{name} SUPERUSER")
        pg.query(f"CREATE DATABASE tpl_{name} IS_TEMPLATE true")
        for wrong, why in (
            ({"database": name}, "itself works with"),
            ({"role": name}, "itself works with"),
            ({"role": f"super_{name}"}, "superuser"),
            ({"database": f"tpl_{name}"}, "template"),
        ):
            with pytest.raises(Refused, match=why):
                backend.adopt(existing | wrong | {"generation": str(uuid.uuid4())}, uuid.uuid4())
            with pytest.raises(Refused, match=why):
                backend.teardown(existing | wrong | {"generation": str(uuid.uuid4())}, 1)

    def test_a_role_of_postgresql_s_own_is_refused(self, backend: Postgres, existing: dict[str, Any]) -> None:
        with pytest.raises(Refused, match="PostgreSQL's own"):
            backend.adopt(existing | {"role": "pg_monitor", "generation": str(uuid.uuid4())}, uuid.uuid4())

    def test_a_role_made_superuser_or_a_database_made_template_is_not_torn_down(
        self, backend: Postgres, pg: PgServer, existing: dict[str, Any]
    ) -> None:
        generation = uuid.uuid4()
        manifest = backend.adopt(existing | {"generation": str(generation)}, generation)
        for change, back, why in (
            ('ALTER ROLE "{role}" SUPERUSER', 'ALTER ROLE "{role}" NOSUPERUSER', "superuser"),
            (
                'ALTER DATABASE "{database}" IS_TEMPLATE true',
                'ALTER DATABASE "{database}" IS_TEMPLATE false',
                "template",
            ),
        ):
            pg.query(change.format(**existing))
            with pytest.raises(Refused, match=why):
                backend.teardown(manifest, 1)
            pg.query(back.format(**existing))
        backend.teardown(manifest, 1)
        assert not pg.bears(manifest)

    def test_a_bystander_s_role_does_not_die_with_the_database(
        self, backend: Postgres, pg: PgServer, existing: dict[str, Any]
    ) -> None:
        bystander = f"by_{uuid.uuid4().hex}"
        pg.query(f"CREATE ROLE {bystander} LOGIN")
        pg.query(f"CREATE DATABASE {bystander} OWNER {bystander}")
        with pytest.raises(Refused, match="owns another database"):
            backend.adopt(existing | {"role": bystander, "generation": str(uuid.uuid4())}, uuid.uuid4())

    def test_a_refusal_does_not_reveal_another_resource_s_mark(
        self, backend: Postgres, existing: dict[str, Any]
    ) -> None:
        first = uuid.uuid4()
        backend.adopt(existing | {"generation": str(first)}, first)
        with pytest.raises(Refused) as refused:
            backend.adopt(existing | {"generation": str(uuid.uuid4())}, uuid.uuid4())
        assert str(first) not in str(refused.value)
