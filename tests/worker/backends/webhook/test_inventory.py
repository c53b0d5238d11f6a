"""All objects of a provisioner, objects on a server that moved, what could be adopted, what goes out of management."""

import json
import uuid
from collections.abc import Iterable
from typing import Any

import pytest

from examples.provisioner import notebooks
from outbox.errors import Refused, Transient
from tests.support.provisioners import ACTIONS, App, Served, only, says
from tests.worker.backends.webhook.conftest import Serve
from worker.backends import Absent, Different, Same
from worker.backends.webhook import Webhook
from worker.intake import Intake


def test_every_marked_object_is_told_once_page_by_page(
    served: Served, backend: Webhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notebooks, "PAGE", 3)
    marked = [served.marked() for _ in range(8)]
    served.by_hand("not-ours")
    told = list(backend.objects())
    assert sorted(one.names["external"] for one in told) == sorted(one["external"] for one in marked)
    assert {one.resource_id for one in told} == {uuid.UUID(one["external"][4:]) for one in marked}
    assert served.asked()["/objects"] == 3


@pytest.mark.parametrize(
    "pages",
    [
        ['{"items": [{"external": "b", "generation": "2"}, {"external": "a", "generation": "1"}], "next": null}'],
        ['{"items": [{"external": "b", "generation": "2"}], "next": "x"}'] * 3 + ['{"items": [], "next": "x"}'],
        ['{"items": {"external": "b"}, "next": null}'],
        ['{"next": null}'],
        ['{"items": ["b"]}'],
    ],
    ids=["no order", "no end", "no list", "nothing", "no objects"],
)
def test_a_list_that_could_be_incomplete_is_an_error(served: Served, backend: Webhook, pages: list[str]) -> None:
    left = iter(pages)

    def page(environ: dict[str, Any], start: Any, honest: App) -> Iterable[bytes]:
        return says("200 OK", next(left).encode(), server=served.notebooks.server)(environ, start, honest)

    served.meddle = only("/objects", page)
    with pytest.raises(Transient):
        list(backend.objects())


def test_several_objects_of_one_generation_and_marks_that_are_none_are_contradictory(
    served: Served, backend: Webhook
) -> None:
    generation = "7" * 8 + "-0000-0000-0000-" + "7" * 12
    items = [{"external": name, "generation": generation} for name in ("a", "b")]
    items += [{"external": "c", "generation": "not-a-uuid"}]
    body = json.dumps({"items": items, "next": None}).encode()
    served.meddle = only("/objects", says("200 OK", body, server=served.notebooks.server))
    both, other = backend.objects()
    assert (both.contradictory, both.names["external"], both.parts) == (True, None, ("object a", "object b"))
    assert (other.contradictory, bool(other.why)) == (True, True)


def test_an_object_on_a_server_that_moved_is_located_by_its_generation(
    served: Served, serve: Serve, backend: Webhook
) -> None:
    manifest = served.marked()
    elsewhere = manifest | {"server": "the-old-one"}
    assert isinstance(backend.inspect(elsewhere), Different)
    found = backend.locate(elsewhere)
    assert isinstance(found, Same)
    assert found.seen["manifest"] == manifest
    served.query("UPDATE notebooks SET external = 'renamed' WHERE external = ?", manifest["external"])
    renamed = Intake(backend).locate(elsewhere)
    assert isinstance(renamed, Same)
    assert renamed.seen["manifest"] == manifest | {"external": "renamed"}
    assert isinstance(backend.locate(elsewhere | {"generation": str(uuid.uuid4())}), Absent)


def test_what_would_be_refused_is_told_beforehand_and_nothing_changes(served: Served) -> None:
    backend = Webhook(served.dsn(), protected=frozenset({"the-control-database"}))
    served.by_hand("free")
    taken = served.marked()["external"]
    closed = served.marked()["external"]
    served.query("UPDATE notebooks SET quarantined = 1 WHERE external = ?", closed)
    for name in ("free", taken, closed, "not-there", "the-control-database"):
        found = [one.code for one in backend.adoptable({"external": name, "generation": None, "server": None})]
        expected = {"free": [], "not-there": ["not_there"], closed: ["refused", "refused"]}.get(name, ["refused"])
        assert found == expected, name
    other = backend.adoptable({"external": "free", "generation": None, "server": "another"})
    assert [one.code for one in other] == ["refused"]
    assert served.effects() == []


def test_an_object_is_unmarked_twice_and_then_it_is_free(served: Served, backend: Webhook) -> None:
    manifest = served.marked()
    assert backend.unmark(manifest) == {"status": 200}
    assert served.query("SELECT external, generation FROM notebooks") == [(manifest["external"], None)]
    assert list(backend.objects()) == []
    assert isinstance(backend.inspect(manifest), Different)
    closed = served.marked()
    backend.quarantine(closed)
    with pytest.raises(Refused, match="in quarantine"):
        backend.unmark(closed)


def test_a_protected_name_is_never_touched(served: Served) -> None:
    manifest = served.marked()
    backend = Webhook(served.dsn(), protected=frozenset({manifest["external"]}))
    for act in (backend.quarantine, backend.release, backend.unmark, lambda one: backend.teardown(one, 1)):
        with pytest.raises(Refused, match="is protected"):
            act(manifest)
    assert served.effects() == []


def test_what_is_not_declared_is_refused_and_not_asked_for(serve: Serve) -> None:
    served = serve(verbs=ACTIONS)
    backend, manifest = Webhook(served.dsn()), served.marked()
    for act in (lambda: list(backend.objects()), lambda: backend.locate(manifest), lambda: backend.adoptable(manifest)):
        with pytest.raises(Refused, match="does not declare `"):
            act()
    assert set(served.asked()) == {"/"}
