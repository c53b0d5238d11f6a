"""What bears a mark of ours on a server, and what bears none."""

import re
import uuid
from typing import Any

import pytest

from outbox.errors import OutOfService
from tests.support.rabbitmq_servers import RabbitmqServer
from tests.worker.backends.rabbitmq.conftest import Provisioned
from worker.backends import IN_QUARANTINE, MarkedObject
from worker.backends.rabbitmq import Rabbitmq
from worker.backends.rabbitmq.session import Session


def told(backend: Rabbitmq, generation: str) -> list[MarkedObject]:
    return [one for one in backend.objects() if one.generation == generation]


def test_what_is_told_of_an_object_is_what_its_adoption_takes(backend: Rabbitmq, provisioned: Provisioned) -> None:
    manifest, _ = provisioned
    (one,) = told(backend, manifest["generation"])
    assert (one.names, one.quarantined, one.contradictory, one.why) == (manifest, False, False, "")
    assert one.resource_id is not None
    assert one.resource_id.hex in manifest["vhost"]
    assert backend.adopt(one.names, uuid.UUID(one.generation)) == manifest
    backend.quarantine(manifest)
    (one,) = told(backend, manifest["generation"])
    assert (one.names, one.quarantined, one.contradictory, one.why) == (manifest, True, False, IN_QUARANTINE)
    backend.release(manifest)


@pytest.mark.parametrize(
    ("lost", "why"), [("vhost", "no vhost bears its mark"), ("user", "was made with vhost .* is gone")]
)
def test_a_half_is_told_as_one(
    server: RabbitmqServer, backend: Rabbitmq, provisioned: Provisioned, lost: str, why: str
) -> None:
    manifest, _ = provisioned
    server.api("DELETE", f"{lost}s", manifest[lost])
    (one,) = told(backend, manifest["generation"])
    assert one.names == manifest | {lost: None}
    assert re.search(why, one.why)
    assert not one.contradictory
    backend.teardown(manifest, 1)


def test_copies_and_marks_that_are_none_are_told_as_contradictions(
    server: RabbitmqServer, backend: Rabbitmq, provisioned: Provisioned
) -> None:
    manifest, _ = provisioned
    mark = f"deprovisioner:gen:{manifest['generation']}"
    copy, strange = f"copy_{uuid.uuid4().hex}", f"strange_{uuid.uuid4().hex}"
    server.api("PUT", "vhosts", copy, body={"tags": [mark]})
    server.api("PUT", "vhosts", strange, body={"tags": [f"deprovisioner:gen:{strange}"]})
    (one,) = told(backend, manifest["generation"])
    assert (one.contradictory, one.names["vhost"], one.names["user"]) == (True, None, manifest["user"])
    assert "several vhosts" in one.why
    (one,) = told(backend, strange)
    assert (one.contradictory, "not one as we write it" in one.why) == (True, True)
    for name in (copy, strange):
        server.api("DELETE", "vhosts", name)


def test_what_bears_no_mark_is_told_with_its_user_where_one_alone_opens_it(
    server: RabbitmqServer, backend: Rabbitmq, provisioned: Provisioned, by_hand: Provisioned
) -> None:
    names, _ = by_hand
    shared = f"shared_{uuid.uuid4().hex}"
    server.api("PUT", "vhosts", shared, body={})
    found = {one.names["vhost"]: one.names for one in backend.unmarked()}
    assert found[names["vhost"]] == names | {"user": None}, "whoever made it by the API opens it too"
    server.api("DELETE", "permissions", names["vhost"], "witness")
    found = {one.names["vhost"]: one.names for one in backend.unmarked()}
    assert found[names["vhost"]] == names
    assert found[shared] == {"vhost": shared, "user": "witness"}
    assert not {"/", provisioned[0]["vhost"]} & found.keys()


def test_a_server_that_is_replaced_while_it_is_read_gives_no_list(
    backend: Rabbitmq, provisioned: Provisioned, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest, asked = Session.need, []

    def need(self: Session, *path: str, **words: str) -> Any:
        found = honest(self, *path, **words)
        if path == ("nodes",):
            asked.append(path)
            if len(asked) > 1:
                return [{"name": "rabbit@another", "running": True, "partitions": []}]
        return found

    monkeypatch.setattr(Session, "need", need)
    for read in (backend.objects, backend.unmarked):
        asked.clear()
        with pytest.raises(OutOfService, match="replaced"):
            list(read())
    asked.clear()
    manifest = provisioned[0] | {"vhost": "never_made", "user": None, "generation": str(uuid.uuid4())}
    with pytest.raises(OutOfService, match="replaced"):
        backend.inspect(manifest)
