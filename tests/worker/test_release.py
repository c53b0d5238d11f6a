"""Out of management: the mark is taken off, and the object stays as it is. One of a release and a DELETE wins."""

import threading
import uuid
from typing import Any

import pytest
from sqlalchemy import Connection, text

from outbox import actions, holds, jobs, resources
from outbox import db as database
from outbox.errors import (
    ClaimLost,
    DeletionProtected,
    DeprovisionerError,
    Forbidden,
    NotActive,
    OutOfManagement,
    Refused,
    Unavailable,
)
from outbox.rows import Claim
from outbox.states import HoldScope
from tests.support import accounts
from tests.support.api import until
from tests.support.factories import a_job, a_resource, claims, events_of, job, last_event, status_of, unguarded
from tests.support.processes import System, client
from tests.support.servers import Servers
from tests.support.shelf import Shelf
from worker.backends import Absent, Different, Same
from worker.backends.postgres import Postgres
from worker.run import Run


class Marked(Shelf):
    """A shelf that takes marks off."""

    def __init__(self, *, fails: Exception | None = None, **words: Any) -> None:
        super().__init__(**words)
        self.fails, self.unmarked = fails, 0

    def unmark(self, manifest: Any) -> Any:
        self.unmarked += 1
        if self.fails is not None:
            raise self.fails
        return {"unmarked": ["it"]}


def a_release(db: Connection, **words: Any) -> Claim:
    jobs.release(db, a_resource(db, **words), actor="op", reason="sold")
    return claims(db)[0]


def test_a_released_resource_keeps_its_evidence_and_nothing_else(db: Connection) -> None:
    claim = a_release(db)
    unguarded(db, "UPDATE resources SET credentials = 'x'")
    backend = Marked()
    Run(claim, backend, worker="w")()
    assert (status_of(db, claim.resource_id), job(db, claim.id).state) == ("released", "succeeded")
    assert (backend.unmarked, backend.torn) == (1, [])
    assert events_of(db, claim.id) == ["enqueued", "claimed", "started", "released"]
    assert last_event(db, claim.id).detail == {"seen": {"unmarked": ["it"]}}
    assert db.execute(text("SELECT credentials FROM resources")).scalar_one() is None
    with pytest.raises(Exception, match="a released resource is final"):
        db.execute(text("UPDATE resources SET status = 'active'"))


def test_who_asks_again_gets_the_same_job(db: Connection) -> None:
    resource, request = a_resource(db), uuid.uuid4()
    first = jobs.release(db, resource, actor="op", reason="sold", request_id=request)
    again = jobs.release(db, resource, actor="op", reason="sold", request_id=request)
    other = jobs.release(db, resource, actor="op", reason="another")
    assert (first.won, again.won, other.won) == (True, True, False)
    assert first.job.id == again.job.id == other.job.id
    with pytest.raises(DeprovisionerError, match="came before with other parameters"):
        jobs.release(db, resource, actor="op", reason="another", request_id=request)


def test_only_what_is_active_and_not_protected_is_released(db: Connection) -> None:
    with pytest.raises(DeletionProtected):
        jobs.release(db, a_resource(db, protected=True), actor="op", reason="r")
    for status in ("provisioning", "deleting", "deleted", "restoring"):
        with pytest.raises(NotActive, match=status):
            jobs.release(db, a_resource(db, status=status), actor="op", reason="r")
    with pytest.raises(Forbidden):
        actions.operator(actions.Caller("me", "acme"))


def test_nothing_else_happens_to_what_is_being_released(db: Connection) -> None:
    claim = a_release(db)
    for _ in range(2):
        with pytest.raises(OutOfManagement, match="out of management"):
            jobs.enqueue(db, claim.resource_id, actor="me")
        with pytest.raises(OutOfManagement), database.transaction() as session:
            jobs.restore(session, claim.resource_id, actor="me", reason="r")
        with pytest.raises(NotActive):
            resources.change(db, claim.resource_id, changes={"protected": True}, actor="me")
        Run(claim, Marked(), worker="w")()


def test_of_a_release_and_deletes_at_once_one_wins(db: Connection) -> None:
    for _ in range(8):
        resource, barrier, won = a_resource(db), threading.Barrier(6), []

        def ask(release: bool, resource: uuid.UUID = resource, barrier: Any = barrier, won: list[str] = won) -> None:
            barrier.wait()
            try:
                with database.statement() as session:
                    if release:
                        if jobs.release(session, resource, actor="op", reason="r").won:
                            won.append("release")
                    elif jobs.enqueue(session, resource, actor="me").won:
                        won.append("delete")
            except (OutOfManagement, NotActive):
                pass

        threads = [threading.Thread(target=ask, args=(n % 2 == 0,)) for n in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        assert status_of(db, resource) == {"release": "releasing", "delete": "deleting"}[won[0]]
        made = db.execute(text("SELECT kind FROM outbox WHERE resource_id = :id"), {"id": resource}).scalars().all()
        assert made == [{"release": "release", "delete": "deprovision"}[won[0]]]


def test_a_hold_stops_it_before_it_touches_the_object(db: Connection) -> None:
    claim = a_release(db)
    holds.engage(db, HoldScope.BACKEND, "pg-main", actor="op", reason="stop")
    backend = Marked()
    Run(claim, backend, worker="w")()
    assert (backend.unmarked, job(db, claim.id).state, status_of(db, claim.resource_id)) == (0, "pending", "releasing")


def test_a_stranger_s_object_is_not_touched(db: Connection) -> None:
    claim = a_release(db)
    backend = Marked(sees=[Different({}, "another's")])
    Run(claim, backend, worker="w")()
    assert (backend.unmarked, job(db, claim.id).state, job(db, claim.id).stuck_reason) == (0, "stuck", "refused")
    ended = jobs.resolve(db, claim.id, fence=claim.fence, actor="op", reason="the mark is off")
    assert (ended.state, status_of(db, claim.resource_id)) == ("succeeded", "released")
    assert events_of(db, claim.id)[-1] == "resolved"


def test_an_attempt_that_died_after_the_mark_was_off_is_ended_by_the_next(db: Connection) -> None:
    claim = a_release(db)
    jobs.start(db, claim, worker="w")
    db.execute(text("UPDATE outbox SET lease_expires_at = now() - interval '1 s'"))
    jobs.sweep(db, actor="w")
    backend = Marked(sees=[Different({}, "it bears no mark")])
    Run(claims(db)[0], backend, worker="w")()
    assert (backend.unmarked, status_of(db, claim.resource_id)) == (1, "released")


def test_what_is_gone_is_released_without_a_word_to_the_server(db: Connection) -> None:
    claim = a_release(db)
    backend = Marked(sees=[Absent({"databases": []})])
    Run(claim, backend, worker="w")()
    assert (backend.unmarked, status_of(db, claim.resource_id)) == (0, "released")
    assert last_event(db, claim.id).detail == {"seen": {"absent": {"databases": []}}}


@pytest.mark.parametrize(
    ("fails", "state"), [(Refused("in quarantine"), "stuck"), (Unavailable("no route"), "pending")]
)
def test_a_release_that_fails_stays_a_release(db: Connection, fails: Exception, state: str) -> None:
    claim = a_release(db)
    Run(claim, Marked(fails=fails), worker="w")()
    assert (job(db, claim.id).state, status_of(db, claim.resource_id)) == (state, "releasing")


def test_a_kind_that_takes_no_mark_off_says_so(db: Connection) -> None:
    claim = a_release(db)
    Run(claim, Shelf(), worker="w")()
    assert "cannot take its mark off" in job(db, claim.id).last_error
    assert job(db, claim.id).state == "stuck"


def test_a_worker_that_lost_its_claim_ends_no_release(db: Connection) -> None:
    claim = a_release(db)
    db.execute(text("UPDATE outbox SET fence = fence + 1"))
    Run(claim, Marked(), worker="w")()
    with pytest.raises(ClaimLost):
        jobs.let_go(db, claim, worker="w", seen={})
    assert status_of(db, claim.resource_id) == "releasing"


def test_over_http_a_release_leaves_a_real_database_as_it_was(
    system: System, db: Connection, servers: Servers, operator: str, tenant: str
) -> None:
    name = f"kept_{uuid.uuid4().hex}"
    servers.pg.query(f"CREATE ROLE {name} LOGIN PASSWORD 'p'")
    accounts.adoptable(servers.pg, name, name)
    url = system.api()
    system.worker()
    with client(url, operator) as api, client(url, tenant) as theirs:
        body = {"kind": "postgres", "backend": "pg-main", "name": "n", "tenant": "acme"}
        made = api.post("/v1/resources", json=body | {"manifest": {"database": name, "role": name}}).json()["resource"]
        until(api, made, "active")
        path = f"/v1/resources/{made['id']}/release"
        assert theirs.post(path, json={"reason": "r"}).status_code == 403
        assert api.post(path, json={}).status_code == 422
        answer = api.post(path, json={"reason": "sold"})
        assert (answer.status_code, answer.json()["job"]["kind"]) == (202, "release")
        assert api.post(path, json={"reason": "sold"}).status_code == 200
        until(api, made, "released")
        refused = api.delete(f"/v1/resources/{made['id']}")
        assert (refused.status_code, refused.json()["code"]) == (409, "out_of_management")
        assert api.get("/v1/resources", params={"status": "released"}).json()["items"][0]["id"] == made["id"]
    assert name in servers.pg.databases()
    marks = servers.pg.query(
        "SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = %s", name
    ) + servers.pg.query("SELECT shobj_description(oid, 'pg_authid') FROM pg_roles WHERE rolname = %s", name)
    assert marks == [(None,), (None,)]
    backend = Postgres(servers.pg.service_dsn)
    assert isinstance(backend.inspect(backend.adopt({"database": name, "role": name}, uuid.uuid4())), Same)


def test_a_second_release_of_one_resource_is_impossible(db: Connection) -> None:
    claim = a_release(db)
    with pytest.raises(Exception, match="outbox_one_release"):
        db.execute(
            text(
                """INSERT INTO outbox (kind, resource_id, backend, max_attempts, request_id)
                   VALUES ('release', :id, 'pg-main', 1, gen_random_uuid())"""
            ),
            {"id": claim.resource_id},
        )
    assert a_job(db, kind="release", state="stuck")
