"""The conformance suite notices a fault of each property, on backends that have one each."""

import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections import defaultdict
from pathlib import Path

import pytest

from deprovisioner.conformance import properties, suite

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "examples/deprovisioner-directory/src"
KILLS = "killed and resumed"


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """By property, the name of the backend that lacks it."""
    monkeypatch.syspath_prepend(str(SOURCES))
    from tests.support.broken import BROKEN, ELSEWHERE

    assert BROKEN.keys() | ELSEWHERE == set(properties.NAMES)
    return {name: factory for name, (factory, _) in BROKEN.items()}


def _failed(folder: Path, select: str, factories: set[str]) -> dict[str, set[str]]:
    """By factory, the properties whose tests failed in a run of the suite on these backends."""
    words = [
        "-p",
        "deprovisioner.conformance.plugin",
        "-p",
        "no:cacheprovider",
        "--pyargs",
        "deprovisioner.conformance",
    ]
    words += ["-q", "--tb=no", "-m", "not proof", "-k", select, f"--junitxml={folder / 'report.xml'}"]
    words += [f"--backend=tests.support.broken:{factory}" for factory in sorted(factories)]
    words += ["--backend=deprovisioner_directory.conformance:subject"]  # it has no fault
    env = os.environ | {"PYTHONPATH": f"{ROOT}:{SOURCES}"}
    argv = [sys.executable, "-m", "pytest", *words]
    done = subprocess.run(argv, check=False, cwd=folder, env=env, capture_output=True, text=True, timeout=280)
    assert done.returncode == 1, done.stdout + done.stderr
    failed = defaultdict(set)
    for case in ET.parse(folder / "report.xml").iter("testcase"):
        name, _, parameters = case.get("name", "").partition("[")
        if case.find("failure") is not None:
            factory = parameters.partition(":")[2].split("-")[0].rstrip("]")
            failed[factory].add(suite.TESTS[name].shows)
    return failed


def test_each_fault_is_noticed_by_a_test_of_its_property(broken: dict[str, str], tmp_path: Path) -> None:
    others = {name: factory for name, factory in broken.items() if name != KILLS}
    tests = {name: [one for one, test in suite.TESTS.items() if test.shows == name] for name in others}
    select = " or ".join(f"({factory} and ({' or '.join(tests[name])}))" for name, factory in others.items())
    failed = _failed(tmp_path, select, set(others.values()))
    assert {name: factory for name, factory in others.items() if name not in failed[factory]} == {}


def test_a_fault_that_only_a_kill_shows_is_noticed_by_the_kills(broken: dict[str, str], tmp_path: Path) -> None:
    failed = _failed(tmp_path, "killed or told_apart or adopted", {broken[KILLS]})
    assert failed == {broken[KILLS]: {KILLS}}
