"""What the servers' own records and the customers' credentials say about a demo; the product is not asked."""

import io
import re
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg2
import redis

ROWS = 20  # rows in each database, keys in each namespace: a lost one is noticed

# With log_statement = ddl PostgreSQL logs a statement when it begins, and once more, as STATEMENT, when it fails.
_LOGGED = re.compile(r" (LOG:  statement|STATEMENT): +(\w+) (DATABASE|ROLE|USER) (?:IF EXISTS )?\"?([^\"; ]+)")
_RECORDS = "pg-main.log; append-only file"
_MARKS = "deprovisioner:gen:"  # what the keys begin with that say whose a prefix is
_COPIES = "deprovisioner:scratch:"  # what the keys begin with that are restored from a snapshot, for its proof

Json = dict[str, Any]


@dataclass(frozen=True)
class Holding:
    """A customer's database or namespace, and the URL to log in. `id` is empty when it was made by hand."""

    kind: str
    names: Json
    url: str
    id: str = ""

    @property
    def all_names(self) -> set[str]:
        """Every name that any part of it can have on its server."""
        if self.kind == "redis":
            return {self.names["user"], self.names["prefix"], self.last_name, self.copy}
        generation, copy = self.names["generation"], self.copy
        new = {f"zz_new_{generation}", copy.replace("del", "new", 1)}
        return {self.names["database"], self.names["role"], self.last_name, f"zz_scratch_{generation}", copy, *new}

    @property
    def copy(self) -> str:
        """What a copy bears that was made from its snapshot: the last name of a database, the prefix of keys."""
        generation = self.names["generation"]
        if self.kind == "redis":
            return f"{_COPIES}{generation}:"
        return f"zz_del_{uuid.uuid5(uuid.UUID(generation), 'scratch')}"

    @property
    def last_name(self) -> str:
        """The part that is destroyed last, so exactly once: the quarantined database, or the generation key."""
        return f"{_MARKS}{self.names['prefix']}" if self.kind == "redis" else f"zz_del_{self.names['generation']}"


@dataclass(frozen=True)
class Answer:
    """The answer to one DELETE; `status` is the error's name when there was no answer."""

    holding: Holding
    status: int | str
    job: int | None


@dataclass(frozen=True)
class Finding:
    """One line of the report. A line without `promised` is a fact for the reader, and breaks no promise."""

    what: str
    postgres: int | None
    redis: int | None
    promised: int | None
    witness: str

    @property
    def kept(self) -> bool:
        """Whether the numbers of both servers are the promised one."""
        return self.promised is None or {self.postgres, self.redis} <= {self.promised, None}


@dataclass(frozen=True)
class Servers:
    """The servers that hold the resources: `home` has their logs; DSN and client log in as administrator."""

    home: Path
    pg_dsn: str
    valkey: "redis.Redis"


def from_answers(answers: list[Answer], resources: int, deletes: int) -> list[Finding]:
    """Count the API's answers to the DELETEs."""
    accepted = [answer for answer in answers if answer.status == 202]
    winners = Counter(answer.holding.id for answer in accepted)
    jobs = {answer.holding.id: answer.job for answer in accepted}
    repeated = [a for a in answers if a.status == 200 and a.job == jobs.get(a.holding.id)]
    others = [a for a in answers if a.status != 202 and (a.status != 200 or a.job != jobs.get(a.holding.id))]
    codes = ", ".join(sorted({str(answer.status) for answer in others}))
    once = (answer.holding for answer in accepted if winners[answer.holding.id] == 1)
    again = resources * (deletes - 1)
    return [
        finding("accepted (202), one of each", once, resources, "HTTP"),
        finding("already deleted (200), same job", (a.holding for a in repeated), again, "HTTP"),
        finding("answered otherwise", (a.holding for a in others), 0, f"HTTP {codes}".rstrip()),
    ]


def from_records(servers: Servers, victims: list[Holding], deleted: set[str]) -> list[Finding]:
    """Count what the servers' logs say was destroyed, and what is still on the servers."""
    ended = _dropped(servers.home / "log" / "pg-main.log") + _unlinked(servers.home / "redis-main" / "appendonlydir")
    there = _names_there(servers)
    times = {victim.id: ended[victim.kind, victim.last_name] for victim in victims}
    lost = [v for v in victims if v.id not in deleted or not times[v.id] or v.all_names & there]
    expected = {name for victim in victims for name in victim.all_names}
    astray = Counter(kind for kind, name in ended.elements() if not {name, _prefix(name)} & expected)
    roles = sum(ended["role", v.last_name] == 1 for v in victims if v.kind == "postgres")
    return [
        finding("lost: accepted, not destroyed", lost, 0, "pg_database, pg_roles; ACL LIST, SCAN"),
        finding("destroyed once", (v for v in victims if times[v.id] == 1), len(victims) // 2, _RECORDS),
        finding("destroyed twice", (v for v in victims if times[v.id] > 1), 0, _RECORDS),
        Finding("roles dropped once", roles, None, len(victims) // 2, "pg-main.log"),
        finding("snapshot taken and proved", _proved(servers, victims, ended), 1, f"snapshots/; {_RECORDS}"),
        Finding("anything else destroyed", astray["postgres"] + astray["role"], astray["redis"], 0, _RECORDS),
    ]


def _proved(servers: Servers, victims: list[Holding], ended: Counter[tuple[str, str]]) -> Iterator[Holding]:
    """Those that have a snapshot in the store, and had a copy made from it on their server, which is gone again."""
    stored = " ".join(file.name for file in (servers.home / "snapshots").glob("*.snapshot"))
    copies = {name if kind == "postgres" else _prefix(name) for kind, name in ended}
    return (v for v in victims if v.names["generation"] in stored and v.copy in copies)


def _names_there(servers: Servers) -> set[str]:
    """The names on both servers now: databases, roles, users, prefixes of keys."""
    with closing(psycopg2.connect(servers.pg_dsn)) as session, session.cursor() as cursor:
        cursor.execute("SELECT datname FROM pg_database UNION ALL SELECT rolname FROM pg_roles")
        names = {name for (name,) in cursor}
    users = {line.split()[1] for line in servers.valkey.execute_command("ACL", "LIST")}
    return names | users | {_prefix(key) for key in servers.valkey.scan_iter(count=1000)}


def deluser_calls(servers: Servers) -> int:
    """How often ACL DELUSER ran. Not a promise: the attempt after a kill may repeat it for a user that is gone."""
    stats: Json = servers.valkey.info("commandstats")
    return int(stats.get("cmdstat_acl|deluser", {"calls": 0})["calls"])


def fill(holding: Holding) -> None:
    """Write rows or keys into it, with the customer's credentials."""
    if holding.kind == "redis":
        with closing(redis.Redis.from_url(holding.url)) as client:
            client.mset({f"{holding.names['prefix']}order:{number}": f"paid {number}" for number in range(ROWS)})
        return
    with closing(psycopg2.connect(holding.url)) as session, session, session.cursor() as cursor:
        cursor.execute(
            "CREATE TABLE orders AS SELECT n AS id, 'paid ' || n AS note FROM generate_series(1, %s) n", (ROWS,)
        )


def contents(holding: Holding) -> object | None:
    """Read everything in it, with the customer's credentials; None when they no longer log in."""
    try:
        if holding.kind == "redis":
            with closing(redis.Redis.from_url(holding.url)) as client:
                return client.mget([f"{holding.names['prefix']}order:{number}" for number in range(ROWS)])
        with closing(psycopg2.connect(holding.url)) as session, session.cursor() as cursor:
            cursor.execute("SELECT id, note FROM orders ORDER BY id")
            return list(cursor)
    except (psycopg2.OperationalError, redis.AuthenticationError):
        return None
    except (psycopg2.Error, redis.RedisError) as error:
        return str(error)  # the login itself succeeded


@contextmanager
def session(holding: Holding) -> Iterator[Callable[[], bool]]:
    """An open session of the customer's; the function says whether it still answers."""
    if holding.kind == "redis":
        with closing(redis.Redis.from_url(holding.url, single_connection_client=True)) as client:
            yield lambda: _works(lambda: client.exists(f"{holding.names['prefix']}order:0"))
        return
    with closing(psycopg2.connect(holding.url)) as connection:
        connection.autocommit = True
        yield lambda: _works(lambda: connection.cursor().execute("SELECT 1"))


def _works(act: Callable[[], object]) -> bool:
    try:
        act()
    except (psycopg2.Error, redis.RedisError):
        return False
    return True


def is_shut(servers: Servers, holding: Holding) -> bool:
    """Whether its server still has it, and lets no login in."""
    if holding.kind == "redis":
        user: Json | None = servers.valkey.acl_getuser(holding.names["user"])
        return user is not None and not user["enabled"]
    names = {"names": sorted(holding.all_names)}
    with closing(psycopg2.connect(servers.pg_dsn)) as session, session.cursor() as cursor:
        cursor.execute("SELECT datallowconn FROM pg_database WHERE datname = ANY(%(names)s)", names)
        databases = cursor.fetchall()
        cursor.execute("SELECT rolcanlogin FROM pg_roles WHERE rolname = ANY(%(names)s)", names)
        closed = [(False,)]
        return bool(databases == closed and cursor.fetchall() == closed)


def _dropped(log: Path) -> Counter[tuple[str, str]]:
    """How often each database (`postgres`) and role was dropped successfully, as the server's log says.

    A role has the database's last name when it is dropped.
    """
    ended: Counter[tuple[str, str]] = Counter()
    for how, verb, what, name in _LOGGED.findall(log.read_text(errors="replace")):
        if verb == "DROP":
            ended["postgres" if what == "DATABASE" else "role", name] += -1 if how == "STATEMENT" else 1
    return +ended


def _unlinked(folder: Path) -> Counter[tuple[str, str]]:
    """How often each key was removed: the server appends only commands that changed something.

    Valkey rewrites the file once it has 64 MB; the demo writes far less.
    """
    ended: Counter[tuple[str, str]] = Counter()
    for file in folder.glob("*.incr.aof"):
        for verb, *keys in _commands(io.BytesIO(file.read_bytes())):
            if verb.lower() in ("del", "unlink", "flushdb", "flushall"):
                ended.update(("redis", key) for key in keys or [verb])
    return ended


def _commands(file: io.BytesIO) -> Iterator[list[str]]:
    """The commands of an append-only file: `*COUNT`, then COUNT strings, each after a line `$LENGTH`."""
    while line := file.readline():
        if line.startswith(b"*"):
            lengths = (int(file.readline()[1:]) for _ in range(int(line[1:])))
            yield [file.read(length + 2)[:-2].decode(errors="replace") for length in lengths]


def _prefix(key: str) -> str:
    if key.startswith(_COPIES):
        return key[: key.rfind(":") + 1]
    return key if key.startswith(_MARKS) else key[: key.find(":") + 1]


def finding(what: str, holdings: Iterable[Holding], promised: int, witness: str) -> Finding:
    """A finding that counts these holdings by kind."""
    counts: Mapping[str, int] = Counter(holding.kind for holding in holdings)
    return Finding(what, counts.get("postgres", 0), counts.get("redis", 0), promised, witness)
