"""The runbook as data: its parts, their blocks of commands, and a command typed as its reader types it."""

import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.processes import ROOT, shell

RUNBOOK = Path(ROOT / "docs/runbook.md")


@dataclass
class Part:
    """A part of the runbook: the codes of its heading, and its blocks of commands, each with its exit code."""

    names: list[str]
    blocks: list[list[tuple[str, int]]] = field(default_factory=list)


def parts() -> list[Part]:
    """In order; the first is what stands before all headings."""
    told = [Part([""])]
    inside = False
    for line in RUNBOOK.read_text().splitlines():
        if line.startswith("### "):
            told.append(Part(re.findall(r"`(\w+)`", line)))
        elif line.startswith("```"):
            inside = line == "```console"
            told[-1].blocks += [[]] if inside else []
        elif inside:
            assert line.startswith("$ deprovisioner "), line
            command, _, comment = line.removeprefix("$ ").partition("  # ")
            assert comment in ("", "exits 1"), line
            told[-1].blocks[-1].append((command, int(bool(comment))))
    return told


def run(words: dict[str, str], line: str) -> subprocess.CompletedProcess[str]:
    """A line of the runbook: a shell reads it and expands it, then the command runs."""
    typed = f"deprovisioner() {{ printf '%s\\0' \"$@\"; }}; {line}"
    read = subprocess.run(["bash", "-uc", typed], env=words, capture_output=True, text=True, check=True, timeout=60)
    return shell(words, *read.stdout.split("\0")[:-1])
