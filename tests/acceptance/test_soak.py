"""Twelve seconds of `make soak`, a minute in `make proof`; and what its checker makes of doctored records."""

import json
import subprocess
import sys
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from tests.soak.checker import removals, twice
from tests.support.processes import ROOT
from tests.support.witness import PgServer

GENERATION = str(uuid.uuid4())
DATABASE = {
    "id": "r-1",
    "kind": "postgres",
    "backend": "b",
    "manifest": {"database": "db_1", "role": "usr_1", "generation": GENERATION},
}
NAMESPACE = {
    "id": "r-2",
    "kind": "redis",
    "backend": "b",
    "manifest": {"user": "usr_2", "prefix": "r-2:", "generation": GENERATION},
}


@pytest.mark.proof
def test_a_minute_of_storms_and_faults_loses_no_job_and_destroys_nothing_twice_or_by_mistake() -> None:
    words = [sys.executable, "-m", "tests.soak", "--minutes", "1", "--json"]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        try:
            out, progress = run.communicate(timeout=400)
        finally:
            run.terminate()  # ends what it started, where it has not ended
    assert out, f"no report:\n{progress[-4000:]}"
    told = json.loads(out)
    broken = {what: offenders[:5] for what, offenders in told["broken"].items() if offenders}
    assert not broken, f"{broken}\n{progress[-3000:]}"
    assert run.returncode == 0, f"{told['teardowns']}\n{progress[-3000:]}"
    assert told["ok"], f"{told['teardowns']}\n{progress[-3000:]}"
    assert min(told["teardowns"]["postgres"], told["teardowns"]["redis"]) > 10
    assert sum(told["faults"].values()) > 5
    assert told["facts"]["DELETEs taken back"] > 5
    assert told["facts"]["final snapshots"] > 0
    assert not Path(told["home"]).exists(), "what held is tidied up"


def test_two_successful_drops_are_told_and_a_failed_one_is_not_counted(tmp_path: Path) -> None:
    make = f'CREATE DATABASE "zz_new_{GENERATION}" TEMPLATE template0'
    drop = f'DROP DATABASE "zz_del_{GENERATION}"'
    assert judged(tmp_path, [(1, make), (2, drop)]) == []
    assert judged(tmp_path, [(1, make), (2, drop), (3, drop, "ERROR")]) == []
    assert judged(tmp_path, [(1, make), (2, drop, "ERROR"), (3, drop)]) == []
    assert judged(tmp_path, [(1, make), (2, drop), (3, drop)]) == ["r-1: made 1 times, destroyed 2 times"]
    assert judged(tmp_path, [(1, make), (2, drop), (3, 'DROP DATABASE "db_1"')]), "under its other name"
    assert judged(tmp_path, [(1, make), (2, f'DROP DATABASE "zz_new_{GENERATION}"'), (3, make), (4, drop)]) == []


def test_a_drop_that_a_crash_broke_off_is_not_counted_and_one_that_ended_before_it_is(tmp_path: Path) -> None:
    drop = f'DROP DATABASE "zz_del_{GENERATION}"'
    assert judged(tmp_path, [(9, "CREATE ROLE r"), (1, drop, "CRASH"), (2, drop)]) == []
    assert judged(tmp_path, [(1, drop), (9, "CREATE ROLE r", "CRASH"), (2, drop)])
    assert judged(tmp_path, [(1, drop), (1, "", "FATAL"), (2, drop)]), "its session was ended after it"


def test_a_generation_removed_twice_is_told_by_the_append_only_file(tmp_path: Path) -> None:
    born, gone = ("SET", "deprovisioner:gen:r-2:", GENERATION, "NX"), ("UNLINK", "deprovisioner:gen:r-2:")
    stranger = ("SET", "deprovisioner:gen:r-2:", "a stranger's")
    assert recorded(tmp_path, [born, ("UNLINK", "r-2:a", "r-2:b"), gone]) == []
    assert recorded(tmp_path, [born, gone, born, gone]) == [], "the second pair is a late provision and its removal"
    assert recorded(tmp_path, [born, gone, stranger, gone]) == ["r-2: made 1 times, destroyed 2 times"]


def judged(folder: Path, steps: Iterable[tuple[Any, ...]]) -> list[str]:
    """The verdict on a log in which each session's statement came to its end, or to what is said."""
    lines = []
    for pid, statement, *end in steps:
        head = f"2026-01-01 00:00:00.000 UTC [{pid}] postgres@postgres"
        lines += [f"{head} LOG:  statement: {statement}"] if statement else []
        match end:
            case []:
                lines.append(f"{head} LOG:  duration: 1.000 ms")
            case ["CRASH"]:
                lines.append("2026-01-01 00:00:00.000 UTC [99] LOG:  starting PostgreSQL 18")
            case [level]:
                lines += [f"{head} {level}:  no", *([f"{head} STATEMENT:  {statement}"] if statement else [])]
    log = folder / "pg.log"
    log.write_text("\n".join(lines) + "\n")
    return twice([DATABASE], {"b": PgServer("", log).statements()})


def recorded(folder: Path, commands: Iterable[tuple[str, ...]]) -> list[str]:
    """The verdict on an append-only file."""
    words = ("".join(f"${len(word)}\r\n{word}\r\n" for word in command) for command in commands)
    file = "".join(f"*{len(command)}\r\n{text}" for command, text in zip(commands, words, strict=True))
    (folder / "appendonly.aof.1.incr.aof").write_bytes(file.encode())
    return twice([NAMESPACE], {"b": removals(folder)})
