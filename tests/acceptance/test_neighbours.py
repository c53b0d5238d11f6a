"""A tenant with twenty thousand jobs waiting does not keep its neighbour's DELETE from being done."""

import statistics
import uuid
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, text

from outbox import tokens
from tests.support.api import create, until
from tests.support.processes import System, client
from tests.support.servers import Servers
from tests.support.witness import eventually

MANY = 20_000
EACH = 5
# What other tests of this machine may add. In the order of arrival it would be minutes.
BUSY_SECONDS = 0.5
# As API calls leave them; the trigger gives each job its lane.
_CROWD = """
    WITH made AS (
        INSERT INTO resources (id, tenant, kind, backend, name, status, generation, manifest, activated_at, deleted_at)
        SELECT gen_random_uuid(), 'crowd', 'postgres', 'pg-main', 'n', :status, g,
               CASE :status WHEN 'deleting' THEN jsonb_build_object('database', 'db_' || n, 'role', 'usr_' || n,
                    'generation', g, 'system_identifier', :server) END,
               CASE :status WHEN 'deleting' THEN now() END, CASE :status WHEN 'deleting' THEN now() END
          FROM (SELECT n, gen_random_uuid() AS g FROM generate_series(1, :many) AS n) AS numbered
     RETURNING id, status, backend
    )
    INSERT INTO outbox (kind, resource_id, backend, max_attempts, request_id)
    SELECT CASE status WHEN 'deleting' THEN 'deprovision' ELSE 'provision' END, id, backend, 10, id FROM made"""
_LEFT = """
    SELECT count(*) FROM outbox JOIN resources ON resources.id = resource_id
     WHERE tenant = 'crowd' AND state = 'pending'"""
# From the DELETE's commit to its claim, and to its end, by the database's clock.
_TOOK = """
    SELECT extract(epoch FROM (SELECT min(at) FROM events WHERE job_id = outbox.id AND event = 'claimed') - created_at),
           extract(epoch FROM finished_at - created_at)
      FROM outbox WHERE resource_id = :id AND kind = 'deprovision'"""


@pytest.mark.proof
@pytest.mark.timeout(600)
@pytest.mark.parametrize("status", ["deleting", "provisioning"])
def test_a_delete_beside_twenty_thousand_jobs_of_another_tenant_does_not_wait_for_them(
    db: Connection, system: System, servers: Servers, status: str
) -> None:
    """Each DELETE is of a real database.

    On a machine that does nothing else it takes at most three times as long as alone.
    """
    backends = Path(system.env["DEPROVISIONER_BACKENDS"])
    backends.write_text(backends.read_text().replace("concurrency = 8\n", ""))  # the default, which fits a small server
    _, secret = tokens.create(db, actor="op", role="tenant", tenant="calm", name="calm")
    system.worker()
    with client(system.api(), secret) as calm:
        made = [until(calm, create(calm), "active") for _ in range(2 * EACH)]

        def deleted(resource: dict[str, Any]) -> tuple[float, float]:
            assert calm.delete(f"/v1/resources/{resource['id']}").status_code == 202
            until(calm, resource, "deleted")
            assert servers.pg.drops_of(resource["manifest"]) == 1
            waited, took = db.execute(text(_TOOK), {"id": uuid.UUID(resource["id"])}).one()
            return float(waited), float(took)

        idle = statistics.median(took for _, took in map(deleted, made[:EACH]))
        server = servers.pg.query("SELECT system_identifier::text FROM pg_control_system()")[0][0]
        db.execute(text("SET statement_timeout = 0"))
        db.execute(text(_CROWD), {"many": MANY, "status": status, "server": server})
        left = text(_LEFT)
        eventually(lambda: db.execute(left).scalar_one() < MANY - 60, what="the crowd is worked on")
        waits, beside = zip(*map(deleted, made[EACH:]), strict=True)
        assert db.execute(left).scalar_one() > MANY / 10, "the crowd waits all the while"
    figures = f"alone {idle:.2f} s; beside {MANY} {status}: {beside}, until the claim {waits}"
    assert statistics.median(waits) <= idle, figures
    assert statistics.median(beside) <= 3 * idle + BUSY_SECONDS, figures
    print(figures)
