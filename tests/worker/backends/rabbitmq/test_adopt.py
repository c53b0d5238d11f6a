"""Adoption, what is said of it beforehand, and letting go."""

import uuid
from typing import Any

import pytest

from outbox.errors import Refused
from tests.support import accounts
from tests.support.rabbitmq_servers import RabbitmqServer
from tests.worker.backends.rabbitmq.conftest import Provisioned
from worker.backends import Absent, Same
from worker.backends.rabbitmq import Rabbitmq
from worker.backends.rabbitmq.session import Session

Json = dict[str, Any]
ALL = {"configure": ".*", "write": ".*", "read": ".*"}


def shown(server: RabbitmqServer, names: Json) -> tuple[Json, ...]:
    """All that an adoption and a release must leave as it was."""
    vhost, user = (server.api("GET", f"{word}s", names[word], disable_stats="true") for word in ("vhost", "user"))
    permissions = server.api("GET", "users", names["user"], "permissions")
    topics = server.api("GET", "users", names["user"], "topic-permissions")
    return vhost, user, permissions, topics, server.api("GET", "vhost-limits", names["vhost"])


def test_adoption_quarantine_release_and_letting_go_leave_a_vhost_as_it_was(
    server: RabbitmqServer, backend: Rabbitmq, by_hand: Provisioned
) -> None:
    names, credentials = by_hand
    server.api("PUT", "vhost-limits", names["vhost"], "max-connections", body={"value": 7})
    server.api("PUT", "vhost-limits", names["vhost"], "max-queues", body={"value": 9})
    topic = {"exchange": "amq.topic", "write": "^a", "read": "^b"}
    server.api("PUT", "topic-permissions", names["vhost"], names["user"], body=topic)
    before = shown(server, names)
    manifest = backend.adopt(names, uuid.uuid4())
    assert server.can_log_in(credentials)
    assert backend.adopt(manifest, uuid.UUID(manifest["generation"])) == manifest
    backend.quarantine(manifest)
    backend.quarantine(manifest)
    assert not server.can_log_in(credentials)
    backend.release(manifest)
    backend.release(manifest)
    assert backend.prove(manifest, None)
    assert server.can_log_in(credentials)
    assert backend.unmark(manifest)["mark_removed_from"]
    assert backend.unmark(manifest) == {"mark_removed_from": []}
    assert shown(server, names) == before


def test_an_adopted_vhost_is_torn_down_with_its_user(
    server: RabbitmqServer, backend: Rabbitmq, by_hand: Provisioned
) -> None:
    names, credentials = by_hand
    manifest = backend.adopt(names, uuid.uuid4())
    backend.teardown(manifest, 1)
    assert isinstance(backend.inspect(manifest), Absent)
    assert not server.bears(manifest)
    assert not server.can_log_in(credentials)


def refusals(server: RabbitmqServer, names: Json) -> dict[str, tuple[Json, str, str]]:
    """What is not adopted: names, the code, and a part of the words."""
    other = f"other-{names['user']}"
    server.api("PUT", "vhosts", other, body={})
    for vhost in (names["vhost"], other):
        server.api("PUT", "permissions", vhost, names["user"], body=ALL)
    stranger = f"stranger-{names['user']}"
    server.api("PUT", "users", stranger, body={"password": "p", "tags": ""})
    return {
        "no vhost": ({"vhost": "nowhere", "user": None}, "not_there", "no vhost 'nowhere'"),
        "no user": ({"vhost": names["vhost"], "user": "nobody"}, "not_there", "no user 'nobody'"),
        "the root": ({"vhost": "/", "user": None}, "refused", "is protected"),
        "the service": ({"vhost": names["vhost"], "user": accounts.NAME}, "refused", "is protected"),
        "two vhosts": (names, "refused", f"also opens {other!r}"),
        "no permission": (names | {"user": stranger}, "refused", "has no permission"),
        "another server": (names | {"server": "elsewhere"}, "refused", "not 'elsewhere'"),
    }


def test_each_refusal_is_told_beforehand_and_changes_nothing(
    server: RabbitmqServer, backend: Rabbitmq, by_hand: Provisioned
) -> None:
    names, _ = by_hand
    before = shown(server, names)[:2]
    for manifest, code, words in refusals(server, names).values():
        (finding,) = backend.adoptable(manifest)
        assert finding.code == code
        assert words in finding.what
        assert finding.mend
        with pytest.raises(Refused):
            backend.adopt(manifest, uuid.uuid4())
    assert shown(server, names)[:2] == before


@pytest.mark.parametrize("tag", ["administrator", "monitoring", "policymaker"])
def test_a_user_that_reaches_beyond_its_vhost_is_refused_with_the_command_that_mends_it(
    server: RabbitmqServer, backend: Rabbitmq, by_hand: Provisioned, tag: str
) -> None:
    names, _ = by_hand
    server.api("PUT", "users", names["user"], body={"password": "p", "tags": ["shop", tag]})
    with pytest.raises(Refused, match=tag):
        backend.adopt(names, uuid.uuid4())
    (finding,) = backend.adoptable(names)
    assert finding.mend == f"rabbitmqctl set_user_tags {names['user']} shop"


def test_an_account_without_its_right_is_told_the_command(server: RabbitmqServer, by_hand: Provisioned) -> None:
    for tags in ("", "monitoring"):
        weak = Rabbitmq(server.account("weak", tags))
        (finding,) = weak.adoptable(by_hand[0])
        assert (finding.code, finding.mend) == ("right_missing", "rabbitmqctl set_user_tags weak administrator")


def test_nothing_is_taken_from_another_resource(
    server: RabbitmqServer, backend: Rabbitmq, by_hand: Provisioned, provisioned: Provisioned
) -> None:
    names, _ = by_hand
    manifest = backend.adopt(names, uuid.uuid4())
    with pytest.raises(Refused, match="another resource already"):
        backend.adopt(names, uuid.uuid4())
    made, credentials = provisioned
    server.api("PUT", "permissions", names["vhost"], made["user"], body=ALL)
    with pytest.raises(Refused, match="another resource already"):
        backend.adopt({"vhost": names["vhost"], "user": made["user"]}, uuid.UUID(manifest["generation"]))
    assert server.can_log_in(credentials)


def test_of_two_adoptions_at_once_the_late_one_is_refused(
    backend: Rabbitmq, by_hand: Provisioned, monkeypatch: pytest.MonkeyPatch
) -> None:
    names, _ = by_hand
    honest = Session.put
    inner: list[Any] = []

    def put(self: Session, *path: str, **body: Any) -> None:
        if path[0] == "vhosts" and not inner:  # the first has read that the vhost bears no mark
            inner.append(None)
            inner[0] = backend.adopt(names, uuid.uuid4())
        honest(self, *path, **body)

    monkeypatch.setattr(Session, "put", put)
    with pytest.raises(Refused, match="at this moment"):
        backend.adopt(names, uuid.uuid4())


def test_what_is_in_quarantine_is_neither_adopted_nor_let_go(backend: Rabbitmq, provisioned: Provisioned) -> None:
    manifest, _ = provisioned
    backend.quarantine(manifest)
    with pytest.raises(Refused, match="in quarantine"):
        backend.adopt(manifest, uuid.UUID(manifest["generation"]))
    with pytest.raises(Refused, match="in quarantine"):
        backend.unmark(manifest)
    assert {finding.code for finding in backend.adoptable(manifest)} == {"refused"}
    with pytest.raises(Refused, match="not the one of this resource"):
        backend.unmark(manifest | {"generation": str(uuid.uuid4())})
    backend.release(manifest)


def test_a_vhost_is_adopted_without_a_user(server: RabbitmqServer, backend: Rabbitmq, by_hand: Provisioned) -> None:
    names, credentials = by_hand
    manifest = backend.adopt({"vhost": names["vhost"]}, uuid.uuid4())
    assert isinstance(backend.inspect(manifest), Same)
    backend.quarantine(manifest)
    assert not server.can_log_in(credentials)
    backend.release(manifest)
    assert server.can_log_in(credentials)
    backend.teardown(manifest, 1)
    assert names["vhost"] not in server.names("vhosts")
    assert names["user"] in server.names("users"), "nobody said that it belongs to the vhost"
