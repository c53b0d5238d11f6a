"""One install with workers that can be paused at a boundary, and the customers of its resources."""

import json
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import psycopg2
import redis

from outbox import credentials
from tests.support import accounts
from tests.support.crash_cells import LONG_LEASE, SHORT_LEASE, Install
from tests.support.final_checks import all_is_well
from tests.support.forked import Fork
from tests.support.servers import Servers
from tests.support.witness import PgServer, eventually


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

    def learns_that_its_claim_is_lost(self, paused: Fork) -> None:
        """Wait until the worker's own log says that its claim is lost."""

        def told() -> bool:
            lines = [json.loads(line) for line in paused.log.read_text().splitlines() if line.startswith("{")]
            return any(line["event"] == "claim_lost" and line["fence"] == 1 for line in lines)

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

    def check(self, *resources: uuid.UUID) -> None:
        servers, deletions = self.servers, self.install.deletions
        all_is_well(self.control, map(str, resources), pg=servers.pg, cache=servers.redis, deletions=deletions)
