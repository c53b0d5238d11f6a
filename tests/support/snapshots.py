"""A backend whose teardowns need a snapshot, in a folder; and what the folder holds."""

import uuid
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, text

from outbox import jobs
from tests.support.customers import in_the_outbox
from tests.support.factories import claims
from tests.support.servers import BACKENDS, clear_caches
from tests.support.witness import PgServer
from worker.backends.postgres import Postgres
from worker.run import Run


def require(env: dict[str, str], store: str, **more: str) -> None:
    """Every backend of the file takes snapshots into this store."""
    keys = {"snapshot": "required", "snapshot_store": store} | more
    lines = "\n".join(f'{key} = "{value}"' for key, value in keys.items())
    file = BACKENDS.replace("concurrency = 8", f"concurrency = 8\n{lines}")
    Path(env["DEPROVISIONER_BACKENDS"]).write_text(file)
    clear_caches()


class Teardown:
    """A customer's database whose teardown needs a snapshot, run step by step in this process."""

    def __init__(self, db: Connection, backend: Postgres, *statements: str) -> None:
        self.db, self.backend = db, backend
        self.id, self.customer, _ = in_the_outbox(db, backend)
        if statements:
            with self.customer.inside(*statements) as connection:
                connection.commit()

    @property
    def manifest(self) -> dict[str, Any]:
        return self.customer.manifest

    @property
    def dying(self) -> str:
        return f"zz_del_{self.manifest['generation']}"

    def delete(self) -> int:
        """Delete it, and run the quarantine; the job."""
        job = jobs.enqueue(self.db, self.id, actor="me").job
        self.step()
        assert self.job().step == "snapshot", self.job().last_error
        return job.id

    def step(self, backend: Any = None) -> None:
        """Claim what is due, and run it."""
        (claim,) = claims(self.db)
        Run(claim, backend or self.backend, worker="w")()

    def due(self) -> None:
        self.db.execute(
            text("UPDATE outbox SET available_at = now() WHERE resource_id = :id AND state = 'pending'"),
            {"id": self.id},
        )

    def job(self) -> Any:
        asked = "SELECT * FROM outbox WHERE resource_id = :id ORDER BY id DESC LIMIT 1"
        return self.db.execute(text(asked), {"id": self.id}).one()

    def rows(self) -> list[Any]:
        asked = "SELECT * FROM snapshots WHERE resource_id = :id ORDER BY id"
        return list(self.db.execute(text(asked), {"id": self.id}))

    def is_frozen(self, pg: PgServer) -> None:
        """It is there, nobody can enter it, and nothing of a scratch database is left."""
        asked = "SELECT datallowconn FROM pg_database WHERE datname = %s"
        assert pg.query(asked, self.dying) == [(False,)]
        nothing_of_scratch(pg, self.manifest)


def nothing_of_scratch(pg: PgServer, manifest: dict[str, Any]) -> None:
    """No scratch database and no scratch role of this resource is left."""
    left = [name for name in (*pg.databases(), *pg.roles()) if name.endswith(manifest["generation"])]
    assert [name for name in left if name.startswith("zz_scratch_")] == []
    scratch = uuid.uuid5(uuid.UUID(manifest["generation"]), "scratch")
    assert [name for name in (*pg.databases(), *pg.roles()) if str(scratch) in name] == []


class Sink:
    """A snapshot in memory."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.place = 0

    def write(self, data: bytes) -> None:
        self.data += data

    def read(self, size: int) -> bytes:
        found = bytes(self.data[self.place : self.place + size])
        self.place += len(found)
        return found
