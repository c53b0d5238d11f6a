"""A customer that holds what a teardown needs is ended, its own resource's or a neighbour's; an operator is named."""

import re
import socket
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from typing import Any

import psycopg2
import pytest
from psycopg2.extensions import make_dsn
from sqlalchemy import Connection, text

from outbox.errors import Transient
from tests.support import accounts
from tests.support.customers import Customer, a_customer, in_the_outbox
from tests.support.proxy import Proxy
from tests.support.servers import Servers, database_dsn
from tests.support.witness import PgServer, eventually
from worker.backends.postgres import Postgres, blockers, session, waits
from worker.run import Run


@pytest.fixture(params=["18", pytest.param("15", marks=pytest.mark.proof)])
def pg(request: pytest.FixtureRequest, servers: Servers) -> PgServer:
    return servers.pg if request.param == "18" else request.getfixturevalue("postgres15")


@pytest.fixture
def victim(backend: Postgres) -> Customer:
    return a_customer(backend)


@pytest.fixture
def neighbour(backend: Postgres) -> Iterator[Customer]:
    made = a_customer(backend)
    yield made
    backend.teardown(made.manifest, 9)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    soon = session._PARAMETERS["options"].replace("lock_timeout=10000", "lock_timeout=2500")
    monkeypatch.setitem(session._PARAMETERS, "options", soon)


def _has_ended(connection: Any) -> bool:
    try:
        connection.cursor().execute("SELECT 1")
    except psycopg2.OperationalError:
        return True
    return False


def test_an_open_transaction_of_the_customer_that_changes_its_role_is_ended_first(
    backend: Postgres, pg: PgServer, victim: Customer, impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waits, "LOOK_SECONDS", 60)  # nothing may have to wait for the lock in the first place
    with victim.inside(f"ALTER ROLE \"{victim.role}\" PASSWORD 'another'") as theirs:
        backend.teardown(victim.manifest, 1)
        assert _has_ended(theirs)
    assert not pg.bears(victim.manifest)


def test_a_customer_that_changes_its_role_all_the_time_is_shut_out(
    pg: PgServer, victim: Customer, backend: Postgres
) -> None:
    """Its commit comes while NOLOGIN waits: the server lets only one of both change the role's row."""
    waiting = "SELECT 1 FROM pg_stat_activity WHERE query LIKE 'ALTER ROLE % NOLOGIN' AND wait_event_type = 'Lock'"
    threads = []

    def change_it() -> None:
        theirs = psycopg2.connect(victim.dsn)
        theirs.cursor().execute(f"ALTER ROLE \"{victim.role}\" PASSWORD 'another'")

        def commit() -> None:
            eventually(lambda: pg.query(waiting), what="NOLOGIN waits")
            theirs.commit()

        threads.append(threading.Thread(target=commit))
        threads[0].start()

    proxy = Proxy(int(psycopg2.extensions.parse_dsn(pg.dsn)["port"]))
    proxy.hold("NOLOGIN", change_it)
    Postgres(make_dsn(pg.service_dsn, port=proxy.port)).teardown(victim.manifest, 1)
    threads[0].join()
    assert not pg.bears(victim.manifest)


def test_an_operator_s_lock_on_the_role_does_not_keep_the_sessions_alive(
    backend: Postgres, pg: PgServer, victim: Customer, impatient: None
) -> None:
    with closing(psycopg2.connect(pg.dsn, application_name="psql")) as operator, victim.inside("SELECT 1") as theirs:
        operator.cursor().execute(f"ALTER ROLE \"{victim.role}\" VALID UNTIL 'infinity'")
        named = rf"lock timeout; it waited for pid {operator.info.backend_pid} of 'postgres' \(psql\)"
        with pytest.raises(Transient, match=named):
            backend.teardown(victim.manifest, 1)
        assert _has_ended(theirs)
        with pytest.raises(psycopg2.OperationalError):
            psycopg2.connect(victim.dsn)
        operator.cursor().execute("SELECT 1")
    backend.teardown(victim.manifest, 2)
    assert not pg.bears(victim.manifest)


def test_a_neighbour_s_open_grant_to_the_role_is_ended_and_told(
    backend: Postgres, pg: PgServer, victim: Customer, neighbour: Customer
) -> None:
    with neighbour.inside("CREATE TABLE t ()", f'GRANT SELECT ON t TO "{victim.role}"') as theirs:
        who = f"pid {theirs.info.backend_pid} of '{neighbour.role}' (app)"
        told = backend.teardown(victim.manifest, 1)
        assert _has_ended(theirs)
    [said] = [line for line in told["statements"] if line.startswith("ended")]
    assert said.startswith(f"ended a customer's session that we waited for: {who}")
    assert said.endswith(f"in '{neighbour.manifest['database']}'")
    assert not pg.bears(victim.manifest)


def test_a_neighbour_s_prepared_grant_is_rolled_back_and_told(
    backend: Postgres, pg: PgServer, victim: Customer, neighbour: Customer
) -> None:
    gid = uuid.uuid4().hex
    with neighbour.inside("CREATE TABLE t ()", f'GRANT SELECT ON t TO "{victim.role}"') as theirs:
        theirs.cursor().execute(f"PREPARE TRANSACTION '{gid}'")
    told = backend.teardown(victim.manifest, 1)
    where = f"'{gid}' of '{neighbour.role}' in '{neighbour.manifest['database']}'"
    assert f"rolled back a customer's prepared transaction that we waited for: {where}" in told["statements"]
    assert not pg.bears(victim.manifest)
    assert pg.query("SELECT 1 FROM pg_prepared_xacts WHERE gid = %s", gid) == []


def test_a_neighbour_with_a_lock_on_each_of_many_tables_is_ended_as_a_whole(
    backend: Postgres, pg: PgServer, victim: Customer, neighbour: Customer
) -> None:
    with ExitStack() as stack:
        locks, more = [], [stack.enter_context(neighbour.inside("SELECT 1")) for _ in range(2)]
        for table in ("a", "b", "c"):
            with neighbour.inside(f'CREATE TABLE {table} (); GRANT SELECT ON {table} TO "{victim.role}"') as maker:
                maker.commit()
            locks.append(stack.enter_context(neighbour.inside(f"GRANT INSERT ON {table} TO PUBLIC")))
        idle = stack.enter_context(neighbour.inside())
        backend.teardown(victim.manifest, 1)
        assert all(map(_has_ended, locks + more)), "whatever may hold the next lock"
        assert not _has_ended(idle)
    assert not pg.bears(victim.manifest)


def test_an_operator_that_blocks_is_named_and_not_ended(
    backend: Postgres, pg: PgServer, victim: Customer, neighbour: Customer, impatient: None
) -> None:
    operator = f"op_{uuid.uuid4().hex}"
    pg.query(f"CREATE ROLE {operator} LOGIN PASSWORD 'p'")
    accounts.allow(pg, operator)  # the account could end its sessions
    database = neighbour.manifest["database"]
    pg.query(f'GRANT CONNECT ON DATABASE "{database}" TO {operator}')
    with neighbour.inside(
        f'CREATE TABLE t (); GRANT ALL ON t TO {operator} WITH GRANT OPTION; GRANT SELECT ON t TO "{victim.role}"'
    ) as maker:
        maker.commit()
    theirs = psycopg2.connect(make_dsn(database_dsn(pg.dsn, database), user=operator, password="p"))
    with closing(theirs):
        theirs.cursor().execute("GRANT INSERT ON t TO PUBLIC")
        with pytest.raises(Transient, match=f"it waited for pid {theirs.info.backend_pid} of '{operator}'"):
            backend.teardown(victim.manifest, 1)
        assert not _has_ended(theirs)
    backend.teardown(victim.manifest, 2)
    assert not pg.bears(victim.manifest)
    pg.query(f"DROP OWNED BY {operator}", database=database)
    pg.query(f"DROP OWNED BY {operator}; DROP ROLE {operator}")


def test_a_neighbour_s_transaction_that_is_old_already_is_not_waited_for(
    backend: Postgres, pg: PgServer, victim: Customer, neighbour: Customer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a lock timeout would come first."""
    soon = session._PARAMETERS["options"].replace("lock_timeout=10000", "lock_timeout=1000")
    monkeypatch.setitem(session._PARAMETERS, "options", soon)
    monkeypatch.setattr(blockers, "GRACE_SECONDS", 1.5)
    old = "SELECT 1 FROM pg_stat_activity WHERE pid = %s AND xact_start < clock_timestamp() - interval '1.5 s'"
    with neighbour.inside("CREATE TABLE t ()", f'GRANT SELECT ON t TO "{victim.role}"') as theirs:
        eventually(lambda: pg.query(old, theirs.info.backend_pid), what="its transaction is old")
        backend.teardown(victim.manifest, 1)
        assert _has_ended(theirs)
    assert not pg.bears(victim.manifest)


def test_a_neighbour_s_young_transaction_may_end_by_itself(
    backend: Postgres, pg: PgServer, victim: Customer, neighbour: Customer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blockers, "GRACE_SECONDS", 5.0)
    waiting = "SELECT 1 FROM pg_stat_activity WHERE %s = ANY(pg_blocking_pids(pid))"
    with neighbour.inside("CREATE TABLE t ()", f'GRANT SELECT ON t TO "{victim.role}"') as theirs:
        looks, end = [], blockers.Blockers.end

        def look(*words: Any) -> bool:
            looks.append(1)
            return end(*words)

        def commit() -> None:
            eventually(lambda: len(looks) > 2 and pg.query(waiting, theirs.info.backend_pid), what="it is waited for")
            theirs.commit()

        monkeypatch.setattr(blockers.Blockers, "end", look)
        thread = threading.Thread(target=commit)
        thread.start()
        backend.teardown(victim.manifest, 1)
        thread.join()
        assert not _has_ended(theirs)
    assert not pg.bears(victim.manifest)


@pytest.mark.parametrize("kept", ["another server's", "in use"])
def test_a_neighbour_that_blocks_is_ended_while_the_session_that_is_kept_is_away(
    backend: Postgres, pg: PgServer, victim: Customer, neighbour: Customer, servers: Servers, kept: str
) -> None:
    """It is another server's after a failover; in use without end while that server is stopped."""
    slots = backend._server.slots
    with ExitStack() as life, neighbour.inside("CREATE TABLE t ()", f'GRANT SELECT ON t TO "{victim.role}"') as theirs:
        if kept == "in use":
            life.enter_context(slots._lock)
        else:
            slots._kept = psycopg2.connect(servers.control.dsn)
            slots._kept.autocommit = True
        backend.teardown(victim.manifest, 1)
        assert _has_ended(theirs)
    assert not pg.bears(victim.manifest)


def test_whom_an_attempt_has_ended_is_kept_when_it_fails(
    db: Connection, backend: Postgres, pg: PgServer, neighbour: Customer, impatient: None
) -> None:
    resource, victim, deleted = in_the_outbox(db, backend)
    with neighbour.inside("CREATE TABLE t ()", f'GRANT SELECT ON t TO "{victim.role}"') as maker:
        maker.commit()
    with (
        closing(psycopg2.connect(pg.dsn)) as operator,
        neighbour.inside("GRANT INSERT ON t TO PUBLIC") as theirs,
    ):
        operator.cursor().execute(f'CREATE TABLE of_an_operator (); GRANT SELECT ON of_an_operator TO "{victim.role}"')
        pid = theirs.info.backend_pid
        Run(deleted(), backend, worker="w")()
        assert _has_ended(theirs)
    said = "SELECT reason FROM events WHERE resource_id = :id AND event = 'retried'"
    [reason] = db.execute(text(said), {"id": resource}).scalars()
    ended = f"ended a customer's session that we waited for: pid {pid} of '{neighbour.role}'"
    assert f"before: in '{neighbour.manifest['database']}': {ended}" in reason
    assert len(reason) <= 1_100
    backend.teardown(victim.manifest, 2)


@contextmanager
def _copying(pg: PgServer, customer: Customer, told: Callable[[Any], None] | None = None) -> Iterator[int]:
    """A session of the customer's that copies what `told` sends, over and over (libpq sends 8 KB at once); its pid."""
    ours, theirs = socket.socketpair()
    ending = threading.Event()
    with customer.inside("CREATE TABLE t (n int)") as connection, closing(ours), closing(theirs):

        def copy() -> None:
            with suppress(psycopg2.Error), theirs.makefile("rb", buffering=0) as data:
                connection.cursor().copy_expert("COPY t FROM STDIN", data)

        def send() -> None:
            while told and not ending.wait(0.02):
                with suppress(OSError):
                    told(ours)

        threads = [threading.Thread(target=act) for act in (copy, send)]
        for thread in threads:
            thread.start()
        pid = connection.info.backend_pid
        stuck = "SELECT 1 FROM pg_stat_activity WHERE state = 'active' AND wait_event = 'ClientRead' AND pid = %s"
        eventually(lambda: pg.query(stuck, pid), what="it waits for its client")
        try:
            yield pid
        finally:
            ending.set()
            threads[1].join()
            ours.close()
            threads[0].join()


def _ended(told: dict[str, Any]) -> list[int]:
    said = "ended a customer's session that we waited for: pid "
    return [int(re.findall(r"\d+", line)[0]) for line in told["statements"] if line.startswith(said)]


def test_a_neighbour_s_session_that_answers_no_barrier_is_ended_and_told(
    backend: Postgres, pg: PgServer, victim: Customer, neighbour: Customer
) -> None:
    """It waits for its client's data; DROP DATABASE waits for every process of the server."""
    with _copying(pg, neighbour) as pid:
        assert _ended(backend.teardown(victim.manifest, 1)) == [pid]
    assert not pg.bears(victim.manifest)


def test_a_client_that_sends_its_data_slowly_is_not_ended_with_one_that_sends_none(
    backend: Postgres, pg: PgServer, victim: Customer, neighbour: Customer
) -> None:
    innocent = a_customer(backend)
    with _copying(pg, innocent, lambda data: data.sendall(b"1\n" * 5_000)), _copying(pg, neighbour) as silent:
        assert _ended(backend.teardown(victim.manifest, 1)) == [silent]
    backend.teardown(innocent.manifest, 1)


def test_a_client_that_sends_one_row_byte_by_byte_is_ended(
    backend: Postgres, pg: PgServer, victim: Customer, neighbour: Customer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blockers, "SILENT_SECONDS", 60)
    monkeypatch.setattr(blockers, "DRIBBLE_SECONDS", 0.5)
    with _copying(pg, neighbour, lambda data: data.sendall(b"1" * 10_000)) as pid:
        assert _ended(backend.teardown(victim.manifest, 1)) == [pid]


def test_a_neighbour_that_grants_the_role_rights_again_while_it_is_dropped_is_ended_and_told(
    pg: PgServer, backend: Postgres, victim: Customer, neighbour: Customer
) -> None:
    dying = f'"zz_del_{victim.manifest["generation"]}"'
    with neighbour.inside("CREATE TABLE t ()", f'GRANT SELECT ON t TO "{victim.role}"') as theirs:
        theirs.commit()

        def grant_again() -> None:
            theirs.cursor().execute(f"GRANT SELECT ON t TO {dying}")
            theirs.commit()

        proxy = Proxy(int(psycopg2.extensions.parse_dsn(pg.dsn)["port"]))
        proxy.hold("DROP ROLE", grant_again)
        told = Postgres(make_dsn(pg.service_dsn, port=proxy.port)).teardown(victim.manifest, 1)
        assert proxy.cuts == 1
        assert _has_ended(theirs)
    where = neighbour.manifest["database"]
    assert f"ended 1 customers' sessions in '{where}', where the dying role was granted rights" in told["statements"]
    assert not pg.bears(victim.manifest)
