"""What the servers themselves say: independent of the code under test."""

import os
import re
import time
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import psycopg2
import redis
from sqlalchemy import Connection, text

_LINE = re.compile(r"^\S+ \S+ \S+ \[(?P<pid>\d+)\] (?:\S+ )?(?P<level>[A-Z]+): +(?P<text>.*)$")

# With log_statement = all: one line a message of the client's, its further lines behind a tab.
_SAID = re.compile(r"^\S+ \S+ \S+ \[(?P<pid>\d+)\] \S+@(?P<database>\S+) LOG: +statement: (?P<sql>.*)$")
_ACT = re.compile(r'statement: (CREATE|DROP) DATABASE "?([^"; ]+)')
# Seconds. It only keeps a test from hanging, on a machine of any speed; with a guard taken out, tests hang a lot.
PATIENCE = float(os.environ.get("TEST_PATIENCE_SECONDS", "120"))
_BEGINNINGS = ("starting PostgreSQL", "all server processes terminated")


@dataclass(frozen=True)
class Said:
    """One message that asked for something: a round trip."""

    pid: int
    sql: str

    @property
    def verb(self) -> str:
        return self.sql.split(None, 1)[0].upper()


def commits(said: Iterable[Said]) -> int:
    """How many transactions these were: what stands outside of BEGIN and COMMIT is one by itself."""
    inside: set[int] = set()
    done = 0
    for one in said:
        if one.verb == "BEGIN":
            inside.add(one.pid)
        elif one.verb in ("COMMIT", "ROLLBACK"):
            inside.discard(one.pid)
            done += one.verb == "COMMIT"
        elif one.pid not in inside:
            done += 1
    return done


class PgServer:
    """A PostgreSQL cluster seen from outside, as its superuser: its catalog and its log.

    `service_dsn` is the address for the product, with the account that docs/backends.md documents.
    """

    def __init__(self, dsn: str, log: Path, service_dsn: str = "") -> None:
        self.dsn = dsn
        self.log = log
        self.service_dsn = service_dsn

    def query(self, statement: str, *values: object, database: str | None = None) -> list[tuple]:
        connection = psycopg2.connect(self.dsn, **({"dbname": database} if database else {}))
        try:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(statement, values or None)
                return cursor.fetchall() if cursor.description else []
        finally:
            connection.close()

    def databases(self) -> set[str]:
        return {name for (name,) in self.query("SELECT datname FROM pg_database")}

    def roles(self) -> set[str]:
        return {name for (name,) in self.query("SELECT rolname FROM pg_roles")}

    def bears(self, manifest: dict) -> bool:
        """Whether anything of the manifest is on the server, under any of its names."""
        generation = manifest["generation"]
        names = {manifest["database"], f"zz_new_{generation}", f"zz_del_{generation}"}
        return bool(names & self.databases() | {manifest["role"], f"zz_del_{generation}"} & self.roles())

    def drops(self, since: int = 0) -> Counter[str]:
        """How often each database was dropped with success, by the server's log from byte `since` on."""
        done = self.statements(since)
        return Counter({name: times for (verb, name), times in done.items() if verb == "DROP"})

    def statements(self, since: int = 0) -> Counter[tuple[str, str]]:
        """How often each database was made (CREATE) and dropped (DROP) with success, by the log, read as a stream.

        A statement is logged as it begins; one that fails is told once more, after its error, as a session that merely
        ends later is not. With log_duration = on its end is logged too: then what came to no end before the server
        started anew did not happen.
        """
        done: Counter[tuple[str, str]] = Counter()
        open_: dict[str, tuple[str, str]] = {}
        durations = False
        with self.log.open("rb") as lines:
            lines.seek(since)
            for line in lines:
                if not (found := _LINE.match(line.decode(errors="replace").rstrip("\n"))):
                    continue
                pid, level, text = found["pid"], found["level"], found["text"]
                if level == "LOG" and (act := _ACT.match(text)):
                    open_[pid] = act[1], act[2]
                    done[open_[pid]] += 1
                elif level == "STATEMENT" and (act := _ACT.match(f"statement: {text}")):
                    done[act[1], act[2]] -= 1
                    open_.pop(pid, None)
                elif level == "LOG" and text.startswith("duration:"):
                    durations = True
                    open_.pop(pid, None)
                elif level == "LOG" and text.startswith("statement:"):
                    open_.pop(pid, None)
                elif durations and level == "LOG" and text.startswith(_BEGINNINGS):
                    done.subtract(open_.values())
                    open_.clear()
        return +done

    def said(self, since: int, database: str, *, but: Collection[int | None] = ()) -> list[Said]:
        """What was asked of a database, by the log from byte `since` on, where log_statement is all; not by these pids.

        What each connection prepares once is left out: it is not asked again for the next job.
        """
        lines = self.log.read_bytes()[since:].decode(errors="replace").replace("\n\t", "\t").splitlines()
        found = [match for match in map(_SAID.match, lines) if match and match["database"] == database]
        heard = [Said(int(match["pid"]), match["sql"]) for match in found]
        return [one for one in heard if one.verb != "PREPARE" and one.pid not in but]

    def drops_of(self, manifest: dict) -> int:
        """How often the database of the manifest was dropped, under whichever name."""
        done = self.drops()
        return done[f"zz_del_{manifest['generation']}"] + done[manifest["database"]]


class RedisServer:
    """A Redis or Valkey server seen from outside, as its administrator.

    `service_dsn` is the address for the product, with the account that docs/backends.md documents.
    """

    def __init__(self, url: str, service_dsn: str = "") -> None:
        self.url = url
        self.service_dsn = service_dsn
        self.client = redis.Redis.from_url(url, decode_responses=True)

    def users(self) -> set[str]:
        return {line.split()[1] for line in self.client.execute_command("ACL", "LIST")}

    def keys(self, prefix: str) -> set[str]:
        return {key for key in self.client.scan_iter(count=1000) if key.startswith(prefix)}

    def bears(self, manifest: dict) -> bool:
        """Whether anything of the manifest is on the server: user, keys, the key that says whose they are."""
        left = self.keys(manifest["prefix"]) | self.keys(f"deprovisioner:gen:{manifest['prefix']}")
        return manifest["user"] in self.users() or bool(left)


def waits_for_a_lock(db: Connection) -> bool:
    """Whether a session of the control database waits for a lock that another holds."""
    waiting = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    return db.execute(text(waiting)).first() is not None


def eventually(
    happened: Callable[[], object], within: float = PATIENCE, what: str = "", *, every: float = 0.02
) -> object:
    """The first true answer; fails after `within` seconds. Say how many only where that is what the test is about."""
    deadline = time.monotonic() + within
    while True:
        if answer := happened():
            return answer
        assert time.monotonic() < deadline, f"not within {within} s: {what or happened}"
        time.sleep(every)


def an_acl_user(server: RedisServer) -> str:
    """A user as a platform might have made it, to be adopted."""
    user = f"u_{uuid.uuid4().hex}"
    server.client.execute_command("ACL", "SETUSER", user, "on", ">p", "+@string", "+@list", "+del")
    return user


def slowness() -> float:
    """How many times longer than alone a process takes for its work now; 1 on a quiet machine.

    A bound on a time is multiplied by it, so that the bound holds beside whatever else the machine does.
    """
    began, worked = time.perf_counter(), time.thread_time()
    while time.thread_time() - worked < 0.05:
        pass
    return max(1.0, (time.perf_counter() - began) / 0.05)
