"""The service as a role that cannot rewrite history, and what is proved of its deletions, through the real commands."""

import json
import re
import subprocess
import sys
import uuid
from collections.abc import Iterator
from typing import Any

import psycopg2
import pytest
from sqlalchemy import Connection, text

from outbox import tokens
from tests.acceptance.test_main_job import create, until
from tests.processes import System, client
from tests.witness import eventually


class Installation:
    """API and worker under the service's role; `env` is what they, and a person's shell, get."""

    def __init__(self, system: System, role: str) -> None:
        self.system, self.role = system, role

    def cli(self, *words: str, **more: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-m", "outbox.cli", *words],
            env=self.system.env | more,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

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
    secret = tokens.create(db, role="tenant", tenant="acme", name="acme")[1]
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
    secret = tokens.create(db, role="tenant", tenant="acme", name="acme")[1]
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
    assert re.search(r"^  asked +\S+ by cli:\S+, reason ticket 811$", answer.stdout, re.M)
    assert re.search(r"^  attempt 1 +\S+ by \S+: saw {.*}, did {.*}, completed$", answer.stdout, re.M)
    assert re.search(r"^  verified +\S+ by \S+: saw {.*}$", answer.stdout, re.M)
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
