"""Rows and objects that agree or differ, and what a run finds: for tests of reconciliation."""

import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, text

from outbox import actions, settings
from tests.support.factories import a_resource, unguarded
from tests.support.servers import _end, _postgres, server_folder
from tests.support.witness import PgServer
from worker import reconcile
from worker.backends import Backend

ME = actions.operator_at_a_shell("op")


@contextmanager
def own_postgres() -> Iterator[PgServer]:
    """A PostgreSQL on which no other test leaves anything, with the documented account."""
    home, started = server_folder("reconcile"), {}
    try:
        yield _postgres(started, home, "pg", backend=True)
    finally:
        _end(started, home)


def made(backend: Any) -> dict[str, Any]:
    """The manifest of an object that the backend has just made."""
    plan = backend.plan(uuid.uuid4(), uuid.uuid4())
    return backend.provision(plan.manifest, plan.credentials)


def a_row(
    db: Connection,
    manifest: dict[str, Any],
    *,
    status: str = "active",
    backend: str = "pg-main",
    kind: str | None = None,
    hours: int = 2,
) -> uuid.UUID:
    """A resource of this manifest, which has not changed for so many hours."""
    id = a_resource(db, status=status, backend=backend)
    kind = kind or settings.backends()[backend].kind
    words = {"manifest": json.dumps(manifest), "generation": manifest["generation"], "kind": kind, "id": id}
    sets = "manifest = CAST(:manifest AS jsonb), generation = CAST(:generation AS uuid), kind = :kind"
    unguarded(db, f"UPDATE resources SET {sets} WHERE id = :id", **words)
    age(db, id, hours)
    return id


def age(db: Connection, id: uuid.UUID, hours: int = 2) -> None:
    """Let all that happened to a resource have happened so many hours earlier."""
    times = ("created_at", "activated_at", "deleted_at", "purged_at")
    back = ", ".join(f"{time} = {time} - :hours * interval '1 hour'" for time in times)
    unguarded(db, f"UPDATE resources SET {back} WHERE id = :id", id=id, hours=hours)


def ran(backend: Backend, *, name: str = "pg-main", unmarked: bool = False) -> str | None:
    """A run of this backend; why it failed."""
    return reconcile.run(settings.backends()[name], backend, actor="cli:op", unmarked=unmarked).error


def standing(db: Connection, **filters: Any) -> list[Any]:
    """The findings that stand."""
    return actions.object_findings(db, ME, limit=1000, **filters).items


def keys(db: Connection) -> set[tuple[str, str]]:
    """What stands: its code, and the resource, or the mark of what no row knows."""
    rows = db.execute(text("SELECT code, key, resource_id FROM object_findings WHERE closed_at IS NULL"))
    return {(row.code, str(row.resource_id or row.key)) for row in rows}
