"""A look at a stuck job's backend: what the operator is told, whatever the backend does."""

from typing import Any

import pytest
from sqlalchemy import Connection, text

from outbox import observations
from outbox.errors import Refused, Transient, Unavailable
from tests.outbox.given import a_job, events_of
from tests.worker.test_runner import Shelf
from worker import looks
from worker.backends import Absent, Different, Same


def seen(db: Connection, backend: Shelf) -> tuple[str | None, Any]:
    asked = observations.ask(db, a_job(db, state="stuck"), actor="op")
    (turn,) = observations.take(db, {"pg-main": 9}, slots=9)
    looks.look(turn, backend, worker="w")
    told = observations.find(db, asked.id)
    assert told is not None
    assert told.observed_by == "w"
    assert events_of(db, told.job_id) == ["observed"]
    return told.found, told.seen


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
def test_what_a_backend_says_is_told_and_no_secret_with_it(db: Connection, sees: Any, told: tuple[str, Any]) -> None:
    backend = Shelf(sees=[sees])
    assert seen(db, backend) == told
    assert backend.torn == []


def test_the_unobservable_is_not_asked(db: Connection) -> None:
    assert seen(db, Shelf(observable=False, sees=[])) == ("unobservable", {})


def test_what_was_never_planned_was_never_made(db: Connection) -> None:
    id = a_job(db, state="stuck")
    db.execute(text("UPDATE resources SET manifest = NULL"))
    asked = observations.ask(db, id, actor="op")
    (turn,) = observations.take(db, {"pg-main": 9}, slots=9)
    looks.look(turn, Shelf(sees=[]), worker="w")
    told = observations.find(db, asked.id)
    assert told is not None
    assert (told.found, told.seen) == ("absent", {"never_made": True})
