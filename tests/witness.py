"""What the servers themselves say: independent of the code under test."""

import re
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psycopg2
import redis

_LINE = re.compile(r"^\S+ \S+ \S+ \[(?P<pid>\d+)\] (?:\S+ )?(?P<level>[A-Z]+): +(?P<text>.*)$")
_DROP = re.compile(r'(?P<level>LOG: statement|STATEMENT): DROP DATABASE "?(?P<name>[^"; ]+)')


class PgServer:
    """A PostgreSQL cluster seen from outside: its catalog and its log."""

    def __init__(self, dsn: str, log: Path) -> None:
        self.dsn = dsn
        self.log = log

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
        return bool(names & self.databases()) or manifest["role"] in self.roles()

    def drops(self, since: int = 0) -> Counter[str]:
        """How often each database was dropped with success, by the server's log from byte `since` on.

        A statement that fails is told once more, after its error: a session that ends later is none.
        """
        done: Counter[str] = Counter()
        for line in self.log.read_bytes()[since:].decode(errors="replace").splitlines():
            if (found := _LINE.match(line)) and (drop := _DROP.match(f"{found['level']}: {found['text']}")):
                done[drop["name"]] += 1 if drop["level"] != "STATEMENT" else -1
        return +done

    def drops_of(self, manifest: dict) -> int:
        """How often the database of the manifest was dropped, under whichever name."""
        done = self.drops()
        return done[f"zz_del_{manifest['generation']}"] + done[manifest["database"]]


class RedisServer:
    """A Redis or Valkey server seen from outside."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.client = redis.Redis.from_url(url, decode_responses=True)

    def users(self) -> set[str]:
        return {line.split()[1] for line in self.client.execute_command("ACL", "LIST")}

    def keys(self, prefix: str) -> set[str]:
        return {key for key in self.client.scan_iter(count=1000) if key.startswith(prefix)}

    def bears(self, manifest: dict) -> bool:
        return manifest["user"] in self.users() or bool(self.keys(manifest["prefix"]))


def eventually(happened: Callable[[], object], within: float = 20, what: str = "", *, every: float = 0.02) -> object:
    """The first true answer; fails after `within` seconds."""
    deadline = time.monotonic() + within
    while True:
        if answer := happened():
            return answer
        assert time.monotonic() < deadline, f"not within {within} s: {what or happened}"
        time.sleep(every)
