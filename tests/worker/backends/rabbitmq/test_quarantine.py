"""Quarantine, and what comes back of it."""

import threading
import uuid
from collections.abc import Callable
from contextlib import closing
from typing import Any

import amqp
import pytest

from outbox.errors import ClaimLost, Refused, Transient
from tests.support.rabbitmq_servers import RabbitmqServer
from tests.support.witness import eventually
from tests.worker.backends.rabbitmq.conftest import Provisioned
from worker.backends import Same
from worker.backends.rabbitmq import Rabbitmq
from worker.backends.rabbitmq.session import Session

ALL = {"configure": ".*", "write": ".*", "read": ".*"}
CUT = (amqp.exceptions.AMQPError, OSError)


class DiedError(BaseException):
    """A worker is killed."""


def dying_after(monkeypatch: pytest.MonkeyPatch, calls: int) -> None:
    """The worker is killed after so many calls of the management API."""
    honest, left = Session._call, [calls]

    def call(self: Session, method: str, path: tuple[str, ...], **words: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise DiedError
        return honest(self, method, path, **words)

    monkeypatch.setattr(Session, "_call", call)


def killed_at_each_call(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object], after: Callable[[], None]) -> int:
    """Kill `act` after 0, 1, 2, … calls until it comes to its end; `after` each time. How many deaths there were."""
    for calls in range(200):
        dying_after(monkeypatch, calls)
        try:
            act()
            return calls
        except DiedError:
            pass
        finally:
            monkeypatch.undo()
        after()
    raise AssertionError("it never came to its end")


def everything(server: RabbitmqServer, manifest: dict[str, Any]) -> list[Any]:
    """What the server has of a vhost and its user."""
    found = [server.api("GET", f"{word}s", manifest[word], disable_stats="true") for word in ("vhost", "user")]
    kinds = ("permissions", "topic-permissions")
    return found + [server.api("GET", "vhosts", manifest["vhost"], kind) for kind in kinds]


@pytest.mark.proof
def test_a_quarantine_that_is_killed_anywhere_is_released_to_what_was_there(
    server: RabbitmqServer, backend: Rabbitmq, provisioned: Provisioned, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest, credentials = provisioned
    server.api("PUT", "vhost-limits", manifest["vhost"], "max-connections", body={"value": 5})
    before = everything(server, manifest)

    def released() -> None:
        backend.release(manifest)
        assert everything(server, manifest) == before
        assert server.api("GET", "vhost-limits", manifest["vhost"])[0]["value"] == {"max-connections": 5}

    assert killed_at_each_call(monkeypatch, lambda: backend.quarantine(manifest), released) > 15
    assert not server.can_log_in(credentials)
    assert killed_at_each_call(monkeypatch, lambda: backend.release(manifest), lambda: None) > 10
    released()
    assert server.can_log_in(credentials)


@pytest.mark.proof
def test_a_release_that_is_killed_anywhere_is_shut_again(
    server: RabbitmqServer, backend: Rabbitmq, provisioned: Provisioned, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest, credentials = provisioned
    backend.quarantine(manifest)

    def shut() -> None:
        backend.quarantine(manifest)
        assert not server.can_log_in(credentials)

    killed_at_each_call(monkeypatch, lambda: backend.release(manifest), shut)
    assert server.can_log_in(credentials)
    assert backend.prove(manifest, credentials)["login"]


def told_to_close(held: amqp.Connection) -> bool:
    """Whether the server closes the connection by itself, so that a consumer gets nothing more."""
    try:
        held.drain_events(timeout=10)
    except amqp.exceptions.ConnectionForced:
        return True
    except TimeoutError:
        return False
    return False


def test_every_client_is_cut_off_those_of_other_users_too_and_none_comes_back(
    server: RabbitmqServer, backend: Rabbitmq, provisioned: Provisioned
) -> None:
    manifest, credentials = provisioned
    other = credentials | {"user": f"other_{uuid.uuid4().hex}", "password": "p"}
    server.api("PUT", "users", other["user"], body={"password": "p", "tags": ""})
    server.api("PUT", "permissions", manifest["vhost"], other["user"], body=ALL)
    elsewhere = f"elsewhere_{uuid.uuid4().hex}"
    server.api("PUT", "vhosts", elsewhere, body={})
    server.api("PUT", "permissions", elsewhere, other["user"], body=ALL)
    with closing(server.client(credentials)) as one, closing(server.client(other)) as two:
        with closing(server.client(other | {"vhost": elsewhere})) as untouched:
            for held in (one, two, untouched):
                held.channel()
            backend.quarantine(manifest)
            assert told_to_close(one)
            assert told_to_close(two)
            untouched.channel().queue_declare("q")
            assert server.can_log_in(other | {"vhost": elsewhere})
            assert not server.can_log_in(other)
            assert not server.can_log_in(credentials)
            # As one whom another authority allows it, such as OAuth 2: the limit stops that user too.
            server.api("PUT", "permissions", manifest["vhost"], other["user"], body=ALL)
            assert not server.can_log_in(other)
        one.collect()
        two.collect()
    backend.release(manifest)
    assert server.can_log_in(other)


def test_a_customer_of_the_management_api_is_shut_out_there_too(
    server: RabbitmqServer, backend: Rabbitmq, by_hand: Provisioned
) -> None:
    names, credentials = by_hand
    manifest = backend.adopt(names, uuid.uuid4())
    where, account = f"http://127.0.0.1:{server.management}/api/vhosts", (names["user"], credentials["password"])
    for act, status in ((backend.quarantine, 401), (backend.release, 200)):
        act(manifest)
        assert server.http.get(where, auth=account).status_code == status


def test_nobody_changes_a_vhost_in_quarantine_by_the_management_api_nor_lifts_its_limit(
    server: RabbitmqServer, backend: Rabbitmq, provisioned: Provisioned
) -> None:
    """A limit is a parameter, which a policymaker of the vhost may change; and queues are made without a connection."""
    manifest, credentials = provisioned
    where = f"http://127.0.0.1:{server.management}/api"
    limits = f"{where}/parameters/vhost-limits/{manifest['vhost']}/limits"
    others = [f"{tag}_{uuid.uuid4().hex}" for tag in ("management", "policymaker")]
    odd = {"configure": "^a|^é.*$", "write": "", "read": "x" * 5000}
    for name in others:
        server.api("PUT", "users", name, body={"password": "p", "tags": name.partition("_")[0]})
        server.api("PUT", "permissions", manifest["vhost"], name, body=odd)
    topic = {"exchange": "amq.topic", "write": "^a", "read": "^b"}
    server.api("PUT", "topic-permissions", manifest["vhost"], manifest["user"], body=topic)

    def granted() -> list[str]:
        kinds = ("permissions", "topic-permissions")
        return sorted(str(one) for kind in kinds for one in server.api("GET", "vhosts", manifest["vhost"], kind))

    before = granted()
    backend.quarantine(manifest)
    for name in others:
        queue = f"{where}/queues/{manifest['vhost']}/a"
        assert server.http.put(queue, json={}, auth=(name, "p")).status_code == 401
        assert server.http.delete(limits, auth=(name, "p")).status_code == 401
    assert server.api("GET", "vhosts", manifest["vhost"], "permissions") == []
    backend.quarantine(manifest)
    backend.release(manifest)
    assert granted() == before
    assert server.can_log_in(credentials)
    backend.quarantine(manifest)
    server.api("DELETE", "users", others[0])
    server.api("PUT", "permissions", manifest["vhost"], others[1], body=ALL)
    backend.release(manifest)
    found = {one["user"]: one["read"] for one in server.api("GET", "vhosts", manifest["vhost"], "permissions")}
    assert found == {manifest["user"]: ".*", others[1]: ".*"}, "what a person did meanwhile stays"
    backend.quarantine(manifest)
    backend.teardown(manifest, 1)
    assert [one for one in server.api("GET", "topic-permissions") if one["vhost"] == manifest["vhost"]] == []


def test_no_password_or_its_hash_is_in_a_tag_or_in_the_server_s_log(
    server: RabbitmqServer, backend: Rabbitmq, provisioned: Provisioned
) -> None:
    manifest, credentials = provisioned
    hashed = server.api("GET", "users", manifest["user"])["password_hash"]
    backend.quarantine(manifest)
    backend.release(manifest)
    backend.teardown(manifest, 1)
    eventually(lambda: f"Deleting vhost '{manifest['vhost']}'" in server.log())  # it is written some time later
    said = server.log()
    assert manifest["user"] in said
    assert hashed not in said
    assert credentials["password"] not in said


@pytest.mark.parametrize("change", ["password", "limit"])
def test_what_a_person_changed_in_quarantine(
    server: RabbitmqServer, backend: Rabbitmq, provisioned: Provisioned, change: str
) -> None:
    """A new password stays; a repeated quarantine shuts it out too. The limit is that of before the quarantine."""
    manifest, credentials = provisioned
    backend.quarantine(manifest)
    if change == "password":
        tags = server.api("GET", "users", manifest["user"])["tags"]
        server.api("PUT", "users", manifest["user"], body={"password": "new", "tags": tags})
        credentials = credentials | {"password": "new"}
    else:
        server.api("PUT", "vhost-limits", manifest["vhost"], "max-connections", body={"value": 3})
    backend.quarantine(manifest)
    assert not server.can_log_in(credentials)
    backend.release(manifest)
    assert server.can_log_in(credentials)


@pytest.mark.parametrize("verb", ["quarantine", "release"])
def test_a_worker_that_stood_still_while_another_one_took_over_changes_nothing(
    server: RabbitmqServer, backend: Rabbitmq, provisioned: Provisioned, verb: str
) -> None:
    manifest, credentials = provisioned
    late, other = (
        (backend.quarantine, backend.release) if verb == "quarantine" else (backend.release, backend.quarantine)
    )
    if verb == "release":
        backend.quarantine(manifest)
    stands, goes_on = threading.Event(), threading.Event()
    came: list[BaseException] = []

    def still() -> None:
        stands.set()
        assert goes_on.wait(20)

    def work() -> None:
        try:
            late(manifest, still)
        except Transient as error:
            came.append(error)

    worker = threading.Thread(target=work)
    worker.start()
    assert stands.wait(20)
    other(manifest)
    goes_on.set()
    worker.join()
    assert came, "it did not notice"
    assert server.can_log_in(credentials) == (verb == "quarantine")


@pytest.mark.parametrize("verb", ["quarantine", "release"])
def test_a_lost_claim_changes_nothing(
    server: RabbitmqServer, backend: Rabbitmq, provisioned: Provisioned, verb: str
) -> None:
    manifest, credentials = provisioned
    if verb == "release":
        backend.quarantine(manifest)
    before = backend.inspect(manifest)

    def lost() -> None:
        raise ClaimLost("another worker has it")

    with pytest.raises(ClaimLost):
        getattr(backend, verb)(manifest, lost)
    assert backend.inspect(manifest) == before
    assert server.can_log_in(credentials) == (verb == "quarantine")


def test_a_login_proves_a_release_and_nothing_else_does(
    server: RabbitmqServer, backend: Rabbitmq, provisioned: Provisioned
) -> None:
    manifest, credentials = provisioned
    backend.quarantine(manifest)
    for proven in (credentials, None):
        with pytest.raises(Transient, match="still in quarantine"):
            backend.prove(manifest, proven)
    backend.release(manifest)
    assert backend.prove(manifest, credentials) == {
        "vhost": manifest["vhost"],
        "user": manifest["user"],
        "login": True,
    }
    server.api("DELETE", "permissions", manifest["vhost"], manifest["user"])
    for wrong in (credentials, credentials | {"password": "a-wrong-one"}):
        with pytest.raises(Transient, match="fails") as failed:
            backend.prove(manifest, wrong)
        assert wrong["password"] not in str(failed.value)
    server.api("DELETE", "users", manifest["user"])
    with pytest.raises(Refused, match="no longer there"):
        backend.prove(manifest, credentials)


def test_an_exclusive_queue_goes_with_its_connection_and_others_stay(
    server: RabbitmqServer, backend: Rabbitmq, provisioned: Provisioned
) -> None:
    manifest, credentials = provisioned
    with closing(server.client(credentials)) as held:
        channel = held.channel()
        channel.queue_declare("mine", exclusive=True)
        channel.queue_declare("kept", durable=True, auto_delete=False)
        channel.basic_publish(amqp.Message("a word", delivery_mode=2), routing_key="kept")
        backend.quarantine(manifest)
        held.collect()
    backend.release(manifest)
    with closing(server.client(credentials)) as again:
        assert again.channel().basic_get("kept").body == "a word"
        assert [one["name"] for one in server.api("GET", "queues", manifest["vhost"])] == ["kept"]
    assert isinstance(backend.inspect(manifest), Same)
