"""RabbitMQ nodes of a test's own, from the installed programs: their own epmd, cookie, folders and ports."""

import json
import os
import re
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import amqp
import httpx
import pytest

from deprovisioner.up import servers as embedded
from tests.support import accounts
from tests.support.servers import server_folder
from tests.support.witness import eventually

PROGRAMS = Path(os.environ.get("TEST_RABBITMQ_PROGRAMS", "/usr/lib/rabbitmq/bin"))
DOCUMENT = Path(__file__).parents[2] / "docs" / "backends.md"
START_SECONDS = 90  # five on an idle machine
_PLUGINS = "rabbitmq_management,rabbitmq_shovel,rabbitmq_federation"


@dataclass
class RabbitmqServer:
    """One node, seen by an administrator who is not the service: a witness."""

    node: str
    folder: Path
    port: int  # for AMQP
    management: int
    password: str
    env: dict[str, str]
    process: subprocess.Popen[bytes]
    service_dsn: str = ""
    http: httpx.Client = field(
        default_factory=lambda: httpx.Client(
            timeout=60,
            trust_env=False,
            limits=httpx.Limits(max_keepalive_connections=0),  # the server closes idle ones
        )
    )

    def api(self, method: str, *path: str, body: Any = None, **parameters: Any) -> Any:
        """The witness's call; the JSON, or None where the thing is not there."""
        url = f"http://127.0.0.1:{self.management}/api/{'/'.join(quote(part, safe='') for part in path)}"
        account = ("witness", self.password)
        answer = self.http.request(method, url, auth=account, json=body, params=parameters)
        if answer.status_code == 404:
            return None
        assert answer.is_success, (method, path, answer.status_code, answer.text)
        return answer.json() if answer.content else {}

    def names(self, what: str) -> set[str]:
        """The names of all vhosts or users."""
        return {one["name"] for one in self.api("GET", what, columns="name", disable_stats="true")}

    def bears(self, manifest: dict[str, Any]) -> bool:
        """Whether anything has the manifest's names or its mark, a tag that the test writes by itself."""
        mark = f"deprovisioner:gen:{manifest['generation']}"
        for word in ("vhost", "user"):
            for one in self.api("GET", f"{word}s"):
                if one["name"] == manifest[word] or mark in one["tags"]:
                    return True
        permissions = self.api("GET", "permissions")
        return any(one["vhost"] == manifest["vhost"] or one["user"] == manifest["user"] for one in permissions)

    def client(self, credentials: dict[str, Any]) -> amqp.Connection:
        """A customer's connection. Raises amqp's errors."""
        connection = amqp.Connection(
            f"127.0.0.1:{credentials['port']}",
            userid=credentials["user"],
            password=credentials["password"],
            virtual_host=credentials["vhost"],
            login_method="PLAIN",
            connect_timeout=10,
            read_timeout=10,
        )
        connection.connect()
        return connection

    def can_log_in(self, credentials: dict[str, Any]) -> bool:
        """Whether a customer gets in."""
        try:
            self.client(credentials).close()
        except (amqp.exceptions.AMQPError, OSError):
            return False
        return True

    def run(self, *words: str) -> str:
        """What `rabbitmqctl` says."""
        argv = [str(PROGRAMS / "rabbitmqctl"), "--node", self.node, *words]
        return subprocess.check_output(argv, env=self.env, text=True, stderr=subprocess.STDOUT)

    def log(self) -> str:
        """The node's log."""
        return (self.folder / "log" / f"{self.node}.log").read_text()

    def account(self, name: str, tags: str = "administrator") -> str:
        """Another account for the service; its dsn."""
        self.api("PUT", "users", name, body={"password": accounts.PASSWORD, "tags": tags})
        return f"http://{name}:{accounts.PASSWORD}@127.0.0.1:{self.management}"


def documented() -> list[str]:
    """The commands of docs/backends.md that make the service's account."""
    found = re.search(r"<!-- account: rabbitmq -->\n```\w*\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert found
    return found[1].strip().splitlines()


@contextmanager
def running(*, account: bool = True) -> Iterator[RabbitmqServer]:
    """A node of its own, with the documented account; ended with the block."""
    with ExitStack() as life:
        (server,) = _started(life, 1)
        if account:
            for command in documented():
                server.run(*command.replace("CHANGE-ME", accounts.PASSWORD).split()[1:])
            server.service_dsn = f"http://{accounts.NAME}:{accounts.PASSWORD}@127.0.0.1:{server.management}"
        yield server


@contextmanager
def cluster(size: int) -> Iterator[list[RabbitmqServer]]:
    """Nodes of one cluster. The account is made by the API, for speed."""
    with ExitStack() as life:
        servers = _started(life, size)
        dsn = servers[0].account(accounts.NAME)
        for server in servers:
            server.service_dsn = dsn.replace(f":{servers[0].management}", f":{server.management}")
        eventually(lambda: all(len(told(server)) == size for server in servers), START_SECONDS)
        yield servers


def told(server: RabbitmqServer) -> list[Any]:
    """The nodes that are up and tell of partitions, as this one sees it; at its start it does not for some seconds."""
    nodes = server.api("GET", "nodes", columns="name,running,partitions")
    return [one for one in nodes if one.get("running") and "partitions" in one]


def _started(life: ExitStack, size: int) -> list[RabbitmqServer]:
    """So many nodes, the others joined to the first; skips where there are no programs."""
    if not (PROGRAMS / "rabbitmq-server").exists() or shutil.which("epmd") is None:
        pytest.skip(f"no RabbitMQ in {PROGRAMS}, or no epmd; TEST_RABBITMQ_PROGRAMS names another folder")
    folder = server_folder("rabbitmq")
    life.callback(shutil.rmtree, folder, ignore_errors=True)
    epmd = str(embedded.free_port())
    life.enter_context(_process(["epmd", "-port", epmd, "-address", "127.0.0.1"], os.environ | {}, folder))
    unique, password, cookie = (secrets.token_hex(8) for _ in range(3))
    names = [f"rabbit{n}-{unique}@localhost" for n in range(size)]
    servers: list[RabbitmqServer] = []
    for name in names:
        home = folder / name.partition("@")[0]
        home.mkdir()
        (home / ".erlang.cookie").write_text(cookie)
        (home / ".erlang.cookie").chmod(0o400)
        servers.append(life.enter_context(_node(home, epmd, name, names, password)))
        if len(servers) in (1, size):
            for server in servers:
                _wait_for(server)
    return servers


@contextmanager
def _node(folder: Path, epmd: str, node: str, cluster: list[str], password: str) -> Iterator[RabbitmqServer]:
    ports = [embedded.free_port() for _ in range(3)]
    (folder / "plugins").write_text(f"[{_PLUGINS}].\n")
    (folder / "advanced.config").write_text("[].\n")
    (folder / "rabbitmq.conf").write_text(
        f"management.tcp.ip = 127.0.0.1\nmanagement.tcp.port = {ports[1]}\n"
        f"default_user = witness\ndefault_pass = {password}\nlog.file.level = info\n"
        "cluster_formation.peer_discovery_backend = classic_config\n"
        + "".join(f"cluster_formation.classic_config.nodes.{n} = {name}\n" for n, name in enumerate(cluster, 1))
    )
    env = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "LANG": "C.UTF-8",
        "ERL_EPMD_PORT": epmd,
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "RABBITMQ_NODENAME": node,
        "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
        "RABBITMQ_NODE_PORT": str(ports[0]),
        "RABBITMQ_DIST_PORT": str(ports[2]),
        "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
        "RABBITMQ_LOG_BASE": str(folder / "log"),
        "RABBITMQ_CONF_ENV_FILE": "/dev/null",
        "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
        "RABBITMQ_ADVANCED_CONFIG_FILE": str(folder / "advanced.config"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
    }
    # With RUNNING_UNDER_SYSTEMD the script becomes the server, so that its pid is the server's.
    argv = [str(PROGRAMS / "rabbitmq-server")]
    with ExitStack() as life:
        process = life.enter_context(_process(argv, env | {"RUNNING_UNDER_SYSTEMD": "true"}, folder))
        server = RabbitmqServer(node, folder, ports[0], ports[1], password, env, process)
        life.callback(server.http.close)
        yield server


def _wait_for(server: RabbitmqServer) -> None:
    eventually(lambda: _takes_clients(server) or server.process.poll() is not None, START_SECONDS)
    assert server.process.poll() is None, (server.folder / "out").read_text()[-2000:]


def _takes_clients(server: RabbitmqServer) -> bool:
    try:
        listeners = server.api("GET", "overview", columns="listeners")["listeners"]
    except (httpx.HTTPError, AssertionError, TypeError, json.JSONDecodeError):  # it answers 404 while it starts
        return False
    return any(one["port"] == server.port for one in listeners)


@contextmanager
def _process(argv: list[str], env: dict[str, str], folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    with (folder / "out").open("ab") as out:
        process = subprocess.Popen(argv, stdout=out, stderr=out, env=env, cwd=folder)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
