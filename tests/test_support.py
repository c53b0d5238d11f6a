"""What the tests lean on, where it could go wrong unseen."""

import signal
import subprocess
import sys

from tests.support.processes import interruptible


def test_a_child_is_interrupted_where_the_tests_ignore_sigint() -> None:
    waits = [sys.executable, "-c", "import time; print('ready', flush=True); time.sleep(120)"]
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        child = interruptible(waits, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    finally:
        signal.signal(signal.SIGINT, before)
    with child:
        assert child.stdout is not None
        child.stdout.readline()
        child.send_signal(signal.SIGINT)
        assert child.wait(60) == -signal.SIGINT
