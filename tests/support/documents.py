"""A page of the documents as data: the commands of each part, typed into a shell as its reader types them."""

import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from deprovisioner.up import servers as embedded
from tests.support.processes import ROOT

# A command that a shell finds in PATH, as after an installation.
_COMMAND = f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m deprovisioner.cli "$@"\n'


def parts(page: Path) -> dict[str, list[tuple[str, int]]]:
    """By heading, in order: the lines of the part's console blocks, each with its exit code."""
    told: dict[str, list[tuple[str, int]]] = {}
    heading, inside = "", False
    for line in page.read_text().splitlines():
        if line.startswith("## "):
            heading = line.removeprefix("## ")
        elif line.startswith("```"):
            inside = line == "```console"
        elif inside:
            assert line.startswith("$ "), line
            command, _, comment = line.removeprefix("$ ").partition("  # ")
            assert comment in ("", "exits 1"), line
            told.setdefault(heading, []).append((command, int(bool(comment))))
    return told


def path_with_the_command(folder: Path) -> str:
    """A PATH with `deprovisioner`, and with the client programs of the servers' own version."""
    folder.mkdir()
    command = folder / "deprovisioner"
    command.write_text(_COMMAND)
    command.chmod(0o755)
    return f"{folder}:{embedded._postgres_bin()}:/usr/bin:/bin"


def types(
    lines: list[tuple[str, int]],
    words: Mapping[str, str],
    *,
    before: Callable[[str], None] = lambda _: None,
) -> list[str]:
    """Type the lines one after the other; what each printed. The last digest that was printed is `$DIGEST`."""
    filled, said = dict(words), []
    for line, code in lines:
        before(line)
        done = subprocess.run(
            ["bash", "-uc", line], env=filled, capture_output=True, text=True, check=False, timeout=120
        )
        assert done.returncode == code, (line, done.stdout, done.stderr)
        said.append(done.stdout)
        if digest := re.search(r"--digest (\S+)", done.stdout):
            filled["DIGEST"] = digest[1]
    return said
