"""The crash matrix as data, and its table in docs/guarantees.md: `python -m tests.support.crash_matrix` makes it anew.

A cell is one death: in a story, on a kind of backend, just before or just after one boundary
(`tests/support/crash_points.py` says what that is). `tests/support/crash_cells.py` runs each cell.
"""

import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

GUARANTEES = Path(__file__).parent.parent.parent / "docs" / "guarantees.md"
WRITE = "WRITE_CRASH_MATRIX"
_BEGIN, _END = "<!-- crash matrix -->", "<!-- /crash matrix -->"

# What a worker does from claim to end when nothing goes wrong; a test holds each list against a traced run.
STEPS: dict[tuple[str, str], tuple[str, ...]] = {
    ("deprovision", "postgres"): (
        "claim",
        "start",
        "end sessions",
        "BEGIN",
        "ALTER ROLE role NOLOGIN",
        "COMMIT",
        "BEGIN#2",
        "ALTER DATABASE name ALLOW_CONNECTIONS",
        "COMMIT#2",
        "end sessions#2",
        "BEGIN#3",
        "ALTER DATABASE name ALLOW_CONNECTIONS#2",
        "ALTER DATABASE old RENAME",
        "COMMIT#3",
        "DROP DATABASE name",
        "BEGIN#4",
        "ALTER ROLE old RENAME",
        "COMMIT#4",
        "end sessions#3",
        "SELECT pg_catalog.lo_unlink(oid) FROM (SELECT",
        "BEGIN#5",
        "REASSIGN OWNED BY role",
        "DROP OWNED BY role",
        "COMMIT#5",
        "BEGIN#6",
        "DROP OWNED BY role#2",
        "DROP ROLE role",
        "COMMIT#6",
        "complete",
    ),
    ("deprovision", "redis"): (
        "claim",
        "start",
        "EXEC ACL SETUSER",
        "ACL SAVE",
        "EVAL UNLINK",
        "EVAL UNLINK#2",
        "EXEC ACL DELUSER",
        "ACL SAVE#2",
        "EVAL UNLINK#3",
        "complete",
    ),
    ("quarantine", "postgres"): (
        "claim",
        "start",
        "heartbeat",
        "heartbeat#2",
        "end sessions",
        "BEGIN",
        "ALTER ROLE role NOLOGIN",
        "COMMENT ON ROLE name",
        "COMMIT",
        "BEGIN#2",
        "ALTER DATABASE name ALLOW_CONNECTIONS",
        "COMMENT ON DATABASE name",
        "COMMIT#2",
        "end sessions#2",
        "heartbeat#3",
        "BEGIN#3",
        "ALTER DATABASE name ALLOW_CONNECTIONS#2",
        "ALTER DATABASE old RENAME",
        "COMMIT#3",
        "advance",
    ),
    ("quarantine", "redis"): (
        "claim",
        "start",
        "ACL DELUSER",
        "EVAL SET",
        "heartbeat",
        "EXEC ACL SETUSER",
        "ACL SAVE",
        "advance",
    ),
    ("restore", "postgres"): (
        "claim",
        "start",
        "heartbeat",
        "heartbeat#2",
        "end sessions",
        "BEGIN",
        "ALTER DATABASE old RENAME",
        "ALTER DATABASE name ALLOW_CONNECTIONS",
        "COMMENT ON DATABASE name",
        "ALTER ROLE role LOGIN",
        "COMMENT ON ROLE name",
        "COMMIT",
        "give_back",
    ),
    ("restore", "redis"): (
        "claim",
        "start",
        "ACL DELUSER",
        "EVAL SET",
        "heartbeat",
        "EXEC ACL SETUSER",
        "ACL SAVE",
        "give_back",
    ),
    ("provision", "postgres"): (
        "claim",
        "start",
        "BEGIN",
        "CREATE ROLE role LOGIN",
        "COMMENT ON ROLE role",
        "GRANT role TO CURRENT_USER",
        "COMMIT",
        "CREATE DATABASE name TEMPLATE",
        "BEGIN#2",
        "REVOKE ALL ON DATABASE",
        "GRANT CONNECT, CREATE, TEMPORARY",
        "COMMENT ON DATABASE name",
        "ALTER DATABASE old RENAME",
        "COMMIT#2",
        "GRANT ALL ON SCHEMA",
        "activate",
    ),
    ("provision", "redis"): (
        "claim",
        "start",
        "SET generation key",
        "ACL SETUSER",
        "ACL SAVE",
        "activate",
    ),
    ("adoption", "postgres"): (
        "claim",
        "start",
        "BEGIN",
        "COMMENT ON DATABASE name",
        "COMMENT ON ROLE name",
        "COMMIT",
        "activate",
    ),
    ("adoption", "redis"): (
        "claim",
        "start",
        "SET generation key",
        "ACL SETUSER",
        "ACL SAVE",
        "activate",
    ),
}

# Where another fault is added to the crash, or something other than a worker acts.
_OTHERS: dict[tuple[str, str], tuple[str, ...]] = {
    ("register (API)", "postgres"): ("register",),
    ("register (API)", "redis"): ("register",),
    ("delete (API)", "postgres"): ("enqueue",),
    ("delete (API)", "redis"): ("enqueue",),
    ("restore (API)", "postgres"): ("cancel", "restore"),
    ("restore (API)", "redis"): ("cancel", "restore"),
    ("grace over", "postgres"): ("claim", "start", "complete"),
    ("grace over", "redis"): ("claim", "start", "complete"),
    ("grace over, then restore", "postgres"): ("claim", "start"),
    ("grace over, then restore", "redis"): ("claim", "start"),
    ("redrive (API)", "postgres"): ("redrive",),
    ("resolve (API)", "postgres"): ("resolve",),
    ("resolve (API)", "redis"): ("resolve",),
    ("resolve of a birth (API)", "postgres"): ("resolve",),
    ("expired", "postgres"): ("expire",),
    ("expired", "redis"): ("expire",),
    ("backend dead", "postgres"): ("open breaker", "defer"),
    ("backend dead", "redis"): ("open breaker", "defer"),
    ("backend back", "postgres"): ("close breaker",),
    ("object held", "postgres"): ("heartbeat", "retry"),
    ("under a brake", "postgres"): ("count", "ALTER ROLE role NOLOGIN"),
    ("prepared transaction", "postgres"): (
        "ALTER DATABASE name CONNECTION",
        "SET ROLE owner",
        "ROLLBACK PREPARED gid",
        "RESET ROLE",
    ),
    ("not ours", "postgres"): ("stick",),
    ("not ours", "redis"): ("stick",),
    ("birth refused", "postgres"): ("rollback",),
    ("birth half done", "postgres"): ("DROP DATABASE name",),
    ("worker lost", "postgres"): ("sweep",),
    ("worker lost", "redis"): ("sweep",),
    ("worker lost, last attempt", "postgres"): ("sweep",),
}


@dataclass(frozen=True)
class Cell:
    """One death."""

    story: str
    kind: str
    at: str
    moment: str

    def __str__(self) -> str:
        return f"{self.story}-{self.kind}-{self.moment}-{self.at}".replace(" ", "_")


@dataclass(frozen=True)
class Outcome:
    """What became of the cell; `arrow` is the job's state right after the death."""

    status: str
    destroyed: int
    attempts: int
    leftovers: int = 0
    arrow: str | None = None

    @property
    def safe(self) -> str:
        """What may never differ from one run to the next."""
        more = f", {self.leftovers} unfinished dropped" if self.leftovers else ""
        return f"{self.status}, {self.destroyed} destroyed{more}"

    def __str__(self) -> str:
        return f"{self.safe}, {self.attempts} attempt{'' if self.attempts == 1 else 's'}"


def _cells() -> Iterable[Cell]:
    # Each moment of a provision twice: left alone afterwards, and deleted before another worker finishes it. So too
    # each moment of a quarantine: left alone, and restored.
    again = {"provision": "provision, then DELETE", "quarantine": "quarantine, then restore"}
    overtaken = {(again[story], kind): steps for (story, kind), steps in STEPS.items() if story in again}
    for (story, kind), steps in (_OTHERS | STEPS | overtaken).items():
        for at in steps:
            for moment in ("before", "after"):
                yield Cell(story, kind, at, moment)


CELLS = tuple(_cells())


def rows() -> list[tuple[str, str, str]]:
    """The table's rows: story, kind, boundary."""
    return list(dict.fromkeys((cell.story, cell.kind, cell.at) for cell in CELLS))


def table(outcomes: Mapping[Cell, Outcome]) -> str:
    """The table in Markdown."""
    lines = [
        "| story | backend | boundary | killed before it | killed after it |",
        "|---|---|---|---|---|",
    ]
    for row in rows():
        before, after = (str(outcomes.get(Cell(*row, moment), "")) for moment in ("before", "after"))
        lines.append(f"| {row[0]} | {row[1]} | {row[2]} | {before} | {after} |")
    return "\n".join(lines)


def written() -> dict[tuple[str, str, str], tuple[str, str]]:
    """The table that stands in the file: row -> (before, after)."""
    text = GUARANTEES.read_text().split(_BEGIN)[1].split(_END)[0]
    cells = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in text.strip().splitlines()[2:]]
    return {(story, kind, at): (before, after) for story, kind, at, before, after in cells}


def write(outcomes: Mapping[Cell, Outcome]) -> None:
    """Put the table of a whole run into the file."""
    head, rest = GUARANTEES.read_text().split(_BEGIN)
    GUARANTEES.write_text(f"{head}{_BEGIN}\n{table(outcomes)}\n{_END}{rest.split(_END)[1]}")


def main() -> int:
    """Run the matrix, and write its table when every cell came out right."""
    import pytest

    os.environ[WRITE] = "1"
    return int(pytest.main(["-q", "-m", "matrix", "tests/acceptance/test_crash_matrix.py", *sys.argv[1:]]))


if __name__ == "__main__":
    sys.exit(main())
