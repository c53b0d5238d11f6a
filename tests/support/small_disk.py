"""A file system that a test can fill, with a tablespace on it."""

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.witness import PgServer, eventually


def mounted(disk: Path, server: PgServer, tablespace: str, *, size: str) -> Path | None:
    """A new file system with a tablespace of this server; None where this user may not mount one."""
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", disk]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        return None
    disk.parent.chmod(0o711)  # the server runs as another user
    owner = Path(server.query("SHOW data_directory")[0][0]).stat().st_uid
    (disk / "space").mkdir(mode=0o700)
    for each in (disk, disk / "space"):
        os.chown(each, owner, owner)
    server.query(f"CREATE TABLESPACE {tablespace} LOCATION '{disk / 'space'}'")
    return disk


def unmount(disk: Path) -> None:
    """End it; the server no longer uses it."""
    subprocess.run(["umount", disk], check=True)


@contextmanager
def full(disk: Path) -> Iterator[None]:
    """Nothing is free on it until the block ends."""
    ballast = disk / "ballast"
    with ballast.open("wb") as file:
        eventually(lambda: _filled(file.fileno(), disk), what="the disk is full")
    try:
        yield
    finally:
        ballast.unlink()


def _filled(file: int, disk: Path) -> bool:
    """Take all that is free; False when the server took some of it meanwhile."""
    try:
        os.posix_fallocate(file, 0, shutil.disk_usage(disk).free)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        return False
    return True
