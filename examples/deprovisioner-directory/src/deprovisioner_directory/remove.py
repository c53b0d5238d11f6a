"""A customer's tree removed: no link followed, no file opened, in constant memory and with three open folders."""

import errno
import os
from contextlib import suppress
from itertools import islice

from deprovisioner.sdk import Transient, tell
from deprovisioner_directory.root import FOLDER, Root

BATCH = 1_000  # names in memory at once
_PASSES = 1_000_000_000 // BATCH


def remove(root: Root, name: str, *, last: str) -> int:
    """Remove a folder with all that is in it, `last` at the very end; how many files and folders.

    A deep tree is made flat first: a folder in a folder is moved up to the top, so that no depth needs a stack.
    Another worker may be at it too. Raises Transient where something is put in again and again.
    """
    removed = 0
    with suppress(FileNotFoundError):
        root.chmod(name, 0o700)
        with root.folder(name) as top:
            for _ in range(_PASSES):
                if not (batch := _batch(top, last)):
                    break
                for entry in batch:
                    removed += _removed(top, entry)
                tell(removed, None, "files")
            else:
                raise Transient(f"the tree is filled while it is being removed: {removed} are gone")
            with suppress(FileNotFoundError):
                os.unlink(last, dir_fd=top)
        os.rmdir(name, dir_fd=root.fd)
    return removed


def _batch(folder: int, but: str) -> list[str]:
    with os.scandir(folder) as entries:
        return list(islice((entry.name for entry in entries if entry.name != but), BATCH))


def _removed(top: int, name: str) -> int:
    """Remove a file, or one level of a folder: its folders come up to the top. 1 where it is gone."""
    if _unlinked(top, name):
        return 1
    with suppress(FileNotFoundError):
        Root(name, top).chmod(name, 0o700)
        inside = os.open(name, FOLDER, dir_fd=top)
        try:
            gone = 0
            while batch := _batch(inside, ""):
                for entry in batch:
                    if _unlinked(inside, entry):
                        gone += 1
                        continue
                    with suppress(FileNotFoundError):
                        Root(entry, inside).chmod(entry, 0o700)  # its parent changes, so it must be writable
                        os.rename(entry, f"{os.urandom(16).hex()}", src_dir_fd=inside, dst_dir_fd=top)
        finally:
            os.close(inside)
        try:
            os.rmdir(name, dir_fd=top)
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:  # filled again: the next pass sees it
                raise
            return gone
        return gone + 1
    return 0


def _unlinked(folder: int, name: str) -> bool:
    """Whether it is gone; False for a folder. A link is removed, not what it leads to."""
    try:
        os.unlink(name, dir_fd=folder)
    except FileNotFoundError:
        return True
    except IsADirectoryError:
        return False
    except PermissionError:  # POSIX lets a system answer so for a folder
        with suppress(FileNotFoundError):
            handle = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
            os.close(handle)
            return False
        return True
    return True
