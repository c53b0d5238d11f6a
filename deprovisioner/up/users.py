"""The system users that servers run as when `up` is root: each server has one of its own.

They are numbers without a name, like systemd's dynamic users: nothing is written into the machine's list of users, and
no other program runs as one of them. A server's user is the owner of its folder. Through the home pass only these
users: they are in the home's group, and nobody else is.
"""

import grp
import os
import pwd
import secrets
import stat
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from outbox.errors import DeprovisionerError

# systemd's range for users without a name. No distribution gives one of these to a person or a package.
NUMBERS = range(61184, 65520)
_HAS_A_NAME = "nobody"  # every system with a root user has this one too


@dataclass(frozen=True)
class User:
    """A server's user, its own group, and the group that may pass through the home."""

    uid: int
    gid: int
    home_gid: int

    def with_a_name(self) -> "User":
        """For initdb, which wants to know its user's name: other processes of that user are not in these groups."""
        try:
            return User(pwd.getpwnam(_HAS_A_NAME).pw_uid, self.gid, self.home_gid)
        except KeyError:
            raise DeprovisionerError(
                f"initdb cannot run as root, and this machine has no user {_HAS_A_NAME!r}; run `up` as an ordinary user"
            ) from None


def of_server(home: Path, name: str, programs: Path) -> User | None:
    """The user of the server in `home/name`; None when we are not root: then it runs as the user that we are.

    Closes the home to all other users, and as root opens the way to it and to the server's programs.
    Raises DeprovisionerError when root may not do that.
    """
    close(home)
    if os.geteuid() != 0:
        return None
    _open_path(home, programs)
    data = home / name
    owner = data.stat().st_uid if data.exists() else 0
    uid = owner if owner in NUMBERS else _unused(home)
    return User(uid, uid, home.stat().st_gid)


def close(home: Path) -> None:
    """Make the home's folder, if there is none. No other user may enter it; as root, its servers may pass through."""
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        if os.geteuid() != 0:
            home.chmod(0o700)
            return
        if home.stat().st_gid not in NUMBERS:
            os.chown(home, -1, _unused(home))
        home.chmod(0o710)
    except OSError as error:
        why = "; run `up` as an ordinary user, or let root change owners" if os.geteuid() == 0 else ""
        raise DeprovisionerError(f"{home} cannot be closed to other users ({error}){why}") from error


def give(folder: Path, user: User) -> None:
    """Make a folder and all that is in it the user's. The folder itself comes last, so that a cut is made up for.

    Follows no link, and leaves alone what has another owner than the folder: its owner may have put it there.
    """
    before = folder.stat().st_uid
    for _, folders, files, inside in os.fwalk(folder, topdown=False):
        for name in (*folders, *files):
            owner = os.stat(name, dir_fd=inside, follow_symlinks=False).st_uid
            if owner == before or owner in NUMBERS:
                os.chown(name, user.uid, user.gid, dir_fd=inside, follow_symlinks=False)
    folder.chmod(0o700)
    os.chown(folder, user.uid, user.gid)


def _unused(home: Path) -> int:
    """A number that no user, no group, no process and nothing in the home has."""
    near = [home.stat(), *(path.lstat() for path in home.iterdir())]
    taken = {number for found in near for number in (found.st_uid, found.st_gid)}
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            taken.add(process.stat().st_uid)
    while True:
        number = secrets.choice(NUMBERS)
        if number not in taken and not _has_a_name(number):
            return number


def _has_a_name(number: int) -> bool:
    with suppress(KeyError):
        return bool(pwd.getpwuid(number))
    with suppress(KeyError):
        return bool(grp.getgrgid(number))
    return False


def _open_path(*paths: Path) -> None:
    """Let the servers' users pass through (not list) the folders above `paths`; prints each folder that it changes."""
    for folder in {parent for path in paths for parent in path.resolve().parents}:
        mode = folder.stat().st_mode
        if not mode & stat.S_IXOTH:
            print(f"up: chmod o+x {folder}: servers run as users of their own, not as root", file=sys.stderr)  # noqa: T201
            folder.chmod(mode | stat.S_IXOTH)
