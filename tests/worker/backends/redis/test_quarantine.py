"""Quarantine, release and the proof of a login: what stays, what comes back, who is kept out; Redis 7 and Valkey 9."""

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis as client

from outbox.errors import ClaimLost, OutOfService, Refused, Transient, Unavailable
from tests.support import redis_servers
from tests.support.witness import RedisServer, an_acl_user, eventually
from worker.backends import Same
from worker.backends.redis import Redis, changes, quarantine
from worker.backends.redis.session import Session


@pytest.fixture(params=["redis", "valkey"])
def own(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RedisServer]:
    with redis_servers.running(request.param, tmp_path) as server:
        yield server


@pytest.fixture
def ours(own: RedisServer) -> Redis:
    """With a public address that leads nowhere: only customers go there."""
    return Redis(own.service_dsn, public_host="customers.invalid")


@pytest.fixture
def made(ours: Redis) -> dict[str, Any]:
    plan = ours.plan(uuid.uuid4(), uuid.uuid4())
    return ours.provision(plan.manifest, plan.credentials) | {"password": plan.credentials["password"]}


def _rules(own: RedisServer, manifest: dict[str, Any]) -> str:
    """All that the server keeps of the user, as it writes it to its aclfile."""
    (line,) = [line for line in own.client.acl_list() if line.split()[1] == manifest["user"]]
    return line


def _saved(own: RedisServer, manifest: dict[str, Any]) -> str:
    own.client.execute_command("ACL", "LOAD")
    return _rules(own, manifest)


def _is_on(own: RedisServer, manifest: dict[str, Any]) -> bool:
    return " on " in _rules(own, manifest)


def _customer(own: RedisServer, made: dict[str, Any]) -> client.Redis:
    port = own.client.connection_pool.connection_kwargs["port"]
    return client.Redis(
        port=port, username=made["user"], password=made["password"], single_connection_client=True, retry=None
    )


def test_what_was_there_before_comes_back_to_the_letter(own: RedisServer, ours: Redis, made: dict[str, Any]) -> None:
    own.client.set(f"{made['prefix']}a", 1)
    before = _saved(own, made)
    for _ in range(2):
        ours.quarantine(made)
    assert " off " in _saved(own, made), "it was saved"
    assert own.client.get(f"{made['prefix']}a") == "1"
    assert isinstance(ours.inspect(made), Same)
    for _ in range(2):
        ours.release(made)
    assert _saved(own, made) == before
    assert ours.prove(made, made) == {"user": made["user"], "login": True}


@pytest.mark.parametrize("adopted", [True, False], ids=["adopted", "provisioned"])
def test_a_user_that_was_off_before_is_off_again(
    own: RedisServer, ours: Redis, made: dict[str, Any], adopted: bool
) -> None:
    if adopted:
        made = ours.adopt({"user": an_acl_user(own), "prefix": f"{uuid.uuid4().hex}:"}, uuid.uuid4())
    own.client.execute_command("ACL", "SETUSER", made["user"], "off")
    before = _rules(own, made)
    for _ in range(2):
        ours.quarantine(made)
    ours.release(made)
    assert _rules(own, made) == before
    if adopted:
        assert "off" in ours.prove(made, None)["flags"]
    else:
        with pytest.raises(Refused, match=f"ACL SETUSER {made['user']} on"):
            ours.prove(made, made)


def test_a_quarantine_cuts_off_connections_and_its_repetition_those_that_came_meanwhile(
    own: RedisServer, ours: Redis, made: dict[str, Any]
) -> None:
    held = [_customer(own, made) for _ in range(3)]
    for one in held:
        one.ping()
    ours.quarantine(made)
    for one in held:
        with pytest.raises((client.ConnectionError, client.AuthenticationError)):
            one.ping()
    assert made["user"] not in {one["user"] for one in own.client.client_list()}


def test_a_claim_that_is_lost_changes_nothing(own: RedisServer, ours: Redis, made: dict[str, Any]) -> None:
    def lost() -> None:
        raise ClaimLost("a restore has it")

    before = _rules(own, made)
    with pytest.raises(ClaimLost):
        ours.quarantine(made, lost)
    assert _rules(own, made) == before
    ours.quarantine(made)
    shut = _rules(own, made)
    with pytest.raises(ClaimLost):
        ours.release(made, lost)
    assert _rules(own, made) == shut


@pytest.mark.parametrize("memory", ["enough", "full"])
@pytest.mark.parametrize("key", ["there", "flushed"])
def test_a_quarantine_that_stood_still_past_a_restore_shuts_nobody_out(
    own: RedisServer, ours: Redis, made: dict[str, Any], memory: str, key: str
) -> None:
    """It had asked whether its claim is still there; then it stood still, and a restore gave the user back."""
    customer: list[client.Redis] = []

    def stands_still() -> None:
        Redis(own.service_dsn).release(made)
        customer.append(_customer(own, made))
        customer[-1].ping()

    if key == "flushed":
        own.client.delete(f"deprovisioner:gen:{made['prefix']}")
    if memory == "full":
        own.client.config_set("maxmemory", 1)
    with pytest.raises((Transient, Unavailable)):
        ours.quarantine(made, stands_still)
    assert _is_on(own, made)
    assert customer[-1].ping(), "not even a connection was ended"


@pytest.mark.parametrize("memory", ["enough", "full"])
def test_a_release_that_stood_still_past_the_end_of_its_restore_opens_nothing(
    own: RedisServer, ours: Redis, made: dict[str, Any], memory: str
) -> None:
    ours.quarantine(made)
    shut = _rules(own, made)
    if memory == "full":
        own.client.config_set("maxmemory", 1)
    with pytest.raises((Transient, Unavailable)):
        ours.release(made, lambda: Redis(own.service_dsn).quarantine(made))
    assert _rules(own, made) == shut


@pytest.mark.parametrize("verb", ["quarantine", "release"])
def test_who_takes_over_too_late_writes_no_other_owner_s_key(
    own: RedisServer, ours: Redis, made: dict[str, Any], monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    honest, key, theirs = changes.take_over, f"deprovisioner:gen:{made['prefix']}", str(uuid.uuid4())

    def late(*words: Any) -> None:
        own.client.set(key, theirs)
        honest(*words)

    monkeypatch.setattr(changes, "take_over", late)
    before = _rules(own, made)
    with pytest.raises(Refused):
        getattr(ours, verb)(made)
    assert own.client.get(key) == theirs
    assert _rules(own, made) == before


_ZOMBIE = """
import os, signal, sys
from worker.backends.redis import Redis

def stands_still():
    print("still", flush=True)
    os.kill(os.getpid(), signal.SIGSTOP)

getattr(Redis(sys.argv[1]), sys.argv[2])(eval(sys.argv[3]), stands_still)
print("done", flush=True)
"""


@pytest.mark.parametrize("verb", ["quarantine", "release"])
def test_a_process_that_is_stopped_before_its_change_and_wakes_after_the_opposite_changes_nothing(
    own: RedisServer, ours: Redis, made: dict[str, Any], verb: str
) -> None:
    opposite = ours.release if verb == "quarantine" else ours.quarantine
    if verb == "release":
        ours.quarantine(made)
    words = [sys.executable, "-c", _ZOMBIE, own.service_dsn, verb, repr(made)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as zombie:
        assert zombie.stdout is not None
        assert zombie.stdout.readline() == "still\n"
        eventually(lambda: _stopped(zombie.pid))
        opposite(made)
        expected = _rules(own, made)
        os.kill(zombie.pid, signal.SIGCONT)
        out, error = zombie.communicate(timeout=60)
    assert out == ""
    assert "outbox.errors.Transient" in error
    assert _rules(own, made) == expected


def _stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


class DiedError(BaseException):
    pass


def _dies(*_: object, **__: object) -> None:
    raise DiedError


# Where a worker dies: the module's name and function that it does not come to.
DEATHS = {
    "before it takes over": (changes, "take_over"),
    "before its change": (changes, "if_claimed"),
    "before the change is saved": (Session, "save_acl"),
}


@pytest.mark.parametrize("death", DEATHS)
@pytest.mark.parametrize("verb", ["quarantine", "release"])
def test_a_death_half_way_is_made_good_by_a_repetition_and_by_its_opposite(
    own: RedisServer, ours: Redis, made: dict[str, Any], monkeypatch: pytest.MonkeyPatch, verb: str, death: str
) -> None:
    on = _saved(own, made)
    ours.quarantine(made)
    shut = _saved(own, made)
    act, opposite = (ours.quarantine, ours.release) if verb == "quarantine" else (ours.release, ours.quarantine)
    ends = (shut, on) if verb == "quarantine" else (on, shut)
    for repaired_by, end in zip((act, opposite), ends, strict=True):
        opposite(made)
        with monkeypatch.context() as patch:
            patch.setattr(*DEATHS[death], _dies)
            with pytest.raises(DiedError):
                act(made)
        repaired_by(made)
        assert _rules(own, made) == end
        assert _saved(own, made) == end


def test_a_helper_that_a_death_left_goes_with_the_next_change(
    own: RedisServer, ours: Redis, made: dict[str, Any]
) -> None:
    seen: list[str] = []

    def looks() -> None:
        seen.extend(line for line in own.client.acl_list() if line.split()[1] == changes.helper(made))

    own.client.config_set("maxmemory", 1)
    ours.quarantine(made, looks)
    for line in seen:  # none of Valkey, which has transactions on a full server
        assert " resetchannels -@all " in line
        assert set(line.partition(" -@all ")[2].split()) == {"+client|kill", "+acl|setuser", "+acl|getuser"}
    assert changes.helper(made) not in own.users()
    own.client.execute_command("ACL", "SETUSER", changes.helper(made), "on", ">known", "+acl|setuser")
    ours.release(made)
    assert changes.helper(made) not in own.users()
    own.client.execute_command("ACL", "SETUSER", changes.helper(made), "on", ">known", "+acl|setuser")
    ours.teardown(made, 1)
    assert changes.helper(made) not in own.users()


def test_a_server_without_memory_shuts_and_opens(own: RedisServer, ours: Redis, made: dict[str, Any]) -> None:
    before = _rules(own, made)
    own.client.config_set("maxmemory", 1)
    ours.quarantine(made)
    assert not _is_on(own, made)
    ours.release(made)
    assert _rules(own, made) == before
    assert changes.helper(made) not in own.users()


def test_a_server_that_takes_no_writes_shuts_at_once_and_the_step_ends_only_when_it_does(
    own: RedisServer, ours: Redis, made: dict[str, Any]
) -> None:
    own.client.config_set("min-replicas-to-write", 1)
    for _ in range(2):
        with pytest.raises(OutOfService):
            ours.quarantine(made)
        assert not _is_on(own, made), "the customer is cut off all the same"
    with pytest.raises(OutOfService):
        ours.release(made)
    assert not _is_on(own, made)
    own.client.config_set("min-replicas-to-write", 0)
    ours.quarantine(made)
    ours.release(made)
    assert _is_on(own, made)


def test_a_user_that_is_gone_is_not_made_by_a_release(own: RedisServer, ours: Redis, made: dict[str, Any]) -> None:
    ours.quarantine(made)
    own.client.acl_deluser(made["user"])
    ours.quarantine(made)
    for act in (ours.release, lambda manifest: ours.prove(manifest, made)):
        with pytest.raises(Refused, match="no longer there"):
            act(made)
    assert made["user"] not in own.users()


def test_a_key_s_time_to_live_runs_on_in_quarantine(own: RedisServer, ours: Redis, made: dict[str, Any]) -> None:
    own.client.set(f"{made['prefix']}short", 1, px=300)
    own.client.set(f"{made['prefix']}long", 1, ex=3600)
    ours.quarantine(made)
    eventually(lambda: not own.client.exists(f"{made['prefix']}short"))
    ours.release(made)
    assert 0 < own.client.ttl(f"{made['prefix']}long") <= 3600


def test_no_proof_without_a_login(own: RedisServer, ours: Redis, made: dict[str, Any]) -> None:
    stored = {"password": f"secret-{uuid.uuid4().hex}"}
    with pytest.raises(Transient, match="WRONGPASS") as caught:
        ours.prove(made, stored)
    assert stored["password"] not in repr(caught.value) + repr(caught.value.__cause__)
    ours.quarantine(made)
    for credentials in (made, None):
        with pytest.raises(Transient, match="still in quarantine"):
            ours.prove(made, credentials)


def test_no_proof_of_what_is_not_ours(ours: Redis, made: dict[str, Any]) -> None:
    for other in ({"generation": str(uuid.uuid4())}, {"server": "another"}):
        with pytest.raises(Refused):
            ours.prove(made | other, made)


def test_a_server_that_quotes_a_password_is_not_quoted(
    own: RedisServer, ours: Redis, made: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def quotes(self: Session, *_: Any, **__: Any) -> None:
        raise client.ResponseError(f"ERR unknown command 'HELLO', with args: 'AUTH' '{made['password']}'")

    monkeypatch.setattr(Session, "ping", quotes)
    with pytest.raises(Transient) as caught:
        ours.prove(made, made)
    assert made["password"] not in f"{caught.value!r}"
    assert caught.value.__cause__ is None


def test_a_login_that_finds_no_server_is_no_failed_login(
    own: RedisServer, ours: Redis, made: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(self: Session, *_: Any, **__: Any) -> None:
        raise client.ConnectionError("reset")

    monkeypatch.setattr(Session, "ping", away)
    with pytest.raises(Unavailable):
        ours.prove(made, made)


def test_a_quarantine_cuts_fifty_sessions_within_two_seconds(
    own: RedisServer, ours: Redis, made: dict[str, Any]
) -> None:
    held = [_customer(own, made) for _ in range(50)]
    for one in held:
        one.ping()
    began = time.monotonic()
    ours.quarantine(made)
    assert made["user"] not in {one["user"] for one in own.client.client_list()}
    assert time.monotonic() - began < 2
    assert quarantine.SHUT in own.client.acl_getuser(made["user"])["channels"]
