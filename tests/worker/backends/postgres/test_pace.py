"""Drops take turns on their server, and nobody waits for a turn for ever."""

import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import psycopg2
import pytest

from outbox.rows import Json
from tests.support.witness import PgServer, eventually
from worker.backends import Absent
from worker.backends.postgres import Postgres, pace, session

_ASKING = """
    SELECT count(*) FROM pg_stat_activity
     WHERE usename = 'deprovisioner_service' AND query LIKE '%%pg_try_advisory_lock%%' AND pid <> %s"""


def made(backend: Postgres) -> Json:
    plan = backend.plan(uuid.uuid4(), uuid.uuid4())
    return backend.provision(plan.manifest, plan.credentials)


def test_a_drop_waits_for_its_turn_and_all_else_is_done_meanwhile(pg: PgServer) -> None:
    backend = Postgres(pg.service_dsn)
    manifest = made(backend)
    dying = f"zz_del_{manifest['generation']}"
    with closing(psycopg2.connect(pg.service_dsn)) as other, ThreadPoolExecutor(1) as threads:
        other.autocommit = True
        other.cursor().execute("SELECT pg_advisory_lock(%s)", (session.lock_key("turn 0"),))
        teardown = threads.submit(backend.teardown, manifest, 1)
        eventually(lambda: pg.query(_ASKING, other.info.backend_pid)[0][0] == 1, what="it asks for its turn")
        assert pg.query("SELECT datallowconn FROM pg_database WHERE datname = %s", dying) == [(False,)]
        assert not pg.drops_of(manifest)
        other.cursor().execute("SELECT pg_advisory_unlock(%s)", (session.lock_key("turn 0"),))
        teardown.result(30)
    assert pg.drops_of(manifest) == 1
    assert isinstance(backend.inspect(manifest), Absent)


def test_a_worker_that_stands_still_in_its_turn_stops_no_teardown(
    pg: PgServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "LONGEST_WAIT_SECONDS", 0.2)
    backend = Postgres(pg.service_dsn)
    manifest = made(backend)
    with closing(psycopg2.connect(pg.service_dsn)) as other:
        other.cursor().execute("SELECT pg_advisory_lock(%s)", (session.lock_key("turn 0"),))
        backend.teardown(manifest, 1)
    assert pg.drops_of(manifest) == 1


def test_a_pace_of_two_has_two_turns_and_gives_each_back(pg: PgServer) -> None:
    backend = Postgres(pg.service_dsn, pace=2)
    first, second = made(backend), made(backend)
    with closing(psycopg2.connect(pg.service_dsn)) as other:
        other.autocommit = True
        other.cursor().execute("SELECT pg_advisory_lock(%s)", (session.lock_key("turn 0"),))
        for manifest in (first, second):
            backend.teardown(manifest, 1)
    held = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid <> pg_backend_pid()"
    eventually(lambda: pg.query(held) == [(0,)], what="all turns are given back")
