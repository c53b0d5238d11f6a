"""Storms of signals at every moment of start and stop: each process ends in time, with its exit code."""

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from deprovisioner.up.servers import free_port
from tests.support.up import Running, clean_environment

TERM, INT = signal.SIGTERM, signal.SIGINT
PAIRS = [(TERM, TERM), (TERM, INT), (INT, TERM), (INT, INT)]
STORM = 40  # signals, sent as fast as they go: several within each millisecond
END_SECONDS = 20  # far less than the 30 s after which `up` kills a child that hangs
# From the start of a process: while Python imports, before and after our handlers are installed, and ready.
MOMENTS = [0.4, 1.2, 2.2]


def _storm(process: "subprocess.Popen[bytes]", pair: tuple[signal.Signals, signal.Signals]) -> int:
    for number in itertools.islice(itertools.cycle(pair), STORM):
        if process.poll() is None:
            os.kill(process.pid, number)
    try:
        return process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        pytest.fail(f"it hangs after {[one.name for one in pair]}")


def _started(words: list[str], env: dict[str, str], log: Path) -> "subprocess.Popen[bytes]":
    with log.open("ab") as out:
        return subprocess.Popen([sys.executable, "-m", "deprovisioner.cli", *words], env=env, stdout=out, stderr=out)


def _until(condition: Callable[[], bool], process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture
def env(settled: dict[str, str]) -> dict[str, str]:
    return clean_environment(**settled)


def test_a_worker_that_is_ready_ends_well_after_any_storm(env: dict[str, str], tmp_path: Path) -> None:
    for number, pair in enumerate(PAIRS[:3:2]):
        log = tmp_path / f"{number}.log"
        process = _started(["worker"], env, log)
        _until(lambda log=log: "worker_ready" in log.read_text(), process)
        assert _storm(process, pair) == 0, log.read_text()


def test_an_api_that_is_ready_ends_after_any_storm(env: dict[str, str], tmp_path: Path) -> None:
    for number, pair in enumerate(PAIRS[:3:2]):
        log = tmp_path / f"{number}.log"
        process = _started(["api"], env | {"DEPROVISIONER_API_PORT": str(free_port())}, log)
        _until(lambda log=log: "running on" in log.read_text(), process)
        assert _storm(process, pair) in {0, 1, -TERM, -INT}, log.read_text()


@pytest.mark.parametrize("words", [["worker"], ["api"]])
def test_a_process_that_starts_ends_after_a_storm_at_any_moment(
    env: dict[str, str], tmp_path: Path, words: list[str]
) -> None:
    for moment, pair in zip(MOMENTS, itertools.cycle(PAIRS), strict=False):
        process = _started(words, env | {"DEPROVISIONER_API_PORT": str(free_port())}, tmp_path / "log")
        time.sleep(moment)  # the moment is what varies; nothing is waited for
        assert _storm(process, pair) in {0, 1, -TERM, -INT}


def test_up_ends_with_exit_code_0_after_a_storm_while_it_starts_and_once_it_serves(tmp_path: Path) -> None:
    home = tmp_path / "home"
    for seen, pair in zip(("pg-main: ", "migrations", "worker-1", "Ctrl-C"), PAIRS, strict=True):
        running = Running(home, free_port())
        _until(lambda running=running, seen=seen: seen in running.log.read_text(), running.popen)
        assert _storm(running.popen, pair) == 0, running.log.read_text()
        assert "stopped" in running.log.read_text()
