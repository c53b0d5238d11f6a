"""Taking a teardown back: which one can be, and what is written."""

import uuid

import pytest
from sqlalchemy import Connection

from outbox import jobs
from outbox.errors import TeardownStarted
from tests.support.factories import a_claim, a_job, events_of, job, status_of


def test_a_restore_cancels_the_teardown_and_enqueues_what_gives_it_back(db: Connection) -> None:
    id = a_job(db, step="wait")
    resource = job(db, id).resource_id
    done = jobs.restore(db, resource, actor="op", reason="a mistake")
    assert done.won
    assert (status_of(db, resource), job(db, id).state) == ("restoring", "cancelled")
    assert events_of(db, id) == ["cancelled"]
    assert events_of(db, done.job.id) == ["enqueued"]
    again = jobs.restore(db, resource, actor="op", reason="a mistake")
    assert (again.won, again.job) == (False, done.job)


def test_what_has_started_to_destroy_is_not_restored(db: Connection) -> None:
    claim = a_claim(db)
    jobs.start(db, claim, worker="w")
    with pytest.raises(TeardownStarted):
        jobs.restore(db, claim.resource_id, actor="op", reason="a mistake")
    assert not jobs.restore_all(db, [(claim.resource_id, uuid.uuid4())], actor="op", reason="r")
    assert status_of(db, claim.resource_id) == "deleting"
