"""The credentials that customers are given: clients can read them, and they open what they name."""

import shutil
import socket
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg2
import pytest
import redis
from psycopg2 import extensions

from deprovisioner.up import servers as embedded
from outbox import settings
from outbox.errors import Refused, SettingsError
from tests.support import redis_servers
from tests.support.servers import Servers, server_folder, use_environment
from worker import backends
from worker.backends.postgres import Postgres
from worker.backends.postgres import endpoint as postgres_endpoint
from worker.backends.redis import Redis
from worker.backends.redis import endpoint as redis_endpoint

ODD = {"database": "db/é?", "user": "us@er:1", "password": "p%a ss/#&[?"}


@pytest.mark.parametrize(
    ("dsn", "reached", "public", "wanted"),
    [
        ("postgresql://s:x@db:6000/postgres", ("db", 6000), {}, {"host": "db", "port": "6000"}),
        ("host=/run/pg port=6000", ("/run/pg", 6000), {}, {"host": "/run/pg", "port": "6000"}),
        ("host=/run/a%20b", ("/run/a%20b", 5432), {}, {"host": "/run/a%20b", "port": "5432"}),
        ("", ("/var/run/postgresql", 5432), {}, {"host": "/var/run/postgresql", "port": "5432"}),
        ("host=@abstract", ("@abstract", 5432), {}, {"host": "@abstract", "port": "5432"}),
        ("postgresql://s@[::1]:6000/x", ("::1", 6000), {}, {"host": "::1", "port": "6000"}),
        ("host=fe80::1%eth0", ("fe80::1%eth0", 5432), {}, {"host": "fe80::1%eth0", "port": "5432"}),
        ("hostaddr=10.0.0.1 port=6000", ("10.0.0.1", 6000), {}, {"host": "10.0.0.1", "port": "6000"}),
        ("host=a,b port=1,2", ("b", 2), {}, {"host": "a,b", "port": "1,2"}),
        ("host=a,::1 port=6", ("a", 6), {}, {"host": "a,::1", "port": "6,6"}),
        ("host=a,b", ("a", 5432), {}, {"host": "a,b", "port": "5432,5432"}),
        ("host=a,/tmp port=1,2", ("a", 1), {}, {"host": "a,/tmp", "port": "1,2"}),
        (
            "postgresql://s@a:1,b:2/x?target_session_attrs=read-write&sslmode=require",
            ("a", 1),
            {},
            {"host": "a,b", "port": "1,2", "target_session_attrs": "read-write", "sslmode": "require"},
        ),
        ("host=a sslmode=verify-full", ("a", 5432), {}, {"host": "a", "port": "5432", "sslmode": "verify-full"}),
        ("host=a sslmode=disable", ("a", 5), {"sslmode": "require"}, {"host": "a", "port": "5", "sslmode": "require"}),
        ("host=/tmp", ("/tmp", 5), {"host": "db.example.com"}, {"host": "db.example.com", "port": "5"}),
        ("host=a,b port=1,2", ("b", 2), {"host": "2001:db8::1"}, {"host": "2001:db8::1", "port": "2"}),
        ("host=a,b port=1,2", ("b", 2), {"port": 7}, {"host": "a,b", "port": "7,7"}),
        ("host=a", ("a", 5), {"host": "c", "port": 7}, {"host": "c", "port": "7"}),
    ],
)
def test_libpq_reads_back_every_part_of_a_customers_dsn(
    dsn: str, reached: tuple[str, int], public: dict[str, Any], wanted: dict[str, str]
) -> None:
    given = postgres_endpoint.credentials(
        extensions.parse_dsn(dsn), postgres_endpoint.Public(**public), reached=reached, **ODD
    )
    opened = {"dbname": ODD["database"], "user": ODD["user"], "password": ODD["password"]}
    assert extensions.parse_dsn(given["dsn"]) == wanted | opened
    assert (given["host"], given["port"]) == (public.get("host", reached[0]), public.get("port", reached[1]))


@pytest.mark.parametrize(
    ("url", "public", "kind", "wanted"),
    [
        ("redis://h:7/3", {}, redis.Connection, {"host": "h", "port": 7, "db": 3}),
        ("redis://h", {}, redis.Connection, {"host": "h", "port": 6379, "db": 0}),
        ("rediss://h:7/3", {}, redis.SSLConnection, {"host": "h", "port": 7, "db": 3}),
        ("redis://[::1]:7/0", {}, redis.Connection, {"host": "::1", "port": 7, "db": 0}),
        ("unix:///run/a%20b.sock?db=2", {}, redis.UnixDomainSocketConnection, {"path": "/run/a b.sock", "db": 2}),
        ("unix:///s", {"host": "h", "port": 7}, redis.Connection, {"host": "h", "port": 7, "db": 0}),
        ("redis://h:7/0", {"sslmode": "require"}, redis.SSLConnection, {"host": "h", "port": 7, "db": 0}),
        ("rediss://h:7/0", {"sslmode": "disable"}, redis.Connection, {"host": "h", "port": 7, "db": 0}),
        ("redis://h:7/0", {"host": "2001:db8::1"}, redis.Connection, {"host": "2001:db8::1", "port": 7, "db": 0}),
    ],
)
def test_a_redis_client_reads_back_every_part_of_a_customers_url(
    url: str, public: dict[str, Any], kind: type, wanted: dict[str, Any]
) -> None:
    own = redis.ConnectionPool.from_url(url)
    given = redis_endpoint.credentials(
        own.connection_kwargs,
        redis_endpoint.Public(**public),
        tls=issubclass(own.connection_class, redis.SSLConnection),
        user=ODD["user"],
        password=ODD["password"],
        prefix="p:",
    )
    read = redis.ConnectionPool.from_url(given["url"])
    assert read.connection_class is kind
    opened = {"username": ODD["user"], "password": ODD["password"]}
    told = {key: read.connection_kwargs.get(key, 0) for key in wanted | opened}
    assert told == wanted | opened


def _ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    folder = server_folder("endpoints")
    yield folder
    shutil.rmtree(folder)


@pytest.mark.skipif(not _ipv6(), reason="this machine has no IPv6 loopback")
def test_customers_log_in_to_postgresql_over_ipv6_and_over_a_socket(home: Path) -> None:
    port = embedded.free_port()
    sockets = str(home / "pg")  # the server may write nowhere else
    options = {"listen_addresses": "::1", "unix_socket_directories": sockets, "fsync": "off"}
    child = embedded.postgres(home, "pg", port, "secret", options)
    child.spawn()
    try:
        hosts = ("::1", sockets, f"{home}/none,::1")
        child.wait_until(lambda: embedded.postgres_ready(f"host=::1 port={port} user=postgres password=secret"))
        for host in hosts:
            backend = Postgres(f"host={host} port={port} user=postgres password=secret dbname=postgres")
            plan = backend.plan(uuid.uuid4(), uuid.uuid4())
            manifest = backend.provision(plan.manifest, plan.credentials)
            with closing(psycopg2.connect(plan.credentials["dsn"])) as customer, customer.cursor() as cursor:
                cursor.execute("SELECT current_user, current_database()")
                assert cursor.fetchone() == (manifest["role"], manifest["database"])
    finally:
        child.stop()


@pytest.mark.skipif(not _ipv6(), reason="this machine has no IPv6 loopback")
def test_customers_log_in_to_valkey_over_ipv6_and_over_a_socket(home: Path) -> None:
    port, path = embedded.free_port(), home / "valkey" / "valkey.sock"
    child = embedded.valkey(home, "valkey", port, durable=True)
    with (home / "valkey.conf").open("a") as file:
        file.write(f"bind 127.0.0.1 ::1\nunixsocket {path}\n")
    child.spawn()
    try:
        child.wait_until(lambda: embedded.valkey_ready(f"redis://127.0.0.1:{port}"))
        for url in (f"redis://[::1]:{port}/0", f"unix://{path}?db=0"):
            backend = Redis(url)
            plan = backend.plan(uuid.uuid4(), uuid.uuid4())
            backend.provision(plan.manifest, plan.credentials)
            with closing(redis.Redis.from_url(plan.credentials["url"])) as customer:
                assert customer.set(f"{plan.manifest['prefix']}k", "v")
    finally:
        child.stop()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('public_host = "db:5432"', "'public_host' must be a host name"),
        ('public_host = "[::1]"', "'public_host' must be a host name"),
        ('public_host = "a,b"', "'public_host' must be a host name"),
        ('public_host = ""', "'public_host' must be a host name"),
        ("public_host = 5", "'public_host' must be a host name"),
        ("public_port = 0", "'public_port' must be a whole number from 1 to 65535"),
        ("public_port = true", "'public_port' must be a whole number from 1 to 65535"),
        ('public_port = "5432"', "'public_port' must be a whole number from 1 to 65535"),
        ('sslmode = "on"', "'sslmode' must be one of disable"),
        ("sslmode = []", "'sslmode' must be one of disable"),
        ("connection_limit = 0", "'connection_limit' must be a whole number from 1 to 10000"),
        ("connection_limit = true", "'connection_limit' must be a whole number from 1 to 10000"),
        ('scripting = "yes"', "'scripting' must be true or false"),
        ('volatile_users = "yes"', "'volatile_users' must be true or false"),
        ("volatile_users = 1", "'volatile_users' must be true or false"),
    ],
)
def test_a_malformed_option_names_file_backend_and_key(tmp_path: Path, line: str, words: str) -> None:
    path = tmp_path / "backends.toml"
    path.write_text(f'[backends.x]\nkind = "postgres"\ndsn = "host=a"\n{line}\n')
    with pytest.raises(SettingsError) as error:
        settings.read_backends(path)
    assert f"{path}: [backends.x]: {words}" in str(error.value)


def _build(settled: dict[str, str], monkeypatch: pytest.MonkeyPatch, path: Path, lines: str) -> Any:
    path.write_text(f"[backends.x]\n{lines}\n")
    use_environment(monkeypatch, settled | {"DEPROVISIONER_BACKENDS": str(path)})
    return backends.build(settings.backends()["x"], protected=frozenset())


def test_customers_are_given_the_public_address_of_the_backends_file(
    settled: dict[str, str], servers: Servers, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    public = 'public_host = "db.example.com"\npublic_port = 7777\nsslmode = "require"'
    pg = _build(settled, monkeypatch, tmp_path / "a", f'kind = "postgres"\ndsn = "{servers.pg.dsn}"\n{public}')
    dsn = pg.plan(uuid.uuid4(), uuid.uuid4()).credentials["dsn"]
    read = extensions.parse_dsn(dsn)
    assert (read["host"], read["port"], read["sslmode"]) == ("db.example.com", "7777", "require")
    cache = _build(settled, monkeypatch, tmp_path / "b", f'kind = "redis"\ndsn = "{servers.redis.url}"\n{public}')
    url = cache.plan(uuid.uuid4(), uuid.uuid4()).credentials["url"]
    assert url.startswith("rediss://")
    assert "@db.example.com:7777/" in url


def test_an_sslmode_that_redis_has_no_url_for_is_refused(
    settled: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match="backend 'x': 'sslmode' 'prefer' has no meaning for Redis"):
        _build(settled, monkeypatch, tmp_path / "a", 'kind = "redis"\ndsn = "redis://h"\nsslmode = "prefer"')


def test_volatile_users_of_the_backends_file_allows_a_server_that_forgets_its_users(
    settled: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with redis_servers.running("valkey", tmp_path / "own", aclfile=False) as server:
        lines = f'kind = "redis"\ndsn = "{server.service_dsn}"\nvolatile_users = '
        with pytest.raises(Refused, match="does not keep its ACL users"):
            _build(settled, monkeypatch, tmp_path / "a", f"{lines}false").plan(uuid.uuid4(), uuid.uuid4())
        assert _build(settled, monkeypatch, tmp_path / "b", f"{lines}true").plan(uuid.uuid4(), uuid.uuid4()).manifest
