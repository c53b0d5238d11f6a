"""A namespace is provisioned and adopted, on a real server."""

import uuid
from typing import Any

import pytest
import redis as client

from outbox.errors import Refused
from tests.support.witness import RedisServer, an_acl_user
from worker.backends import Same
from worker.backends.redis import Redis


def test_a_customer_reaches_its_own_keys_and_nothing_else(backend: Redis, provisioned: dict[str, Any]) -> None:
    customer = client.Redis.from_url(provisioned["url"])
    assert customer.set(f"{provisioned['prefix']}a", 1)
    for forbidden in (
        lambda: customer.set("other", 1),
        customer.flushall,
        lambda: customer.keys("*"),
        customer.scan,
        customer.randomkey,
        customer.dbsize,
        lambda: customer.config_get("*"),
        lambda: customer.execute_command("ACL", "LIST"),
        customer.function_flush,
    ):
        with pytest.raises(client.exceptions.NoPermissionError):
            forbidden()
    backend.teardown(provisioned, 1)


@pytest.mark.parametrize(
    ("prefix", "why"),
    [
        pytest.param("", "empty prefix", id="empty"),
        pytest.param("deprovisioner:x:", "deprovisioner's own", id="ours"),
        pytest.param("open", "must end with ':'", id="open"),
    ],
)
def test_a_prefix_that_matches_others_keys_is_refused(
    backend: Redis, server: RedisServer, prefix: str, why: str
) -> None:
    with pytest.raises(Refused, match=why):
        backend.adopt({"user": an_acl_user(server), "prefix": prefix}, uuid.uuid4())


def test_provision_takes_over_nothing_that_existed_before(backend: Redis, server: RedisServer) -> None:
    plan = backend.plan(uuid.uuid4(), uuid.uuid4())
    server.client.execute_command("ACL", "SETUSER", plan.manifest["user"], "on", ">theirs", "~x", "+@all")
    before = server.client.acl_getuser(plan.manifest["user"])
    with pytest.raises(Refused, match="is not the one that was made"):
        backend.provision(plan.manifest, plan.credentials)
    assert server.client.acl_getuser(plan.manifest["user"]) == before


@pytest.mark.parametrize("order", [("", "inner:"), ("inner:", "")])
def test_a_prefix_inside_another_s_or_around_it_cannot_be_adopted(
    backend: Redis, server: RedisServer, order: tuple[str, str]
) -> None:
    outer = f"{uuid.uuid4().hex}:"
    first, second = (outer + tail for tail in order)
    backend.adopt({"user": an_acl_user(server), "prefix": first}, uuid.uuid4())
    with pytest.raises(Refused, match="inside another"):
        backend.adopt({"user": an_acl_user(server), "prefix": second}, uuid.uuid4())
    assert server.client.get(f"deprovisioner:gen:{second}") is None, "nothing of the refused one is left"


def test_a_prefix_inside_a_provisioned_resource_s_cannot_be_adopted(
    backend: Redis, server: RedisServer, provisioned: dict[str, Any]
) -> None:
    with pytest.raises(Refused, match="inside another"):
        backend.adopt({"user": an_acl_user(server), "prefix": f"{provisioned['prefix']}mine:"}, uuid.uuid4())
    backend.teardown(provisioned, 1)


@pytest.mark.parametrize("known_by", ["user", "key"])
def test_an_older_version_s_user_or_prefix_cannot_be_adopted(
    backend: Redis, server: RedisServer, provisioned: dict[str, Any], known_by: str
) -> None:
    prefix = provisioned["prefix"]
    server.client.rename(f"deprovisioner:gen:{prefix}", f"{prefix}gen")
    inside = {"user": an_acl_user(server), "prefix": f"{prefix}inner:"}
    if known_by == "key":
        server.client.acl_deluser(provisioned["user"])
        inside["prefix"] = prefix
    with pytest.raises(Refused, match=r"inside another|belongs to another"):
        backend.adopt(inside, uuid.uuid4())
    assert server.client.exists(f"deprovisioner:gen:{inside['prefix']}") == 0
    backend.teardown(provisioned, 1)


@pytest.mark.parametrize("taken", ["user", "prefix"])
def test_another_resource_s_user_or_prefix_cannot_be_adopted(
    backend: Redis, server: RedisServer, provisioned: dict[str, Any], taken: str
) -> None:
    free = {"user": an_acl_user(server), "prefix": f"{uuid.uuid4().hex}:"}
    with pytest.raises(Refused, match="belongs to another"):
        backend.adopt(free | {taken: provisioned[taken]}, uuid.uuid4())
    assert isinstance(backend.inspect(provisioned), Same)
    backend.teardown(provisioned, 1)


def test_an_adoption_on_the_wrong_server_is_refused(backend: Redis, server: RedisServer) -> None:
    theirs = {"user": an_acl_user(server), "prefix": f"{uuid.uuid4().hex}:"}
    with pytest.raises(Refused, match="wrong server"):
        backend.adopt(theirs | {"server": "another"}, uuid.uuid4())
    assert server.keys(theirs["prefix"]) == set()


def test_the_user_that_the_service_works_with_is_not_adopted(server: RedisServer) -> None:
    user = f"service_{uuid.uuid4().hex}"
    server.client.execute_command("ACL", "SETUSER", user, "on", ">p", "~*", "&*", "+@all")
    backend = Redis(server.url.replace("redis://", f"redis://{user}:p@"))
    with pytest.raises(Refused, match="itself works with"):
        backend.adopt({"user": user, "prefix": f"{uuid.uuid4().hex}:"}, uuid.uuid4())
