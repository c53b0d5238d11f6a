"""PostgreSQL's own traps in quarantine and teardown, each on a real server."""

import threading
import uuid
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from psycopg2 import extensions

from outbox.errors import Refused, Transient
from tests.support import accounts
from tests.support.sessions import reconnecting
from tests.support.witness import PgServer
from worker.backends import Absent, Different, Same
from worker.backends.postgres import Postgres, destroy, obstacles


@pytest.mark.parametrize("moment", [1, 2])
def test_identity_is_checked_again_in_each_transaction(
    backend: Postgres, pg: PgServer, provisioned: dict[str, Any], monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    """Another database takes the name before the connection limit, or before the rename: either must be undone."""
    honest = obstacles.end_sessions
    calls = 0

    def then_replace(*words: Any, **limits: Any) -> Any:
        nonlocal calls
        calls += 1
        left = honest(*words, **limits)
        if calls == moment:
            pg.query(f'DROP DATABASE "{provisioned["database"]}"')
            pg.query(f'CREATE DATABASE "{provisioned["database"]}" OWNER {accounts.NAME}')
        return left

    monkeypatch.setattr(obstacles, "end_sessions", then_replace)
    with pytest.raises(Refused):
        backend.teardown(provisioned, 1)
    assert pg.query(
        "SELECT datallowconn, datconnlimit FROM pg_database WHERE datname = %s", provisioned["database"]
    ) == [(True, -1)]
    assert f"zz_del_{provisioned['generation']}" not in pg.databases()


@pytest.mark.parametrize("step", ["end_sessions", "_drop_role"])
def test_a_role_that_is_replaced_before_its_teardown_is_untouched(
    backend: Postgres, pg: PgServer, provisioned: dict[str, Any], monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    role, neighbour = provisioned["role"], f"n_{uuid.uuid4().hex}"
    pg.query(f'CREATE DATABASE "{neighbour}" OWNER {accounts.NAME}')
    module = obstacles if step == "end_sessions" else destroy
    honest = getattr(module, step)

    def then_replace(*words: Any, **limits: Any) -> Any:
        monkeypatch.setattr(module, step, honest)
        pg.query(f'ALTER DATABASE "{provisioned["database"]}" OWNER TO postgres') if step == "end_sessions" else None
        pg.query(f'DROP OWNED BY "{role}"', database=provisioned["database"]) if step == "end_sessions" else None
        pg.query(f'DROP OWNED BY "{role}"')
        pg.query(f'DROP ROLE "{role}"')
        pg.query(f'CREATE ROLE "{role}" LOGIN')
        accounts.allow(pg, role)  # only its identity keeps the worker from it
        pg.query(f"COMMENT ON ROLE \"{role}\" IS 'deprovisioner gen={provisioned['generation']}'")
        pg.query(f'CREATE SCHEMA theirs AUTHORIZATION "{role}"', database=neighbour)
        return honest(*words, **limits)

    monkeypatch.setattr(module, step, then_replace)
    with pytest.raises(Refused):
        backend.teardown(provisioned, 1)
    assert pg.query("SELECT rolcanlogin FROM pg_roles WHERE rolname = %s", role) == [(True,)]
    owned = "SELECT nspowner::regrole::text FROM pg_namespace WHERE nspname = 'theirs'"
    assert pg.query(owned, database=neighbour) == [(role,)]


def test_a_stranger_that_takes_the_freed_name_of_a_dying_role_is_untouched(
    anywhere: tuple[Postgres, PgServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    backend, pg = anywhere
    plan = backend.plan(uuid.uuid4(), uuid.uuid4())
    manifest = backend.provision(plan.manifest, plan.credentials)
    role, honest = manifest["role"], destroy._disown

    def then_take_the_name(*words: Any) -> None:
        monkeypatch.setattr(destroy, "_disown", honest)
        pg.query(f'CREATE ROLE "{role}" LOGIN')
        pg.query(f'CREATE SCHEMA "{role}" AUTHORIZATION "{role}"')
        honest(*words)

    monkeypatch.setattr(destroy, "_disown", then_take_the_name)
    try:
        backend.teardown(manifest, 1)
        assert pg.query("SELECT oid FROM pg_roles WHERE oid = %s", manifest["role_oid"]) == []
        assert pg.query("SELECT nspowner::regrole::text FROM pg_namespace WHERE nspname = %s", role) == [(role,)]
        assert isinstance(backend.inspect(manifest), Different), "the name is a stranger's now"
    finally:
        pg.query(f'DROP SCHEMA IF EXISTS "{role}"')
        pg.query(f'DROP ROLE IF EXISTS "{role}"')


def test_a_teardown_that_died_after_the_role_s_rename_is_finished(
    anywhere: tuple[Postgres, PgServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    backend, pg = anywhere
    plan = backend.plan(uuid.uuid4(), uuid.uuid4())
    manifest = backend.provision(plan.manifest, plan.credentials)

    def die(*_: Any) -> None:
        raise Transient("died")

    with monkeypatch.context() as patch:
        patch.setattr(destroy, "_disown", die)
        with pytest.raises(Transient):
            backend.teardown(manifest, 1)
    assert f"zz_del_{manifest['generation']}" in pg.roles()
    assert isinstance(backend.inspect(manifest), Same), "the role is still there, under its dying name"
    backend.teardown(manifest, 2)
    assert isinstance(backend.inspect(manifest), Absent)
    assert pg.query("SELECT oid FROM pg_roles WHERE oid = %s", manifest["role_oid"]) == []


def test_no_session_can_come_when_sessions_are_ended_for_the_last_time(
    backend: Postgres, pg: PgServer, provisioned: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    honest, seen = obstacles.end_sessions, []

    def looked(*words: Any, **limits: Any) -> Any:
        seen.extend(
            pg.query(
                "SELECT rolcanlogin, datallowconn, datconnlimit FROM pg_roles, pg_database WHERE datname = %s"
                " AND rolname = %s",
                provisioned["database"],
                provisioned["role"],
            )
        )
        return honest(*words, **limits)

    monkeypatch.setattr(obstacles, "end_sessions", looked)
    backend.quarantine(provisioned)
    assert seen == [(True, True, -1), (False, False, -1)]


def test_a_quarantine_leaves_no_way_in(backend: Postgres, pg: PgServer, provisioned: dict[str, Any]) -> None:
    backend.quarantine(provisioned)
    assert pg.query("SELECT rolcanlogin FROM pg_roles WHERE rolname = %s", provisioned["role"]) == [(False,)]
    assert pg.query("SELECT datallowconn FROM pg_database WHERE oid = %s", provisioned["oid"]) == [(False,)]


def test_the_runbook_lets_a_person_inside_what_is_quarantined_and_the_drop_waits_for_them_to_leave(
    backend: Postgres, pg: PgServer, provisioned: dict[str, Any]
) -> None:
    backend.quarantine(provisioned)
    dying = f"zz_del_{provisioned['generation']}"
    part = (Path(__file__).parents[4] / "docs/runbook.md").read_text().partition("### `attempts_exhausted`")[2]
    statement = part.partition("```sql\n")[2].partition("```")[0]
    pg.query(statement.replace("zz_del_…", dying))
    with closing(psycopg2.connect(extensions.make_dsn(pg.dsn, dbname=dying))) as inside:
        inside.cursor().execute("SELECT 1")
        with pytest.raises(Transient, match=f"pid {inside.info.backend_pid} of 'postgres'"):
            backend.teardown(provisioned, 1)
    backend.teardown(provisioned, 2)
    assert isinstance(backend.inspect(provisioned), Absent)


def test_neighbours_whose_names_begin_alike_survive(
    backend: Postgres, pg: PgServer, provisioned: dict[str, Any]
) -> None:
    shorter, longer = provisioned["database"][:-4], provisioned["database"] + "_x"
    for name in (shorter, longer):
        pg.query(f'CREATE DATABASE "{name}" OWNER {accounts.NAME}')
    backend.teardown(provisioned, 1)
    assert {shorter, longer} <= pg.databases()


def test_an_interrupted_drop_is_finished(backend: Postgres, pg: PgServer, provisioned: dict[str, Any]) -> None:
    backend.quarantine(provisioned)
    # What a crash inside DROP DATABASE leaves behind.
    pg.query("UPDATE pg_database SET datconnlimit = -2 WHERE oid = %s", provisioned["oid"])
    assert isinstance(backend.inspect(provisioned), Same)
    backend.teardown(provisioned, 1)
    assert not pg.bears(provisioned)


def test_prepared_transactions_are_rolled_back(backend: Postgres, pg: PgServer, provisioned: dict[str, Any]) -> None:
    session = psycopg2.connect(provisioned["dsn"])
    session.tpc_begin(session.xid(1, provisioned["database"], "b"))
    session.cursor().execute("CREATE TABLE t (n int)")
    session.tpc_prepare()
    session.close()
    backend.teardown(provisioned, 1)
    assert not pg.bears(provisioned)


def test_a_replication_slot_does_not_keep_the_database_alive(
    backend: Postgres, pg: PgServer, provisioned: dict[str, Any]
) -> None:
    slot = f"s_{uuid.uuid4().hex}"
    pg.query("SELECT pg_create_logical_replication_slot(%s, 'test_decoding')", slot, database=provisioned["database"])
    backend.teardown(provisioned, 1)
    assert not pg.bears(provisioned)
    assert pg.query("SELECT 1 FROM pg_replication_slots WHERE slot_name = %s", slot) == []


def test_what_the_role_owns_elsewhere_is_handed_over_not_dropped(
    backend: Postgres, pg: PgServer, provisioned: dict[str, Any]
) -> None:
    neighbour = f"n_{uuid.uuid4().hex}"
    pg.query(f'CREATE DATABASE "{neighbour}" OWNER {accounts.NAME}')
    pg.query(f'GRANT CREATE, USAGE ON SCHEMA public TO "{provisioned["role"]}"', database=neighbour)
    pg.query(f'SET ROLE "{provisioned["role"]}"; CREATE TABLE shared AS SELECT 7 AS n', database=neighbour)
    backend.teardown(provisioned, 1)
    assert provisioned["role"] not in pg.roles(), "a role that survives is a working credential"
    assert pg.query("SELECT to_regclass('shared')::text", database=neighbour) == [("shared",)]
    assert pg.query("SELECT n FROM shared", database=neighbour) == [(7,)]


def test_clients_that_reconnect_at_once_do_not_keep_the_database_alive(
    superuser: Postgres, pg: PgServer, provisioned: dict[str, Any]
) -> None:
    # Only a superuser's account may end the sessions of roles that it did not make; see test_obstacles for the others.
    other = f"r_{uuid.uuid4().hex}"
    pg.query(f"CREATE ROLE {other} LOGIN PASSWORD 'p'")
    pg.query(f'GRANT CONNECT ON DATABASE "{provisioned["database"]}" TO {other}')
    dsn = pg.dsn.replace("postgres:secret", f"{other}:p").rsplit("/", 1)[0] + f"/{provisioned['database']}"
    with reconnecting(dsn, clients=8):
        superuser.teardown(provisioned, 1)
    assert not pg.bears(provisioned)


def test_workers_that_race_at_one_object_drop_it_once(
    backend: Postgres, pg: PgServer, provisioned: dict[str, Any]
) -> None:
    barrier, failures = threading.Barrier(4), []

    def tear() -> None:
        barrier.wait()
        try:
            backend.teardown(provisioned, 1)
        except (Refused, Transient) as error:
            failures.append(error)

    threads = [threading.Thread(target=tear) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert pg.drops_of(provisioned) == 1
    assert isinstance(backend.inspect(provisioned), Absent)
