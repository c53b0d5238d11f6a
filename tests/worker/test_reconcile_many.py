"""A hundred thousand objects and as many rows: the few that differ are found, in constant memory."""

import json
import re
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import Connection, text

from outbox.kinds.redis import KIND
from tests.support import redis_servers
from tests.support.factories import unguarded
from tests.support.reconciling import keys, own_postgres, ran
from tests.support.witness import PgServer, RedisServer
from worker.backends import mark
from worker.backends.postgres import Postgres
from worker.backends.redis import Redis

pytestmark = pytest.mark.proof
MANY = 100_000
# What this process may grow by, beside what the backend's own reading takes: some pages of objects.
GROWTH = 24 << 20


@pytest.fixture(scope="module")
def pg() -> Iterator[PgServer]:
    with own_postgres() as started:
        yield started


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_servers.running("valkey", tmp_path_factory.mktemp("many") / "own") as started:
        yield started


def peak(act: Callable[[], object]) -> int:
    """By how many bytes this process was larger while `act` ran than before, as the kernel saw it."""
    Path("/proc/self/clear_refs").write_text("5")  # forgets the highest so far
    before = _kernel("VmHWM")
    act()
    return _kernel("VmHWM") - before


def _kernel(name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.M)
    assert found
    return int(found[1]) << 10


def seed(db: Connection, backend: str, kind: str, manifests: str) -> None:
    """A row for each manifest that this query gives, active for two hours."""
    unguarded(
        db,
        f"""
        INSERT INTO resources (id, tenant, kind, backend, name, status, generation, manifest, created_at, activated_at)
        SELECT gen_random_uuid(), 'acme', '{kind}', '{backend}', 'n', 'active',
               CAST(manifest ->> 'generation' AS uuid), manifest, now() - interval '2 h', now() - interval '2 h'
          FROM ({manifests}) AS made (manifest)""",
    )


def test_a_hundred_thousand_marks_of_postgresql_are_compared_in_constant_memory(db: Connection, pg: PgServer) -> None:
    backend = Postgres(pg.service_dsn)
    pg.query(
        f"""
        DO $$ DECLARE role text; BEGIN
            FOR n IN 1..{MANY} LOOP
                role := 'many_' || n;
                EXECUTE format('CREATE ROLE %I', role);
                EXECUTE format('COMMENT ON ROLE %I IS %L', role, '{mark("")}' || md5(n::text)::uuid);
                IF n % 1000 = 0 THEN COMMIT; END IF;
            END LOOP; END $$"""
    )
    # Rows from 11 on: 10 objects are unknown; 10 rows more than there are objects: these are missing.
    seed(
        db,
        "pg-main",
        "postgres",
        f"""SELECT jsonb_build_object('database', 'd' || n, 'role', 'many_' || n,
                                      'generation', CAST(md5(CAST(n AS text)) AS uuid))
               - CASE WHEN n <= {MANY} THEN 'database' ELSE '' END
              FROM generate_series(11, {MANY + 10}) AS n""",
    )
    began = time.monotonic()
    grown = peak(lambda: ran(backend))
    print(f"\npostgres: {time.monotonic() - began:.1f} s, grown by {grown >> 20} MB")
    found = keys(db)
    assert {code for code, _ in found} == {"unknown", "missing"}
    generations = {str(uuid.UUID(hex=row)) for (row,) in pg.query("SELECT md5(n::text) FROM generate_series(1, 10) n")}
    assert {key for code, key in found if code == "unknown"} == generations
    gone = text("SELECT id FROM resources WHERE CAST(substr(manifest ->> 'database', 2) AS int) > :many")
    assert {key for code, key in found if code == "missing"} == {
        str(id) for id in db.execute(gone, {"many": MANY}).scalars()
    }
    assert len(found) == 20
    assert grown < GROWTH


def test_a_hundred_thousand_users_of_redis_are_compared_in_what_their_list_takes(
    db: Connection, cache: RedisServer
) -> None:
    """ACL LIST is one answer, so the reading itself grows with the users; the comparison adds a constant."""
    backend = Redis(cache.service_dsn)
    manifests = []
    for first in range(0, MANY, 1_000):
        with cache.client.pipeline(transaction=False) as pipe:
            for _ in range(first, first + 1_000):
                resource, generation = uuid.uuid4(), uuid.uuid4()
                user, prefix = f"usr_{resource.hex}", f"{resource}:"
                pipe.execute_command(
                    "ACL", "SETUSER", user, f"~{prefix}*", "resetchannels", f"&deprovisioner:gen:{generation}"
                )
                pipe.set(f"deprovisioner:gen:{prefix}", str(generation))
                manifests.append(KIND.manifest(user=user, prefix=prefix, generation=str(generation)))
            pipe.execute()
    gone = [
        KIND.manifest(user=f"usr_{uuid.uuid4().hex}", prefix=f"{uuid.uuid4()}:", generation=str(uuid.uuid4()))
        for _ in range(10)
    ]
    for first in range(10, MANY, 10_000):
        rows = manifests[first : first + 10_000] + (gone if first == 10 else [])
        seed(
            db,
            "redis-main",
            "redis",
            f"SELECT * FROM jsonb_array_elements('{json.dumps(rows).replace(':', chr(92) + ':')}')",
        )
    reading = peak(lambda: sum(1 for _ in backend.objects()))
    began = time.monotonic()
    grown = peak(lambda: ran(backend, name="redis-main"))
    print(f"\nredis: {time.monotonic() - began:.1f} s, the reading alone {reading >> 20} MB, the run {grown >> 20} MB")
    found = keys(db)
    assert {key for code, key in found if code == "unknown"} == {one["generation"] for one in manifests[:10]}
    assert len(found) == 20
    assert grown < reading + GROWTH
