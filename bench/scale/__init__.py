"""`make bench-scale`: what grows with the backlog, under a held snapshot, with tenants; and what one delete costs.

Costs of claims are the server's own: what pg_stat_statements counted for the product's `jobs.claim`, planning
included, without the commit's wait for the disk. Each measure fails unless its work was done.

- `__main__`   the command line, and the JSON file
- `claims`     a claim at each backlog, and with many tenants and backends
- `churn`      a worker's claims while a snapshot is held open
- `costs`      a worker's memory, and what one delete costs
"""

import time
from dataclasses import dataclass
from typing import Any

from bench.bulk import Bulk
from bench.stack import BACKEND, Stack
from outbox import settings

Figures = dict[str, Any]
# The product's claim, in pg_stat_statements.
CLAIM = "%served AS (%SKIP LOCKED%"
# How many jobs a claim takes: a busy worker's, one at a time, and an idle one's that finds a backlog.
SLOTS = (1, 32)
# The first claims of a connection plan, and read what nobody has read.
WARM_UP = 20
WORKER_SLOTS = 8
# Longer than any wait for work that goes on: a bench that hangs is a bug, not a figure.
DEADLINE_SECONDS = 300


@dataclass(frozen=True)
class Size:
    """How much of each; with the defaults all of it takes about half an hour on two idle cores."""

    pending: tuple[int, ...] = (10_000, 100_000, 1_000_000, 5_000_000)
    finished: int = 10_000_000  # beside the largest backlog
    samples: int = 200
    churn_seconds: int = 600
    churn_rate: int = 200  # jobs/s
    backlog: int = 10_000
    tenants: int = 1_000
    backends: int = 50
    memory: tuple[int, ...] = (1_000, 1_000_000)
    drained: int = 5_000
    deletes: int = 3_000

    @property
    def claimed(self) -> int:
        """How many jobs `claim_costs` takes away."""
        return (WARM_UP + self.samples) * sum(SLOTS)


def serve(stack: Stack, backends: int) -> None:
    """From here on the product is configured with so many backends."""
    tables = [f'[backends.{BACKEND}-{n}]\nkind = "noop"\ndsn = "none"\nconcurrency = 1000\n' for n in range(backends)]
    (stack.home / "backends.toml").write_text("\n".join(tables))
    settings.backends.cache_clear()


def count(base: Bulk, state: str) -> int:
    """How many jobs are in this state."""
    return int(base.run("SELECT count(*) FROM outbox WHERE state = %(state)s", state=state)[0][0])


def until(reached: Any) -> None:
    """Wait until `reached()` is true; AssertionError after DEADLINE_SECONDS."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not reached():
        assert time.monotonic() < deadline, f"not within {DEADLINE_SECONDS} s"
        time.sleep(0.2)


def tell(what: str, costs: Figures) -> None:
    """Print the milliseconds of each size of claim."""
    told = ", ".join(f"{cost['ms']:.3f} ms for {slots}" for slots, cost in costs.items())
    print(f"  {what}: {told}", flush=True)
