"""Schemathesis against the API with a tenant's and an operator's token: `python -m tests.fuzz --minutes 10`.

It makes requests of the API's own description, right ones and wrong ones, and compares the answers with it. Fails on a
server error (a 503 says that something is away, and is none here) and on an answer that the description does not name.
"""

import argparse
import contextlib
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from outbox import db as database
from outbox import tokens
from tests.support.factories import a_job, a_resource
from tests.support.processes import System
from tests.support.servers import BACKENDS, clear_caches, database_dsn, serving, use_environment

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
SEED = 1  # of the short run, which finds the same each time


def fuzz(url: str, token: str, seconds: float, log: Path, seed: int = SEED) -> bool:
    """Whether Schemathesis found nothing within `seconds`; what it says goes to `log`."""
    argv = [sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json", "--max-time", str(int(seconds))]
    argv += ["--checks", CHECKS, "--header", f"Authorization: Bearer {token}", "--seed", str(seed), "--warnings", "off"]
    argv += ["--suppress-health-check", "all", "--continue-on-failure", "--request-timeout", "30", "--no-color"]
    with log.open("ab") as out:
        return subprocess.run(argv, stdout=out, stderr=out, check=False, cwd=log.parent).returncode == 0


@contextlib.contextmanager
def installation(folder: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """An API and a worker on servers of their own, with some jobs: the API's URL, and the token of each role."""
    with serving() as servers, pytest.MonkeyPatch.context() as patch:
        servers.control.query("CREATE DATABASE ours")
        (folder / "backends.toml").write_text(BACKENDS)
        env = {
            "DEPROVISIONER_DATABASE_URL": database_dsn(servers.control.dsn, "ours"),
            "DEPROVISIONER_BROKER_URL": servers.broker.url,
            "DEPROVISIONER_BACKENDS": str(folder / "backends.toml"),
            "DEPROVISIONER_CREDENTIALS_KEY": "QqzGw4kG3n6pTgU3aYQ1n8cYqH1m3C5v0b7xJ2r9d0E=",
            "PG_MAIN_DSN": servers.pg.service_dsn,
            "REDIS_MAIN_URL": servers.redis.service_dsn,
        }
        use_environment(patch, env)
        import migrations

        migrations.upgrade()
        system = System(env, folder)
        try:
            url = system.api()
            system.worker()
            yield url, populate()
        finally:
            system.stop()
            clear_caches()


def populate() -> dict[str, str]:
    """Resources and jobs of every state in this process's control database; the token of each role."""
    with database.statement() as db:
        for state in ("pending", "stuck", "succeeded"):
            for _ in range(3):
                a_job(db, state=state)
        for step in ("quarantine", "wait"):
            a_job(db, step=step)
        a_job(db, kind="restore")
        for status in ("active", "provisioning"):
            a_resource(db, status=status)
        made = {"operator": None, "tenant": "acme"}
        return {
            role: tokens.create(db, actor="op", role=role, tenant=tenant, name=role)[1] for role, tenant in made.items()
        }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=10, help="of both tokens together")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(2**31), help="of another run's choices")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="deprovisioner-fuzz-") as folder, installation(Path(folder)) as (url, made):
        log, found = Path(folder) / "schemathesis.log", []
        for role, token in made.items():
            found += [] if fuzz(url, token, asked.minutes * 60 / len(made), log, asked.seed) else [role]
            print(f"{role}: {'something was found' if role in found else 'nothing was found'}", flush=True)
        print(log.read_text())
        if found:
            raise SystemExit(1)


if __name__ == "__main__":
    main()
