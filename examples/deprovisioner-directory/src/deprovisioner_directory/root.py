"""The file server: a root that workers have mounted, and the service's own folder in it."""

import errno
import fcntl
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from deprovisioner.sdk import BackendError, OutOfService, Refused, Transient, Unavailable

OWN = ".deprovisioner"  # closed to customers: its mode is 0700
NEW, CLOSED = f"{OWN}/new", f"{OWN}/closed"
_SERVER, _LOCK = f"{OWN}/server", f"{OWN}/lock"
LOCK_SECONDS = 10.0
FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
# What an error of the file system means. One that is not here is Transient: the work may succeed later.
MEANS: dict[int, type[BackendError]] = {
    **dict.fromkeys((errno.ESTALE, errno.EIO, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.ENODEV), Unavailable),
    **dict.fromkeys((errno.EROFS, errno.ENOSPC, errno.EDQUOT), OutOfService),
    **dict.fromkeys((errno.EACCES, errno.EPERM), Refused),
}


@dataclass(frozen=True)
class Root:
    """An open root. Everything is reached from its descriptor, so that no renamed parent leads elsewhere."""

    path: str
    fd: int

    def server(self) -> str | None:
        """The server's identity; None where this is no root of ours yet."""
        with suppress(FileNotFoundError):
            return self.read(_SERVER).strip()
        return None

    def identify(self) -> str:
        """The server's identity; the first worker gives it one."""
        for folder in (OWN, NEW, CLOSED):
            with suppress(FileExistsError):
                os.mkdir(folder, 0o700, dir_fd=self.fd)
        if (known := self.server()) is not None:
            return known
        mine = f"{_SERVER}.{uuid.uuid4()}"
        self.write(mine, str(uuid.uuid4()))
        with suppress(FileExistsError):  # of two workers, one comes first
            os.link(mine, _SERVER, src_dir_fd=self.fd, dst_dir_fd=self.fd)
        os.unlink(mine, dir_fd=self.fd)
        return self.read(_SERVER).strip()

    @contextmanager
    def lock(self) -> Iterator[None]:
        """No other worker changes where a tree stands meanwhile. Raises Transient where one is at it for too long."""
        descriptor = os.open(_LOCK, os.O_RDWR | os.O_CREAT, 0o600, dir_fd=self.fd)
        try:
            deadline = time.monotonic() + LOCK_SECONDS
            while True:
                with suppress(BlockingIOError):
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                if time.monotonic() > deadline:
                    raise Transient(f"another worker holds {_LOCK} for {LOCK_SECONDS:.0f} s")
                time.sleep(0.02)
            yield
        finally:
            os.close(descriptor)

    def has(self, name: str) -> bool:
        """Whether something bears the name, a link that leads nowhere too."""
        with suppress(FileNotFoundError):
            os.stat(name, dir_fd=self.fd, follow_symlinks=False)
            return True
        return False

    @contextmanager
    def folder(self, name: str) -> Iterator[int]:
        """A folder's descriptor. Raises FileNotFoundError, or NotADirectoryError for a symbolic link too."""
        try:
            descriptor = os.open(name, FOLDER, dir_fd=self.fd)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), name) from None
            raise
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def names(self, folder: str = ".") -> Iterator[str]:
        """The names in a folder of ours, one at a time; nothing where there is no such folder."""
        with suppress(FileNotFoundError), self.folder(folder) as inside, os.scandir(inside) as entries:
            for entry in entries:
                yield entry.name

    def chmod(self, name: str, mode: int) -> None:
        """Set a folder's mode; never that of what a symbolic link leads to."""
        handle = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=self.fd)
        try:
            os.chmod(f"/proc/self/fd/{handle}", mode)
        finally:
            os.close(handle)

    def move(self, old: str, new: str) -> None:
        """Rename, inside the root."""
        os.rename(old, new, src_dir_fd=self.fd, dst_dir_fd=self.fd)

    def read(self, name: str) -> str:
        """The beginning of a file of ours."""
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=self.fd)
        try:
            return os.read(descriptor, 4096).decode(errors="replace")
        finally:
            os.close(descriptor)

    def write(self, name: str, text: str) -> None:
        """Write a file of ours, whole or not at all; an attempt that died leaves `name.draft`."""
        draft = f"{name}.draft"
        with suppress(FileNotFoundError):
            os.unlink(draft, dir_fd=self.fd)
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=self.fd)
        try:
            os.write(descriptor, text.encode())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        self.move(draft, name)


@contextmanager
def reached(path: str) -> Iterator[Root]:
    """The root; errors of the file system come out as MEANS says. Raises Unavailable where it is not there."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise Unavailable(f"the root {path!r} cannot be opened: {error.strerror}") from error
    try:
        yield Root(path, descriptor)
    except OSError as error:
        about = "" if error.filename is None else f": {str(error.filename)[:200]!r}"
        raise MEANS.get(error.errno or 0, Transient)(f"{error.strerror}{about}") from error
    finally:
        os.close(descriptor)
