"""One frozen Settings, read once from the environment; and the backends file it points to."""

import difflib
import ipaddress
import json
import os
import re
import shlex
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, ValidationError, convert

from outbox.errors import SettingsError
from outbox.states import SnapshotPolicy

PREFIX = "DEPROVISIONER_"


# What is needed and has no default, as the error says it that names it.
_MEANS = {
    "database_url": "the control database, `postgresql://user:password@host:port/name`",
    "broker_url": "the Celery broker, `redis://…` or `amqp://…`; carries only wake-ups",
    "backends": "path of the TOML file that lists the backends",
    "credentials_key": "Fernet key(s) that encrypt stored credentials, newest first, separated by commas",
}


class Settings(Struct, frozen=True):
    """Everything that can be set. Each field is `DEPROVISIONER_<NAME>` in the environment."""

    database_url: str = ""
    broker_url: str = ""
    backends: Path | None = None
    credentials_key: str = ""
    home: Path = Path(".deprovisioner")  # where `up` keeps its servers, logs and `env`
    api_host: str = "127.0.0.1"
    api_port: Annotated[int, Meta(ge=1, le=65535)] = 8080
    # Written by `up` for scripts; the product itself does not read these three.
    api_url: str = ""
    operator_token: str = ""
    tenant_token: str = ""
    service_password: str = ""  # the one that `migrate --service-role` gives that role
    prepared_statements: bool = True  # false behind a pooler in transaction mode
    worker_slots: Annotated[int, Meta(ge=1, le=256)] = 8  # how many jobs one worker process runs at once
    lease_seconds: Annotated[float, Meta(ge=1, le=3600)] = 30  # how long a claim is presumed alive without a heartbeat
    sweep_seconds: Annotated[float, Meta(ge=0.2, le=600)] = 5  # how often every worker looks for due and lost jobs
    max_attempts: Annotated[int, Meta(ge=1, le=1000)] = 10  # before a job is stuck; stored in the job
    backoff_base_seconds: Annotated[float, Meta(gt=0, le=3600)] = 2  # the first retry waits at most this
    backoff_max_seconds: Annotated[float, Meta(gt=0, le=86400)] = 300  # no retry waits longer than this

    def need(self, name: str) -> str:
        """The value of a setting that has no default; SettingsError when it is not set."""
        value = getattr(self, name)
        if not value:
            raise SettingsError(
                f"{PREFIX}{name.upper()} is not set: {_MEANS[name]}. "
                "`deprovisioner up` writes one into its home's `env` file: load that (`set -a; . HOME/env; set +a`) or "
                "run this in the folder where `up` was started"
            )
        return str(value)

    @property
    def lease(self) -> timedelta:
        """The lease as the database takes it."""
        return timedelta(seconds=self.lease_seconds)


@dataclass(frozen=True)
class Brake:
    """At most `limit` teardowns, and `max_percent` of what lives, of one backend or tenant within `window`."""

    scope: Literal["backend", "tenant"]
    subject: str
    limit: int
    window: timedelta
    max_percent: int = 100

    def __str__(self) -> str:
        """As it is written in the backends file, and whose it is."""
        return f"{self.limit}/{spell(int(self.window.total_seconds()))} of {self.scope} {self.subject}"


@dataclass(frozen=True)
class TenantConfig:
    """What limits one tenant; None is no limit.

    `max_resources` counts what is not deleted, `max_pending` what is being provisioned or deleted.
    """

    brake: Brake | None = None
    max_resources: int | None = None
    max_pending: int | None = None


# Who may purge: one operator, or only two.
ONE, TWO = "operators", "two operators"


@dataclass(frozen=True)
class BackendConfig:
    """One table of the backends file, without its `dsn`: the API has these too, and must not have an address."""

    name: str
    kind: str
    concurrency: int
    brake: Brake | None = None
    adoption: str = "operators"
    grace: timedelta = timedelta(0)  # how long a deleted resource can be restored
    min_grace: timedelta = timedelta(0)  # less is only for who may purge; a table without it has its `grace`
    snapshot: SnapshotPolicy = SnapshotPolicy.OFF
    snapshot_store: str | None = None  # where snapshots go: `file:/path` or `s3://bucket/prefix?endpoint=URL`
    snapshot_keep: timedelta = timedelta(days=30)  # how long after the destruction
    snapshot_server: str | None = None  # the backend that a snapshot is restored on for its proof; None: its own
    purge: str = ONE
    options: Mapping[str, Any] = field(default_factory=dict)  # the keys of OPTIONS that the table has, checked


def read_env(path: Path) -> dict[str, str]:
    """The `NAME=value` lines of an `env` file, as `deprovisioner up` writes it."""
    words = shlex.split(path.read_text())
    return dict(word.split("=", 1) for word in words if "=" in word)


def load() -> Settings:
    """Settings from the environment. Raises SettingsError."""
    known = {PREFIX + name.upper(): name for name in Settings.__struct_fields__}
    for variable in os.environ:
        if variable.startswith(PREFIX) and variable not in known:
            close = difflib.get_close_matches(
                variable.removeprefix(PREFIX), [n.removeprefix(PREFIX) for n in known], n=1, cutoff=0.5
            )
            hint = f"did you mean {PREFIX}{close[0]}?" if close else f"known: {', '.join(sorted(known))}"
            raise SettingsError(f"{variable} is not a setting; {hint}")
    said = {name: os.environ[variable] for variable, name in known.items() if variable in os.environ}
    if said.get("broker_url") and "://" not in said["broker_url"]:  # Celery would take it for a host's name
        raise SettingsError(f"{PREFIX}BROKER_URL={said['broker_url']!r}: must be a URL, `redis://…` or `amqp://…`")
    try:
        return convert(said, Settings, strict=False, dec_hook=lambda kind, value: kind(value))
    except UnicodeEncodeError as error:
        name = next(name for name, value in said.items() if value == error.object)
        raise SettingsError(f"{PREFIX}{name.upper()}={error.object!r}: it is not UTF-8") from error
    except ValidationError as error:
        wrong, _, where = str(error).partition(" - at `$.")
        name = where.rstrip("`")
        raise SettingsError(f"{PREFIX}{name.upper()}={said[name]!r}: {wrong}") from error


@lru_cache(maxsize=1)
def get() -> Settings:
    """This process's settings, read once."""
    return load()


@lru_cache(maxsize=1)
def backends() -> dict[str, BackendConfig]:
    """The configured backends by name, read once."""
    return read_backends(Path(get().need("backends")))


@lru_cache(maxsize=1)
def _tenants() -> dict[str, TenantConfig]:
    return read_tenants(Path(get().need("backends")))


def tenant(name: str) -> TenantConfig:
    """What limits this tenant: each key from its own table, or else from that of every tenant (`"*"`)."""
    own, every = (_tenants().get(each, TenantConfig()) for each in (name, EVERY_TENANT))
    brake = own.brake or every.brake
    most = {key: getattr(every if getattr(own, key) is None else own, key) for key in ("max_resources", "max_pending")}
    return TenantConfig(replace(brake, subject=name) if brake else None, **most)


def brakes(backend: str, of_tenant: str) -> list[Brake]:
    """The brakes over a teardown: its backend's, and its tenant's."""
    config = backends().get(backend)
    found = [config.brake if config else None, tenant(of_tenant).brake]
    return [brake for brake in found if brake is not None]


def strictest() -> BackendConfig:
    """What counts for the resources of a backend that this process's file does not have."""
    configured = backends().values()
    grace = max(config.grace for config in configured)
    two = any(config.purge == TWO for config in configured)
    return BackendConfig("", "", 1, grace=grace, min_grace=grace, purge=TWO if two else ONE)


EVERY_TENANT = "*"
# What a brake counts is kept for twice its window.
LONGEST_WINDOW = timedelta(days=30)
LONGEST_GRACE = timedelta(days=3650)
# A create counts up to its tenant's limit.
MOST_OF_A_TENANT = 1_000_000
_TABLES = {"backends", "tenants"}
_TENANT_KEYS = {"brake", "max_percent", "max_resources", "max_pending"}
SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")


def _is_host(value: Any) -> bool:
    if not isinstance(value, str):
        return False
    try:
        return bool(ipaddress.ip_address(value))
    except ValueError:
        return _HOST_NAME.match(value) is not None


def _is_port(value: Any) -> bool:
    return type(value) is int and 1 <= value <= 65535


# By key: whether a value is right, and what is right in words. A worker hands them to the backends whose kind names
# them in `options`; see deprovisioner/sdk.py.
_HOST_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,252})\Z")
OPTIONS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "public_host": (_is_host, "a host name or an IP address (IPv6 without brackets), with no port"),
    "public_port": (_is_port, "a whole number from 1 to 65535"),
    "sslmode": (lambda value: value in SSL_MODES, f"one of {', '.join(SSL_MODES)}"),
    # How many sessions the role of a new database may have.
    "connection_limit": (lambda value: type(value) is int and 1 <= value <= 10_000, "a whole number from 1 to 10000"),
    # How many of its objects are destroyed at once, for the sake of the server's other customers.
    "pace": (lambda value: type(value) is int and 1 <= value <= 100, "a whole number from 1 to 100"),
    # Customers of a Redis may run scripts, and so stop the server.
    "scripting": (lambda value: type(value) is bool, "true or false"),
    # Provisions are allowed on a Redis that forgets its ACL users at a restart.
    "volatile_users": (lambda value: type(value) is bool, "true or false"),
}
_KEYS = {
    "kind",
    "dsn",
    "grace",
    "min_grace",
    "snapshot",
    "snapshot_store",
    "snapshot_keep",
    "snapshot_server",
    "purge",
    "brake",
    "max_percent",
    "concurrency",
    "adoption",
    *OPTIONS,
}
_BRAKE = re.compile(r"^([1-9]\d{0,8})/([1-9]\d{0,6})([smhd])$")
# The first word of each is the default. Adoption gives the right to delete: a tenant must not get it over an object by
# naming it.
_CHOICES = {
    "adoption": ("operators", "tenants"),
    "snapshot": ("off", "required"),
    "purge": (ONE, TWO),
}
_STORE = re.compile(r"file:/[^?#]*\Z|s3://[^/?#]+(/[^?#]*)?(\?[^#]*)?\Z")
SPAN = "^(0|[1-9][0-9]{0,8})([smhd])$"
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_SIZES = ((86_400, "d"), (3_600, "h"), (60, "m"), (1, "s"))


def read_backends(path: Path) -> dict[str, BackendConfig]:
    """The tables [backends.NAME] of a backends file; SettingsError names the file, the backend and the wrong key."""
    tables = read_file(path).get("backends", {})
    if not isinstance(tables, dict) or not tables:
        raise SettingsError(f"{PREFIX}BACKENDS: {path} has no table [backends.NAME]")
    found = {name: _backend(path, name, table) for name, table in tables.items()}
    for name, config in found.items():
        if config.snapshot_server is not None and (
            config.snapshot_server not in found or found[config.snapshot_server].kind != config.kind
        ):
            raise SettingsError(
                f"{path}: [backends.{name}]: 'snapshot_server' must name a backend of kind {config.kind!r} in this"
                f" file, not {config.snapshot_server!r}"
            )
    return found


def address_variables(path: Path) -> set[str]:
    """The names of the variables that a backends file takes addresses from: NAME of each `dsn = "env:NAME"`."""
    read_backends(path)  # both raise SettingsError for a file that is not one
    read_tenants(path)
    found = (variable_of(table["dsn"]) for table in read_file(path)["backends"].values())
    return {variable for variable in found if variable is not None}


def variable_of(dsn: str) -> str | None:
    """NAME of `env:NAME`, None for a literal address."""
    return dsn.removeprefix("env:") if dsn.startswith("env:") else None


def read_tenants(path: Path) -> dict[str, TenantConfig]:
    """The tables [tenants.NAME] of a backends file; `"*"` stands for every other tenant."""
    tables = read_file(path).get("tenants", {})
    if not isinstance(tables, dict) or not all(isinstance(table, dict) for table in tables.values()):
        raise SettingsError(f'{path}: limits of tenants are tables [tenants.NAME], or [tenants."*"] for every other')
    return {name: _tenant(f"{path}: [tenants.{name}]", name, table) for name, table in tables.items()}


def _tenant(where: str, name: str, table: dict[str, Any]) -> TenantConfig:
    if unknown := set(table) - _TENANT_KEYS:
        raise SettingsError(f"{where}: unknown key {sorted(unknown)[0]!r}; known: {', '.join(sorted(_TENANT_KEYS))}")
    brake = _brake(where, "tenant", name, table)
    most = {key: table.get(key) for key in ("max_resources", "max_pending")}
    for key, value in most.items():
        if value is not None and (type(value) is not int or not 0 <= value <= MOST_OF_A_TENANT):
            raise SettingsError(f"{where}: {key!r} must be a whole number from 0 to {MOST_OF_A_TENANT}, not {value!r}")
    found = TenantConfig(brake, **most)
    if found == TenantConfig():
        raise SettingsError(
            f"{where}: it limits nothing; set 'brake', such as \"50/10m\", 'max_resources' or 'max_pending'"
        )
    return found


def read_file(path: Path) -> dict[str, Any]:
    """The tables of a backends file, unchecked but for their names. Raises SettingsError."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{PREFIX}BACKENDS: cannot read {path}: {error}") from error
    if unknown := set(tables) - _TABLES:
        raise SettingsError(f"{path}: unknown table [{sorted(unknown)[0]}]; known: {', '.join(sorted(_TABLES))}")
    return tables


def _backend(path: Path, name: str, table: Any) -> BackendConfig:
    def wrong(text: str) -> SettingsError:
        return SettingsError(f"{path}: [backends.{name}]: {text}")

    if not isinstance(table, dict):
        raise wrong("must be a table")
    if unknown := set(table) - _KEYS:
        raise wrong(f"unknown key {sorted(unknown)[0]!r}; known: {', '.join(sorted(_KEYS))}")
    for key in ("kind", "dsn"):
        if not isinstance(table.get(key), str) or not table[key]:
            raise wrong(f"{key!r} must be a string that is not empty")
    concurrency = table.get("concurrency", 4)
    if type(concurrency) is not int or concurrency < 1:
        raise wrong(f"'concurrency' must be a whole number from 1, not {concurrency!r}")
    brake = _brake(f"{path}: [backends.{name}]", "backend", name, table)
    chosen = {key: table.get(key, words[0]) for key, words in _CHOICES.items()}
    for key, value in chosen.items():
        if value not in _CHOICES[key]:
            raise wrong(f"{key!r} must be {' or '.join(map(json.dumps, _CHOICES[key]))}, not {value!r}")
    options = {key: table[key] for key in OPTIONS if key in table}
    for key, value in options.items():
        right, words = OPTIONS[key]
        if not right(value):
            raise wrong(f"{key!r} must be {words}, not {value!r}")
    return BackendConfig(
        name,
        table["kind"],
        concurrency,
        brake,
        adoption=chosen["adoption"],
        snapshot=SnapshotPolicy(chosen["snapshot"]),
        purge=chosen["purge"],
        options=options,
        **_graces(f"{path}: [backends.{name}]", table),
        **_snapshots(f"{path}: [backends.{name}]", table),
    )


def _snapshots(where: str, table: dict[str, Any]) -> dict[str, Any]:
    store, server = table.get("snapshot_store"), table.get("snapshot_server")
    if store is not None and (not isinstance(store, str) or not _STORE.match(store)):
        raise SettingsError(
            f'{where}: \'snapshot_store\' must look like "file:/path" or "s3://bucket/prefix?endpoint=URL",'
            f" not {store!r}"
        )
    if store is None and table.get("snapshot") == "required":
        raise SettingsError(f"{where}: 'snapshot' is \"required\", so 'snapshot_store' must say where snapshots go")
    if server is not None and (not isinstance(server, str) or not server):
        raise SettingsError(f"{where}: 'snapshot_server' must name a backend of this file, not {server!r}")
    try:
        keep = span(table.get("snapshot_keep", "30d"))
    except ValueError as error:
        raise SettingsError(f"{where}: 'snapshot_keep' {error}") from None
    return {"snapshot_store": store, "snapshot_keep": keep, "snapshot_server": server}


def _graces(where: str, table: dict[str, Any]) -> dict[str, Any]:
    found = {}
    for key in ("grace", "min_grace"):
        try:
            found[key] = span(table.get(key, table.get("grace", "0s")))
        except ValueError as error:
            raise SettingsError(f"{where}: {key!r} {error}") from None
    if found["min_grace"] > found["grace"]:
        raise SettingsError(f"{where}: 'min_grace' must not be longer than 'grace'")
    return found


def span(value: Any) -> timedelta:
    """The time that `"90s"`, `"10m"`, `"12h"` or `"7d"` says, at most LONGEST_GRACE. Raises ValueError."""
    match = re.fullmatch(SPAN.strip("^$"), value) if isinstance(value, str) else None
    if match is None or (found := timedelta(**{_UNITS[match[2]]: int(match[1])})) > LONGEST_GRACE:
        raise ValueError(
            f'must look like "0s", "90s", "10m", "12h" or "7d", and be at most {LONGEST_GRACE.days} days, not {value!r}'
        )
    return found


def spell(seconds: int) -> str:
    """A time as `span` reads it: `10m` for 600."""
    size, unit = next((size, unit) for size, unit in _SIZES if (seconds and seconds % size == 0) or size == 1)
    return f"{seconds // size}{unit}"


def _brake(where: str, scope: Literal["backend", "tenant"], subject: str, table: dict[str, Any]) -> Brake | None:
    percent = table.get("max_percent", 100)
    if type(percent) is not int or not 1 <= percent <= 100:
        raise SettingsError(f"{where}: 'max_percent' must be a whole number from 1 to 100, not {percent!r}")
    if "brake" not in table:
        if "max_percent" in table:
            raise SettingsError(f"{where}: 'max_percent' needs a 'brake', whose window it is counted in")
        return None
    match = _BRAKE.match(str(table["brake"]))
    if match is None:
        raise SettingsError(f"{where}: 'brake' must look like \"50/10m\", not {table['brake']!r}")
    window = timedelta(**{_UNITS[match[3]]: int(match[2])})
    if window > LONGEST_WINDOW:
        raise SettingsError(f"{where}: 'brake' may look back over at most {LONGEST_WINDOW.days} days")
    return Brake(scope, subject, int(match[1]), window, percent)
