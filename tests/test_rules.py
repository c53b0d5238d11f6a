"""Rules of the house that a reader would otherwise have to believe."""

import re
from pathlib import Path

import pytest

from outbox.settings import PREFIX, Settings
from outbox.states import TRANSITIONS

ROOT = Path(__file__).parent.parent
PRODUCT = [*ROOT.glob("outbox/**/*.py"), *ROOT.glob("api/**/*.py"), *ROOT.glob("worker/**/*.py")]
# A write of a state or status, in SQL; and statements that destroy a customer's thing.
WRITES_STATE = re.compile(
    r"SET\s+(\w+\s*=\s*[^;]*?,\s*)?(state|status)\s*=|\((\w+, )*(state|status)(, \w+)*\)\s*(VALUES|SELECT)"
)
DESTROYS = re.compile(r"\bDROP (DATABASE|ROLE|USER|SCHEMA|OWNED)\b|\bDELUSER\b|\bUNLINK\b|\bFLUSH(ALL|DB)\b")


def _files(pattern: re.Pattern[str]) -> set[str]:
    return {str(path.relative_to(ROOT)) for path in PRODUCT if pattern.search(_code(path))}


def _code(path: Path) -> str:
    return re.sub(r"^\s*#.*$|^\s*\"\"\".*?\"\"\"$", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)


def test_states_are_written_in_one_place() -> None:
    assert _files(WRITES_STATE) == {"outbox/jobs.py"}


def test_destructive_statements_stand_only_in_backends() -> None:
    found = _files(DESTROYS)
    assert found, "a pattern that finds nothing proves nothing"
    assert all(name.startswith("worker/backends/") for name in found), found


def test_every_setting_stands_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    missing = [name for name in Settings.model_fields if f"`{PREFIX}{name.upper()}`" not in readme]
    assert missing == []


def test_the_design_draws_every_arrow_and_no_other() -> None:
    drawn = re.search(
        r"<!-- transitions -->\n(.*?)<!-- /transitions -->", (ROOT / "docs/design.md").read_text(), re.DOTALL
    )
    assert drawn
    rows = {tuple(cell.strip() for cell in line.strip("| \n").split("|")) for line in drawn[1].splitlines()[2:]}
    assert rows == {(t.name, t.source or "", t.target, t.guard, t.by) for t in TRANSITIONS}


@pytest.mark.parametrize("path", [*PRODUCT, *ROOT.glob("tests/**/*.py")], ids=lambda p: str(p.relative_to(ROOT)))
def test_no_file_has_a_second_room_in_it(path: Path) -> None:
    longest = 520 if path.name in ("jobs.py", "cli.py", "postgres.py") else 350
    assert len(path.read_text().splitlines()) <= longest
