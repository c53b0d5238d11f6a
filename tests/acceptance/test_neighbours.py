"""A tenant with twenty thousand jobs waiting does not keep its neighbour's DELETE from being done."""

import statistics
import uuid
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
_WAITING = (
    "SELECT count(*) FROM outbox JOIN resources ON resources.id = resource_id WHERE tenant = :t AND state = 'pending'"
)


@pytest.mark.proof
@pytest.mark.timeout(600)
@pytest.mark.parametrize("status", ["deleting", "provisioning"])
def test_a_delete_beside_twenty_thousand_jobs_takes_at_most_three_times_as_long(
    db: Connection, system: System, servers: Servers, status: str
) -> None:
    """The time is the database's: from the DELETE's commit to the job's end, each with a real DROP."""
    _, secret = tokens.create(db, role="tenant", tenant="calm", name="calm")
    system.worker()
    with client(system.api(), secret) as calm:
        made = [until(calm, create(calm), "active") for _ in range(2 * EACH)]

        def deleted(resource: dict[str, Any]) -> float:
            assert calm.delete(f"/v1/resources/{resource['id']}").status_code == 202
            until(calm, resource, "deleted")
            assert servers.pg.drops_of(resource["manifest"]) == 1
            took = text("""SELECT extract(epoch FROM finished_at - created_at)::float FROM outbox
                            WHERE resource_id = :id AND kind = 'deprovision'""")
            return db.execute(took, {"id": uuid.UUID(resource["id"])}).scalar_one()

        idle = [deleted(resource) for resource in made[:EACH]]
        server = servers.pg.query("SELECT system_identifier::text FROM pg_control_system()")[0][0]
        db.execute(text("SET statement_timeout = 0"))
        db.execute(text(_CROWD), {"many": MANY, "status": status, "server": server})
        eventually(
            lambda: db.execute(text(_WAITING), {"t": "crowd"}).scalar_one() < MANY - 20, what="they are worked on"
        )
        beside = [deleted(resource) for resource in made[EACH:]]
        left = db.execute(text(_WAITING), {"t": "crowd"}).scalar_one()
    print(f"{status}: idle {idle}, beside {beside}, {left} left")
    assert left > MANY / 10, "they waited all the while"
    assert statistics.median(beside) <= 3 * statistics.median(idle)
