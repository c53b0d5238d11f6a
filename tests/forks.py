"""Processes of the product, forked from one that has imported everything: a start costs milliseconds, not a second."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from tests import doomed
from tests.witness import eventually

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.warm"])
# multiprocessing reaps every child whenever one is started or asked, which two threads must not do at once.
_LOCK = threading.Lock()


class Fork:
    """`deprovisioner PART` with the boundaries of `tests/doomed.py`; it dies with the tests at the latest."""

    def __init__(self, part: str, env: Mapping[str, str], log: Path) -> None:
        self.log = log
        self._process = _CONTEXT.Process(target=doomed.live, args=(part, dict(env), str(log)), daemon=True)
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

    def kill(self) -> None:
        with _LOCK:
            self._process.kill()
        eventually(lambda: self.exitcode is not None, 30, "the end of a killed process")

    def story(self) -> str:
        """The end of its log, and where its threads are if it lives."""
        code = self.exitcode
        if code is None:
            os.kill(self._process.pid or 0, signal.SIGUSR2)
            time.sleep(0.5)
        return f"--- {self.log.name}, {'alive' if code is None else f'ended: {code}'}\n{self.tail()}"

    def tail(self) -> str:
        return self.log.read_text(errors="replace")[-6000:] if self.log.exists() else ""
