"""PostgreSQL's own traps, each on a real server."""

import os
import signal
import threading
import uuid
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from psycopg2 import extensions

from outbox.errors import Refused, Transient, Unavailable
from tests.support.servers import Servers
from tests.support.witness import PgServer, eventually
from worker.backends import Absent, Different, Same, postgres
from worker.backends.postgres import Postgres


@pytest.fixture
def pg(servers: Servers) -> PgServer:
    return servers.pg


@pytest.fixture
def backend(pg: PgServer) -> Postgres:
    return Postgres(pg.dsn, protected=frozenset({"control_db"}))


@pytest.fixture
def born(backend: Postgres) -> dict[str, Any]:
    plan = backend.plan(uuid.uuid4(), uuid.uuid4())
    return backend.provision(plan.manifest, plan.credentials) | {"dsn": plan.credentials["dsn"]}


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


def test_a_customer_cannot_enter_a_neighbours_database(backend: Postgres, born: dict[str, Any]) -> None:
    other = backend.plan(uuid.uuid4(), uuid.uuid4())
    neighbour = backend.provision(other.manifest, other.credentials)
    with pytest.raises(psycopg2.OperationalError, match="permission denied"):
        psycopg2.connect(born["dsn"].rsplit("/", 1)[0] + f"/{neighbour['database']}")
    backend.teardown(neighbour, 1)
    backend.teardown(born, 1)


def test_a_database_made_again_under_the_name_is_untouched(
    backend: Postgres, pg: PgServer, born: dict[str, Any]
) -> None:
    pg.query(f'DROP DATABASE "{born["database"]}"')
    pg.query(f'CREATE DATABASE "{born["database"]}"')
    pg.query("CREATE TABLE precious AS SELECT 42 AS n", database=born["database"])
    assert isinstance(backend.inspect(born), Different)
    with pytest.raises(Refused):
        backend.teardown(born, 1)
    assert pg.query("SELECT n FROM precious", database=born["database"]) == [(42,)]
    assert born["role"] in pg.roles(), "nothing at all is done where identity is in doubt"


def test_a_newcomer_that_copies_the_comment_is_still_another_oid(
    backend: Postgres, pg: PgServer, born: dict[str, Any]
) -> None:
    pg.query(f'DROP DATABASE "{born["database"]}"')
    pg.query(f'CREATE DATABASE "{born["database"]}"')
    pg.query(f"COMMENT ON DATABASE \"{born['database']}\" IS 'deprovisioner gen={born['generation']}'")
    with pytest.raises(Refused):
        backend.teardown(born, 1)
    assert born["database"] in pg.databases()


@pytest.mark.parametrize("moment", [1, 2])
def test_identity_is_checked_again_in_each_transaction(
    backend: Postgres, pg: PgServer, born: dict[str, Any], monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    """The name changes hands before the connection limit, or before the rename: either must be undone."""
    honest = Postgres._end_sessions
    calls = 0

    def meanwhile(self: Postgres, *words: Any) -> None:
        nonlocal calls
        calls += 1
        honest(self, *words)
        if calls == moment:
            pg.query(f'DROP DATABASE "{born["database"]}"')
            pg.query(f'CREATE DATABASE "{born["database"]}"')

    monkeypatch.setattr(Postgres, "_end_sessions", meanwhile)
    with pytest.raises(Refused):
        backend.teardown(born, 1)
    assert pg.query("SELECT datallowconn, datconnlimit FROM pg_database WHERE datname = %s", born["database"]) == [
        (True, -1)
    ]
    assert f"zz_del_{born['generation']}" not in pg.databases()


def test_a_role_made_again_under_the_name_is_untouched(backend: Postgres, pg: PgServer, born: dict[str, Any]) -> None:
    pg.query(f'DROP DATABASE "{born["database"]}"')
    pg.query(f'DROP ROLE "{born["role"]}"')
    pg.query(f'CREATE ROLE "{born["role"]}" LOGIN')
    with pytest.raises(Refused):
        backend.teardown(born, 1)
    assert born["role"] in pg.roles()
    assert pg.query("SELECT rolcanlogin FROM pg_roles WHERE rolname = %s", born["role"]) == [(True,)]


@pytest.mark.parametrize("moment", ["before its grants", "before itself"])
def test_a_role_that_changes_hands_meanwhile_is_untouched(
    backend: Postgres, pg: PgServer, born: dict[str, Any], monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    role, neighbour = born["role"], f"n_{uuid.uuid4().hex}"
    pg.query(f'CREATE DATABASE "{neighbour}"')
    pg.query(f'GRANT CREATE, USAGE ON SCHEMA public TO "{role}"', database=neighbour)
    where, step = (Postgres, "_drop_role") if moment == "before its grants" else (postgres, "_disown")
    honest = getattr(where, step)

    def meanwhile(*words: Any) -> None:
        monkeypatch.setattr(where, step, honest)
        if moment == "before itself":
            honest(*words)
        pg.query(f'DROP OWNED BY "{role}"', database=neighbour)
        pg.query(f'DROP ROLE "{role}"')
        pg.query(f'CREATE ROLE "{role}" LOGIN')
        if moment == "before its grants":
            pg.query(f'CREATE SCHEMA theirs AUTHORIZATION "{role}"', database=neighbour)
            honest(*words)

    monkeypatch.setattr(where, step, meanwhile)
    with pytest.raises(Refused):
        backend.teardown(born, 1)
    assert role in pg.roles()
    if moment == "before its grants":
        owned = "SELECT nspowner::regrole::text FROM pg_namespace WHERE nspname = 'theirs'"
        assert pg.query(owned, database=neighbour) == [(role,)]


def test_a_role_that_is_left_is_not_absent(backend: Postgres, pg: PgServer, born: dict[str, Any]) -> None:
    pg.query(f'DROP DATABASE "{born["database"]}"')
    assert isinstance(backend.inspect(born), Same), "it is a working credential"
    backend.teardown(born, 1)
    assert not pg.bears(born)


def test_a_database_that_bears_another_generation_is_different(backend: Postgres, pg: PgServer) -> None:
    name, generation = f"old_{uuid.uuid4().hex}", uuid.uuid4()
    pg.query(f'CREATE DATABASE "{name}"')
    manifest = backend.adopt({"database": name, "generation": str(generation)}, generation)
    assert isinstance(backend.inspect(manifest), Same)
    assert isinstance(backend.inspect(manifest | {"generation": str(uuid.uuid4())}), Different)


@pytest.mark.parametrize("what", ["role", "database"])
def test_a_birth_takes_nothing_that_was_there_before(backend: Postgres, pg: PgServer, what: str) -> None:
    plan = backend.plan(uuid.uuid4(), uuid.uuid4())
    pg.query(f'CREATE {what} "{plan.manifest[what]}"')
    with pytest.raises(Refused, match="is not of this resource"):
        backend.provision(plan.manifest, plan.credentials)


def test_a_quarantine_leaves_no_way_in(backend: Postgres, pg: PgServer, born: dict[str, Any]) -> None:
    backend.quarantine(born)
    assert pg.query("SELECT rolcanlogin FROM pg_roles WHERE rolname = %s", born["role"]) == [(False,)]
    assert pg.query("SELECT datallowconn, datconnlimit FROM pg_database WHERE oid = %s", born["oid"]) == [(False, 0)]


def test_the_runbook_lets_a_person_inside_what_is_quarantined_and_the_drop_waits_for_them_to_leave(
    backend: Postgres, pg: PgServer, born: dict[str, Any]
) -> None:
    backend.quarantine(born)
    dying = f"zz_del_{born['generation']}"
    part = (Path(__file__).parents[2] / "docs/runbook.md").read_text().partition("### `attempts_exhausted`")[2]
    statement = part.partition("```sql\n")[2].partition("```")[0]
    pg.query(statement.replace("zz_del_…", dying))
    with closing(psycopg2.connect(extensions.make_dsn(pg.dsn, dbname=dying))) as inside:
        inside.cursor().execute("SELECT 1")
        with pytest.raises(Transient, match="being accessed by other users"):
            backend.teardown(born, 1)
    backend.teardown(born, 2)
    assert isinstance(backend.inspect(born), Absent)


def test_a_second_worker_inside_one_object_waits_for_the_first(
    backend: Postgres, pg: PgServer, born: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = Postgres._quarantine
    inside, go_on = threading.Event(), threading.Event()

    def stands_still(self: Postgres, *words: Any) -> None:
        monkeypatch.setattr(Postgres, "_quarantine", honest)
        inside.set()
        go_on.wait(20)
        honest(self, *words)

    monkeypatch.setattr(Postgres, "_quarantine", stands_still)
    workers = [threading.Thread(target=backend.teardown, args=(born, fence)) for fence in (1, 2)]
    workers[0].start()
    assert inside.wait(20)
    workers[1].start()
    waiting = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
    try:
        eventually(lambda: pg.query(waiting), 5, "the second waits")
    finally:
        go_on.set()
        for worker in workers:
            worker.join()
    assert pg.drops_of(born) == 1


def test_neighbours_whose_names_begin_alike_survive(backend: Postgres, pg: PgServer, born: dict[str, Any]) -> None:
    shorter, longer = born["database"][:-4], born["database"] + "_x"
    for name in (shorter, longer):
        pg.query(f'CREATE DATABASE "{name}"')
    backend.teardown(born, 1)
    assert {shorter, longer} <= pg.databases()


def test_an_interrupted_drop_is_finished(backend: Postgres, pg: PgServer, born: dict[str, Any]) -> None:
    backend.quarantine(born)
    # What a crash inside DROP DATABASE leaves behind.
    pg.query("UPDATE pg_database SET datconnlimit = -2 WHERE oid = %s", born["oid"])
    assert isinstance(backend.inspect(born), Same)
    backend.teardown(born, 1)
    assert not pg.bears(born)


def test_prepared_transactions_are_rolled_back(backend: Postgres, pg: PgServer, born: dict[str, Any]) -> None:
    session = psycopg2.connect(born["dsn"])
    session.tpc_begin(session.xid(1, born["database"], "b"))
    session.cursor().execute("CREATE TABLE t (n int)")
    session.tpc_prepare()
    session.close()
    backend.teardown(born, 1)
    assert not pg.bears(born)


def test_a_replication_slot_does_not_keep_the_database_alive(
    backend: Postgres, pg: PgServer, born: dict[str, Any]
) -> None:
    slot = f"s_{uuid.uuid4().hex}"
    pg.query("SELECT pg_create_logical_replication_slot(%s, 'test_decoding')", slot, database=born["database"])
    backend.teardown(born, 1)
    assert not pg.bears(born)
    assert pg.query("SELECT 1 FROM pg_replication_slots WHERE slot_name = %s", slot) == []


def test_what_the_role_owns_elsewhere_is_handed_over_not_dropped(
    backend: Postgres, pg: PgServer, born: dict[str, Any]
) -> None:
    neighbour = f"n_{uuid.uuid4().hex}"
    pg.query(f'CREATE DATABASE "{neighbour}"')
    pg.query(f'GRANT CREATE, USAGE ON SCHEMA public TO "{born["role"]}"', database=neighbour)
    pg.query(f'SET ROLE "{born["role"]}"; CREATE TABLE shared AS SELECT 7 AS n', database=neighbour)
    backend.teardown(born, 1)
    assert born["role"] not in pg.roles(), "a role that survives is a working credential"
    assert pg.query("SELECT to_regclass('shared')::text", database=neighbour) == [("shared",)]
    assert pg.query("SELECT n FROM shared", database=neighbour) == [(7,)]


def test_a_customer_cannot_keep_its_teardown_waiting(backend: Postgres, pg: PgServer, born: dict[str, Any]) -> None:
    """It may connect to the maintenance database, and guess at the workers' lock."""
    session = psycopg2.connect(born["dsn"].rsplit("/", 1)[0] + "/postgres")
    session.cursor().execute(
        "SELECT pg_advisory_lock(hashtextextended(name, 0)) FROM unnest(%s) AS name",
        ([born["database"], f"deprovisioner:{born['database']}", born["generation"]],),
    )
    backend.teardown(born, 1)
    assert not pg.bears(born)


def test_clients_that_come_back_at_once_do_not_keep_the_database_alive(
    backend: Postgres, pg: PgServer, born: dict[str, Any]
) -> None:
    other = f"r_{uuid.uuid4().hex}"
    pg.query(f"CREATE ROLE {other} LOGIN PASSWORD 'p'")
    pg.query(f'GRANT CONNECT ON DATABASE "{born["database"]}" TO {other}')
    dsn = pg.dsn.replace("postgres:secret", f"{other}:p").rsplit("/", 1)[0] + f"/{born['database']}"
    done = threading.Event()

    def keep_coming() -> None:
        while not done.is_set():
            try:
                psycopg2.connect(dsn).cursor().execute("SELECT pg_sleep(5)")
            except psycopg2.OperationalError:
                continue

    clients = [threading.Thread(target=keep_coming) for _ in range(8)]
    for one in clients:
        one.start()
    try:
        backend.teardown(born, 1)
    finally:
        done.set()
        for one in clients:
            one.join()
    assert not pg.bears(born)


def test_a_server_that_stands_still_is_unavailable_in_bounded_time(
    backend: Postgres, servers: Servers, monkeypatch: pytest.MonkeyPatch, born: dict[str, Any]
) -> None:
    monkeypatch.setattr("worker.backends.postgres.LOOK_SECONDS", 1)
    honest = Postgres._look

    def frozen(self: Postgres, session: Any, manifest: Any) -> Any:
        pid = session.info.backend_pid
        os.kill(pid, signal.SIGSTOP)
        try:
            return honest(self, session, manifest)
        finally:
            os.kill(pid, signal.SIGCONT)

    with monkeypatch.context() as patch:
        patch.setattr(Postgres, "_look", frozen)
        with pytest.raises(Unavailable):
            backend.inspect(born)
    backend.teardown(born, 1)


@pytest.mark.parametrize("name", ["postgres", "template0", "template1", "control_db"])
def test_protected_names_are_refused_whatever_the_manifest_says(backend: Postgres, pg: PgServer, name: str) -> None:
    manifest = {"database": name, "role": None, "oid": None, "generation": str(uuid.uuid4())}
    with pytest.raises(Refused, match="protected"):
        backend.teardown(manifest, 1)
    with pytest.raises(Refused, match="protected"):
        backend.adopt(manifest, uuid.uuid4())
    with pytest.raises(Refused, match="protected"):
        backend.quarantine(manifest)


def test_a_database_that_somebody_renamed_is_neither_absent_nor_touched(
    backend: Postgres, pg: PgServer, born: dict[str, Any]
) -> None:
    moved = f"moved_{uuid.uuid4().hex}"
    pg.query(f'ALTER DATABASE "{born["database"]}" RENAME TO "{moved}"')
    assert isinstance(backend.inspect(born), Different)
    with pytest.raises(Refused, match="renamed"):
        backend.teardown(born, 1)
    assert moved in pg.databases()


def test_two_workers_inside_one_object_drop_it_once(backend: Postgres, pg: PgServer, born: dict[str, Any]) -> None:
    barrier, failures = threading.Barrier(4), []

    def tear() -> None:
        barrier.wait()
        try:
            backend.teardown(born, 1)
        except (Refused, Transient) as error:
            failures.append(error)

    threads = [threading.Thread(target=tear) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert pg.drops_of(born) == 1
    assert isinstance(backend.inspect(born), Absent)


class TestAdoption:
    @pytest.fixture
    def existing(self, pg: PgServer) -> dict[str, Any]:
        name = f"old_{uuid.uuid4().hex}"
        pg.query(f'CREATE ROLE "{name}" LOGIN')
        pg.query(f'CREATE DATABASE "{name}" OWNER "{name}"')
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

    def test_a_comment_that_was_there_is_kept(self, backend: Postgres, pg: PgServer, existing: dict[str, Any]) -> None:
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
        "wrong", [{"oid": 1}, {"system_identifier": 1}, {"role": "nobody_here"}, {"database": "nowhere"}]
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

    def test_what_the_service_itself_stands_on_is_refused(self, pg: PgServer, existing: dict[str, Any]) -> None:
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

    def test_what_became_a_superuser_s_or_a_template_is_not_torn_down(
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

    def test_a_refusal_does_not_tell_another_s_mark(self, backend: Postgres, existing: dict[str, Any]) -> None:
        first = uuid.uuid4()
        backend.adopt(existing | {"generation": str(first)}, first)
        with pytest.raises(Refused) as refused:
            backend.adopt(existing | {"generation": str(uuid.uuid4())}, uuid.uuid4())
        assert str(first) not in str(refused.value)
