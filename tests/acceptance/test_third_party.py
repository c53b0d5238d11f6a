"""A third party's package is installed beside the product's wheel, and used without a line changed here."""

import os
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from deprovisioner.up.servers import free_port
from tests.support import wheels
from tests.support.api import until
from tests.support.processes import Process, client
from tests.support.witness import eventually

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples/deprovisioner-directory"
pytestmark = pytest.mark.proof


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a fresh environment with two wheels: the product's, and the example's."""
    folder = tmp_path_factory.mktemp("third-party")
    made = wheels.environment(folder / "venv")
    wheels.install(made, folder, ROOT, EXAMPLE)
    return made


@pytest.fixture
def share(tmp_path: Path) -> Path:
    (made := tmp_path / "share").mkdir()
    return made


@pytest.fixture
def acme(python: Path, share: Path, settled: dict[str, str], tenant: str, tmp_path: Path) -> Iterator[httpx.Client]:
    """A tenant's client of an API; a worker runs too, both from the fresh environment, with this one backend."""
    (tmp_path / "files.toml").write_text(
        f'[backends.files]\nkind = "directory"\ndsn = "directory:{share}"\nadoption = "tenants"\n'
        'grace = "1h"\nmin_grace = "0s"\n'
    )
    port, command = free_port(), str(python.with_name("deprovisioner"))
    env = wheels.outside() | settled
    env |= {"DEPROVISIONER_BACKENDS": str(tmp_path / "files.toml"), "DEPROVISIONER_API_PORT": str(port)}
    started = [Process(part, [command, part], env, tmp_path / f"{part}.log") for part in ("api", "worker")]
    with client(f"http://127.0.0.1:{port}", tenant) as caller:
        eventually(lambda: _answers(caller) or started[0].status == "exited", what="the API answers")
        yield caller
    for process in started:
        process.stop()


def _answers(caller: httpx.Client) -> bool:
    try:
        return caller.get("/healthz").status_code == 200
    except httpx.HTTPError:
        return False


def _created(acme: httpx.Client, **more: Any) -> dict[str, Any]:
    body = {"kind": "directory", "backend": "files", "name": f"n-{uuid.uuid4()}"} | more
    answer = acme.post("/v1/resources", json=body)
    assert answer.status_code == 202, answer.text
    return until(acme, answer.json()["resource"], "active")


def test_a_tree_is_made_deleted_restored_and_destroyed(acme: httpx.Client, share: Path) -> None:
    made = _created(acme)
    tree = Path(acme.get(f"/v1/resources/{made['id']}/credentials").json()["path"])
    assert tree.parent == share
    outside = share.parent / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    for n in range(10_000):
        os.close(os.open(tree / f"f{n}", os.O_CREAT))
    deep = tree
    for _ in range(300):
        deep = deep / "d"
        deep.mkdir()
    (tree / "line\nbreak").write_text("odd")
    (deep / "link").symlink_to(outside)
    os.link(outside / "kept", deep / "hard")
    assert acme.delete(f"/v1/resources/{made['id']}").status_code == 202
    eventually(lambda: not tree.exists(), what="the tree is closed")
    assert acme.post(f"/v1/resources/{made['id']}/restore", json={"reason": "a mistake"}).status_code == 202
    until(acme, made, "active")
    assert (tree / "line\nbreak").read_text() == "odd"
    assert acme.delete(f"/v1/resources/{made['id']}?grace=0s").status_code == 202
    until(acme, made, "deleted")
    assert not tree.exists()
    assert list((share / ".deprovisioner/closed").iterdir()) == []
    assert (outside / "kept").read_text() == "kept"


def test_a_tree_that_exists_is_adopted_and_a_link_is_not(acme: httpx.Client, share: Path) -> None:
    (share / "orders").mkdir()
    (share / "orders" / "file").write_text("theirs")
    (share / "link").symlink_to(share / "orders")
    made = _created(acme, manifest={"name": "orders"})
    assert made["manifest"]["generation"]
    answer = acme.post(
        "/v1/resources", json={"kind": "directory", "backend": "files", "name": "l", "manifest": {"name": "link"}}
    )
    job = answer.json()["job"]["url"]
    eventually(lambda: acme.get(job).json()["state"] == "stuck", what="the link is refused")
    assert "there is no folder 'link' to adopt" in acme.get(job).json()["last_error"]
    assert acme.delete(f"/v1/resources/{made['id']}?grace=0s").status_code == 202
    until(acme, made, "deleted")
    assert not (share / "orders").exists()
    assert (share / "link").is_symlink()


def test_the_package_passes_the_conformance_suite_with_nothing_of_our_tests_installed(
    python: Path, tmp_path: Path
) -> None:
    words = ["-q", "-p", "no:cacheprovider", "--pyargs", "deprovisioner.conformance"]
    argv = [python, "-m", "pytest", *words, "--backend=deprovisioner_directory.conformance:subject"]
    done = subprocess.run(
        argv, check=False, cwd=tmp_path, env=wheels.outside(), capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stdout + done.stderr
    last = done.stdout.splitlines()[-1]
    assert "20 passed, 4 skipped" in last
