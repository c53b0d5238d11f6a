"""Plan and provision."""

import uuid

import pytest

from outbox.errors import Refused
from tests.support import accounts
from tests.support.rabbitmq_servers import RabbitmqServer
from tests.worker.backends.rabbitmq.conftest import Provisioned
from worker.backends import Same
from worker.backends.rabbitmq import Rabbitmq
from worker.backends.rabbitmq.session import Session


def test_names_hold_the_resource_s_uuid_and_credentials_open_the_vhost(server: RabbitmqServer) -> None:
    backend = Rabbitmq(server.service_dsn, public_host="mq.example.com", public_port=5671, sslmode="require")
    resource_id = uuid.uuid4()
    plan = backend.plan(resource_id, uuid.uuid4())
    assert resource_id.hex in plan.manifest["vhost"]
    assert resource_id.hex in plan.manifest["user"]
    opener = f"{plan.manifest['user']}:{plan.credentials['password']}"
    assert plan.credentials["url"] == f"amqps://{opener}@mq.example.com:5671/{plan.manifest['vhost']}"
    assert not server.bears(plan.manifest), "a plan makes nothing"


def test_the_service_s_account_opens_no_vhost_that_it_made(
    server: RabbitmqServer, backend: Rabbitmq, provisioned: Provisioned
) -> None:
    manifest, _ = provisioned
    permissions = server.api("GET", "vhosts", manifest["vhost"], "permissions")
    assert [one["user"] for one in permissions] == [manifest["user"]]
    assert server.api("GET", "users", accounts.NAME, "permissions") == []
    assert server.api("GET", "users", manifest["user"])["tags"] == [f"deprovisioner:gen:{manifest['generation']}"]
    assert "rights_too_many" not in {finding.code for finding in backend.check()}


def test_a_customer_reaches_no_other_vhost_and_not_the_management_api(
    server: RabbitmqServer, backend: Rabbitmq, provisioned: Provisioned
) -> None:
    _, credentials = provisioned
    plan = backend.plan(uuid.uuid4(), uuid.uuid4())
    other = backend.provision(plan.manifest, plan.credentials)
    assert not server.can_log_in(credentials | {"vhost": other["vhost"]})
    answer = server.http.get(
        f"http://127.0.0.1:{server.management}/api/vhosts", auth=(credentials["user"], credentials["password"])
    )
    assert answer.status_code == 401


def test_a_limit_of_connections_holds_for_the_vhost(server: RabbitmqServer) -> None:
    backend = Rabbitmq(server.service_dsn, connection_limit=1)
    plan = backend.plan(uuid.uuid4(), uuid.uuid4())
    manifest = backend.provision(plan.manifest, plan.credentials)
    for _ in range(2):
        with server.client(plan.credentials):
            assert not server.can_log_in(plan.credentials)
        backend.quarantine(manifest)
        backend.release(manifest)
    assert server.api("GET", "vhost-limits", manifest["vhost"])[0]["value"] == {"max-connections": 1}
    backend.teardown(manifest, 1)


def test_a_provision_is_repeated_after_each_death(
    server: RabbitmqServer, backend: Rabbitmq, monkeypatch: pytest.MonkeyPatch
) -> None:
    class DiedError(BaseException):
        pass

    honest = Session._call
    plan = backend.plan(uuid.uuid4(), uuid.uuid4())
    done = 0
    for death in range(100):
        left = death

        def call(self: Session, method: str, path: tuple[str, ...], **words: object) -> object:
            nonlocal left
            left -= 1
            if left < 0:
                raise DiedError
            return honest(self, method, path, **words)  # type: ignore[arg-type]

        monkeypatch.setattr(Session, "_call", call)
        try:
            assert backend.provision(plan.manifest, plan.credentials) == plan.manifest
            break
        except DiedError:
            done += 1
    monkeypatch.undo()
    assert done > 10
    assert server.can_log_in(plan.credentials)
    assert server.api("GET", "users", accounts.NAME, "permissions") == []
    assert isinstance(backend.inspect(plan.manifest), Same)


def test_a_provision_that_comes_late_opens_no_quarantine(
    server: RabbitmqServer, backend: Rabbitmq, provisioned: Provisioned
) -> None:
    manifest, credentials = provisioned
    backend.quarantine(manifest)
    with pytest.raises(Refused, match="in quarantine"):
        backend.provision(manifest, credentials)
    assert not server.can_log_in(credentials)
    backend.release(manifest)
    assert server.can_log_in(credentials)


def test_a_provision_takes_over_nothing_that_bears_its_names(server: RabbitmqServer, backend: Rabbitmq) -> None:
    plan = backend.plan(uuid.uuid4(), uuid.uuid4())
    server.api("PUT", "vhosts", plan.manifest["vhost"], body={"description": "mine"})
    with pytest.raises(Refused, match="not the one that was made"):
        backend.provision(plan.manifest, plan.credentials)
    assert server.api("GET", "vhosts", plan.manifest["vhost"])["description"] == "mine"
    assert server.api("GET", "users", plan.manifest["user"]) is None
    server.api("DELETE", "vhosts", plan.manifest["vhost"])
