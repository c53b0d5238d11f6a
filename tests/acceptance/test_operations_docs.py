"""docs/operations.md holds: its commands back up an installation that works, restore it, and bring it back to work."""

import shutil
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psycopg2
import pytest

from deprovisioner.up import servers as embedded
from outbox import db as database
from outbox import tokens
from tests.support import accounts, documents
from tests.support.api import create, until
from tests.support.processes import ROOT, System, client
from tests.support.servers import Servers, database_dsn, server_folder
from tests.support.witness import PgServer, eventually

PAGE = ROOT / "docs" / "operations.md"
PARTS = documents.parts(PAGE)
BACKUP, RESTORE = "Take a backup", "Restore the control database"
DECIDE, BACKEND = "Decide, and go on", "A backend went back in time"


@dataclass
class Installation:
    """An API and a worker that log in as the service's role, with one backend of their own."""

    system: System
    control: PgServer
    pg: PgServer
    url: str
    words: dict[str, str]
    database: str
    said: dict[str, list[str]] = field(default_factory=dict)

    def types(self, part: str) -> list[str]:
        """Type the commands of one part."""
        self.said[part] = documents.types(PARTS[part], self.words, before=self._settled)
        return self.said[part]

    def _settled(self, line: str) -> None:
        """A reader who asks the doctor does not ask in the very second: a worker has compared by then."""
        if line == "deprovisioner doctor":
            settled = """
                SELECT 1 WHERE EXISTS (SELECT FROM holds WHERE cause = 'rewound' AND released_at IS NULL)
                            OR EXISTS (SELECT FROM memories WHERE behind_since IS NOT NULL)
                            OR NOT EXISTS (SELECT FROM memories AS m CROSS JOIN installation AS i
                                            WHERE m.compared_under IS DISTINCT FROM i.compared_under)"""
            eventually(lambda: self.asks(settled), what="a worker has compared")

    def asks(self, statement: str) -> list[tuple[Any, ...]]:
        with suppress(psycopg2.Error):  # in the middle of a restore
            return self.control.query(statement, database=self.database)
        return []

    def dropped(self) -> int:
        return sum(self.pg.drops().values())


@pytest.fixture
def installation(settled: dict[str, str], system: System, servers: Servers, tmp_path: Path) -> Iterator[Installation]:
    folder = server_folder("operations")
    port, role = embedded.free_port(), f"service_{uuid.uuid4().hex}"
    options = {"fsync": "off", "full_page_writes": "off", "log_statement": "ddl"}
    server = embedded.postgres(folder, "pg-main", port, "secret", options)
    dsn = embedded.postgres_dsn(port, "secret")
    server.spawn()
    server.wait_until(lambda: embedded.postgres_ready(dsn))
    owner = settled["DEPROVISIONER_DATABASE_URL"]
    name = owner.rpartition("/")[2]
    try:
        pg = PgServer(dsn, server.log, accounts.postgres(dsn))
        backends = tmp_path / "own.toml"
        backends.write_text('[backends.pg-main]\nkind = "postgres"\ndsn = "env:PG_MAIN_DSN"\n')
        answer = system.cli("migrate", "--service-role", role, DEPROVISIONER_SERVICE_PASSWORD="secret")
        assert answer.returncode == 0, answer
        service = embedded.postgres_dsn(_port(owner), "secret", name, role)
        system.env |= {
            "DEPROVISIONER_DATABASE_URL": service,
            "DEPROVISIONER_BACKENDS": str(backends),
            "PG_MAIN_DSN": pg.service_dsn,
        }
        (tmp_path / "backup").mkdir()
        words = {key: value for key, value in system.env.items() if key.startswith(("DEPROVISIONER_", "PG_"))} | {
            "PATH": documents.path_with_the_command(tmp_path / "bin"),
            "ADMIN_URL": database_dsn(servers.control.dsn, "postgres"),
            "OWNER_URL": owner,
            "DATABASE": name,
            "ROLE": role,
            "BACKUP": str(tmp_path / "backup"),
            "BACKEND": "pg-main",
        }
        yield Installation(system, servers.control, pg, system.api(), words, name)
    finally:
        system.stop()
        server.stop()
        servers.control.query(f"DROP DATABASE IF EXISTS {name}_before WITH (FORCE)")
        servers.control.query(f"DROP OWNED BY {role}", database=name)
        servers.control.query(f"DROP ROLE {role}")
        shutil.rmtree(folder, ignore_errors=True)


def _port(dsn: str) -> int:
    return int(psycopg2.extensions.parse_dsn(dsn)["port"])


def test_the_commands_of_the_page_back_up_restore_and_recover(installation: Installation, tmp_path: Path) -> None:
    with database.statement() as session:
        acme = tokens.create(session, actor="op", role="tenant", tenant="acme", name="acme")[1]
        stolen = tokens.create(session, actor="op", role="tenant", tenant="acme", name="stolen")
    installation.system.worker()
    with client(installation.url, acme) as api:
        kept, deleted, expiring = (until(api, create(api, name=name), "active") for name in ("a", "b", "c"))
        soon = installation.control.query(
            "SELECT to_json(now() + interval '30 minutes')", database=installation.database
        )
        assert api.patch(f"/v1/resources/{expiring['id']}", json={"expires_at": soon[0][0]}).status_code == 200
        installation.types(BACKUP)
        assert {file.name for file in (tmp_path / "backup").iterdir()} == {
            *("control.dump", "control.list", "backends.toml", "credentials.key"),
        }
        # What the dump does not have.
        assert api.patch(f"/v1/resources/{expiring['id']}", json={"expires_at": None}).status_code == 200
        made = until(api, create(api, name="d"), "active")
        assert api.delete(f"/v1/resources/{deleted['id']}").status_code == 202
        until(api, deleted, "deleted")
        revoked = installation.system.cli("token", "revoke", str(stolen[0].id))
        assert revoked.returncode == 0, revoked
        assert installation.dropped() == 1

        installation.types(RESTORE)
        assert "rewound" in installation.said[RESTORE][-1]
        answer = api.delete(f"/v1/resources/{kept['id']}")
        assert (answer.status_code, answer.json()["code"]) == (503, "rewound")
        assert api.get(f"/v1/resources/{kept['id']}").json()["status"] == "active"
        assert httpx.get(f"{installation.url}/readyz").status_code == 503

        installation.types(DECIDE)
        assert installation.dropped() == 1, "nothing but what was deleted before"
        eventually(lambda: api.get(f"/v1/resources/{kept['id']}").status_code == 200, what="the API goes on")
        alive = api.get("/v1/resources?status=active").json()["items"]
        assert {one["manifest"]["database"] for one in alive} == {
            one["manifest"]["database"] for one in (kept, expiring, made)
        }
        assert api.get(f"/v1/resources/{deleted['id']}").json()["status"] == "deleted"
        assert api.get(f"/v1/resources/{expiring['id']}").json()["expires_at"] is None
        assert api.get(f"/v1/resources/{kept['id']}/credentials").status_code == 200
        with client(installation.url, stolen[1]) as thief:
            assert thief.get("/v1/resources").status_code == 401
        assert api.delete(f"/v1/resources/{kept['id']}").status_code == 202
        until(api, kept, "deleted")


@pytest.mark.proof
def test_the_commands_of_the_page_bring_a_backend_back_that_went_back_in_time(installation: Installation) -> None:
    with database.statement() as session:
        acme = tokens.create(session, actor="op", role="tenant", tenant="acme", name="acme")[1]
    installation.system.worker()
    with client(installation.url, acme) as api:
        kept = until(api, create(api), "active")
        written = "SELECT event FROM memories WHERE place = 'pg-main' AND event IS NOT NULL"
        eventually(lambda: installation.asks(written), what="the backend remembers something")
        installation.pg.query("DROP SCHEMA deprovisioner_memory CASCADE", database=accounts.NAME)
        installation.control.query(
            "UPDATE memories SET compared_at = now() - interval '1 hour'", database=installation.database
        )
        behind = "SELECT place FROM memories WHERE behind_since IS NOT NULL"
        eventually(lambda: installation.asks(behind), what="a worker has noticed")
        installation.types(BACKEND)
        assert "backend_went_back" in installation.said[BACKEND][0]
        assert installation.asks(behind) == []
        assert installation.dropped() == 0
        assert api.delete(f"/v1/resources/{kept['id']}").status_code == 202
        until(api, kept, "deleted")


def test_the_page_names_each_command_that_it_needs() -> None:
    assert list(PARTS) == [BACKUP, RESTORE, DECIDE, BACKEND]
