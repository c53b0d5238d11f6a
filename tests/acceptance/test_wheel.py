"""`deprovisioner up` starts from an installed wheel, in a fresh environment and an empty folder."""

import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import httpx
import pytest

from deprovisioner.up import servers
from tests.support.up import Running, clean_environment

ROOT = Path(__file__).parents[2]
PACKAGES = ("deprovisioner", "outbox", "api", "worker", "migrations")
# Not needed to build a wheel. `.*` also leaves out `.venv`, which is large.
LEFT_OUT = shutil.ignore_patterns(".*", "*.egg-info", "build", "__pycache__", "tests", "bench", "docs")


@pytest.mark.proof
def test_an_installed_wheel_starts_everything_from_an_empty_folder(folder: Path) -> None:
    python = _environment(folder / "venv")
    wheel = _wheel(folder)
    _pip("--python", str(python), "install", "--no-deps", "--no-index", str(wheel))
    empty = folder / "empty"
    empty.mkdir()
    ask = f"import {', '.join(PACKAGES)}; print(*(package.__file__ for package in ({', '.join(PACKAGES)})))"
    found = subprocess.check_output([python, "-c", ask], cwd=empty, env=_outside(), text=True).split()
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


def _environment(path: Path) -> Path:
    """Make a virtual environment that has the dependencies of this one; return its python."""
    venv.create(path, with_pip=False)
    python = path / "bin" / "python"
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = Path(subprocess.check_output([python, "-c", ask], env=_outside(), text=True).strip())
    # Python reads no .pth file of a folder that a .pth file names, so an editable install there stays out.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def _wheel(folder: Path) -> Path:
    """A wheel of a copy of the tree: building leaves a folder behind."""
    tree = shutil.copytree(ROOT, folder / "tree", ignore=LEFT_OUT)
    _pip("wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(folder / "dist"), str(tree))
    (wheel,) = (folder / "dist").glob("*.whl")
    return wheel


def _modules(tree: Path) -> set[str]:
    return {str(file.relative_to(tree)) for package in PACKAGES for file in (tree / package).rglob("*.py")}


def _pip(*words: str) -> None:
    argv = [sys.executable, "-m", "pip", "--disable-pip-version-check", *words]
    done = subprocess.run(argv, env=_outside(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def _outside() -> dict[str, str]:
    """An environment in which no Python finds this tree."""
    return clean_environment(PYTHONPATH="")
