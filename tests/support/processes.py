"""Real processes of the product. A worker is a pytest-celery node whose container wraps an operating-system process."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import psutil
from celery import Celery
from pytest_celery import CeleryTestWorker
from pytest_celery.vendors.worker.container import CeleryWorkerContainer

from deprovisioner.up import servers as embedded
from tests.support.witness import eventually

ROOT = Path(__file__).parent.parent.parent
# A start is a second of CPU; on a machine that is full of other tests' processes it may wait for that.
START_SECONDS = 60


class Process:
    """What docker-py calls a container, for a process: start, signal, read its log."""

    def __init__(self, name: str, argv: list[str], env: Mapping[str, str], log: Path) -> None:
        self.name = name
        self.argv = argv
        self.env = dict(env)
        self.log = log
        self.popen: subprocess.Popen[bytes] | None = None
        self.attrs = {"NetworkSettings": {"Networks": {}, "Ports": {}}, "Config": {"Env": []}}
        self.start()

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.popen = subprocess.Popen(self.argv, env=self.env, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)

    @property
    def pid(self) -> int:
        assert self.popen is not None
        return self.popen.pid

    @property
    def id(self) -> str:
        return f"{self.pid:012d}"

    @property
    def status(self) -> str:
        assert self.popen is not None
        return "running" if self.popen.poll() is None else "exited"

    def reload(self) -> None:
        """Nothing is cached."""

    def logs(self) -> bytes:
        return self.log.read_bytes()

    def kill(self, sig: str | int | None = None) -> None:
        number = getattr(signal, sig) if isinstance(sig, str) else sig or signal.SIGKILL
        assert self.popen is not None
        self.popen.send_signal(number)
        if number in (signal.SIGKILL, signal.SIGTERM):
            self.popen.wait(60)

    def restart(self, timeout: float = 10) -> None:
        self.stop(timeout)
        self.start()

    def stop(self, timeout: float = 10) -> None:
        assert self.popen is not None
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGCONT)
            self.popen.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.popen.wait(timeout)
        if self.popen.poll() is None:
            self.popen.kill()
        self.popen.wait()


class ProcessContainer(CeleryWorkerContainer):
    """pytest-celery's container around a Process."""

    @property
    def ready_prompt(self) -> str:
        return '"worker_ready"'

    def teardown(self) -> None:
        self._container.stop()


class System:
    """The product's processes on one control database. `env` is what they get."""

    def __init__(self, env: Mapping[str, str], logs: Path) -> None:
        self.env = {key: value for key, value in os.environ.items() if not key.startswith("DEPROVISIONER_")} | dict(env)
        self.logs = logs
        self.apis: list[Process] = []
        self.workers: list[CeleryTestWorker] = []

    def api(self, *argv: str, **env: str) -> str:
        """A new API process; its URL."""
        port = embedded.free_port()
        url = f"http://127.0.0.1:{port}"
        name = f"api-{len(self.apis)}"
        command = [sys.executable, *(argv or ("-m", "deprovisioner.cli", "api"))]
        process = Process(
            name, command, self.env | env | {"DEPROVISIONER_API_PORT": str(port)}, self.logs / f"{name}.log"
        )
        self.apis.append(process)
        eventually(lambda: process.status == "exited" or _answers(url), START_SECONDS, f"{name} answers")
        assert process.status == "running", process.logs().decode()
        return url

    def worker(self, *argv: str, ready: bool = True, **env: str) -> CeleryTestWorker:
        """A new worker process, as a pytest-celery node."""
        name = f"worker-{len(self.workers)}"
        command = [sys.executable, *(argv or ("-m", "deprovisioner.cli", "worker"))]
        process = Process(name, command, self.env | env, self.logs / f"{name}.log")
        node = CeleryTestWorker(ProcessContainer(process), Celery("tests", set_as_current=False))
        self.workers.append(node)
        if ready:
            node.wait_for_log('"worker_ready"', timeout=START_SECONDS)
        return node

    def cli(self, *words: str, **env: str) -> "subprocess.CompletedProcess[str]":
        """The command line, as a person at a shell has it."""
        argv = [sys.executable, "-m", "deprovisioner.cli", *words]
        return subprocess.run(
            argv, env=self.env | env, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
        )

    def stop(self) -> None:
        for worker in self.workers:
            worker.teardown()
        for api in self.apis:
            api.stop()


def shell(env: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    """One command of the real CLI, its output piped."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("DEPROVISIONER_")}
    argv = [sys.executable, "-m", "deprovisioner.cli", *words]
    return subprocess.run(argv, env=kept | env, capture_output=True, text=True, check=False, timeout=60)


def interruptible(argv: list[str], **options: Any) -> "subprocess.Popen[str]":
    """Start a child that Ctrl-C ends, even where the tests ignore SIGINT, as `make test &` of a script does."""
    # An ignored signal is inherited; Python raises KeyboardInterrupt only where SIGINT was not ignored at its start.
    return subprocess.Popen(argv, text=True, preexec_fn=_interruptible, **options)  # noqa: PLW1509


def _interruptible() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def client(url: str, token: str, **options: object) -> httpx.Client:
    """An HTTP client of one caller."""
    return httpx.Client(base_url=url, headers={"Authorization": f"Bearer {token}"}, timeout=30, **options)


def descendants(pid: int) -> list[SimpleNamespace]:
    """The processes below `pid`, as they are now."""
    found = []
    for child in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            found.append(SimpleNamespace(pid=child.pid, line=" ".join(child.cmdline())))
    return found


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/healthz", timeout=2).status_code == 200
    except httpx.HTTPError:
        return False
