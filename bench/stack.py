"""What is measured: PostgreSQL, Valkey, one API process and worker processes, in a home that is removed afterwards."""

import os
import secrets
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from outbox import credentials, embedded
from outbox.embedded import Child
from outbox.settings import PREFIX

BACKEND = "noop"
TENANT = "bench"
# As many at once as there are hands: the slots are what is varied.
BACKENDS_TOML = f'[backends.{BACKEND}]\nkind = "noop"\ndsn = "none"\nconcurrency = 1000\n'


class Stack:
    """The running servers; `api()` and `workers()` run ours for as long as a measure lasts."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.token = ""
        self.password = secrets.token_urlsafe(18)
        self.postgres_port, self.broker_port, self.api_port = (embedded.free_port() for _ in range(3))
        self.dsn = embedded.postgres_dsn(self.postgres_port, self.password)

    @contextmanager
    def api(self) -> Iterator[None]:
        """One API process, as `deprovisioner api` runs it."""
        child = Child("api", [sys.executable, "-m", "outbox.cli", "api"], self.home / "log" / "api.log")
        with _running(child):
            child.wait_until(self._api_answers)
            yield

    @contextmanager
    def workers(self, processes: int, slots: int) -> Iterator[None]:
        """Worker processes that know the kind `noop`; they begin to work before this yields."""
        env = os.environ | {f"{PREFIX}WORKER_SLOTS": str(slots)}
        argv = [sys.executable, "-m", "bench.noop_worker"]
        names = [f"worker-{time.monotonic_ns()}-{number}" for number in range(processes)]
        children = [Child(name, argv, self.home / "log" / f"{name}.log", env=env) for name in names]
        with ExitStack() as running:
            for child in children:
                running.enter_context(_running(child))
            for child in children:
                child.wait_until(lambda log=child.log: '"worker_ready"' in log.read_text())
            yield

    def _api_answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.api_port}/healthz", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def environment(self) -> dict[str, str]:
        """What our processes read; nothing of the caller's own installation stays in it."""
        backends = self.home / "backends.toml"
        backends.write_text(BACKENDS_TOML)
        ours = {
            "DATABASE_URL": self.dsn,
            "BROKER_URL": embedded.valkey_url(self.broker_port),
            "BACKENDS": str(backends),
            "CREDENTIALS_KEY": credentials.new_key(),
            "HOME": str(self.home),
            "API_PORT": str(self.api_port),
        }
        return {PREFIX + name: value for name, value in ours.items()}


@contextmanager
def stack(settings: Mapping[str, str] | None = None) -> Iterator[Stack]:
    """Servers up, schema migrated, a tenant's token made; everything stopped and removed at the end.

    `settings` are PostgreSQL's, where its defaults are not what is measured.
    """
    with (
        tempfile.TemporaryDirectory(prefix="deprovisioner-bench-", ignore_cleanup_errors=True) as home,
        ExitStack() as up,
    ):
        os.chmod(home, 0o711)  # where we are root, PostgreSQL is not
        made = Stack(Path(home))
        for name in [name for name in os.environ if name.startswith(PREFIX)]:
            del os.environ[name]
        os.environ |= made.environment()
        os.environ["PYTHONPATH"] = str(Path(__file__).parent.parent)
        postgres = embedded.postgres(made.home, "control", made.postgres_port, made.password, settings)
        broker = embedded.valkey(made.home, "broker", made.broker_port, durable=False)
        up.enter_context(_running(postgres))
        up.enter_context(_running(broker))
        postgres.wait_until(lambda: embedded.postgres_ready(made.dsn))
        broker.wait_until(lambda: embedded.valkey_ready(embedded.valkey_url(made.broker_port)))
        made.token = _prepare()
        yield made


def _prepare() -> str:
    import migrations
    from outbox import db, tokens

    migrations.upgrade("head")
    with db.statement() as session:
        _, secret = tokens.create(session, role="tenant", tenant=TENANT, name="bench")
    return secret


@contextmanager
def _running(child: Child) -> Iterator[None]:
    try:
        child.spawn()
        yield
    finally:
        child.stop()
