"""One door: routes and commands change things through `outbox.actions` alone, and read through `queries`."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# What these can do, an edge may ask for only by an action. `approvals` and `observations` are written by actions too.
BEHIND_THE_DOOR = {
    "jobs",
    "holds",
    "operations",
    "resources",
    "observations",
    "approvals",
    "brakes",
    "breakers",
    "recovery",
    "reconcile",
}
EDGES = sorted(
    str(path.relative_to(ROOT)) for folder in ("api/v1", "deprovisioner/cli") for path in (ROOT / folder).glob("*.py")
)


def imported(source: str) -> Iterator[str]:
    """The modules and names that a module imports, in its functions too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def past_the_door(source: str) -> list[str]:
    return [
        name
        for name in imported(source)
        if name == "outbox" or (name.startswith("outbox.") and name.split(".")[1] in BEHIND_THE_DOOR)
    ]


@pytest.mark.parametrize("edge", EDGES)
def test_an_edge_asks_for_changes_only_by_an_action(edge: str) -> None:
    assert past_the_door((ROOT / edge).read_text()) == []


@pytest.mark.parametrize(
    "source",
    [
        "from outbox import db, jobs",
        "import outbox",
        "import outbox.holds as h",
        "from outbox.jobs.operators import redrive",
        "def command():\n    from outbox import jobs as transitions",
        "class C:\n    def f(self):\n        if True:\n            from outbox.operations import stop",
    ],
)
def test_a_change_past_the_door_is_found(source: str) -> None:
    assert past_the_door(source)


def test_the_actions_stand_above_everything_else_in_the_outbox() -> None:
    below = [path for path in (ROOT / "outbox").rglob("*.py") if "actions" not in path.parts]
    found = {path.name for path in below for name in imported(path.read_text()) if name.startswith("outbox.actions")}
    assert found == set()
