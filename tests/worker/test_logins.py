"""Who still logs in to what is in quarantine: workers take turns to ask, and what they counted stays counted."""

import datetime as dt
import json
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import Connection, text
from structlog.testing import capture_logs

from outbox import db as database
from outbox import logins
from outbox.errors import Refused, Transient, Unavailable
from outbox.logins import LoginAttempts
from outbox.rows import Json
from tests.support.factories import a_job, job
from tests.support.witness import eventually, waits_for_a_lock
from worker import backends
from worker import logins as watch
from worker.backends import Backend
from worker.intake import ADDRESS, ADDRESSES, Intake

AT = dt.datetime(2030, 1, 1, tzinfo=dt.UTC)


class Server:
    """A kind that tells; it answers with the next of these, and then with nothing."""

    def __init__(self, *answers: backends.LoginAttempts | Exception | None) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[Json, dt.datetime]] = []

    def login_attempts(self, manifest: Json, since: dt.datetime) -> backends.LoginAttempts | None:
        self.asked.append((manifest, since))
        answer = self.answers.pop(0) if self.answers else None
        if isinstance(answer, Exception):
            raise answer
        return answer


def told(count: int, *addresses: str, at: dt.datetime = AT, **groups: int) -> backends.LoginAttempts:
    return backends.LoginAttempts(count, at, list(addresses), groups)


def a_quarantine(db: Connection, step: str = "wait", **words: Any) -> uuid.UUID:
    resource: uuid.UUID = job(db, a_job(db, step=step, **words)).resource_id
    return resource


def look(db: Connection, *served: Server) -> None:
    """A round, a minute after the one before."""
    db.execute(text("UPDATE login_attempts SET looked_at = looked_at - interval '61 s'"))
    watch.look(dict(zip(("pg-main", "other"), served, strict=False)), worker="w1")  # type: ignore[arg-type]


def seen(db: Connection, resource: uuid.UUID) -> LoginAttempts:
    found = logins.of(db, resource)
    assert found is not None
    return found


def test_what_was_counted_stays_when_the_server_s_log_rolls_over(db: Connection) -> None:
    resource = a_quarantine(db)
    server = Server(told(3, "10.0.0.1"), None, told(2, "10.0.0.2", at=AT + dt.timedelta(hours=1)))
    for _ in range(3):
        look(db, server)
    found = seen(db, resource)
    assert (found.count, found.addresses) == (5, ["10.0.0.2", "10.0.0.1"])
    assert found.last_at == AT + dt.timedelta(hours=1)
    deleted_at = db.execute(text("SELECT deleted_at FROM resources")).scalar_one()
    assert [since for _, since in server.asked] == [deleted_at, AT, AT]
    assert server.asked[0][0]["database"].startswith("db_")


def test_of_a_group_that_has_grown_only_its_growth_is_counted(db: Connection) -> None:
    resource = a_quarantine(db)
    server = Server(told(5, a=3, b=2), told(9, a=7, c=2), told(9, a=7, c=2), told(1, a=1))
    counts = []
    for _ in range(4):
        look(db, server)
        counts.append(seen(db, resource).count)
    assert counts == [5, 11, 11, 12], "the last server was started anew"


def test_a_resource_is_asked_about_once_a_minute_by_one_of_many_workers(db: Connection) -> None:
    a_quarantine(db)
    servers = [Server(told(1)) for _ in range(3)]
    for server in servers:
        watch.look({"pg-main": server}, worker="w")  # type: ignore[dict-item]
    assert [len(server.asked) for server in servers] == [1, 0, 0]


def test_two_workers_that_ask_at_once_share_the_turns(db: Connection, connect: Any) -> None:
    """Each saw the resource as due; one of them waits for the other's row."""
    a_quarantine(db)
    logins.take(db, ["pg-main"], batch=9)
    db.execute(text("UPDATE login_attempts SET looked_at = looked_at - interval '61 s'"))
    holder = connect()
    holder.cursor().execute("UPDATE login_attempts SET looked_at = now()")

    def ask() -> int:
        with database.statement() as session:
            return len(logins.take(session, ["pg-main"], batch=9))

    with ThreadPoolExecutor(1) as pool:
        second = pool.submit(ask)
        eventually(lambda: waits_for_a_lock(db))
        holder.commit()
        assert second.result(20) == 0


def test_a_look_reads_no_row_that_was_just_looked_at(db: Connection) -> None:
    """Else those that wait would never have their turn."""
    first = a_quarantine(db)
    assert [turn.resource_id for turn in logins.take(db, ["pg-main"], batch=1)] == [first]
    db.execute(text("UPDATE login_attempts SET looked_at = looked_at - interval '10 s'"))
    before = db.execute(text("SELECT xmax FROM login_attempts")).scalar_one()
    assert logins.take(db, ["pg-main"], batch=1) == []
    assert db.execute(text("SELECT xmax FROM login_attempts")).scalar_one() == before, "not even locked"


def test_a_worker_whose_turn_is_over_adds_nothing(db: Connection) -> None:
    resource = a_quarantine(db)
    (turn,) = logins.take(db, ["pg-main"], batch=9)
    db.execute(text("UPDATE login_attempts SET looked_at = looked_at - interval '61 s'"))
    (again,) = logins.take(db, ["pg-main"], batch=9)
    for one in (turn, again):
        logins.record(db, one, count=4, last_at=AT, addresses=[], groups={})
    assert seen(db, resource).count == 4


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        ({"step": "wait"}, 1),
        ({"step": "snapshot"}, 1),
        ({"step": "wait", "state": "stuck"}, 1),
        ({"step": "quarantine"}, 0),
        ({"step": "destroy"}, 0),
        ({"step": "wait", "state": "cancelled", "status": "restoring"}, 0),
        ({"step": "wait", "backend": "elsewhere"}, 0),
    ],
    ids=str,
)
def test_only_what_is_in_quarantine_and_served_here_is_asked_about(
    db: Connection, words: dict[str, str], asked: int
) -> None:
    a_quarantine(db, **words)
    server = Server()
    look(db, server)
    assert len(server.asked) == asked


def test_those_that_waited_longest_come_first(db: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    resources = [a_quarantine(db) for _ in range(3)]
    first = [turn.resource_id for turn in logins.take(db, ["pg-main"], batch=2)]
    db.execute(text("UPDATE login_attempts SET looked_at = looked_at - interval '61 s'"))
    then = [turn.resource_id for turn in logins.take(db, ["pg-main"], batch=1)]
    assert then == [resources[2]]
    assert {*first, *then} == {*resources}


def test_a_second_delete_counts_anew(db: Connection) -> None:
    resource = a_quarantine(db)
    look(db, Server(told(7, "10.0.0.1", at=dt.datetime.now(dt.UTC))))
    db.execute(text("UPDATE outbox SET state = 'cancelled', finished_at = now()"))
    db.execute(text("UPDATE resources SET status = 'restoring', deleted_at = NULL"))
    assert logins.of(db, resource) is None
    db.execute(text("UPDATE resources SET status = 'active'"))
    db.execute(text("UPDATE resources SET status = 'deleting', deleted_at = now() + interval '1 minute'"))
    db.execute(
        text("""INSERT INTO outbox (kind, resource_id, backend, max_attempts, request_id, step)
                SELECT 'deprovision', id, backend, 9, gen_random_uuid(), 'wait' FROM resources""")
    )
    assert logins.of(db, resource) is None, "it is of the first DELETE"
    look(db, Server())
    found = seen(db, resource)
    assert (found.count, found.last_at, found.addresses) == (0, None, [])


def test_a_server_that_is_away_is_not_asked_again_in_this_round(db: Connection) -> None:
    for _ in range(3):
        a_quarantine(db)
    other = a_quarantine(db, backend="other")
    away, there = Server(*[Unavailable("no route")] * 3), Server(told(1))
    with capture_logs() as logged:
        look(db, away, there)
    assert (len(away.asked), len(there.asked), seen(db, other).count) == (1, 1, 1)
    assert [line["event"] for line in logged] == ["login_attempts_unread"]


@pytest.mark.parametrize("error", [Transient("too long"), Refused("another server"), ValueError("secret")], ids=repr)
def test_one_that_cannot_be_asked_about_keeps_no_other_from_it(db: Connection, error: Exception) -> None:
    resources = [a_quarantine(db) for _ in range(2)]
    server = Server(error, told(1))
    look(db, server)
    counts = [seen(db, resource).count for resource in resources]
    assert sorted(counts) == [0, 1]


def test_a_round_ends_where_the_control_database_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: object, **__: object) -> Sequence[object]:
        raise Unavailable("the control database is away")

    monkeypatch.setattr("outbox.db.statement", away)
    with capture_logs() as logged:
        watch.look({"pg-main": Server()}, worker="w1")  # type: ignore[dict-item]
    assert [line["event"] for line in logged] == ["login_attempts_not_recorded"]


def test_what_a_server_tells_is_bounded(db: Connection) -> None:
    resource = a_quarantine(db)
    long = [f"{n}\0{'x' * 10_000}" for n in range(1000)]
    groups = {f"{n}{'y' * 1000}": 1 << 100 for n in range(1000)}
    hostile = backends.LoginAttempts(1 << 100, AT, long, groups)
    kept = Intake(Server(hostile)).login_attempts({}, AT)  # type: ignore[arg-type]
    assert kept is not None
    assert len(kept.addresses) == ADDRESSES
    assert all(len(one) < ADDRESS + 40 and one.isprintable() for one in kept.addresses)
    look(db, Server(hostile))
    assert db.execute(text("SELECT length(l::text) FROM login_attempts AS l")).scalar_one() < 50_000
    assert seen(db, resource).count == 2**53
    assert Intake(_without(Server())).login_attempts({}, AT) is None


def _without(_: Server) -> Backend:
    class Plain:
        observable = True

    return Plain()  # type: ignore[return-value]


def test_it_is_shown_in_one_line() -> None:
    some = LoginAttempts(12, AT, ["10.0.0.1", "10.0.0.2"], AT)
    assert str(some) == "12, the last 2030-01-01T00:00:00Z, from 10.0.0.1, 10.0.0.2"
    assert str(LoginAttempts(0, None, [], AT)) == "none seen until 2030-01-01T00:00:00Z"
    assert json.dumps(vars(some), default=str)


def test_a_turn_is_found_by_an_index(db: Connection) -> None:
    with database.transaction() as session:
        session.execute(text("SET LOCAL enable_seqscan = off"))
        plan = session.execute(
            text(f"EXPLAIN {logins._TAKE.text}"), {"backends": ["b"], "batch": 9, "every": logins.EVERY}
        )
        assert "outbox_quarantined" in "".join(plan.scalars())
