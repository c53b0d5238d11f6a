"""`python -m bench.scale`: measures what grows with the backlog, and replaces the measured parts of the JSON file."""

import argparse
import datetime as dt
import json
import os
import platform
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from importlib.metadata import version
from pathlib import Path

from bench.bulk import SETTINGS, Bulk, bulk
from bench.scale import Size
from bench.scale.churn import measure_churn
from bench.scale.claims import measure_claims, measure_tenants
from bench.scale.costs import measure_costs, measure_memory
from bench.stack import Stack, stack

PARTS = {
    "costs": measure_costs,
    "memory": measure_memory,
    "tenants": measure_tenants,
    "claims": measure_claims,
    "churn": measure_churn,
}


@contextmanager
def _running_stack() -> Iterator[tuple[Stack, Bulk]]:
    with stack(SETTINGS) as running, bulk(running) as base:
        base.checkpoint(images=False)  # else the costs depend on the age of the last checkpoint
        yield running, base


def main() -> None:
    """Measure, print, and replace the measured parts of the JSON file.

    Ctrl-C and SIGTERM end it after the statement that is running.
    """
    parser = argparse.ArgumentParser(prog="python -m bench.scale", description=__doc__)
    parser.add_argument(
        "--only", help=f"run only these parts, separated by commas: {', '.join(PARTS)}", default=",".join(PARTS)
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE; its other parts stay")
    for field in fields(Size):
        kind, metavar = (_numbers, "N,...") if isinstance(field.default, tuple) else (int, "N")
        option = f"--{field.name.replace('_', '-')}"
        parser.add_argument(option, type=kind, default=field.default, metavar=metavar, help=field.metadata["help"])
    options = vars(parser.parse_args())
    size = replace(Size(), **{field.name: options[field.name] for field in fields(Size)})
    only = options["only"].split(",")
    if unknown := set(only) - set(PARTS):
        parser.error(f"--only: unknown {', '.join(sorted(unknown))}; known: {', '.join(PARTS)}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with _running_stack() as (running, base):
            for name in PARTS:
                if name in only:
                    _part(name, running, base, size, options["json"])
    except KeyboardInterrupt:
        raise SystemExit("\nbench: interrupted; everything it started is stopped") from None


def _numbers(words: str) -> tuple[int, ...]:
    return tuple(int(word) for word in words.split(","))


def _part(name: str, running: Stack, base: Bulk, size: Size, file: Path | None) -> None:
    began = time.monotonic()
    load = os.getloadavg()[0]
    print(f"bench: {name} ...", flush=True)
    found = PARTS[name](running, base, size)
    print(f"  {time.monotonic() - began:.0f} s", flush=True)
    if file is None:
        return
    whole = json.loads(file.read_text()) if file.exists() else {}
    whole[name] = {
        "at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, load {load:.1f} as it began",
        "postgresql": base.run("SELECT current_setting('server_version')")[0][0],
        "shared_buffers": SETTINGS["shared_buffers"],
        "deprovisioner": version("deprovisioner"),
        "took_seconds": round(time.monotonic() - began),
    } | found
    file.write_text(json.dumps(whole, indent=1) + "\n")


if __name__ == "__main__":
    main()
