"""The further backends of `up --with`: MariaDB and RabbitMQ where their programs are found, S3, a provisioner.

Each is one class: what is missing for it, its processes in the order of their start, when it answers, and the service's
account on it, made by the statements of docs/backends.md. A home whose backends file has the table starts it again.
"""

import base64
import hashlib
import json
import os
import re
import shutil
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar
from urllib.parse import quote

from deprovisioner.up import accounts, servers, users
from deprovisioner.up.home import State, write_private
from deprovisioner.up.servers import Child, ServerFailed
from deprovisioner.up.users import User

# Where Debian and RabbitMQ's own packages put the programs that are in no PATH.
_RABBITMQ = Path("/usr/lib/rabbitmq/bin")
_SERVICE_BUCKET = "deprovisioner-service"
_LONGEST_SOCKET = 100  # characters; the system takes some more


class Further:
    """One backend: `name` as in the backends file, its address for workers in `variable`."""

    kind: ClassVar[str]
    title: ClassVar[str]

    def __init__(self, home: Path, state: State, port_of: Callable[[str], int]) -> None:
        self.home = home
        self.name = f"{self.kind}-main"
        self.variable = variable_of(self.kind)
        self.port = port_of(self.name)
        self.password = state.password(f"{self.name}.service")
        self.admin = state.password(self.name)
        self.data = home / self.name
        self._port_of = port_of

    @classmethod
    def missing(cls) -> str | None:
        """What this machine lacks for it, in words; None where it has all."""
        return None

    def children(self) -> list[Child]:
        """Its processes; makes their files on first use."""
        raise NotImplementedError

    def ready(self) -> bool:
        """Whether it answers."""
        with closing(socket.socket()) as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def service(self) -> str:
        """The service's address, once it answers; makes its account."""
        raise NotImplementedError

    def _child(self, name: str, argv: list[str | Path], env: dict[str, str] | None, user: User | None = None) -> Child:
        return Child(name, argv, self.home / "log" / f"{name}.log", env=env, user=user)

    def _folder(self, program: Path) -> User | None:
        user = users.of_server(self.home, self.name, program)
        self.data.mkdir(exist_ok=True, mode=0o700)
        if user and self.data.stat().st_uid != user.uid:
            users.give(self.data, user)
        return user


class Mysql(Further):
    """MariaDB. Root and the service's account are set at each start, from a file that only the server reads."""

    kind, title = "mysql", "MariaDB"

    @classmethod
    def missing(cls) -> str | None:
        """See Further."""
        lacking = [name for name in ("mariadbd", "mariadb-install-db") if shutil.which(name) is None]
        return f"{lacking[0]} is not in PATH (Debian: apt-get install mariadb-server)" if lacking else None

    def children(self) -> list[Child]:
        """See Further."""
        server = Path(shutil.which("mariadbd") or "")
        place = self.data / "socket"
        if len(str(place)) > _LONGEST_SOCKET:
            raise ServerFailed(f"{place} is too long for a socket: take another --home")
        user = self._folder(server)
        if not (self.data / "files" / "mysql").exists():
            self._install(user)
        start = self.data / "start.sql"
        start.unlink(missing_ok=True)
        root = f"ALTER USER root@localhost IDENTIFIED BY '{self.admin}';"
        own = [_again(line).replace("CHANGE-ME", self.password) for line in accounts.MYSQL]
        _private_for(user, start, "\n".join([root, *own]) + "\n")
        options = {
            "datadir": self.data / "files",
            "socket": place,
            "port": self.port,
            "bind-address": "127.0.0.1",
            "pid-file": self.data / "pid",
            "init-file": start,
            "innodb-buffer-pool-size": "64M",
        }
        words = [f"--{key}={value}" for key, value in options.items()]
        run_as = [] if user or os.geteuid() else ["--user=root"]
        return [self._child(self.name, [server, "--no-defaults", *run_as, *words], {"PATH": os.environ["PATH"]}, user)]

    def _install(self, user: User | None) -> None:
        partial = self.data / "partial"
        shutil.rmtree(partial, ignore_errors=True)
        words = [f"--datadir={partial}", "--auth-root-authentication-method=normal", "--skip-test-db"]
        program = shutil.which("mariadb-install-db") or ""
        child = self._child(f"{self.name}-install", [program, "--no-defaults", *words], None, user)
        child.spawn()
        assert child.process is not None  # noqa: S101 - it was just spawned
        if child.process.wait(servers.READY_TIMEOUT_SECONDS) != 0:
            raise ServerFailed(f"mariadb-install-db failed:\n{child.tail(20)}")
        partial.rename(self.data / "files")

    def service(self) -> str:
        """See Further."""
        return f"mysql://{accounts.NAME}:{quote(self.password, safe='')}@127.0.0.1:{self.port}/{accounts.NAME}"


class Rabbitmq(Further):
    """A RabbitMQ node with its own epmd and cookie, reached by its management port."""

    kind, title = "rabbitmq", "RabbitMQ"

    @classmethod
    def missing(cls) -> str | None:
        """See Further."""
        if not (_RABBITMQ / "rabbitmq-server").exists():
            return f"there is no {_RABBITMQ}/rabbitmq-server (Debian: apt-get install rabbitmq-server)"
        return "epmd is not in PATH" if shutil.which("epmd") is None else None

    def children(self) -> list[Child]:
        """See Further."""
        user = self._folder(_RABBITMQ)
        epmd, amqp, dist = (self._port_of(f"{self.name}.{word}") for word in ("epmd", "amqp", "dist"))
        files = {
            "plugins": "[rabbitmq_management].\n",
            "advanced.config": "[].\n",
            "rabbitmq.conf": f"management.tcp.ip = 127.0.0.1\nmanagement.tcp.port = {self.port}\n"
            f"default_user = administrator\ndefault_pass = {self.admin}\n",
        }
        for name, text in files.items():
            (self.data / name).unlink(missing_ok=True)
            _private_for(user, self.data / name, text)
        env = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.data),
            "LANG": "C.UTF-8",
            "ERL_EPMD_PORT": str(epmd),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": f"{self.name}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(amqp),
            "RABBITMQ_DIST_PORT": str(dist),
            "RABBITMQ_MNESIA_BASE": str(self.data / "mnesia"),
            "RABBITMQ_LOG_BASE": str(self.data / "log"),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "RABBITMQ_CONFIG_FILE": str(self.data / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(self.data / "advanced.config"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.data / "plugins"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
            "RUNNING_UNDER_SYSTEMD": "true",  # so the script becomes the server, and does not stay its parent
        }
        program = shutil.which("epmd") or ""
        return [
            self._child(f"{self.name}-epmd", [program, "-port", str(epmd), "-address", "127.0.0.1"], env, user),
            self._child(self.name, [_RABBITMQ / "rabbitmq-server"], env, user),
        ]

    def ready(self) -> bool:
        """See Further."""
        try:
            return self._call("GET", "overview") == 200
        except OSError:
            return False

    def service(self) -> str:
        """See Further."""
        self._call("PUT", f"users/{accounts.NAME}", {"password": self.password, "tags": "administrator"})
        return f"http://{accounts.NAME}:{quote(self.password, safe='')}@127.0.0.1:{self.port}"

    def _call(self, method: str, path: str, body: dict[str, str] | None = None) -> int:
        word = base64.b64encode(f"administrator:{self.admin}".encode()).decode()
        headers = {"Authorization": f"Basic {word}", "Content-Type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        url = f"http://127.0.0.1:{self.port}/api/{path}"
        request = urllib.request.Request(url, data=data, headers=headers, method=method)
        with urllib.request.urlopen(request, timeout=5) as answer:  # noqa: S310
            return int(answer.status)


class S3(Further):
    """moto's server: it speaks S3, checks no rights, and forgets everything when it ends."""

    kind, title = "s3", "moto (S3, in memory)"

    @classmethod
    def missing(cls) -> str | None:
        """See Further."""
        return None if find_spec("moto") else "the package moto is missing: pip install 'moto[s3,server]'"

    def children(self) -> list[Child]:
        """See Further."""
        argv: list[str | Path] = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]
        return [self._child(self.name, argv, dict(os.environ))]

    def service(self) -> str:
        """See Further."""
        url = f"http://127.0.0.1:{self.port}/{_SERVICE_BUCKET}"
        urllib.request.urlopen(urllib.request.Request(url, method="PUT"), timeout=5).close()
        return f"s3://up:{quote(self.password, safe='')}@127.0.0.1:{self.port}/{_SERVICE_BUCKET}?tls=false"


class Webhook(Further):
    """The reference provisioner of examples/, which makes notebooks."""

    kind, title = "webhook", "the example provisioner"
    _SOURCE = Path(__file__).parents[2]

    @classmethod
    def missing(cls) -> str | None:
        """See Further."""
        there = (cls._SOURCE / "examples" / "provisioner").is_dir()
        return None if there else "the folder examples/provisioner is not in this installation: run a checkout"

    @property
    def _secret(self) -> str:
        return f"whsec_{base64.b64encode(hashlib.sha256(self.password.encode()).digest()).decode()}"

    def children(self) -> list[Child]:
        """See Further."""
        argv: list[str | Path] = [sys.executable, "-m", "examples.provisioner", "--port", str(self.port)]
        env = os.environ | {"PROVISIONER_SECRET": self._secret, "PYTHONPATH": str(self._SOURCE)}
        self.data.mkdir(exist_ok=True, mode=0o700)
        return [self._child(self.name, [*argv, "--home", self.data], env)]

    def service(self) -> str:
        """See Further."""
        return f"http://127.0.0.1:{self.port}/?secret={quote(self._secret, safe='')}"


KINDS: dict[str, type[Further]] = {one.kind: one for one in (Mysql, Rabbitmq, S3, Webhook)}


def variable_of(kind: str) -> str:
    """The variable with the service's address on that backend."""
    return f"{kind.upper()}_MAIN_SERVICE_DSN"


def add_tables(path: Path, kinds: list[str]) -> list[str]:
    """Add these kinds' tables to a home's backends file, those that it lacks; all the kinds that it has a table of."""
    text = path.read_text()
    lacking = [kind for kind in kinds if f"[backends.{kind}-main]" not in text]
    if lacking:
        write_private(path, text + "".join(map(_table, lacking)))
    return [kind for kind in KINDS if f"[backends.{kind}-main]" in path.read_text()]


def _table(kind: str) -> str:
    return (
        f'\n[backends.{kind}-main]\nkind = "{kind}"\ndsn = "env:{variable_of(kind)}"\n'
        'grace = "10m"\nmin_grace = "0s"\nadoption = "tenants"\n'
    )


def _again(statement: str) -> str:
    """A statement that may run at each start."""
    return re.sub("^CREATE (USER|DATABASE) ", r"CREATE \1 IF NOT EXISTS ", statement)


def _private_for(user: User | None, path: Path, text: str) -> None:
    """A file that its server's user alone can read."""
    write_private(path, text)
    if user:
        os.chown(path, user.uid, user.gid)
