"""A role that left something in another database, which no account may enter meanwhile."""

import uuid

import pytest

from outbox.errors import Transient
from tests.support.servers import OLD_POSTGRES_PROGRAMS, Servers
from tests.support.subjects import postgres
from worker.backends import Same


@pytest.mark.parametrize("version", ["18", "15"])
def test_a_neighbour_s_trouble_stays_the_neighbour_s(
    request: pytest.FixtureRequest, servers: Servers, version: str
) -> None:
    server = servers.pg if version == "18" else request.getfixturevalue("postgres15")
    with postgres.on(server, None if version == "18" else OLD_POSTGRES_PROGRAMS) as subject:
        backend = subject.backend()
        plans = [backend.plan(uuid.uuid4(), uuid.uuid4()) for _ in range(3)]
        ours, neighbours, bystanders = (backend.provision(plan.manifest, plan.credentials) for plan in plans)
        entered = f'ALTER DATABASE "{neighbours["database"]}" ALLOW_CONNECTIONS'
        server.query(f'CREATE SCHEMA left_over AUTHORIZATION "{ours["role"]}"', database=neighbours["database"])
        server.query(f"{entered} false")
        with pytest.raises(Transient, match=neighbours["database"]):
            backend.teardown(ours, 1)
        assert not subject.can_log_in(plans[0].credentials)
        backend.teardown(bystanders, 1)
        assert not subject.bears(bystanders)
        server.query(f"{entered} true")
        backend.teardown(ours, 2)
        assert not subject.bears(ours)
        assert isinstance(backend.inspect(neighbours), Same)
        backend.teardown(neighbours, 1)
