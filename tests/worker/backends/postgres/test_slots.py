"""A customer that takes every connection slot keeps no teardown waiting."""

import contextlib
import datetime as dt
import socket
import struct
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from deprovisioner.up import servers as embedded
from outbox.errors import Unavailable
from tests.support import accounts
from tests.support.servers import OLD_POSTGRES_PROGRAMS
from tests.support.witness import PgServer, eventually
from worker.backends import Absent
from worker.backends.postgres import Postgres


@pytest.fixture(params=["18", pytest.param("15", marks=pytest.mark.proof)])
def small(request: pytest.FixtureRequest, folder: Path) -> Iterator[PgServer]:
    """A server with 20 slots, of which none is the service's own."""
    old = request.param == "15"
    if old and not (OLD_POSTGRES_PROGRAMS / "postgres").exists():
        pytest.skip(f"no PostgreSQL 15 in {OLD_POSTGRES_PROGRAMS}")
    port = embedded.free_port()
    settings = {"max_connections": "20", "fsync": "off"}
    child = embedded.postgres(folder, "small", port, "p", settings, programs=OLD_POSTGRES_PROGRAMS if old else None)
    dsn = embedded.postgres_dsn(port, "p")
    try:
        child.spawn()
        child.wait_until(lambda: embedded.postgres_ready(dsn))
        yield PgServer(dsn, child.log, accounts.postgres(dsn))
    finally:
        child.stop()


def _made(backend: Postgres) -> tuple[dict[str, Any], str]:
    plan = backend.plan(uuid.uuid4(), uuid.uuid4())
    return backend.provision(plan.manifest, plan.credentials), plan.credentials["dsn"]


def _sessions(dsn: str, life: contextlib.ExitStack) -> int:
    opened = 0
    with contextlib.suppress(psycopg2.OperationalError):
        while True:
            life.callback(psycopg2.connect(dsn).close)
            opened += 1
    return opened


def test_a_role_has_so_many_sessions_and_a_customer_that_took_every_slot_loses_them(small: PgServer) -> None:
    limited = Postgres(small.service_dsn, connection_limit=3)
    backend = Postgres(small.service_dsn)
    (mallory, mallorys), (victim, _), (modest, modests) = _made(backend), _made(backend), _made(limited)
    asked = "SELECT rolconnlimit FROM pg_roles WHERE oid = %s"
    assert [small.query(asked, one["role_oid"]) for one in (mallory, modest)] == [[(50,)], [(3,)]]
    small.query(f'ALTER ROLE "{mallory["role"]}" CONNECTION LIMIT -1')  # as an older version made it
    with contextlib.ExitStack() as life:
        assert _sessions(modests, life) == 3
        assert _sessions(mallorys, life) > 5
        started_late = Postgres(small.service_dsn)
        with pytest.raises(Unavailable):
            started_late.inspect(victim)
        theirs = "SELECT count(*) FROM pg_stat_activity WHERE usesysid = %s"
        before = small.query(theirs, mallory["role_oid"])
        for look in (lambda: backend.login_attempts(victim, dt.datetime.now(dt.UTC)), lambda: [*backend.objects()]):
            with pytest.raises(Unavailable):
                look()
        assert small.query(theirs, mallory["role_oid"]) == before, "what only looks ends no customer's sessions"
        told = backend.teardown(victim, 1)
        assert isinstance(backend.inspect(victim), Absent)
        assert f"sessions of '{mallory['role']}', a customer: the server had no connection slot left" in str(told)
        assert small.query(asked, mallory["role_oid"]) == [(50,)]
        assert small.query(theirs, modest["role_oid"]) == [(3,)], "who took little keeps it"
    backend.teardown(mallory, 1)
    assert not small.bears(mallory)


def test_a_server_that_many_customers_fill_together_is_away_and_none_of_them_is_ended(small: PgServer) -> None:
    limited = Postgres(small.service_dsn, connection_limit=1)
    made = [_made(limited) for _ in range(16)]
    victim, _ = _made(limited)
    with contextlib.ExitStack() as life:
        opened = sum(_sessions(dsn, life) for _, dsn in made)
        with pytest.raises(Unavailable, match="slots"):
            limited.teardown(victim, 1)
        customers = "SELECT count(*) FROM pg_stat_activity WHERE usename LIKE 'usr\\_%%'"
        assert small.query(customers) == [(opened,)]
    limited.teardown(victim, 2)
    assert not small.bears(victim)


def test_connections_that_never_log_in_keep_a_teardown_waiting_and_lose_nothing(small: PgServer) -> None:
    """They need no password, only the port; a superuser cannot log in either."""
    backend = Postgres(small.service_dsn)
    manifest, _ = _made(backend)
    port = int(psycopg2.extensions.parse_dsn(small.dsn)["port"])
    start = struct.pack("!i", 196608) + b"user\0x\0database\0x\0\0"
    with contextlib.ExitStack() as life:

        def full() -> bool:
            taken = life.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10))
            taken.sendall(struct.pack("!i", len(start) + 4) + start)
            with contextlib.suppress(psycopg2.OperationalError):
                psycopg2.connect(small.dsn).close()
                return False
            return True

        eventually(full, what="no slot is left")
        with pytest.raises(Unavailable, match="too many clients"):
            backend.teardown(manifest, 1)
    eventually(lambda: _gone(backend, manifest), what="the slots are free again")
    assert not small.bears(manifest)


def _gone(backend: Postgres, manifest: dict[str, Any]) -> bool:
    with contextlib.suppress(Unavailable):
        backend.teardown(manifest, 2)
        return True
    return False
