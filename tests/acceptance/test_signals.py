"""Storms of signals at every moment of start and stop: each process ends in time, with its exit code."""

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from deprovisioner.up.servers import free_port
from tests.support.up import CLI, Running, clean_environment

TERM, INT = signal.SIGTERM, signal.SIGINT
STORM = 200  # signals, sent as fast as they go: several within each millisecond
END_SECONDS = 20  # far less than the 30 s after which `up` kills a child that hangs
ENDS = {0, 1, -TERM, -INT}  # of a process that is told to stop before it has its own handlers
READY = {"worker": "worker_ready", "api": "running on"}
# The command with one change: while one of its signal handlers runs, each line of it is interrupted by one more signal.
INTERRUPTED = """
import os, runpy, signal, sys
install, inside = signal.signal, False

def interrupted(handler):
    def handle(*words):
        global inside
        if inside:
            return handler(*words)
        inside = True
        sys.settrace(at_each_line)
        try:
            handler(*words)
        finally:
            sys.settrace(None)
            inside = False
    return handle if callable(handler) and not isinstance(handler, signal.Handlers) else handler

def at_each_line(*_):
    os.kill(os.getpid(), signal.SIGINT)
    return at_each_line

signal.signal = lambda number, handler: install(number, interrupted(handler))
runpy.run_module("deprovisioner.cli", run_name="__main__")
"""


class Process:
    """A worker or an API, and what can be seen of it from outside."""

    def __init__(self, name: str, env: dict[str, str], log: Path, command: Sequence[str] = CLI) -> None:
        self.name, self.log = name, log
        with log.open("wb") as out:
            port = {"DEPROVISIONER_API_PORT": str(free_port())}
            self.popen = subprocess.Popen([*command, name], env=env | port, stdout=out, stderr=out)

    def catches(self, number: signal.Signals) -> bool:
        """Whether it has a handler of this signal: Python installs that of SIGINT, the product that of SIGTERM."""
        status = Path(f"/proc/{self.popen.pid}/status").read_text()
        caught = next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt"))
        return bool(int(caught, 16) >> (number - 1) & 1)

    def ready(self) -> bool:
        return READY[self.name] in self.log.read_text()


MOMENTS: dict[str, Callable[[Process], bool]] = {
    "Python runs": lambda process: process.catches(INT),
    "it has its handlers": lambda process: process.catches(TERM),
    "it is ready": Process.ready,
}


def _storm(popen: "subprocess.Popen[bytes]", pair: tuple[signal.Signals, signal.Signals]) -> int:
    for number in itertools.islice(itertools.cycle(pair), STORM):
        if popen.poll() is None:
            os.kill(popen.pid, number)
    return _end(popen)


def _end(popen: "subprocess.Popen[bytes]") -> int:
    try:
        return popen.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        popen.kill()
        popen.wait()
        raise AssertionError("it hangs") from None


def _until(condition: Callable[[], bool], popen: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert popen.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.002)


@pytest.fixture
def env(settled: dict[str, str]) -> dict[str, str]:
    return clean_environment(**settled)


@pytest.mark.parametrize("name", READY)
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_process_ends_after_a_storm_at_each_moment(
    env: dict[str, str], tmp_path: Path, name: str, moment: str
) -> None:
    process = Process(name, env, tmp_path / "log")
    _until(lambda: MOMENTS[moment](process), process.popen, process.log)
    status = _storm(process.popen, (TERM, INT))
    assert status in ({0} if (name, moment) == ("worker", "it is ready") else ENDS), process.log.read_text()


@pytest.mark.parametrize(
    ("seen", "pair"),
    [
        pytest.param("migrations", (TERM, TERM), id="while it starts", marks=pytest.mark.proof),
        pytest.param("Ctrl-C", (INT, TERM), id="once it serves"),
    ],
)
def test_up_ends_with_exit_code_0_after_a_storm(
    folder: Path, seen: str, pair: tuple[signal.Signals, signal.Signals]
) -> None:
    running = Running(folder / "home", free_port())
    _until(lambda: seen in running.log.read_text(), running.popen, running.log)
    assert _storm(running.popen, pair) == 0, running.log.read_text()
    assert "stopped" in running.log.read_text()


@pytest.mark.parametrize("name", READY)
def test_a_signal_at_each_line_of_a_signal_handler_makes_no_process_hang(
    env: dict[str, str], tmp_path: Path, name: str
) -> None:
    process = Process(name, env, tmp_path / "log", [sys.executable, "-c", INTERRUPTED])
    _until(process.ready, process.popen, process.log)
    process.popen.send_signal(TERM)
    assert _end(process.popen) in ({0} if name == "worker" else ENDS), process.log.read_text()


@pytest.mark.proof
def test_a_signal_at_each_line_of_its_signal_handler_does_not_make_up_hang(folder: Path) -> None:
    running = Running(folder / "home", free_port(), command=[sys.executable, "-c", INTERRUPTED])
    _until(lambda: "pg-main: " in running.log.read_text(), running.popen, running.log)
    running.popen.send_signal(TERM)
    assert _end(running.popen) == 0, running.log.read_text()
