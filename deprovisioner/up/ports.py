"""Waits for a server's port: an `up` that was killed leaves servers, which end a moment after it."""

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from deprovisioner.up import servers
from outbox.errors import DeprovisionerError
from outbox.settings import PREFIX

# A PostgreSQL server that ends with its parent first writes a checkpoint.
WAIT_SECONDS = 20.0
_POLL_SECONDS = 0.05
_LISTENS = "0A"


def must_be_free(host: str, port: int) -> None:
    """Raises DeprovisionerError when another program has the API's port."""
    if not servers.port_is_free(host, port):
        raise DeprovisionerError(
            f"port {port} on {host} is taken by another program; choose another with --port or {PREFIX}API_PORT"
        )


def wait_until_free(server: str, port: int, *, stop: Callable[[], None], timeout: float | None = None) -> None:
    """Return once a server can listen on the port of 127.0.0.1; `stop` is called while waiting.

    Raises DeprovisionerError, which says who has the port, when it is still taken after `timeout` seconds.
    """
    deadline = time.monotonic() + (WAIT_SECONDS if timeout is None else timeout)
    while not servers.port_is_free("127.0.0.1", port):
        stop()
        if time.monotonic() > deadline:
            raise DeprovisionerError(
                f"port {port} of {server} on 127.0.0.1 is taken by {holder(port)}. Credentials contain this port, so "
                "`up` does not choose another: end that program, then start `up` again"
            )
        time.sleep(_POLL_SECONDS)


def holder(port: int) -> str:
    """The program that has the port, in words; without the rights to see it, or not on Linux: another program."""
    inodes = {f"socket:[{inode}]" for inode in _inodes(port)}
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if any(_leads_to(file) in inodes for file in (process / "fd").iterdir()):
                return f"{(process / 'comm').read_text().strip()!r} (pid {process.name})"
    return "another program"


def _leads_to(file: Path) -> str | None:
    """What an open file of a process is; None when it was closed meanwhile."""
    with suppress(OSError):
        return os.readlink(file)
    return None


def _inodes(port: int) -> list[str]:
    """The inodes of the sockets with this local port, those that listen first."""
    found: list[tuple[bool, str]] = []
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                words = line.split()
                if int(words[1].rpartition(":")[2], 16) == port and words[9] != "0":
                    found.append((words[3] != _LISTENS, words[9]))
    return [inode for _, inode in sorted(found)]
