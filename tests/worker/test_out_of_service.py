"""A real server that answers inspections and refuses work: one job is tried at a time, and none loses an attempt."""

import json
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from sqlalchemy import Connection, text

from deprovisioner.up import servers as embedded
from tests.support.factories import a_job, claims, job
from tests.support.servers import OLD_REDIS_PROGRAM, server_folder
from worker.backends.redis import Redis
from worker.run import Run

JOBS = 3


@pytest.fixture(params=["valkey", "redis"])
def server(request: pytest.FixtureRequest) -> Iterator[str]:
    """A Valkey, or the machine's older Redis, whose settings the test may change."""
    if request.param == "redis" and not OLD_REDIS_PROGRAM.exists():
        pytest.skip(f"{OLD_REDIS_PROGRAM} is not installed")
    port = embedded.free_port()
    child = embedded.valkey(server_folder("refuses"), "refuses", port, durable=True)
    if request.param == "redis":
        child.argv = [OLD_REDIS_PROGRAM, *child.argv[1:]]
    child.spawn()
    try:
        child.wait_until(lambda: embedded.valkey_ready(f"redis://127.0.0.1:{port}"))
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        child.stop()


def _round(db: Connection, backend: Redis) -> int:
    """Everything that waits is due: claim once and run; how many jobs were let through."""
    db.execute(text("UPDATE outbox SET available_at = now() WHERE state = 'pending'"))
    db.execute(text("UPDATE breakers SET retry_at = now()"))
    taken = claims(db, JOBS)
    for claim in taken:
        Run(claim, backend, worker="w")()
    return len(taken)


def _states(db: Connection, ids: list[int]) -> list[tuple[str, int]]:
    return [(row.state, row.attempts) for row in (job(db, id) for id in ids)]


@pytest.mark.parametrize("kind", ["deprovision", "provision"])
def test_a_server_that_answers_reads_and_refuses_writes_burns_no_attempts(
    db: Connection, server: str, kind: str
) -> None:
    backend, operator = Redis(server), redis.Redis.from_url(server)
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
        db.execute(
            text("UPDATE resources SET manifest = CAST(:manifest AS jsonb) WHERE id = :id"),
            {"manifest": stored, "id": resource.id},
        )
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
