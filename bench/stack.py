"""The servers and processes that are measured: PostgreSQL, Valkey, API and workers, in a temporary home.

A second PostgreSQL and a second Valkey are the backends of the real teardowns. They start only when they are needed.
"""

import os
import secrets
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil

from deprovisioner.up import accounts, servers
from deprovisioner.up.servers import Child
from outbox import credentials
from outbox.settings import PREFIX

BACKEND = "noop"
TENANT = "bench"
PRODUCT = (sys.executable, "-m", "deprovisioner.cli")
NOOP_WORKER = (sys.executable, "-m", "bench.noop_worker")


class Stack:
    """The running servers; `api()` and `workers()` run the product's processes for the time of a measure."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.token = ""
        self.password = secrets.token_urlsafe(18)
        ports = [servers.free_port() for _ in range(5)]
        self.postgres_port, self.broker_port, self.api_port, self.pg_main_port, self.redis_main_port = ports
        self.dsn = servers.postgres_dsn(self.postgres_port, self.password)
        self.broker_url = servers.valkey_url(self.broker_port)
        # The product and the bare loop have the documented accounts; the administrators prepare and look.
        self.pg_main_admin_dsn = servers.postgres_dsn(self.pg_main_port, self.password)
        self.redis_main_admin_url = servers.valkey_url(self.redis_main_port, self.password)
        self.pg_main_dsn = self.redis_main_url = ""  # once `real_backends` runs

    @contextmanager
    def api(self, processes: int = 1) -> Iterator[psutil.Process]:
        """Run `deprovisioner api --processes N`; yields its main process once every process serves."""
        name = f"api-{time.monotonic_ns()}"
        child = Child(name, [*PRODUCT, "api", "--processes", str(processes)], self.home / "log" / f"{name}.log")
        with _running(child):
            child.wait_until(lambda: child.log.read_text().count("Application startup complete") == processes)
            assert child.process is not None
            yield psutil.Process(child.process.pid)

    @contextmanager
    def workers(
        self,
        processes: int,
        slots: int,
        *,
        argv: Sequence[str] = NOOP_WORKER,
        backends: Path | None = None,
        more: Mapping[str, str] | None = None,
    ) -> Iterator[None]:
        """Run worker processes; yields when all are ready. Without a backends file they serve the no-op backend."""
        env = os.environ | {f"{PREFIX}WORKER_SLOTS": str(slots)} | dict(more or {})
        if backends:
            env[f"{PREFIX}BACKENDS"] = str(backends)
        names = [f"worker-{time.monotonic_ns()}-{number}" for number in range(processes)]
        children = [Child(name, argv, self.home / "log" / f"{name}.log", env=env) for name in names]
        with ExitStack() as running:
            for child in children:
                running.enter_context(_running(child))
            for child in children:
                child.wait_until(lambda log=child.log: '"worker_ready"' in log.read_text())
            yield

    @contextmanager
    def real_backends(self, settings: Mapping[str, str] | None = None) -> Iterator[None]:
        """Run the backends of the real teardowns with the settings of `deprovisioner up`: their data is on disk.

        `settings` are further ones of PostgreSQL.
        """
        with (
            _postgres(self.home, "pg-main", self.pg_main_port, self.password, settings),
            _valkey(self.home, "redis-main", self.redis_main_port, self.password),
        ):
            self.pg_main_dsn = accounts.postgres(self.pg_main_admin_dsn, self.password)
            self.redis_main_url = accounts.valkey(self.redis_main_admin_url, self.password)
            yield

    def backends(self, name: str, kind: str, dsn: str, concurrency: int, file: str = "") -> Path:
        """Write a backends file with a single backend: beside others it would not get all slots of a worker."""
        path = self.home / (file or f"{name}.toml")
        path.write_text(f'[backends.{name}]\nkind = "{kind}"\ndsn = "{dsn}"\nconcurrency = {concurrency}\n')
        return path

    def environment(self) -> dict[str, str]:
        """The settings of the product's processes, without any of the caller's own installation."""
        ours = {
            "DATABASE_URL": self.dsn,
            "BROKER_URL": self.broker_url,
            # So high that only the number of slots limits how many jobs run at once.
            "BACKENDS": str(self.backends(BACKEND, "noop", "none", 1000, file="backends.toml")),
            "CREDENTIALS_KEY": credentials.new_key(),
            "HOME": str(self.home),
            "API_PORT": str(self.api_port),
        }
        return {PREFIX + name: value for name, value in ours.items()}


@contextmanager
def stack(settings: Mapping[str, str] | None = None) -> Iterator[Stack]:
    """Start the servers, migrate the schema, create a tenant's token; stop and remove everything at the end.

    `settings` are for the control database's PostgreSQL, where its defaults do not suit the measure.
    """
    with (
        tempfile.TemporaryDirectory(prefix="deprovisioner-bench-", ignore_cleanup_errors=True) as home,
        ExitStack() as up,
    ):
        os.chmod(home, 0o711)  # if we are root, PostgreSQL runs as another user
        made = Stack(Path(home))
        for name in [name for name in os.environ if name.startswith(PREFIX)]:
            del os.environ[name]
        os.environ |= made.environment()
        os.environ["PYTHONPATH"] = str(Path(__file__).parent.parent)
        merged = {"track_commit_timestamp": "on", **(settings or {})}
        up.enter_context(_postgres(made.home, "control", made.postgres_port, made.password, merged))
        up.enter_context(_valkey(made.home, "broker", made.broker_port))
        made.token = _prepare()
        yield made


@contextmanager
def _postgres(
    home: Path, name: str, port: int, password: str, settings: Mapping[str, str] | None = None
) -> Iterator[None]:
    server = servers.postgres(home, name, port, password, settings)
    with _running(server):
        server.wait_until(lambda: servers.postgres_ready(servers.postgres_dsn(port, password)))
        yield


@contextmanager
def _valkey(home: Path, name: str, port: int, password: str = "") -> Iterator[None]:
    """With a password: a backend, which keeps keys and users on disk. Without: the broker, which keeps nothing."""
    server = servers.valkey(home, name, port, durable=bool(password), password=password)
    with _running(server):
        server.wait_until(lambda: servers.valkey_ready(servers.valkey_url(port, password)))
        yield


def _prepare() -> str:
    import migrations
    from outbox import db, tokens

    migrations.upgrade("head")
    with db.statement() as session:
        _, secret = tokens.create(session, actor="op", role="tenant", tenant=TENANT, name="bench")
    return secret


@contextmanager
def _running(child: Child) -> Iterator[None]:
    try:
        child.spawn()
        yield
    finally:
        child.stop()
