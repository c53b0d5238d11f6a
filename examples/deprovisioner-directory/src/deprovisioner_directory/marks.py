"""What says whose a tree is: a file in it; and what was there before a quarantine."""

import json
import os
import stat
import uuid
from contextlib import suppress
from dataclasses import dataclass

from deprovisioner.sdk import mark
from deprovisioner_directory.root import CLOSED, OWN, Root

MARK = OWN  # in a tree, as under the root: a name that customers know to leave alone
_LONGEST = 1_000  # bytes; ours has 120 and the name


@dataclass(frozen=True)
class Mark:
    """Which resource's a tree is, and the name under which it was marked."""

    generation: str
    name: str


@dataclass(frozen=True)
class Before:
    """A tree's name and mode before it was closed."""

    name: str
    mode: int


def of_tree(root: Root, name: str) -> Mark | None:
    """The mark of the folder with this name, None where it has none. Raises FileNotFoundError, NotADirectoryError."""
    with root.folder(name) as tree:
        try:
            # A customer may have put a pipe, a device or a link there.
            found = os.open(MARK, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=tree)
        except OSError:
            return None
        try:
            if not stat.S_ISREG(os.fstat(found).st_mode):
                return None
            return _parsed(os.read(found, _LONGEST))
        finally:
            os.close(found)


def _parsed(text: bytes) -> Mark | None:
    try:
        found = json.loads(text)
        generation = str(found["mark"]).removeprefix(mark(""))
        return Mark(str(uuid.UUID(generation)), str(found["name"]))
    except (ValueError, KeyError, TypeError):
        return None


def put(root: Root, folder: str, generation: str, name: str) -> None:
    """Mark a folder, as the one that has or will have this name: whole or not at all."""
    with root.folder(folder) as tree:
        Root(folder, tree).write(MARK, json.dumps({"mark": mark(generation), "name": name}))


def remove(root: Root, name: str) -> None:
    """Take the mark off a tree."""
    with root.folder(name) as tree, suppress(FileNotFoundError):
        os.unlink(MARK, dir_fd=tree)


def note(root: Root, generation: str, name: str) -> None:
    """Keep what a quarantine changes."""
    with root.folder(name) as tree:
        mode = stat.S_IMODE(os.fstat(tree).st_mode)
    root.write(note_name(generation), json.dumps({"name": name, "mode": mode}))


def before(root: Root, generation: str) -> Before:
    """What the note of a closed tree says."""
    found = json.loads(root.read(note_name(generation)))
    return Before(found["name"], found["mode"])


def forget(root: Root, generation: str) -> None:
    """Remove the note."""
    for name in (note_name(generation), f"{note_name(generation)}.draft"):
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=root.fd)


def note_name(generation: str) -> str:
    """Where the note of a closed tree is; it goes after the tree."""
    return f"{CLOSED}/{generation}.before"
