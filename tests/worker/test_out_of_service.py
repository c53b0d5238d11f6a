"""A real server that answers and refuses work: one job is tried at a time, and none loses an attempt."""

import json
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from sqlalchemy import Connection, text

from tests.support import redis_servers, standby
from tests.support.factories import a_job, claims, job, unguarded
from tests.support.servers import OLD_POSTGRES_PROGRAMS
from tests.support.standby import lagging
from tests.support.witness import PgServer, RedisServer
from worker.backends import Backend
from worker.backends.postgres import Postgres, waits
from worker.backends.redis import Redis
from worker.run import Run

JOBS = 3


@pytest.fixture(params=["valkey", "redis"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RedisServer]:
    """A Valkey, or the machine's older Redis, whose settings the test may change."""
    with redis_servers.running(request.param, tmp_path / "refuses") as made:
        yield made


@pytest.fixture(scope="module", params=["18", pytest.param("15", marks=pytest.mark.proof)])
def replicated(request: pytest.FixtureRequest) -> Iterator[tuple[PgServer, PgServer]]:
    """A primary and a standby of each version; the test may change the primary's settings."""
    if request.param == "15" and not (OLD_POSTGRES_PROGRAMS / "postgres").exists():
        pytest.skip(f"no PostgreSQL 15 in {OLD_POSTGRES_PROGRAMS}")
    with lagging(OLD_POSTGRES_PROGRAMS if request.param == "15" else None) as servers:
        yield servers


class _FailsOver(Postgres):
    """A backend whose address leads to another server once a job has started: what a proxy does after a failover."""

    def __init__(self, before: str, after: str) -> None:
        super().__init__(before)
        self._after = Postgres(after)
        self.over = True

    def teardown(self, manifest: Any, fence: int) -> Any:
        return (self._after if self.over else super()).teardown(manifest, fence)


def _round(db: Connection, backend: Backend) -> int:
    """Everything that waits is due: claim once and run; how many jobs were let through."""
    db.execute(text("UPDATE outbox SET available_at = now() WHERE state = 'pending'"))
    db.execute(text("UPDATE breakers SET retry_at = now()"))
    taken = claims(db, JOBS)
    for claim in taken:
        Run(claim, backend, worker="w")()
    return len(taken)


def _deprovisions(db: Connection, backend: Backend) -> tuple[list[int], list[dict[str, Any]]]:
    """JOBS jobs with two attempts each, and the manifests of their objects, which exist."""
    ids = [a_job(db, max_attempts=2) for _ in range(JOBS)]
    made = []
    for id in ids:
        resource = db.execute(
            text("SELECT id, generation FROM resources WHERE id = :id"), {"id": job(db, id).resource_id}
        ).one()
        plan = backend.plan(resource.id, resource.generation)
        made.append(backend.provision(plan.manifest, plan.credentials))
        stored_as = "UPDATE resources SET manifest = CAST(:manifest AS jsonb) WHERE id = :id"
        unguarded(db, stored_as, manifest=json.dumps(made[-1]), id=resource.id)
    return ids, made


def _states(db: Connection, ids: list[int]) -> list[tuple[str, int]]:
    return [(row.state, row.attempts) for row in (job(db, id) for id in ids)]


@pytest.mark.parametrize("kind", ["deprovision", "provision"])
def test_a_server_that_answers_reads_and_refuses_writes_burns_no_attempts(
    db: Connection, server: RedisServer, kind: str
) -> None:
    backend, operator = Redis(server.service_dsn), server.client
    first = backend.plan(uuid.uuid4(), uuid.uuid4())  # plants what names the server, while it still accepts writes
    backend.provision(first.manifest, first.credentials)
    ids = [a_job(db, kind=kind, max_attempts=2) for _ in range(JOBS)]
    made: list[dict[str, Any]] = []
    for id in ids:
        resource = db.execute(
            text("SELECT id, generation FROM resources WHERE id = :id"), {"id": job(db, id).resource_id}
        ).one()
        plan = backend.plan(resource.id, resource.generation)
        made.append(plan.manifest)
        stored = None
        if kind == "deprovision":
            backend.provision(plan.manifest, plan.credentials)
            stored = json.dumps(plan.manifest)
        stored_as = "UPDATE resources SET manifest = CAST(:manifest AS jsonb) WHERE id = :id"
        unguarded(db, stored_as, manifest=stored, id=resource.id)
    operator.config_set("min-replicas-to-write", 1)  # NOREPLICAS to every write, and answers to every read
    let_through = [_round(db, backend) for _ in range(6)]
    assert let_through == [JOBS, 1, 1, 1, 1, 1]
    assert _states(db, ids) == [("pending", 0)] * JOBS
    assert "NOREPLICAS" in job(db, ids[0]).last_error
    operator.config_set("min-replicas-to-write", 0)
    assert [_round(db, backend), _round(db, backend)] == [1, JOBS - 1]
    assert _states(db, ids) == [("succeeded", 1)] * JOBS
    assert db.execute(text("SELECT count(*) FROM breakers")).scalar_one() == 0
    users = set(operator.acl_users())
    assert {manifest["user"] in users for manifest in made} == {kind == "provision"}


@pytest.mark.parametrize("moment", ["before the start", "after the start"])
def test_jobs_of_a_postgres_that_became_a_standby_wait_and_burn_no_attempts(
    db: Connection, replicated: tuple[PgServer, PgServer], moment: str
) -> None:
    primary, lags = replicated
    backend = _FailsOver(primary.service_dsn, lags.service_dsn)
    ids, made = _deprovisions(db, backend)
    away: Backend = backend if moment == "after the start" else Postgres(lags.service_dsn)
    assert [_round(db, away) for _ in range(6)] == [JOBS, 1, 1, 1, 1, 1]
    assert _states(db, ids) == [("pending", 0)] * JOBS
    assert "is a standby" in job(db, ids[0]).last_error
    assert (moment == "after the start") == bool(_started(db, ids))
    assert all(primary.bears(manifest) for manifest in made)
    backend.over = False
    assert [_round(db, backend), _round(db, backend)] == [1, JOBS - 1]
    assert _states(db, ids) == [("succeeded", 1)] * JOBS
    assert not any(primary.bears(manifest) for manifest in made)


class _LosesItsStandby(Postgres):
    """A backend whose synchronous standby goes away once a job has started."""

    def __init__(self, server: PgServer) -> None:
        super().__init__(server.service_dsn)
        self.server = server

    def teardown(self, manifest: Any, fence: int) -> Any:
        standby.require(self.server, "missing")
        return super().teardown(manifest, fence)


@pytest.mark.parametrize("moment", ["before the start", "after the start"])
def test_jobs_of_a_postgres_without_its_synchronous_standby_wait_and_burn_no_attempts(
    db: Connection, replicated: tuple[PgServer, PgServer], monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    monkeypatch.setattr(waits, "LOOK_SECONDS", 0.1)
    monkeypatch.setattr(waits, "CONFIRM_SECONDS", 0.3)
    primary, _ = replicated
    backend = Postgres(primary.service_dsn)
    ids, made = _deprovisions(db, backend)
    try:
        if moment == "before the start":
            standby.require(primary, "missing")
        rounds = [_round(db, _LosesItsStandby(primary)), _round(db, backend)]
        assert (rounds, _states(db, ids)) == ([JOBS, 1], [("pending", 0)] * JOBS)
        assert "no synchronous standby confirms it" in job(db, ids[0]).last_error
        assert _started(db, ids) == (moment == "after the start"), "the other jobs did not even start"
    finally:
        standby.require(primary, "")
    assert [_round(db, backend), _round(db, backend)] == [1, JOBS - 1]
    assert _states(db, ids) == [("succeeded", 1)] * JOBS
    assert not any(primary.bears(manifest) for manifest in made)


def test_jobs_of_a_postgres_that_keeps_new_transactions_read_only_go_on(
    db: Connection, replicated: tuple[PgServer, PgServer]
) -> None:
    primary, _ = replicated
    backend = Postgres(primary.service_dsn)
    ids, made = _deprovisions(db, backend)
    try:
        _set_read_only(primary, "on")
        with pytest.raises(psycopg2.errors.ReadOnlySqlTransaction):
            primary.query("CREATE ROLE nobody_makes_this")
        assert _round(db, backend) == JOBS
    finally:
        _set_read_only(primary, "off")
    assert _states(db, ids) == [("succeeded", 1)] * JOBS
    assert not any(primary.bears(manifest) for manifest in made)


def _set_read_only(server: PgServer, value: str) -> None:
    """At the level of the server, as an operator does whose disk fills; returns once new sessions have it."""
    server.query(f"ALTER SYSTEM SET default_transaction_read_only = '{value}'")
    server.query("SELECT pg_reload_conf()")
    deadline = time.monotonic() + 20
    while server.query("SHOW default_transaction_read_only") != [(value,)]:
        assert time.monotonic() < deadline


def _started(db: Connection, ids: list[int]) -> int:
    return db.execute(
        text("SELECT count(*) FROM outbox WHERE id = ANY(:ids) AND started_fence IS NOT NULL"), {"ids": ids}
    ).scalar_one()
