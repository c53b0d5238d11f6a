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
from tests.support.servers import Servers
from tests.support.witness import PgServer, eventually, slowness
from worker.backends import Absent
from worker.backends.postgres import Postgres, destroy, identity


def test_a_server_that_stops_answering_is_unavailable_in_bounded_time(
    backend: Postgres, servers: Servers, monkeypatch: pytest.MonkeyPatch, provisioned: dict[str, Any]
) -> None:
    monkeypatch.setattr(identity, "INSPECT_SECONDS", 1)
    honest = identity.read_state

    def frozen(session: Any, manifest: Any) -> Any:
        pid = session.info.backend_pid
        os.kill(pid, signal.SIGSTOP)
        try:
            return honest(session, manifest)
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
    honest = destroy._quarantine
    inside, go_on = threading.Event(), threading.Event()

    def pauses(*words: Any) -> None:
        monkeypatch.setattr(destroy, "_quarantine", honest)
        inside.set()
        go_on.wait(20)
        honest(*words)

    monkeypatch.setattr(destroy, "_quarantine", pauses)
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


def test_a_customer_cannot_take_the_lock_and_delay_its_teardown(
    backend: Postgres, pg: PgServer, provisioned: dict[str, Any]
) -> None:
    """It may connect to the maintenance database, and guess at the workers' lock."""
    session = psycopg2.connect(provisioned["dsn"].rsplit("/", 1)[0] + "/postgres")
    session.cursor().execute(
        "SELECT pg_advisory_lock(hashtextextended(name, 0)) FROM unnest(%s) AS name",
        ([provisioned["database"], f"deprovisioner:{provisioned['database']}", provisioned["generation"]],),
    )
    backend.teardown(provisioned, 1)
    assert not pg.bears(provisioned)


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
            assert pg.query(LOCKED, pid) == [(1,)]
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
