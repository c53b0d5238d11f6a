"""A database with correct history, and one way to break it for each check of the doctor."""

import datetime as dt
import json
import uuid
from collections.abc import Callable

from sqlalchemy import Connection, text

import migrations
from outbox import audit, breakers, holds, jobs, observations, reconcile, resources, rewinds, settings, tokens
from outbox import db as database
from outbox.doctor import Finding, examine
from outbox.events import Event
from outbox.findings import record as record_findings
from outbox.resources import NewResource
from outbox.rows import Claim
from outbox.states import Found, HoldCause, HoldScope, StuckReason
from tests.support.factories import a_resource, unguarded


class World:
    """A database with correct history and a job in each state; and ways to write to it past the product."""

    def __init__(self, db: Connection) -> None:
        self.db = db
        self.active = self.born()
        self.act()
        self.deleted = self.torn_down()
        self.rolled_back = self.failed_birth()
        self.cured = self.redriven()
        self.resolved = self.seen_gone()
        self.forced = self.forced_by_two()
        self.swept = self.lost()
        self.running = self.claimed(self.enqueue(self.born()))
        jobs.start(db, self.running, worker="w1", seen={"completes": {"role_oid": 9}})
        self.deferred = self.enqueue(self.born())
        jobs.defer(db, self.claimed(self.deferred), worker="w1", error="out of reach", delay=3600)
        self.waiting = self.waits(self.born())
        self.purged = self.destroyed_sooner()
        self.restoring = self.given_back(self.waits(self.born()))
        jobs.defer(db, self.claimed(self.restoring), worker="w1", error="out of reach", delay=3600)
        self.restored = self.given_back(self.waits(self.born()))
        again = self.claimed(self.restored)
        jobs.start(db, again, worker="w1")
        jobs.give_back(db, again, worker="w1", seen={"login": True})
        self.pending = self.enqueue(self.born())

    def act(self) -> None:
        """What people do beside jobs."""
        night = holds.engage(self.db, HoldScope.GLOBAL, None, actor="op", reason="night")
        holds.release(self.db, night.id, actor="op", reason="day")
        token, _ = tokens.create(self.db, actor="op", role="operator", tenant=None, name="ann")
        tokens.revoke(self.db, token.id, actor="op")
        for grace in (60, None):
            resources.change(self.db, self.active, changes={"grace_seconds": grace}, actor="op")

    def set_for_new_sessions(self, setting: str, value: str) -> None:
        """ALTER DATABASE ... SET, past what the product pins."""
        name = self.db.execute(text("SELECT current_database()")).scalar_one()
        self.db.execute(text(f"ALTER DATABASE {name} SET {setting} = '{value}'"))
        database.engine().dispose()

    def register(self) -> int:
        new = NewResource(tenant="acme", kind="postgres", backend="pg-main", name="orders")
        return resources.register(self.db, new, actor="me")[1].id

    def enqueue(self, resource: uuid.UUID) -> int:
        return jobs.enqueue(self.db, resource, actor="me").job.id

    def claimed(self, job: int) -> Claim:
        self.db.execute(text("UPDATE outbox SET available_at = now() WHERE id = :id"), {"id": job})
        (claim,) = jobs.claim(self.db, {"pg-main": 9}, slots=9, worker="w1")
        assert claim.id == job
        return claim

    def started_birth(self) -> Claim:
        claim = self.claimed(self.register())
        plan = {"database": "d", "generation": str(claim.generation)}
        jobs.start_provision(self.db, claim, worker="w1", manifest=plan, credentials=b"sealed")
        return claim

    def born(self) -> uuid.UUID:
        claim = self.started_birth()
        jobs.activate(
            self.db, claim, worker="w1", manifest={"database": "d", "oid": 7, "generation": str(claim.generation)}
        )
        return claim.resource_id

    def torn_down(self) -> Claim:
        job = self.enqueue(self.born())
        first = self.claimed(job)
        jobs.start(self.db, first, worker="w1")
        jobs.retry(self.db, first, worker="w1", error="still there")
        second = self.claimed(job)
        jobs.start(self.db, second, worker="w1")
        jobs.complete(self.db, second, worker="w1", seen={"database": None})
        return second

    def failed_birth(self) -> Claim:
        birth = self.started_birth()
        jobs.rollback(self.db, birth, worker="w1", error="no space")
        (undo,) = jobs.claim(self.db, {"pg-main": 9}, slots=9, worker="w1")
        jobs.complete(self.db, undo, worker="w1", seen={"never_made": True})
        return birth

    def stuck(self) -> Claim:
        claim = self.claimed(self.enqueue(self.born()))
        jobs.stick(self.db, claim, worker="w1", why=StuckReason.REFUSED, error="another's")
        return claim

    def redriven(self) -> Claim:
        first = self.stuck()
        jobs.redrive(self.db, first.id, fence=first.fence, actor="op", reason="looked")
        second = self.claimed(first.id)
        jobs.complete(self.db, second, worker="w1", seen={"database": None})
        return second

    def seen_gone(self) -> Claim:
        claim = self.stuck()
        observations.ask(self.db, claim.id, actor="op")
        (look,) = observations.take(self.db, {"pg-main": 1}, slots=1)
        assert observations.record(self.db, look, worker="w1", found=Found.ABSENT, seen={"database": None})
        jobs.resolve(self.db, claim.id, fence=claim.fence, actor="op", reason="dropped by hand")
        return claim

    def forced_by_two(self) -> Claim:
        claim = self.stuck()
        for who in ("token:1:a", "token:2:b"):
            jobs.resolve_forced(self.db, claim.id, fence=claim.fence, actor=who, reason="the server is scrap")
        return claim

    def waits(self, resource: uuid.UUID) -> int:
        """The job of a DELETE with a grace, after its quarantine."""
        asked = jobs.Delete(resource, "me", grace=3600, may_purge=True)
        job = jobs.enqueue_all(self.db, [asked])[asked.request_id].job.id
        claim = self.claimed(job)
        jobs.start(self.db, claim, worker="w1")
        jobs.advance(self.db, claim, worker="w1", event=Event.QUARANTINED, seen={"database": "d"})
        return job

    def destroyed_sooner(self) -> int:
        job = self.waits(self.born())
        with database.transaction() as session:
            jobs.purge(session, self.resource_of(job), actor="op", reason="now")
        claim = self.claimed(job)
        jobs.start(self.db, claim, worker="w1")
        jobs.complete(self.db, claim, worker="w1", seen={"database": None})
        return job

    def given_back(self, job: int) -> int:
        """The job that gives back what another would destroy."""
        with database.transaction() as session:
            done = jobs.restore(session, self.resource_of(job), actor="op", reason="a mistake")
        assert done.job
        return done.job.id

    def lost(self) -> Claim:
        first = self.claimed(self.enqueue(self.born()))
        self.db.execute(text("UPDATE outbox SET lease_expires_at = now() - interval '1 s' WHERE id = :id"), vars(first))
        assert jobs.sweep(self.db, actor="w2") == 1
        second = self.claimed(first.id)
        jobs.complete(self.db, second, worker="w2", seen={"database": None})
        return second

    def write(self, sql: str, **words: object) -> int:
        """A write that no trigger sees; how many rows it touched."""
        return unguarded(self.db, sql, **words)

    def forget(self, job: int, event: str, fence: int) -> None:
        gone = "DELETE FROM events WHERE job_id = :job AND event = :event AND fence = :fence"
        assert self.write(gone, job=job, event=event, fence=fence) == 1

    def tell(self, job: int, resource: uuid.UUID, event: str, fence: int, at: str = "0", **detail: object) -> None:
        told = {"job": job, "resource": resource, "event": event, "fence": fence, "detail": json.dumps(detail)}
        self.db.execute(
            text(f"""
            INSERT INTO events (job_id, resource_id, fence, event, actor, detail, at)
            VALUES (:job, :resource, :fence, :event, 'w1', CAST(:detail AS jsonb), now() - interval '{at}')"""),
            told,
        )

    def checkpoint(self) -> audit.Checkpoint | None:
        with database.transaction() as session:
            return audit.checkpoint(session, actor="me", every=dt.timedelta(0))

    def resource_of(self, job: int) -> uuid.UUID:
        return self.db.execute(text("SELECT resource_id FROM outbox WHERE id = :id"), {"id": job}).scalar_one()


def findings() -> dict[str, Finding]:
    """What the doctor finds now, by code."""
    with database.snapshot() as session:
        return {finding.check.code: finding for finding in examine(session, head=migrations.head())}


# -- one break for each check: it returns the id that must be named, and which other checks see it too ----------------

Broken = tuple[object, set[str]]
BREAKS: dict[str, Callable[[World], Broken]] = {}


def breaks(code: str) -> Callable[[Callable[[World], Broken]], Callable[[World], Broken]]:
    def keep(act: Callable[[World], Broken]) -> Callable[[World], Broken]:
        BREAKS[code] = act
        return act

    return keep


@breaks("setting_wrong")
def _(w: World) -> Broken:
    w.set_for_new_sessions("session_replication_role", "replica")
    return "session_replication_role", set()


@breaks("server_unsafe")
def _(w: World) -> Broken:
    w.set_for_new_sessions("deprovisioner.throwaway", "off")
    return "fsync", set()


@breaks("schema_not_at_head")
def _(w: World) -> Broken:
    w.write("UPDATE alembic_version SET version_num = '0000'")
    return "0000", set()


@breaks("guard_missing")
def _(w: World) -> Broken:
    w.write("ALTER TABLE outbox DISABLE TRIGGER outbox_fence_never_falls")
    return "outbox_fence_never_falls", set()


@breaks("index_missing")
def _(w: World) -> Broken:
    w.write("DROP INDEX outbox_lanes")
    return "outbox_lanes", set()


@breaks("deleting_without_job")
def _(w: World) -> Broken:
    resource = w.resource_of(w.pending)
    w.write("DELETE FROM outbox WHERE id = :id", id=w.pending)
    return resource, set()


@breaks("restoring_without_job")
def _(w: World) -> Broken:
    resource = w.resource_of(w.restoring)
    w.write("DELETE FROM outbox WHERE id = :id", id=w.restoring)
    return resource, set()


@breaks("releasing_without_job")
def _(w: World) -> Broken:
    w.write("UPDATE resources SET status = 'releasing' WHERE id = :id", id=w.active)
    return w.active, set()


@breaks("active_in_quarantine")
def _(w: World) -> Broken:
    resource = w.resource_of(w.restored)
    w.write("DELETE FROM outbox WHERE id = :id", id=w.restored)
    return resource, set()


@breaks("deleting_without_time")
def _(w: World) -> Broken:
    resource = w.resource_of(w.waiting)
    w.write("UPDATE resources SET purge_at = NULL WHERE id = :id", id=resource)
    return resource, set()


@breaks("destroyed_early")
def _(w: World) -> Broken:
    w.write("UPDATE outbox SET needs_snapshot = true WHERE id = :id", id=w.running.id)
    assert findings()["destroyed_early"].sample[0].id == str(w.running.resource_id)
    w.write("UPDATE outbox SET needs_snapshot = false WHERE id = :id", id=w.running.id)
    resource = w.resource_of(w.purged)
    w.write("UPDATE resources SET purge_at = now() + interval '1 h' WHERE id = :id", id=resource)
    return resource, set()


@breaks("provisioning_without_job")
def _(w: World) -> Broken:
    return a_resource(w.db, status="provisioning"), set()


@breaks("active_without_identity")
def _(w: World) -> Broken:
    w.write("UPDATE resources SET manifest = manifest - 'generation' WHERE id = :id", id=w.active)
    return w.active, {"manifest_altered"}


@breaks("manifest_altered")
def _(w: World) -> Broken:
    w.write("UPDATE outbox SET backend = 'pg-copy' WHERE id = :id", id=w.deferred)
    found = findings()
    assert [found[code].sample[0].id for code in found] == [str(w.resource_of(w.deferred))]
    w.write("UPDATE outbox SET backend = 'pg-main' WHERE id = :id", id=w.deferred)
    w.write("""UPDATE resources SET manifest = manifest || '{"oid": 8}' WHERE id = :id""", id=w.active)
    return w.active, set()


@breaks("manifest_unvouched")
def _(w: World) -> Broken:
    """As an older worker starts a provision."""
    w.write("UPDATE outbox SET available_at = now() + interval '1 h' WHERE id = :id", id=w.pending)
    claim = w.claimed(w.register())
    w.write("UPDATE outbox SET started_fence = fence WHERE id = :id", id=claim.id)
    w.write("""UPDATE resources SET manifest = '{"database": "d"}' WHERE id = :id""", id=claim.resource_id)
    w.tell(claim.id, claim.resource_id, "started", claim.fence)
    return claim.resource_id, set()


@breaks("deleted_without_evidence")
def _(w: World) -> Broken:
    w.write("UPDATE events SET detail = NULL WHERE job_id = :id AND event = 'completed'", id=w.deleted.id)
    return w.deleted.resource_id, {"chain_broken"}


@breaks("deprovision_of_undeleted")
def _(w: World) -> Broken:
    id = w.deleted.resource_id
    undone = "status = 'active', deleted_at = NULL, purged_at = NULL, purge_at = NULL"
    w.write(f"UPDATE resources SET {undone} WHERE id = :id", id=id)
    return id, set()


@breaks("restore_of_unrestored")
def _(w: World) -> Broken:
    resource = w.resource_of(w.restoring)
    w.write("UPDATE resources SET status = 'active' WHERE id = :id", id=resource)
    return resource, {"active_in_quarantine"}


@breaks("deleted_with_open_job")
def _(w: World) -> Broken:
    id = w.resource_of(w.pending)
    w.write("UPDATE resources SET status = 'deleted', purged_at = now(), credentials = NULL WHERE id = :id", id=id)
    w.tell(0, id, "completed", 1, seen={"database": None})  # of no job, so that only the resource's story has it
    return id, set()


@breaks("two_jobs")
def _(w: World) -> Broken:
    id = w.resource_of(w.pending)
    w.write("DROP INDEX outbox_one_deprovision")
    w.write(
        """INSERT INTO outbox (kind, resource_id, backend, max_attempts, request_id)
           VALUES ('deprovision', :id, 'pg-main', 9, gen_random_uuid())""",
        id=id,
    )
    w.tell(w.db.execute(text("SELECT max(id) FROM outbox")).scalar_one(), id, "enqueued", 0)
    return id, {"guard_missing"}


@breaks("two_at_work")
def _(w: World) -> Broken:
    other = w.claimed(w.pending)
    jobs.start(w.db, other, worker="w1")
    # A provision beside the deprovision, as if `start` had not looked.
    w.write(
        """UPDATE outbox SET state = 'running', finished_at = NULL, claimed_by = 'w9', started_fence = fence,
                             lease_expires_at = now() + interval '30 s'
            WHERE kind = 'provision' AND resource_id = :id""",
        id=other.resource_id,
    )
    return other.resource_id, {"last_event_differs"}


@breaks("lease_expired")
def _(w: World) -> Broken:
    of_the_worker = settings.get()
    allowed = 3 * of_the_worker.lease_seconds + of_the_worker.sweep_seconds
    passed = "UPDATE outbox SET lease_expires_at = now() - :ago * interval '1 s' WHERE id = :id"
    w.write(passed, id=w.running.id, ago=allowed - 0.5 * of_the_worker.lease_seconds)
    assert findings() == {}, "a lease that has just passed will be swept"
    w.write(passed, id=w.running.id, ago=allowed + 0.5)
    return w.running.id, set()


@breaks("never_enqueued")
def _(w: World) -> Broken:
    w.forget(w.deleted.id, "enqueued", 0)
    return w.deleted.id, {"chain_broken"}


@breaks("claim_not_recorded")
def _(w: World) -> Broken:
    w.forget(w.deleted.id, "claimed", 1)
    return w.deleted.id, {"chain_broken"}


@breaks("last_event_differs")
def _(w: World) -> Broken:
    w.forget(w.deferred, "deferred", 1)
    return w.deferred, set()


@breaks("end_not_recorded")
def _(w: World) -> Broken:
    w.forget(w.rolled_back.id, "rolled_back", 1)
    return w.rolled_back.id, {"chain_broken"}


@breaks("start_without_outcome")
def _(w: World) -> Broken:
    w.forget(w.deleted.id, "retried", 1)
    return w.deleted.id, {"chain_broken"}


@breaks("claim_without_outcome")
def _(w: World) -> Broken:
    w.forget(w.swept.id, "swept", 1)
    return w.swept.id, {"chain_broken"}


@breaks("chain_broken")
def _(w: World) -> Broken:
    w.write("UPDATE events SET reason = 'as ordered' WHERE job_id = :id AND event = 'started'", id=w.deleted.id)
    return w.deleted.resource_id, set()


@breaks("checkpoint_broken")
def _(w: World) -> Broken:
    w.checkpoint()
    w.forget(w.deferred, "deferred", 1)
    return w.resource_of(w.deferred), {"last_event_differs"}


@breaks("checkpoint_overdue")
def _(w: World) -> Broken:
    id = w.resource_of(w.pending)
    w.tell(w.pending, id, "observed", 0, at="181 min")
    assert set(findings()) == {"checkpoint_overdue"}, "none was ever made"
    made = w.checkpoint()
    assert made
    assert findings() == {}, "its chain's head is vouched for"
    w.tell(w.pending, id, "observed", 0, at="179 min")
    assert findings() == {}, "the next one is not long overdue"
    w.tell(w.pending, id, "observed", 0, at="181 min")
    return made.id, set()


@breaks("late_birth_left")
def _(w: World) -> Broken:
    job, resource = w.rolled_back.id, w.rolled_back.resource_id
    w.tell(job, resource, "late", 1, at="1 h", provisioned={"database": "d"})
    left = findings()["late_birth_left"]
    assert left.sample[0].id == str(resource)
    w.tell(job, resource, "late", 1, at="59 min", undone={"database": "d"})
    assert "late_birth_left" not in findings(), "the worker undid it"
    w.tell(job, resource, "late", 1, at="30 min", provisioned={"database": "d"})
    return resource, {"late"}


@breaks("late")
def _(w: World) -> Broken:
    w.tell(w.swept.id, w.swept.resource_id, "late", 2, at="8 days", completed={})
    w.checkpoint()
    assert findings() == {}, "old news"
    jobs.note_late(w.db, w.swept, worker="w1", news={"completed": {}})
    return w.swept.id, set()


@breaks("stuck")
def _(w: World) -> Broken:
    w.write("UPDATE outbox SET available_at = now() + interval '1 h' WHERE id = :id", id=w.pending)
    oldest = w.stuck().id
    w.stuck()
    return oldest, set()


@breaks("due_long_ago")
def _(w: World) -> Broken:
    w.write("UPDATE outbox SET available_at = now() - interval '11 min' WHERE id = :id", id=w.pending)
    return w.pending, set()


@breaks("woken_by_nobody")
def _(w: World) -> Broken:
    hold = holds.engage(w.db, HoldScope.GLOBAL, None, actor="op", reason="night")
    w.write("UPDATE outbox SET held_by = :hold WHERE id = :id", hold=hold.id, id=w.pending)
    holds.release(w.db, hold.id, actor="op", reason="day")
    assert findings() == {}, "the next sweep will"
    w.write("UPDATE holds SET released_at = now() - interval '11 min'")
    return w.pending, set()


@breaks("hold_in_force")
def _(w: World) -> Broken:
    return holds.engage(w.db, HoldScope.BACKEND, "pg-main", actor="op", reason="night").id, set()


@breaks("backend_retired")
def _(w: World) -> Broken:
    holds.engage_cause(w.db, HoldCause.RETIRED, "pg-main", actor="op", reason="the rack burned: INC-7")
    return "pg-main", set()


@breaks("rebind_unfinished")
def _(w: World) -> Broken:
    holds.engage_cause(w.db, HoldCause.REBIND, "pg-main", actor="op", reason="rebind 3-ab: moved")
    hold = holds.of_backend(w.db, HoldCause.REBIND, "pg-main")
    assert hold
    assert set(findings()) == {"hold_in_force"}, "it is under way"
    w.write("UPDATE holds SET created_at = now() - interval '11 min'")
    return hold.id, {"hold_in_force"}


@breaks("backend_unsafe")
def _(w: World) -> Broken:
    mended = {"code": "rights_too_few", "what": "the service's role has no CREATEDB", "mend": "ALTER ROLE …"}
    for found in ([mended], [mended, mended], []):
        record_findings(w.db, "mended", found, worker="w1")
    record_findings(w.db, "pg-main", [], worker="w1", error="connection refused")
    assert findings() == {}, "the last check found nothing, or could not ask"
    record_findings(w.db, "pg-main", [mended], worker="w1")
    return "pg-main", set()


@breaks("breaker_open")
def _(w: World) -> Broken:
    backend_away(w)
    return "pg-main", set()


@breaks("rewound")
def _(w: World) -> Broken:
    rewinds.here(w.db, ["pg-main"])
    rewinds.engage(w.db, actor="w1", reason="pg-main remembers event 9")
    return w.db.execute(text("SELECT id FROM holds WHERE cause = 'rewound'")).scalar_one(), {"hold_in_force"}


def _compared(w: World) -> None:
    here = rewinds.here(w.db, ["pg-main", "redis-main"])
    assert rewinds.settle(w.db, here, ["pg-main", "redis-main"])


@breaks("backend_went_back")
def _(w: World) -> Broken:
    _compared(w)
    rewinds.went_back(w.db, "pg-main", "it remembers nothing")
    return "pg-main", {"breaker_open"}


@breaks("backend_not_compared")
def _(w: World) -> Broken:
    _compared(w)
    w.write("UPDATE memories SET compared_under = 'an older one'")
    assert findings() == {}, "the workers compare in a moment"
    w.write("UPDATE outbox SET available_at = now() - interval '11 min' WHERE id = :id", id=w.pending)
    return "pg-main", {"due_long_ago"}


def found(w: World, code: str, resource: uuid.UUID | None, closed: str = "NULL") -> int:
    """A finding of the last run."""
    names = {"database": f"db_{code}", "role": f"usr_{code}", "generation": str(uuid.uuid4())}
    row = w.db.execute(
        text(f"""
        INSERT INTO object_findings (backend, code, key, resource_id, names, parts, why, size_bytes, closed_at)
        VALUES ('pg-main', :code, :key, :resource, CAST(:names AS jsonb), ARRAY['database ''d'' (OID 7)'], '', 7000000,
                {closed}) RETURNING id"""),
        {"code": code, "key": names["generation"], "resource": resource, "names": json.dumps(names)},
    )
    return row.scalar_one()


@breaks("object_unknown")
def _(w: World) -> Broken:
    found(w, "unknown", None, closed="now()")
    found(w, "unmarked", None)
    assert findings() == {}, "an object of others is no fault, and what was found once may be gone"
    return found(w, "unknown", None), set()


@breaks("object_survives")
def _(w: World) -> Broken:
    return found(w, "survives", w.deleted.resource_id), set()


@breaks("object_missing")
def _(w: World) -> Broken:
    return found(w, "missing", w.active), set()


@breaks("object_differs")
def _(w: World) -> Broken:
    return found(w, "differs", w.active), set()


@breaks("reconcile_stale")
def _(w: World) -> Broken:
    reconcile.due(w.db, ["pg-main", "empty"])
    run = reconcile.begin(w.db, "pg-main", actor="w1")
    assert run
    assert findings() == {}, "the first one is under way"
    reconcile.fail(w.db, run, "connection refused")
    assert set(findings()) == {"reconcile_stale"}
    w.write("UPDATE reconciliations SET error = NULL, known_since = now() - interval '49 hours'")
    stale = findings()["reconcile_stale"]
    assert [one.id for one in stale.sample] == ["pg-main"], "nothing is active on the other"
    w.write("UPDATE reconciliations SET ended_at = now() - interval '47 hours'")
    assert findings() == {}, "a run a day; one may be missed"
    w.write("DELETE FROM reconciliations")
    w.write("UPDATE resources SET activated_at = now() - interval '49 hours' WHERE id = :id", id=w.active)
    return "pg-main", set()


def backend_away(w: World) -> None:
    """Open the breaker of pg-main, for longer than a test takes."""
    breakers.trip(w.db, "pg-main", reason="connection refused")
    w.write("UPDATE breakers SET retry_at = now() + interval '1 hour'")
