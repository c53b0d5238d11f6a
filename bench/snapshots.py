"""A final snapshot against bare pg_dump: seconds, and the memory that the worker needs. `python -m bench.snapshots`.

On servers of its own. The table has rows of 1 KB whose text pg_dump halves; both dump at level 1.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

import psycopg2

from deprovisioner.up import accounts, servers
from outbox import credentials
from worker.backends import always
from worker.backends.postgres import Postgres, client
from worker.snapshots import stores
from worker.snapshots.sealed import Sealer, Unsealer

_FILL = """
    CREATE TABLE t AS
    SELECT i, (SELECT string_agg(md5(i * 40.0 + k || ''), '') FROM generate_series(1, 30) AS k) AS words
      FROM generate_series(1, {rows}) AS i"""
ROWS_OF_A_GB = 1_000_000


def main() -> None:
    """Print one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gb", type=float, default=2.0)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        _take(*asked.child)
        return
    os.environ["DEPROVISIONER_CREDENTIALS_KEY"] = credentials.new_key()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        home = Path(folder)
        home.chmod(0o755)
        port = servers.free_port()
        server = servers.postgres(home, "pg", port, "secret", {"fsync": "off", "max_wal_size": "8GB"})
        dsn = servers.postgres_dsn(port, "secret")
        server.spawn()
        try:
            server.wait_until(lambda: servers.postgres_ready(dsn))
            print(json.dumps(_measure(home, dsn, asked.gb), indent=2))
        finally:
            server.stop()


def _measure(home: Path, admin: str, size: float) -> dict[str, object]:
    dsn = accounts.postgres(admin, "service-secret")
    backend = Postgres(dsn)
    plan = backend.plan(uuid.uuid4(), uuid.uuid4())
    made = backend.provision(plan.manifest, plan.credentials)
    connection = psycopg2.connect(plan.credentials["dsn"])
    with connection, connection.cursor() as cursor:
        cursor.execute(_FILL.format(rows=int(size * ROWS_OF_A_GB)))
        cursor.execute("SELECT pg_total_relation_size('t')")
        ((stored,),) = cursor.fetchall()
    connection.close()
    bare = _bare(home, plan.credentials["dsn"])
    bare = min(bare, _bare(home, plan.credentials["dsn"]))
    backend.quarantine(made)
    (home / "store").mkdir()
    child = [sys.executable, "-m", "bench.snapshots", "--child", dsn, json.dumps(made), str(home / "store")]
    done = json.loads(subprocess.run(child, check=True, capture_output=True, text=True).stdout)
    megabytes = stored / 1e6
    return {
        "table_mb": round(megabytes),
        "bare_pg_dump_mb_s": round(megabytes / bare, 1),
        "snapshot_mb_s": round(megabytes / done["dump_s"], 1),
        "snapshot_with_its_sums_mb_s": round(megabytes / done["snapshot_s"], 1),
        "verified_mb_s": round(megabytes / (done["snapshot_s"] + done["verify_s"]), 1),
        **done,
    }


def _bare(home: Path, dsn: str) -> float:
    began = time.monotonic()
    program = client.folder(180000) / "pg_dump"
    subprocess.run([program, "-Fc", "-Z1", "-f", home / "bare.dump", dsn], check=True)
    return time.monotonic() - began


def _take(dsn: str, manifest: str, folder: str) -> None:
    backend, made, store = Postgres(dsn), json.loads(manifest), stores.of(f"file:{folder}")
    began = time.monotonic()
    dumped = began
    with store.writing("n") as write:
        sealer = Sealer(write, {})

        def writing(data: bytes) -> None:
            nonlocal dumped
            sealer.write(data)
            dumped = time.monotonic()

        source = backend.snapshot(made, writing, always)
        sealer.finish()
    taken = time.monotonic()
    with store.reading("n") as read:
        backend.verify_snapshot(made, Unsealer(read).read, source, always)
    print(
        json.dumps(
            {
                "stored_mb": round(sealer.written / 1e6),
                "dump_s": round(dumped - began, 1),
                "snapshot_s": round(taken - began, 1),
                "verify_s": round(time.monotonic() - taken, 1),
                "worker_max_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
                "programs_max_rss_mb": round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024),
            }
        )
    )


if __name__ == "__main__":
    main()
