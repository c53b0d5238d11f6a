"""The control database goes back in time by each way, under real workers and a real API: nothing is destroyed."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import rewinds
from tests.support.api import problem, until
from tests.support.rewinds import (
    Control,
    CurrentStandby,
    DumpIntoNew,
    DumpIntoSame,
    FileCopy,
    LaggingStandby,
    Recovery,
    Way,
)
from tests.support.rewound import Installation, Story, Witnesses
from tests.support.servers import Servers, server_folder
from tests.support.witness import eventually, slowness

# A worker compares as it starts and at each sweep; on a quiet machine that is a second.
NOTICED_SECONDS = 10
WAYS = (DumpIntoNew, DumpIntoSame, Recovery, FileCopy, LaggingStandby)


@pytest.fixture(scope="module")
def template() -> Iterator[Path]:
    folder = server_folder("rewinds")
    yield rewinds.template(folder)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def installed(servers: Servers, template: Path) -> Iterator[Callable[..., Installation]]:
    """Makes an installation with two workers, whose control database will go back by this way."""
    made: list[Installation] = []
    controls: list[Control] = []

    def install(way: Way, workers: int = 2) -> Installation:
        controls.append(Control(server_folder("rewind"), template))
        way.prepare(controls[-1])
        made.append(Installation(servers, controls[-1], broker=len(made)))
        for _ in range(workers):
            made[-1].start_worker()
        return made[-1]

    yield install
    for one in made:
        one.stop()
    for control in controls:
        control.stop()
        shutil.rmtree(control.folder, ignore_errors=True)


def goes_back(its: Installation, way: Way, workers: str) -> None:
    """The older state takes the place of the present one, while the workers run, are stopped, or one is asleep."""
    if workers == "stopped":
        its.end_workers()
    if workers == "asleep":
        its.workers[0].pause()
    way.go_back(its.control)
    if workers == "stopped":
        its.start_worker()
        its.start_worker()
    if workers == "asleep":
        its.workers[0].wake()


def stands_still(its: Installation, story: Story, since: Witnesses) -> None:
    """The rewind is noticed, all say so, and no backend has been asked to change anything."""
    eventually(lambda: its.rewound() or story.lost(), NOTICED_SECONDS * slowness(), "it is noticed", every=0.1)
    assert not story.lost(), "destroyed or cut off on the word of a database that went back"
    its.sweeps(4)
    assert since.said() == []
    assert not story.lost()
    _all_say_so(its, story)
    assert since.said() == []


def _all_say_so(its: Installation, story: Story) -> None:
    hold = its.rewound()
    assert hold
    eventually(lambda: its.boss.get("/readyz").status_code == 503, what="readyz has heard of it")
    assert its.boss.get("/readyz").json()["database"].startswith("rewound:")
    resource = f"/v1/resources/{story.kept['id']}"
    eventually(lambda: its.boss.delete(resource).status_code == 503, what="the API has heard of it")
    new = {"kind": "postgres", "backend": "pg-main", "name": "new", "tenant": "acme"}
    for caller in (its.acme, its.boss):
        problem(caller.delete(resource), 503, "rewound")
        problem(caller.patch(resource, json={"protected": True}), 503, "rewound")
        problem(caller.post("/v1/resources", json=new), 503, "rewound")
    problem(its.acme.post(f"/v1/resources/{story.purged['id']}/restore", json={"reason": "r"}), 503, "rewound")
    another = {"scope": "global", "reason": "r"}
    problem(its.boss.post("/v1/holds", json=another), 503, "rewound")
    problem(its.boss.post(f"/v1/holds/{hold['id']}/release", json={"reason": "r"}), 503, "rewound")
    released = its.cli("hold", "release", str(hold["id"]), "--reason", "all is well")
    assert released.returncode == 1, released.stdout
    assert "deprovisioner recover" in released.stderr
    for path in (resource, "/v1/resources", "/v1/jobs", "/v1/holds", "/v1/operations"):
        assert its.boss.get(path).status_code == 200
    assert its.acme.get(f"{resource}/credentials").status_code == 200
    doctor = its.cli("doctor")
    assert (doctor.returncode, "rewound" in doctor.stdout) == (1, True), doctor.stdout


def story_of(its: Installation, way: Way) -> Story:
    """All that happens before the database goes back."""
    story = Story(its)
    story.begin()
    way.keep(its.control)
    story.go_on()
    return story


@pytest.mark.parametrize(
    ("way", "workers"),
    [
        (DumpIntoNew, "running"),
        pytest.param(LaggingStandby, "stopped"),
        *(
            pytest.param(way, workers, marks=pytest.mark.proof)
            for way in WAYS
            for workers in ("running", "stopped", "asleep")
            if (way, workers) not in ((DumpIntoNew, "running"), (LaggingStandby, "stopped"))
        ),
    ],
)
def test_a_control_database_that_went_back_destroys_nothing(
    installed: Callable[..., Installation], servers: Servers, way: type[Way], workers: str
) -> None:
    back = way()
    its = installed(back)
    story = story_of(its, back)
    since = Witnesses(servers)
    goes_back(its, back, workers)
    its.broker.flushdb()
    stands_still(its, story, since)


def test_a_promotion_that_lost_nothing_goes_on_by_itself(
    installed: Callable[..., Installation], servers: Servers
) -> None:
    way = CurrentStandby()
    its = installed(way)
    (resource,) = its.active(its.acme, "postgres")
    way.go_back(its.control)
    its.broker.flushdb()
    eventually(lambda: its.acme.get("/readyz").status_code == 200, what="the API serves again")
    (another,) = its.active(its.acme, "redis")
    for one in (resource, another):
        its.delete(its.acme, one, "0s")
        until(its.acme, one, "deleted")
    assert its.rewound() is None
