"""Who still needs a deleted resource: its attempts to log in stand on the resource, over HTTP and at a shell."""

from pathlib import Path

import httpx
import pytest
import redis

from tests.support.api import create, until
from tests.support.processes import System
from tests.support.servers import Servers
from tests.support.witness import eventually
from worker import logins
from worker.backends.redis import Redis


@pytest.fixture
def env(env: dict[str, str]) -> dict[str, str]:
    """Each backend keeps what is deleted for an hour."""
    file = Path(env["DEPROVISIONER_BACKENDS"])
    file.write_text(file.read_text().replace("concurrency = 8", 'concurrency = 8\ngrace = "1h"'))
    return env


def test_who_still_logs_in_is_shown_on_the_deleted_resource(
    acme: httpx.Client, system: System, servers: Servers
) -> None:
    system.worker()
    resource = until(acme, create(acme, "redis"), "active")
    path = f"/v1/resources/{resource['id']}"
    login = acme.get(f"{path}/credentials").json()
    job = acme.delete(path).json()["job"]["url"]
    eventually(lambda: acme.get(job).json()["step"] == "wait", what="it is in quarantine")
    assert acme.get(path).json()["login_attempts"] is None, "no worker has asked yet"
    served = {"redis-main": Redis(servers.redis.service_dsn)}
    with redis.Redis(port=login["port"], retry=None, single_connection_client=True) as one:
        for _ in range(3):
            with pytest.raises(redis.AuthenticationError):
                one.execute_command("AUTH", login["user"], login["password"])
    logins.look(served, worker="w1")
    told = acme.get(path).json()["login_attempts"]
    assert (told["count"], told["addresses"]) == (3, ["127.0.0.1"])
    assert told["looked_at"] >= told["last_at"] > resource["created_at"]
    shown = system.cli("resources", "show", resource["id"])
    (line,) = [line for line in shown.stdout.splitlines() if line.startswith("login_attempts")]
    assert "3, the last 20" in line
    assert line.endswith("from 127.0.0.1")
    acme.post(f"{path}/restore", json={"reason": "they still need it"})
    assert until(acme, resource, "active")["login_attempts"] is None
