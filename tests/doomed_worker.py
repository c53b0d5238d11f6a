"""A worker that signals itself just before or after a statement: `DOOM_AT=before:DROP DATABASE`, `DOOM_BY=SIGKILL`.

The product has no failpoints; this entry point puts one around the backend's own statements.
"""

import os
import signal
from typing import Any

from outbox import cli
from worker.backends import postgres

moment, _, words = os.environ["DOOM_AT"].partition(":")
number = getattr(signal, os.environ.get("DOOM_BY", "SIGKILL"))
honest = postgres._execute


def doomed(session: Any, statement: str, **names: Any) -> None:
    fits = statement.startswith(words)
    if fits and moment == "before":
        os.kill(os.getpid(), number)
    honest(session, statement, **names)
    if fits and moment == "after":
        os.kill(os.getpid(), number)


postgres._execute = doomed

if __name__ == "__main__":
    cli.main(["worker"])
