"""The model of the protocol, checked by spin: it holds, and falls without fence, start mark or identity check."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).parent.parent / "docs/model/run"
PROBLEM = [tool for tool in ("spin", "gcc") if shutil.which(tool) is None]


@pytest.mark.skipif(bool(PROBLEM), reason=f"{' and '.join(PROBLEM)} not installed: apt-get install spin gcc")
def test_the_model_holds_and_each_mutant_falls() -> None:
    answer = subprocess.run([RUN, "--quick"], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in answer.stdout.splitlines()[2:]]
    assert {row[0] for row in rows if row[-1] == "holds"} == {"(nothing)"}
    assert {row[0] for row in rows if row[-1] == "fails"} == {
        *("NO_FENCE", "NO_START_MARK", "NO_IDENTITY"),
        *("NO_MARK", "RESTORE_READS_FIRST", "NO_GRACE", "NO_STILL", "NO_STILL_RELEASE"),
        *("NO_COMPARISON", "COMPARES_ONCE", "MEMORY_FALLS", "NO_WRITE", "STILL_IGNORED", "OWN_START_UNASKED"),
        *("EXPIRY_UNCOVERED", "ORDINARY_RELEASE", "BROKER_ALARMS", "LATE_ALARM"),
    }


def test_without_spin_it_says_what_to_install(tmp_path: Path) -> None:
    nothing = {"PATH": str(tmp_path)}
    answer = subprocess.run([sys.executable, RUN], env=nothing, capture_output=True, text=True, check=False)
    assert (answer.returncode, answer.stdout) == (2, "")
    assert "apt-get install spin gcc" in answer.stderr
