"""Restores that meet the end of their grace, and workers that stand still past a restore, on real servers."""

import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import Any

import psycopg2
import pytest
import redis

from outbox import credentials, jobs
from outbox.errors import TeardownStarted
from tests.acceptance.test_zombies import AT_ONCE, Case, Scenario
from tests.support.crash_cells import GRACE
from tests.support.parallel_installs import installs
from tests.support.servers import Servers
from tests.support.witness import eventually

SHORT_GRACE = 0.1
PAIRS = 25  # a database and a namespace each


class Served(Scenario):
    """A scenario whose resources are in use."""

    def login(self, resource: uuid.UUID) -> dict[str, Any]:
        asked = "SELECT credentials FROM resources WHERE id = %s"
        return credentials.unseal(bytes(self.control.query(asked, str(resource))[0][0]))

    def fill(self, kind: str, resource: uuid.UUID) -> None:
        """The customer writes something."""
        login = self.login(resource)
        if kind == "postgres":
            with closing(psycopg2.connect(login["dsn"])) as session, session, session.cursor() as cursor:
                cursor.execute("CREATE TABLE t AS SELECT 42 AS n")
        else:
            with closing(redis.Redis.from_url(login["url"])) as tenant:
                tenant.set(f"{login['prefix']}n", "42")

    def serves(self, kind: str, resource: uuid.UUID) -> None:
        """What the customer wrote is there for the login on record."""
        with self.in_use(kind, resource):
            pass

    @contextmanager
    def in_use(self, kind: str, resource: uuid.UUID) -> Iterator[Callable[[], None]]:
        """A session of the customer's, which reads what it wrote now and each time that it is called."""
        login = self.login(resource)
        if kind == "postgres":
            with closing(psycopg2.connect(login["dsn"])) as session, session.cursor() as cursor:

                def reads() -> None:
                    cursor.execute("SELECT n FROM t")
                    assert cursor.fetchall() == [(42,)]

                reads()
                yield reads
            return
        # One connection that is not made anew.
        with closing(redis.Redis.from_url(login["url"], single_connection_client=True, retry=None)) as tenant:

            def gets() -> None:
                assert tenant.get(f"{login['prefix']}n") == b"42"

            gets()
            yield gets


@pytest.mark.proof
@pytest.mark.timeout(900)
def test_fifty_restores_meet_the_end_of_their_grace_and_each_resource_ends_whole_or_gone(
    servers: Servers, template: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with installs(servers, template, tmp_path_factory.mktemp("races")) as new_install:
        scenario = Served(new_install(), servers)
        made = {scenario.install.born(kind): kind for kind in ("postgres", "redis") for _ in range(PAIRS)}
        for resource, kind in made.items():
            scenario.fill(kind, resource)
        try:
            for _ in range(2):
                scenario.rescuer()
            _race(scenario, made)
        finally:
            for worker in scenario.workers:
                worker.kill()


def _race(scenario: Served, made: dict[uuid.UUID, str]) -> None:
    answers: dict[uuid.UUID, bool] = {}
    moments = dict(zip(made, ["at once", "at wait", "at its end"] * len(made), strict=False))

    def take_back(resource: uuid.UUID) -> None:
        scenario.install.deleted(resource, SHORT_GRACE)
        asked = "SELECT step = 'wait' OR state <> 'pending' FROM outbox WHERE resource_id = %s AND kind = 'deprovision'"
        if moments[resource] == "at its end":
            asked = "SELECT purge_at <= now() FROM resources WHERE id = %s"
        if moments[resource] != "at once":
            eventually(lambda: scenario.control.query(asked, str(resource)) == [(True,)], every=0.005)
        try:
            scenario.install.restore(resource)
        except TeardownStarted:
            answers[resource] = False
        else:
            answers[resource] = True

    threads = [threading.Thread(target=take_back, args=(resource,)) for resource in made]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(answers) == set(made)
    for resource, kind in made.items():
        manifest = scenario.until(resource, "active" if answers[resource] else "deleted")
        events = Counter(scenario.events(resource))
        dropped = scenario.servers.pg.drops_of(manifest) if kind == "postgres" else events["completed"]
        if answers[resource]:
            scenario.serves(kind, resource)
            assert (events["cancelled"], events["restored"], events["completed"], dropped) == (1, 1, 0, 0)
        else:
            with pytest.raises((psycopg2.OperationalError, redis.AuthenticationError, TypeError)):
                scenario.serves(kind, resource)
            assert (events["cancelled"], events["restored"], events["completed"], dropped) == (0, 0, 1, 1)
            assert not (scenario.servers.pg if kind == "postgres" else scenario.servers.redis).bears(manifest)
    assert any(answers.values()), "none was in time"
    scenario.check(*(resource for resource, back in answers.items() if not back))


def its_teardown_is_taken_back(scenario: Served, kind: str, at: str) -> None:
    """It was restored meanwhile, and is in use again: the zombie neither shuts nor drops it."""
    resource = scenario.install.born(kind)
    scenario.fill(kind, resource)
    scenario.install.deleted(resource, GRACE)
    fence = 1
    if at == "before:start of the destruction":
        scenario.install.quarantine(kind)
        scenario.install.purge(resource)
        at, fence = "before:start", 2
    paused = scenario.paused_worker(at)
    scenario.install.restore(resource)
    scenario.rescuer()
    manifest = scenario.until(resource, "active")
    with scenario.in_use(kind, resource) as still_serves:
        paused.wake()
        scenario.learns_that_its_claim_is_lost(paused, fence=fence)
        still_serves()
    scenario.serves(kind, resource)
    assert not scenario.servers.pg.drops_of(manifest) if kind == "postgres" else True
    jobs.enqueue(scenario.install.db, resource, actor="test")
    scenario.until(resource, "deleted")
    assert scenario.events(resource).count("completed") == 1
    scenario.check(resource)


def its_restore_is_overtaken_by_a_delete(scenario: Served, kind: str, at: str) -> None:
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


CASES = [
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
        for at in ("before:start", "after:start", *boundaries, "before:advance", "before:start of the destruction")
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
QUICK = {
    Case(its_teardown_is_taken_back, "postgres", "before:ALTER DATABASE old RENAME"),
    Case(its_teardown_is_taken_back, "redis", "before:EXEC ACL SETUSER"),
    Case(its_restore_is_overtaken_by_a_delete, "postgres", "before:COMMIT"),
}


@pytest.fixture(scope="module")
def begun(
    servers: Servers, template: str, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[dict[Case, Future[None]]]:
    """All selected cases, a few at a time: each mostly waits for a lease to pass."""
    with installs(servers, template, tmp_path_factory.mktemp("restores")) as new_install:

        def live(case: Case) -> None:
            scenario = Served(new_install(), servers)
            try:
                case.story(scenario, case.kind, case.at)
            finally:
                for worker in scenario.workers:
                    worker.kill()

        with ThreadPoolExecutor(AT_ONCE) as pool:
            wanted = [case for case in CASES if any(str(case) in item.name for item in request.session.items)]
            yield {case: pool.submit(live, case) for case in wanted}


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, id=str(case), marks=[] if case in QUICK else [pytest.mark.proof]) for case in CASES],
)
def test_a_worker_that_stands_still_past_a_restore_neither_shuts_nor_drops_nor_opens(
    begun: dict[Case, Future[None]], case: Case
) -> None:
    begun[case].result()
