"""The servers and the product's processes of a soak, watched as systemd would: what is dead is started again.

Only the main thread starts processes: they are told to die with the thread that started them.
"""

import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

from deprovisioner.up import servers as embedded
from deprovisioner.up.servers import Child
from outbox import credentials, db, tokens
from outbox.settings import PREFIX
from tests.support import accounts
from tests.support.witness import PgServer, RedisServer

LEASE_SECONDS = 4
RESTART_PAUSE_SECONDS = 0.5
TENANTS = ("acme", "globex", "initech", "umbrella")
WORKERS, APIS = 3, 2
POSTGRES, REDIS = ("pg-a", "pg-b"), ("redis-a", "redis-b")
_PASSWORD = "secret"
# A killed process loses nothing that it gave to the operating system, so fsync may be off; a commit that was not
# even written would be lost, so synchronous_commit stays on. log_duration says which statements came to their end.
_CLUSTER = {"fsync": "off", "full_page_writes": "off", "max_wal_size": "4GB"}
_WITNESSED = {"log_statement": "ddl", "log_duration": "on"}
# Every write to the file before its answer, and the file never rewritten: it is the record of what was removed.
_VALKEY_RECORD = "appendfsync no\nauto-aof-rewrite-percentage 0\n"


class Stage:
    """All processes of one soak in `home`."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.store = home / "snapshots"
        self.children: dict[str, Child] = {}
        self.urls: list[str] = []
        self.pg: dict[str, PgServer] = {}
        self.redis: dict[str, RedisServer] = {}
        self.tokens: dict[str, str] = {}
        self.died: list[str] = []  # what died without having been told to
        self._told: set[str] = set()
        self._dead_since: dict[str, float] = {}
        self._later: list[tuple[float, Callable[[], None]]] = []
        self._still: dict[str, list[psutil.Process]] = {}

    def start(self) -> None:
        """Servers, the service's accounts, schema, tokens, then the product."""
        control = self._postgres("control", {})
        for name in POSTGRES:
            self.pg[name] = PgServer(self._postgres(name, _WITNESSED), self.home / "log" / f"{name}.log")
        for name in REDIS:
            self.redis[name] = RedisServer(self._valkey(name, durable=True))
        self.broker = RedisServer(self._valkey("broker", durable=False))
        self.control = PgServer(control, self.home / "log" / "control.log")
        for name, server in {"control": self.control, **self.pg}.items():
            self.children[name].wait_until(lambda dsn=server.dsn: embedded.postgres_ready(dsn))
        for name, server in {"broker": self.broker, **self.redis}.items():
            self.children[name].wait_until(lambda url=server.url: embedded.valkey_ready(url))
        for server in self.pg.values():
            server.service_dsn = accounts.postgres(server.dsn)
        for server in self.redis.values():
            server.service_dsn = accounts.valkey(server.url)
        self._settle(control)
        self._product()

    def _settle(self, control: str) -> None:
        """This process gets the product's settings; the children inherit them."""
        self.store.mkdir()
        backends = self.home / "backends.toml"
        backends.write_text("".join(self._backend(name) for name in (*POSTGRES, *REDIS)))
        for name in [name for name in os.environ if name.startswith(PREFIX)]:
            del os.environ[name]
        ours = {
            "DATABASE_URL": control,
            "BROKER_URL": self.broker.url,
            "BACKENDS": str(backends),
            "CREDENTIALS_KEY": credentials.new_key(),
            "HOME": str(self.home),
            "LEASE_SECONDS": str(LEASE_SECONDS),
            "SWEEP_SECONDS": "1",
            "BACKOFF_BASE_SECONDS": "0.5",
            "BACKOFF_MAX_SECONDS": "5",
            "WORKER_SLOTS": "8",
        }
        os.environ |= {PREFIX + name: value for name, value in ours.items()}
        os.environ["PGCONNECT_TIMEOUT"] = "10"
        os.environ["PYTHONFAULTHANDLER"] = "1"  # a process that dies by itself says where each thread was
        import migrations

        migrations.upgrade()
        with db.statement() as session:
            self.operator = tokens.create(session, actor="op", role="operator", tenant=None, name="op")[1]
            for tenant in TENANTS:
                self.tokens[tenant] = tokens.create(session, actor="op", role="tenant", tenant=tenant, name=tenant)[1]

    def _backend(self, name: str) -> str:
        kind, server = ("postgres", self.pg[name]) if name in self.pg else ("redis", self.redis[name])
        keys = f'kind = "{kind}"\ndsn = "{server.service_dsn}"\nconcurrency = 3\nsnapshot_store = "file:{self.store}"\n'
        return f"[backends.{name}]\n{keys}"

    def _product(self) -> None:
        for number in range(APIS):
            port = embedded.free_port()
            self.urls.append(f"http://127.0.0.1:{port}")
            self._ours(f"api-{number}", "-m", "deprovisioner.cli", "api", env={f"{PREFIX}API_PORT": str(port)})
        for number in range(WORKERS):
            self._ours(f"worker-{number}", "-m", "deprovisioner.cli", "worker")
        schedule = str(self.home / "beat")
        self._ours("beat", *("-m", "celery", "-A", "worker.app", "beat", "--pidfile=", "--schedule", schedule))

    def _ours(self, name: str, *argv: str, env: dict[str, str] | None = None) -> None:
        log = self.home / "log" / f"{name}.log"
        self._spawn(Child(name, [sys.executable, *argv], log, env=os.environ | (env or {})))

    def _postgres(self, name: str, options: dict[str, str]) -> str:
        port = embedded.free_port()
        self._spawn(embedded.postgres(self.home, name, port, _PASSWORD, _CLUSTER | options))
        return embedded.postgres_dsn(port, _PASSWORD)

    def _valkey(self, name: str, *, durable: bool) -> str:
        port = embedded.free_port()
        child = embedded.valkey(self.home, name, port, durable=durable)
        if durable:
            with (self.home / f"{name}.conf").open("a") as conf:
                conf.write(_VALKEY_RECORD)
        self._spawn(child)
        return embedded.valkey_url(port)

    def _spawn(self, child: Child) -> None:
        self.children[child.name] = child
        child.spawn()

    # -- while it runs -----------------------------------------------------------------------------------------

    def tend(self) -> None:
        """Start again what is dead, and do what is due."""
        now = time.monotonic()
        for due in [entry for entry in self._later if entry[0] <= now]:
            self._later.remove(due)
            due[1]()
        for name, child in self.children.items():
            if child.alive():
                continue
            if name not in self._dead_since:
                self._dead_since[name] = now
                if name not in self._told:
                    code = child.process.returncode if child.process else None
                    self.died.append(f"{name}, exit code {code}; the end of {child.log}:\n{child.tail(60)}")
            if now - self._dead_since[name] >= RESTART_PAUSE_SECONDS:
                del self._dead_since[name]
                self._told.discard(name)
                child.spawn()

    def send(self, name: str, number: signal.Signals) -> None:
        """A signal that ends a process."""
        self._told.add(name)
        self.children[name].process.send_signal(number)  # type: ignore[union-attr]

    def stand_still(self, name: str, seconds: float) -> None:
        """Stop the process and its children for a while."""
        parent = psutil.Process(self.children[name].process.pid)  # type: ignore[union-attr]
        self._still[name] = [parent, *parent.children(recursive=True)]
        for process in self._still[name]:
            _signal(process, signal.SIGSTOP)
        self._later.append((time.monotonic() + seconds, lambda: self.go_on(name)))

    def go_on(self, name: str) -> None:
        """End of standing still."""
        for process in self._still.pop(name, []):
            _signal(process, signal.SIGCONT)

    def is_up(self, name: str) -> bool:
        """Whether it runs and does not stand still."""
        return self.children[name].alive() and name not in self._still

    def heal(self) -> None:
        """Nothing stands still any more."""
        for name in list(self._still):
            self.go_on(name)

    def stop(self) -> None:
        """End everything, the product before its servers."""
        self.heal()
        product, servers = [], []
        for name, child in self.children.items():
            (servers if name in {"control", "broker", *POSTGRES, *REDIS} else product).append(child)
        for group in (product, servers):
            for child in group:
                if child.alive():
                    child.process.send_signal(child.stop_signal)  # type: ignore[union-attr]
            for child in group:
                child.stop()


def _signal(process: psutil.Process, number: signal.Signals) -> None:
    with suppress(psutil.NoSuchProcess):  # psutil looks: never another process under the same pid
        process.send_signal(number)
