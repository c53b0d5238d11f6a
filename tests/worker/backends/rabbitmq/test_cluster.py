"""A cluster of three real nodes: whose word counts when one is cut off, and when one is down."""

import uuid

import pytest

from deprovisioner.conformance.verbs import every_verb
from outbox.errors import OutOfService, Unavailable
from tests.support import rabbitmq_servers
from tests.support.rabbitmq_servers import RabbitmqServer
from tests.support.witness import eventually
from worker.backends import Absent, Same
from worker.backends.rabbitmq import Rabbitmq

pytestmark = pytest.mark.proof


def cut_off(server: RabbitmqServer, others: list[RabbitmqServer]) -> None:
    """The node and the others lose each other, all at once, and cannot come together again: their cookies differ."""
    names = ", ".join(f"'{other.node}'" for other in others)
    cookies, connections = "erlang:set_cookie(N, wrong)", "erlang:disconnect_node(N)"
    server.run("eval", f"[{cookies} || N <- [{names}]], [{connections} || N <- [{names}]].")


def test_a_node_that_is_cut_off_is_not_believed_and_the_majority_is() -> None:
    with rabbitmq_servers.cluster(3) as (one, two, three):
        backends = [Rabbitmq(server.service_dsn) for server in (one, two, three)]
        plan = backends[0].plan(uuid.uuid4(), uuid.uuid4())
        manifest = backends[0].provision(plan.manifest, plan.credentials)
        assert [backend.server_identity() for backend in backends] == [manifest["server"]] * 3
        assert all(isinstance(backend.inspect(manifest), Same) for backend in backends)
        cut_off(three, [one, two])
        for act in every_verb(backends[2], manifest, plan.credentials):
            with pytest.raises(OutOfService):
                act()
        eventually(lambda: len(rabbitmq_servers.told(one)) == 2)
        assert isinstance(backends[0].inspect(manifest), Same)
        assert one.can_log_in(plan.credentials)
        with pytest.raises(OutOfService, match="is down, and may hold queues"):
            backends[0].teardown(manifest, 1)
        assert one.can_log_in(plan.credentials)
        three.process.kill()
        with pytest.raises(Unavailable):
            backends[2].inspect(manifest)
        one.run("forget_cluster_node", three.node)
        backends[0].teardown(manifest, 1)
        assert all(isinstance(backend.inspect(manifest), Absent) for backend in backends[:2])
        assert not two.bears(manifest)
