"""The files of a home that `up` alone uses."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from outbox.errors import DeprovisionerError

# Of the control database: it may work there, and not rewrite what happened.
SERVICE_ROLE = "deprovisioner"
BACKENDS_TOML = """\
# Written by `deprovisioner up`; yours to change. API and workers read it when they start.
# adoption: on these throw-away servers tenants may adopt too; elsewhere leave that to operators.
[backends.pg-main]
kind = "postgres"
dsn = "env:PG_MAIN_DSN"
concurrency = 4
adoption = "tenants"
# brake = "50/10m"    # more teardowns than this within the window wait for a person

[backends.redis-main]
kind = "redis"
dsn = "env:REDIS_MAIN_URL"
concurrency = 4
adoption = "tenants"
"""


@contextmanager
def locked(home: Path) -> Iterator[None]:
    """Hold the home's lock, so that no second `up` runs on it."""
    lock: IO[str] = (home / "lock").open("a+")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.seek(0)
        raise DeprovisionerError(
            f"another `deprovisioner up` (pid {lock.read().strip()}) runs on {home}; stop it, or take another --home"
        ) from error
    try:
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield
    finally:
        lock.close()


def write_private(path: Path, text: str) -> None:
    """Replace a file in one step; only its owner can read it."""
    partial = path.with_name(f".{path.name}.partial")
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
    partial.replace(path)
