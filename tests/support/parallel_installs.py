"""Installs for tests that run many stories at once: each has its own control database, on shared servers."""

import itertools
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.crash_cells import Deletions, Install
from tests.support.servers import BACKENDS, Servers, clear_caches, database_dsn, use_environment
from worker.backends.redis import Redis

_NUMBERS = itertools.count()


@contextmanager
def installs(servers: Servers, template: str, folder: Path) -> Iterator[Callable[[], Install]]:
    """A function that makes one more install; all are dropped at the end. This process gets the settings they share."""
    (folder / "backends.toml").write_text(BACKENDS)
    env = {
        "PATH": os.environ["PATH"],
        "DEPROVISIONER_BROKER_URL": servers.broker.url,
        "DEPROVISIONER_BACKENDS": str(folder / "backends.toml"),
        "DEPROVISIONER_CREDENTIALS_KEY": "QqzGw4kG3n6pTgU3aYQ1n8cYqH1m3C5v0b7xJ2r9d0E=",
        "DEPROVISIONER_BACKOFF_BASE_SECONDS": "0.2",
        "PG_MAIN_DSN": servers.pg.service_dsn,
        "REDIS_MAIN_URL": servers.redis.service_dsn,
    }
    Redis(servers.redis.service_dsn).plan(uuid.uuid4(), uuid.uuid4())  # else the first stories race to name the server
    deletions = Deletions(servers.redis)
    deletions.start()
    opened: dict[str, Install] = {}

    def new_install() -> Install:
        name = f"install{next(_NUMBERS)}"
        servers.control.query(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy")
        opened[name] = Install(
            env,
            database_dsn(servers.control.dsn, name),
            folder,
            pg=servers.pg,
            cache=servers.redis,
            acl_file=servers.home / "redis-main" / "users.acl",
            deletions=deletions,
        )
        return opened[name]

    with pytest.MonkeyPatch.context() as patch:
        use_environment(patch, env)
        try:
            yield new_install
        finally:
            deletions.stop()
            for name, made in opened.items():
                made.close()
                servers.control.query(f"DROP DATABASE {name} WITH (FORCE)")
            clear_caches()
