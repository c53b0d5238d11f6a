"""A synchronous standby of the control database that is missing: nothing is confirmed, and nothing acted on."""

import contextlib
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import psycopg2
import pytest
from psycopg2.extras import PhysicalReplicationConnection
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from outbox import commits, jobs, resources
from outbox import db as database
from outbox.errors import Unconfirmed
from outbox.resources import NewResource
from outbox.rows import Claim
from tests.support import standby
from tests.support.api import problem
from tests.support.factories import a_claim, a_job, a_resource, job
from tests.support.processes import System, client
from tests.support.servers import Servers
from tests.support.shelf import Shelf
from tests.support.witness import PgServer, eventually
from worker.pool import Pool, ServedBackend
from worker.run import Batches, Run


@pytest.fixture
def no_standby(servers: Servers, db: Connection, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Sets `synchronous_standby_names` of the control server, to which no standby connects; the end resets it."""
    monkeypatch.setattr(commits, "CONFIRM_SECONDS", 0.5)
    yield lambda names: standby.require(servers.control, names)
    standby.require(servers.control, "")


def test_a_delete_that_no_standby_confirms_is_503_and_gets_its_job_when_asked_again(
    system: System, tenant: str, db: Connection, no_standby: Any
) -> None:
    resource = a_resource(db)
    with client(system.api(), tenant) as api:
        assert api.get("/readyz").status_code == 200
        no_standby("*")
        answer = api.delete(f"/v1/resources/{resource}")
        problem(answer, 503, "outcome_unconfirmed")
        assert answer.elapsed.total_seconds() < database.STATEMENT_TIMEOUT_MS / 1000
        assert answer.headers["retry-after"]
        ready = api.get("/readyz")
        assert ready.status_code == 503
        assert "standby" in ready.json()["database"]
        no_standby("")
        again = api.delete(f"/v1/resources/{resource}")
        assert again.status_code == 200, again.text
        assert uuid.UUID(again.json()["resource"]["id"]) == resource
        assert api.get("/readyz").status_code == 200


@pytest.mark.parametrize("shared", [False, True], ids=["alone", "shared"])
def test_a_start_that_no_standby_confirms_destroys_nothing(db: Connection, no_standby: Any, shared: bool) -> None:
    claim, shelf = a_claim(db), Shelf()
    no_standby("*")
    Run(claim, shelf, worker="w", batches=Batches(worker="w") if shared else None)()
    assert shelf.torn == []
    assert job(db, claim.id).state == "running", "its lease passes, and the next attempt inspects first"


def test_a_worker_claims_and_sweeps_nothing_while_no_standby_confirms(
    settled: dict[str, str], db: Connection, no_standby: Any
) -> None:
    ids = [a_job(db) for _ in range(2)]
    shelf = Shelf()
    pool = Pool({"pg-main": ServedBackend(shelf, 8)}, worker="w", slots=2, lease_seconds=60, sweep_seconds=60)
    db.execute(text("SET synchronous_commit = local"))
    commits.doubted.clear()  # the standby was there a moment ago

    def refused(act: Callable[[], None]) -> list[tuple[str, int]]:
        with pytest.raises(Unconfirmed):
            act()
        db.execute(text("UPDATE outbox SET lease_expires_at = now() - interval '1 s' WHERE state = 'running'"))
        return [(job(db, id).state, job(db, id).attempts) for id in ids]

    no_standby("*")
    assert refused(pool.drain) == [("running", 1)] * 2, "it learned of it by this claim"
    assert refused(pool.sweep) == [("running", 1)] * 2
    assert refused(pool.advance) == [("running", 1)] * 2
    begins = "from outbox import commits, db; commits.CONFIRM_SECONDS = 0.5; db.must_confirm()"
    new = subprocess.run([sys.executable, "-c", begins], check=False, env=settled, capture_output=True, text=True)
    assert "errors.Unconfirmed" in new.stderr
    no_standby("")
    pool.sweep()
    eventually(lambda: {job(db, id).state for id in ids} == {"succeeded"})
    pool.stop()
    assert pool.join(20)


@pytest.mark.proof
def test_a_wait_ends_even_when_every_slot_of_the_server_is_taken(
    servers: Servers, db: Connection, no_standby: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commits, "UNSEEN_SECONDS", 1)
    no_standby("*")
    taken = []
    raised: list[DBAPIError] = []

    def execute() -> None:
        for statement in ("CREATE TABLE waits_for_a_standby ()", "SELECT pg_sleep(30)"):
            with pytest.raises(DBAPIError) as error:
                session.execute(text(statement))
            raised.append(error.value)

    with database.statement() as session:
        with contextlib.suppress(psycopg2.OperationalError):
            while True:
                taken.append(psycopg2.connect(servers.control.dsn))
        caller = threading.Thread(target=execute)
        caller.start()
        caller.join(25)
        for each in taken:
            each.close()
        no_standby("")
        caller.join()
    assert len(raised) == 2
    assert isinstance(raised[0].orig, commits.NotConfirmed)
    assert database.busy(raised[1])


@pytest.mark.proof
def test_readyz_is_red_while_another_replica_than_the_synchronous_one_is_connected(
    servers: Servers, system: System, tenant: str, no_standby: Any
) -> None:
    dsn = servers.control.dsn
    replica = psycopg2.connect(dsn, connection_factory=PhysicalReplicationConnection, application_name="another")
    replica.cursor().start_replication()
    eventually(lambda: servers.control.query("SELECT 1 FROM pg_stat_replication WHERE application_name = 'another'"))
    with client(system.api(), tenant) as api:
        assert api.get("/readyz").status_code == 200
        no_standby("the_one")
        ready = api.get("/readyz")
    replica.close()
    assert (ready.status_code, "standby" in ready.json()["database"]) == (503, True)


def test_a_start_read_back_is_confirmed_before_it_counts(db: Connection, no_standby: Any) -> None:
    claim: Claim = a_claim(db)
    jobs.start(db, claim, worker="w")
    no_standby("*")
    with pytest.raises(Unconfirmed), database.statement() as session:
        jobs.start(session, claim, worker="w")


@pytest.mark.proof
def test_what_is_asked_again_while_the_standby_is_missing_is_not_answered_from_an_unconfirmed_commit(
    db: Connection, no_standby: Any
) -> None:
    resource = a_resource(db)
    asked = jobs.Delete(resource, "a")
    new = NewResource("acme", "postgres", "pg-main", "twice")

    def register() -> object:
        with database.statement() as session:
            return resources.register(session, new, actor="a", idempotency_key="k", request_digest="d")[0]

    def delete() -> object:
        with database.statement() as session:
            return jobs.enqueued_before(session, asked).job.id

    def restore() -> object:
        with database.transaction() as session:
            return jobs.restore(session, deleted, actor="a", reason="r", request_id=request).job

    def purge() -> object:
        with database.transaction() as session:
            return jobs.purge(session, deleted, actor="a", reason="r", request_id=request)[1].id

    deleted, request = a_resource(db), uuid.uuid4()
    jobs.enqueue(db, deleted, actor="a", grace=60)
    repeats = (register, delete, purge, restore)
    done = [act() for act in repeats]
    no_standby("*")
    for repeat in repeats:
        with pytest.raises(Unconfirmed):
            repeat()
    no_standby("")
    assert [repeat() for repeat in repeats] == done


def _waiting(server: PgServer, event: str) -> int:
    """The server process that waits for `event`."""
    asked = f"SELECT pid FROM pg_stat_activity WHERE wait_event = '{event}'"
    return int(eventually(lambda: server.query(asked))[0][0])


def test_a_wait_that_an_outsider_cancels_is_unconfirmed(
    servers: Servers, db: Connection, no_standby: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commits, "CONFIRM_SECONDS", 60)  # the watch does not end it
    no_standby("*")
    raised: list[BaseException] = []

    def commit() -> None:
        try:
            with database.transaction() as session:
                session.execute(text("CREATE TABLE waits_for_a_standby ()"))
        except Unconfirmed as error:
            raised.append(error)

    caller = threading.Thread(target=commit)
    caller.start()
    servers.control.query(f"SELECT pg_cancel_backend({_waiting(servers.control, 'SyncRep')})")
    caller.join(10)
    assert len(raised) == 1


def test_a_commit_s_warning_counts_in_every_language_where_standbys_are_synchronous(
    db: Connection, no_standby: Any
) -> None:
    warns = text("DO $$ BEGIN RAISE WARNING 'in der Sprache des Servers'; END $$")
    db.execute(text("SET synchronous_commit = local"))
    db.execute(warns)
    no_standby("*")
    with database.transaction() as inside:
        inside.execute(text("SET LOCAL synchronous_commit = local"))
        inside.execute(warns)  # it is not the commit that warned
    with pytest.raises(DBAPIError, match="none confirmed"):
        db.execute(warns)


def test_a_cancel_that_comes_late_does_not_hit_the_next_statement_of_the_connection(
    servers: Servers, db: Connection, no_standby: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The watch has seen the wait, and cancels a second later; meanwhile the commit is confirmed."""
    slow = commits._CANCEL.replace(
        "pg_catalog.pg_cancel_backend(pid)", "pg_sleep(1) IS NOT NULL AND pg_cancel_backend(pid)"
    )
    monkeypatch.setattr(commits, "_CANCEL", slow)
    no_standby("*")
    done: list[Any] = []

    with database.statement() as session:
        raw = session.connection.driver_connection
        raised: list[BaseException] = []

        def commit() -> None:
            with raw.cursor() as cursor:
                try:
                    cursor.execute("CREATE TABLE waits_for_a_standby ()")
                except commits.NotConfirmed as error:
                    raised.append(error)
                cursor.execute("SELECT pg_sleep(1.5)")
                done.append(cursor.fetchone())

        caller = threading.Thread(target=commit)
        caller.start()
        _waiting(servers.control, "PgSleep")
        no_standby("")
        caller.join(10)
    assert done == [("",)]
