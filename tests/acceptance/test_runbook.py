"""The runbook holds at night: every command in it is taken by an installation in the state that it is written for."""

import json
import re
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import Connection, text

import migrations
from outbox import advice, jobs
from outbox.doctor import CHECKS
from outbox.jobs import Delete
from outbox.rows import Job
from outbox.states import SnapshotPolicy, StuckReason
from tests.support.breaks import BREAKS, World
from tests.support.factories import a_resource, claims
from tests.support.processes import System, shell
from tests.support.runbook import parts, run
from tests.support.snapshots import Teardown, require
from worker.backends.postgres import Postgres

CODES = [check.code for check in CHECKS]
# Parts that are about neither a stuck reason nor a check; the first is what stands before all parts.
OTHERS = (
    *("", "brake", "offboarding", "proof", "busy", "outcome_unconfirmed"),
    *("snapshots", "wrong_delete", "wrong_storm", "restore_stuck", "purge"),
)
BACKEND, TENANT = "pg-main", "acme"


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
    if any(re.search("jobs (observe|resolve)|snapshots restore", command) for command, _ in block):
        system.worker()
    for command, code in block:
        answer = run(words | filled, command)
        assert answer.returncode == code, (command, answer.stdout, answer.stderr)
        if command == "deprovisioner doctor" and name in CODES:
            assert re.search(rf"^(BROKEN   |warning  )  {name}: ", answer.stdout, re.M), answer.stdout


def prepared(db: Connection, env: dict[str, str], name: str, commands: str) -> dict[str, str]:
    """An installation in the state that the part is about; what its reader would fill in."""
    job = named = None
    if name == "schema_not_at_head":
        migrations.downgrade("-1")
    elif name in BREAKS:
        named, _ = BREAKS[name](World(db))
    elif name == "snapshots":
        return a_snapshot(db, env)
    elif name in KEPT:
        require(env, "file:/the/disk/is/not/mounted", snapshot="off")
        job = KEPT[name](db)
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
    if name.startswith("object_"):
        of_finding = text("SELECT resource_id FROM object_findings WHERE id = :id")
        resource = db.execute(of_finding, {"id": named}).scalar_one()
        return filled | {"FINDING": str(named), "RESOURCE": str(resource)}
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
    return stuck(db, jobs.enqueue(db, a_resource(db, tenant=TENANT, backend=BACKEND), actor="token:1:acme").job, why)


def stuck(db: Connection, job: Job, why: StuckReason) -> int:
    (claim,) = claims(db, backend=BACKEND)
    assert claim.id == job.id
    jobs.start(db, claim, worker="w1")
    jobs.stick(db, claim, worker="w1", why=why, error="no space left on device")
    return job.id


def kept(db: Connection, snapshot: SnapshotPolicy = SnapshotPolicy.OFF) -> Job:
    """A teardown that can be taken back for ten minutes; the resource itself says whether a snapshot comes first."""
    resource = a_resource(db, tenant=TENANT, backend=BACKEND)
    db.execute(text("UPDATE resources SET snapshot = :says WHERE id = :id"), {"says": snapshot, "id": resource})
    asked = Delete(resource, "token:1:acme", grace=600)
    return jobs.enqueue_all(db, [asked])[asked.request_id].job


def a_stuck_restore(db: Connection) -> int:
    restored = jobs.restore(db, kept(db).resource_id, actor="token:1:acme", reason="a mistake")
    assert restored.job
    return stuck(db, restored.job, StuckReason.REFUSED)


def a_snapshot(db: Connection, env: dict[str, str]) -> dict[str, str]:
    """A destroyed database whose snapshot is there."""
    folder = Path(env["DEPROVISIONER_BACKENDS"]).parent
    (folder / "store").mkdir()
    require(env, f"file:{folder / 'store'}")
    teardown = Teardown(db, Postgres(env["PG_MAIN_DSN"]), "CREATE TABLE orders AS SELECT 7 AS n")
    teardown.delete()
    for _ in ("snapshot", "destroy"):
        teardown.step()
    assert teardown.job().state == "succeeded"
    (row,) = teardown.rows()
    return {"RESOURCE": str(teardown.id), "SNAPSHOT": str(row.id), "FILE": str(folder / "orders.dump")}


# The parts about what is kept, and the job that each is about.
KEPT: dict[str, Callable[[Connection], int]] = {
    StuckReason.SNAPSHOT_FAILED: lambda db: stuck(db, kept(db, SnapshotPolicy.REQUIRED), StuckReason.SNAPSHOT_FAILED),
    "wrong_delete": lambda db: kept(db).id,
    "restore_stuck": a_stuck_restore,
    "purge": lambda db: kept(db).id,
}


def told(env: dict[str, str], *words: str) -> dict[str, str]:
    answer = shell(env, *words, "--json")
    assert answer.returncode == 0, answer
    return json.loads(answer.stdout)


# The commands that move a stuck job on, or let a worker look.
MOVES = ("jobs observe", "jobs redrive", "jobs resolve", "resources restore")


def test_the_runbook_has_one_part_for_each_stuck_reason_and_each_check() -> None:
    named = [name for part in parts() for name in part.names]
    assert len(set(named)) == len(named)
    assert set(named) == {*StuckReason, *CODES, *OTHERS}
    assert [part.names for part in parts() if not any(part.blocks)] == [], "each names a command"


@pytest.mark.parametrize("reason", StuckReason)
def test_the_runbook_names_the_commands_that_jobs_show_names(reason: StuckReason) -> None:
    def words(command: str) -> tuple[str, ...]:
        return tuple(re.findall(r"(?:jobs|resources) \w+|--force[-\w]*", command))

    (part,) = [part for part in parts() if part.names == [reason]]
    runbook = {words(command) for block in part.blocks for command, _ in block}
    shown = {words(command) for _, command in advice.steps(reason)}
    moves = {told for told in runbook if told and told[0] in MOVES}
    assert moves == shown
