"""`make bench-scale`: what grows with the backlog, under a held snapshot, with tenants; and what one delete costs.

The cost of a claim is the server's own figure: the time that pg_stat_statements counted for the product's `jobs.claim`,
with planning, but without the commit's wait for the disk. Each measure fails unless its work was done.

- `__main__`   the command line, and the JSON file
- `claims`     a claim at each backlog, and with many tenants and backends
- `churn`      a worker's claims while a snapshot is held open
- `costs`      a worker's memory, and what one delete costs
"""

import time
from dataclasses import dataclass, field
from typing import Any

from bench.bulk import Bulk
from bench.stack import BACKEND, Stack
from outbox import settings

Figures = dict[str, Any]
# Matches the product's claim in pg_stat_statements.
CLAIM = "%served AS (%SKIP LOCKED%"
# How many jobs a claim takes: one, as a busy worker's, or as many as an idle worker takes from a backlog.
SLOTS = (1, 32)
# The first claims of a connection are left out: they plan, and read pages that are not in memory yet.
WARM_UP = 20
WORKER_SLOTS = 8
# Longer than any wait takes while work goes on: a bench that hangs is a bug, not a figure.
DEADLINE_SECONDS = 300


def _size(default: Any, meaning: str) -> Any:
    return field(default=default, metadata={"help": meaning})


@dataclass(frozen=True)
class Size:
    """The size of each measure; with the defaults all measures take about half an hour on two idle cores."""

    pending: tuple[int, ...] = _size((10_000, 100_000, 1_000_000, 5_000_000), "the backlogs of `claims`")
    finished: int = _size(10_000_000, "finished jobs beside the largest backlog of `claims`")
    samples: int = _size(200, "claims in each figure")
    churn_seconds: int = _size(600, "how long `churn` holds the snapshot")
    churn_rate: int = _size(200, "jobs/s that the worker of `churn` drains at most")
    backlog: int = _size(10_000, "the backlog of `churn`")
    tenants: int = _size(1_000, "the tenants of `tenants`")
    backends: int = _size(50, "the backends of `tenants`")
    memory: tuple[int, ...] = _size((1_000, 1_000_000), "the backlogs of `memory`")
    drained: int = _size(5_000, "jobs that the worker of `memory` drains")
    deletes: int = _size(3_000, "the DELETEs of `costs`")

    @property
    def claimed(self) -> int:
        """The number of jobs that one call of `claim_costs` claims."""
        return (WARM_UP + self.samples) * sum(SLOTS)


def serve(stack: Stack, backends: int) -> None:
    """Configure the product with this many backends."""
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
        assert time.monotonic() < deadline, f"still waiting after {DEADLINE_SECONDS} s"
        time.sleep(0.2)


def tell(what: str, costs: Figures) -> None:
    """Print the milliseconds of each size of claim."""
    figures = ", ".join(f"{cost['ms']:.3f} ms for {slots}" for slots, cost in costs.items())
    print(f"  {what}: {figures}", flush=True)
