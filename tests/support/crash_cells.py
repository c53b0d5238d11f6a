"""How a cell of the crash matrix runs: set-up, crash, recovery, and what the servers say about it.

Each story is a class. This process sets up, by the product's own functions. The process that crashes and the one that
recovers are processes of the product (`tests/support/forked.py`), started by the same command.
"""

import re
import threading
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psycopg2
import pytest
import redis
import sqlalchemy as sa
from sqlalchemy import text

from deprovisioner.up import servers as embedded
from outbox import credentials, jobs, resources, tokens
from outbox.errors import TeardownStarted
from outbox.events import Event
from outbox.resources import NewResource
from outbox.rows import Claim, Json
from outbox.states import JobState, StuckReason
from tests.support import accounts, forked
from tests.support.crash_matrix import Cell, Outcome
from tests.support.forked import Fork
from tests.support.processes import client
from tests.support.witness import PgServer, RedisServer, eventually
from worker.backends.postgres import Postgres, heir
from worker.backends.postgres.session import Server
from worker.backends.redis import Redis

BACKENDS = {"postgres": "pg-main", "redis": "redis-main"}
SETTLE_SECONDS = 60
# Short for the worker that crashes: its lease soon passes. Long for the one that recovers: never, on a slow machine.
SHORT_LEASE = {"DEPROVISIONER_LEASE_SECONDS": "2", "DEPROVISIONER_SWEEP_SECONDS": "0.2"}
LONG_LEASE = {"DEPROVISIONER_LEASE_SECONDS": "30", "DEPROVISIONER_SWEEP_SECONDS": "0.2"}
KEYS = 501  # more than one batch of UNLINK
OTHER = "11111111-1111-4111-8111-111111111111"
NO_DATABASES = "crash_matrix_no_databases"

# A transition's event, as the control database shows it after the statement and not before.
EVENTS = {
    "register": "enqueued",
    "enqueue": "enqueued",
    "expire": "enqueued",
    "claim": "claimed",
    "start": "started",
    "complete": "completed",
    "activate": "activated",
    "retry": "retried",
    "defer": "deferred",
    "stick": "stuck",
    "rollback": "rolled_back",
    "advance": "quarantined",
    "cancel": "cancelled",
    "restore": "enqueued",
    "give_back": "restored",
    "sweep": "swept",
    "redrive": "redriven",
    "resolve": "resolved",
}
# Every fence is a claim, perhaps a start, and exactly one end.
_STORY = re.compile(
    r"enqueued( claimed( started)?( completed| activated| quarantined| restored| retried| deferred| rolled_back"
    r"| cancelled| (stuck|swept)( observed)*( redriven| resolved)?)| purge_ordered)*( cancelled)?"
)
_ENDS = ("completed", "activated", "restored", "rolled_back", "resolved", "cancelled")
GRACE = 3600


class Deletions(threading.Thread):
    """Counts what redis-main itself says it removed: one event for each key that was there and is gone."""

    def __init__(self, server: RedisServer) -> None:
        super().__init__(daemon=True)
        server.client.config_set("notify-keyspace-events", "Eg")
        self.server = server
        self.listener = server.client.pubsub(ignore_subscribe_messages=True)
        self.listener.psubscribe("__keyevent@*__:del")
        self.count: Counter[str] = Counter()
        self.ending = threading.Event()

    def run(self) -> None:
        while not self.ending.is_set():
            if message := self.listener.get_message(timeout=0.2):
                self.count[message["data"]] += 1

    def heard(self) -> None:
        """Everything that was removed until now has been counted: the server tells in order."""
        flag = f"heard:{uuid.uuid4()}"
        self.server.client.set(flag, 1)
        self.server.client.delete(flag)
        eventually(lambda: self.count[flag], what="redis-main's events")

    def stop(self) -> None:
        self.ending.set()
        self.join()
        self.listener.close()
        self.server.client.config_set("notify-keyspace-events", "")


class Install:
    """One control database and the product's processes on it; cells run in it one after the other."""

    def __init__(
        self,
        env: Mapping[str, str],
        control_dsn: str,
        folder: Path,
        *,
        pg: PgServer,
        cache: RedisServer,
        acl_file: Path,
        deletions: Deletions,
    ) -> None:
        self.env = dict(env) | {"DEPROVISIONER_DATABASE_URL": control_dsn}
        self.folder, self.pg, self.cache, self.acl_file, self.deletions = folder, pg, cache, acl_file, deletions
        self.engine = sa.create_engine(
            control_dsn.replace("postgresql://", "postgresql+psycopg2://"), isolation_level="AUTOCOMMIT"
        )
        self.db = self.engine.connect()
        self.backends = {"postgres": Postgres(pg.service_dsn), "redis": Redis(cache.service_dsn)}
        self.tokens = {
            "tenant": tokens.create(self.db, actor="op", role="tenant", tenant="acme", name="t")[1],
            "operator": tokens.create(self.db, actor="op", role="operator", tenant=None, name="o")[1],
        }

    def close(self) -> None:
        self.db.close()
        self.engine.dispose()

    def ask(self, statement: str, **values: object) -> list[Any]:
        answer = self.db.execute(text(statement), values)
        return list(answer.all()) if answer.returns_rows else []

    def register(self, kind: str, manifest: Json | None = None) -> uuid.UUID:
        new = NewResource(tenant="acme", kind=kind, backend=BACKENDS[kind], name="orders", manifest=manifest)
        return resources.register(self.db, new, actor="test")[0].id

    def claim(self, kind: str) -> Claim:
        (claim,) = jobs.claim(self.db, {BACKENDS[kind]: 1}, slots=1, worker="test")
        return claim

    def plan(self, kind: str) -> tuple[Claim, Json, Json]:
        """A provision that has started and has made nothing yet."""
        id = self.register(kind)
        claim, backend = self.claim(kind), self.backends[kind]
        plan = backend.plan(id, claim.generation)
        jobs.start_provision(
            self.db, claim, worker="test", manifest=plan.manifest, credentials=credentials.seal(plan.credentials)
        )
        return claim, plan.manifest, plan.credentials

    def born(self, kind: str) -> uuid.UUID:
        claim, planned, login = self.plan(kind)
        manifest = self.backends[kind].provision(planned, login)
        jobs.activate(self.db, claim, worker="test", manifest=manifest)
        return claim.resource_id

    def deleted(self, resource: uuid.UUID | None, grace: float) -> None:
        """A DELETE with a grace."""
        assert resource
        asked = jobs.Delete(resource, "test", grace=grace, may_purge=True)
        with self.engine.connect() as db:
            assert jobs.enqueue_all(db, [asked])

    def quarantine(self, kind: str) -> None:
        """Do the first step of what is due."""
        claim = self.claim(kind)
        assert claim.manifest
        jobs.start(self.db, claim, worker="test")
        self.backends[kind].quarantine(claim.manifest)
        jobs.advance(self.db, claim, worker="test", event=Event.QUARANTINED, seen={"there": True})

    def purge(self, resource: uuid.UUID | None) -> None:
        assert resource
        with self.engine.execution_options(isolation_level="READ COMMITTED").begin() as db:
            jobs.purge(db, resource, actor="test", reason="no use for it")

    def restore(self, resource: uuid.UUID | None) -> None:
        assert resource
        with self.engine.execution_options(isolation_level="READ COMMITTED").begin() as db:
            assert jobs.restore(db, resource, actor="test", reason="a mistake").won

    def lapse(self) -> None:
        """The leases of all running jobs pass."""
        self.ask("UPDATE outbox SET lease_expires_at = now() - interval '1 second' WHERE state = 'running'")


class Story:
    """One cell. Subclasses say what is set up, what goes wrong, and what it must come to."""

    part = "worker"
    job_kind = "deprovision"
    ends = "deleted"

    def __init__(self, install: Install, cell: Cell) -> None:
        self.install, self.cell, self.kind = install, cell, cell.kind
        self.resource: uuid.UUID | None = None
        self.wrong: dict[str, str] = {}  # environment of the worker that crashes, besides `crash()`
        self.rescue: dict[str, str] = {}  # environment of the worker that recovers
        self.folder = install.folder / str(cell)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.forks: list[Fork] = []
        self.log_began = install.pg.log.stat().st_size

    # -- what a story says ------------------------------------------------------------------------------------

    def set_up(self) -> None:
        raise NotImplementedError

    def meanwhile(self) -> None:
        """Between the death and the recovery."""

    def recovered(self) -> None:
        """Wait for what it must come to."""
        self.until(self.ends)

    # -- the cell ---------------------------------------------------------------------------------------------

    def live(self) -> Outcome:
        try:
            self.set_up()
            self.die()
            arrow = self.seen_at_death()
            self.meanwhile()
            self.fork(self.rescuer(), "worker", self.rescue)
            self.recovered()
            outcome = self.judged(arrow)
            self.clean_up()
            return outcome
        finally:
            for fork in self.forks:
                fork.kill()

    def run_without_crash(self) -> list[str]:
        """The boundaries of the same story, in order, when nothing crashes."""
        trace = self.folder / "trace"
        try:
            self.set_up()
            self.fork("without-crash", "worker", LONG_LEASE | {"CRASH_TRACE": str(trace)})
            self.recovered()
            reached = trace.read_text().splitlines()
            self.clean_up()
        finally:
            for fork in self.forks:
                fork.kill()
        seen: Counter[str] = Counter()
        return [name if (seen.update([name]) or seen[name]) == 1 else f"{name}#{seen[name]}" for name in reached]

    def fork(self, name: str, part: str, env: Mapping[str, str]) -> Fork:
        made = Fork(part, self.install.env | env, self.folder / f"{name}.log")
        self.forks.append(made)
        return made

    def crash(self) -> dict[str, str]:
        return {
            "CRASH_AT": f"{self.cell.moment}:{self.cell.at}",
            "CRASH_ONCE": str(self.folder / "died"),
            "CRASH_TRACE": str(self.folder / "reached"),
        }

    def rescuer(self) -> str:
        self.rescue = self.crash() | LONG_LEASE | self.rescue
        return "rescuer"

    def die(self) -> None:
        self.mark = self.install.ask("SELECT COALESCE(max(id), 0) FROM events")[0][0]
        self.fork("crashing", self.part, self.crash() | SHORT_LEASE | self.wrong).dies()
        assert (self.folder / "died").exists()

    def seen_at_death(self) -> str | None:
        """The boundary was where it says: what it changes is there after it, and not before."""
        after, at = self.cell.moment == "after", self.cell.at
        if at in EVENTS:
            new = self.install.ask(
                "SELECT event, state FROM events JOIN outbox ON outbox.id = job_id WHERE events.id > :mark",
                mark=self.mark,
            )
            assert (EVENTS[at] in [event for event, _ in new]) == after, new
        effect = self.effect(at)
        assert effect in (None, after), f"{at}: killed {self.cell.moment} it, yet on the server: {effect}"
        return next((state for event, state in new if event == EVENTS[at]), None) if at in EVENTS else None

    def effect(self, at: str) -> bool | None:
        """Whether a backend's statement has changed its server; None for those that show nothing by themselves."""
        manifest = self.manifest() if self.resource else None
        if manifest is None:
            return None
        if self.kind == "redis":
            match at:
                case "EXEC ACL SETUSER":
                    return "off" in self.install.cache.client.acl_getuser(manifest["user"])["flags"]
                case "EXEC ACL DELUSER":
                    return manifest["user"] not in self.install.cache.users()
            return None
        dying, newborn = f"zz_del_{manifest['generation']}", f"zz_new_{manifest['generation']}"
        match at:
            case "CREATE DATABASE name TEMPLATE":
                return newborn in self.install.pg.databases()
            case "DROP DATABASE name":
                return not {dying, newborn} & self.install.pg.databases()
            case "COMMIT" if self.cell.story == "deprovision":
                asked = "SELECT rolcanlogin FROM pg_roles WHERE rolname = %s"
                return not self.install.pg.query(asked, manifest["role"])[0][0]
            case "COMMIT#2" if self.cell.story == "deprovision":
                asked = "SELECT datallowconn FROM pg_database WHERE datname = %s"
                return not self.install.pg.query(asked, manifest["database"])[0][0]
            case "COMMIT#3" if self.cell.story == "deprovision":
                return dying in self.install.pg.databases()
            case "COMMIT#4":
                return dying in self.install.pg.roles()
            case "COMMIT#5":
                asked = "SELECT 1 FROM pg_shdepend WHERE refobjid = %s AND deptype = 'o'"
                return not self.install.pg.query(asked, manifest["role_oid"])
            case "COMMIT#2":
                return manifest["database"] in self.install.pg.databases()
            case "COMMIT#6":
                return dying not in self.install.pg.roles()
        return None

    # -- the control database ---------------------------------------------------------------------------------

    def status(self) -> str:
        return self.install.ask("SELECT status FROM resources WHERE id = :id", id=self.resource)[0][0]

    def manifest(self) -> Json:
        return self.install.ask("SELECT manifest FROM resources WHERE id = :id", id=self.resource)[0][0]

    def job(self, kind: str | None = None) -> Any:
        return self.install.ask(
            "SELECT * FROM outbox WHERE resource_id = :id AND kind = :kind ORDER BY id",
            id=self.resource,
            kind=kind or self.job_kind,
        )[0]

    def delete(self) -> None:
        jobs.enqueue(self.install.db, self.resource, actor="test")

    def until(self, status: str) -> None:
        def reached() -> bool:
            unfinished = self.install.ask(
                "SELECT FROM outbox WHERE resource_id = :id AND state NOT IN ('succeeded', 'cancelled')",
                id=self.resource,
            )
            return self.status() == status and not unfinished

        self.eventually(reached, f"{self.cell}: {status}")

    def until_stuck(self, why: str) -> Any:
        self.eventually(lambda: self.job().state == "stuck", f"{self.cell}: stuck")
        job = self.job()
        assert job.stuck_reason == why
        return job

    def redrive(self) -> None:
        jobs.redrive(self.install.db, self.job().id, fence=self.job().fence, actor="test", reason="mended")

    def eventually(self, happened: Any, what: str) -> None:
        try:
            eventually(happened, SETTLE_SECONDS, what, every=0.1)
        except AssertionError as error:
            said = "\n".join(fork.story() for fork in self.forks)
            rows = self.install.ask("SELECT * FROM outbox WHERE resource_id = :id", id=self.resource)
            raise AssertionError(f"{error}\n{rows}\n{said}") from None

    # -- judging ----------------------------------------------------------------------------------------------

    def judged(self, arrow: str | None) -> Outcome:
        self.check_history()
        if self.ends == "deleted":
            self.nothing_left()
        else:
            self.works()
        return Outcome(self.ends, self.destroyed(), self.job().attempts, self.unfinished(), arrow)

    def check_history(self) -> None:
        """No lease is left, and each fence of each job has one claim and one end in the events."""
        held = self.install.ask("SELECT id, state FROM outbox WHERE state = 'running' OR lease_expires_at IS NOT NULL")
        assert held == []
        told = self.install.ask("SELECT * FROM outbox WHERE resource_id = :id", id=self.resource)
        done = [job.kind for job in told if job.state != "cancelled" or job.kind == "provision"]
        assert Counter(done) <= Counter(["provision", "deprovision", "restore"])
        for job in told:
            events = self.install.ask("SELECT * FROM events WHERE job_id = :id ORDER BY id", id=job.id)
            words = [e.event for e in events]
            assert _STORY.fullmatch(" ".join(words)), words
            claimed = [e.fence for e in events if e.event == "claimed"]
            assert claimed == list(range(1, job.fence + 1)), "no fence is missing, none was given twice"
            fence = 0
            for e in events:
                fence += e.event == "claimed"
                assert e.fence == fence, (words, e)
            begun = [n for n, word in enumerate(words) if word in ("redriven", "quarantined")]
            fresh = words[begun[-1] :] if begun else words
            assert job.attempts == fresh.count("claimed") - fresh.count("deferred"), words
            assert sum(word in _ENDS for word in words) == 1, words
            if job.kind == "deprovision" and job.state == "succeeded":
                (seen,) = [e.detail["seen"] for e in events if e.event in ("completed", "resolved")]
                assert seen, "deleted without evidence"
                assert seen.get("never_made") or not (seen.get("databases") or seen.get("role") or seen.get("user"))

    def nothing_left(self) -> None:
        manifest = self.manifest()
        if manifest is None:
            return
        if self.kind == "postgres":
            assert not self.install.pg.bears(manifest)
            return
        assert not self.install.cache.bears(manifest)
        assert f"user {manifest['user']} " not in self.install.acl_file.read_text(), "a restart would bring it back"

    def destroyed(self) -> int:
        """How often the thing itself was destroyed, by the server's own word."""
        manifest = self.manifest()
        if manifest is None:
            return 0
        if self.kind == "redis":
            self.install.deletions.heard()
            return self.install.deletions.count[f"deprovisioner:gen:{manifest['prefix']}"]
        done = self.install.pg.drops(self.log_began)
        return done[f"zz_del_{manifest['generation']}"] + done[manifest["database"]]

    def unfinished(self) -> int:
        """How many half-made databases, never handed out, were thrown away."""
        manifest = self.manifest()
        if manifest is None or self.kind == "redis":
            return 0
        return self.install.pg.drops(self.log_began)[f"zz_new_{manifest['generation']}"]

    def login(self) -> Json:
        sealed = self.install.ask("SELECT credentials FROM resources WHERE id = :id", id=self.resource)[0][0]
        return credentials.unseal(bytes(sealed))

    def works(self) -> None:
        """The customer can use it, with the password that is on record."""
        activated = self.install.ask(
            "SELECT count(*) FROM events WHERE resource_id = :id AND event = 'activated'", id=self.resource
        )
        assert activated[0][0] == 1
        login = self.login()
        if self.kind == "postgres":
            with _connected(login["dsn"]) as session:
                session.cursor().execute("CREATE TABLE t AS SELECT 1 AS n")
            return
        tenant = redis.Redis.from_url(login["url"])
        tenant.set(f"{login['prefix']}a", "1")
        tenant.close()
        assert f"user {login['user']} " in self.install.acl_file.read_text(), "a restart would lose it"

    def serves(self) -> None:
        """What `use` left is there for the customer's own login, the one on record."""
        login = self.login()
        if self.kind == "postgres":
            with _connected(login["dsn"]) as session, session.cursor() as cursor:
                cursor.execute("SELECT n FROM t")
                assert cursor.fetchall() == [(1,)]
            return
        tenant = redis.Redis.from_url(login["url"])
        assert tenant.exists(*[f"{login['prefix']}{n}" for n in range(KEYS)]) == KEYS
        tenant.close()

    def clean_up(self) -> None:
        """A resource that is active at the end can be deleted: it is destroyed once, and nothing is left."""
        if self.ends != "active":
            return
        before = self.destroyed()
        self.delete()
        self.until("deleted")
        self.ends = "deleted"
        self.nothing_left()
        assert (before, self.destroyed()) == (0, 1)


class Deprovision(Story):
    """A resource in use is deleted."""

    def set_up(self) -> None:
        self.resource = self.install.born(self.kind)
        self.use()
        self.delete()

    def use(self) -> None:
        login = self.login()
        if self.kind == "postgres":
            _make_heir(self.install.pg)
            with _connected(login["dsn"]) as session:
                session.cursor().execute("CREATE TABLE t AS SELECT 1 AS n")
            role = self.manifest()["role"]  # owns a table there, which is handed over, and a large object, which goes
            self.install.pg.query(f'CREATE TABLE "{role}" (); ALTER TABLE "{role}" OWNER TO "{role}"')
            self.install.pg.query(f'SET ROLE "{role}"; SELECT lo_create(0)')
            return
        tenant = redis.Redis.from_url(login["url"])
        tenant.mset({f"{login['prefix']}{n}": "x" for n in range(KEYS)})
        tenant.close()

    def judged(self, arrow: str | None) -> Outcome:
        outcome = super().judged(arrow)
        assert outcome.destroyed == 1
        if self.kind == "redis":
            prefix = self.manifest()["prefix"]
            removed = [self.install.deletions.count[f"{prefix}{n}"] for n in range(KEYS)]
            assert removed == [1] * KEYS, "each key was removed once"
        return outcome


class Quarantine(Deprovision):
    """A resource in use is deleted with a grace: it is cut off, and kept."""

    def delete(self) -> None:
        self.install.deleted(self.resource, GRACE)

    def effect(self, at: str) -> bool | None:
        manifest = self.manifest()
        if self.kind == "redis":
            off = "off" in self.install.cache.client.acl_getuser(manifest["user"])["flags"]
            return off if at == "EXEC ACL SETUSER" else None
        match at:
            case "COMMIT":
                asked = "SELECT NOT rolcanlogin FROM pg_roles WHERE rolname = %s"
                return bool(self.install.pg.query(asked, manifest["role"])[0][0])
            case "COMMIT#2":
                asked = "SELECT NOT datallowconn FROM pg_database WHERE datname = %s"
                return bool(self.install.pg.query(asked, manifest["database"])[0][0])
            case "COMMIT#3":
                return manifest["database"] not in self.install.pg.databases()
        return None

    def recovered(self) -> None:
        self.eventually(lambda: (self.job().step, self.job().state) == ("wait", "pending"), f"{self.cell}: it waits")

    def judged(self, arrow: str | None) -> Outcome:
        login = self.login()
        with pytest.raises((psycopg2.OperationalError, redis.AuthenticationError)):
            psycopg2.connect(login["dsn"]) if self.kind == "postgres" else redis.Redis.from_url(login["url"]).ping()
        assert (self.status(), self.destroyed()) == ("deleting", 0)
        claims = self.job().fence
        self.install.purge(self.resource)
        self.until("deleted")
        self.check_history()
        self.nothing_left()
        assert self.destroyed() == 1
        return Outcome("deleting", 0, claims, arrow=arrow)


class QuarantineThenRestore(Quarantine):
    """The worker crashes in the quarantine, and the resource is restored before another worker goes on."""

    ends = "active"

    def meanwhile(self) -> None:
        self.install.restore(self.resource)

    def recovered(self) -> None:
        self.until("active")

    def judged(self, arrow: str | None) -> Outcome:
        self.check_history()
        self.serves()
        assert self.destroyed() == 0
        return Outcome("active", 0, self.job().fence, arrow=arrow)

    def clean_up(self) -> None:
        Deprovision.delete(self)
        self.until("deleted")
        self.nothing_left()
        assert self.destroyed() == 1


class GraceOver(Deprovision):
    """The grace of a resource in quarantine is over."""

    def delete(self) -> None:
        self.install.deleted(self.resource, GRACE)
        self.install.quarantine(self.kind)
        self.install.purge(self.resource)


class GraceOverThenRestore(GraceOver):
    """The same, and it is restored before another worker goes on: until the destruction has started that works."""

    def meanwhile(self) -> None:
        if (self.cell.at, self.cell.moment) == ("start", "after"):
            with pytest.raises(TeardownStarted):
                self.install.restore(self.resource)
        else:
            self.install.restore(self.resource)
            self.ends = "active"

    def judged(self, arrow: str | None) -> Outcome:
        if self.ends == "deleted":
            return super().judged(arrow)
        return QuarantineThenRestore.judged(self, arrow)  # type: ignore[arg-type]

    def clean_up(self) -> None:
        if self.ends == "active":
            QuarantineThenRestore.clean_up(self)  # type: ignore[arg-type]


class Restore(QuarantineThenRestore):
    """A resource in quarantine is given back."""

    job_kind = "restore"

    def effect(self, at: str) -> bool | None:
        shut = super().effect({"COMMIT": "COMMIT#3"}.get(at, at))
        return None if shut is None else not shut

    def delete(self) -> None:
        self.install.deleted(self.resource, GRACE)
        self.install.quarantine(self.kind)
        self.install.restore(self.resource)

    def meanwhile(self) -> None: ...


class Provision(Story):
    """A resource is provisioned."""

    job_kind = "provision"
    ends = "active"

    def set_up(self) -> None:
        self.resource = self.install.register(self.kind)

    def judged(self, arrow: str | None) -> Outcome:
        outcome = super().judged(arrow)
        assert outcome.destroyed == 0
        return outcome


class ProvisionThenDelete(Provision):
    """The worker that provisions crashes, and the resource is deleted before another worker finishes it."""

    job_kind = "deprovision"
    ends = "deleted"

    def meanwhile(self) -> None:
        self.delete()

    def judged(self, arrow: str | None) -> Outcome:
        outcome = Story.judged(self, arrow)
        assert outcome.destroyed <= 1
        return outcome


class Adoption(Provision):
    """An object that exists is taken over, and keeps what it holds."""

    def set_up(self) -> None:
        name = f"legacy_{uuid.uuid4().hex[:12]}"
        if self.kind == "postgres":
            self.install.pg.query(f"CREATE ROLE {name} LOGIN PASSWORD 'p'")
            accounts.adoptable(self.install.pg, name, name)
            self.install.pg.query("CREATE TABLE precious AS SELECT 42 AS n", database=name)
            self.resource = self.install.register(self.kind, {"database": name, "role": name})
            return
        self.install.cache.client.set(f"{name}:precious", "42")
        self.install.cache.client.execute_command("ACL", "SETUSER", name, "on", ">p", f"~{name}:*", "+@string")
        self.resource = self.install.register(self.kind, {"user": name, "prefix": f"{name}:"})

    def works(self) -> None:
        manifest = self.manifest()
        if self.kind == "postgres":
            assert self.install.pg.query("SELECT n FROM precious", database=manifest["database"]) == [(42,)]
            (comment,) = self.install.pg.query(
                "SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = %s", manifest["database"]
            )[0]
            assert comment == f"deprovisioner gen={manifest['generation']}"
            return
        assert self.install.cache.client.get(f"{manifest['prefix']}precious") == "42"
        assert self.install.cache.client.get(f"deprovisioner:gen:{manifest['prefix']}") == manifest["generation"]


class ProvisionHalfDone(Provision):
    """An earlier attempt left a database under its temporary name; the next attempt drops it, and crashes there."""

    def set_up(self) -> None:
        claim, manifest, _ = self.install.plan(self.kind)
        self.resource = claim.resource_id
        self.install.pg.query(f'CREATE DATABASE "zz_new_{manifest["generation"]}" OWNER {accounts.NAME}')
        self.install.lapse()

    def judged(self, arrow: str | None) -> Outcome:
        outcome = super().judged(arrow)
        assert outcome.leftovers == 1
        return outcome


class ProvisionRefused(Story):
    """The worker's role may not create databases: the provision is rolled back."""

    def set_up(self) -> None:
        with suppress(psycopg2.errors.DuplicateObject, psycopg2.errors.UniqueViolation):
            self.install.pg.query(f"CREATE ROLE {NO_DATABASES} LOGIN CREATEROLE PASSWORD 'p'")
            self.install.pg.query(f"GRANT CONNECT ON DATABASE {accounts.NAME} TO {NO_DATABASES}")
        dsn = self.install.pg.dsn.replace("postgres:secret", f"{NO_DATABASES}:p")
        self.wrong = {"PG_MAIN_DSN": accounts.in_its_database(dsn)}
        self.rescue = dict(self.wrong)
        self.resource = self.install.register(self.kind)

    def judged(self, arrow: str | None) -> Outcome:
        assert self.job("provision").state == "cancelled"
        return super().judged(arrow)


class ObjectLocked(Deprovision):
    """Another session holds the advisory lock on the object that the teardown needs."""

    def die(self) -> None:
        # The worker's own key, and its connection: nobody else can keep it waiting.
        backend = self.install.backends["postgres"]
        with backend._server.connect() as session:
            session.lock(self.manifest()["database"])
            super().die()


class Braked(Deprovision):
    """A brake counts the start in the same transaction: a crash in it leaves neither the start nor the count."""

    def set_up(self) -> None:
        super().set_up()
        path = self.folder / "backends.toml"
        backends = Path(self.install.env["DEPROVISIONER_BACKENDS"]).read_text()
        # One in the window: an attempt after the death must not be stopped by the one that died.
        path.write_text(backends.replace('kind = "postgres"\n', 'kind = "postgres"\nbrake = "1/10m"\n'))
        self.wrong = self.rescue = {"DEPROVISIONER_BACKENDS": str(path)}

    def seen_at_death(self) -> str | None:
        committed = self.cell.at != "count"
        assert (self.counted(), self.events("started")) == (committed, committed)
        return super().seen_at_death()

    def judged(self, arrow: str | None) -> Outcome:
        assert self.counted() == 1
        return super().judged(arrow)

    def counted(self) -> int:
        asked = "SELECT count(*) FROM brake_starts WHERE resource_id = :id"
        return int(self.install.ask(asked, id=self.resource)[0][0])

    def events(self, event: str) -> int:
        asked = "SELECT count(*) FROM events WHERE resource_id = :id AND event = :event AND id > :mark"
        return int(self.install.ask(asked, id=self.resource, event=event, mark=self.mark)[0][0])

    def clean_up(self) -> None:
        self.install.ask("DELETE FROM brake_starts")


class BackendDown(Deprovision):
    """The worker that crashes cannot reach the backend."""

    def set_up(self) -> None:
        super().set_up()
        nowhere = f"127.0.0.1:{embedded.free_port()}"
        self.wrong = {"PG_MAIN_DSN": f"postgresql://p:p@{nowhere}/postgres", "REDIS_MAIN_URL": f"redis://{nowhere}/0"}

    def clean_up(self) -> None:
        self.install.ask("DELETE FROM breakers")


class BackendUpAgain(Deprovision):
    """The backend did not answer a while ago, and answers now."""

    def set_up(self) -> None:
        super().set_up()
        self.install.ask("INSERT INTO breakers VALUES (:name, 1, now(), now(), 'away')", name=BACKENDS[self.kind])

    def judged(self, arrow: str | None) -> Outcome:
        # Only work closes a breaker. A probe killed between its work and the close leaves it half-open: the next
        # attempt finds the object gone and does no work. That is right: one job is let through at a time, and the
        # next job whose work is done closes the breaker. It must not stay open.
        left = [(False,)] if self.cell.moment == "before" else []
        assert self.install.ask("SELECT retry_at > now() FROM breakers") == left
        return super().judged(arrow)


class OtherGeneration(Deprovision):
    """The object has another generation when the worker inspects it; later it has its own again."""

    def set_up(self) -> None:
        super().set_up()
        self._mark(OTHER)

    def _mark(self, generation: str) -> None:
        manifest = self.manifest()
        if self.kind == "postgres":
            mark = f"deprovisioner gen={generation}"
            self.install.pg.query(f'COMMENT ON DATABASE "{manifest["database"]}" IS %s', mark)
        else:
            self.install.cache.client.set(f"deprovisioner:gen:{manifest['prefix']}", generation)

    def recovered(self) -> None:
        self.until_stuck("refused")
        manifest = self.manifest()
        if self.kind == "postgres":
            assert self.install.pg.query("SELECT n FROM t", database=manifest["database"]) == [(1,)]
        else:
            assert len(self.install.cache.keys(manifest["prefix"])) == KEYS
        assert self.destroyed() == 0
        self._mark(manifest["generation"])
        self.redrive()
        self.until("deleted")


class PreparedTransaction(Deprovision):
    """A transaction that the customer prepared and forgot holds the database open."""

    def use(self) -> None:
        with _connected(self.login()["dsn"], autocommit=False) as session:
            session.cursor().execute("CREATE TABLE t AS SELECT 1 AS n")
            session.cursor().execute(f"PREPARE TRANSACTION 'crash {self.resource}'")


class Expired(Deprovision):
    """The resource expires; nothing calls DELETE."""

    def delete(self) -> None:
        self.install.ask("UPDATE resources SET expires_at = now() WHERE id = :id", id=self.resource)


class WorkerLost(Deprovision):
    """A worker died after it recorded its start; the worker that sweeps its job crashes too."""

    def set_up(self) -> None:
        super().set_up()
        jobs.start(self.install.db, self.install.claim(self.kind), worker="test")
        self.install.lapse()


class WorkerLostLastAttempt(Deprovision):
    """The same on the last attempt: the job gets stuck, and an operator redrives it."""

    def set_up(self) -> None:
        super().set_up()
        self.install.ask("UPDATE outbox SET max_attempts = 1 WHERE id = :id", id=self.job().id)
        jobs.start(self.install.db, self.install.claim(self.kind), worker="test")
        self.install.lapse()

    def recovered(self) -> None:
        self.until_stuck("attempts_exhausted")
        self.redrive()
        self.until("deleted")


class _Api(Story):
    """The API crashes during a request; it is started again, and the caller repeats the request."""

    part = "api"

    def request(self, caller: httpx.Client) -> httpx.Response:
        raise NotImplementedError

    def answered(self, answer: httpx.Response) -> None:
        """The answer to the second request."""
        raise NotImplementedError

    def api(self, name: str) -> tuple[Fork, str]:
        fork, url = forked.api(self.install.env | self.crash(), self.folder / f"{name}.log")
        self.forks.append(fork)
        return fork, url

    def die(self) -> None:
        crashing, url = self.api("crashing-api")
        self.mark = self.install.ask("SELECT COALESCE(max(id), 0) FROM events")[0][0]
        with client(url, self.install.tokens[self.role]) as caller:
            try:
                answer = self.request(caller)
            except httpx.TransportError:
                pass
            else:
                raise AssertionError(f"it lived to answer: {answer.text}")
        crashing.dies()

    role = "tenant"

    def meanwhile(self) -> None:
        _, url = self.api("api-again")
        with client(url, self.install.tokens[self.role]) as caller:
            self.answered(self.request(caller))


class Register(_Api):
    job_kind = "provision"
    ends = "active"

    def request(self, caller: httpx.Client) -> httpx.Response:
        body = {"kind": self.kind, "backend": BACKENDS[self.kind], "name": "orders"}
        return caller.post("/v1/resources", json=body, headers={"Idempotency-Key": str(self.cell)})

    def set_up(self) -> None:
        self.known = self.install.ask("SELECT count(*) FROM resources")[0][0]

    def answered(self, answer: httpx.Response) -> None:
        assert answer.status_code == 202
        self.resource = uuid.UUID(answer.json()["resource"]["id"])
        assert self.install.ask("SELECT count(*) FROM resources")[0][0] == self.known + 1, "one, whatever was repeated"


class Delete(_Api, Deprovision):
    def set_up(self) -> None:
        self.resource = self.install.born(self.kind)
        self.use()

    def request(self, caller: httpx.Client) -> httpx.Response:
        return caller.delete(f"/v1/resources/{self.resource}")

    def answered(self, answer: httpx.Response) -> None:
        landed = self.cell.moment == "after"
        assert (answer.status_code, answer.json()["already_deleted"]) == ((200, True) if landed else (202, False))
        assert answer.json()["job"]["id"] == self.job().id


class RestoreApi(_Api, Restore):
    def delete(self) -> None:
        self.install.deleted(self.resource, GRACE)
        self.install.quarantine(self.kind)

    def request(self, caller: httpx.Client) -> httpx.Response:
        return caller.post(f"/v1/resources/{self.resource}/restore", json={"reason": "a mistake"})

    def answered(self, answer: httpx.Response) -> None:
        landed = self.cell.moment == "after"
        assert (answer.status_code, answer.json()["job"]["id"]) == (200 if landed else 202, self.job().id)

    def meanwhile(self) -> None:
        _Api.meanwhile(self)


class Redrive(_Api, Deprovision):
    role = "operator"

    def set_up(self) -> None:
        Deprovision.set_up(self)
        claim = self.install.claim(self.kind)
        jobs.stick(self.install.db, claim, worker="test", why=StuckReason.REFUSED, error="not sure")

    def request(self, caller: httpx.Client) -> httpx.Response:
        return caller.post(f"/v1/jobs/{self.job().id}/redrive", json={"reason": "mended", "fence": 1})

    def answered(self, answer: httpx.Response) -> None:
        if self.cell.moment == "after":
            assert (answer.status_code, answer.json()["code"]) == (409, "job_not_stuck")
        else:
            assert (answer.status_code, answer.json()["state"]) == (200, JobState.PENDING)


class Resolve(_Api, Deprovision):
    """The teardown is done but its job is stuck; a worker inspects, the API crashes, the operator asks again."""

    role = "operator"

    def set_up(self) -> None:
        Deprovision.set_up(self)
        claim = self.install.claim(self.kind)
        jobs.start(self.install.db, claim, worker="test")
        self.install.backends[self.kind].teardown(self.manifest(), claim.fence)
        jobs.stick(self.install.db, claim, worker="test", why=StuckReason.REFUSED, error="not sure")
        self.fork("inspecting", "worker", LONG_LEASE)

    def request(self, caller: httpx.Client) -> httpx.Response:
        word = {"reason": "it is gone", "fence": 1}
        return caller.post(f"/v1/jobs/{self.job(self.stuck).id}/resolve", json=word)

    stuck = "deprovision"

    def answered(self, answer: httpx.Response) -> None:
        if self.cell.moment == "after":
            assert (answer.status_code, answer.json()["code"]) == (409, "job_not_stuck")
        else:
            done = JobState.SUCCEEDED if self.stuck == "deprovision" else JobState.CANCELLED
            assert (answer.status_code, answer.json().get("state")) == (200, done), answer.text


class ResolveProvision(Resolve):
    """A stuck adoption whose resource has been deleted: nothing is left to do."""

    stuck = "provision"

    def set_up(self) -> None:
        name = f"legacy_{uuid.uuid4().hex[:12]}"
        self.resource = self.install.register(self.kind, {"database": name, "role": name})
        claim = self.install.claim(self.kind)
        jobs.stick(self.install.db, claim, worker="test", why=StuckReason.REFUSED, error="not there")
        self.delete()

    def judged(self, arrow: str | None) -> Outcome:
        assert self.job("provision").state == "cancelled"
        outcome = Story.judged(self, arrow)
        assert outcome.destroyed == 0
        return outcome


STORIES: dict[str, type[Story]] = {
    "deprovision": Deprovision,
    "provision": Provision,
    "provision, then DELETE": ProvisionThenDelete,
    "adoption": Adoption,
    "register (API)": Register,
    "delete (API)": Delete,
    "restore (API)": RestoreApi,
    "quarantine": Quarantine,
    "quarantine, then restore": QuarantineThenRestore,
    "grace over": GraceOver,
    "grace over, then restore": GraceOverThenRestore,
    "restore": Restore,
    "redrive (API)": Redrive,
    "resolve (API)": Resolve,
    "resolve of a birth (API)": ResolveProvision,
    "expired": Expired,
    "backend dead": BackendDown,
    "backend back": BackendUpAgain,
    "object held": ObjectLocked,
    "under a brake": Braked,
    "prepared transaction": PreparedTransaction,
    "not ours": OtherGeneration,
    "birth refused": ProvisionRefused,
    "birth half done": ProvisionHalfDone,
    "worker lost": WorkerLost,
    "worker lost, last attempt": WorkerLostLastAttempt,
}


def _make_heir(pg: PgServer) -> None:
    """Make the role that takes over what is left elsewhere, else one cell would make it, and the others would not."""
    with Server(pg.service_dsn, frozenset()).connect() as session, session.transaction():
        heir._heir(session)


@contextmanager
def _connected(dsn: str, *, autocommit: bool = True) -> Iterator["psycopg2.extensions.connection"]:
    session = psycopg2.connect(dsn)
    session.autocommit = autocommit
    try:
        yield session
    finally:
        session.close()
