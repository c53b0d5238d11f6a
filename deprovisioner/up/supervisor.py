"""`deprovisioner up`: start everything on this machine in order, watch it, and stop it in reverse."""

import json
import signal
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path

from deprovisioner.up import accounts, environment, further, ports, servers
from deprovisioner.up.environment import (
    API_URL,
    BACKENDS,
    BROKER_URL,
    CREDENTIALS_KEY,
    DATABASE_URL,
    OPERATOR_TOKEN,
    SERVICE_PASSWORD,
    TENANT_TOKEN,
)
from deprovisioner.up.home import SERVICE_ROLE, State, backends_file, locked, prepare, write_env
from deprovisioner.up.servers import Child
from deprovisioner.up.steps import WATCH_SECONDS, Stop, ask_to_stop, output_of, say, step, stop_if_asked
from outbox import credentials
from outbox.errors import DeprovisionerError, SettingsError
from outbox.settings import PREFIX

# A child that dies at once is not restarted in a tight loop.
RESTART_PAUSE_SECONDS = 1.0
_COMMAND = (sys.executable, "-m", "deprovisioner.cli")


class Up:
    """One running installation in `home`.

    `caller` is the caller's environment. The URLs in it are used, and `up` starts no servers in their place. `kinds`:
    of which further kinds the home's backends file is to have a backend; each that it has is started.
    """

    def __init__(
        self, home: Path, host: str, port: int, workers: int, caller: Mapping[str, str], kinds: Sequence[str] = ()
    ) -> None:
        self.home = home.resolve()
        self.host = host
        self.port = port
        self.workers = workers
        self._kinds = list(kinds)
        self.env = dict(caller)  # completed while starting; each process gets a part of it
        self.children: list[Child] = []
        self._addresses: set[str] = set()
        self._administrators: dict[str, str] = {}  # the addresses of `env` that no process gets

    def run(self) -> None:
        """Start, serve until SIGINT or SIGTERM, stop. Raises DeprovisionerError when it cannot start."""
        if not self.home.exists():
            ports.must_be_free(self.host, self.port)  # so that a refusal leaves no new folder
        prepare(self.home)
        with locked(self.home):
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, ask_to_stop)
            try:
                self._start()
                self._watch()
            except Stop:
                print("\nup: stopping", flush=True)
            finally:
                for number in (signal.SIGINT, signal.SIGTERM):
                    signal.signal(number, signal.SIG_IGN)
                self._stop()

    # -- starting ----------------------------------------------------------------------------------------------

    def _start(self) -> None:
        ports.must_be_free(self.host, self.port)
        self._state = State(self.home)
        self.env = self._state.without_made(self.env)
        say(f"home {self.home} (data, logs, tokens)")
        self._find_addresses()
        self._start_servers()
        self._complete_env()
        self._migrate()
        self._start_api()
        self._make_tokens()
        write_env(self.home, self.env | self._administrators, map(further.variable_of, self._kinds))
        for number in range(1, self.workers + 1):
            self._start_worker(f"worker-{number}")
        self._explain()

    def _find_addresses(self) -> None:
        """Learn from the backends file which variables only workers get, before anything is started."""
        self._own_backends = not self._caller_gives(BACKENDS)
        if self._own_backends:
            path = backends_file(self.home, say)
            self._kinds = further.add_tables(path, self._kinds)
            self._set(BACKENDS, str(path))
        elif self._kinds:
            raise DeprovisionerError(f"--with adds to the home's own backends file, and {BACKENDS} names another one")
        self._addresses = environment.worker_variables(Path(self.env[BACKENDS]))

    def _start_servers(self) -> None:
        if not self._caller_gives(DATABASE_URL):
            self._set(DATABASE_URL, self._start_postgres("control", {}))
        if not self._caller_gives(BROKER_URL):
            self._set(BROKER_URL, self._start_valkey("broker", durable=False))
        if self._own_backends:
            for variable in (environment.PG_MAIN_DSN, environment.REDIS_MAIN_URL):
                if variable in self.env:
                    say(f"not using your {variable}: it names a server of this home; to use others, set {BACKENDS}")
            admin = self._start_postgres("pg-main", {"log_statement": "ddl", "reserved_connections": "5"})
            service = accounts.postgres(admin, self._state.password("pg-main.service"))
            self._set_addresses(environment.PG_MAIN_DSN, environment.PG_MAIN_SERVICE_DSN, admin, service)
            admin = self._start_valkey("redis-main", durable=True)
            service = accounts.valkey(admin, self._state.password("redis-main.service"))
            self._set_addresses(environment.REDIS_MAIN_URL, environment.REDIS_MAIN_SERVICE_URL, admin, service)
            for kind in self._kinds:
                self._start_further(further.KINDS[kind](self.home, self._state, self._free_port_of))

    def _start_further(self, backend: further.Further) -> None:
        if missing := backend.missing():
            raise DeprovisionerError(f"{backend.name}: {missing}; or remove its table from {self.env[BACKENDS]}")
        with step(f"{backend.name}: {backend.title} on 127.0.0.1:{backend.port}"):
            *before, last = backend.children()
            for child in before:
                self._start_child(child, child.alive)
            self._start_child(last, backend.ready)
            self._set(backend.variable, backend.service())

    def _set_addresses(self, variable: str, of_service: str, admin: str, service: str) -> None:
        """The service's account for workers; the administrator's only in the file `env`."""
        self._set(variable, service)
        self._set(of_service, service)
        self._state.remember_made(variable, admin)
        self._administrators[variable] = admin

    def _caller_gives(self, variable: str) -> bool:
        """Whether the caller set the variable; printed, since we then work on data that is not this home's."""
        if variable not in self.env:
            return False
        say(f"not starting our own: {variable} is set to {environment.without_password(self.env[variable])}")
        return True

    def _set(self, variable: str, value: str) -> None:
        """Set a variable that the caller did not set, and remember that the value is ours."""
        self._state.remember_made(variable, value)
        self.env[variable] = value

    def _start_postgres(self, name: str, options: dict[str, str]) -> str:
        port, password = self._free_port_of(name), self._state.password(name)
        dsn = servers.postgres_dsn(port, password)
        with step(f"{name}: PostgreSQL on 127.0.0.1:{port}"):
            child = servers.postgres(self.home, name, port, password, options, stop=stop_if_asked)
            self._start_child(child, lambda: servers.postgres_ready(dsn))
        return dsn

    def _start_valkey(self, name: str, *, durable: bool) -> str:
        port, password = self._free_port_of(name), self._state.password(name)
        url = servers.valkey_url(port, password)
        with step(f"{name}: Valkey on 127.0.0.1:{port}"):
            child = servers.valkey(self.home, name, port, durable=durable, password=password)
            self._start_child(child, lambda: servers.valkey_ready(url))
        return url

    def _free_port_of(self, name: str) -> int:
        port = self._state.port(name)
        ports.wait_until_free(name, port, stop=stop_if_asked)
        return port

    def _complete_env(self) -> None:
        if CREDENTIALS_KEY not in self.env:
            self._set(CREDENTIALS_KEY, self._state.keep("credentials_key", credentials.new_key))
        self.env[f"{PREFIX}HOME"] = str(self.home)
        self.env[f"{PREFIX}API_HOST"] = self.host
        self.env[f"{PREFIX}API_PORT"] = str(self.port)
        self.env[API_URL] = f"http://{self.host}:{self.port}"

    def _migrate(self) -> None:
        """As the superuser of our own server; everything after that as a role that cannot change events."""
        if not self._runs("control"):
            self._run_command("migrations", "migrate")
            return
        password = self.env.get(SERVICE_PASSWORD) or self._state.password("service")
        role = ("--service-role", SERVICE_ROLE)
        self._run_command("migrations", "migrate", *role, **{SERVICE_PASSWORD: password})
        self._set(DATABASE_URL, servers.postgres_dsn(self._state.get("control.port"), password, user=SERVICE_ROLE))

    def _make_tokens(self) -> None:
        """Keep the tokens of earlier runs, unless this control database does not know them."""
        for role, variable, words in (
            ("operator", OPERATOR_TOKEN, ()),
            ("tenant", TENANT_TOKEN, ("--tenant", "demo")),
        ):
            key = f"{role}_token"
            if self._state.get(key) is None or self._api_rejects(self._state.get(key)):
                arguments = ("token", "create", "--role", role, *words, "--name", "up", "--json")
                made = self._run_command(f"{role} token", *arguments)
                self._state.set(key, json.loads(made)["token"])
            self.env[variable] = self._state.get(key)

    def _run_command(self, what: str, *words: str, **more: str) -> str:
        """Run one of our commands to its end; what it wrote to stdout."""
        with step(what):
            status, stdout, stderr = output_of([*_COMMAND, *words], self._env_of(what) | more)
            if status != 0:
                raise DeprovisionerError(f"{what} failed:\n{stdout}{stderr}".rstrip())
        return stdout

    def _start_api(self) -> None:
        with step("api"):
            child = Child("api", [*_COMMAND, "api"], self._log("api"), env=self._env_of("api"))
            self._start_child(child, self._api_is_ready)

    def _start_worker(self, name: str) -> None:
        with step(name):
            child = Child(name, [*_COMMAND, "worker"], self._log(name), env=self._env_of(name))
            self._start_child(child, lambda: '"worker_ready"' in child.tail(1_000_000))

    def _start_child(self, child: Child, ready: Callable[[], bool]) -> None:
        self.children.append(child)
        child.spawn()

        def ready_or_stopped() -> bool:
            stop_if_asked()
            return ready()

        child.wait_until(ready_or_stopped)

    def _api_is_ready(self) -> bool:
        return self._api_status("/healthz") == HTTPStatus.OK

    def _api_rejects(self, token: str) -> bool:
        return self._api_status("/v1/jobs?limit=1", token) == HTTPStatus.UNAUTHORIZED

    def _api_status(self, path: str, token: str = "") -> int | None:
        """The status of the API's answer; None when there was no answer."""
        request = urllib.request.Request(f"{self.env[API_URL]}{path}", headers={"Authorization": f"Bearer {token}"})  # noqa: S310
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:  # noqa: S310
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return None

    def _runs(self, name: str) -> bool:
        return any(child.name == name for child in self.children)

    def _is_ours(self, child: Child) -> bool:
        return child.name == "api" or child.name.startswith("worker-")

    def _log(self, name: str) -> Path:
        return self.home / "log" / f"{name}.log"

    def _env_of(self, name: str) -> dict[str, str]:
        of = environment.of_worker if name.startswith("worker-") else environment.of_api
        return of(self.env, self._addresses)

    # -- watching and stopping ---------------------------------------------------------------------------------

    def _watch(self) -> None:
        started = dict.fromkeys(range(len(self.children)), time.monotonic())
        while True:
            time.sleep(WATCH_SECONDS)
            stop_if_asked()
            for number, child in enumerate(self.children):
                if child.alive() or time.monotonic() - started[number] < RESTART_PAUSE_SECONDS:
                    continue
                say(f"{child.name} ended ({child.reason()}); starting it again (log {child.log})")
                if self._is_ours(child):
                    self._find_new_addresses()
                    child.env = self._env_of(child.name)
                child.spawn()
                started[number] = time.monotonic()

    def _find_new_addresses(self) -> None:
        """Read the backends file again, which may have been edited; the API itself reports an invalid one."""
        with suppress(SettingsError):
            self._addresses |= environment.worker_variables(Path(self.env[BACKENDS]))

    def _stop(self) -> None:
        """The API and the workers first, all at once; then the servers, which they use."""
        ours = [child for child in self.children if self._is_ours(child)]
        for child in ours:
            child.ask_to_stop()
        for child in [*reversed(ours), *(c for c in reversed(self.children) if c not in ours)]:
            child.stop()
        if self.children:
            say("stopped")

    def _explain(self) -> None:
        token, url = self.env[TENANT_TOKEN], self.env[API_URL]
        curl = f"curl -sS -H 'Authorization: Bearer {token}'"
        post = f"{curl} -H 'Content-Type: application/json'"
        backend = "pg-main" if self._runs("pg-main") else "YOUR-BACKEND"
        body = json.dumps({"kind": "postgres", "backend": backend, "name": "orders"})
        why = json.dumps({"reason": "deleted by mistake"})
        print(
            f"""
  API             {url}
  operator token  {self.env[OPERATOR_TOKEN]}
  tenant token    {token}   (tenant "demo")
  other shells    set -a; . {self.home / "env"}; set +a; PATH={Path(sys.executable).parent}:$PATH

  Try, in another shell (ID is the resource's id in the first answer):
    {post} -d '{body}' {url}/v1/resources
    {curl} {url}/v1/resources/ID/credentials
    {curl} -X DELETE {url}/v1/resources/ID
    {post} -d '{why}' {url}/v1/resources/ID/restore
  A deleted resource can be restored until its `purge_at`. To destroy it at once: -X DELETE '…/ID?grace=0s'

  Ctrl-C stops everything; the data stays in {self.home}.
""",
            flush=True,
        )
