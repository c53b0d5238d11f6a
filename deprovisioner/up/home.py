"""The files of a home: its lock, `state.json`, `backends.toml`, and `env` for other shells.

The caller's variables always win. `up` makes values for the variables that are missing, and `state.json` remembers
which value of which variable it made. A shell that sourced the home's `env` passes those values back; without this
record they would look like the caller's choice.
"""

import fcntl
import hashlib
import json
import os
import secrets
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

from deprovisioner.up import servers, users
from deprovisioner.up.environment import (
    API_URL,
    BACKENDS,
    BROKER_URL,
    CREDENTIALS_KEY,
    DATABASE_URL,
    OPERATOR_TOKEN,
    PG_MAIN_DSN,
    PG_MAIN_SERVICE_DSN,
    REDIS_MAIN_SERVICE_URL,
    REDIS_MAIN_URL,
    TENANT_TOKEN,
)
from outbox.errors import DeprovisionerError
from outbox.settings import PREFIX

# The role of API and workers in the control database: it adds events and cannot change them.
SERVICE_ROLE = "deprovisioner"
SNAPSHOTS = "snapshots"  # the folder of a home that holds the final snapshots
_BACKENDS_TOML = """\
# Written by `deprovisioner up`; edit it as you like. The API and the workers read it when they start.
# grace: how long a deleted resource can be restored. min_grace: a DELETE may ask for as little (`?grace=0s`).
# snapshot_store: where the snapshot of a DELETE with `?snapshot=required` goes, before anything is destroyed.
# adoption: tenants may adopt objects on these throw-away servers; elsewhere leave that to operators.
[backends.pg-main]
kind = "postgres"
dsn = "env:PG_MAIN_SERVICE_DSN"
concurrency = 4
grace = "10m"
min_grace = "0s"
snapshot_store = "{store}"
adoption = "tenants"
# brake = "50/10m"    # more teardowns than this within the window wait for an operator

[backends.redis-main]
kind = "redis"
dsn = "env:REDIS_MAIN_SERVICE_URL"
concurrency = 4
grace = "10m"
min_grace = "0s"
snapshot_store = "{store}"
adoption = "tenants"
"""
# SHA-256 of what earlier versions wrote. Such a file was never edited, and is written anew.
_EARLIER_TOML = {
    "03a12ad29a1d80f5060f42152a8a5f4a423e62aaa9315943d2a14a9675bcffc1",
    "71694a36edfce8f0e03ed007f416bb994d274d5143b6433887ffaefc1614ecb5",
    "723403f936a35d00858420b0aeb040f93133b7291492fef813b75c4bc16e4e2c",
    "f7932efd21f7a2eb5c299ed00d0fd9a8b11c100961791fa54efaea2e736f014f",
}
# What `env` tells other shells. Commands there create and examine jobs, so they need the same limits as our processes.
_PUBLISHED = (
    PG_MAIN_DSN,
    PG_MAIN_SERVICE_DSN,
    REDIS_MAIN_URL,
    REDIS_MAIN_SERVICE_URL,
    DATABASE_URL,
    BROKER_URL,
    BACKENDS,
    CREDENTIALS_KEY,
    API_URL,
    f"{PREFIX}API_PORT",
    OPERATOR_TOKEN,
    TENANT_TOKEN,
    f"{PREFIX}MAX_ATTEMPTS",
    f"{PREFIX}LEASE_SECONDS",
    f"{PREFIX}SWEEP_SECONDS",
)


def prepare(home: Path) -> None:
    """Make the home, closed to other users, and close what an older version left open in it.

    Raises DeprovisionerError for a folder that others use too: they would be shut out of it.
    """
    is_shared = home.exists() and home.stat().st_mode & 0o007 and not (home / "lock").exists()
    if is_shared and any(path.is_dir() for path in home.iterdir()):
        raise DeprovisionerError(
            f"{home} has folders in it, and other users may enter it; `up` would shut them out: give it a folder of "
            "its own with --home"
        )
    users.close(home)
    os.umask(0o077)
    for path in (home / "lock", home / "backends.toml"):
        if path.exists():
            path.chmod(0o600)


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


def backends_file(home: Path, say: Callable[[str], object]) -> Path:
    """The home's own backends file: written for a new home, or in place of an earlier version's; an edited one stays.

    Makes the folder for snapshots, too. `say` is given a line about a file that was replaced.
    """
    path = home / "backends.toml"
    snapshots = home / SNAPSHOTS
    is_earlier = path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() in _EARLIER_TOML
    if is_earlier:
        say(
            f"{path} is now this version's: a deleted resource can be restored for 10 minutes; `?grace=0s` destroys now"
        )
    if is_earlier or not path.exists():
        text = _BACKENDS_TOML.format(store=f"file:{quote(str(snapshots.resolve()))}")
        write_private(path, text)  # dsn may become an address with a password
    snapshots.mkdir(exist_ok=True, mode=0o700)
    return path


def write_env(home: Path, environment: Mapping[str, str], more: Iterable[str]) -> None:
    """Write the file `env` of a home, which other shells source; `more` are further variables."""
    names = (*_PUBLISHED, *more)
    lines = [f"{name}={shlex.quote(environment[name])}\n" for name in names if name in environment]
    write_private(home / "env", "".join(lines))


def write_private(path: Path, text: str) -> None:
    """Replace a file in one step; only its owner can read it."""
    partial = path.with_name(f".{path.name}.partial")
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
    partial.replace(path)


class State:
    """`state.json` of a home: ports, passwords, tokens, and every value that `up` made for a variable."""

    def __init__(self, home: Path) -> None:
        self._path = home / "state.json"
        self._kept: dict[str, Any] = json.loads(self._path.read_text()) if self._path.exists() else {}
        if "made" not in self._kept:
            self._kept["made"] = _made_by_an_older_version(home, self._kept)

    def get(self, key: str) -> Any:
        """What is kept under `key`, or None."""
        return self._kept.get(key)

    def set(self, key: str, value: Any) -> None:
        """Keep `value` under `key`, in place of what was there."""
        self._kept[key] = value
        write_private(self._path, json.dumps(self._kept, indent=2))

    def keep(self, key: str, make: Callable[[], Any]) -> Any:
        """What is kept under `key`; made and kept when there is nothing yet."""
        if key not in self._kept:
            self.set(key, make())
        return self._kept[key]

    def port(self, server: str) -> int:
        """The server's port: the same in every run, since credentials and the `env` of other shells contain it."""
        return int(self.keep(f"{server}.port", servers.free_port))

    def password(self, server: str) -> str:
        """The password of the server's administrator, or of a service's account (`service`, `pg-main.service`)."""
        return str(self.keep(f"{server}.password", lambda: secrets.token_urlsafe(18)))

    def remember_made(self, variable: str, value: str) -> None:
        """Remember that `up` made this value for the variable."""
        values = self._kept["made"].setdefault(variable, [])
        if value not in values:
            values.append(value)  # older values stay: a shell may have sourced them before a port changed
            self.set("made", self._kept["made"])

    def without_made(self, environment: Mapping[str, str]) -> dict[str, str]:
        """The environment without the values that `up` made: what is left is the caller's choice."""
        made = self._kept["made"]
        return {name: value for name, value in environment.items() if value not in made.get(name, ())}


def _made_by_an_older_version(home: Path, kept: Mapping[str, Any]) -> dict[str, list[str]]:
    """What a version that kept no record of it made: that follows from the ports and passwords it kept."""
    made: dict[str, list[str]] = {}
    if "control.password" in kept:
        port = kept["control.port"]
        made[DATABASE_URL] = [servers.postgres_dsn(port, kept["control.password"])]  # before there was a service role
        if "service.password" in kept:
            made[DATABASE_URL].append(servers.postgres_dsn(port, kept["service.password"], user=SERVICE_ROLE))
    if "broker.port" in kept:
        made[BROKER_URL] = [servers.valkey_url(kept["broker.port"], kept.get("broker.password", ""))]
    if "pg-main.password" in kept:
        made[PG_MAIN_DSN] = [servers.postgres_dsn(kept["pg-main.port"], kept["pg-main.password"])]
        made[BACKENDS] = [str(home / "backends.toml")]
    if "redis-main.port" in kept:
        made[REDIS_MAIN_URL] = [servers.valkey_url(kept["redis-main.port"], kept.get("redis-main.password", ""))]
    if "credentials_key" in kept:
        made[CREDENTIALS_KEY] = [kept["credentials_key"]]
    return made
