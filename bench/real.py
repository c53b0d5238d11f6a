"""Real work: the product's own worker tears down databases and key namespaces, and so does a bare loop.

The bare loop sends the backend the same commands from the same number of threads, in plain psycopg2 and redis-py. It
uses no control database: it makes no claim, no start and no record. The difference in time is the price of safety.
"""

import json
import re
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import psycopg2
import redis

from bench import measures
from bench.stack import PRODUCT, TENANT, Stack
from deprovisioner.up import accounts
from outbox.rows import Json
from worker.backends import Backend
from worker.backends.postgres import Postgres
from worker.backends.redis import Redis, keys
from worker.backends.redis.identity import SERVER_KEY
from worker.backends.redis.keys import BATCH

T = TypeVar("T")
THREADS = 8
KEYS = 1000
_SEED = f"""
    INSERT INTO resources (id, tenant, kind, backend, name, status, generation, manifest, activated_at, expires_at)
    SELECT gen_random_uuid(), '{TENANT}', :kind, :backend, manifest->>'generation', 'active',
           (manifest->>'generation')::uuid, manifest, now(), now()
      FROM jsonb_array_elements(CAST(:manifests AS jsonb)) AS manifest"""


def databases(stack: Stack, count: int, *, first: str) -> measures.Figures:
    """Drop `count` databases with their roles by the product, and as many by a bare loop: the seconds of both."""
    backend = Postgres(stack.pg_main_dsn)
    statements = _recorded(stack)

    def bare(sessions: list[list[str]]) -> None:
        for session in sessions:
            _replay(stack.pg_main_dsn, session)

    path = stack.backends("pg-main", "postgres", stack.pg_main_dsn, THREADS)
    figures = _both(stack, "postgres", path, backend, count, first, statements, bare, lambda: _transactions(stack))
    left = _ask(stack.pg_main_admin_dsn, "SELECT datname FROM pg_database WHERE datname ~ '^(db|zz)_'")
    left += _ask(stack.pg_main_admin_dsn, "SELECT rolname FROM pg_roles WHERE rolname ~ '^usr_'")
    assert not left, f"not torn down: {left[:3]}"
    return figures


def namespaces(stack: Stack, count: int, *, first: str) -> measures.Figures:
    """Remove `count` ACL users with KEYS keys each by the product, and as many by a bare loop: the seconds of both."""
    url = stack.redis_main_url

    def bare(manifest: Json) -> None:
        _remove_namespace(url, manifest)

    path = stack.backends("redis-main", "redis", url, THREADS)
    figures = _both(
        stack, "redis", path, Redis(url), count, first, lambda manifest: manifest, bare, lambda: _calls(stack)
    )
    with _connected(stack.redis_main_admin_url) as server:
        left = (server.dbsize(), len(server.acl_list()))
    assert left == (1, 3), f"(keys, users) left: {left}; one key and three users are the server's own"
    return figures


def _both(
    stack: Stack,
    kind: str,
    path: Path,
    backend: Backend,
    count: int,
    first: str,
    prepare: Callable[[Json], T],
    bare: Callable[[T], None],
    requests: Callable[[], measures.Figures],
) -> measures.Figures:
    """Time the bare loop over `count` objects, and the product over as many of the same kind; `first` goes first.

    `prepare` turns a manifest into the argument of `bare`. `requests` reads the server's own counts of its transactions
    or commands. AssertionError when these counts differ between the two: only the same work may be compared.
    """
    seconds, did = {}, {}
    for name in ("loop", "whole") if first == "loop" else ("whole", "loop"):
        made = _make_all(stack, kind, backend, count)
        todo = [prepare(manifest) for manifest in made]
        before = requests()
        if name == "whole":
            seconds[name] = _whole_job(stack, kind, path, made)
        else:
            began = time.perf_counter()
            _at_once(bare, todo)
            seconds[name] = time.perf_counter() - began
        did[name] = {what: (times - before.get(what, 0)) / count for what, times in requests().items()}
    other = {
        what: {name: round(each.get(what, 0), 2) for name, each in did.items()}
        for what in did["loop"] | did["whole"]
        if abs(did["loop"].get(what, 0) - did["whole"].get(what, 0)) > 0.5
    }
    assert not other, f"the bare loop does not send what the product's teardown sends; for each object: {other}"
    return seconds


def _whole_job(stack: Stack, kind: str, path: Path, manifests: Sequence[Json]) -> float:
    """The seconds from the first claim to the last completion, with one real worker."""
    measures.seed(0)
    measures.query(_SEED, kind=kind, backend=path.stem, manifests=json.dumps(manifests))
    measures.enqueue_all(len(manifests))
    measures.query("VACUUM ANALYZE resources, outbox, events")
    with stack.workers(1, THREADS, argv=[*PRODUCT, "worker"], backends=path):
        measures.wait_drained()
    return measures.drained_in(len(manifests))


def _make_all(stack: Stack, kind: str, backend: Backend, count: int) -> list[Json]:
    """Make the objects as if they had existed for long: without fsync, and then a checkpoint that clears pending syncs.

    Otherwise the first drop would wait until the 300 files of each database are on disk.
    """
    if kind == "postgres":
        _fsync(stack.pg_main_admin_dsn, "off")
    made = _at_once(lambda _: _make(stack, kind, backend), range(count))
    if kind == "postgres":
        _ask(stack.pg_main_admin_dsn, "CHECKPOINT")
        _fsync(stack.pg_main_admin_dsn, "on")
    return made


def _fsync(dsn: str, wanted: str) -> None:
    _ask(dsn, f"ALTER SYSTEM SET fsync = {wanted}")
    _ask(dsn, "SELECT pg_reload_conf()")
    deadline = time.monotonic() + 10
    while _ask(dsn, "SHOW fsync") != [(wanted,)]:
        assert time.monotonic() < deadline, f"fsync is not {wanted} after 10 s"
        time.sleep(0.05)


def _make(stack: Stack, kind: str, backend: Backend) -> Json:
    """Make one object with the product's own backend, so that it has the product's marks."""
    plan = backend.plan(uuid.uuid4(), uuid.uuid4())
    manifest = backend.provision(plan.manifest, plan.credentials)
    if kind == "redis":
        with _connected(stack.redis_main_admin_url) as server:
            assert server.eval(_FILL, 0, manifest["prefix"], KEYS) == KEYS
    return manifest


_FILL = """
for n = 1, tonumber(ARGV[2]) do redis.call('SET', ARGV[1] .. n, string.rep('x', 100)) end
return tonumber(ARGV[2])"""


def _at_once(act: Callable[[Any], T], items: Sequence[Any]) -> list[T]:
    """Call `act` on each item in THREADS threads; the first error ends it, and so does Ctrl-C."""
    pool = ThreadPoolExecutor(THREADS)
    try:
        return list(pool.map(act, items))
    finally:
        pool.shutdown(cancel_futures=True)


# -- PostgreSQL: the statements of a teardown, from the server's own log ----------------------------------------------


def _transactions(stack: Stack) -> measures.Figures:
    """How many transactions the server has committed in the database to which teardowns connect."""
    time.sleep(0.3)  # a session reports its counts when it ends, a moment after its client has disconnected
    statement = "SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()"
    return {"transactions": float(_ask(stack.pg_main_admin_dsn, statement)[0][0])}


def _recorded(stack: Stack) -> Callable[[Json], list[list[str]]]:
    """Record one teardown by the product in the server's log; return a function that rewrites it for another object."""
    log = stack.home / "log" / "pg-main.log"
    backend = Postgres(stack.pg_main_dsn)
    made = _make(stack, "postgres", backend)
    role_oid = _role_oid(stack, made)
    seen = log.stat().st_size
    _ask(stack.pg_main_admin_dsn, f"ALTER ROLE {accounts.NAME} SET log_statement = 'all'")  # only a superuser may
    backend.inspect(made)  # the backend's part of a teardown: inspect, tear down, inspect again
    backend.teardown(made, 1)
    backend.inspect(made)
    _ask(stack.pg_main_admin_dsn, f"ALTER ROLE {accounts.NAME} RESET log_statement")
    sessions = _sessions(log.read_bytes()[seen:].decode())
    assert any("DROP DATABASE" in statement for session in sessions for statement in session), sessions

    def rewrite(manifest: Json) -> list[list[str]]:
        names = {str(made[key]): str(manifest[key]) for key in ("database", "role", "generation", "oid")}
        names[role_oid] = _role_oid(stack, manifest)
        pattern = re.compile("|".join(rf"(?<!\d){re.escape(name)}(?!\d)" for name in names))
        # The lock's number comes from the generation: with one number for all, the threads would wait for each other.
        lock = f"pg_advisory_lock({uuid.UUID(manifest['generation']).int >> 65})"
        return [
            [_LOCK.sub(lock, pattern.sub(lambda found: names[found[0]], statement)) for statement in session]
            for session in sessions
        ]

    return rewrite


_LOCK = re.compile(r"pg_advisory_lock\(-?\d+\)")
_ENTRY = re.compile(r"^\S+ \S+ UTC \[(\d+)\] \S+ LOG:  statement: (.*(?:\n\t.*)*)", re.MULTILINE)


def _sessions(log: str) -> list[list[str]]:
    found: dict[str, list[str]] = {}
    for pid, statement in _ENTRY.findall(log):
        found.setdefault(pid, []).append(statement)
    return list(found.values())


def _replay(dsn: str, statements: list[str]) -> None:
    session = psycopg2.connect(dsn)
    try:
        session.autocommit = True
        with session.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)
                if cursor.description:
                    cursor.fetchall()
    finally:
        session.close()


def _role_oid(stack: Stack, manifest: Json) -> str:
    return str(_ask(stack.pg_main_dsn, f"SELECT oid FROM pg_roles WHERE rolname = '{manifest['role']}'")[0][0])


def _ask(dsn: str, statement: str) -> list[Any]:
    session = psycopg2.connect(dsn)
    try:
        session.autocommit = True
        with session.cursor() as cursor:
            cursor.execute(statement)
            return list(cursor.fetchall()) if cursor.description else []
    finally:
        session.close()


# -- Redis: the same commands, written by hand, since SCAN's cursors cannot be replayed --------------------------------


def _calls(stack: Stack) -> measures.Figures:
    """How often the server ran each command, except SCAN: its number depends on the other keys of the server."""
    with _connected(stack.redis_main_admin_url) as server:
        stats = server.info("commandstats")
    calls = {name.removeprefix("cmdstat_"): float(stat["calls"]) for name, stat in stats.items()}
    return {name: count for name, count in calls.items() if name != "scan"}


def _remove_namespace(url: str, manifest: Json) -> None:
    with _connected(url) as server:
        server.info("replication")
        _inspect(server, manifest)
    with _connected(url) as server:
        server.info("replication")
        _inspect(server, manifest)
        server.acl_getuser(manifest["user"])
        _if_ours(server, manifest, "ACL", "SETUSER", manifest["user"], "off")
        server.execute_command("CLIENT", "KILL", "USER", manifest["user"])
        _save(server)
        server.type(_generation(manifest))
        server.get(_generation(manifest))
        while _unlink_pass(url, server, manifest):
            pass
        server.acl_getuser(manifest["user"])
        with server.pipeline() as pipe:
            pipe.watch(SERVER_KEY)
            server.acl_users()
        _if_ours(server, manifest, "ACL", "DELUSER", manifest["user"])
        _save(server)
        server.eval(keys._UNLINK_IF_OURS, 2, _generation(manifest), _generation(manifest), manifest["generation"], 0, 0)
    with _connected(url) as server:
        server.info("replication")
        _inspect(server, manifest)
        server.eval(keys._OLDER, 1, keys.older_key(manifest))
        server.acl_list()
        server.info("keyspace")
        with _connected(url) as there:
            assert not list(there.scan_iter(match=f"{manifest['prefix']}*", count=1000))
        server.info("replication")


def _inspect(server: "redis.Redis", manifest: Json) -> None:
    server.type(_generation(manifest))
    server.get(_generation(manifest))
    server.acl_users()
    server.acl_getuser(manifest["user"])


def _if_ours(server: "redis.Redis", manifest: Json, *command: str) -> None:
    with server.pipeline() as pipe:
        pipe.watch(_generation(manifest))
        _inspect(server, manifest)
        pipe.multi()
        pipe.execute_command("ACL", "GETUSER", manifest["user"])
        pipe.execute_command(*command)
        pipe.execute()


def _unlink_pass(url: str, server: "redis.Redis", manifest: Json) -> int:
    server.info("keyspace")
    with _connected(url) as there:
        found = list(set(there.scan_iter(match=f"{manifest['prefix']}*", count=1000)))
    for first in range(0, len(found), BATCH):
        batch = found[first : first + BATCH]
        server.eval(keys._UNLINK_IF_OURS, 1 + len(batch), _generation(manifest), *batch, manifest["generation"], 0, 0)
    return len(found)


def _save(server: "redis.Redis") -> None:
    server.config_get("aclfile")
    server.execute_command("ACL", "SAVE")


def _generation(manifest: Json) -> str:
    return keys.generation_key(manifest)


@contextmanager
def _connected(url: str) -> Iterator["redis.Redis"]:
    server = redis.Redis.from_url(url, decode_responses=True, client_name="bench")
    try:
        yield server
    finally:
        server.connection_pool.disconnect()
