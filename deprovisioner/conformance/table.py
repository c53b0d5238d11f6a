"""The table backend x property, from data: `python -m deprovisioner.conformance.table TITLE=MODULE:SUBJECT_CLASS …`."""

import importlib
import sys
from collections.abc import Iterable, Mapping

from deprovisioner.conformance.properties import PROPERTIES, unknown

KILLED = "killed and resumed"


def table(not_shown: Mapping[str, Mapping[str, str]], kills: Mapping[str, int] | None = None) -> str:
    """Markdown: a row a property, a column a kind, by its title; the reason of each hole below.

    `kills`: by title, how many deaths the matrix of the last whole run had. Raises ValueError for a hole without a
    reason, and for one that is no property.
    """
    for title, excuses in not_shown.items():
        if wrong := unknown(excuses):
            raise ValueError(f"{title}: no property, or no reason: {', '.join(wrong)}")
    reasons = list(dict.fromkeys(reason for excuses in not_shown.values() for reason in excuses.values()))

    def cell(title: str, name: str) -> str:
        if name in not_shown[title]:
            return f"no: {reasons.index(not_shown[title][name]) + 1}"
        if name == KILLED and kills and title in kills:
            return f"yes, {kills[title]} kills"
        return "yes"

    rows = [("Property", *not_shown), ("---",) * (1 + len(not_shown))]
    rows += [(one.sentence, *(cell(title, one.name) for title in not_shown)) for one in PROPERTIES]
    return "\n".join([*map(_row, rows), "", *(f"{n}. {reason}" for n, reason in enumerate(reasons, 1))]).rstrip()


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main(words: list[str]) -> None:
    """Print the table of some Subjects, by their classes alone: no server is started."""
    columns = {}
    for word in words:
        title, _, place = word.partition("=")
        module, _, name = place.partition(":")
        columns[title] = getattr(importlib.import_module(module), name).not_shown
    sys.stdout.write(f"{table(columns)}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
