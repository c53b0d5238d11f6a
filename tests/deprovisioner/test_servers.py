"""The servers that `up` starts."""

from pathlib import Path

import pytest

from deprovisioner.up.servers import Child, ServerFailed


def test_a_child_that_fails_shows_what_it_said_and_not_what_earlier_ones_said(tmp_path: Path) -> None:
    for word in ("earlier", "later"):
        child = Child("api", ["sh", "-c", f"echo {word}; exit 1"], tmp_path / "log")
        child.spawn()
        with pytest.raises(ServerFailed, match=rf"says:\n{word}$"):
            child.wait_until(lambda: False)
