"""What is the resource's own on the server, and what only bears its name."""

import uuid
from typing import Any

import pytest
import redis as client

from outbox.errors import Refused
from tests.support.witness import RedisServer
from worker.backends import Different
from worker.backends.redis import Redis


def test_a_foreign_generation_key_is_refused_and_its_data_untouched(
    backend: Redis, server: RedisServer, provisioned: dict[str, Any]
) -> None:
    server.client.set(f"deprovisioner:gen:{provisioned['prefix']}", "another")
    server.client.set(f"{provisioned['prefix']}precious", 42)
    assert isinstance(backend.inspect(provisioned), Different)
    with pytest.raises(Refused):
        backend.teardown(provisioned, 1)
    assert server.client.get(f"{provisioned['prefix']}precious") == "42"
    assert provisioned["user"] in server.users()
    assert client.Redis.from_url(provisioned["url"]).ping(), "nothing is done while identity is in doubt"


def test_keys_without_user_or_generation_are_not_deleted(
    backend: Redis, server: RedisServer, provisioned: dict[str, Any]
) -> None:
    backend.teardown(provisioned, 1)
    server.client.set(f"{provisioned['prefix']}new", 1)
    assert isinstance(backend.inspect(provisioned), Different)
    with pytest.raises(Refused):
        backend.teardown(provisioned, 1)


def test_a_user_made_again_under_the_name_is_untouched(
    backend: Redis, server: RedisServer, provisioned: dict[str, Any]
) -> None:
    server.client.acl_deluser(provisioned["user"])
    server.client.execute_command(
        "ACL", "SETUSER", provisioned["user"], "on", ">p", f"~{provisioned['prefix']}*", "+@all"
    )
    assert isinstance(backend.inspect(provisioned), Different)
    with pytest.raises(Refused, match="is not the one that was made"):
        backend.teardown(provisioned, 1)
    assert provisioned["user"] in server.users()


def test_default_is_never_adopted_or_torn_down(backend: Redis) -> None:
    manifest = {"user": "default", "prefix": "x:", "generation": str(uuid.uuid4())}
    with pytest.raises(Refused, match="protected"):
        backend.teardown(manifest, 1)
    with pytest.raises(Refused, match="protected"):
        backend.quarantine(manifest)
    with pytest.raises(Refused, match="protected"):
        backend.adopt(manifest, uuid.uuid4())


def test_a_generation_key_that_is_no_string_is_different(
    backend: Redis, server: RedisServer, provisioned: dict[str, Any]
) -> None:
    server.client.delete(f"deprovisioner:gen:{provisioned['prefix']}")
    server.client.rpush(f"deprovisioner:gen:{provisioned['prefix']}", 1)
    assert isinstance(backend.inspect(provisioned), Different)
