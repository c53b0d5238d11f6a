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

import click
import httpx
import psutil
from celery import Celery
from pytest_celery import CeleryTestWorker
from pytest_celery.vendors.worker.container import CeleryWorkerContainer

from deprovisioner.cli import main
from deprovisioner.up import servers as embedded
from tests.support import forked
from tests.support.witness import eventually

ROOT = forked.ROOT
# A start takes a second of CPU, for which a busy machine may let it wait.
START_SECONDS = 120


class Process:
    """What docker-py calls a container, for a process: start, signal, read its log.

    `argv` begins with a program, or with a command of `deprovisioner`: then the process is forked (`forked.py`).
    """

    def __init__(self, name: str, argv: list[str], env: Mapping[str, str], log: Path) -> None:
        self.name = name
        self.argv = argv
        self.env = dict(env)
        self.log = log
        self.popen: subprocess.Popen[bytes] | forked.Forked | None = None
        self.attrs = {"NetworkSettings": {"Networks": {}, "Ports": {}}, "Config": {"Env": []}}
        self.start()

    def start(self) -> None:
        self.log.touch()
        if self.argv[0] in main.list_commands(click.Context(main)):
            crash_points = any(name.startswith("CRASH_") for name in self.env)
            self.popen = forked.Forked(self.argv, self.env, self.log, crash_points=crash_points)
            return
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
        command = [sys.executable, *argv] if argv else ["api"]
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
        command = [sys.executable, *argv] if argv else ["worker"]
        process = Process(name, command, self.env | env, self.logs / f"{name}.log")
        node = CeleryTestWorker(ProcessContainer(process), Celery("tests", set_as_current=False))
        self.workers.append(node)
        if ready:
            eventually(lambda: _ready(process), START_SECONDS, f"{name} is ready")
            assert process.status == "running", process.logs().decode()
        return node

    def cli(self, *words: str, **env: str) -> "subprocess.CompletedProcess[str]":
        """One command, as a person at a shell runs it."""
        return forked.run(words, self.env | env)

    def stop(self) -> None:
        for worker in self.workers:
            worker.teardown()
        for api in self.apis:
            api.stop()


def shell(env: Mapping[str, str], *words: str) -> "subprocess.CompletedProcess[str]":
    """One command, as a person at a shell runs it, with these variables of ours and no others."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("DEPROVISIONER_")}
    return forked.run(words, kept | dict(env))


def interruptible(argv: list[str], **options: Any) -> "subprocess.Popen[str]":
    """Start a child that Ctrl-C ends, even where the tests ignore SIGINT, as `make test &` of a script does."""
    # An ignored signal is inherited; Python raises KeyboardInterrupt only where SIGINT was not ignored at its start.
    return subprocess.Popen(argv, text=True, preexec_fn=_interruptible, **options)  # noqa: PLW1509


def _interruptible() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def client(url: str, token: str, **options: object) -> httpx.Client:
    """An HTTP client of one caller."""
    return httpx.Client(base_url=url, headers={"Authorization": f"Bearer {token}"}, timeout=60, **options)


def descendants(pid: int) -> list[SimpleNamespace]:
    """The processes below `pid`, as they are now."""
    found = []
    for child in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            found.append(SimpleNamespace(pid=child.pid, line=" ".join(child.cmdline())))
    return found


def _ready(worker: Process) -> bool:
    return b'"worker_ready"' in worker.logs() or worker.status == "exited"


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/healthz", timeout=2).status_code == 200
    except httpx.HTTPError:
        return False
