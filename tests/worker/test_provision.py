"""Provisions and adoptions: how they end, and what a late one undoes."""

import uuid
from collections.abc import Callable

import pytest
from sqlalchemy import Connection, text

from outbox import credentials, jobs, kinds, resources
from outbox.errors import Refused, Transient, Unavailable
from outbox.resources import NewResource
from outbox.rows import Claim, Json
from outbox.states import StuckReason
from tests.support import accounts
from tests.support.factories import claims, events_of, job, status_of
from tests.support.servers import Servers
from tests.support.shelf import Shelf, fail
from tests.support.witness import an_acl_user
from worker.backends import Absent, Backend, Different
from worker.backends.postgres import Postgres
from worker.backends.redis import Redis
from worker.intake import Intake
from worker.run import Run

# What a database does not have that was restored from a dump of before.
_LOST = "SET session_replication_role = replica; DELETE FROM events; DELETE FROM outbox; DELETE FROM resources; "
_LOST += "SET session_replication_role = origin"


def a_provision(
    db: Connection, *, adopt: Json | None = None, kind: str = "postgres", backend: str = "pg-main"
) -> Claim:
    new = NewResource(tenant="acme", kind=kind, backend=backend, name="orders", manifest=adopt)
    resources.register(db, new, actor="me")
    return claims(db, backend=backend)[0]


def test_a_teardown_does_not_inspect_while_the_provision_runs(db: Connection) -> None:
    """An object that is absent now may be there when the provision has ended."""
    provision = a_provision(db)
    jobs.start_provision(db, provision, worker="w1", manifest={"name": "x"}, credentials=b"x")
    jobs.enqueue(db, provision.resource_id, actor="me")
    teardown = claims(db)[0]
    Run(teardown, Shelf(sees=[]), worker="w2")()
    assert (job(db, teardown.id).state, job(db, teardown.id).attempts) == ("pending", 0)
    assert status_of(db, provision.resource_id) == "deleting"


def test_a_late_provision_of_a_resource_being_deleted_undoes_itself(db: Connection) -> None:
    claim = a_provision(db)

    def meanwhile() -> None:
        backend.does = lambda: None
        db.execute(text("UPDATE outbox SET lease_expires_at = now() - interval '1 s'"))
        jobs.sweep(db, actor="w2")
        jobs.enqueue(db, claim.resource_id, actor="me")

    backend = Shelf(does=meanwhile)
    Run(claim, backend, worker="w1")()
    assert backend.torn == [claim.fence]


def test_a_provision_activates_the_resource_and_seals_its_credentials(db: Connection) -> None:
    claim = a_provision(db)
    Run(claim, Shelf(), worker="w")()
    resource, sealed = resources.find(db, claim.resource_id)
    assert resource.status == "active"
    assert sealed is not None
    assert credentials.unseal(sealed) == {"password": "p"}


@pytest.mark.parametrize("error", [Refused("no such right")])
def test_a_refused_provision_is_rolled_back_at_once(db: Connection, error: Exception) -> None:
    claim = a_provision(db)
    Run(claim, Shelf(does=fail(error)), worker="w")()
    assert job(db, claim.id).state == "cancelled"
    assert status_of(db, claim.resource_id) == "deleting"
    undo = claims(db)[0]
    Run(undo, Shelf(), worker="w")()
    assert status_of(db, claim.resource_id) == "deleted"


def test_a_provision_whose_worker_dies_in_every_attempt_is_rolled_back(db: Connection) -> None:
    claim = a_provision(db)
    db.execute(text("UPDATE outbox SET max_attempts = 1, lease_expires_at = now() - interval '1 s'"))
    jobs.sweep(db, actor="w2")
    Run(claims(db)[0], Shelf(does=fail(AssertionError("must not be reached"))), worker="w")()
    assert job(db, claim.id).state == "cancelled"
    assert events_of(db, claim.id)[-2:] == ["claimed", "rolled_back"], "it was not started again"


def test_a_provision_of_a_deleted_resource_ends_before_it_acts(db: Connection) -> None:
    claim = a_provision(db)
    jobs.enqueue(db, claim.resource_id, actor="me")
    Run(claim, Shelf(does=fail(AssertionError("must not be reached"))), worker="w")()
    assert job(db, claim.id).state == "cancelled"
    never_made = claims(db)[0]
    Run(never_made, Shelf(does=fail(AssertionError("must not be reached"))), worker="w")()
    assert status_of(db, claim.resource_id) == "deleted"


@pytest.mark.parametrize("answer", [lambda: None, fail(Transient("lost")), fail(Unavailable("lost"))])
def test_a_late_provision_of_a_deleted_resource_undoes_itself(db: Connection, answer: Callable[[], None]) -> None:
    """Its worker stood still; meanwhile the resource was deleted, and seen to be absent. The answer may be lost too."""
    claim = a_provision(db)

    def meanwhile() -> None:
        backend.does = lambda: None
        db.execute(text("UPDATE outbox SET lease_expires_at = now() - interval '1 s'"))
        jobs.sweep(db, actor="w2")
        jobs.enqueue(db, claim.resource_id, actor="me")
        provision, teardown = claims(db, 2, worker="w2")
        Run(provision, Shelf(), worker="w2")()
        Run(teardown, Shelf(sees=[Absent({})]), worker="w2")()
        assert status_of(db, claim.resource_id) == "deleted"
        answer()

    backend = Shelf(does=meanwhile)
    Run(claim, backend, worker="w1")()
    assert backend.torn == [claim.fence]
    assert events_of(db, claim.id)[-2:] == ["late", "late"]


def test_a_late_provision_leaves_the_object_of_an_attempt_that_activated(db: Connection) -> None:
    claim = a_provision(db)

    def meanwhile() -> None:
        backend.does = lambda: None
        db.execute(text("UPDATE outbox SET lease_expires_at = now() - interval '1 s'"))
        jobs.sweep(db, actor="w2")
        Run(claims(db, worker="w2")[0], Shelf(), worker="w2")()

    backend = Shelf(does=meanwhile)
    Run(claim, backend, worker="w1")()
    assert backend.torn == []
    assert status_of(db, claim.resource_id) == "active"


def test_a_late_adoption_destroys_nothing(db: Connection) -> None:
    claim = a_provision(db, adopt={"database": "theirs"})

    def meanwhile() -> None:
        backend.does = lambda: None
        db.execute(text("UPDATE outbox SET lease_expires_at = now() - interval '1 s'"))
        jobs.sweep(db, actor="w2")
        jobs.enqueue(db, claim.resource_id, actor="me")

    backend = Shelf(does=meanwhile)
    Run(claim, backend, worker="w1")()
    assert backend.torn == []
    assert events_of(db, claim.id)[-1] == "late"


def test_a_failed_adoption_makes_the_job_stuck_and_destroys_nothing(db: Connection) -> None:
    claim = a_provision(db, adopt={"database": "theirs"})
    Run(claim, Shelf(does=fail(Refused("not there"))), worker="w")()
    assert (job(db, claim.id).state, job(db, claim.id).stuck_reason) == ("stuck", "refused")
    assert status_of(db, claim.resource_id) == "provisioning"
    jobs.enqueue(db, claim.resource_id, actor="me")
    backend = Shelf(sees=[Different({}, "no mark of ours")])
    Run(claims(db)[0], backend, worker="w")()
    assert status_of(db, claim.resource_id) == "deleted"
    assert backend.torn == []


def _killed_and_deleted(db: Connection, backend: Backend, claim: Claim) -> Claim:
    """The adoption's worker dies after the marks; a DELETE comes. The claim of the teardown."""
    assert claim.manifest is not None
    jobs.start_provision(db, claim, worker="dead", manifest=claim.manifest, credentials=None)
    backend.adopt(claim.manifest, claim.generation)
    db.execute(text("UPDATE outbox SET lease_expires_at = now() - interval '1 s'"))
    jobs.sweep(db, actor="w2")
    jobs.enqueue(db, claim.resource_id, actor="me")
    return claims(db, backend=claim.backend)[0]


def test_a_mark_of_an_adoption_that_was_killed_is_not_left_in_silence_on_postgres(
    db: Connection, servers: Servers
) -> None:
    pg = servers.pg
    name, backend = f"old_{uuid.uuid4().hex}", Intake(Postgres(pg.service_dsn))
    pg.query(f"CREATE ROLE {name} LOGIN")
    accounts.adoptable(pg, name, name)
    claim = a_provision(db, adopt={"database": name, "role": name})
    teardown = _killed_and_deleted(db, backend, claim)
    pg.query(f"ALTER DATABASE {name} RENAME TO {name}_kept")
    Run(teardown, backend, worker="w")()
    stuck = job(db, teardown.id)
    assert (stuck.state, stuck.stuck_reason) == ("stuck", "refused")
    assert "left its mark there" in stuck.last_error
    pg.query(f"COMMENT ON DATABASE {name}_kept IS NULL; COMMENT ON ROLE {name} IS NULL")
    jobs.redrive(db, stuck.id, fence=stuck.fence, actor="op", reason="marks taken back")
    Run(claims(db)[0], backend, worker="w")()
    assert status_of(db, claim.resource_id) == "deleted"
    assert f"{name}_kept" in pg.databases()
    assert name in pg.roles()


def test_a_mark_of_an_adoption_that_was_killed_is_not_left_in_silence_on_redis(
    db: Connection, servers: Servers
) -> None:
    server = servers.redis
    backend, user, prefix = Intake(Redis(server.service_dsn)), an_acl_user(server), f"{uuid.uuid4().hex}:"
    claim = a_provision(db, adopt={"user": user, "prefix": prefix}, kind="redis", backend="redis-main")
    teardown = _killed_and_deleted(db, backend, claim)
    server.client.acl_setuser(user, reset_channels=True)  # as if it had died before it marked the user, too
    Run(teardown, backend, worker="w")()
    stuck = job(db, teardown.id)
    assert (stuck.state, stuck.stuck_reason) == ("stuck", "refused")
    assert "left its mark there" in stuck.last_error
    assert server.client.delete(f"deprovisioner:gen:{prefix}") == 1
    jobs.redrive(db, stuck.id, fence=stuck.fence, actor="op", reason="mark taken back")
    Run(claims(db, backend="redis-main")[0], backend, worker="w")()
    assert status_of(db, claim.resource_id) == "deleted"
    assert user in server.client.acl_users()


@pytest.mark.parametrize("kind", ["postgres", "redis"])
def test_an_object_whose_row_is_lost_is_adopted_again_by_its_mark_and_torn_down(
    db: Connection, servers: Servers, kind: str
) -> None:
    server = servers.pg if kind == "postgres" else servers.redis
    name = "pg-main" if kind == "postgres" else "redis-main"
    backend = Intake(Postgres(server.service_dsn) if kind == "postgres" else Redis(server.service_dsn))
    lost = a_provision(db, kind=kind, backend=name)
    Run(lost, backend, worker="w")()
    manifest = resources.find(db, lost.resource_id)[0].manifest
    assert manifest is not None
    db.execute(text(_LOST))
    (one,) = [one for one in backend.objects() if one.generation == str(lost.generation)]
    assert (one.names, one.resource_id, one.why) == (manifest, lost.resource_id, "")
    again = a_provision(db, adopt=kinds.check(kind, one.names), kind=kind, backend=name)
    Run(again, backend, worker="w")()
    resource, _ = resources.find(db, again.resource_id)
    assert (resource.status, resource.manifest) == ("active", manifest)
    jobs.enqueue(db, again.resource_id, actor="me")
    Run(claims(db, backend=name)[0], backend, worker="w")()
    assert status_of(db, again.resource_id) == "deleted"
    assert not server.bears(manifest)


def test_a_different_object_of_an_activated_adoption_makes_the_job_stuck(db: Connection) -> None:
    claim = a_provision(db, adopt={"database": "theirs"})
    Run(claim, Shelf(), worker="w")()
    jobs.enqueue(db, claim.resource_id, actor="me")
    teardown = claims(db)[0]
    Run(teardown, Shelf(sees=[Different({}, "another's now")]), worker="w")()
    assert job(db, teardown.id).stuck_reason == StuckReason.REFUSED
