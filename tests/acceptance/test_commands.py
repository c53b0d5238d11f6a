"""The command line as a user meets it: wrong settings, help, and the demo."""

import json
import subprocess

import pytest

from tests.support import forked
from tests.support.up import CLI, clean_environment


def test_a_wrong_setting_is_a_usage_error_that_names_it() -> None:
    for words in (("jobs", "list"), ("worker",), ("api",), ("up",)):
        answer = forked.run(words, clean_environment(DEPROVISIONER_LEASE="1"))
        assert answer.returncode == 2
        assert "DEPROVISIONER_LEASE is not a setting; did you mean DEPROVISIONER_LEASE_SECONDS?" in answer.stderr


def test_a_database_that_does_not_run_is_named_with_what_to_do() -> None:
    nobody = clean_environment(DEPROVISIONER_DATABASE_URL="postgresql://u@127.0.0.1:1/d")
    for words, told in ((("jobs", "list"), "is it running?"), (("hold", "set", "--global"), "stop their processes")):
        answer = forked.run(words, nobody)
        assert (answer.returncode, told in answer.stderr) == (1, True), answer


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["up"],
        ["jobs"],
        ["jobs", "list"],
        ["breakers", "list"],
        ["backends", "check"],
        ["resources", "delete"],
        ["token", "create"],
        ["demo"],
        ["doctor"],
        ["audit", "acts"],
        ["audit", "checkpoint"],
        ["audit", "export"],
    ],
)
def test_help_shows_an_example(words: list[str]) -> None:
    answer = forked.run([*words, "--help"], clean_environment())
    assert answer.returncode == 0
    assert "Example" in answer.stdout or words in (["jobs"],)


@pytest.mark.proof
def test_the_demo_kills_a_worker_and_keeps_its_promise() -> None:
    words = ["demo", "--resources", "6", "--deletes", "4", "--json"]
    answer = subprocess.run([*CLI, *words], check=False, env=clean_environment(), capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout)["kept"] is True
