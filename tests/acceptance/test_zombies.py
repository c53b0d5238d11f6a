"""A zombie: a worker that is paused until its lease has passed, and then goes on with what it knew.

It gets SIGSTOP at a boundary of `support/crash_points.py`. Meanwhile another worker does its job, and in most cases
a new resource takes the same name. Then the zombie gets SIGCONT.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import psycopg2
import pytest
import redis

from outbox import jobs
from tests.support.crash_cells import GRACE
from tests.support.parallel_installs import installs
from tests.support.scenario import Scenario
from tests.support.servers import Servers
from tests.support.witness import eventually

AT_ONCE = 4


def the_name_is_reused(scenario: Scenario, kind: str, at: str) -> None:
    """Another worker did its job. The new resource is spared; the zombie's result is recorded as `late` only."""
    old = scenario.install.born(kind)
    jobs.enqueue(scenario.install.db, old, actor="test")
    paused = scenario.paused_worker(at)
    scenario.end_its_sessions()
    scenario.rescuer()
    manifest = scenario.until(old, "deleted")
    new = scenario.reuse_the_name(kind, manifest)
    paused.wake()
    scenario.learns_that_its_claim_is_lost(paused)
    assert scenario.is_whole(kind, manifest), "the new resource was harmed"
    assert scenario.events(old).count("late") == (at == "before:complete")
    assert scenario.events(old).count("completed") == 1
    jobs.enqueue(scenario.install.db, new, actor="test")
    scenario.until(new, "deleted")
    scenario.check(old, new)


def its_successor_waits_for_its_lock(scenario: Scenario, kind: str, at: str) -> None:
    """Its session still holds the lock: it finishes what it began, and its successor finds nothing left to do."""
    resource = scenario.install.born(kind)
    jobs.enqueue(scenario.install.db, resource, actor="test")
    paused = scenario.paused_worker(at)
    scenario.rescuer()
    waits = "SELECT pid FROM pg_stat_activity WHERE application_name = %s AND wait_event = 'advisory'"
    eventually(lambda: scenario.servers.pg.query(waits, scenario.name), what="the successor waits for the lock")
    paused.wake()
    scenario.learns_that_its_claim_is_lost(paused)
    scenario.until(resource, "deleted")
    assert scenario.events(resource).count("late") == 1
    scenario.check(resource)


def no_other_worker_took_its_job(scenario: Scenario, kind: str, at: str) -> None:
    """Its lease has passed, but its fence is still the latest: it finishes its job."""
    resource = scenario.install.born(kind)
    jobs.enqueue(scenario.install.db, resource, actor="test")
    scenario.paused_worker(at).wake()
    scenario.until(resource, "deleted")
    scenario.check(resource)


def its_provision_is_overtaken_by_a_delete(scenario: Scenario, kind: str, at: str) -> None:
    """The resource was deleted meanwhile: the zombie removes what it makes or has made."""
    resource = scenario.install.register(kind)
    paused = scenario.paused_worker(at)
    jobs.enqueue(scenario.install.db, resource, actor="test")
    scenario.rescuer()
    eventually(lambda: "rolled_back" in scenario.events(resource), what="the provision is rolled back")
    if at != "before:CREATE DATABASE":  # there the rescuer waits for the paused worker's lock
        scenario.until(resource, "deleted")
    paused.wake()
    scenario.learns_that_its_claim_is_lost(paused)
    scenario.until(resource, "deleted")
    eventually(lambda: scenario.events(resource).count("late") >= 2, what="it records what it made, and removes it")
    assert scenario.events(resource).count("late") == 2
    scenario.check(resource)


def its_teardown_is_taken_back(scenario: Scenario, kind: str, at: str) -> None:
    """It was restored meanwhile, and is in use again: the zombie neither shuts nor drops it."""
    resource = scenario.install.born(kind)
    scenario.fill(kind, resource)
    scenario.install.deleted(resource, GRACE)
    if at == "before:start of the destruction":
        scenario.install.quarantine(kind)
        scenario.install.purge(resource)
        at = "before:start"
    paused = scenario.paused_worker(at)
    scenario.install.restore(resource)
    scenario.rescuer()
    manifest = scenario.until(resource, "active")
    with scenario.in_use(kind, resource) as still_serves:
        paused.wake()
        scenario.learns_that_its_claim_is_lost(paused)
        still_serves()
    scenario.serves(kind, resource)
    assert not scenario.servers.pg.drops_of(manifest) if kind == "postgres" else True
    jobs.enqueue(scenario.install.db, resource, actor="test")
    scenario.until(resource, "deleted")
    assert scenario.events(resource).count("completed") == 1
    scenario.check(resource)


def its_restore_is_overtaken_by_a_delete(scenario: Scenario, kind: str, at: str) -> None:
    """Another worker gave it back, and it was deleted again: the zombie does not open what is in quarantine."""
    resource = scenario.install.born(kind)
    scenario.fill(kind, resource)
    scenario.install.deleted(resource, GRACE)
    scenario.install.quarantine(kind)
    scenario.install.restore(resource)
    paused = scenario.paused_worker(at)
    scenario.rescuer()
    scenario.until(resource, "active")
    scenario.serves(kind, resource)
    scenario.install.deleted(resource, GRACE)
    eventually(lambda: scenario.events(resource).count("quarantined") == 2, what="it is in quarantine again")
    paused.wake()
    scenario.learns_that_its_claim_is_lost(paused)
    with pytest.raises((psycopg2.OperationalError, redis.AuthenticationError)):
        scenario.serves(kind, resource)
    scenario.install.restore(resource)
    scenario.until(resource, "active")
    scenario.serves(kind, resource)
    jobs.enqueue(scenario.install.db, resource, actor="test")
    scenario.until(resource, "deleted")
    scenario.check(resource)


class Case(NamedTuple):
    """A story, the kind of backend, and the boundary at which the worker is paused."""

    story: Callable[[Scenario, str, str], None]
    kind: str
    at: str

    def __str__(self) -> str:
        return f"{self.story.__name__}-{self.kind}-{self.at}"


CASES = [
    *(
        Case(the_name_is_reused, "postgres", at)
        for at in (
            "before:start",
            "after:start",
            "before:DROP DATABASE",
            "after:DROP DATABASE",
            "before:complete",
        )
    ),
    *(
        Case(the_name_is_reused, "redis", at)
        for at in (
            "before:start",
            "after:start",
            "before:EXEC ACL SETUSER",
            "before:EVAL UNLINK",
            "after:EVAL UNLINK",
            "before:EXEC ACL DELUSER",
            "before:complete",
        )
    ),
    Case(its_successor_waits_for_its_lock, "postgres", "before:DROP DATABASE"),
    Case(its_successor_waits_for_its_lock, "postgres", "after:DROP DATABASE"),
    Case(no_other_worker_took_its_job, "postgres", "before:start"),
    Case(no_other_worker_took_its_job, "redis", "before:start"),
    Case(its_provision_is_overtaken_by_a_delete, "postgres", "before:CREATE DATABASE"),
    Case(its_provision_is_overtaken_by_a_delete, "postgres", "before:activate"),
    Case(its_provision_is_overtaken_by_a_delete, "redis", "before:SET generation key"),
    Case(its_provision_is_overtaken_by_a_delete, "redis", "before:activate"),
    *(
        Case(its_teardown_is_taken_back, kind, at)
        for kind, boundaries in {
            "postgres": (
                "before:end sessions",
                "before:ALTER ROLE role NOLOGIN",
                "before:COMMIT",
                "after:COMMIT",
                "before:ALTER DATABASE name ALLOW_CONNECTIONS",
                "before:ALTER DATABASE old RENAME",
                "after:ALTER DATABASE old RENAME",
                "before:COMMIT#3",
                "after:COMMIT#3",
            ),
            "redis": ("before:EVAL SET", "before:EXEC ACL SETUSER", "after:EXEC ACL SETUSER", "before:ACL SAVE"),
        }.items()
        for at in (
            "before:start",
            "after:start",
            *boundaries,
            "before:advance",
            "before:start of the destruction",
        )
    ),
    *(
        Case(its_restore_is_overtaken_by_a_delete, kind, at)
        for kind, boundaries in {
            "postgres": ("before:ALTER DATABASE old RENAME", "before:COMMIT", "after:COMMIT"),
            "redis": ("before:EXEC ACL SETUSER", "after:EXEC ACL SETUSER"),
        }.items()
        for at in ("before:start", "after:start", *boundaries, "before:give_back")
    ),
]


# Of each story and kind, the boundaries closest to the effect or to its record; `make proof` has them all.
QUICK = {
    Case(the_name_is_reused, "postgres", "before:DROP DATABASE"),
    Case(the_name_is_reused, "postgres", "before:complete"),
    Case(the_name_is_reused, "redis", "before:EVAL UNLINK"),
    Case(the_name_is_reused, "redis", "before:complete"),
    Case(its_successor_waits_for_its_lock, "postgres", "before:DROP DATABASE"),
    Case(no_other_worker_took_its_job, "postgres", "before:start"),
    Case(its_provision_is_overtaken_by_a_delete, "postgres", "before:CREATE DATABASE"),
    Case(its_provision_is_overtaken_by_a_delete, "redis", "before:activate"),
    Case(its_teardown_is_taken_back, "postgres", "before:ALTER DATABASE old RENAME"),
    Case(its_teardown_is_taken_back, "redis", "before:EXEC ACL SETUSER"),
    Case(its_restore_is_overtaken_by_a_delete, "postgres", "before:COMMIT"),
}


def marked(case: Case) -> Any:
    return pytest.param(case, id=str(case), marks=[] if case in QUICK else [pytest.mark.proof])


@pytest.fixture(scope="module")
def begun(
    servers: Servers, template: str, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[dict[Case, Future[None]]]:
    """All selected cases, a few at a time: each mostly waits for a lease to pass."""
    with installs(servers, template, tmp_path_factory.mktemp("zombies")) as new_install:

        def live(case: Case) -> None:
            scenario = Scenario(new_install(), servers)
            try:
                case.story(scenario, case.kind, case.at)
            finally:
                for worker in scenario.workers:
                    worker.kill()

        with ThreadPoolExecutor(AT_ONCE) as pool:
            specs = [getattr(item, "callspec", None) for item in request.session.items]
            wanted = [spec.params["case"] for spec in specs if spec and "case" in spec.params]
            yield {case: pool.submit(live, case) for case in wanted if isinstance(case, Case)}


@pytest.mark.parametrize("case", [marked(case) for case in CASES])
def test_a_worker_paused_past_its_lease_harms_nothing_when_it_goes_on(
    begun: dict[Case, Future[None]], case: Case
) -> None:
    begun[case].result()
