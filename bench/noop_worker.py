"""`deprovisioner worker` with one backend whose teardowns do nothing and return at once. Only the bench starts it.

With BENCH_TEARDOWN_MS in the environment each teardown waits that long, as if for a server.
"""

import os
import time

from deprovisioner.cli import main
from outbox.rows import Json
from outbox.settings import BackendConfig
from worker import backends
from worker.backends import Absent, Backend, Same

TEARDOWN_MS = "BENCH_TEARDOWN_MS"


class Noop:
    """A backend that only remembers which generations it tore down."""

    observable = True

    def __init__(self) -> None:
        self._gone: set[str] = set()
        self._seconds = float(os.environ.get(TEARDOWN_MS, "0")) / 1000

    def inspect(self, manifest: Json) -> Same | Absent:
        """Same until the teardown, then Absent."""
        return Absent(seen={}) if manifest["generation"] in self._gone else Same(seen={})

    def teardown(self, manifest: Json, fence: int) -> None:  # noqa: ARG002 - a parameter of the Protocol
        """Wait, then remember the generation."""
        time.sleep(self._seconds)
        self._gone.add(manifest["generation"])


def _build(_: BackendConfig, *, protected: frozenset[str]) -> Backend:  # noqa: ARG001 - the signature it replaces
    return Noop()  # type: ignore[return-value]  # the bench needs no other verb


if __name__ == "__main__":
    backends.build = _build
    main(["worker"])
