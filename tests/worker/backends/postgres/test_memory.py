"""What PostgreSQL keeps of the control database: whose the table is, and what a write costs; on versions 18 and 15."""

import os
import threading
import uuid
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import psycopg2
import pytest
from psycopg2.extensions import make_dsn

from outbox.errors import OutOfService
from outbox.memory import Memory, offered
from tests.support import accounts
from tests.support.servers import Servers
from tests.support.witness import PgServer, eventually
from worker.backends.postgres import Postgres, memory
from worker.backends.postgres.memory import SCHEMA, TABLE


class Own:
    """The documented account and its database under a name of the test's own, as before the first worker came."""

    def __init__(self, server: PgServer) -> None:
        self.server, self.name = server, f"mem_{uuid.uuid4().hex}"
        for statement in accounts.documented("postgres"):
            self.server.query(statement.replace(accounts.NAME, self.name).replace("CHANGE-ME", "p"))
        self.dsn = make_dsn(server.dsn, user=self.name, password="p", dbname=self.name)
        self.backend = Postgres(self.dsn)

    def query(self, statement: str, *values: object) -> list[tuple]:
        return self.server.query(statement, *values, database=self.name)

    def clean(self) -> None:
        self.server.query(f"DROP DATABASE {self.name} WITH (FORCE)")
        self.server.query(f"DROP OWNED BY {self.name}")
        self.server.query(f"DROP ROLE {self.name}")


@pytest.fixture(params=["18", "15"])
def own(request: pytest.FixtureRequest, servers: Servers) -> Iterator[Own]:
    made = Own(servers.pg if request.param == "18" else request.getfixturevalue("postgres15"))
    yield made
    made.clean()


@pytest.fixture
def kept() -> Memory:
    return Memory(uuid.uuid4(), 2, 100, "aa", notes=())


def test_the_first_write_makes_the_table_however_many_workers_come_at_once(own: Own, kept: Memory) -> None:
    assert own.backend.installations() == []
    assert own.backend.recall(kept.installation) is None
    assert own.query("SELECT to_regnamespace(%s)", SCHEMA) == [(None,)], "to recall makes nothing"
    start, raised = threading.Barrier(6), list[Exception]()

    def work(event: int) -> None:
        start.wait()
        try:
            own.backend.remember(replace(kept, event=event, notes=None))
        except Exception as error:  # noqa: BLE001 - whatever a thread raises, the test tells
            raised.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert raised == []
    assert own.backend.recall(kept.installation) == replace(kept, event=5)
    assert own.query(f"SELECT event FROM {TABLE}") == [(5,)]


def test_a_write_that_is_put_on_what_stays_lowers_no_write_that_comes_meanwhile(
    own: Own, kept: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`still` of an earlier event is decided in this process, and another's event comes before it is written."""
    own.backend.remember(kept)
    later = replace(kept, event=900, hash="99", still=True, notes=None)
    other = threading.Thread(target=own.backend.remember, args=(later,))
    waiting = "SELECT 1 FROM pg_stat_activity WHERE datname = %s AND wait_event_type = 'Lock'"

    def meanwhile(*words: Any) -> Any:
        other.start()
        eventually(lambda: not other.is_alive() or own.query(waiting, own.name))
        return offered(*words)

    with monkeypatch.context() as patch:
        patch.setattr(memory, "offered", meanwhile)
        own.backend.remember(replace(kept, event=50, still=True, notes=None))
    other.join(60)
    assert own.backend.recall(kept.installation) == replace(later, notes=())


def test_a_later_write_is_one_statement_in_a_session_of_its_own(own: Own, kept: Memory) -> None:
    """By the server's log. What begins each session is told apart by a recall's, which asks for the table first."""
    own.backend.remember(kept)
    own.query(f"ALTER DATABASE {own.name} SET log_statement = 'all'")
    begins = os.stat(own.server.log).st_size
    own.backend.recall(kept.installation)
    reads = [one.sql for one in own.server.said(begins, own.name)]
    begins = os.stat(own.server.log).st_size
    for event in range(101, 111):
        assert own.backend.remember(replace(kept, event=event, notes=None)) is None
    writes = own.server.said(begins, own.name)
    touching = [one for one in writes if SCHEMA in one.sql]
    assert len(touching) == len({one.pid for one in touching}) == 10, "one statement, in a session of its own"
    assert {one.verb for one in touching} == {"UPDATE"}
    assert len(writes) == 10 * (len(reads) - 1)


def test_a_customer_can_neither_read_nor_change_it(own: Own, kept: Memory) -> None:
    own.backend.remember(kept)
    plan = own.backend.plan(uuid.uuid4(), uuid.uuid4())
    made = own.backend.provision(plan.manifest, plan.credentials)
    try:
        inside = make_dsn(plan.credentials["dsn"], dbname=own.name)
        with pytest.raises(psycopg2.OperationalError, match="permission denied for database"):
            psycopg2.connect(inside)
        own.query(f"GRANT CONNECT ON DATABASE {own.name} TO PUBLIC")  # an administrator's mistake
        customer = psycopg2.connect(inside)
        customer.autocommit = True
        for statement in (
            f"SELECT * FROM {TABLE}",
            f"UPDATE {TABLE} SET event = 0",
            f"DROP TABLE {TABLE}",
            f"CREATE TABLE {SCHEMA}.mine ()",
        ):
            with customer.cursor() as cursor, pytest.raises(psycopg2.errors.InsufficientPrivilege):
                cursor.execute(statement)
        customer.close()
        assert own.backend.recall(kept.installation) == kept
    finally:
        own.backend.teardown(made, 1)


def test_the_schema_of_the_log_s_function_is_not_in_its_way(own: Own, kept: Memory) -> None:
    """A superuser makes that one, so that the service may make nothing in it."""
    for statement in accounts.documented("log"):
        own.query(statement.replace(accounts.NAME, own.name))
    assert own.backend.remember(kept) is None
    assert own.backend.recall(kept.installation) == kept


def test_an_account_that_cannot_keep_it_is_told_the_statement_that_mends_it(own: Own, kept: Memory) -> None:
    """As with a `dsn` that names the database `postgres`, which older versions documented."""
    own.query(f"ALTER DATABASE {own.name} OWNER TO postgres")
    own.query(f"GRANT CONNECT ON DATABASE {own.name} TO {own.name}")
    with pytest.raises(OutOfService, match="cannot keep what the control database had") as caught:
        own.backend.remember(kept)
    assert own.backend.recall(kept.installation) is None
    own.query(str(caught.value).rpartition("; ")[2])
    assert own.backend.remember(kept) is None
    own.query(f"REVOKE CREATE ON DATABASE {own.name} FROM {own.name}")
    assert own.backend.remember(replace(kept, event=101)) is None, "once it is made, nothing more is needed"
    assert [one.code for one in own.backend.check() if SCHEMA in one.what] == []


def test_a_schema_that_an_administrator_has_made_for_the_account_is_enough(own: Own, kept: Memory) -> None:
    own.query(f"ALTER DATABASE {own.name} OWNER TO postgres")
    own.query(f"GRANT CONNECT ON DATABASE {own.name} TO {own.name}")
    own.query(f"CREATE SCHEMA {SCHEMA} AUTHORIZATION {own.name}")
    assert own.backend.remember(kept) is None


SPOILT = {
    "another's schema": f"ALTER SCHEMA {SCHEMA} OWNER TO postgres",
    "another's table": f"ALTER TABLE {TABLE} OWNER TO postgres",
    "a column less": f"ALTER TABLE {TABLE} DROP COLUMN hash",
    "another type": f"ALTER TABLE {TABLE} ALTER COLUMN event TYPE text",
    "negative": f"UPDATE {TABLE} SET event = -1, epoch = -5",
    "no hash": f"UPDATE {TABLE} SET hash = repeat('zz', 5000000)",
    "no text": f"UPDATE {TABLE} SET notes = '\"\\u0000\"'",
    "two rows": f"ALTER TABLE {TABLE} DROP CONSTRAINT memories_pkey; INSERT INTO {TABLE} TABLE {TABLE}",
    "a view": f"ALTER TABLE {TABLE} RENAME TO old; CREATE VIEW {TABLE} AS SELECT 1 AS installation",
}


@pytest.mark.parametrize("how", SPOILT)
def test_a_table_that_is_not_as_it_was_made_is_no_answer(own: Own, kept: Memory, how: str) -> None:
    own.backend.remember(kept)
    own.query(SPOILT[how])
    with pytest.raises(OutOfService, match=TABLE) as caught:
        own.backend.recall(kept.installation)
    assert "find out who" in str(caught.value)
    assert len(str(caught.value)) < 1000
