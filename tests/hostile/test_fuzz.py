"""The API answers whatever Schemathesis sends as its own description says: `make fuzz`, in short."""

from pathlib import Path

import pytest

from tests import fuzz
from tests.support.processes import System


@pytest.mark.proof
def test_no_answer_is_a_server_error_or_missing_in_the_description(
    system: System, settled: dict[str, str], tmp_path: Path
) -> None:
    tokens, url, log = fuzz.populate(), system.api(), tmp_path / "schemathesis.log"
    system.worker()
    for token in tokens.values():
        assert fuzz.fuzz(url, token, 10, log), log.read_text()
    assert log.read_text().count("No issues found") == len(tokens), log.read_text()
