"""What is not as it should be on a server."""

import uuid

import pytest

from tests.support import accounts, rabbitmq_servers
from tests.support.rabbitmq_servers import RabbitmqServer
from worker.backends.rabbitmq import Rabbitmq
from worker.backends.rabbitmq.session import Server


def codes(backend: Rabbitmq) -> set[str]:
    return {finding.code for finding in backend.check()}


def test_the_documented_account_on_a_server_as_it_should_be_has_no_finding(backend: Rabbitmq) -> None:
    assert backend.check() == []
    assert [line.split()[0] for line in rabbitmq_servers.documented()] == ["rabbitmqctl"] * 2


def test_open_doors_and_rights_that_are_not_needed_are_found(server: RabbitmqServer, backend: Rabbitmq) -> None:
    server.api("PUT", "users", "guest", body={"password": "guest", "tags": ""})
    everything = {"configure": ".*", "write": ".*", "read": ".*"}
    server.api("PUT", "permissions", "/", accounts.NAME, body=everything)
    try:
        assert codes(backend) == {"public_connect", "rights_too_many"}
    finally:
        server.api("DELETE", "users", "guest")
        server.api("DELETE", "permissions", "/", accounts.NAME)


def test_a_password_in_clear_text_is_found(monkeypatch: pytest.MonkeyPatch, server: RabbitmqServer) -> None:
    backend = Rabbitmq(server.service_dsn)
    monkeypatch.setattr(backend._server, "host", "mq.example.com")
    assert codes(backend) == {"connection_unencrypted"}
    assert Server("https://u:p@mq.example.com", frozenset()).encrypted


def test_a_check_changes_nothing(server: RabbitmqServer) -> None:
    weak = Rabbitmq(server.account(f"weak_{uuid.uuid4().hex}", "monitoring"))
    before = server.names("users") | server.names("vhosts")
    assert codes(weak) == {"rights_too_few"}
    assert server.names("users") | server.names("vhosts") == before
