"""A mutant: one guard, and the change that takes it out."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


@dataclass(frozen=True)
class Mutant:
    """`old` becomes `new` in `file`, within the block (up to a blank line) that begins with `block`.

    `tests` are pytest's ids, the quickest killer first.
    """

    name: str
    file: str
    block: str
    old: str
    new: str
    tests: tuple[str, ...]

    def applied(self, text: str) -> str:
        """The file's text without the guard. Raises Stale unless block and old text are there exactly once."""
        if self.block and text.count(self.block) != 1:
            raise Stale(f"{self.file} has {text.count(self.block)} times {self.block!r}")
        begin = text.index(self.block) if self.block else 0
        end = text.find("\n\n", begin + len(self.block)) if self.block else -1
        end = len(text) if end < 0 else end
        if (found := text.count(self.old, begin, end)) != 1:
            raise Stale(f"{self.file}: {self.block!r} has {found} times {self.old!r}")
        return text[:begin] + text[begin:end].replace(self.old, self.new) + text[end:]


class Stale(Exception):
    """The product's text is no longer what the mutant takes for granted."""


Entry = tuple[str, ...]  # name, old text, new text, tests


def cut(place: str, block: str, tests: str, *entries: Entry) -> Iterable[Mutant]:
    """The mutants of one block; a test without a file is one of the file `tests`.

    `place` is a file, or a package: then each mutant is of the one module in it that has its block and its old text.
    """
    for name, old, new, *ids in entries:
        file = place if place.endswith(".py") else _module_with(place, block, old)
        yield Mutant(name, file, block, old, new, tuple(id if "/" in id else f"{tests}::{id}" for id in ids))


def _module_with(package: str, block: str, old: str) -> str:
    fits = [str(path.relative_to(ROOT)) for path, text in _texts(package).items() if block in text and old in text]
    return fits[0] if len(fits) == 1 else f"{package}/__init__.py"  # where it will be found to be stale


@lru_cache
def _texts(package: str) -> dict[Path, str]:
    return {path: path.read_text() for path in sorted((ROOT / package).rglob("*.py"))}
