"""Processes of the product, forked from one that has imported everything: a start costs milliseconds, not a second."""

import contextlib
import ctypes
import faulthandler
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from multiprocessing.connection import wait as wait_for
from pathlib import Path

import httpx
import psutil

from deprovisioner.up import servers as embedded
from tests.support.witness import eventually

ROOT = Path(__file__).parent.parent.parent
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.support.preload"])
# Starting or asking one process makes multiprocessing reap them all, which two threads must not do at once.
_LOCK = threading.Lock()


def become(argv: Sequence[str], env: Mapping[str, str], out: str, err: str, crash_points: bool) -> None:
    """Be `deprovisioner ARGV` in this process, which was forked with everything imported."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: do not outlive the tests
    os.environ.clear()
    os.environ.update(env)
    os.chdir(ROOT)
    for number, name in ((1, out), (2, err)):
        file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(file, number)
        os.close(file)
    faulthandler.register(signal.SIGUSR2, file=2, all_threads=True)
    from deprovisioner import cli
    from tests.support import crash_points as points

    if crash_points:
        points.install()
    sys.argv = ["deprovisioner", *argv]
    cli.main(list(argv))


class Forked:
    """A process that runs a command of the product. Its methods are those of `subprocess.Popen`."""

    def __init__(
        self, argv: Sequence[str], env: Mapping[str, str], out: Path, err: Path | None = None, *, crash_points: bool
    ) -> None:
        words = (list(argv), dict(env), str(out), str(err or out), crash_points)
        self._process = _CONTEXT.Process(target=become, args=words, daemon=True)
        with _LOCK:
            self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def poll(self) -> int | None:
        with _LOCK:
            return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        wait_for([self._process.sentinel], timeout)
        if (code := self.poll()) is None:
            raise subprocess.TimeoutExpired(self._process.name, timeout or 0)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def run(argv: Sequence[str], env: Mapping[str, str], timeout: float = 120) -> "subprocess.CompletedProcess[str]":
    """Run one command of the product to its end; its output is captured."""
    with tempfile.TemporaryDirectory(prefix="deprovisioner-command-") as folder:
        out, err = Path(folder) / "out", Path(folder) / "err"
        process = Forked(argv, env, out, err, crash_points=False)
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        return subprocess.CompletedProcess(list(argv), code, out.read_text(), err.read_text())


class Fork(Forked):
    """`deprovisioner PART` with the boundaries of `crash_points.py`."""

    def __init__(self, part: str, env: Mapping[str, str], log: Path) -> None:
        self.log = log
        super().__init__([part], env, log, crash_points=True)

    @property
    def exitcode(self) -> int | None:
        return self.poll()

    def dies(self) -> None:
        """Wait until it has killed itself."""
        eventually(lambda: self.exitcode is not None, what=f"its death; see {self.log}", every=0.05)
        assert self.exitcode == -signal.SIGKILL, self.tail()

    def stops_itself(self) -> None:
        """Wait until it has sent itself SIGSTOP."""
        eventually(lambda: self.exitcode is not None or self._status() == psutil.STATUS_STOPPED, what=self.tail())
        assert self.exitcode is None, self.tail()

    def pause(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def wake(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def _status(self) -> str:
        with contextlib.suppress(psutil.NoSuchProcess):
            return psutil.Process(self.pid).status()
        return psutil.STATUS_DEAD

    def kill(self) -> None:
        """Kill it, and wait for its end."""
        super().kill()
        self.wait(60)

    def story(self) -> str:
        """The end of its log, and where its threads are if it lives."""
        code = self.exitcode
        if code is None:
            os.kill(self.pid, signal.SIGUSR2)
            time.sleep(0.5)
        return f"--- {self.log.name}, {'alive' if code is None else f'ended: {code}'}\n{self.tail()}"

    def tail(self) -> str:
        return self.log.read_text(errors="replace")[-6000:] if self.log.exists() else ""


class Kept(threading.Thread):
    """A supervisor, as systemd or `up` would be: it starts the process again whenever that has died."""

    def __init__(self, part: str, env: Mapping[str, str], log: Path) -> None:
        super().__init__(daemon=True)
        self.deaths = 0
        self.last_words = ""
        self._again = lambda: Fork(part, env, log)
        self.fork = self._again()
        self._ending = threading.Event()
        self.start()

    def run(self) -> None:
        while not self._ending.wait(0.1):
            if self.fork.exitcode is not None:
                self.deaths += 1
                self.last_words = self.fork.story()
                self.fork = self._again()

    def stop(self) -> None:
        self._ending.set()
        self.join()
        self.fork.kill()


def api(env: Mapping[str, str], log: Path) -> tuple[Fork, str]:
    """A new API process that answers, and its URL."""
    port = embedded.free_port()
    fork = Fork("api", {**env, "DEPROVISIONER_API_PORT": str(port)}, log)
    url = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"{url}/healthz", timeout=2).status_code == 200
        assert fork.exitcode is None, fork.tail()
        return False

    eventually(answers, what="the API answers", every=0.1)
    return fork, url
