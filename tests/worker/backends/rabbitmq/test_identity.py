"""Whose a vhost and a user are, and which server's word counts."""

import uuid
from collections.abc import Callable
from typing import Any

import pytest

from outbox.errors import OutOfService, Refused
from tests.support import accounts
from tests.support.rabbitmq_servers import RabbitmqServer
from tests.worker.backends.rabbitmq.conftest import Provisioned
from worker.backends import Absent, Different, Same
from worker.backends.rabbitmq import Rabbitmq, identity
from worker.backends.rabbitmq.session import Server, encoded

Json = dict[str, Any]
MARK = "deprovisioner:gen:{generation}"


def remake_vhost(server: RabbitmqServer, manifest: Json) -> None:
    server.api("DELETE", "vhosts", manifest["vhost"])
    server.api("PUT", "vhosts", manifest["vhost"], body={})


def remake_user(server: RabbitmqServer, manifest: Json) -> None:
    server.api("DELETE", "users", manifest["user"])
    server.api("PUT", "users", manifest["user"], body={"password": "p", "tags": ""})


def leave_a_stranger(server: RabbitmqServer, manifest: Json) -> None:
    server.api("DELETE", "vhosts", manifest["vhost"])
    remake_user(server, manifest)


def copy_the_mark(server: RabbitmqServer, manifest: Json) -> None:
    for word in ("vhost", "user"):
        server.api("DELETE", f"{word}s", manifest[word])
    server.api("PUT", "vhosts", f"copy_{manifest['vhost']}", body={"tags": [MARK.format(**manifest)]})


def copy_the_user_s_mark(server: RabbitmqServer, manifest: Json) -> None:
    server.api("DELETE", "users", manifest["user"])
    body = {"password": "p", "tags": [MARK.format(**manifest)]}
    server.api("PUT", "users", f"copy_{manifest['user']}", body=body)


def mark_it_twice(server: RabbitmqServer, manifest: Json) -> None:
    tags = [MARK.format(**manifest), f"deprovisioner:gen:{uuid.uuid4()}"]
    server.api("PUT", "vhosts", manifest["vhost"], body={"tags": tags})


DISGUISES = [remake_vhost, remake_user, leave_a_stranger, copy_the_mark, copy_the_user_s_mark, mark_it_twice]


@pytest.mark.parametrize("disguise", DISGUISES)
def test_what_matches_in_part_is_different_and_never_touched(
    server: RabbitmqServer,
    backend: Rabbitmq,
    provisioned: Provisioned,
    disguise: Callable[[RabbitmqServer, Json], None],
) -> None:
    manifest, _ = provisioned
    disguise(server, manifest)
    before = server.names("vhosts") | server.names("users")
    assert isinstance(backend.inspect(manifest), Different)
    for act in (backend.quarantine, backend.release, lambda m: backend.teardown(m, 1)):
        with pytest.raises(Refused):
            act(manifest)
    assert server.names("vhosts") | server.names("users") == before
    assert server.bears(manifest)


@pytest.mark.parametrize("lost", ["vhost", "user"])
def test_a_half_that_is_left_is_still_ours_and_is_torn_down(
    server: RabbitmqServer, backend: Rabbitmq, provisioned: Provisioned, lost: str
) -> None:
    manifest, _ = provisioned
    server.api("DELETE", f"{lost}s", manifest[lost])
    assert isinstance(backend.inspect(manifest), Same)
    backend.quarantine(manifest)
    with pytest.raises(Refused, match="no longer there"):
        backend.release(manifest)
    backend.teardown(manifest, 1)
    assert isinstance(backend.inspect(manifest), Absent)
    assert not server.bears(manifest)


@pytest.mark.parametrize(
    ("vhost", "user"),
    [("/", None), ("orders", "guest"), ("orders", accounts.NAME), ("orders", identity.SERVER_USER), ("kept", None)],
)
def test_what_is_protected_is_refused_whatever_a_manifest_says(server: RabbitmqServer, vhost: str, user: str) -> None:
    backend = Rabbitmq(server.service_dsn, protected=frozenset({"kept"}))
    manifest = {"vhost": vhost, "user": user, "generation": str(uuid.uuid4()), "server": None}
    for act in (
        backend.quarantine,
        backend.unmark,
        lambda m: backend.teardown(m, 1),
        lambda m: backend.adopt(m, uuid.uuid4()),
    ):
        with pytest.raises(Refused, match="is protected"):
            act(manifest)
    assert "/" in server.names("vhosts")


@pytest.mark.parametrize("name", [".", "..", ""])
def test_a_name_that_a_path_cannot_say_is_refused(server: RabbitmqServer, backend: Rabbitmq, name: str) -> None:
    """The server takes `%2E%2E` for the parent: a question about one vhost is answered for all."""
    with pytest.raises(Refused, match="cannot address"):
        encoded(("vhosts", name, "permissions"))
    for names in ({"vhost": name, "user": "app"}, {"vhost": "orders", "user": name or "."}):
        with pytest.raises(Refused, match="cannot address"):
            backend.adopt(names, uuid.uuid4())
    assert "/" in server.names("vhosts")


@pytest.mark.parametrize("name", ["a/b", "a%2Fb", "../b", "ä 雪", "?x=1", "a#b", "x" * 200, "%"])
def test_an_awkward_name_is_addressed_whole(server: RabbitmqServer, backend: Rabbitmq, name: str) -> None:
    bystanders = {"a", "b", "a/b/c", "a%252Fb"} - {name}
    for each in (name, *bystanders):
        server.api("PUT", "vhosts", each, body={})
    manifest = backend.adopt({"vhost": name}, uuid.uuid4())
    assert isinstance(backend.inspect(manifest), Same)
    backend.quarantine(manifest)
    backend.release(manifest)
    backend.teardown(manifest, 1)
    assert name not in server.names("vhosts")
    assert bystanders <= server.names("vhosts")
    for each in bystanders:
        server.api("DELETE", "vhosts", each)


def test_definitions_that_were_copied_to_another_cluster_do_not_make_it_the_right_server(
    server: RabbitmqServer, backend: Rabbitmq, provisioned: Provisioned
) -> None:
    """An import brings every vhost, user and parameter, cluster id included; nodes have other names."""
    manifest, credentials = provisioned
    ours = server.api("GET", "users", identity.SERVER_USER)["tags"]
    original = str(uuid.uuid4())

    def known_as(*nodes: str) -> None:
        tags = [f"deprovisioner:id:{original}", *(f"deprovisioner:node:{node}" for node in nodes)]
        server.api("PUT", "users", identity.SERVER_USER, body={"password_hash": "", "tags": tags})

    copy = manifest | {"server": original}
    try:
        known_as("rabbit@elsewhere", server.node)
        assert isinstance(backend.inspect(copy), Same)
        known_as("rabbit@elsewhere")
        seen = backend.inspect(copy)
        assert isinstance(seen, Different)
        assert (seen.marked, seen.seen["nothing_here"]) == (True, False)
        for act in (backend.quarantine, backend.release, backend.unmark, lambda m: backend.teardown(m, 1)):
            with pytest.raises(Refused):
                act(copy)
        assert server.can_log_in(credentials)
        found = backend.locate(copy)
        assert isinstance(found, Same)
        assert found.seen["manifest"] == manifest
    finally:
        server.api("PUT", "users", identity.SERVER_USER, body={"password_hash": "", "tags": ours})


def test_a_cluster_keeps_its_identity_while_one_of_its_nodes_is_left(server: RabbitmqServer, backend: Rabbitmq) -> None:
    before = backend.plan(uuid.uuid4(), uuid.uuid4()).manifest["server"]
    tags = [*server.api("GET", "users", identity.SERVER_USER)["tags"], "deprovisioner:node:rabbit@retired"]
    server.api("PUT", "users", identity.SERVER_USER, body={"password_hash": "", "tags": tags})
    assert backend.server_identity() == before
    assert backend.plan(uuid.uuid4(), uuid.uuid4()).manifest["server"] == before
    assert server.node in str(server.api("GET", "users", identity.SERVER_USER)["tags"])
    assert "retired" not in str(server.api("GET", "users", identity.SERVER_USER)["tags"])


@pytest.mark.parametrize(
    ("nodes", "all_running"),
    [
        (
            '[{"name": "a", "running": true, "partitions": ["b"]}, {"name": "b", "running": true, "partitions": []}]',
            False,
        ),
        ('[{"name": "a", "running": true, "partitions": []}, {"name": "b", "running": false}]', False),
        ('[{"name": "a", "running": true, "partitions": []}, {"name": "b", "running": true}]', False),
        (
            '[{"name": "a", "running": true, "partitions": []}, {"name": "b", "running": true, "partitions": []},'
            ' {"name": "c", "running": false}]',
            True,
        ),
        ("[]", False),
    ],
    ids=["partitioned", "half of it down", "silent", "one down", "none"],
)
def test_a_cluster_that_is_not_whole_is_not_believed(answers: Any, nodes: str, *, all_running: bool) -> None:
    with (
        Server(answers(200, nodes), frozenset()).connect() as session,
        pytest.raises(OutOfService),
    ):
        identity.nodes(session, all_running=all_running)


def test_a_majority_is_believed(answers: Any) -> None:
    nodes = '[{"name": "a", "running": true, "partitions": []}, {"name": "b", "running": true, "partitions": []},'
    with Server(answers(200, nodes + '{"name": "c", "running": false}]'), frozenset()).connect() as session:
        assert identity.nodes(session) == ["a", "b", "c"]
