"""A primary that answers reads and refuses writes: it is out of service, and nothing is destroyed."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import redis as client

from outbox.errors import OutOfService
from tests.support.servers import Servers
from tests.support.subjects import redis
from tests.support.witness import RedisServer
from worker.backends import Absent, Same


@pytest.fixture(params=["valkey9", "redis7"])
def subject(request: pytest.FixtureRequest, servers: Servers) -> Iterator[redis.Subject]:
    with redis.on(servers.redis if request.param == "valkey9" else request.getfixturevalue("redis7")) as made:
        yield made


@contextmanager
def _without_replicas(server: RedisServer) -> Iterator[None]:
    """Each write is refused (NOREPLICAS), as on a server that lost the replicas that it must have."""
    with client.Redis.from_url(server.url) as administrator:
        administrator.config_set("min-replicas-to-write", 1)
        try:
            yield
        finally:
            administrator.config_set("min-replicas-to-write", 0)


def test_a_server_that_refuses_writes_is_away_and_nothing_is_destroyed(subject: redis.Subject) -> None:
    backend = subject.backend()
    plan, missing = (backend.plan(uuid.uuid4(), uuid.uuid4()) for _ in range(2))
    manifest = backend.provision(plan.manifest, plan.credentials)
    subject.put(plan.credentials)
    with _without_replicas(subject.server):
        for act in (
            lambda: backend.provision(missing.manifest, missing.credentials),
            lambda: backend.provision(manifest, plan.credentials),
            lambda: backend.teardown(manifest, 1),
        ):
            with pytest.raises(OutOfService):
                act()
        assert isinstance(backend.inspect(manifest), Same)
        assert not subject.can_log_in(plan.credentials), "to end a customer's access, the server need not write"
    assert subject.bears(manifest)
    backend.release(manifest)
    assert subject.has(plan.credentials)
    backend.teardown(manifest, 2)
    assert isinstance(backend.inspect(manifest), Absent)
    assert not subject.bears(manifest)
