"""What an adoption would refuse is told beforehand, in full; and a release takes the mark off, and nothing else."""

import uuid
from typing import Any

import pytest

from outbox.errors import Refused
from tests.support.witness import RedisServer, an_acl_user
from worker.backends import Absent, Different, Same
from worker.backends.fleet import adoptable, unmark
from worker.backends.redis import Redis


def a_namespace(server: RedisServer, *rules: str) -> dict[str, Any]:
    prefix, user = f"{uuid.uuid4().hex}:", f"app_{uuid.uuid4().hex}"
    server.client.execute_command(
        "ACL", "SETUSER", user, "on", ">p", f"~{prefix}*", "resetchannels", f"&{prefix}*", "+get", "+set", *rules
    )
    return {"user": user, "prefix": prefix}


def test_what_can_be_adopted_has_no_finding_and_is_left_as_it_is(backend: Redis, server: RedisServer) -> None:
    names = a_namespace(server)
    before = server.client.acl_getuser(names["user"])
    assert adoptable(backend, names) == []
    assert server.client.acl_getuser(names["user"]) == before
    manifest = backend.adopt(names, uuid.uuid4())
    assert adoptable(backend, manifest) == [], "it may be adopted again by its own mark"
    assert {one.code for one in adoptable(backend, names)} == {"refused"}
    backend.teardown(manifest, 1)


def test_each_reason_is_told_with_the_statement_that_mends_it(backend: Redis, server: RedisServer) -> None:
    assert [one.code for one in adoptable(backend, {"user": f"no_{uuid.uuid4().hex}", "prefix": "free:"})] == [
        "not_there"
    ]
    names = a_namespace(server, "~other:*", "+flushall")
    outer = backend.adopt(a_namespace(server), uuid.uuid4())
    inside = {**names, "prefix": f"{outer['prefix']}in:"}
    found = adoptable(backend, inside)
    assert [one.code for one in found] == ["right_missing", "refused"]
    assert "lies inside another" in found[1].what
    (mend,) = (one.mend for one in adoptable(backend, names))
    server.client.execute_command(*mend.split())
    assert adoptable(backend, names) == []
    assert "protected" in adoptable(backend, {"user": "default", "prefix": "free:"})[0].what
    backend.teardown(outer, 1)


def test_a_prefix_around_one_whose_user_is_lost_is_still_taken(backend: Redis, server: RedisServer) -> None:
    """Its generation key alone tells of it."""
    inner = a_namespace(server)
    outer = a_namespace(server)
    inner["prefix"] = f"{outer['prefix']}in:"
    server.client.execute_command("ACL", "SETUSER", inner["user"], "resetkeys", f"~{inner['prefix']}*", "resetchannels")
    made = backend.adopt(inner, uuid.uuid4())
    server.client.acl_deluser(inner["user"])
    with pytest.raises(Refused, match="inside another"):
        backend.adopt(outer, uuid.uuid4())
    user = server.client.acl_getuser(outer["user"])
    assert not [channel for channel in user["channels"] if "deprovisioner" in channel], "the refused one is unmarked"
    assert server.client.get(f"deprovisioner:gen:{outer['prefix']}") is None
    server.client.delete(f"deprovisioner:gen:{made['prefix']}")


def test_a_release_leaves_user_and_keys_as_they_were(backend: Redis, server: RedisServer) -> None:
    names = a_namespace(server)
    before = server.client.acl_getuser(names["user"])
    server.client.set(f"{names['prefix']}kept", "1")
    manifest = backend.adopt(names, uuid.uuid4())
    assert isinstance(backend.inspect(manifest), Same)
    assert unmark(backend, manifest) == {"unmarked": [f"user {names['user']}", f"prefix {names['prefix']}"]}
    assert server.client.acl_getuser(names["user"]) == before
    assert server.client.get(f"{names['prefix']}kept") == "1"
    assert server.client.get(f"deprovisioner:gen:{names['prefix']}") is None
    assert isinstance(backend.inspect(manifest), Different)
    assert unmark(backend, manifest) == {"unmarked": []}, "it may be repeated"
    assert adoptable(backend, names) == []


def test_a_release_that_died_between_its_two_marks_goes_on(backend: Redis, server: RedisServer) -> None:
    names = a_namespace(server)
    manifest = backend.adopt(names, uuid.uuid4())
    server.client.execute_command("ACL", "SETUSER", names["user"], "resetchannels")
    assert unmark(backend, manifest) == {"unmarked": [f"prefix {names['prefix']}"]}
    assert server.client.get(f"deprovisioner:gen:{names['prefix']}") is None


def test_a_release_of_what_lost_its_generation_key_takes_the_mark_off(backend: Redis, server: RedisServer) -> None:
    manifest = backend.adopt(a_namespace(server), uuid.uuid4())
    server.client.delete(f"deprovisioner:gen:{manifest['prefix']}")
    unmark(backend, manifest)
    assert not [c for c in server.client.acl_getuser(manifest["user"])["channels"] if "deprovisioner" in c]
    assert server.client.get(f"deprovisioner:gen:{manifest['prefix']}") is None


def test_a_release_takes_no_mark_off_what_is_not_the_manifests(backend: Redis, server: RedisServer) -> None:
    manifest = backend.adopt(a_namespace(server), uuid.uuid4())
    with pytest.raises(Refused, match=r"wrong server|no ACL user"):
        unmark(backend, manifest | {"server": str(uuid.uuid4())})
    copy = f"copy_{uuid.uuid4().hex}"
    with pytest.raises(Refused, match="renamed or is a copy"):
        unmark(backend, manifest | {"user": copy})
    backend.quarantine(manifest)
    with pytest.raises(Refused, match="in quarantine"):
        unmark(backend, manifest)
    backend.teardown(manifest, 1)
    assert isinstance(backend.inspect(manifest), Absent)
    assert unmark(backend, manifest) == {"unmarked": []}
    assert an_acl_user(server)
