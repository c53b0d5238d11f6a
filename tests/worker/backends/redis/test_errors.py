"""What a failure means is told by the server's code, alone and inside a pipeline; on Redis 7 and Valkey 9."""

import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis as client

from outbox.errors import Refused, Transient, Unavailable
from tests.support import redis_servers
from tests.support.witness import RedisServer, eventually
from worker.backends import Absent
from worker.backends.redis import Redis, changes, session
from worker.backends.redis.session import Server

DESIGN = Path(__file__).parents[4] / "docs" / "design.md"


@pytest.fixture(params=["redis", "valkey"])
def own(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RedisServer]:
    with redis_servers.running(request.param, tmp_path, "--busy-reply-threshold", "20") as server:
        yield server


@pytest.fixture
def made(own: RedisServer) -> dict[str, Any]:
    return _provisioned(own)


def _provisioned(own: RedisServer) -> dict[str, Any]:
    backend = Redis(own.service_dsn)
    plan = backend.plan(uuid.uuid4(), uuid.uuid4())
    return backend.provision(plan.manifest, plan.credentials)


def _run(own: RedisServer, piped: bool, command: tuple[Any, ...]) -> None:
    with Server(own.url, frozenset()).connect() as opened:
        if not piped:
            opened.execute_command(*command)
            return
        with opened.pipeline() as pipe:
            pipe.get("b")
            pipe.execute_command(*command)
            pipe.execute()


def _misconf(own: RedisServer, folder: Path) -> None:
    (folder / "dump.rdb").mkdir()  # the server cannot put its file there
    own.client.config_set("save", "3600 1")
    own.client.set("x", 1)
    own.client.bgsave()
    eventually(lambda: own.client.info("persistence")["rdb_last_bgsave_status"] == "err")


@pytest.mark.parametrize("code", ["MISCONF", "NOREPLICAS", "OOM"])
@pytest.mark.parametrize("piped", [False, True], ids=["alone", "piped"])
def test_a_server_that_refuses_writes_is_away(
    own: RedisServer, made: dict[str, Any], tmp_path: Path, code: str, piped: bool
) -> None:
    own.client.set(f"{made['prefix']}a", 1)
    if code == "MISCONF":
        _misconf(own, tmp_path)
    elif code == "NOREPLICAS":
        own.client.config_set("min-replicas-to-write", 1)
    else:
        own.client.config_set("maxmemory", 1)
    with pytest.raises(Unavailable, match=code):
        _run(own, piped, ("SET", "a", 1))
    if code != "OOM":  # a teardown needs no memory: see below
        with pytest.raises(Unavailable, match=code):
            Redis(own.service_dsn).teardown(made, 1)
        assert not own.client.acl_getuser(made["user"])["enabled"], "switched off all the same"
    own.client.config_set("min-replicas-to-write", 0)
    own.client.config_set("maxmemory", 0)
    own.client.config_set("stop-writes-on-bgsave-error", "no")
    Redis(own.service_dsn).teardown(made, 1)
    assert isinstance(Redis(own.service_dsn).inspect(made), Absent)


@pytest.mark.parametrize("key", ["there", "flushed", "older"])
def test_a_server_without_memory_is_freed_by_a_teardown(own: RedisServer, made: dict[str, Any], key: str) -> None:
    """Redis 7 queues no command at all for a transaction then; Valkey 9 none that may need memory."""
    own.client.set(f"{made['prefix']}a", "x" * 1000)
    ours = f"deprovisioner:gen:{made['prefix']}"
    if key == "flushed":
        own.client.delete(ours)
    elif key == "older":
        own.client.rename(ours, f"{made['prefix']}gen")
    own.client.config_set("maxmemory-policy", "noeviction")
    own.client.config_set("maxmemory", 1)
    with pytest.raises(client.exceptions.OutOfMemoryError):
        own.client.set("a", 1)
    Redis(own.service_dsn).quarantine(made)
    assert not own.client.acl_getuser(made["user"])["enabled"]
    Redis(own.service_dsn).release(made)
    Redis(own.service_dsn).teardown(made, 1)
    assert isinstance(Redis(own.service_dsn).inspect(made), Absent)
    assert not own.bears(made)


def test_a_user_that_takes_the_name_on_a_server_without_memory_is_made_again(
    own: RedisServer, made: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = changes._in_one_message

    def take(*words: Any) -> Any:
        own.client.acl_deluser(made["user"])
        own.client.execute_command("ACL", "SETUSER", made["user"], "on", ">theirs", "~theirs:*", "+get")
        stranger.append(_without_default_flag(own.client.acl_getuser(made["user"])))
        return honest(*words)

    stranger: list[Any] = []
    monkeypatch.setattr(changes, "_in_one_message", take)
    own.client.config_set("maxmemory", 1)
    if own.client.info("server").get("server_name") == "valkey":
        Redis(own.service_dsn).teardown(made, 1)
        assert not own.bears(made), "it has transactions even then"
        return
    with pytest.raises(Refused, match="was replaced by another"):
        Redis(own.service_dsn).teardown(made, 1)
    assert _without_default_flag(own.client.acl_getuser(made["user"])) == stranger[0]


def _without_default_flag(user: Any) -> Any:
    return user | {"flags": [flag for flag in user["flags"] if flag != "sanitize-payload"]}  # what `reset` sets in 7.0


def test_a_server_that_is_busy_with_a_script_is_away(own: RedisServer, made: dict[str, Any]) -> None:
    looper = threading.Thread(target=lambda: _loop(own))
    looper.start()
    eventually(lambda: _busy(own))
    try:
        with pytest.raises(Unavailable, match="BUSY"):
            Redis(own.service_dsn).inspect(made)
    finally:
        own.client.script_kill()
        looper.join()
    assert Redis(own.service_dsn).teardown(made, 1)


def _loop(own: RedisServer) -> None:
    with pytest.raises(client.ResponseError):
        client.Redis.from_url(own.url).eval("while true do end", 0)


def _busy(own: RedisServer) -> bool:
    try:
        own.client.ping()
    except client.ResponseError as error:
        return str(error).startswith("BUSY")
    return False


@pytest.mark.parametrize("program", ["redis", "valkey"])
def test_a_server_that_still_loads_its_data_is_away(program: str, tmp_path: Path) -> None:
    with redis_servers.running(program, tmp_path, "--enable-debug-command", "yes") as own:
        made = _provisioned(own)
        own.client.execute_command("DEBUG", "POPULATE", 5000, "fill", 10)
        own.client.config_set("key-load-delay", 1000)  # microseconds a key
        own.client.config_set("loading-process-events-interval-bytes", 1024)
        loader = threading.Thread(target=lambda: client.Redis.from_url(own.url).execute_command("DEBUG", "RELOAD"))
        loader.start()
        eventually(lambda: own.client.info("persistence")["loading"])
        with pytest.raises(Unavailable, match="LOADING"):
            Redis(own.service_dsn).teardown(made, 1)
        own.client.config_set("key-load-delay", 0)
        loader.join()
        Redis(own.service_dsn).teardown(made, 1)
        assert isinstance(Redis(own.service_dsn).inspect(made), Absent)


@pytest.mark.parametrize("program", ["redis", "valkey"])
def test_a_cluster_without_its_slots_is_away(program: str, tmp_path: Path) -> None:
    with redis_servers.running(program, tmp_path, "--cluster-enabled", "yes") as own:
        manifest = {"user": "u", "prefix": "u:", "generation": str(uuid.uuid4()), "server": str(uuid.uuid4())}
        with pytest.raises(Unavailable, match="CLUSTERDOWN"):
            Redis(own.service_dsn).teardown(manifest, 1)


def test_what_the_server_forbids_is_refused(own: RedisServer) -> None:
    own.client.execute_command("ACL", "SETUSER", "weak", "on", ">p", "~*", "+@all", "-acl")
    with pytest.raises(Refused, match="NOPERM"):
        Redis(own.url.replace("redis://", "redis://weak:p@")).plan(uuid.uuid4(), uuid.uuid4())


def test_a_password_that_the_server_does_not_take_is_away(own: RedisServer) -> None:
    with pytest.raises(Unavailable, match="WRONGPASS") as caught:
        Redis(own.url.replace("redis://", "redis://nobody:hidden@")).plan(uuid.uuid4(), uuid.uuid4())
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize("piped", [False, True], ids=["alone", "piped"])
def test_no_error_shows_a_password(own: RedisServer, piped: bool) -> None:
    words = ("ACL", "SETUSER", "u", ">hidden", "&a", "#hidden")
    with pytest.raises(Transient) as caught:
        _run(own, piped, words)
    assert "hidden" not in str(caught.value)
    assert len(str(caught.value)) <= 320


def test_the_design_has_the_table_of_errors() -> None:
    part = DESIGN.read_text().split("<!-- redis errors -->")[1].split("<!-- /redis errors -->")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in part.strip().splitlines()[2:]]
    told = {code.strip("` "): means.strip("` ") for codes, means, _ in rows for code in codes.split(",")}
    assert told == {code: error.__name__ for code, error in session.MEANS.items()}
