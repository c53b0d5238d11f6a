"""The place of a snapshot: a folder (`file:/path`), or a bucket (`s3://bucket/prefix?endpoint=URL`).

An object appears under its name only when it is whole.
"""

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

from outbox.errors import Transient
from worker.snapshots.sealed import Read, Write

_PARTIAL = ".partial"


class Store(Protocol):
    """Holds objects by name. Methods raise Transient where the store does not do it, Refused where it never will."""

    def writing(self, name: str) -> contextlib.AbstractContextManager[Write]:
        """What takes an object's bytes; the object is there once the block has ended, and not where it raised."""

    def reading(self, name: str) -> contextlib.AbstractContextManager[Read]:
        """What gives an object's bytes, at most as many as asked for, none at its end."""

    def remove(self, name: str) -> None:
        """Remove an object, and whatever of it a writer that died has left. Safe to repeat."""


def of(url: str) -> Store:
    """The store of a URL, as the backends file has it."""
    if url.startswith("s3:"):
        from worker.snapshots import s3  # noqa: PLC0415 - an optional extra

        return s3.Bucket(url)
    return Folder(Path(unquote(urlsplit(url).path)))


def located(url: str, name: str) -> str:
    """Where an object of a store is, as `snapshots.location` keeps it."""
    parts = urlsplit(url)
    return parts._replace(path=f"{parts.path.rstrip('/')}/{name}").geturl()


def at(location: str) -> tuple[Store, str]:
    """The store and the name of what `located` has named."""
    parts = urlsplit(location)
    folder, _, name = parts.path.rpartition("/")
    return of(parts._replace(path=folder or "/").geturl()), name


class Folder:
    """Files in a folder that an administrator has made; of a shared disk where workers run on several hosts."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @contextmanager
    def writing(self, name: str) -> Iterator[Write]:
        """See Store."""
        partial = self._path / f"{name}{_PARTIAL}"
        with _told(self._path), open(partial, "wb", opener=_new) as file:
            try:
                yield file.write
                file.flush()
                os.fsync(file.fileno())
                partial.rename(self._path / name)
                self._sync()
            except BaseException:
                partial.unlink(missing_ok=True)
                raise

    @contextmanager
    def reading(self, name: str) -> Iterator[Read]:
        """See Store."""
        with _told(self._path), open(self._path / name, "rb") as file:
            yield file.read

    def remove(self, name: str) -> None:
        """See Store."""
        with _told(self._path):
            for one in (name, f"{name}{_PARTIAL}"):
                (self._path / one).unlink(missing_ok=True)
            self._sync()

    def _sync(self) -> None:
        folder = os.open(self._path, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not path.is_dir():
            raise Transient(
                f"the snapshot store {path} is no folder here: mount its disk, or make the folder"
            ) from error
        raise Transient(f"the snapshot store {path}: {error.strerror or error}") from error


def _new(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_EXCL, 0o600)
