"""`deprovisioner up` as a process of a test's own."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import httpx

from outbox.settings import read_env
from tests.support import forked
from tests.support.processes import client
from tests.support.witness import eventually

CLI = [sys.executable, "-m", "deprovisioner.cli"]
# As a script starts what it puts into the background.
CLI_IGNORING_SIGINT = ["sh", "-c", "trap '' INT; exec \"$@\"", "sh", *CLI]


def clean_environment(**more: str) -> dict[str, str]:
    """This process's environment without the variables of the product, plus `more`."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("DEPROVISIONER_", "PG_MAIN", "REDIS_MAIN"))}
    return kept | {"PYTHONUNBUFFERED": "1"} | more


class Running:
    """An `up` process with its home. It gets `env` and no variable of another installation."""

    def __init__(
        self,
        home: Path,
        port: int,
        *more: str,
        command: Sequence[str] = CLI,
        cwd: Path | None = None,
        **env: str,
    ) -> None:
        self.home = home
        self.log = home.with_name(f"{home.name}-{time.monotonic_ns()}.log")
        with self.log.open("ab") as log:
            self.popen = subprocess.Popen(
                [*command, "up", "--home", str(home), "--port", str(port), *more],
                env=clean_environment(**env),
                cwd=cwd,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def ready(self) -> "Running":
        """Return once it serves."""
        eventually(lambda: self.popen.poll() is not None or "Ctrl-C" in self.log.read_text(), 60, "up is up")
        assert self.popen.poll() is None, self.log.read_text()
        return self

    @property
    def env(self) -> dict[str, str]:
        return read_env(self.home / "env")

    def cli(self, *words: str) -> "subprocess.CompletedProcess[str]":
        return forked.run(words, clean_environment(**self.env))

    def api(self, role: str = "TENANT") -> httpx.Client:
        return client(self.env["DEPROVISIONER_API_URL"], self.env[f"DEPROVISIONER_{role}_TOKEN"])

    def stop(self, number: int = signal.SIGTERM) -> int:
        if self.popen.poll() is None:
            self.popen.send_signal(number)
        return self.popen.wait(60)
