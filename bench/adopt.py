"""`python -m bench.adopt [--databases N] [--users N]`: adopts many objects by the product's command and workers.

The databases are real ones. Their files are removed as soon as they are made, since an adoption reads and writes the
server's catalogs alone: 3,000 databases would take 22 GB.
"""

import argparse
import json
import os
import shutil
import subprocess
import time
from contextlib import closing
from pathlib import Path

import psycopg2
import redis
from sqlalchemy import text

from bench.stack import PRODUCT, Stack, stack
from outbox import db
from outbox.settings import PREFIX

WORKERS, SLOTS, RATE = 2, 8, 200
FAST = {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off"}


def _databases(made: Stack, count: int) -> list[dict[str, str]]:
    names = [f"fleet_{n:05}" for n in range(count)]
    with closing(psycopg2.connect(made.pg_main_admin_dsn)) as session:
        session.autocommit = True
        cursor = session.cursor()
        service = "deprovisioner_service"
        cursor.execute("SHOW data_directory")
        base = Path(cursor.fetchone()[0]) / "base"
        for name in names:
            cursor.execute(f"CREATE ROLE {name} LOGIN")
            cursor.execute(f"GRANT {name} TO {service} WITH ADMIN TRUE, INHERIT TRUE, SET TRUE")
            cursor.execute(f"CREATE DATABASE {name} OWNER {name} STRATEGY FILE_COPY")
            cursor.execute(f"REVOKE CONNECT ON DATABASE {name} FROM PUBLIC")
            cursor.execute("SELECT oid FROM pg_database WHERE datname = %s", (name,))
            for file in (base / str(cursor.fetchone()[0])).glob("[0-9]*"):
                file.unlink()
    return [{"database": name, "role": name} for name in names]


def _users(made: Stack, count: int) -> list[dict[str, str]]:
    names = [f"fleet_{n:05}" for n in range(count)]
    with redis.Redis.from_url(made.redis_main_admin_url) as server, server.pipeline(transaction=False) as pipe:
        for name in names:
            pipe.execute_command("ACL", "SETUSER", name, "on", ">p", f"~{name}:*", "resetchannels", "+get", "+set")
            for n in range(10):
                pipe.set(f"{name}:{n}", n)
        pipe.execute()
        server.acl_save()
    return [{"user": name, "prefix": f"{name}:"} for name in names]


def _cli(*words: str) -> str:
    return subprocess.run([*PRODUCT, *words], env=os.environ, check=True, capture_output=True, text=True).stdout


def _adopt(made: Stack, backend: str, kind: str, dsn: str, objects: list[dict[str, str]]) -> None:
    path = made.backends(backend, kind, dsn, SLOTS)
    os.environ[f"{PREFIX}BACKENDS"] = str(path)
    listed = made.home / f"{backend}.jsonl"
    listed.write_text("\n".join(json.dumps(one | {"tenant": "acme"}) for one in objects))
    with made.workers(WORKERS, SLOTS, argv=(*PRODUCT, "worker"), backends=path):
        began = time.monotonic()
        seen = json.loads(_cli("adopt", "--backend", backend, "--from", str(listed), "--json"))
        previewed = time.monotonic()
        assert seen["adoptable"] == len(objects), (seen["adoptable"], seen["refused"])
        run = ("--preview", str(seen["id"]), "--digest", seen["digest"], "--rate", str(RATE))
        _cli("adopt", "--backend", backend, *run)
        enqueued = time.monotonic()
        while _active(backend) < len(objects):
            time.sleep(0.1)
        ended = time.monotonic()
    print(
        f"{len(objects)} objects of {kind}: dry run {previewed - began:.1f} s, adopted {ended - previewed:.1f} s "
        f"(enqueued after {enqueued - previewed:.1f} s), together {ended - began:.1f} s"
    )


def _active(backend: str) -> int:
    asked = text("SELECT count(*) FROM resources WHERE backend = :backend AND status = 'active'")
    with db.statement() as session:
        return int(session.execute(asked, {"backend": backend}).scalar_one())


def main() -> None:
    """Run the bench and print the times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--databases", type=int, default=3000)
    parser.add_argument("--users", type=int, default=3000)
    asked = parser.parse_args()
    with stack() as made, made.real_backends(FAST):
        if asked.databases:
            began = time.monotonic()
            objects = _databases(made, asked.databases)
            print(f"made {len(objects)} databases in {time.monotonic() - began:.1f} s", flush=True)
            _adopt(made, "pg-main", "postgres", made.pg_main_dsn, objects)
        if asked.users:
            _adopt(made, "redis-main", "redis", made.redis_main_url, _users(made, asked.users))
    shutil.rmtree(made.home, ignore_errors=True)


if __name__ == "__main__":
    main()
