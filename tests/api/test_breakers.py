"""Backends out of reach are seen: since when, why, and what waits for them."""

import json

from sqlalchemy import Connection, text

from outbox import breakers
from tests.support.api import problem
from tests.support.factories import a_job
from tests.support.processes import System, client, shell


def test_open_breakers_are_listed_with_what_waits(
    db: Connection, env: dict[str, str], system: System, operator: str, tenant: str
) -> None:
    with client(system.api(), operator) as api:
        assert api.get("/v1/breakers").json() == {"items": [], "next_cursor": None}
        assert shell(env, "breakers", "list").stdout.splitlines()[1:] == ["(none)"]
        for _ in range(3):
            a_job(db)
        a_job(db, state="succeeded")
        a_job(db, backend="pg-2", state="stuck")
        breakers.trip(db, "pg-main", reason="connection refused")
        breakers.trip(db, "pg-2", reason="no route to host")
        for backend, retry in {"pg-main": "1 hour", "pg-2": "-1 second"}.items():
            db.execute(
                text("UPDATE breakers SET retry_at = now() + CAST(:retry AS interval) WHERE backend = :backend"),
                {"retry": retry, "backend": backend},
            )
        items = api.get("/v1/breakers").json()["items"]
        told = json.loads(shell(env, "breakers", "list", "--json").stdout)["items"]
        assert told == items
        assert [(b["backend"], b["state"], b["why"], b["failures"], b["waiting"]) for b in items] == [
            ("pg-main", "open", "connection refused", 1, 3),
            ("pg-2", "half_open", "no route to host", 1, 0),
        ]
        assert items[0]["since"] < items[0]["retry_at"]
        table = shell(env, "breakers", "list").stdout
        assert "pg-2" in table
        assert "no route to host" in table
        problem(api.get("/v1/breakers", headers={"Authorization": f"Bearer {tenant}"}), 403, "forbidden")
        problem(api.get("/v1/breakers", headers={"Authorization": "Bearer x"}), 401, "unauthenticated")
