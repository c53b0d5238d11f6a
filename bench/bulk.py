"""For measures that need a large history: writes millions of rows by set-based SQL, and reads the server's counters.

Only a superuser can write these rows, since the product's triggers have to be off. Indexes are dropped before and
created again after, so it takes minutes instead of hours. Nothing is measured while rows are written.
"""

import shutil
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import psycopg2

from bench.stack import BACKEND, TENANT, Stack

# Buffers: a quarter of the machine's memory, as is usually advised. The others make loading fast, and count statements.
SETTINGS = {
    "shared_buffers": f"{psutil.virtual_memory().total // 4 >> 20}MB",
    "maintenance_work_mem": "512MB",
    "max_wal_size": "16GB",
    "checkpoint_timeout": "30min",
    "shared_preload_libraries": "pg_stat_statements",
    "pg_stat_statements.track_planning": "on",
}
# Measured: bytes of heap, indexes and log for one job with its resource and event. `grow` asks for a quarter more.
BYTES_A_JOB = 2_500
# From this many rows on it is faster to create the indexes again than to update them row by row.
MANY = 200_000
# The role that writes rows and reads counters: its statements are not counted as the product's.
ROLE = "bench"

# In the order of their ids, while jobs have the order of their numbers: a DELETE may be of any resource.
_RESOURCES = f"""
    INSERT INTO resources (id, tenant, kind, backend, name, status, generation, manifest,
                           created_at, activated_at, deleted_at, purged_at)
    SELECT md5(n::text)::uuid, '{TENANT}-' || n %% %(tenants)s, 'noop', '{BACKEND}-' || n %% %(backends)s,
           'bench-' || n, %(status)s, md5('generation' || n)::uuid,
           jsonb_build_object('generation', md5('generation' || n)::uuid), now(), now(),
           CASE WHEN %(status)s <> 'active' THEN now() END, CASE WHEN %(status)s = 'deleted' THEN now() END
      FROM generate_series(%(first)s, %(last)s) AS n
     ORDER BY md5(n::text)"""
# Due one after the other, as after DELETEs: claims go by `available_at`.
_JOBS = f"""
    INSERT INTO outbox (kind, state, resource_id, backend, fence, attempts, max_attempts, started_fence, request_id,
                        available_at, created_at, finished_at)
    SELECT 'deprovision', %(state)s, md5(n::text)::uuid, '{BACKEND}-' || n %% %(backends)s, done, done, 10,
           nullif(done, 0), gen_random_uuid(), at, at, CASE WHEN done = 1 THEN at END
      FROM generate_series(%(first)s, %(last)s) AS n,
           LATERAL (SELECT CASE %(state)s WHEN 'succeeded' THEN 1 ELSE 0 END AS done,
                           now() - (%(last)s - n + 1) * interval '1 ms' AS at) AS made"""
# The head of each chain, from which the next event's hash is computed. These hashes are not real; no check reads them.
_EVENTS = """
    INSERT INTO events (job_id, resource_id, fence, event, actor, seq, hash)
    SELECT id, resource_id, 0, 'enqueued', 'bench', 1, sha256(convert_to(resource_id::text, 'UTF8'))
      FROM outbox WHERE state = 'pending' AND id > %(after)s ORDER BY id"""
_INDEXES = """
    SELECT indexrelid::regclass::text, pg_get_indexdef(indexrelid) FROM pg_index
     WHERE indrelid = ANY(ARRAY['resources', 'outbox', 'events']::regclass[]) AND NOT indisprimary"""


@dataclass
class Bulk:
    """A superuser's connection to the control database."""

    home: Path
    connection: "psycopg2.extensions.connection"
    rows: int = 0  # the last number given to a resource: a number is never used twice

    def run(self, statement: str, **parameters: Any) -> list[tuple[Any, ...]]:
        """Run one statement, however long it takes."""
        with self.connection.cursor() as cursor:
            cursor.execute(statement, parameters or None)
            return cursor.fetchall() if cursor.description else []

    def empty(self) -> None:
        """Remove all resources, jobs, events and breakers."""
        self.run("TRUNCATE resources, outbox, events, breakers")

    def grow(self, count: int, status: str, *, tenants: int = 1, backends: int = 1) -> None:
        """Add `count` resources of this status; `deleting` ones get a pending job, `deleted` ones a finished job."""
        if not count:
            return
        needed, free = count * BYTES_A_JOB * 5 // 4, shutil.disk_usage(self.home).free
        if needed > free:
            raise SystemExit(f"bench: {count:,} jobs need {needed >> 20:,} MB in {self.home}; {free >> 20:,} are free")
        first, self.rows = self.rows + 1, self.rows + count
        words = {"first": first, "last": self.rows, "tenants": tenants, "backends": backends, "status": status}
        state = {"active": None, "deleting": "pending", "deleted": "succeeded"}[status]
        with self._without_indexes() if count >= MANY else nullcontext():
            after = self.run("SELECT coalesce(max(id), 0) FROM outbox")[0][0]
            self.run(_RESOURCES, **words)
            if state:
                self.run(_JOBS, state=state, **words)
            if state == "pending":
                self.run(_EVENTS, after=after)

    @contextmanager
    def _without_indexes(self) -> Iterator[None]:
        indexes = self.run(_INDEXES)
        self.run(f"DROP INDEX {', '.join(name for name, _ in indexes)}")
        yield
        for _, made in indexes:
            self.run(made)

    def finish(self, ids: list[int]) -> None:
        """Mark these claimed jobs as succeeded: hundreds of running jobs would not be an everyday state."""
        self.run(
            """UPDATE outbox SET state = 'succeeded', claimed_by = NULL, lease_expires_at = NULL, finished_at = now()
                WHERE id = ANY(%(ids)s)""",
            ids=ids,
        )

    def settle(self) -> None:
        """Bring the tables into their everyday state: vacuumed, analyzed, their indexes in memory where they fit."""
        for table in ("resources", "outbox", "events"):
            self.run(f"VACUUM ANALYZE {table}")
        self.run("""SELECT sum(pg_prewarm(indexrelid)) FROM pg_index
                     WHERE indrelid = ANY(ARRAY['resources', 'outbox', 'events']::regclass[])""")

    def checkpoint(self, *, images: bool) -> None:
        """Write everything to disk, so that no measure waits for it; `images`: log whole pages from here on."""
        self.run(f"ALTER SYSTEM SET full_page_writes = {images}")
        self.run("SELECT pg_reload_conf()")
        time.sleep(1)  # the server reads its configuration again a moment later
        self.run("CHECKPOINT")

    def statements(self, like: str = "%") -> dict[str, float]:
        """The totals of the product's statements so far: calls, rows, and milliseconds of executing and of planning."""
        row = self.run(
            """SELECT coalesce(sum(calls), 0)::float, coalesce(sum(rows), 0)::float,
                      coalesce(sum(total_exec_time), 0), coalesce(sum(total_plan_time), 0)
                 FROM pg_stat_statements
                WHERE toplevel AND query LIKE %(like)s AND userid <> %(role)s::regrole""",
            like=like,
            role=ROLE,
        )[0]
        return dict(zip(("calls", "rows", "executing", "planning"), row, strict=True))

    def megabytes(self) -> int:
        """The size of the database."""
        return int(self.run("SELECT pg_database_size(current_database()) >> 20")[0][0])


@contextmanager
def bulk(stack: Stack) -> Iterator[Bulk]:
    """Connect as a second superuser, so that the product's statements can be counted without ours."""
    with closing(_connect(stack.dsn)) as owner, owner.cursor() as cursor:
        cursor.execute(f"CREATE ROLE {ROLE} SUPERUSER LOGIN PASSWORD '{stack.password}'")
        cursor.execute("CREATE EXTENSION pg_stat_statements")
        cursor.execute("CREATE EXTENSION pg_prewarm")
    ours = stack.dsn.replace("//postgres:", f"//{ROLE}:")
    with closing(_connect(ours, "-c session_replication_role=replica")) as connection:
        yield Bulk(stack.home, connection)


def _connect(dsn: str, options: str = "") -> "psycopg2.extensions.connection":
    connection = psycopg2.connect(dsn, options=options)
    connection.autocommit = True
    return connection
