"""Time limits, and the lock that lets one worker at a time inside one object."""

import os
import signal
import threading
from typing import Any

import psycopg2
import pytest

from outbox.errors import Unavailable
from tests.support.servers import Servers
from tests.support.witness import PgServer, eventually
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
