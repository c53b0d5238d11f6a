"""A mutant: one guard, and the change that takes it out."""

from collections.abc import Iterable
from dataclasses import dataclass


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


# Where the statements of a job's transitions stand.
ENQUEUE_SQL = "outbox/jobs/enqueue.py"
CLAIM_SQL = "outbox/jobs/claim.py"
START_SQL = "outbox/jobs/start.py"
FINISH_SQL = "outbox/jobs/finish.py"
OPERATORS_SQL = "outbox/jobs/operators.py"
SHARED_SQL = "outbox/jobs/_sql.py"

Entry = tuple[str, ...]  # name, old text, new text, tests


def cut(file: str, block: str, tests: str, *entries: Entry) -> Iterable[Mutant]:
    """The mutants of one block; a test without a file is one of the file `tests`."""
    for name, old, new, *ids in entries:
        yield Mutant(name, file, block, old, new, tuple(id if "/" in id else f"{tests}::{id}" for id in ids))
