"""The service as a role that cannot rewrite history, and what is proved of its deletions, through the real commands."""

import json
import re
import subprocess
import uuid
from collections.abc import Iterator
from typing import Any

import psycopg2
import pytest
from sqlalchemy import Connection, text

from outbox import jobs, observations, tokens
from outbox.states import Found, StuckReason
from tests.support.api import create, until
from tests.support.factories import a_resource, claims
from tests.support.processes import System, client
from tests.support.witness import eventually


class Installation:
    """API and worker that log in as the service's role; `env` is their environment and that of a person's shell."""

    def __init__(self, system: System, role: str) -> None:
        self.system, self.role = system, role

    def cli(self, *words: str, **more: str) -> "subprocess.CompletedProcess[str]":
        return self.system.cli(*words, **more)

    def json(self, *words: str) -> Any:
        answer = self.cli(*words, "--json")
        assert answer.returncode == 0, answer
        return json.loads(answer.stdout)


@pytest.fixture
def installation(db: Connection, system: System) -> Iterator[Installation]:
    made = Installation(system, f"service_{uuid.uuid4().hex}")
    answer = made.cli("migrate", "--service-role", made.role, DEPROVISIONER_SERVICE_PASSWORD="secret")
    assert answer.returncode == 0, answer
    url = system.env["DEPROVISIONER_DATABASE_URL"]
    system.env["DEPROVISIONER_DATABASE_URL"] = re.sub(r"//[^@]+@", f"//{made.role}:secret@", url)
    yield made
    system.stop()
    db.execute(text(f"DROP OWNED BY {made.role}; DROP ROLE {made.role}"))


def test_the_service_s_role_does_all_the_work_and_cannot_rewrite_what_happened(
    db: Connection, installation: Installation
) -> None:
    secret = tokens.create(db, actor="op", role="tenant", tenant="acme", name="acme")[1]
    system = installation.system
    url = system.api()
    worker = system.worker()
    with client(url, secret) as api:
        made = [create(api, kind) for kind in ("postgres", "redis")]
        for resource in made:
            until(api, resource, "active")
            assert api.delete(f"/v1/resources/{resource['id']}").status_code == 202
        for resource in made:
            until(api, resource, "deleted")
    eventually(lambda: "audit_checkpoint" in worker.logs(), what="the sweep made a checkpoint")
    assert installation.cli("token", "create", "--role", "operator").returncode == 0
    assert installation.cli("resources", "delete", made[0]["id"]).returncode == 0
    assert installation.json("doctor")["ok"] is True

    kept = installation.json("audit", "checkpoint")["checkpoint"]
    assert installation.json("audit", "checkpoint") == {"made": False, "checkpoint": kept}
    exported = installation.json("audit", "export", "--since", "1h")["items"]
    assert [item["resource"]["id"] for item in exported] == [
        row.id for row in db.execute(text("SELECT CAST(id AS text) AS id FROM resources ORDER BY purged_at"))
    ]
    for item in exported:
        assert item["asked"]["actor"] == "token:acme" or "acme" in item["asked"]["actor"]
        assert uuid.UUID(item["asked"]["request_id"])
        (attempt,) = item["attempts"]
        assert attempt["saw"]
        assert attempt["did"]
        assert attempt["seen_gone"] == item["verified"]["seen"]
        assert item["chain"]["verified"] is True
        assert item["checkpoint"]["id"] <= kept["id"]
        assert [event["event"] for event in item["events"]][-3:] == ["claimed", "started", "completed"]

    connection = psycopg2.connect(system.env["DEPROVISIONER_DATABASE_URL"])
    connection.autocommit = True
    for statement in (
        *(f"UPDATE {table} SET hash = hash" for table in ("events", "audit_checkpoints", "audit_heads")),
        *(f"{verb} {table}" for verb in ("DELETE FROM", "TRUNCATE") for table in ("events", "audit_checkpoints")),
        "DELETE FROM outbox",
        "DELETE FROM resources",
        "DELETE FROM tokens",
        "UPDATE alembic_version SET version_num = 'x'",
        "SET session_replication_role = replica",
        "CREATE TABLE mine (id int)",
    ):
        with pytest.raises(psycopg2.errors.InsufficientPrivilege, match="permission denied"):
            connection.cursor().execute(statement)
    with pytest.raises(psycopg2.errors.InsufficientPrivilege, match="must be owner"):
        connection.cursor().execute("ALTER TABLE events DISABLE TRIGGER ALL")
    connection.close()


def test_an_export_for_people_and_what_it_refuses(db: Connection, installation: Installation) -> None:
    secret = tokens.create(db, actor="op", role="tenant", tenant="acme", name="acme")[1]
    url = installation.system.api()
    installation.system.worker()
    with client(url, secret) as api:
        kept, gone = create(api), create(api)
        until(api, kept, "active")
        until(api, gone, "active")
        assert installation.cli("resources", "delete", gone["id"], "--reason", "ticket 811").returncode == 0
        until(api, gone, "deleted")
    answer = installation.cli("audit", "export", "--resource", gone["id"])
    assert answer.returncode == 0
    (shown,) = installation.json("audit", "export", "--resource", gone["id"])["items"]
    lines = [
        r"  asked +\S+ by cli:\S+, reason: ticket 811",
        r"  request +\S+, job \d+",
        r"  attempt 1 +\S+ by \S+: completed",
        r"    saw +role usr_\w+…, databases db_\w+…, system identifier \d+",
        r"    did +\d+ statements, among them DROP DATABASE .{1,90}",
        r"  gone +\S+",
        r"  verified +\S+ by \S+, who saw:",
        r"    saw +no role, no databases, system identifier \d+",
    ]
    assert re.search("^" + "\n".join(lines) + "$", answer.stdout, re.M), answer.stdout
    assert len(shown["attempts"][0]["did"]["statements"]) > 1, "JSON has them all"
    asked, purged = (re.search(rf"^  {name} +(\S+)", answer.stdout, re.M) for name in ("asked", "gone"))
    assert asked
    assert purged
    assert asked[1] < purged[1], "asked for, and gone"
    assert re.search(r"^  chain +\d+ events, head [0-9a-f]{64}, verified$", answer.stdout, re.M)
    assert "(none)" in installation.cli("audit", "export", "--since", "2100-01-01").stdout
    assert json.loads(installation.cli("audit", "export", "--since", "0s", "--json").stdout) == {"items": []}
    for words, code, said in [
        (("export",), 2, "--since or --resource"),
        (("export", "--since", "yesterday"), 2, "24h"),
        (("export", "--resource", kept["id"], "--json"), 1, "is active"),
        (("export", "--resource", str(uuid.uuid4())), 1, "there is no resource"),
    ]:
        answer = installation.cli("audit", *words)
        assert (answer.returncode, answer.stdout) == (code, ""), answer
        assert said in answer.stderr


def test_a_proof_tells_who_looked_who_resolved_who_redrove_and_why(db: Connection, installation: Installation) -> None:
    """No worker runs here: what it would do is this test's."""
    id = jobs.enqueue(db, a_resource(db), actor="token:1:acme", reason="ticket 811").job.id
    for error in ("no space", "a stranger's"):
        (claim,) = claims(db)
        jobs.start(db, claim, worker="w1", seen={"oid": 7})
        jobs.stick(db, claim, worker="w1", why=StuckReason.REFUSED, error=error)
        if error == "no space":
            jobs.redrive(db, id, fence=1, actor="cli:zoe", reason="disk was full")
    observations.ask(db, id, actor="cli:root")
    (look,) = observations.take(db, {"pg-main": 1}, slots=1)
    assert observations.record(db, look, worker="w2", found=Found.ABSENT, seen={"databases": [], "role": None})
    jobs.resolve(db, id, fence=2, actor="cli:root", reason="dropped by hand")
    (item,) = installation.json("audit", "export", "--since", "1h")["items"]
    told = {name: item["verified"][name] for name in ("by", "how", "reason", "observed_by", "seen", "forced_by")}
    assert told == {
        "by": "cli:root",
        "how": "resolved",
        "reason": "dropped by hand",
        "observed_by": "w2",
        "seen": {"databases": [], "role": None},
        "forced_by": None,
    }
    assert item["verified"]["observed_at"] < item["verified"]["at"]
    (again,) = item["redriven"]
    assert (again["fence"], again["by"], again["reason"], again["operation"]) == (1, "cli:zoe", "disk was full", None)
    said = installation.cli("audit", "export", "--since", "1h").stdout
    told_in_order = [
        r"attempt 1 +\S+ by w1: stuck: no space",
        r"redriven +\S+ by cli:zoe, reason: disk was full",
        r"attempt 2 +\S+ by w1: stuck: a stranger's",
        r"verified +\S+ by w2, who saw:\n    saw +no role, no databases",
        r"resolved +\S+ by cli:root, reason: dropped by hand",
    ]
    assert re.search(".*".join(told_in_order), said, re.DOTALL), said


def test_a_proof_does_not_present_a_forced_job_as_seen_absent(db: Connection, installation: Installation) -> None:
    id = jobs.enqueue(db, a_resource(db), actor="token:1:acme").job.id
    (claim,) = claims(db)
    jobs.start(db, claim, worker="w1")
    jobs.stick(db, claim, worker="w1", why=StuckReason.OUTCOME_UNKNOWN, error="no answer")
    for who in ("token:1:ann", "token:2:bob"):
        jobs.resolve_forced(db, id, fence=1, actor=who, reason="seen gone in the log")
    said = installation.cli("audit", "export", "--since", "1h").stdout
    assert re.search(r"^  verified +NOT SEEN$", said, re.M)
    assert re.search(
        r"^  resolved +\S+ forced by token:1:ann and token:2:bob, reason: seen gone in the log$", said, re.M
    )


def test_a_checkpoint_says_how_many_chains_have_grown(db: Connection, installation: Installation) -> None:
    for _ in range(2):
        jobs.enqueue(db, a_resource(db), actor="a")
    assert re.search(
        r"^covers +2 chains with new events since the checkpoint before$",
        installation.cli("audit", "checkpoint").stdout,
        re.M,
    )
    jobs.enqueue(db, a_resource(db), actor="a")
    for again in (False, True):
        said = installation.cli("audit", "checkpoint").stdout
        assert re.search(r"^covers +1 chain with new events since the checkpoint before$", said, re.M)
        assert ("no new events: this is the last checkpoint" in said) is again
