"""An inspection of a stuck job's backend: what the operator is told, whatever the backend does."""

import json
import uuid
from typing import Any

import pytest
from sqlalchemy import Connection
from structlog.testing import capture_logs

from outbox import advice, jobs, observations
from outbox.errors import Refused, StillThere, Transient, Unavailable
from outbox.states import Found
from tests.support.factories import a_job, events_of, job, status_of, unguarded
from tests.support.servers import Servers
from tests.support.shelf import Shelf
from worker import observer
from worker.backends import Absent, Different, Same
from worker.backends.postgres import Postgres


def seen(db: Connection, backend: Shelf) -> tuple[str | None, Any]:
    asked = observations.ask(db, a_job(db, state="stuck"), actor="op")
    (look,) = observations.take(db, {"pg-main": 9}, slots=9)
    observer.observe(look, backend, worker="w")
    recorded = observations.find(db, asked.id)
    assert recorded is not None
    assert recorded.observed_by == "w"
    assert events_of(db, recorded.job_id) == ["observed"]
    return recorded.found, recorded.seen


@pytest.mark.parametrize(
    ("sees", "told"),
    [
        (Absent({"n": 1}), ("absent", {"n": 1})),
        (Same({"n": 1}), ("same", {"n": 1})),
        (Different({"n": 1}, "another's"), ("different", {"n": 1, "why": "another's"})),
        (Unavailable("no route"), ("unavailable", {"error": "no route"})),
        (Transient("busy"), ("unavailable", {"error": "busy"})),
        (Refused("no right"), ("unavailable", {"error": "no right"})),
        (ValueError("secret"), ("unavailable", {"error": "unexpected ValueError: the worker's log has it"})),
    ],
)
def test_an_inspection_records_the_backends_answer_and_no_secret(
    db: Connection, sees: Any, told: tuple[str, Any]
) -> None:
    backend = Shelf(sees=[sees])
    with capture_logs() as logged:
        assert seen(db, backend) == told
    assert backend.torn == []
    failed = [line["event"] for line in logged if line["log_level"] == "error"]
    assert failed == (["inspection_failed"] if isinstance(sees, ValueError) else [])


def test_a_part_that_the_manifest_never_named_is_not_missing(db: Connection) -> None:
    asked = observations.ask(db, a_job(db, state="stuck"), actor="op")
    unguarded(db, """UPDATE resources SET manifest = manifest || '{"role": null}'""")
    (look,) = observations.take(db, {"pg-main": 9}, slots=9)
    observer.observe(look, Shelf(sees=[Same({"databases": ["d"], "role": None})]), worker="w")
    recorded = observations.find(db, asked.id)
    assert recorded is not None
    assert (recorded.seen, recorded.means) == ({"databases": ["d"]}, "it is still there: databases d")


@pytest.mark.parametrize(
    ("found", "seen", "means"),
    [
        ("absent", {"databases": []}, "it is gone: "),
        ("absent", {"never_made": True}, "there is nothing to look for: it was never made"),
        (
            "same",
            {"databases": ["d oid=7", "e"], "n": 0, "role": "r"},
            "it is still there: databases d oid=7, e; n 0; role r",
        ),
        ("same", {"databases": [], "role": "r"}, "part of it is still there: role r (gone: databases)"),
        ("different", {"databases": [], "why": "it was renamed to 'x'"}, "it may still exist: it was renamed to 'x'"),
        ("unavailable", {"error": "no route"}, "the backend could not be inspected: no route"),
        ("unobservable", {}, "backends of this kind cannot be inspected"),
    ],
)
def test_an_observation_is_told_in_words(found: str, seen: dict[str, Any], means: str) -> None:
    assert advice.seen_in_words(Found(found), seen).startswith(means)


def test_an_unobservable_backend_is_not_inspected(db: Connection) -> None:
    assert seen(db, Shelf(observable=False, sees=[])) == ("unobservable", {})


def test_a_resource_without_a_manifest_was_never_made(db: Connection) -> None:
    id = a_job(db, state="stuck")
    unguarded(db, "UPDATE resources SET manifest = NULL")
    asked = observations.ask(db, id, actor="op")
    (look,) = observations.take(db, {"pg-main": 9}, slots=9)
    observer.observe(look, Shelf(sees=[]), worker="w")
    recorded = observations.find(db, asked.id)
    assert recorded is not None
    assert (recorded.found, recorded.seen) == ("absent", {"never_made": True})


@pytest.mark.parametrize(
    "by_hand",
    [
        ('ALTER DATABASE "{database}" RENAME TO "m_{generation}"', "COMMENT ON DATABASE \"m_{generation}\" IS 'mine'"),
        ('DROP DATABASE "{database}"', 'ALTER ROLE "{role}" RENAME TO "r_{generation}"'),
    ],
    ids=["database", "role"],
)
@pytest.mark.parametrize("server", ["postgres", "postgres15"])
def test_what_matches_in_part_is_never_told_as_gone_and_resolve_is_refused(
    db: Connection, servers: Servers, request: pytest.FixtureRequest, server: str, by_hand: tuple[str, ...]
) -> None:
    pg = servers.pg if server == "postgres" else request.getfixturevalue(server)
    backend = Postgres(pg.service_dsn)
    plan = backend.plan(uuid.uuid4(), uuid.uuid4())
    manifest = backend.provision(plan.manifest, plan.credentials)
    id = a_job(db, state="stuck")
    unguarded(db, "UPDATE resources SET manifest = :manifest", manifest=json.dumps(manifest))
    for statement in by_hand:
        pg.query(statement.format(**manifest))
    asked = observations.ask(db, id, actor="op")
    (look,) = observations.take(db, {"pg-main": 9}, slots=9)
    observer.observe(look, backend, worker="w")
    recorded = observations.find(db, asked.id)
    assert recorded is not None
    assert recorded.found == Found.DIFFERENT
    assert (recorded.means or "").startswith("it may still exist: ")
    fence = job(db, id).fence
    with pytest.raises(StillThere):
        jobs.resolve(db, id, fence=fence, actor="op", reason="gone")
    assert (job(db, id).state, status_of(db, job(db, id).resource_id)) == ("stuck", "deleting")
