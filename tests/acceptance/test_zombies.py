"""A zombie: a worker that is paused until its lease has passed, and then goes on with what it knew.

It gets SIGSTOP at a boundary of `support/crash_points.py`. Meanwhile another worker does its job, and in most cases
a new resource takes the same name. Then the zombie gets SIGCONT.
"""

import json
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import Any, NamedTuple

import psycopg2
import pytest
import redis

from outbox import credentials, jobs, resources
from tests.support import accounts, quarantines
from tests.support.crash_cells import LONG_LEASE, SHORT_LEASE, Install
from tests.support.final_checks import all_is_well
from tests.support.forked import Fork
from tests.support.parallel_installs import installs
from tests.support.servers import Servers
from tests.support.witness import PgServer, eventually

AT_ONCE = 4


class Scenario:
    """One install in which a worker is paused during the teardown or the provision of one resource."""

    def __init__(self, install: Install, servers: Servers) -> None:
        self.install, self.servers = install, servers
        self.control = PgServer(install.env["DEPROVISIONER_DATABASE_URL"], servers.control.log)
        self.workers: list[Fork] = []
        self.name = self.control.dsn.rpartition("/")[2]
        # So that pg-main can tell the sessions of this install from those of the others.
        self.env = install.env | {"PG_MAIN_DSN": f"{servers.pg.service_dsn}?application_name={self.name}"}

    def fork(self, name: str, **env: str) -> Fork:
        made = Fork("worker", self.env | env, self.install.folder / f"{self.name}-{name}.log")
        self.workers.append(made)
        return made

    def paused_worker(self, at: str) -> Fork:
        """A worker that has claimed what is due and is paused at that boundary; its lease has passed."""
        made = self.fork("paused", CRASH_AT=at, CRASH_SIGNAL="SIGSTOP", **SHORT_LEASE)
        made.stops_itself()
        asked = "SELECT bool_and(lease_expires_at < now()) FROM outbox WHERE state = 'running'"
        eventually(lambda: self.control.query(asked) == [(True,)], what="its lease passes")
        return made

    def rescuer(self) -> Fork:
        return self.fork("rescuer", **LONG_LEASE)

    def until(self, resource: uuid.UUID, status: str) -> dict[str, Any]:
        """Its manifest, once it is `status` and none of its jobs is open."""
        asked = """SELECT manifest FROM resources WHERE id = %s AND status = %s AND NOT EXISTS (
                   SELECT FROM outbox WHERE resource_id = resources.id AND state IN ('pending', 'running'))"""

        def reached() -> list[tuple[Any]]:
            return self.control.query(asked, str(resource), status)

        def story() -> str:
            rows = self.control.query("SELECT event, fence, actor, reason FROM events ORDER BY id")
            return "\n".join([*map(str, rows), *(worker.story() for worker in self.workers)])

        try:
            return eventually(reached, what=f"{resource} is {status}", every=0.1)[0][0]  # type: ignore[index]
        except AssertionError as error:
            raise AssertionError(f"{error}\n{story()}") from None

    def events(self, resource: uuid.UUID) -> list[str]:
        asked = "SELECT event FROM events WHERE resource_id = %s ORDER BY id"
        return [event for (event,) in self.control.query(asked, str(resource))]

    def learns_that_its_claim_is_lost(self, paused: Fork, *, fence: int = 1) -> None:
        """Wait until the worker's own log says that its claim is lost."""

        def told() -> bool:
            lines = [json.loads(line) for line in paused.log.read_text().splitlines() if line.startswith("{")]
            return any(line["event"] == "claim_lost" and line["fence"] == fence for line in lines)

        eventually(told, what=f"the paused worker logs claim_lost; see {paused.log}", every=0.1)

    def end_its_sessions(self) -> None:
        """pg-main ends the paused worker's sessions, as it would after its timeouts."""
        ending = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = %s"
        self.servers.pg.query(ending, self.name)

    def reuse_the_name(self, kind: str, manifest: dict[str, Any]) -> uuid.UUID:
        """A new resource, with data, under the same names."""
        if kind == "postgres":
            self.servers.pg.query(f'CREATE ROLE "{manifest["role"]}" LOGIN')
            accounts.adoptable(self.servers.pg, manifest["database"], manifest["role"])
            self.servers.pg.query("CREATE TABLE precious AS SELECT 42 AS n", database=manifest["database"])
            names = {key: manifest[key] for key in ("database", "role")}
        else:
            self.servers.redis.client.set(f"{manifest['prefix']}precious", "42")
            user = ("ACL", "SETUSER", manifest["user"], "on", ">p", f"~{manifest['prefix']}*", "+@string")
            self.servers.redis.client.execute_command(*user)
            names = {key: manifest[key] for key in ("user", "prefix")}
        taken = self.install.register(kind, names)
        self.until(taken, "active")
        return taken

    def is_whole(self, kind: str, manifest: dict[str, Any]) -> bool:
        """Whether the new resource still has its data and its login."""
        if kind == "postgres":
            (login,) = self.servers.pg.query("SELECT rolcanlogin FROM pg_roles WHERE rolname = %s", manifest["role"])
            kept = self.servers.pg.query("SELECT n FROM precious", database=manifest["database"])
            return (login, kept) == ((True,), [(42,)])
        user = self.servers.redis.client.acl_getuser(manifest["user"])
        return "on" in user["flags"] and self.servers.redis.client.get(f"{manifest['prefix']}precious") == "42"

    def login(self, resource: uuid.UUID) -> str:
        """The connection string on record."""
        _, sealed = resources.find(self.install.db, resource)
        assert sealed is not None
        opens = credentials.unseal(sealed)
        return str(opens["dsn"] if "dsn" in opens else opens["url"])

    def acl_user(self, manifest: dict[str, Any]) -> str:
        """All that the server has of the user."""
        lines: list[str] = self.servers.redis.client.acl_list()
        (line,) = [line for line in lines if line.split()[1] == manifest["user"]]
        return line

    def restore(self, resource: uuid.UUID) -> None:
        self._decide(jobs.restore, resource)

    def purge(self, resource: uuid.UUID) -> None:
        self._decide(jobs.purge, resource)

    def _decide(self, what: Callable[..., object], resource: uuid.UUID) -> None:
        with self.install.engine.connect() as connection:
            session = connection.execution_options(isolation_level="READ COMMITTED")
            with session.begin():
                what(session, resource, actor="test", reason="a wrong delete")

    def check(self, *deleted: uuid.UUID) -> None:
        servers, deletions = self.servers, self.install.deletions
        all_is_well(self.control, map(str, deleted), pg=servers.pg, cache=servers.redis, deletions=deletions)


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


def its_resource_was_restored(scenario: Scenario, kind: str, at: str) -> None:
    """The teardown was taken back while it stood still: the database lives on, under its name, with its login."""
    resource = scenario.install.born(kind)
    opens = scenario.login(resource)
    with closing(psycopg2.connect(opens)) as customer:
        customer.cursor().execute("CREATE TABLE precious AS SELECT 42 AS n")
        customer.commit()
    jobs.enqueue(scenario.install.db, resource, actor="test", grace=600)
    paused = scenario.paused_worker(at)
    scenario.restore(resource)
    scenario.rescuer()
    manifest = scenario.until(resource, "active")
    was = quarantines.shown(scenario.servers.pg, manifest)
    paused.wake()
    scenario.learns_that_its_claim_is_lost(paused)
    assert quarantines.shown(scenario.servers.pg, manifest) == was
    assert [row[:2] for row in was] == [(manifest["database"], True), (manifest["role"], True)]
    with closing(psycopg2.connect(opens)) as customer, customer.cursor() as cursor:
        cursor.execute("SELECT n FROM precious")
        assert cursor.fetchall() == [(42,)]
    assert scenario.servers.pg.drops_of(manifest) == 0
    assert scenario.control.query("SELECT reason FROM breakers") == []
    jobs.enqueue(scenario.install.db, resource, actor="test")
    scenario.until(resource, "deleted")
    scenario.check(resource)


def its_namespace_was_restored(scenario: Scenario, kind: str, at: str) -> None:
    """The same for Redis: the user stays as it was, and not even a new connection of the customer is ended."""
    resource = scenario.install.born(kind)
    opens = scenario.login(resource)
    jobs.enqueue(scenario.install.db, resource, actor="test", grace=600)
    paused = scenario.paused_worker(at)
    scenario.restore(resource)
    scenario.rescuer()
    manifest = scenario.until(resource, "active")

    was = scenario.acl_user(manifest)
    with redis.Redis.from_url(opens, single_connection_client=True, retry=None) as again:
        again.set(f"{manifest['prefix']}precious", 42)
        paused.wake()
        scenario.learns_that_its_claim_is_lost(paused)
        assert (scenario.acl_user(manifest), again.get(f"{manifest['prefix']}precious")) == (was, b"42")
    assert " on " in was
    assert "deprovisioner:shut" not in was
    assert scenario.control.query("SELECT reason FROM breakers") == []
    jobs.enqueue(scenario.install.db, resource, actor="test")
    scenario.until(resource, "deleted")
    scenario.check(resource)


def its_restore_was_followed_by_a_delete(scenario: Scenario, kind: str, at: str) -> None:
    """It stood still in a restore, which another worker ended; and what was deleted again stays shut."""
    resource = scenario.install.born(kind)
    jobs.enqueue(scenario.install.db, resource, actor="test", grace=600)
    first = scenario.rescuer()
    eventually(lambda: "quarantined" in scenario.events(resource), what="it is in quarantine")
    first.kill()
    scenario.restore(resource)
    paused = scenario.paused_worker(at)
    scenario.rescuer()
    manifest = scenario.until(resource, "active")
    jobs.enqueue(scenario.install.db, resource, actor="test", grace=600)
    eventually(lambda: scenario.events(resource).count("quarantined") == 2, what="it is in quarantine again")
    shut = scenario.acl_user(manifest)
    paused.wake()
    scenario.learns_that_its_claim_is_lost(paused)
    assert scenario.acl_user(manifest) == shut
    assert " off " in shut
    scenario.purge(resource)
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
    *(
        Case(its_resource_was_restored, "postgres", at)
        for at in (
            "before:start",
            "after:start",
            "before:end sessions",
            "after:ALTER ROLE role NOLOGIN",
            "before:BEGIN#2",
            "after:ALTER DATABASE old RENAME",
            "after:COMMIT#3",
            "before:advance",
        )
    ),
    *(
        Case(its_namespace_was_restored, "redis", at)
        for at in (
            "before:start",
            "after:start",
            "before:ACL DELUSER",
            "before:EVAL SET",
            "before:EXEC ACL SETUSER",
            "after:EXEC ACL SETUSER",
            "before:ACL SAVE",
            "before:advance",
        )
    ),
    *(
        Case(its_restore_was_followed_by_a_delete, "redis", at)
        for at in (
            "before:start",
            "after:start",
            "before:EVAL SET",
            "before:EXEC ACL SETUSER",
            "after:EXEC ACL SETUSER",
            "before:give_back",
        )
    ),
    Case(its_provision_is_overtaken_by_a_delete, "postgres", "before:CREATE DATABASE"),
    Case(its_provision_is_overtaken_by_a_delete, "postgres", "before:activate"),
    Case(its_provision_is_overtaken_by_a_delete, "redis", "before:SET generation key"),
    Case(its_provision_is_overtaken_by_a_delete, "redis", "before:activate"),
]


# Of each story and kind, the boundaries closest to the effect or to its record; `make proof` has them all.
QUICK = {
    Case(the_name_is_reused, "postgres", "before:DROP DATABASE"),
    Case(the_name_is_reused, "postgres", "before:complete"),
    Case(the_name_is_reused, "redis", "before:EVAL UNLINK"),
    Case(the_name_is_reused, "redis", "before:complete"),
    Case(its_successor_waits_for_its_lock, "postgres", "before:DROP DATABASE"),
    Case(no_other_worker_took_its_job, "postgres", "before:start"),
    Case(its_resource_was_restored, "postgres", "after:ALTER DATABASE old RENAME"),
    Case(its_resource_was_restored, "postgres", "before:advance"),
    Case(its_namespace_was_restored, "redis", "before:EXEC ACL SETUSER"),
    Case(its_restore_was_followed_by_a_delete, "redis", "before:EXEC ACL SETUSER"),
    Case(its_provision_is_overtaken_by_a_delete, "postgres", "before:CREATE DATABASE"),
    Case(its_provision_is_overtaken_by_a_delete, "redis", "before:activate"),
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
