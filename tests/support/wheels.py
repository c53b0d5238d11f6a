"""Fresh environments with wheels of this tree: nothing is downloaded, and no Python there finds the tree itself."""

import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

from tests.support.up import clean_environment

ROOT = Path(__file__).parents[2]
# Not needed to build a wheel. `.*` also leaves out `.venv`, which is large.
LEFT_OUT = shutil.ignore_patterns(".*", "*.egg-info", "build", "__pycache__", "tests", "bench", "docs", "examples")


def environment(path: Path) -> Path:
    """Make a virtual environment that has the dependencies of this one; return its python."""
    venv.create(path, with_pip=False)
    python = path / "bin" / "python"
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = Path(subprocess.check_output([python, "-c", ask], env=outside(), text=True).strip())
    # Python reads no .pth file of a folder that a .pth file names, so an editable install there stays out.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def install(python: Path, folder: Path, *trees: Path) -> None:
    """Build a wheel of a copy of each tree (building leaves a folder behind), and install it there."""
    for n, tree in enumerate(trees):
        copy, dist = folder / f"tree-{n}", folder / f"dist-{n}"
        shutil.copytree(tree, copy, ignore=LEFT_OUT)
        _pip("wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(dist), str(copy))
        (wheel,) = dist.glob("*.whl")
        _pip("--python", str(python), "install", "--no-deps", "--no-index", str(wheel))


def _pip(*words: str) -> None:
    argv = [sys.executable, "-m", "pip", "--disable-pip-version-check", *words]
    done = subprocess.run(argv, env=outside(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def outside() -> dict[str, str]:
    """An environment in which no Python finds this tree."""
    return clean_environment(PYTHONPATH="")
