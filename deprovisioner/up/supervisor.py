"""`deprovisioner up`: everything on this machine, in order, watched, and stopped in reverse."""

import json
import re
import secrets
import shlex
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from deprovisioner.up import servers
from deprovisioner.up.home import BACKENDS_TOML, SERVICE_ROLE, locked, write_private
from deprovisioner.up.servers import Child
from outbox import credentials
from outbox.errors import DeprovisionerError
from outbox.settings import PREFIX, read_env

# A child that dies at once is not restarted in a tight loop.
RESTART_PAUSE_SECONDS = 1.0
WATCH_SECONDS = 0.2


class _Stop(BaseException):
    """A signal asked us to stop; passes through everything that only catches errors.

    Not through what Python calls by itself (a `__del__`, a weakref's callback: an import makes many): what is raised
    there is dropped, so each step asks `asked` too.
    """

    asked = False


class Up:
    """One running installation in `home`.

    `environment` is what the children get; the URLs already in it are taken as given, and their servers not started.
    """

    def __init__(self, home: Path, host: str, port: int, workers: int, environment: MutableMapping[str, str]) -> None:
        self.home = home.resolve()
        self.host = host
        self.port = port
        self.workers = workers
        self.env = environment
        self.children: list[Child] = []
        self._kept: dict[str, Any] = {}

    def run(self) -> None:
        """Start, serve until SIGINT or SIGTERM, stop. Raises DeprovisionerError when it cannot start."""
        self.home.mkdir(parents=True, exist_ok=True, mode=0o711)  # passed through by PostgreSQL's user
        with locked(self.home):
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, _raise_stop)
            try:
                self._start()
                self._watch()
            except _Stop:
                print("\nup: stopping", flush=True)
            finally:
                for number in (signal.SIGINT, signal.SIGTERM):
                    signal.signal(number, signal.SIG_IGN)
                self._stop()

    # -- starting ----------------------------------------------------------------------------------------------

    def _start(self) -> None:
        self._forget_own_env()
        if not servers.port_is_free(self.host, self.port):
            raise DeprovisionerError(
                f"port {self.port} on {self.host} is taken by another program; choose another with --port or "
                f"{PREFIX}API_PORT"
            )
        self._kept = self._read_state()
        _say(f"home {self.home} (data, logs, tokens)")
        self._start_servers()
        self._complete_env()
        self._migrate()
        self._make_tokens()
        self._write_env()
        self._spawn_ours("api", "api", self._api_is_ready)
        for number in range(1, self.workers + 1):
            self._spawn_ours(f"worker-{number}", "worker", None)
        self._explain()

    def _start_servers(self) -> None:
        if not self._caller_gives(f"{PREFIX}DATABASE_URL"):
            self.env[f"{PREFIX}DATABASE_URL"] = self._postgres("control", {})
        if not self._caller_gives(f"{PREFIX}BROKER_URL"):
            self.env[f"{PREFIX}BROKER_URL"] = self._valkey("broker", durable=False)
        if not self._caller_gives(f"{PREFIX}BACKENDS"):
            self.env["PG_MAIN_DSN"] = self._postgres("pg-main", {"log_statement": "ddl"})
            self.env["REDIS_MAIN_URL"] = self._valkey("redis-main", durable=True)
            path = self.home / "backends.toml"
            if not path.exists():
                path.write_text(BACKENDS_TOML)
            self.env[f"{PREFIX}BACKENDS"] = str(path)

    def _caller_gives(self, variable: str) -> bool:
        """Whether the environment names a server of somebody else's; said aloud, since we then work on their data."""
        if variable not in self.env:
            return False
        _say(f"not starting our own: {variable} is set to {_without_password(self.env[variable])}")
        return True

    def _postgres(self, name: str, options: dict[str, str]) -> str:
        port, password = self._port(name), self._keep(f"{name}.password", lambda: secrets.token_urlsafe(18))
        dsn = servers.postgres_dsn(port, password)
        with _step(f"{name}: PostgreSQL on 127.0.0.1:{port}"):
            child = servers.postgres(self.home, name, port, password, options)
            self._spawn(child, lambda: servers.postgres_ready(dsn))
        return dsn

    def _valkey(self, name: str, *, durable: bool) -> str:
        port, password = self._port(name), self._keep(f"{name}.password", lambda: secrets.token_urlsafe(18))
        url = servers.valkey_url(port, password)
        with _step(f"{name}: Valkey on 127.0.0.1:{port}"):
            child = servers.valkey(self.home, name, port, durable=durable, password=password)
            self._spawn(child, lambda: servers.valkey_ready(url))
        return url

    def _complete_env(self) -> None:
        self.env.setdefault(f"{PREFIX}CREDENTIALS_KEY", self._keep("credentials_key", credentials.new_key))
        self.env[f"{PREFIX}HOME"] = str(self.home)
        self.env[f"{PREFIX}API_HOST"] = self.host
        self.env[f"{PREFIX}API_PORT"] = str(self.port)
        self.env[f"{PREFIX}API_URL"] = f"http://{self.host}:{self.port}"

    def _migrate(self) -> None:
        """As the superuser of our own server; everything after that as a role that may not change events."""
        if not any(child.name == "control" for child in self.children):
            self._run_command("migrations", "migrate")
            return
        password = self._keep("service.password", lambda: secrets.token_urlsafe(18))
        given = {f"{PREFIX}SERVICE_PASSWORD": password}
        self._run_command("migrations", "migrate", "--service-role", SERVICE_ROLE, **given)
        dsn = servers.postgres_dsn(self._kept["control.port"], password, user=SERVICE_ROLE)
        self.env[f"{PREFIX}DATABASE_URL"] = dsn

    def _make_tokens(self) -> None:
        for role, words in (("operator", ()), ("tenant", ("--tenant", "demo"))):
            make = partial(self._token, role, *words)
            self.env[f"{PREFIX}{role.upper()}_TOKEN"] = self._keep(f"{role}_token", make)

    def _token(self, role: str, *words: str) -> str:
        made = self._run_command(f"{role} token", "token", "create", "--role", role, *words, "--name", "up", "--json")
        return str(json.loads(made)["token"])

    def _run_command(self, what: str, *words: str, **more: str) -> str:
        with _step(what):
            done = subprocess.run(  # noqa: S603 - ourselves
                _command(*words), env=dict(self.env) | more, capture_output=True, text=True, check=False
            )
            if done.returncode != 0:
                raise DeprovisionerError(f"{what} failed:\n{done.stdout}{done.stderr}".rstrip())
        return done.stdout

    def _spawn_ours(self, name: str, command: str, ready: Callable[[], bool] | None) -> None:
        with _step(name):
            child = Child(name, _command(command), self.home / "log" / f"{name}.log", env=self.env)
            seen = len(child.tail(1_000_000))
            self._spawn(child, ready or (lambda: '"worker_ready"' in child.tail(1_000_000)[seen:]))

    def _spawn(self, child: Child, ready: Callable[[], bool]) -> None:
        self.children.append(child)
        child.spawn()
        child.wait_until(ready)

    def _api_is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.env[f'{PREFIX}API_URL']}/healthz", timeout=2) as answer:  # noqa: S310
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    # -- watching and stopping ---------------------------------------------------------------------------------

    def _watch(self) -> None:
        started = dict.fromkeys(range(len(self.children)), time.monotonic())
        while True:
            time.sleep(WATCH_SECONDS)
            _stop_if_asked()
            for number, child in enumerate(self.children):
                if child.alive() or time.monotonic() - started[number] < RESTART_PAUSE_SECONDS:
                    continue
                status = child.process.returncode if child.process else None
                _say(f"{child.name} ended ({_reason(status)}); starting it again (log {child.log})")
                child.spawn()
                started[number] = time.monotonic()

    def _stop(self) -> None:
        # Those that use the servers first, all at once; then the servers.
        ours = [child for child in self.children if child.name == "api" or child.name.startswith("worker-")]
        for child in ours:
            if child.alive() and child.process:
                child.process.send_signal(child.stop_signal)
        for child in [*reversed(ours), *(c for c in reversed(self.children) if c not in ours)]:
            child.stop()
        if self.children:
            _say("stopped")

    # -- what is kept between runs -----------------------------------------------------------------------------

    def _read_state(self) -> dict[str, Any]:
        path = self.home / "state.json"
        return dict(json.loads(path.read_text())) if path.exists() else {}

    def _keep(self, key: str, make: Callable[[], Any]) -> Any:
        if key not in self._kept:
            self._kept[key] = make()
            write_private(self.home / "state.json", json.dumps(self._kept, indent=2))
        return self._kept[key]

    def _port(self, name: str) -> int:
        port = self._keep(f"{name}.port", servers.free_port)
        if not servers.port_is_free("127.0.0.1", port):
            del self._kept[f"{name}.port"]
            port = self._keep(f"{name}.port", servers.free_port)
        return int(port)

    def _forget_own_env(self) -> None:
        """A shell that sourced our `env` must not make us take our own servers for somebody else's."""
        path = self.home / "env"
        if path.exists():
            for name, value in read_env(path).items():
                if self.env.get(name) == value:
                    del self.env[name]

    def _write_env(self) -> None:
        names = ["PG_MAIN_DSN", "REDIS_MAIN_URL"]
        names += [f"{PREFIX}{name}" for name in ("DATABASE_URL", "BROKER_URL", "BACKENDS", "CREDENTIALS_KEY")]
        names += [f"{PREFIX}{name}" for name in ("API_URL", "OPERATOR_TOKEN", "TENANT_TOKEN")]
        # Where this `up` was told to differ, a command at another shell must too: it makes jobs, or examines them.
        names += [f"{PREFIX}{name}" for name in ("MAX_ATTEMPTS", "LEASE_SECONDS", "SWEEP_SECONDS")]
        lines = (f"{name}={shlex.quote(self.env[name])}\n" for name in names if name in self.env)
        write_private(self.home / "env", "".join(lines))

    def _explain(self) -> None:
        token, url = self.env[f"{PREFIX}TENANT_TOKEN"], self.env[f"{PREFIX}API_URL"]
        curl = f"curl -sS -H 'Authorization: Bearer {token}'"
        backend = "pg-main" if "PG_MAIN_DSN" in self.env else "YOUR-BACKEND"
        body = json.dumps({"kind": "postgres", "backend": backend, "name": "orders"})
        print(
            f"""
  API             {url}
  operator token  {self.env[f"{PREFIX}OPERATOR_TOKEN"]}
  tenant token    {token}   (tenant "demo")
  other shells    set -a; . {self.home / "env"}; set +a; PATH={Path(sys.executable).parent}:$PATH

  Try, in another shell (ID is the resource's id in the first answer):
    {curl} -H 'Content-Type: application/json' -d '{body}' {url}/v1/resources
    {curl} {url}/v1/resources/ID/credentials
    {curl} -X DELETE {url}/v1/resources/ID

  Ctrl-C stops everything; the data stays in {self.home}.
""",
            flush=True,
        )


def _command(*words: str) -> list[str]:
    return [sys.executable, "-m", "deprovisioner.cli", *words]


def _raise_stop(*_: object) -> None:
    _Stop.asked = True
    raise _Stop


def _stop_if_asked() -> None:
    if _Stop.asked:
        raise _Stop


def _say(line: str) -> None:
    print(f"up: {line}", flush=True)


@contextmanager
def _step(what: str) -> Iterator[None]:
    _stop_if_asked()
    began = time.monotonic()
    print(f"up: {what} ...", end="", flush=True)
    try:
        yield
    except BaseException:
        print(" failed", flush=True)
        raise
    print(f" ready in {time.monotonic() - began:.1f} s", flush=True)


def _without_password(url: str) -> str:
    return re.sub(r"//[^/@]*@", "//…@", url)


def _reason(status: int | None) -> str:
    return signal.Signals(-status).name if status is not None and status < 0 else f"exit status {status}"
