"""After a rewind a person decides by class, at a shell: then exactly that happens, by the backends' own logs."""

import datetime as dt
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deprovisioner.up.servers import postgres_ready
from tests.support import rewound
from tests.support.api import until
from tests.support.processes import client
from tests.support.rewinds import DumpIntoNew, FileCopy, LaggingStandby, Way, copy_files, files_back
from tests.support.rewound import Install, Installation, Story, Witnesses
from tests.support.servers import Servers, serving
from tests.support.witness import eventually

Json = dict[str, Any]

pytestmark = pytest.mark.proof

# What the story leaves behind, as a survey counts it.
COUNTS = {
    "lost_holds": 1,
    "lost_revocations": 1,
    "lost_protections": 1,
    "lost_expiries": 1,
    "operations": 1,
    "expiries_due": 2,
    "teardowns": 2,
    "active_gone": 1,
    "unknown_objects": 2,
}
LOST = ("lost_holds", "lost_revocations", "lost_protections", "lost_expiries")


@pytest.fixture(scope="module")
def servers() -> Iterator[Servers]:
    """Backends of these tests' own: on others, the objects of other tests bear marks that no row knows."""
    with serving() as started:
        yield started


@pytest.fixture(scope="module")
def template() -> Iterator[Path]:
    with rewound.template() as made:
        yield made


@pytest.fixture
def install(servers: Servers, template: Path) -> Iterator[Install]:
    with rewound.installing(servers, template) as installing:
        yield installing


def gone_back(install: Install, way: Way) -> tuple[Installation, Story]:
    """An installation whose database has gone back, which was noticed."""
    its = install(way)
    story = Story(its).until(way)
    its.remembered()
    way.go_back(its.control)
    eventually(its.api_reads, what="the API reads again")
    eventually(its.rewound, what="it is noticed")
    return its, story


def survey(its: Installation) -> Json:
    """What `recover` shows; the classes of the story, and no other, have items."""
    seen = its.does("recover")
    assert {name: count for name, count in seen["counts"].items() if count} == COUNTS, seen["samples"]
    return seen


def decide(its: Installation, seen: Json, *words: str, **decisions: str) -> None:
    decided = [word for name, how in decisions.items() for word in ("--decide", f"{name}={how}")]
    said = ("recover", "--digest", seen["digest"], *decided, "--reason", "the dump of 08:00 is restored", *words)
    done = its.cli(*said)
    assert done.returncode == 0, done.stdout + done.stderr
    assert its.control.server.query("SELECT epoch FROM installation") == [(2,)]


@pytest.mark.parametrize("way", [DumpIntoNew, LaggingStandby])
def test_all_that_was_undone_since_is_done_again_and_nothing_is_destroyed(
    install: Install, servers: Servers, way: type[Way]
) -> None:
    its, story = gone_back(install, way())
    since = Witnesses(servers)
    seen = survey(its)
    assert since.said() == []
    decide(
        its,
        seen,
        **dict.fromkeys(LOST, "confirm"),
        **dict.fromkeys(("operations", "expiries_due", "teardowns"), "cancel"),
        **dict.fromkeys(("active_gone", "unknown_objects"), "confirm"),
    )
    for one in (*story.made, story.restored):
        until(its.acme, one, "active")
    until(its.acme, story.gone, "deleted")
    its.sweeps(4)
    assert not [said for said in since.said() if said.startswith("DROP")]
    assert not story.lost()
    (stuck,) = its.boss.get("/v1/jobs?state=stuck").json()["items"]
    assert stuck["resource_id"] == story.purged["id"], "what was purged since cannot be given back: a person decides"
    now = its.acme.get(f"/v1/resources/{story.lifted['id']}").json()
    assert (now["status"], now["expires_at"]) == ("active", None)
    now = its.acme.get(f"/v1/resources/{story.protected['id']}").json()
    assert (now["status"], now["protected"]) == ("active", True)
    holds = its.boss.get("/v1/holds").json()["items"]
    assert [(hold["scope"], hold["subject"]) for hold in holds] == [("tenant", "bulk")]
    with client(its.url, story.secret) as left:
        eventually(lambda: left.get("/v1/jobs").status_code == 401, what="their token is revoked")
    operation = its.boss.get(f"/v1/operations/{story.operation['operation']['id']}").json()
    assert operation["state"] == "stopped", operation
    _goes_on(its)
    assert not story.lost()


def test_what_is_confirmed_is_destroyed_and_nothing_else(install: Install, servers: Servers) -> None:
    its, story = gone_back(install, FileCopy())
    since = Witnesses(servers)
    seen = survey(its)
    before = servers.pg.log.stat().st_size
    users = servers.redis.users()
    assert since.said() == []
    now = dt.datetime.now(dt.UTC).isoformat()
    decide(
        its,
        seen,
        "--revoke-tokens-before",
        now,
        **dict.fromkeys(LOST, "cancel"),
        **dict.fromkeys(("operations", "expiries_due", "teardowns", "active_gone"), "confirm"),
        unknown_objects="leave",
    )
    doomed = [story.lifted, story.protected, story.restored, *story.left]
    its.env.pop("DEPROVISIONER_OPERATOR_TOKEN")
    with client(its.url, its.token("operator", name="after")[1]) as boss:
        for one in (*doomed, story.gone):
            until(boss, one, "deleted")
        assert boss.get(f"/v1/resources/{story.purged['id']}").json()["status"] == "deleting", "its grace goes on"
        boss.post(f"/v1/resources/{story.purged['id']}/purge", json={"reason": "again"})
        until(boss, story.purged, "deleted")
        its.sweeps(4)
        for one in story.made:
            assert boss.get(f"/v1/resources/{one['id']}").status_code == 404, "left alone: no row manages it"
    eventually(lambda: its.boss.get("/v1/jobs").status_code == 401, what="each earlier token is revoked")
    dropped = servers.pg.drops(before)
    wanted = [one["manifest"] for one in doomed if one["kind"] == "postgres"]
    assert dropped == {f"zz_del_{manifest['generation']}": 1 for manifest in wanted}
    cut_off = {one["manifest"]["user"] for one in doomed if one["kind"] == "redis"}
    assert users - servers.redis.users() == cut_off
    lost = story.lost()
    assert len(lost) == len(doomed), lost
    assert not [name for name in lost if name.startswith("kept")]


def test_an_announced_restore_finds_every_copy_still(install: Install, servers: Servers) -> None:
    way = DumpIntoNew()
    its = install(way)
    story = Story(its)
    story.begin()
    its.does("recover", "--announce", "--reason", "the dump is restored tonight")
    way.keep(its.control)
    since = Witnesses(servers)
    for worker in its.workers:
        worker.wake()
    its.sweeps(4)
    way.go_back(its.control)
    eventually(its.api_reads, what="the API reads again")
    its.sweeps(4)
    assert since.said() == [], "neither in the original nor in the copy"
    assert its.rewound()
    seen = its.does("recover")
    assert {name for name, count in seen["counts"].items() if count} == {"operations", "expiries_due", "teardowns"}
    decide(its, seen, operations="cancel", expiries_due="leave", teardowns="cancel")
    for one in (story.restored, story.purged):
        until(its.acme, one, "active")
    _goes_on(its)
    kept = (story.lifted, story.protected)
    assert [its.acme.get(f"/v1/resources/{one['id']}").json()["protected"] for one in kept] == [True, True]


def test_a_backend_that_went_back_is_left_as_it_is_until_a_person_has_decided(
    install: Install, servers: Servers
) -> None:
    its = install(Way())
    gone, doomed = its.active(its.acme, "postgres", "postgres")
    data, copy = servers.home / "pg-main", servers.home / "copy"
    copy_files(servers.children["pg-main"], data, copy)
    its.delete(its.acme, gone, "0s")
    until(its.acme, gone, "deleted")
    its.remembered()
    assert not servers.pg.bears(gone["manifest"])
    files_back(servers.children["pg-main"], data, copy)
    eventually(lambda: postgres_ready(servers.pg.dsn), what="pg-main is back")
    assert servers.pg.bears(gone["manifest"])
    since = Witnesses(servers)
    its.start_worker()  # else it takes until the next comparison, a minute
    eventually(lambda: "backend_went_back:" in its.cli("doctor").stdout, what="the doctor says so", every=0.2)
    its.delete(its.acme, doomed, "0s")
    its.sweeps(4)
    assert since.said() == []
    assert its.rewound() is None
    (breaker,) = its.boss.get("/v1/breakers").json()["items"]
    assert "went back in time" in str(breaker), breaker
    (other,) = its.active(its.acme, "redis")
    seen = its.does("recover", "--backend", "pg-main")
    assert {name: count for name, count in seen["counts"].items() if count} == {"deleted_there": 1}
    said = ("--digest", seen["digest"], "--decide", "deleted_there=leave", "--reason", "pg-main's own backup")
    done = its.cli("recover", "--backend", "pg-main", *said)
    assert done.returncode == 0, done.stdout + done.stderr
    until(its.acme, doomed, "deleted")
    assert servers.pg.bears(gone["manifest"]), "left: a person looks at it"
    assert its.acme.get(f"/v1/resources/{other['id']}").json()["status"] == "active"


def _goes_on(its: Installation) -> None:
    """The API takes writes, workers carry them out, and the doctor says nothing of a rewind."""
    assert its.rewound() is None
    eventually(lambda: its.boss.get("/readyz").status_code == 200, what="readyz has heard of it")
    (resource,) = its.active(its.acme, "postgres")
    its.delete(its.acme, resource, "0s")
    until(its.acme, resource, "deleted")
    doctor = its.cli("doctor")
    assert (doctor.returncode, "rewound:" in doctor.stdout) == (0, False), doctor.stdout
