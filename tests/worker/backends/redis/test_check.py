"""What `check` finds on a server: each thing is set wrong, and its statement mends it; on Redis 7 and Valkey 9."""

import uuid
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.support import accounts, redis_servers
from tests.support.witness import RedisServer
from worker import backends
from worker.backends import Finding
from worker.backends.redis import Redis, check


@pytest.fixture(scope="module", params=["redis", "valkey"])
def own(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_servers.running(request.param, tmp_path_factory.mktemp(request.param)) as server:
        yield server


def test_the_commands_that_are_needed_are_the_documented_ones() -> None:
    (statement,) = accounts.documented("redis")
    assert tuple(word[1:] for word in statement.split() if word.startswith("+")) == check.NEEDED


# The rules of the service's user beside a password, the code, and what the words name.
WRONG = {
    "a command less": ("-eval -acl|save", "rights_too_few", "may not run eval, acl|save"),
    "a category less": ("-@scripting", "rights_too_few", "may not run eval"),
    "not all keys": ("resetkeys ~a:*", "rights_too_few", "all keys"),
    "a dangerous command": ("+flushall", "rights_too_many", "may run flushall"),
    "everything": ("+@all", "rights_too_many", "and "),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_rights_too_few_or_too_many_are_found_and_the_statement_mends_them(own: RedisServer, wrong: str) -> None:
    name = f"svc_{uuid.uuid4().hex}"
    (statement,) = accounts.documented("redis")
    own.client.execute_command(*statement.replace(accounts.NAME, name).replace("CHANGE-ME", "p").split())
    backend = Redis(urlsplit(own.url)._replace(netloc=f"{name}:p@{own.url.split('/')[2]}").geturl())
    assert _found(backend) == []
    rules, code, words = WRONG[wrong]
    own.client.execute_command("ACL", "SETUSER", name, *rules.split())
    found = _found(backend)
    assert len(found) == 1
    finding = found[0]
    assert (finding.code, words in finding.what) == (code, True), finding
    own.client.execute_command(*finding.mend.split())
    assert _found(backend) == []


def _found(backend: Redis) -> list[Finding]:
    """Without the default user, who needs no password on the tests' servers."""
    return [one for one in backends.check(backend) if one.code != "public_connect"]


def test_a_default_user_without_a_password_is_found(own: RedisServer) -> None:
    backend = Redis(own.service_dsn)
    found = backends.check(backend)
    assert len(found) == 1
    finding = found[0]
    assert (finding.code, finding.mend) == ("public_connect", "ACL SETUSER default resetpass >…; ACL SAVE")
    own.client.execute_command("ACL", "SETUSER", "default", "resetpass", ">p")
    try:
        assert backends.check(backend) == []
    finally:
        own.client.execute_command("ACL", "SETUSER", "default", "nopass")


def test_the_default_user_as_the_service_s_has_too_many_rights(own: RedisServer) -> None:
    found = _found(Redis(own.url))
    assert len(found) == 1
    finding = found[0]
    assert finding.code == "rights_too_many"
    assert "docs/backends.md" in finding.mend, "not an ACL SETUSER that shuts the administrator out"


@pytest.mark.parametrize("program", ["redis", "valkey"])
def test_a_server_that_forgets_its_users_and_opens_itself_to_modules_is_found(program: str, tmp_path: Path) -> None:
    opened = ("--enable-module-command", "yes")
    with redis_servers.running(program, tmp_path, *opened, aclfile=False) as server:
        found = {one.code: one for one in backends.check(Redis(server.service_dsn))}
        assert set(found) == {"users_not_kept", "setting_unsafe", "public_connect"}
        assert found["setting_unsafe"].mend.startswith("enable-module-command no")
        assert found["users_not_kept"].mend.startswith("aclfile ")
        meant = backends.check(Redis(server.service_dsn, volatile_users=True))
        assert "users_not_kept" not in {one.code for one in meant}


@pytest.mark.parametrize("program", ["redis", "valkey"])
def test_a_cluster_is_found(program: str, tmp_path: Path) -> None:
    with redis_servers.running(program, tmp_path, "--cluster-enabled", "yes") as server:
        assert "cluster" in {one.code for one in backends.check(Redis(server.service_dsn))}


def test_an_old_version_is_found(own: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "OLDEST", (99, 0))
    assert [one.code for one in _found(Redis(own.service_dsn))] == ["version_old"]
