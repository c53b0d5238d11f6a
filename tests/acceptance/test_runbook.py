"""The runbook holds at night: every command in it is taken by an installation in the state that it is written for."""

import json
import re
import subprocess
import uuid
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from sqlalchemy import Connection, text

import migrations
from outbox import advice, jobs
from outbox.doctor import CHECKS
from outbox.states import StuckReason
from tests.support.breaks import BREAKS, World
from tests.support.factories import a_resource, claims
from tests.support.processes import ROOT, System, shell

RUNBOOK = Path(ROOT / "docs/runbook.md")
CODES = [check.code for check in CHECKS]
# Parts that are about neither a stuck reason nor a check; the first is what stands before all parts.
OTHERS = ("", "brake", "offboarding", "proof", "busy", "outcome_unconfirmed")
# Commands and checks of which the runbook speaks already. They come; then they go from here.
BACKEND, TENANT = "pg-main", "acme"


@dataclass
class Part:
    """A part of the runbook: the codes of its heading, and its blocks of commands, each with its exit code."""

    names: list[str]
    blocks: list[list[tuple[str, int]]] = field(default_factory=list)


def parts() -> list[Part]:
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


BLOCKS = [
    pytest.param(part.names[0], block, id=f"{part.names[0] or 'first'}-{number}")
    for part in parts()
    for number, block in enumerate(part.blocks)
]


@pytest.fixture
def at_hand(env: dict[str, str], operator: str) -> dict[str, str]:
    """The environment of an operator's shell; its leases outlive a slow test."""
    return env | {"DEPROVISIONER_LEASE_SECONDS": "300", "DEPROVISIONER_OPERATOR_TOKEN": operator}


@pytest.mark.parametrize(("name", "block"), BLOCKS)
def test_every_command_of_the_runbook_exits_as_it_says(
    db: Connection,
    env: dict[str, str],
    at_hand: dict[str, str],
    system: System,
    name: str,
    block: list[tuple[str, int]],
) -> None:
    words = (
        at_hand | {"DEPROVISIONER_LEASE_SECONDS": env["DEPROVISIONER_LEASE_SECONDS"]}
        if name == "lease_expired"
        else at_hand
    )
    filled = prepared(db, words, name, " ".join(command for command, _ in block))
    if any(re.search("jobs (observe|resolve)", command) for command, _ in block):
        system.worker()
    for command, code in block:
        answer = run(words | filled, command)
        assert answer.returncode == code, (command, answer.stdout, answer.stderr)
        if command == "deprovisioner doctor" and name in CODES:
            assert re.search(rf"^(BROKEN   |warning  )  {name}: ", answer.stdout, re.M), answer.stdout


def run(words: dict[str, str], line: str) -> subprocess.CompletedProcess[str]:
    """A line of the runbook: a shell reads it and expands it, then the command runs."""
    typed = f"deprovisioner() {{ printf '%s\\0' \"$@\"; }}; {line}"
    read = subprocess.run(["bash", "-uc", typed], env=words, capture_output=True, text=True, check=True, timeout=60)
    return shell(words, *read.stdout.split("\0")[:-1])


def prepared(db: Connection, env: dict[str, str], name: str, commands: str) -> dict[str, str]:
    """An installation in the state that the part is about; what its reader would fill in."""
    job = named = None
    if name == "schema_not_at_head":
        migrations.downgrade("-1")
    elif name in BREAKS:
        named, _ = BREAKS[name](World(db))
    elif name not in ("", "proof"):
        job = a_stuck_job(db, StuckReason(name) if name in list(StuckReason) else StuckReason.REFUSED)
    asked = (
        "SELECT id, resource_id, fence FROM outbox WHERE :any OR id = :id OR resource_id = :resource ORDER BY id DESC"
    )
    wanted = {
        "id": job if job is not None else named if isinstance(named, int) else None,
        "resource": named if isinstance(named, uuid.UUID) else None,
    }
    row = db.execute(text(asked), wanted | {"any": not any(wanted.values())}).first()
    filled = {"BACKEND": BACKEND, "TENANT": TENANT}
    if row is not None:
        filled |= {"JOB": str(row.id), "FENCE": str(row.fence), "RESOURCE": str(row.resource_id)}
    if isinstance(named, uuid.UUID):
        filled["RESOURCE"] = str(named)
    if "$HOLD" in commands:
        held = told(env, "hold", "set", "--backend", BACKEND, "--reason", "looking")
        filled["HOLD"] = str(held["id"])
    if "$OPERATION" in commands:
        words = ("jobs", "redrive-all", "--backend", BACKEND, "--reason", "mended")
        digest = told(env, *words)["digest"]
        filled["OPERATION"] = str(told(env, *words, "--digest", digest, "--no-wait")["id"])
    return filled


def a_stuck_job(db: Connection, why: StuckReason) -> int:
    id = jobs.enqueue(db, a_resource(db, tenant=TENANT, backend=BACKEND), actor="token:1:acme").job.id
    (claim,) = claims(db, backend=BACKEND)
    jobs.start(db, claim, worker="w1")
    jobs.stick(db, claim, worker="w1", why=why, error="no space left on device")
    return id


def told(env: dict[str, str], *words: str) -> dict[str, str]:
    answer = shell(env, *words, "--json")
    assert answer.returncode == 0, answer
    return json.loads(answer.stdout)


def test_the_runbook_has_one_part_for_each_stuck_reason_and_each_check() -> None:
    named = [name for part in parts() for name in part.names]
    assert len(set(named)) == len(named)
    assert set(named) == {*StuckReason, *CODES, *OTHERS}
    assert [part.names for part in parts() if not any(part.blocks)] == [], "each names a command"


@pytest.mark.parametrize("reason", StuckReason)
def test_the_runbook_names_the_commands_that_jobs_show_names(reason: StuckReason) -> None:
    def words(command: str) -> tuple[str, ...]:
        return tuple(re.findall(r"jobs \w+|--force[-\w]*", command))

    (part,) = [part for part in parts() if part.names == [reason]]
    runbook = {words(command) for block in part.blocks for command, _ in block}
    shown = {words(command) for _, command in advice.steps(reason)}
    moves = {told for told in runbook if told and told[0] in ("jobs observe", "jobs redrive", "jobs resolve")}
    assert moves == shown
