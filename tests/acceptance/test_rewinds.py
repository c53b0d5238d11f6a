"""The control database goes back in time by each way, under real workers and a real API: nothing is destroyed."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support import rewound
from tests.support.api import problem, until
from tests.support.rewinds import (
    CurrentStandby,
    DumpIntoNew,
    DumpIntoSame,
    FileCopy,
    LaggingStandby,
    Recovery,
    Way,
)
from tests.support.rewound import Install, Installation, Story, Witnesses
from tests.support.servers import Servers
from tests.support.witness import eventually, slowness

# A worker compares as it starts and at each sweep; on a quiet machine that is a second.
NOTICED_SECONDS = 10
WAYS = (DumpIntoNew, DumpIntoSame, Recovery, FileCopy, LaggingStandby)
WORKERS = ("running", "stopped", "asleep")
# What each change shows; the others are proof.
SHORT = ((DumpIntoNew, "running"), (LaggingStandby, "stopped"))
CASES = [
    pytest.param(way, workers, marks=() if (way, workers) in SHORT else pytest.mark.proof)
    for way in WAYS
    for workers in WORKERS
]


@pytest.fixture(scope="module")
def template() -> Iterator[Path]:
    with rewound.template() as made:
        yield made


@pytest.fixture
def install(servers: Servers, template: Path) -> Iterator[Install]:
    with rewound.installing(servers, template) as installing:
        yield installing


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
    """The rewind is noticed, all say so, and no backend was asked to change anything."""
    eventually(lambda: its.rewound() or story.lost(), NOTICED_SECONDS * slowness(), "it is noticed", every=0.1)
    assert not story.lost(), "destroyed or cut off on the word of a database that went back"
    its.sweeps(4)
    _all_say_so(its, story)
    assert since.said() == []
    assert not story.lost()


def _all_say_so(its: Installation, story: Story) -> None:
    hold = its.rewound()
    assert hold
    ready = its.boss.get("/readyz")
    assert ready.status_code == 503
    assert ready.json()["database"].startswith("rewound:")
    resource = f"/v1/resources/{story.kept['id']}"
    heard = [503, 503]  # within two seconds, as a revoked token; what is asked here could change nothing
    eventually(lambda: [c.post("/v1/holds", json={}).status_code for c in (its.acme, its.boss)] == heard)
    for caller in (its.acme, its.boss):
        _refuses_writes(caller, resource)
    problem(its.acme.post(f"/v1/resources/{story.purged['id']}/restore", json={"reason": "r"}), 503, "rewound")
    problem(its.boss.post("/v1/holds", json={"scope": "global", "reason": "r"}), 503, "rewound")
    problem(its.boss.post(f"/v1/holds/{hold['id']}/release", json={"reason": "r"}), 503, "rewound")
    released = its.cli("hold", "release", str(hold["id"]), "--reason", "all is well")
    assert released.returncode == 1, released.stdout
    assert "deprovisioner recover" in released.stderr
    for path in (resource, "/v1/resources", "/v1/jobs", "/v1/holds", "/v1/operations"):
        assert its.boss.get(path).status_code == 200
    assert its.acme.get(f"{resource}/credentials").status_code == 200
    doctor = its.cli("doctor")
    assert (doctor.returncode, "rewound:" in doctor.stdout) == (1, True), doctor.stdout


def _refuses_writes(caller: httpx.Client, resource: str) -> None:
    problem(caller.delete(resource), 503, "rewound")
    problem(caller.patch(resource, json={"protected": True}), 503, "rewound")
    new = {"kind": "postgres", "backend": "pg-main", "name": "new", "tenant": "acme"}
    problem(caller.post("/v1/resources", json=new), 503, "rewound")


@pytest.mark.parametrize(("way", "workers"), CASES)
def test_a_control_database_that_went_back_destroys_nothing(
    install: Install, servers: Servers, way: type[Way], workers: str
) -> None:
    back = way()
    its = install(back)
    story = Story(its).until(back)
    since = Witnesses(servers)
    goes_back(its, back, workers)
    its.broker.flushdb()
    stands_still(its, story, since)


def works(its: Installation, kind: str) -> None:
    """A resource is provisioned and torn down."""
    (resource,) = its.active(its.acme, kind)
    its.delete(its.acme, resource, "0s")
    until(its.acme, resource, "deleted")


def test_a_promotion_that_lost_nothing_goes_on_by_itself(install: Install) -> None:
    way = CurrentStandby()
    its = install(way)
    works(its, "postgres")
    way.go_back(its.control)
    its.broker.flushdb()
    eventually(lambda: its.acme.get("/readyz").status_code == 200, what="the API serves again")
    works(its, "redis")
    assert its.rewound() is None
    assert any("control_database_promoted" in worker.log.read_text() for worker in its.workers)


@pytest.mark.proof
def test_a_broker_that_lost_everything_says_nothing(install: Install) -> None:
    its = install(Way())
    works(its, "redis")
    its.broker.flushdb()
    its.end_workers()
    its.start_worker()
    works(its, "redis")
    assert its.rewound() is None


@pytest.mark.proof
def test_another_installation_on_the_same_backends_goes_on(install: Install, servers: Servers) -> None:
    way = DumpIntoSame()
    its, other = install(way), install(Way(), workers=1)
    works(other, "postgres")
    story = Story(its).until(way)
    since = Witnesses(servers)
    goes_back(its, way, "running")
    stands_still(its, story, since)
    works(other, "postgres")
    works(other, "redis")
    assert other.rewound() is None
    assert other.boss.get("/readyz").status_code == 200
    assert not story.lost()


@pytest.mark.proof
def test_a_worker_that_sleeps_between_its_start_and_the_destruction_destroys_nothing(
    install: Install, servers: Servers
) -> None:
    way = DumpIntoNew()
    its = install(way)
    (resource,) = its.active(its.acme, "postgres")
    way.keep(its.control)
    its.end_workers()
    its.delete(its.acme, resource, "0s")
    asleep = its.start_worker(CRASH_AT="after:start", CRASH_SIGNAL="SIGSTOP")
    asleep.stops_itself()
    since = Witnesses(servers)
    way.go_back(its.control)
    its.start_worker()
    eventually(its.rewound, what="it is noticed")
    its.sweeps(2)  # the hold comes first, then the places are told
    asleep.wake()
    eventually(lambda: "claim_lost" in asleep.tail(), what="it has lost its claim")
    assert since.said() == []
    assert servers.pg.bears(resource["manifest"])


@pytest.mark.proof
@pytest.mark.parametrize("workers", ["running", "stopped"])
def test_what_was_made_in_the_last_minute_is_missed_only_where_no_worker_lived_through_it(
    install: Install, workers: str
) -> None:
    way = FileCopy()
    its = install(way, workers=1)
    its.sweeps(1)
    way.keep(its.control)
    (made,) = its.active(its.acme, "redis")
    its.sweeps(3)  # a worker sees it, and writes it nowhere yet
    goes_back(its, way, workers)
    eventually(lambda: its.boss.get("/readyz").status_code == 200 or its.rewound(), what="the API serves again")
    if workers == "running":
        eventually(its.rewound, what="it is noticed")
        return
    assert its.acme.get(f"/v1/resources/{made['id']}").status_code == 404
    works(its, "redis")
    assert its.rewound() is None, "docs/design.md: what a minute of memory can miss"
