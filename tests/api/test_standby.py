"""A synchronous standby of the control database that is missing: nothing is confirmed, and nothing acted on."""

import uuid
from collections.abc import Iterator
from typing import Any

import psycopg2
import pytest
from sqlalchemy import Connection

from outbox import commits, jobs
from outbox import db as database
from outbox.errors import Unconfirmed
from outbox.rows import Claim
from tests.support.api import problem
from tests.support.factories import a_claim, a_resource, job
from tests.support.processes import System, client
from tests.support.servers import Servers
from tests.support.shelf import Shelf
from worker.run import Batches, Run


@pytest.fixture
def no_standby(servers: Servers, db: Connection, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Sets `synchronous_standby_names` of the control server, to which no standby connects; the end resets it."""

    monkeypatch.setattr(commits, "CONFIRM_SECONDS", 0.5)

    def names(value: str) -> None:
        admin = psycopg2.connect(servers.control.dsn)
        admin.autocommit = True
        with admin.cursor() as asked:
            asked.execute("SET synchronous_commit = off")
            asked.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{value}'")
            asked.execute("SELECT pg_reload_conf()")
        admin.close()

    yield names
    names("")


def test_a_delete_that_no_standby_confirms_is_503_and_gets_its_job_when_asked_again(
    system: System, tenant: str, db: Connection, no_standby: Any
) -> None:
    resource = a_resource(db)
    with client(system.api(), tenant) as api:
        assert api.get("/readyz").status_code == 200
        no_standby("*")
        answer = api.delete(f"/v1/resources/{resource}")
        problem(answer, 503, "outcome_unconfirmed")
        assert answer.elapsed.total_seconds() < database.STATEMENT_TIMEOUT_MS / 1000
        assert answer.headers["retry-after"]
        ready = api.get("/readyz")
        assert ready.status_code == 503
        assert "standby" in ready.json()["database"]
        no_standby("")
        again = api.delete(f"/v1/resources/{resource}")
        assert again.status_code == 200, again.text
        assert uuid.UUID(again.json()["resource"]["id"]) == resource
        assert api.get("/readyz").status_code == 200


@pytest.mark.parametrize("shared", [False, True], ids=["alone", "shared"])
def test_a_start_that_no_standby_confirms_destroys_nothing(db: Connection, no_standby: Any, shared: bool) -> None:
    claim, shelf = a_claim(db), Shelf()
    no_standby("*")
    Run(claim, shelf, worker="w", batches=Batches(worker="w") if shared else None)()
    assert shelf.torn == []
    assert job(db, claim.id).state == "running", "its lease passes, and the next attempt inspects first"


def test_a_start_read_back_is_confirmed_before_it_counts(db: Connection, no_standby: Any) -> None:
    claim: Claim = a_claim(db)
    jobs.start(db, claim, worker="w")
    no_standby("*")
    with pytest.raises(Unconfirmed), database.statement() as session:
        jobs.start(session, claim, worker="w")
