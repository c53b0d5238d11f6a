"""The three branches of the guard: won, no-op, error."""

import threading
import uuid
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Connection, text

from outbox import db as database
from outbox import jobs
from outbox.errors import DeletionProtected, NotFound
from outbox.states import JobState, ResourceStatus
from tests.support.factories import a_job, a_resource, last_event, status_of
from tests.support.servers import Servers


def test_the_first_delete_wins_and_leaves_one_job_and_one_event(db: Connection) -> None:
    resource = a_resource(db)
    done = jobs.enqueue(db, resource, actor="me", reason="enough")
    assert done.won
    assert (done.resource.status, done.job.state) == (ResourceStatus.DELETING, JobState.PENDING)
    assert status_of(db, resource) == "deleting"
    assert db.execute(text("SELECT event, actor, reason, job_id FROM events")).all() == [
        ("enqueued", "me", "enough", done.job.id)
    ]


def test_a_later_delete_changes_nothing_and_names_the_same_job(db: Connection) -> None:
    resource = a_resource(db)
    first = jobs.enqueue(db, resource, actor="me")
    for _ in range(3):
        again = jobs.enqueue(db, resource, actor="you")
        assert not again.won
        assert again.job == first.job
    assert db.execute(text("SELECT count(*) FROM outbox")).scalar() == 1
    assert db.execute(text("SELECT count(*) FROM events")).scalar() == 1


def test_the_status_change_alone_lets_one_delete_win(db: Connection) -> None:
    resource = a_resource(db)
    db.execute(text("DROP INDEX outbox_one_deprovision"))  # it would answer for the flip
    assert [jobs.enqueue(db, resource, actor="me").won for _ in range(3)] == [True, False, False]
    assert db.execute(text("SELECT count(*) FROM outbox")).scalar() == 1


def test_an_error_in_the_insert_leaves_the_status_unflipped(db: Connection) -> None:
    resource = a_resource(db)
    db.execute(
        text("""CREATE FUNCTION broken() RETURNS trigger LANGUAGE plpgsql AS
                $$ BEGIN RAISE EXCEPTION 'the disk is full'; END $$""")
    )
    db.execute(text("CREATE TRIGGER broken BEFORE INSERT ON outbox FOR EACH ROW EXECUTE FUNCTION broken()"))
    with pytest.raises(sa.exc.DBAPIError, match="the disk is full"):
        jobs.enqueue(db, resource, actor="me")
    assert status_of(db, resource) == "active"
    assert db.execute(text("SELECT count(*) FROM events")).scalar() == 0
    db.execute(text("DROP TRIGGER broken ON outbox"))
    assert jobs.enqueue(db, resource, actor="me").won


def test_an_error_in_the_event_leaves_neither_flip_nor_job(db: Connection) -> None:
    resource = a_resource(db)
    with pytest.raises(sa.exc.IntegrityError):
        jobs.enqueue(db, resource, actor=None)  # type: ignore[arg-type]
    assert status_of(db, resource) == "active"
    assert db.execute(text("SELECT count(*) FROM outbox")).scalar() == 0


def test_a_sender_who_lost_the_answer_learns_that_it_won(db: Connection) -> None:
    resource, request = a_resource(db), uuid.uuid4()
    assert jobs.enqueue(db, resource, actor="me", request_id=request).won
    assert jobs.enqueue(db, resource, actor="me", request_id=request).won
    assert not jobs.enqueue(db, resource, actor="me").won


def test_another_tenants_resource_does_not_exist(db: Connection) -> None:
    resource = a_resource(db, tenant="acme")
    with pytest.raises(NotFound):
        jobs.enqueue(db, resource, actor="me", tenant="globex")
    assert status_of(db, resource) == "active"
    jobs.enqueue(db, resource, actor="me", tenant="acme")
    with pytest.raises(NotFound):
        jobs.enqueue(db, resource, actor="me", tenant="globex")


def test_a_protected_resource_is_not_deleted(db: Connection) -> None:
    resource = a_resource(db, protected=True)
    with pytest.raises(DeletionProtected):
        jobs.enqueue(db, resource, actor="me")
    assert status_of(db, resource) == "active"


def test_a_resource_still_provisioning_can_be_deleted(db: Connection) -> None:
    assert jobs.enqueue(db, a_resource(db, status="provisioning"), actor="me").won


def test_one_of_sixteen_concurrent_deletes_wins(db: Connection) -> None:
    resource = a_resource(db)
    barrier, results = threading.Barrier(16), []

    def delete() -> None:
        with database.statement() as session:
            barrier.wait()
            results.append(jobs.enqueue(session, resource, actor="me"))

    threads = [threading.Thread(target=delete) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(r.won for r in results) == [False] * 15 + [True]
    assert len({r.job.id for r in results}) == 1


@pytest.mark.parametrize("kind", ["provision", "deprovision"])
def test_a_second_job_of_a_kind_is_impossible_whoever_inserts_it(db: Connection, kind: str) -> None:
    id = a_job(db, kind=kind)
    with pytest.raises(sa.exc.IntegrityError, match=f"outbox_one_{kind}"):
        db.execute(
            text("""INSERT INTO outbox (kind, resource_id, backend, max_attempts, request_id)
                    SELECT kind, resource_id, 'pg-main', 1, gen_random_uuid() FROM outbox WHERE id = :id"""),
            {"id": id},
        )


def test_deletes_in_one_batch_are_each_decided_alone(db: Connection) -> None:
    mine, theirs, shielded = a_resource(db), a_resource(db), a_resource(db)
    db.execute(text("UPDATE resources SET protected = true WHERE id = :id"), {"id": shielded})
    twice = [jobs.Delete(mine, f"caller-{n}", "acme", f"reason {n}", {"n": n}) for n in range(2)]
    others = [jobs.Delete(theirs, "stranger", "globex"), jobs.Delete(shielded, "me"), jobs.Delete(uuid.uuid4(), "me")]
    last = jobs.Delete(theirs, "operator")
    done = jobs.enqueue_all(db, [*twice, *others, last])
    (winner,) = [asked for asked in twice if asked.request_id in done]
    assert set(done) == {winner.request_id, last.request_id}
    told = done[winner.request_id]
    assert (told.resource.id, told.resource.status, told.won) == (mine, "deleting", True)
    event = last_event(db, told.job.id)
    assert (event.event, event.actor, event.reason) == ("enqueued", winner.actor, winner.reason)
    assert event.detail == winner.detail | {"request_id": str(winner.request_id)}
    loser = jobs.enqueued_before(db, next(asked for asked in twice if asked is not winner))
    assert (loser.job.id, loser.won) == (told.job.id, False)
    assert jobs.enqueued_before(db, winner).won, "whose answer was lost learns that it won"


def test_a_locked_resource_does_not_delay_other_deletes(db: Connection, connect: Any) -> None:
    held, free = a_resource(db), a_resource(db)
    connect().cursor().execute("SELECT FROM resources WHERE id = %s FOR UPDATE", (str(held),))
    db.execute(text("SET lock_timeout = '1s'"))
    asked = [jobs.Delete(resource, "me") for resource in (held, free)]
    assert [done.resource.id for done in jobs.enqueue_all(db, asked, waits=False).values()] == [free]
    with pytest.raises(sa.exc.OperationalError, match="lock timeout"):
        jobs.enqueue_all(db, asked)


def test_a_winning_delete_is_one_round_trip(db: Connection, servers: Servers) -> None:
    resource = a_resource(db)
    name = db.execute(text("SELECT current_database()")).scalar_one()
    db.execute(text(f"ALTER DATABASE {name} SET log_statement = 'all'"))
    database.engine().dispose()
    with database.statement() as session:  # the connection's own greetings, and what it prepares
        jobs.enqueue(session, a_resource(db), actor="me")
    before = len(servers.control.log.read_bytes())
    with database.statement() as session:
        assert jobs.enqueue(session, resource, actor="me").won
    said = [line for line in servers.control.log.read_bytes()[before:].decode().splitlines() if f"@{name} LOG:" in line]
    assert len([line for line in said if "statement:" in line]) == 1, said
