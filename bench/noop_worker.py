"""`deprovisioner worker` with one backend whose teardown is nothing, or a sleep. Only the bench starts it."""

import os
import time

from outbox.cli import main
from outbox.rows import Json
from outbox.settings import BackendConfig
from worker import backends
from worker.backends import Absent, Backend, Same

# How long a teardown waits, as for a server: seconds.
TEARDOWN_SECONDS = "BENCH_TEARDOWN_SECONDS"


class Noop:
    """Remembers which generations it was told to tear down: the five verbs, without their cost."""

    observable = True

    def __init__(self, seconds: float) -> None:
        self._gone: set[str] = set()
        self._seconds = seconds

    def inspect(self, manifest: Json) -> Same | Absent:
        """Same until torn down, then Absent."""
        return Absent(seen={}) if manifest["generation"] in self._gone else Same(seen={})

    def teardown(self, manifest: Json, fence: int) -> None:  # noqa: ARG002 - the Protocol's
        """Remember the generation."""
        if self._seconds:
            time.sleep(self._seconds)
        self._gone.add(manifest["generation"])


def _build(_: BackendConfig, *, protected: frozenset[str]) -> Backend:  # noqa: ARG001 - the signature it replaces
    return Noop(float(os.environ.get(TEARDOWN_SECONDS, "0")))  # type: ignore[return-value]  # makes and adopts nothing


if __name__ == "__main__":
    backends.build = _build
    main(["worker"])
