"""`deprovisioner up` starts from an installed wheel, in a fresh environment and an empty folder."""

import subprocess
from pathlib import Path

import httpx
import pytest

from deprovisioner.up import servers
from tests.support import wheels
from tests.support.up import Running

ROOT = Path(__file__).parents[2]
PACKAGES = ("deprovisioner", "outbox", "api", "worker", "migrations")


@pytest.mark.proof
def test_an_installed_wheel_starts_everything_from_an_empty_folder(folder: Path) -> None:
    python = wheels.environment(folder / "venv")
    wheels.install(python, folder, ROOT)
    empty = folder / "empty"
    empty.mkdir()
    ask = f"import {', '.join(PACKAGES)}; print(*(package.__file__ for package in ({', '.join(PACKAGES)})))"
    found = subprocess.check_output([python, "-c", ask], cwd=empty, env=wheels.outside(), text=True).split()
    assert all(Path(file).is_relative_to(folder / "venv") for file in found), found

    assert _modules(Path(found[0]).parents[1]) == _modules(ROOT), "a package is missing in pyproject.toml"

    port = servers.free_port()
    command = [str(python.with_name("deprovisioner"))]
    running = Running(folder / "home", port, command=command, cwd=empty, PYTHONPATH="").ready()
    try:
        assert httpx.get(f"http://127.0.0.1:{port}/healthz").status_code == 200
    finally:
        assert running.stop() == 0
    assert list(empty.iterdir()) == []


def _modules(tree: Path) -> set[str]:
    return {str(file.relative_to(tree)) for package in PACKAGES for file in (tree / package).rglob("*.py")}
