"""Whom a teardown waits for is told, and it does not wait for ever."""

import os
import signal
import uuid
from contextlib import closing
from typing import Any

import psycopg2
import pytest
from psycopg2.extensions import make_dsn

from outbox.errors import Transient
from tests.support.witness import PgServer
from worker.backends.postgres import Postgres, session, waits


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waits, "LOOK_SECONDS", 0.1)
    monkeypatch.setattr(waits, "PAUSE_SECONDS", 0.1)
    monkeypatch.setattr(waits, "BARRIER_SECONDS", 6.0)  # the server names the process after 5


def test_a_stopped_process_of_another_database_is_named_and_not_waited_for_in_vain(
    backend: Postgres, pg: PgServer, provisioned: dict[str, Any]
) -> None:
    neighbour = f"n_{uuid.uuid4().hex}"
    pg.query(f"CREATE DATABASE {neighbour}")
    with closing(psycopg2.connect(make_dsn(pg.dsn, dbname=neighbour, application_name="dump"))) as theirs:
        pid = theirs.info.backend_pid
        os.kill(pid, signal.SIGSTOP)
        try:
            with pytest.raises(Transient, match=rf"stopped: pid {pid} of 'postgres' \(dump\) in '{neighbour}'"):
                backend.teardown(provisioned, 1)
        finally:
            os.kill(pid, signal.SIGCONT)
        theirs.cursor().execute("SELECT 1")
    backend.teardown(provisioned, 2)
    assert not pg.bears(provisioned)


@pytest.mark.parametrize("prepared", [False, True])
def test_who_holds_a_lock_that_a_teardown_waits_for_is_named(
    backend: Postgres, pg: PgServer, provisioned: dict[str, Any], monkeypatch: pytest.MonkeyPatch, prepared: bool
) -> None:
    soon = session._PARAMETERS["options"].replace("lock_timeout=10000", "lock_timeout=1000")
    monkeypatch.setitem(session._PARAMETERS, "options", soon)
    neighbour = f"n_{uuid.uuid4().hex}"
    pg.query(f"CREATE DATABASE {neighbour}")
    pg.query(f'CREATE TABLE kept (); ALTER TABLE kept OWNER TO "{provisioned["role"]}"', database=neighbour)
    with closing(psycopg2.connect(make_dsn(pg.dsn, dbname=neighbour, application_name="report"))) as theirs:
        theirs.tpc_begin(theirs.xid(1, neighbour, "b"))
        theirs.cursor().execute("SELECT * FROM kept")
        if prepared:
            theirs.tpc_prepare()
        who = "a prepared transaction" if prepared else rf"pid {theirs.info.backend_pid} of 'postgres' \(report\)"
        with pytest.raises(Transient, match=f"in database '{neighbour}': .*lock timeout; it waited for {who}"):
            backend.teardown(provisioned, 1)
        theirs.tpc_rollback()
    backend.teardown(provisioned, 2)
    assert not pg.bears(provisioned)
    pg.query(f"DROP DATABASE {neighbour}")
