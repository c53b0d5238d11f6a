"""Time limits, and the lock that lets one worker at a time inside one object."""

import json
import os
import signal
import subprocess
import sys
import threading
import uuid
from contextlib import closing
from typing import Any

import psycopg2
import pytest

from outbox.errors import Unavailable
from tests.support import accounts
from tests.support.servers import Servers, database_dsn
from tests.support.witness import PgServer, eventually, slowness
from worker.backends import Absent
from worker.backends.postgres import Postgres, destroy, identity, session
from worker.backends.postgres.session import Server


def test_a_server_that_stops_answering_is_unavailable_in_bounded_time(
    backend: Postgres, servers: Servers, monkeypatch: pytest.MonkeyPatch, provisioned: dict[str, Any]
) -> None:
    monkeypatch.setattr(identity, "INSPECT_SECONDS", 1)
    honest = identity.read_state

    def frozen(connection: Any, manifest: Any) -> Any:
        pid = connection.info.backend_pid
        os.kill(pid, signal.SIGSTOP)
        try:
            return honest(connection, manifest)
        finally:
            os.kill(pid, signal.SIGCONT)

    with monkeypatch.context() as patch:
        patch.setattr(identity, "read_state", frozen)
        with pytest.raises(Unavailable):
            backend.inspect(provisioned)
    backend.teardown(provisioned, 1)


def test_a_second_worker_at_one_object_waits_for_the_first(
    backend: Postgres, pg: PgServer, provisioned: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = destroy.close
    inside, go_on = threading.Event(), threading.Event()

    def pauses(*words: Any, **more: Any) -> None:
        monkeypatch.setattr(destroy, "close", honest)
        inside.set()
        go_on.wait(20)
        honest(*words, **more)

    monkeypatch.setattr(destroy, "close", pauses)
    workers = [threading.Thread(target=backend.teardown, args=(provisioned, fence)) for fence in (1, 2)]
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
    assert pg.drops_of(provisioned) == 1


def test_no_customer_may_log_in_where_workers_take_their_locks(pg: PgServer, provisioned: dict[str, Any]) -> None:
    for database in (accounts.NAME, "postgres", "template1"):
        with pytest.raises(psycopg2.OperationalError, match="permission denied for database"):
            psycopg2.connect(database_dsn(provisioned["dsn"], database))


def test_a_customer_that_takes_the_lock_in_an_older_deployment_is_ended(
    pg: PgServer, provisioned: dict[str, Any]
) -> None:
    """Where the dsn names `postgres` and customers may log in there, each can read the lock's key in pg_locks."""
    older = Postgres(database_dsn(pg.service_dsn, "postgres"))
    key = session.lock_key(provisioned["database"])
    with (
        accounts.customers_in_postgres(pg),
        closing(psycopg2.connect(database_dsn(provisioned["dsn"], "postgres"))) as theirs,
    ):
        theirs.cursor().execute("SELECT pg_advisory_lock(%s)", (key,))
        who = f"pid {theirs.info.backend_pid} of '{provisioned['role']}'"
        told = older.teardown(provisioned, 1)
    assert f"ended a customer's session that we waited for: {who}" in str(told["statements"][0])
    assert not pg.bears(provisioned)


def test_workers_whose_dsns_differ_in_their_text_take_the_same_lock(pg: PgServer, provisioned: dict[str, Any]) -> None:
    dsns = [pg.service_dsn, psycopg2.extensions.make_dsn(pg.service_dsn, host="localhost", application_name="other")]
    with Server(dsns[0], frozenset()).connect() as first, Server(dsns[1], frozenset()).connect() as second:
        first.lock(provisioned["database"])
        taken = "SELECT pg_try_advisory_lock(%s)"
        with second.cursor() as cursor:
            cursor.execute(taken, (session.lock_key(provisioned["database"]),))
            assert cursor.fetchone() == (False,)


# A worker's process, with an interval that a test can wait for.
WORKER = """
import json, sys
from worker.backends.postgres import Postgres, session
session.CLIENT_CHECK_MS = 500
dsn, manifest = json.load(sys.stdin)
Postgres(dsn).teardown(manifest, 1)
"""
DROPS = (
    "SELECT pid FROM pg_stat_activity WHERE query LIKE 'DROP DATABASE \"zz_del_%%' AND wait_event = 'ProcSignalBarrier'"
)
LOCKED = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND pid = %s"


@pytest.mark.parametrize("anywhere", ["18-service", "15-service"], indirect=True)
def test_a_worker_that_is_killed_inside_a_drop_leaves_no_session_and_no_lock(
    anywhere: tuple[Postgres, PgServer],
) -> None:
    """A drop waits for every session of the server; one that stands still holds it up."""
    backend, pg = anywhere
    plan = backend.plan(uuid.uuid4(), uuid.uuid4())
    manifest = backend.provision(plan.manifest, plan.credentials)
    with closing(psycopg2.connect(pg.dsn)) as stands_still:
        stopped = stands_still.info.backend_pid
        worker = subprocess.Popen([sys.executable, "-c", WORKER], stdin=subprocess.PIPE, text=True)
        assert worker.stdin
        os.kill(stopped, signal.SIGSTOP)
        try:
            worker.stdin.write(json.dumps([pg.service_dsn, manifest]))
            worker.stdin.close()
            eventually(lambda: pg.query(DROPS), what="the drop waits")
            [(pid,)] = pg.query(DROPS)
            assert pg.query(LOCKED, pid) == [(1,), (1,)], "the object's lock, and its turn"
            worker.kill()
            worker.wait()
            eventually(
                lambda: not pg.query("SELECT 1 FROM pg_stat_activity WHERE pid = %s", pid),
                5 * slowness(),
                "the server has noticed, while the other session still stands still",
            )
            assert pg.query(LOCKED, pid) == []
        finally:
            os.kill(stopped, signal.SIGCONT)
            worker.kill()
            worker.wait()
    backend.teardown(manifest, 2)
    assert isinstance(backend.inspect(manifest), Absent)
