"""Only a worker has a backend's address."""

import gc
import sys
from pathlib import Path

import pytest

from outbox import settings
from outbox.errors import SettingsError
from tests.support.servers import use_environment
from worker.backends.addresses import address_of

SECRET = "hunter2-of-pg-main"
BACKENDS = f"""
[backends.pg-main]
kind = "postgres"
dsn = "postgresql://service:{SECRET}@db.internal:5432/postgres"
brake = "50/10m"

[backends.redis-main]
kind = "redis"
dsn = "env:REDIS_X_URL"

[tenants."*"]
brake = "10/1h"
"""


@pytest.fixture
def backends(settled: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "literal.toml"
    path.write_text(BACKENDS)
    use_environment(monkeypatch, settled | {"DEPROVISIONER_BACKENDS": str(path)})
    return path


def reachable(root: object) -> list[object]:
    """Everything that can be reached from an object, but for modules and classes, from which all can be."""
    seen: dict[int, object] = {}
    waiting = [root]
    while waiting:
        one = waiting.pop()
        if id(one) not in seen and not isinstance(one, type | type(sys)):
            seen[id(one)] = one
            waiting += gc.get_referents(one)
    return list(seen.values())


def test_the_settings_that_the_api_reads_keep_no_address(backends: Path) -> None:
    configured = settings.backends()
    brakes = settings.brakes("pg-main", "acme")
    assert {name: config.kind for name, config in configured.items()} == {"pg-main": "postgres", "redis-main": "redis"}
    for kept in (settings.get(), configured, brakes):
        strings = [one for one in reachable(kept) if isinstance(one, str)]
        assert strings
        assert not [one for one in strings if SECRET in one or "db.internal" in one or "REDIS_X_URL" in one]
        assert SECRET not in repr(kept)


def test_a_literal_address_is_read_by_a_worker(backends: Path) -> None:
    assert address_of("pg-main") == f"postgresql://service:{SECRET}@db.internal:5432/postgres"


def test_an_address_in_a_variable_is_its_value(backends: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_X_URL", "redis://cache.internal")
    assert address_of("redis-main") == "redis://cache.internal"


@pytest.mark.parametrize("value", [None, ""])
def test_a_variable_that_is_not_set_is_named(
    backends: Path, monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    monkeypatch.delenv("REDIS_X_URL", raising=False)
    if value is not None:
        monkeypatch.setenv("REDIS_X_URL", value)
    with pytest.raises(SettingsError, match="REDIS_X_URL is not set: backend 'redis-main'"):
        address_of("redis-main")


def test_a_backend_that_is_no_longer_in_the_file_is_named(backends: Path) -> None:
    with pytest.raises(SettingsError, match=r"no longer has a table \[backends\.mysql-main\]"):
        address_of("mysql-main")


def test_the_variables_of_addresses_are_listed(backends: Path) -> None:
    assert settings.address_variables(backends) == {"REDIS_X_URL"}
