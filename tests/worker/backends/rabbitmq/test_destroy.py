"""Teardown, and what customers and administrators do meanwhile."""

import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import amqp
import pytest

from outbox.errors import OutOfService, Refused, Transient, Unavailable
from tests.support.rabbitmq_servers import RabbitmqServer
from tests.support.witness import eventually
from tests.worker.backends.rabbitmq.conftest import Provisioned
from tests.worker.backends.rabbitmq.test_quarantine import ALL, CUT, killed_at_each_call
from worker.backends import Absent, Different
from worker.backends.fleet import Progress, hearing
from worker.backends.rabbitmq import Rabbitmq, destroy, identity
from worker.backends.rabbitmq.session import DoubtError, Session

Json = dict[str, Any]


@contextmanager
def looping(server: RabbitmqServer, credentials: Json) -> Iterator[threading.Event]:
    """A customer that publishes and consumes, and connects again as fast as it can; set once it has worked."""
    over, worked = threading.Event(), threading.Event()

    def live() -> None:
        while not over.is_set():
            try:
                with closing(server.client(credentials)) as held:
                    try:
                        channel = held.channel()
                        while not over.is_set():
                            name = channel.queue_declare(f"q_{uuid.uuid4().hex}", durable=True, auto_delete=False).queue
                            channel.basic_publish(amqp.Message("x", delivery_mode=2), routing_key=name)
                            channel.basic_get(name)
                            worked.set()
                    except CUT:
                        held.collect()
            except CUT:
                pass

    customers = [threading.Thread(target=live) for _ in range(3)]
    for customer in customers:
        customer.start()
    try:
        yield worked
    finally:
        over.set()
        for customer in customers:
            customer.join()


def test_customers_who_write_and_connect_again_all_the_while_leave_nothing(
    server: RabbitmqServer, backend: Rabbitmq, provisioned: Provisioned
) -> None:
    manifest, credentials = provisioned
    with looping(server, credentials) as worked:
        assert worked.wait(20)
        done = backend.teardown(manifest, 1)
        assert isinstance(backend.inspect(manifest), Absent)
    assert done["connections_closed"] >= 1
    assert not server.bears(manifest)
    # Made again under the name, it shows the queues that a deletion under writers leaves (rabbitmq-server#4260).
    server.api("PUT", "vhosts", manifest["vhost"], body={})
    assert server.api("GET", "queues", manifest["vhost"]) == []
    server.api("DELETE", "vhosts", manifest["vhost"])


@pytest.mark.proof
def test_a_teardown_that_is_killed_again_and_again_comes_to_its_end(
    server: RabbitmqServer, backend: Rabbitmq, provisioned: Provisioned, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest, _ = provisioned
    assert killed_at_each_call(monkeypatch, lambda: backend.teardown(manifest, 1), lambda: None) > 5
    assert isinstance(backend.inspect(manifest), Absent)
    assert not server.bears(manifest)
    assert backend.teardown(manifest, 1) == {}, "a repetition finds nothing"


def test_neighbours_and_other_users_of_the_vhost_stay(
    server: RabbitmqServer, backend: Rabbitmq, provisioned: Provisioned
) -> None:
    """Permissions of other users on the vhost go with it; the users, and what they have elsewhere, stay."""
    manifest, credentials = provisioned
    neighbour = credentials | {"vhost": f"{manifest['vhost']}2", "user": f"{manifest['user']}2", "password": "p"}
    server.api("PUT", "vhosts", neighbour["vhost"], body={})
    server.api("PUT", "users", neighbour["user"], body={"password": "p", "tags": ""})
    for vhost in (neighbour["vhost"], manifest["vhost"]):
        server.api("PUT", "permissions", vhost, neighbour["user"], body=ALL)
    with closing(server.client(neighbour)) as held:
        backend.teardown(manifest, 1)
        held.channel().queue_declare("still", exclusive=True)
    assert [one["vhost"] for one in server.api("GET", "users", neighbour["user"], "permissions")] == [
        neighbour["vhost"]
    ]
    assert not server.bears(manifest)


def test_a_user_that_was_given_a_second_vhost_is_gone_from_it(
    server: RabbitmqServer, backend: Rabbitmq, provisioned: Provisioned
) -> None:
    """It was made for this resource: what is left of it would be working credentials. The other vhost stays."""
    manifest, credentials = provisioned
    second = f"second_{uuid.uuid4().hex}"
    server.api("PUT", "vhosts", second, body={})
    server.api("PUT", "permissions", second, manifest["user"], body=ALL)
    backend.quarantine(manifest)
    assert not server.can_log_in(credentials | {"vhost": second})
    backend.release(manifest)
    assert server.can_log_in(credentials | {"vhost": second})
    backend.teardown(manifest, 1)
    assert not server.can_log_in(credentials | {"vhost": second})
    assert second in server.names("vhosts")
    assert not server.bears(manifest)


def test_a_shovel_and_a_federation_that_feed_the_vhost_leave_nothing(
    server: RabbitmqServer, backend: Rabbitmq, provisioned: Provisioned
) -> None:
    manifest, credentials = provisioned
    url = credentials["url"]
    shovel = {"src-protocol": "amqp091", "src-uri": url, "src-queue": "a", "dest-protocol": "amqp091"}
    shovel |= {"dest-uri": url, "dest-queue": "b", "reconnect-delay": 1}
    server.api("PUT", "parameters", "shovel", manifest["vhost"], "s", body={"value": shovel})
    upstream = {"uri": url, "expires": 3600000}
    server.api("PUT", "parameters", "federation-upstream", manifest["vhost"], "u", body={"value": upstream})
    policy = {"pattern": "^f", "definition": {"federation-upstream-set": "all"}}
    server.api("PUT", "policies", manifest["vhost"], "p", body=policy)
    eventually(lambda: len(server.api("GET", "connections", "username", manifest["user"])) >= 2)
    assert backend.teardown(manifest, 1)["connections_closed"] >= 2
    assert isinstance(backend.inspect(manifest), Absent)
    assert [one for one in server.api("GET", "parameters") if one["vhost"] == manifest["vhost"]] == []
    assert server.api("GET", "connections", "username", manifest["user"]) == []


def exported(server: RabbitmqServer, manifest: Json, *, with_tags: bool) -> Json:
    """The object's part of an export: of `rabbitmqctl export_definitions`, or of the management API's, without tags."""
    every = server.api("GET", "definitions")
    wanted = {manifest["vhost"], manifest["user"]}
    found = {
        key: [one for one in every[key] if wanted & {one.get("name"), one.get("user")}]
        for key in ("users", "vhosts", "permissions")
    }
    for one in found["vhosts"]:
        assert "metadata" not in one
        if with_tags:
            one["metadata"] = {"tags": [f"deprovisioner:gen:{manifest['generation']}"]}
    return found


@pytest.fixture
def importing(server: RabbitmqServer, monkeypatch: pytest.MonkeyPatch) -> Callable[[Json, int], None]:
    """From now on, the deletion of a vhost is followed by an import of definitions, so many times."""
    honest = Session.delete

    def start(definitions: Json, times: int) -> None:
        left = [times]

        def delete(self: Session, *path: str, **words: Any) -> bool:
            done = honest(self, *path, **words)
            if path[0] == "vhosts" and left[0]:
                left[0] -= 1
                server.api("POST", "definitions", body=definitions)
            return done

        monkeypatch.setattr(Session, "delete", delete)

    monkeypatch.setattr(destroy, "PAUSE_SECONDS", 0)
    monkeypatch.setattr(destroy, "ROUNDS", 3)
    return start


def test_what_an_import_brings_back_meanwhile_is_deleted_again_or_told(
    server: RabbitmqServer, backend: Rabbitmq, provisioned: Provisioned, importing: Callable[[Json, int], None]
) -> None:
    manifest, credentials = provisioned
    definitions = exported(server, manifest, with_tags=True)
    importing(definitions, 2)
    assert backend.teardown(manifest, 1)["vhosts_removed"] == 3
    assert not server.bears(manifest)
    assert not server.can_log_in(credentials)
    server.api("POST", "definitions", body=definitions)
    importing(definitions, 100)
    with pytest.raises(Transient, match="is there again after 3 deletions"):
        backend.teardown(manifest, 1)
    importing(definitions, 0)
    backend.teardown(manifest, 1)
    assert not server.bears(manifest)


def test_a_vhost_that_an_import_brings_back_without_its_mark_is_refused(
    server: RabbitmqServer, backend: Rabbitmq, provisioned: Provisioned, importing: Callable[[Json, int], None]
) -> None:
    """The management API exports no tags of vhosts: whose that vhost is, only a person can say."""
    manifest, _ = provisioned
    importing(exported(server, manifest, with_tags=False), 1)
    with pytest.raises(Refused, match="not the one of this resource any more"):
        backend.teardown(manifest, 1)
    assert isinstance(backend.inspect(manifest), Different)
    assert manifest["vhost"] in server.names("vhosts")
    server.api("PUT", "vhosts", manifest["vhost"], body={"tags": [f"deprovisioner:gen:{manifest['generation']}"]})
    backend.teardown(manifest, 1)
    assert not server.bears(manifest)


@pytest.mark.parametrize("word", ["vhost", "user"])
def test_what_takes_the_name_between_two_calls_is_not_deleted(
    server: RabbitmqServer, backend: Rabbitmq, provisioned: Provisioned, monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    manifest, _ = provisioned
    honest = identity.judge

    def judge(session: Session, judged: Json) -> Any:
        seen = honest(session, judged)
        server.api("DELETE", f"{word}s", manifest[word])
        server.api("PUT", f"{word}s", manifest[word], body={"description": "a stranger's", "password": "p", "tags": ""})
        return seen

    monkeypatch.setattr(identity, "judge", judge)
    with pytest.raises(Refused, match="not the one of this resource any more"):
        backend.teardown(manifest, 1)
    monkeypatch.undo()
    assert server.api("GET", f"{word}s", manifest[word])["tags"] == []
    assert isinstance(backend.inspect(manifest), Different)


def test_a_deletion_whose_answer_does_not_come_is_looked_at_and_repeated(
    server: RabbitmqServer, backend: Rabbitmq, provisioned: Provisioned, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest, _ = provisioned
    monkeypatch.setattr(destroy, "PAUSE_SECONDS", 0)
    honest, lost = Session.delete, ["after", "before"]

    def delete(self: Session, *path: str, **words: Any) -> bool:
        if path[0] != "vhosts" or not lost:
            return honest(self, *path, **words)
        if lost.pop() == "after":
            honest(self, *path, **words)
        raise DoubtError("no answer")

    monkeypatch.setattr(Session, "delete", delete)
    backend.teardown(manifest, 1)
    assert lost == []
    assert not server.bears(manifest)


def test_a_node_that_is_down_stops_a_teardown_before_its_first_change(
    server: RabbitmqServer, backend: Rabbitmq, provisioned: Provisioned, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the node holds would stay; the cluster here has one node, so the list of nodes is given."""
    manifest, credentials = provisioned
    honest = Session.need

    def need(self: Session, *path: str, **words: str) -> Any:
        found = honest(self, *path, **words)
        here = [one | {"partitions": []} for one in found] if path == ("nodes",) else found
        away = [{"name": "rabbit@two", "running": True, "partitions": []}, {"name": "rabbit@down", "running": False}]
        return [*here, *away] if path == ("nodes",) else found

    monkeypatch.setattr(Session, "need", need)
    with pytest.raises(OutOfService, match="rabbit@down"):
        backend.teardown(manifest, 1)
    assert server.can_log_in(credentials)


def test_two_workers_at_once_tear_down_once(
    server: RabbitmqServer, backend: Rabbitmq, provisioned: Provisioned
) -> None:
    manifest, _ = provisioned
    both, came = threading.Barrier(2), []

    def work() -> None:
        both.wait()
        try:
            backend.teardown(manifest, 1)
        except (Transient, Unavailable) as error:
            came.append(error)

    workers = [threading.Thread(target=work) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(came) < 2, came
    assert isinstance(backend.inspect(manifest), Absent)
    assert not server.bears(manifest)


@pytest.mark.proof
def test_a_thousand_queues_with_long_names_and_waiting_messages_are_gone(
    server: RabbitmqServer, backend: Rabbitmq, provisioned: Provisioned
) -> None:
    """Not even the server's own tables have one of them."""
    manifest, credentials = provisioned
    with closing(server.client(credentials)) as held:
        channel = held.channel()
        for n in range(1000):
            name = f"{n:04}-{'ü' * 100}{'x' * 50}"
            channel.queue_declare(name, durable=True, auto_delete=False)
            channel.basic_publish(amqp.Message("waits", delivery_mode=2), routing_key=name)
    told: list[Progress] = []
    with hearing(told.append):
        done = backend.teardown(manifest, 1)
    assert (done["queues"], done["vhosts_removed"]) == (1000, 1)
    assert told[0] == Progress(0, 1000, "queues")
    assert isinstance(backend.inspect(manifest), Absent)
    tables = (
        "[rabbit_queue, rabbit_durable_queue, rabbit_durable_route, rabbit_vhost, rabbit_user, rabbit_user_permission]"
    )
    found = server.run(
        "eval",
        f'[T || T <- {tables}, R <- ets:tab2list(T), string:find(io_lib:format("~w", [R]), '
        f'io_lib:format("~w", [<<"{manifest["vhost"]}">>])) =/= nomatch].',
    )
    assert found.strip() == "[]"


@pytest.mark.proof
def test_a_customer_that_an_alarm_blocks_is_torn_down(
    server: RabbitmqServer, backend: Rabbitmq, provisioned: Provisioned
) -> None:
    """Under an alarm the server stops whoever publishes: such a connection reads nothing more of its client."""
    manifest, credentials = provisioned
    with looping(server, credentials) as worked:
        assert worked.wait(20)
        server.run("set_disk_free_limit", "900000GB")
        try:
            eventually(lambda: server.api("GET", "nodes")[0].get("disk_free_alarm"))
            assert {finding.code for finding in backend.check()} == {"alarm"}
            backend.quarantine(manifest)
            assert not server.can_log_in(credentials)
            backend.teardown(manifest, 1)
            assert isinstance(backend.inspect(manifest), Absent)
        finally:
            server.run("set_disk_free_limit", "50MB")
    assert not server.bears(manifest)
