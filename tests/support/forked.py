"""Processes of the product, forked from one that has imported everything: a start costs milliseconds, not a second."""

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import httpx
import psutil

from deprovisioner.up import servers as embedded
from tests.support import crash_points
from tests.support.witness import eventually

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.support.preload"])
# multiprocessing reaps every child whenever one is started or asked, which two threads must not do at once.
_LOCK = threading.Lock()


class Fork:
    """`deprovisioner PART` with the boundaries of `crash_points.py`; it dies with the tests at the latest."""

    def __init__(self, part: str, env: Mapping[str, str], log: Path) -> None:
        self.log = log
        self._process = _CONTEXT.Process(target=crash_points.live, args=(part, dict(env), str(log)), daemon=True)
        with _LOCK:
            self._process.start()

    @property
    def exitcode(self) -> int | None:
        with _LOCK:
            return self._process.exitcode

    def dies(self, within: float = 60) -> None:
        """Wait until it has killed itself."""
        eventually(lambda: self.exitcode is not None, within, f"its death; see {self.log}", every=0.05)
        assert self.exitcode == -signal.SIGKILL, self.tail()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def stands_still(self) -> None:
        """Wait until it has stopped itself."""
        eventually(lambda: self.exitcode is not None or self._status() == psutil.STATUS_STOPPED, 30, self.tail())
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
        with _LOCK:
            self._process.kill()
        eventually(lambda: self.exitcode is not None, 30, "the end of a killed process")

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

    eventually(answers, 60, "the API answers", every=0.1)
    return fork, url
