"""Workers that stand still past their lease and wake: another has done their work, and has the name been taken again.

SIGSTOP at a boundary of `support/crash_points.py`, SIGCONT when the world has moved on. The zombie wakes with all it
knew.
"""

import json
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import pytest

from outbox import jobs
from tests.support.crash_cells import DOOMED, RESCUER, Lane
from tests.support.final_checks import all_is_well
from tests.support.forked import Fork
from tests.support.parallel_installs import lanes
from tests.support.servers import Servers
from tests.support.witness import PgServer, eventually

AT_ONCE = 4


class Haunted:
    """One installation in which a worker stands still over the teardown or the birth of one resource."""

    def __init__(self, lane: Lane, servers: Servers) -> None:
        self.lane, self.servers = lane, servers
        self.control = PgServer(lane.env["DEPROVISIONER_DATABASE_URL"], servers.control.log)
        self.workers: list[Fork] = []
        self.name = self.control.dsn.rpartition("/")[2]
        # So that pg-main can tell this lane's sessions from its neighbours'.
        self.env = lane.env | {"PG_MAIN_DSN": f"{servers.pg.service_dsn}?application_name={self.name}"}

    def fork(self, name: str, **env: str) -> Fork:
        made = Fork("worker", self.env | env, self.lane.folder / f"{self.name}-{name}.log")
        self.workers.append(made)
        return made

    def zombie(self, at: str) -> Fork:
        """A worker that has claimed what is due, and stands still at that boundary, its lease past."""
        made = self.fork("zombie", CRASH_AT=at, CRASH_SIGNAL="SIGSTOP", **DOOMED)
        made.stops_itself()
        asked = "SELECT bool_and(lease_expires_at < now()) FROM outbox WHERE state = 'running'"
        eventually(lambda: self.control.query(asked) == [(True,)], what="its lease passes")
        return made

    def rescuer(self) -> Fork:
        return self.fork("rescuer", **RESCUER)

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

    def finds_out(self, zombie: Fork) -> None:
        """Wait until the zombie has learnt that its claim is gone, by its own log."""

        def told() -> bool:
            lines = [json.loads(line) for line in zombie.log.read_text().splitlines() if line.startswith("{")]
            return any(line["event"] == "claim_lost" and line["fence"] == 1 for line in lines)

        eventually(told, what=f"the zombie finds out; see {zombie.log}", every=0.1)

    def cut_off(self) -> None:
        """pg-main gives up on whoever says nothing, as it does after its timeouts."""
        ending = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = %s"
        self.servers.pg.query(ending, self.name)

    def taken_again(self, kind: str, manifest: dict[str, Any]) -> uuid.UUID:
        """The same names in use again, by a new resource with something to lose."""
        if kind == "postgres":
            self.servers.pg.query(f'CREATE ROLE "{manifest["role"]}" LOGIN')
            self.servers.pg.query(f'CREATE DATABASE "{manifest["database"]}"')
            self.servers.pg.query("CREATE TABLE precious AS SELECT 42 AS n", database=manifest["database"])
            names = {key: manifest[key] for key in ("database", "role")}
        else:
            self.servers.redis.client.set(f"{manifest['prefix']}precious", "42")
            user = ("ACL", "SETUSER", manifest["user"], "on", ">p", f"~{manifest['prefix']}*", "+@all")
            self.servers.redis.client.execute_command(*user)
            names = {key: manifest[key] for key in ("user", "prefix")}
        taken = self.lane.register(kind, names)
        self.until(taken, "active")
        return taken

    def precious(self, kind: str, manifest: dict[str, Any]) -> bool:
        """Whether what is in use again is whole: its data, its login."""
        if kind == "postgres":
            (login,) = self.servers.pg.query("SELECT rolcanlogin FROM pg_roles WHERE rolname = %s", manifest["role"])
            kept = self.servers.pg.query("SELECT n FROM precious", database=manifest["database"])
            return (login, kept) == ((True,), [(42,)])
        user = self.servers.redis.client.acl_getuser(manifest["user"])
        return "on" in user["flags"] and self.servers.redis.client.get(f"{manifest['prefix']}precious") == "42"

    def check(self, *resources: uuid.UUID) -> None:
        servers, deletions = self.servers, self.lane.deletions
        all_is_well(self.control, map(str, resources), pg=servers.pg, cache=servers.redis, deletions=deletions)


def the_name_was_taken_again(haunted: Haunted, kind: str, at: str) -> None:
    """Its work was done by another; who has the name now is spared, and what the zombie saw is kept, not applied."""
    old = haunted.lane.born(kind)
    jobs.enqueue(haunted.lane.db, old, actor="test")
    zombie = haunted.zombie(at)
    haunted.cut_off()
    haunted.rescuer()
    manifest = haunted.until(old, "deleted")
    new = haunted.taken_again(kind, manifest)
    zombie.wake()
    haunted.finds_out(zombie)
    assert haunted.precious(kind, manifest), "it is another's now"
    assert haunted.events(old).count("late") == (at == "before:complete")
    assert haunted.events(old).count("completed") == 1
    jobs.enqueue(haunted.lane.db, new, actor="test")
    haunted.until(new, "deleted")
    haunted.check(old, new)


def its_successor_waits_outside(haunted: Haunted, kind: str, at: str) -> None:
    """Its session lives, and the lock with it: it finishes what it began, and its successor finds nothing to do."""
    resource = haunted.lane.born(kind)
    jobs.enqueue(haunted.lane.db, resource, actor="test")
    zombie = haunted.zombie(at)
    haunted.rescuer()
    waits = "SELECT pid FROM pg_stat_activity WHERE application_name = %s AND wait_event = 'advisory'"
    eventually(lambda: haunted.servers.pg.query(waits, haunted.name), what="the successor waits for the lock")
    zombie.wake()
    haunted.finds_out(zombie)
    haunted.until(resource, "deleted")
    assert haunted.events(resource).count("late") == 1
    haunted.check(resource)


def nobody_relieved_it(haunted: Haunted, kind: str, at: str) -> None:
    """It wakes with its lease past and its fence still the last."""
    resource = haunted.lane.born(kind)
    jobs.enqueue(haunted.lane.db, resource, actor="test")
    haunted.zombie(at).wake()
    haunted.until(resource, "deleted")
    haunted.check(resource)


def a_birth_that_a_delete_overtook(haunted: Haunted, kind: str, at: str) -> None:
    """What it makes, or has made, is nobody's any more: it unmakes it."""
    resource = haunted.lane.register(kind)
    zombie = haunted.zombie(at)
    jobs.enqueue(haunted.lane.db, resource, actor="test")
    haunted.rescuer()
    eventually(lambda: "rolled_back" in haunted.events(resource), what="the birth is given up")
    if at != "before:CREATE DATABASE":  # else the rescuer waits for the zombie's lock
        haunted.until(resource, "deleted")
    zombie.wake()
    haunted.finds_out(zombie)
    haunted.until(resource, "deleted")
    eventually(lambda: haunted.events(resource).count("late") >= 2, what="it tells what it made, and unmakes it")
    assert haunted.events(resource).count("late") == 2
    haunted.check(resource)


class Case(NamedTuple):
    """A story, the kind of backend, and where the worker stands still."""

    story: Callable[[Haunted, str, str], None]
    kind: str
    at: str

    def __str__(self) -> str:
        return f"{self.story.__name__}-{self.kind}-{self.at}"


CASES = [
    *(
        Case(the_name_was_taken_again, "postgres", at)
        for at in (
            "before:start",
            "after:start",
            "before:DROP DATABASE",
            "after:DROP DATABASE",
            "before:complete",
        )
    ),
    *(
        Case(the_name_was_taken_again, "redis", at)
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
    Case(its_successor_waits_outside, "postgres", "before:DROP DATABASE"),
    Case(its_successor_waits_outside, "postgres", "after:DROP DATABASE"),
    Case(nobody_relieved_it, "postgres", "before:start"),
    Case(nobody_relieved_it, "redis", "before:start"),
    Case(a_birth_that_a_delete_overtook, "postgres", "before:CREATE DATABASE"),
    Case(a_birth_that_a_delete_overtook, "postgres", "before:activate"),
    Case(a_birth_that_a_delete_overtook, "redis", "before:SET generation key"),
    Case(a_birth_that_a_delete_overtook, "redis", "before:activate"),
]


@pytest.fixture(scope="module")
def begun(
    servers: Servers, template: str, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[dict[Case, Future[None]]]:
    """Every case that is wanted, a few at a time: most of each is waiting for a lease."""
    with lanes(servers, template, tmp_path_factory.mktemp("zombies")) as lane:

        def live(case: Case) -> None:
            haunted = Haunted(lane(), servers)
            try:
                case.story(haunted, case.kind, case.at)
            finally:
                for worker in haunted.workers:
                    worker.kill()

        with ThreadPoolExecutor(AT_ONCE) as pool:
            specs = [getattr(item, "callspec", None) for item in request.session.items]
            wanted = [spec.params["case"] for spec in specs if spec and "case" in spec.params]
            yield {case: pool.submit(live, case) for case in wanted if isinstance(case, Case)}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_zombie_harms_nobody(begun: dict[Case, Future[None]], case: Case) -> None:
    begun[case].result()
