"""The conformance suite itself: each property has a test, each kind its column, each wrong option its words."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from deprovisioner.conformance import plugin, properties, suite, table
from tests.support import conformance_page

ROOT = Path(__file__).parents[2]


def test_every_property_is_shown_by_a_test_and_every_test_shows_one() -> None:
    shown = [getattr(test, "shows", None) for test in suite.TESTS.values()]
    assert set(shown) == set(properties.NAMES)


def test_the_table_in_the_page_is_the_one_that_the_code_s_data_make() -> None:
    assert conformance_page.written() == conformance_page.generated(), "python -m tests.support.conformance_page"


def test_every_shipped_kind_with_a_subject_runs_the_suite_and_its_kills() -> None:
    folder = ROOT / "tests/worker/backends/conformance"
    for kind in conformance_page.shipped():
        assert "from deprovisioner.conformance.suite import *" in (folder / f"test_{kind}.py").read_text()


def test_a_hole_needs_a_property_and_a_reason() -> None:
    made = table.table({"A": {"adopt": "nothing to adopt"}, "B": {}}, {"B": 12})
    assert "| An existing object is adopted, as it is, for one generation alone | no: 1 | yes |" in made
    assert "| yes | yes, 12 kills |" in made
    assert made.endswith("\n1. nothing to adopt")
    for wrong in ({"adopt": ""}, {"adoption": "nothing to adopt"}):
        with pytest.raises(ValueError, match="A: no property, or no reason"):
            table.table({"A": wrong})


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nonsense", "--backend=nonsense is not MODULE:FACTORY"),
        ("no_such:x", "'no_such' cannot be imported here"),
        ("json:nothing", "module 'json' has no 'nothing'"),
        ("json:__name__", "it is 'json', and no function"),
    ],
)
def test_a_wrong_backend_is_an_error_that_says_what_is_wrong(name: str, says: str) -> None:
    with pytest.raises(pytest.UsageError, match=says):
        plugin.find(name)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([], "no kind is given to be tested: pytest --pyargs deprovisioner.conformance --backend=MODULE:FACTORY"),
        (["--backend=json:loads"], "--backend=json:loads: the factory failed: TypeError"),
    ],
)
def test_a_run_without_a_subject_ends_with_words_and_no_traceback(
    options: list[str], says: str, tmp_path: Path
) -> None:
    words = [
        "-p",
        "deprovisioner.conformance.plugin",
        "-p",
        "no:cacheprovider",
        "--pyargs",
        "deprovisioner.conformance",
    ]
    argv = [sys.executable, "-m", "pytest", *words, *options]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(argv, check=False, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 4, done.stdout + done.stderr
    assert says in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
