"""A look at a stuck job's backend: what the operator is told, whatever the backend does."""

from typing import Any

import pytest
from sqlalchemy import Connection, text

from outbox import advice, observations
from outbox.errors import Refused, Transient, Unavailable
from outbox.states import Found
from tests.support.factories import a_job, events_of
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


def test_what_it_never_had_is_no_part_of_it_that_is_gone(db: Connection) -> None:
    asked = observations.ask(db, a_job(db, state="stuck"), actor="op")
    db.execute(text("""UPDATE resources SET manifest = manifest || '{"role": null}'"""))
    (turn,) = observations.take(db, {"pg-main": 9}, slots=9)
    looks.look(turn, Shelf(sees=[Same({"databases": ["d"], "role": None})]), worker="w")
    told = observations.find(db, asked.id)
    assert told is not None
    assert (told.seen, told.means) == ({"databases": ["d"]}, "it is still there: databases d")


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
def test_what_was_found_is_said_in_words(found: str, seen: dict[str, Any], means: str) -> None:
    assert advice.seen_in_words(Found(found), seen).startswith(means)


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
