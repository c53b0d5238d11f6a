"""A folder of this machine as the file server: `--backend=deprovisioner_directory.conformance:subject`."""

import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

from deprovisioner.sdk import Backend, Json
from deprovisioner_directory.backend import Directory

_FILES = 20
_ODD = ("a\nb", "-rf", "*", "é\x7f", " ", "\udcff")


@contextmanager
def subject() -> Iterator["Subject"]:
    """A new folder, removed at the end."""
    with tempfile.TemporaryDirectory(prefix="deprovisioner-directory-") as folder:
        (root := Path(folder) / "root").mkdir()
        yield Subject(root)


class Subject:
    """See `deprovisioner.conformance.subject`."""

    calls = ("os.mkdir", "os.rename", "os.link", "os.unlink", "os.rmdir", "os.chmod")
    not_shown: ClassVar[Mapping[str, str]] = {
        "not authoritative": "a folder has no replica that answers under its path",
        "least rights": "the account is the system's user that the worker runs as, in one process only one",
        "secrets": "nothing is secret: a path opens the folder, and the system's user decides who may",
    }

    def __init__(self, root: Path) -> None:
        self._root = root

    def backend(self) -> Backend:
        return Directory(f"directory:{self._root}")

    def dead(self) -> Backend:
        return Directory(f"directory:{self._root}/not/mounted")

    def secrets(self, _: Json) -> list[str]:
        return []

    def bears(self, manifest: Json) -> bool:
        generation = str(manifest["generation"])
        own = self._root / ".deprovisioner"
        left = [*own.glob(f"closed/{generation}*"), *own.glob(f"new/{generation}*")]
        return bool(left) or os.path.lexists(self._root / manifest["name"])

    def put(self, credentials: Json) -> None:
        """Files and links that a careless removal would follow: out of the tree, to a file and to a folder."""
        tree = Path(credentials["path"])
        outside = self._root.parent / f"outside-{tree.name}"
        (outside / "folder").mkdir(parents=True, exist_ok=True)
        (outside / "file").write_text("kept")
        (tree / "sub/sub").mkdir(parents=True)
        for n in range(_FILES):
            (tree / f"sub/f{n}").write_text(str(n))
        for name in _ODD:
            (tree / name).write_text("odd")
        (tree / "link").symlink_to(outside / "file")
        (tree / "sub/sub/link").symlink_to(outside / "folder")
        os.link(outside / "file", tree / "hard")

    def has(self, credentials: Json) -> bool:
        tree = Path(credentials["path"])
        files = sorted(path.name for path in tree.glob("sub/f*"))
        odd = all((tree / name).read_text() == "odd" for name in _ODD)
        return files == sorted(f"f{n}" for n in range(_FILES)) and odd and (tree / "hard").read_text() == "kept"

    def can_log_in(self, credentials: Json) -> bool:
        try:
            os.listdir(credentials["path"])
        except OSError:
            return False
        return True

    @contextmanager
    def session(self, credentials: Json) -> Iterator[Callable[[], None]]:
        yield lambda: (Path(credentials["path"]) / "late").write_text("x") and None

    def made_by_hand(self) -> tuple[Json, Json]:
        name = f"or[ds]*_{uuid.uuid4().hex}"
        (self._root / name).mkdir()
        return {"name": name, "generation": None, "server": None}, {"path": str(self._root / name)}

    def disguises(self) -> Iterator[Callable[[Json], None]]:
        """Renamed; made again under its name; its mark taken off; a link in its place."""

        def renamed(manifest: Json) -> None:
            (self._root / manifest["name"]).rename(self._root / f"moved_{manifest['name']}")

        def made_again(manifest: Json) -> None:
            renamed(manifest)
            (self._root / manifest["name"]).mkdir()

        def unmarked(manifest: Json) -> None:
            (self._root / manifest["name"] / ".deprovisioner").unlink()

        def linked(manifest: Json) -> None:
            renamed(manifest)
            (self._root / manifest["name"]).symlink_to(self._root / f"moved_{manifest['name']}")

        yield from (renamed, made_again, unmarked, linked)

    def neighbours(self, manifest: Json) -> list[Json]:
        name = manifest["name"]
        near = {f"{name}2", f"x{name}", name[:-1], name.replace("[ds]*", "dx")} - {name}
        for one in near:
            (self._root / one).mkdir(exist_ok=True)
        return [{"path": str(self._root / one)} for one in near]

    @contextmanager
    def elsewhere(self) -> Iterator[Backend]:
        with tempfile.TemporaryDirectory() as root:
            other = Directory(f"directory:{root}")
            other.plan(uuid.uuid4(), uuid.uuid4())
            yield other

    @contextmanager
    def not_authoritative(self) -> Iterator[tuple[Backend, Backend]]:
        raise NotImplementedError(self.not_shown["not authoritative"])
        yield

    def weaker(self) -> Iterator[tuple[str, Backend]]:
        raise NotImplementedError(self.not_shown["least rights"])

    def destroyed_by_hand(self, manifest: Json) -> None:
        shutil.rmtree(self._root / manifest["name"])
