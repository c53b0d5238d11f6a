"""The table of docs/backends.md: `python -m tests.support.conformance_page` writes it, from the code's data.

With `--kills` it first lives the whole matrix of kills through, and keeps how many there were.
"""

import argparse
import importlib
import json
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from pathlib import Path

from deprovisioner.conformance import table

ROOT = Path(__file__).parents[2]
PAGE, KILLS = ROOT / "docs/backends.md", Path(__file__).parent / "subjects/kills.json"
_BEGIN, _END = "<!-- conformance -->", "<!-- /conformance -->"
TITLES = {
    "postgres": "PostgreSQL",
    "redis": "Redis, Valkey",
    "mysql": "MariaDB",
    "rabbitmq": "RabbitMQ",
    "s3": "S3",
    "webhook": "Webhook",
}


def shipped() -> dict[str, type]:
    """The Subject's class of each kind that has one, in the page's order."""
    found = {}
    for kind in TITLES:
        if (Path(__file__).parent / f"subjects/{kind}.py").exists():
            module = importlib.import_module(f"tests.support.subjects.{kind}")
            (found[kind],) = {
                one for one in vars(module).values() if isinstance(one, type) and hasattr(one, "not_shown")
            }
    return found


def generated() -> str:
    """What stands between the marks of the page."""
    kills = json.loads(KILLS.read_text())
    return table.table(
        {TITLES[kind]: one.not_shown for kind, one in shipped().items()},
        {TITLES[kind]: count for kind, count in kills.items()},
    )


def written() -> str:
    """What stands there now."""
    return PAGE.read_text().split(_BEGIN)[1].split(_END)[0].strip()


def _live(kinds: list[str]) -> None:
    """Run the matrices, and keep how many kills each had."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        files = [f"tests/worker/backends/conformance/test_{kind}.py" for kind in kinds]
        subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "--timeout=1800", "-m", "proof", f"--junitxml={report}", *files],
            check=True,
        )
        kept = json.loads(KILLS.read_text()) if KILLS.exists() else {}
        for case in ET.parse(report).iter("testcase"):
            for found in case.iter("property"):
                if found.get("name") == "kills":
                    kept[case.get("classname", "").rpartition("test_")[2]] = int(found.get("value", ""))
    KILLS.write_text(json.dumps(kept, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.support.conformance_page", description=__doc__)
    parser.add_argument("--kills", nargs="*", metavar="KIND", choices=TITLES, help="of these kinds, or of all")
    if (kinds := parser.parse_args().kills) is not None:
        _live(kinds or list(shipped()))
    head, rest = PAGE.read_text().split(_BEGIN)
    PAGE.write_text(f"{head}{_BEGIN}\n{generated()}\n{_END}{rest.split(_END)[1]}")


if __name__ == "__main__":
    main()
