"""The doctor is silent over honest work, and names each thing that is broken by its code."""

import datetime as dt
import json
import os
import re
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import psycopg2
import pytest
from sqlalchemy import Connection, text
from sqlalchemy.exc import IntegrityError

import migrations
from outbox import audit, breakers, doctor, holds, jobs, observations, resources, tables
from outbox import db as database
from outbox.doctor import CHECKS, Finding, examine
from outbox.doctor.checks.schema import TRIGGERS
from outbox.errors import Conflict
from outbox.events import MOVES_NOTHING, STATE_AFTER, Event
from outbox.resources import NewResource
from outbox.rows import Claim
from outbox.states import Found, HoldScope, StuckReason
from tests.support.factories import a_resource
from tests.support.statements import statements

ROOT = Path(__file__).parents[2]
CODES = [check.code for check in CHECKS]
SEVERITY = {check.code: check.severity for check in CHECKS}


class World:
    """An installation after honest work, each job in a state of its own; and ways to write past the product."""

    def __init__(self, db: Connection) -> None:
        self.db = db
        self.active = self.born()
        self.deleted = self.torn_down()
        self.rolled_back = self.failed_birth()
        self.cured = self.redriven()
        self.resolved = self.seen_gone()
        self.forced = self.forced_by_two()
        self.swept = self.lost()
        self.running = self.claimed(self.enqueue(self.born()))
        jobs.start(db, self.running, worker="w1")
        self.deferred = self.enqueue(self.born())
        jobs.defer(db, self.claimed(self.deferred), worker="w1", error="out of reach", delay=3600)
        self.pending = self.enqueue(self.born())

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

    def lost(self) -> Claim:
        first = self.claimed(self.enqueue(self.born()))
        self.db.execute(text("UPDATE outbox SET lease_expires_at = now() - interval '1 s' WHERE id = :id"), vars(first))
        assert jobs.sweep(self.db, actor="w2") == 1
        second = self.claimed(first.id)
        jobs.complete(self.db, second, worker="w2", seen={"database": None})
        return second

    def write(self, sql: str, **words: object) -> int:
        """A write that no trigger sees; how many rows it touched."""
        self.db.execute(text("SET session_replication_role = replica"))
        try:
            return self.db.execute(text(sql), words).rowcount
        finally:
            self.db.execute(text("RESET session_replication_role"))

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


def _found() -> dict[str, Finding]:
    with database.snapshot() as session:
        return {finding.check.code: finding for finding in examine(session, head=migrations.head())}


@pytest.fixture
def world(db: Connection) -> World:
    made = World(db)
    assert _found() == {}, "honest work leaves nothing to find"
    return made


# -- one break for each check: it returns the id that must be named, and which other checks see it too ----------------

Broken = tuple[object, set[str]]
BREAKS: dict[str, Callable[[World], Broken]] = {}


def breaks(code: str) -> Callable[[Callable[[World], Broken]], Callable[[World], Broken]]:
    def keep(act: Callable[[World], Broken]) -> Callable[[World], Broken]:
        BREAKS[code] = act
        return act

    return keep


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
    w.write("DROP INDEX outbox_pending")
    return "outbox_pending", set()


@breaks("deleting_without_job")
def _(w: World) -> Broken:
    resource = w.resource_of(w.pending)
    w.write("DELETE FROM outbox WHERE id = :id", id=w.pending)
    return resource, set()


@breaks("provisioning_without_job")
def _(w: World) -> Broken:
    return a_resource(w.db, status="provisioning"), set()


@breaks("active_without_identity")
def _(w: World) -> Broken:
    w.write("UPDATE resources SET manifest = manifest - 'generation' WHERE id = :id", id=w.active)
    return w.active, set()


@breaks("deleted_without_evidence")
def _(w: World) -> Broken:
    w.write("UPDATE events SET detail = NULL WHERE job_id = :id AND event = 'completed'", id=w.deleted.id)
    return w.deleted.resource_id, {"chain_broken"}


@breaks("deprovision_of_undeleted")
def _(w: World) -> Broken:
    id = w.deleted.resource_id
    w.write("UPDATE resources SET status = 'active', deleted_at = NULL, purged_at = NULL WHERE id = :id", id=id)
    return id, set()


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
    # Three leases of 3 s and a sweep of 0.5 s: 9.5 s.
    w.write("UPDATE outbox SET lease_expires_at = now() - interval '9 s' WHERE id = :id", id=w.running.id)
    assert _found() == {}, "a lease that has just passed will be swept"
    w.write("UPDATE outbox SET lease_expires_at = now() - interval '10 s' WHERE id = :id", id=w.running.id)
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
    assert set(_found()) == {"checkpoint_overdue"}, "none was ever made"
    made = w.checkpoint()
    assert made
    assert _found() == {}, "its chain's head is vouched for"
    w.tell(w.pending, id, "observed", 0, at="179 min")
    assert _found() == {}, "the next one is not long overdue"
    w.tell(w.pending, id, "observed", 0, at="181 min")
    return made.id, set()


@breaks("late_birth_left")
def _(w: World) -> Broken:
    job, resource = w.rolled_back.id, w.rolled_back.resource_id
    w.tell(job, resource, "late", 1, at="1 h", provisioned={"database": "d"})
    left = _found()["late_birth_left"]
    assert left.sample[0].id == str(resource)
    w.tell(job, resource, "late", 1, at="59 min", undone={"database": "d"})
    assert "late_birth_left" not in _found(), "the worker undid it"
    w.tell(job, resource, "late", 1, at="30 min", provisioned={"database": "d"})
    return resource, {"late"}


@breaks("late")
def _(w: World) -> Broken:
    w.tell(w.swept.id, w.swept.resource_id, "late", 2, at="8 days", completed={})
    w.checkpoint()
    assert _found() == {}, "old news"
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
    assert _found() == {}, "the next sweep will"
    w.write("UPDATE holds SET released_at = now() - interval '11 min'")
    return w.pending, set()


@breaks("hold_in_force")
def _(w: World) -> Broken:
    return holds.engage(w.db, HoldScope.BACKEND, "pg-main", actor="op", reason="night").id, set()


@breaks("breaker_open")
def _(w: World) -> Broken:
    breakers.trip(w.db, "pg-main", reason="connection refused")
    return "pg-main", set()


# -- the tests ---------------------------------------------------------------------------------------------------


def test_every_check_has_its_break() -> None:
    assert list(BREAKS) == CODES
    assert len(set(CODES)) == len(CODES)


@pytest.mark.parametrize("code", CODES)
def test_what_is_broken_is_named_and_nothing_else_is(world: World, code: str) -> None:
    named, also = BREAKS[code](world)
    found = _found()
    assert set(found) == {code} | also
    finding = found[code]
    assert finding.status == SEVERITY[code]
    assert finding.error is None
    assert finding.sample[0].id == str(named)
    assert finding.count == len(finding.sample)
    assert finding.sample[0].note


@pytest.mark.parametrize("told", ["{}", '{"forced": true, "proposed_by": "token:1:a", "approved_by": "token:1:a"}'])
def test_a_resolved_job_is_evidence_only_when_it_was_seen_gone_or_forced_by_two(world: World, told: str) -> None:
    for claim in (world.resolved, world.forced):
        detail = json.loads(told) | {"state": "succeeded"}
        world.write(
            "UPDATE events SET detail = CAST(:detail AS jsonb) WHERE job_id = :id AND event = 'resolved'",
            id=claim.id,
            detail=json.dumps(detail),
        )
    found = _found()
    assert set(found) == {"deleted_without_evidence", "chain_broken"}
    assert found["deleted_without_evidence"].count == 2


CHAINED = "WHERE resource_id = :id"
LAST = f"{CHAINED} AND seq = (SELECT max(seq) FROM events {CHAINED})"


@pytest.mark.parametrize(
    ("tampered", "codes"),
    [
        (f"UPDATE events SET reason = 'ticket 811' {CHAINED} AND event = 'enqueued'", {"chain_broken"}),
        (f"UPDATE events SET actor = 'somebody' {LAST}", {"chain_broken"}),
        (f"UPDATE events SET at = at - interval '1 us' {LAST}", {"chain_broken"}),
        (f"DELETE FROM events {CHAINED} AND event = 'started'", {"chain_broken"}),
        (f"DELETE FROM events {CHAINED} AND seq = 1", {"chain_broken", "never_enqueued"}),
        (f"DELETE FROM events {CHAINED} AND event = 'late'", {"checkpoint_broken"}),
        (
            f"DELETE FROM events {CHAINED}",
            {"chain_broken", "checkpoint_broken", "deleted_without_evidence", "never_enqueued", "claim_not_recorded"}
            | {"end_not_recorded"},
        ),
        ("UPDATE audit_checkpoints SET at = at - interval '1 day'", {"checkpoint_broken"}),
        ("UPDATE audit_checkpoints SET hash = sha256('mine')", {"checkpoint_broken"}),
        (f"UPDATE audit_heads SET seq = seq - 1 {CHAINED}", {"checkpoint_broken"}),
        (f"DELETE FROM audit_heads {CHAINED}", {"checkpoint_broken"}),
        ("DELETE FROM audit_checkpoints WHERE id = 1", {"checkpoint_broken"}),
    ],
)
def test_whoever_rewrites_history_is_found(world: World, tampered: str, codes: set[str]) -> None:
    jobs.note_late(world.db, world.deleted, worker="w1", news={})
    world.checkpoint()
    jobs.note_late(world.db, world.swept, worker="w2", news={})
    world.checkpoint()
    assert set(_found()) == {"late"}
    words = {"id": world.deleted.resource_id} if ":id" in tampered else {}
    assert world.write(tampered, **words) > 0
    assert set(_found()) - {"late"} == codes


def test_a_chain_that_was_made_anew_after_a_checkpoint_is_found(world: World) -> None:
    id = world.deleted.resource_id
    kept = "id, at, job_id, resource_id, fence, event, actor, reason, detail"

    def made_anew() -> set[str]:
        """As the owner of the database could: all events again through the trigger, the first with another actor."""
        rows = "actor = CASE seq WHEN 1 THEN 'somebody' || now() ELSE actor END"
        world.write(f"CREATE TABLE forged AS SELECT {kept}, seq FROM events WHERE resource_id = :id", id=id)
        world.write(f"UPDATE forged SET {rows}; DELETE FROM events WHERE resource_id = :id", id=id)
        world.db.execute(
            text(f"INSERT INTO events ({kept}) OVERRIDING SYSTEM VALUE SELECT {kept} FROM forged ORDER BY seq")
        )
        world.db.execute(text("DROP TABLE forged"))
        return set(_found())

    assert made_anew() == set(), "nobody can tell before there is a checkpoint: keep them hourly"
    world.checkpoint()
    assert made_anew() == {"checkpoint_broken"}
    assert _found()["checkpoint_broken"].sample[0].id == str(id)


def test_the_oldest_of_many_are_shown_and_all_are_counted(world: World) -> None:
    made = [a_resource(world.db, status="deleting") for _ in range(doctor.SAMPLE + 5)]
    for age, id in enumerate(made):
        world.write(f"UPDATE resources SET deleted_at = now() - interval '{age} min' WHERE id = :id", id=id)
    finding = _found()["deleting_without_job"]
    assert finding.count == len(made)
    assert [offender.id for offender in finding.sample] == [str(id) for id in reversed(made)][: doctor.SAMPLE]


def test_a_guard_that_is_dropped_is_missed_whatever_sort_it_is(world: World) -> None:
    world.write("DROP TRIGGER events_append_only ON events")
    world.write("DROP INDEX outbox_one_provision")
    world.write("ALTER TABLE resources DROP CONSTRAINT resources_active_has_manifest")
    world.write("ALTER TABLE outbox DROP CONSTRAINT outbox_resource_id_fkey")
    assert {offender.id for offender in _found()["guard_missing"].sample} == {
        "events_append_only",
        "outbox_one_provision",
        "resources_active_has_manifest",
        "outbox_resource_id_fkey",
    }


def test_an_index_of_that_name_that_is_not_unique_guards_nothing(world: World) -> None:
    world.write("DROP INDEX outbox_one_deprovision")
    world.write("CREATE INDEX outbox_one_deprovision ON outbox (resource_id)")
    assert set(_found()) == {"guard_missing"}


def test_the_doctor_knows_every_trigger_of_the_schema(db: Connection) -> None:
    rows = db.execute(
        text("SELECT tgname, CAST(CAST(tgrelid AS regclass) AS text) FROM pg_trigger WHERE NOT tgisinternal")
    )
    assert {name: table for name, table in rows} == TRIGGERS  # noqa: C416 - rows are no tuples


def test_every_event_is_written_and_no_other() -> None:
    """The enum is the one list: a statement that wrote another word would be evidence that nothing reads."""
    words = {"enqueued", "swept", "observed", "proposed"}
    sql = "".join(statement.sql for statement in statements() if "INSERT INTO events" in statement.sql)
    assert set(re.findall(r"fence, '(\w+)', ", sql)) == words
    code = "".join(path.read_text() for path in (ROOT / "outbox" / "jobs").glob("*.py"))
    named = {Event[name] for name in re.findall(r"Event\.([A-Z_]+)", code)}
    assert named | words == set(Event)
    assert {*STATE_AFTER} | {*MOVES_NOTHING} == set(Event)


def test_it_writes_nothing_and_could_not(world: World) -> None:
    def everything() -> list[object]:
        return [
            world.db.execute(text(f"SELECT xmin, ctid, * FROM {table} ORDER BY ctid")).all()
            for table in tables.metadata.tables
        ]

    before = everything()
    _found()
    assert everything() == before
    with pytest.raises(Exception, match="read-only transaction"), database.snapshot() as session:
        session.execute(text("UPDATE outbox SET last_error = 'x'"))


def test_all_checks_see_one_moment(world: World) -> None:
    with database.snapshot() as session:
        session.execute(text("SELECT count(*) FROM outbox"))
        a_resource(world.db, status="deleting")
        assert examine(session, head=migrations.head()) == []
    assert set(_found()) == {"deleting_without_job"}


def test_a_check_that_cannot_be_made_is_no_good_news(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = doctor.Check("slow", "job", "SELECT 1 AS id, now() AS since, '' AS note FROM pg_sleep(30)", "m", "d")
    monkeypatch.setattr(doctor, "CHECKS", (slow, *CHECKS))
    monkeypatch.setattr(doctor, "STATEMENT_TIMEOUT_SECONDS", 1)
    breakers.trip(world.db, "pg-main", reason="connection refused")
    found = _found()
    assert found["slow"].status == "unchecked"
    assert "statement timeout" in str(found["slow"].error)
    assert set(found) == {"slow", "breaker_open"}, "the others went on"


# -- the command ----------------------------------------------------------------------------------------------------


def _cli(env: dict[str, str], *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("DEPROVISIONER_")}
    return subprocess.run(
        [sys.executable, "-m", "deprovisioner.cli", "doctor", *words],
        env=kept | env | more,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.fixture
def reader(world: World, env: dict[str, str]) -> Iterator[dict[str, str]]:
    """The installation as a role sees it that may only read."""
    name = f"reader_{uuid.uuid4().hex}"
    world.db.execute(text(f"CREATE ROLE {name} LOGIN PASSWORD 'secret'"))
    world.db.execute(text(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {name}"))
    dsn = env["DEPROVISIONER_DATABASE_URL"]
    yield env | {"DEPROVISIONER_DATABASE_URL": re.sub(r"//[^@]+@", f"//{name}:secret@", dsn)}
    world.db.execute(text(f"DROP OWNED BY {name}"))
    world.db.execute(text(f"DROP ROLE {name}"))


def test_the_command_says_ok_to_a_role_that_may_only_read(reader: dict[str, str]) -> None:
    answer = _cli(reader, "--json")
    assert answer.returncode == 0, answer
    told = json.loads(answer.stdout)
    assert told["ok"] is True
    assert [(check["code"], check["status"]) for check in told["checks"]] == [(code, "ok") for code in CODES]
    with (
        closing(psycopg2.connect(reader["DEPROVISIONER_DATABASE_URL"])) as connection,
        pytest.raises(psycopg2.errors.InsufficientPrivilege),
    ):
        connection.cursor().execute("DELETE FROM breakers")


def test_the_command_says_what_is_broken_and_what_to_do(world: World, env: dict[str, str]) -> None:
    resource = a_resource(world.db, status="deleting")
    stuck = world.enqueue(world.active)
    world.write("UPDATE outbox SET available_at = now() + interval '1 h' WHERE id = :id", id=world.pending)
    jobs.stick(world.db, world.claimed(stuck), worker="w1", why=StuckReason.REFUSED, error="another's")
    answer = _cli(env, "--json")
    assert answer.returncode == 1
    told = json.loads(answer.stdout)
    assert told["ok"] is False
    checks = {check["code"]: check for check in told["checks"]}
    broken = checks["deleting_without_job"]
    assert (broken["status"], broken["count"], broken["sample"][0]["id"]) == ("broken", 1, str(resource))
    assert broken["do"]
    assert checks["stuck"]["status"] == "warning"
    human = _cli(env)
    assert human.returncode == 1
    assert re.search(
        rf"^BROKEN     deleting_without_job: .*\n +resource {resource} .*\n +what to do: ", human.stdout, re.M
    )
    assert re.search(rf"^warning    stuck: .*\n +job {stuck} ", human.stdout, re.M)
    assert "ok         two_jobs\n" in human.stdout
    assert human.stdout.endswith(f"\n{len(CODES)} checks: 1 broken, 1 warning\n")


def test_a_warning_alone_is_no_failure(world: World, env: dict[str, str]) -> None:
    breakers.trip(world.db, "pg-main", reason="connection refused")
    answer = _cli(env, "--json")
    assert answer.returncode == 0
    assert json.loads(answer.stdout)["ok"] is True
    assert _cli(env).stdout.endswith(f"\n{len(CODES)} checks: 1 warning\n")


def test_a_database_without_the_schema_is_told_to_migrate(world: World, env: dict[str, str]) -> None:
    world.write("DROP TABLE resources, outbox, events, breakers, holds, tokens, alembic_version CASCADE")
    answer = _cli(env)
    assert answer.returncode == 1
    assert 'UNCHECKED  schema_not_at_head: relation "alembic_version" does not exist' in answer.stdout
    assert "deprovisioner migrate" in answer.stdout
    assert "Traceback" not in answer.stderr


def test_wrong_words_are_a_usage_error_and_a_lost_database_a_failure(env: dict[str, str]) -> None:
    assert _cli(env, "--jason").returncode == 2
    lost = _cli(env, DEPROVISIONER_DATABASE_URL="postgresql://nobody:x@127.0.0.1:1/none")
    assert lost.returncode == 1
    assert lost.stderr.startswith("Error: control database:")


def test_a_delete_without_its_job_says_so_and_the_runbook_repairs_it(world: World) -> None:
    resource, _ = BREAKS["deleting_without_job"](world)
    assert isinstance(resource, uuid.UUID)
    with pytest.raises(Conflict, match=r"is deleting, and its deprovision job is missing; .*deleting_without_job"):
        jobs.enqueue(world.db, resource, actor="me")
    part = (ROOT / "docs/runbook.md").read_text().partition("### `deleting_without_job`")[2].partition("\n### ")[0]
    statement = part.partition("```sql\n")[2].partition("```")[0]
    for name, value in {"RESOURCE": str(resource), "NAME": "ann", "REASON": "its job was lost"}.items():
        assert f"${name}" in statement
        statement = statement.replace(f"${name}", value)
    assert world.db.exec_driver_sql(statement).rowcount == 1
    with pytest.raises(IntegrityError, match="outbox_one_deprovision"):
        world.db.exec_driver_sql(statement)
    assert _found() == {}
    (claim,) = jobs.claim(world.db, {"pg-main": 9}, slots=9, worker="w1")
    assert claim.resource_id == resource
    jobs.complete(world.db, claim, worker="w1", seen={"database": None})
    assert _found() == {}
