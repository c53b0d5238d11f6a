"""Quarantine, and what comes back of it."""

from typing import Any

import amqp
import pytest

from tests.support.rabbitmq_servers import RabbitmqServer
from worker.backends import Absent, Same
from worker.backends.rabbitmq import Rabbitmq

Provisioned = tuple[dict[str, Any], dict[str, Any]]


def test_a_life(server: RabbitmqServer, backend: Rabbitmq, provisioned: Provisioned) -> None:
    manifest, credentials = provisioned
    assert isinstance(backend.inspect(manifest), Same)
    held = server.client(credentials)
    channel = held.channel()
    channel.queue_declare("q", durable=True, auto_delete=False)
    backend.quarantine(manifest)
    with pytest.raises((amqp.exceptions.AMQPError, OSError)):
        channel.queue_declare("r")
    assert not server.can_log_in(credentials)
    backend.quarantine(manifest)
    backend.release(manifest)
    assert server.can_log_in(credentials)
    print(backend.prove(manifest, credentials))
    print(list(backend.objects()), list(backend.unmarked()))
    print(backend.check())
    print(backend.teardown(manifest, 1))
    assert isinstance(backend.inspect(manifest), Absent)
    assert not server.bears(manifest)
