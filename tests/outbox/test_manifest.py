"""What a DELETE will destroy, and whose it is: who may change it, what records it, and what the doctor compares."""

import json
import re
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy import Connection, text

from deprovisioner import grants
from outbox import db as database
from outbox import jobs, resources
from outbox.resources import NewResource
from outbox.rows import Claim, Json
from tests.support.breaks import World, findings
from tests.support.factories import a_job, a_resource, claims, events_of, last_event, status_of, unguarded
from tests.support.statements import statements

ROOT = Path(__file__).parents[2]
ROWS = 34
REFUSED = "its manifest changes only by the start or the end of a job that records it"
REWRITE = """UPDATE resources SET manifest = manifest || '{"database": "somebody_elses"}'"""
# As a role that may insert events can write them.
FORGE = """
    INSERT INTO events (job_id, resource_id, fence, event, actor, detail)
    SELECT outbox.id, resource_id, fence, '{event}', 'w1', {detail}
      FROM outbox JOIN resources ON resources.id = resource_id WHERE {which}"""
WHOLE = """jsonb_build_object('manifest', manifest || '{"database": "somebody_elses"}')"""
ADDS = """'{"seen": {"completes": {"database": "somebody_elses"}}}'"""


def manifest_of(db: Connection, resource: uuid.UUID) -> Json:
    return db.execute(text("SELECT manifest FROM resources WHERE id = :id"), {"id": resource}).scalar_one()


def all_manifests(db: Connection) -> list[Json]:
    return list(db.execute(text("SELECT manifest FROM resources ORDER BY id")).scalars())


def registered(db: Connection, manifest: Json | None = None) -> Claim:
    new = NewResource("acme", "postgres", "pg-main", "orders", manifest=manifest)
    resources.register(db, new, actor="me")
    (claim,) = claims(db)
    return claim


def planned(claim: Claim, **more: object) -> Json:
    return {"database": "d", "role_oid": None, "generation": str(claim.generation)} | more


def provisioned(db: Connection) -> Claim:
    claim = registered(db)
    jobs.start_provision(db, claim, worker="w1", manifest=planned(claim), credentials=b"sealed")
    jobs.activate(db, claim, worker="w1", manifest=planned(claim, oid=7))
    return claim


def in_one_transaction(*acts: Callable[[Connection], object] | str, **words: object) -> None:
    """Transitions and statements, as the role that this process has."""
    with database.transaction() as session:
        for act in acts:
            if isinstance(act, str):
                assert session.execute(text(act), words).rowcount
            else:
                act(session)


def refused(*acts: Callable[[Connection], object] | str, **words: object) -> None:
    with pytest.raises(sa.exc.IntegrityError, match=REFUSED):
        in_one_transaction(*acts, **words)


@pytest.fixture
def world(db: Connection) -> World:
    return World(db)


# -- who cannot --------------------------------------------------------------------------------------------------------


def test_the_service_s_role_rewrites_no_manifest_with_or_without_a_forged_event(
    db: Connection, service: Connection
) -> None:
    for _ in range(ROWS):
        provisioned(service)
    before = all_manifests(db)
    refused(REWRITE)
    for which in ("true", "outbox.kind = 'provision'"):
        refused(FORGE.format(event="activated", detail=WHOLE, which=which), REWRITE)
        refused(FORGE.format(event="started", detail=WHOLE, which=which), REWRITE)
        refused(FORGE.format(event="started", detail=ADDS, which=which), REWRITE)
    assert all_manifests(db) == before
    assert len(before) == ROWS
    assert findings() == {}


def test_the_service_s_role_forges_no_rebind(db: Connection, service: Connection) -> None:
    provisioned(service)
    before = all_manifests(db)
    hold = "INSERT INTO holds (scope, subject, cause, reason, actor) VALUES ('backend', 'pg-main', 'rebind', 'r', 'x')"
    forged = """
        INSERT INTO events (resource_id, fence, event, actor, detail)
        SELECT id, 0, 'rebound', 'x', jsonb_build_object(
               'was', jsonb_build_object('manifest', manifest),
               'is', jsonb_build_object('manifest', manifest || '{"database": "somebody_elses"}'))
          FROM resources"""
    with pytest.raises(sa.exc.ProgrammingError, match="only the owner of the tables may rebind"):
        in_one_transaction(hold, forged, REWRITE)
    refused(hold, REWRITE)
    assert all_manifests(db) == before


COLUMNS = {
    "id": "gen_random_uuid()",
    "tenant": "'globex'",
    "kind": "'redis'",
    "backend": "'redis-main'",
    "adopted": "NOT adopted",
    "generation": "gen_random_uuid()",
    "created_at": "now()",
}
# No transition changes them, though they do not say what is destroyed.
KEPT = {"name": "'other'", "version": "9", "idempotency_key": "'k'", "request_digest": "'d'"}
JOB_COLUMNS = {
    "id": "DEFAULT",
    "kind": "'restore'",
    "resource_id": "gen_random_uuid()",
    "backend": "'redis-main'",
    "request_id": "gen_random_uuid()",
}
JOB_KEPT = {"max_attempts": "9", "created_at": "now()", "needs_snapshot": "true"}


@pytest.mark.parametrize(
    "change",
    [f"resources SET {name} = {value}" for name, value in (COLUMNS | KEPT).items()]
    + [f"outbox SET {name} = {value}" for name, value in (JOB_COLUMNS | JOB_KEPT).items()],
)
def test_the_service_s_role_may_not_update_what_no_transition_changes(
    db: Connection, service: Connection, change: str
) -> None:
    a_job(db)
    with pytest.raises(sa.exc.ProgrammingError, match="permission denied"):
        service.execute(text(f"UPDATE {change}"))


@pytest.mark.parametrize(
    "change",
    [f"resources SET {name} = {value}" for name, value in COLUMNS.items()]
    + [f"outbox SET {name} = {value}" for name, value in JOB_COLUMNS.items()],
)
def test_what_is_destroyed_and_whose_it_is_stays_whoever_writes(db: Connection, change: str) -> None:
    a_job(db)
    a_resource(db)  # of no job, whose foreign key would answer for the trigger
    with pytest.raises(sa.exc.IntegrityError, match=r"a (resource|job) keeps its"):
        db.execute(text(f"UPDATE {change}"))


def test_the_service_s_role_may_update_exactly_the_columns_that_statements_set(db: Connection) -> None:
    """By the statements themselves: a new one needs its column here, and a column that none sets has no right."""
    for table in ("resources", "outbox"):
        changed: set[str] = set()
        for statement in statements():
            if statement.where.startswith("outbox.jobs.rebind"):
                continue  # only the owner of the tables may rebind
            for assigned in re.findall(
                rf"UPDATE {table}(?: AS \w+)?\s+SET (.*?)\s(?:FROM|WHERE|RETURNING)\s", statement.sql, re.S
            ):
                changed |= set(re.findall(r"(?:^|,)\s*(\w+) = ", assigned))
        allowed = re.search(r"UPDATE \((.*)\)", grants.RIGHTS[table])
        assert allowed
        assert set(allowed[1].split(", ")) == changed


def test_a_deleted_resource_keeps_its_manifest(db: Connection, service: Connection) -> None:
    a_resource(db, status="deleted")
    with pytest.raises(sa.exc.IntegrityError, match="a deleted resource is final"):
        service.execute(text(REWRITE))


@pytest.mark.parametrize("change", ["'other'", "NULL"])
def test_credentials_are_set_once_and_end_with_the_resource(db: Connection, service: Connection, change: str) -> None:
    claim = provisioned(service)
    with pytest.raises(sa.exc.IntegrityError, match="credentials are set by a provision"):
        service.execute(text(f"UPDATE resources SET credentials = {change}"))
    a_resource(db)  # active, and without credentials
    with pytest.raises(sa.exc.IntegrityError, match="credentials are set by a provision"):
        service.execute(text("UPDATE resources SET credentials = 'x' WHERE credentials IS NULL"))
    assert status_of(db, claim.resource_id) == "active"
    under_way = registered(service)
    jobs.start_provision(service, under_way, worker="w1", manifest=planned(under_way), credentials=b"sealed")
    with pytest.raises(sa.exc.IntegrityError, match="credentials are set by a provision"):
        service.execute(text(f"UPDATE resources SET credentials = {change} WHERE status = 'provisioning'"))


def test_no_row_has_another_resource_s_generation_in_its_manifest(db: Connection, service: Connection) -> None:
    victim = provisioned(service)
    theirs = manifest_of(db, victim.resource_id)
    with pytest.raises(sa.exc.IntegrityError, match="a manifest bears the generation of its own resource"):
        service.execute(
            text("""INSERT INTO resources (id, tenant, kind, backend, name, generation, adopted, manifest)
                    SELECT gen_random_uuid(), 'globex', kind, backend, name, gen_random_uuid(), true, manifest
                      FROM resources"""),
        )
    claim = registered(service)
    for act in (jobs.start_provision, jobs.activate):
        words = {"credentials": None} if act is jobs.start_provision else {}
        with pytest.raises(sa.exc.IntegrityError, match="a manifest bears the generation"):
            act(service, claim, worker="w1", manifest=theirs, **words)
    assert manifest_of(db, claim.resource_id) is None


def test_a_job_is_of_its_resource_s_backend_whoever_inserts_it(db: Connection, service: Connection) -> None:
    a_resource(db, status="deleting")
    for kind in ("provision", "deprovision", "restore"):
        with pytest.raises(sa.exc.IntegrityError, match="is on backend pg-main, not on redis-main"):
            service.execute(
                text("""INSERT INTO outbox (kind, resource_id, backend, max_attempts, request_id)
                        SELECT :kind, id, 'redis-main', 1, gen_random_uuid() FROM resources"""),
                {"kind": kind},
            )


# -- who can, and by what ----------------------------------------------------------------------------------------------


def test_each_transition_that_sets_a_manifest_records_it(db: Connection, service: Connection) -> None:
    claim = registered(service)
    plan = planned(claim)
    jobs.start_provision(service, claim, worker="w1", manifest=plan, credentials=b"sealed")
    assert last_event(db, claim.id).detail == {"manifest": plan}
    assert findings() == {}
    jobs.retry(service, claim, worker="w1", error="e")
    service.execute(text("UPDATE outbox SET available_at = now()"))
    (again,) = claims(service)
    jobs.start_provision(service, again, worker="w1", manifest=planned(claim, database="e"), credentials=b"other")
    assert last_event(db, claim.id).detail == {"manifest": plan}, "the first plan stays, and is recorded again"
    jobs.activate(service, again, worker="w1", manifest=planned(claim, oid=7))
    assert last_event(db, claim.id).detail == {"manifest": planned(claim, oid=7)}
    jobs.enqueue(service, claim.resource_id, actor="me")
    (teardown,) = claims(service)
    jobs.start(service, teardown, worker="w1", seen={"completes": {"role_oid": 9}})
    jobs.complete(service, teardown, worker="w1", seen={"databases": []})
    assert manifest_of(db, claim.resource_id) == planned(claim, oid=7, role_oid=9)
    assert findings() == {}


def test_an_adoption_is_recorded_from_its_registration_on(db: Connection, service: Connection) -> None:
    claim = registered(service, {"database": "orders", "role": None})
    adopted = {"database": "orders", "role": None, "generation": str(claim.generation)}
    (told,) = db.execute(text("SELECT detail FROM events WHERE event = 'enqueued'")).scalars()
    assert told["manifest"] == adopted == claim.manifest
    jobs.start_provision(service, claim, worker="w1", manifest=adopted, credentials=None)
    jobs.activate(service, claim, worker="w1", manifest=adopted | {"oid": 7})
    assert findings() == {}


def test_a_provision_that_a_delete_overtook_still_stores_the_identity(db: Connection, service: Connection) -> None:
    claim = registered(service)
    jobs.start_provision(service, claim, worker="w1", manifest=planned(claim), credentials=b"sealed")
    jobs.enqueue(service, claim.resource_id, actor="me")
    jobs.activate(service, claim, worker="w1", manifest=planned(claim, oid=7))
    assert (status_of(db, claim.resource_id), manifest_of(db, claim.resource_id)) == ("deleting", planned(claim, oid=7))
    assert findings() == {}


# As workers before revision 0014 start a provision: the event does not say the plan.
OLDER_START = """
    WITH job AS (
        UPDATE outbox SET started_fence = fence WHERE id = :id AND fence = :fence RETURNING *
    ), noted AS (
        INSERT INTO events (job_id, resource_id, fence, event, actor)
        SELECT id, resource_id, fence, 'started', 'w0' FROM job
    )
    UPDATE resources
       SET manifest = CASE WHEN adopted OR manifest IS NULL THEN CAST(:manifest AS jsonb) ELSE manifest END,
           credentials = COALESCE(credentials, 'sealed')
      FROM job WHERE resources.id = job.resource_id"""


def test_an_older_worker_s_provision_works_and_is_unvouched_until_it_ends(db: Connection, service: Connection) -> None:
    claim = registered(service)
    words = {"id": claim.id, "fence": claim.fence, "manifest": json.dumps(planned(claim))}
    service.execute(text(OLDER_START), words)
    found = findings()
    assert {code: finding.status for code, finding in found.items()} == {"manifest_unvouched": "warning"}
    assert found["manifest_unvouched"].sample[0].id == str(claim.resource_id)
    jobs.activate(service, claim, worker="w1", manifest=planned(claim, oid=7))
    assert findings() == {}


# -- an event that does not fit ----------------------------------------------------------------------------------------


def test_an_inspection_adds_to_a_manifest_and_changes_nothing_in_it(db: Connection, service: Connection) -> None:
    jobs.enqueue(service, provisioned(service).resource_id, actor="me")
    (claim,) = claims(service)
    for completes in ({"database": "e"}, {"oid": None}, {"role_oid": 9, "oid": 8}):
        with pytest.raises(sa.exc.IntegrityError, match=REFUSED):
            jobs.start(service, claim, worker="w1", seen={"completes": completes})
    assert events_of(db, claim.id) == ["enqueued", "claimed"]
    jobs.start(service, claim, worker="w1", seen={"completes": {"role_oid": 9, "oid": 7}})


def test_a_manifest_is_what_its_event_says_and_nothing_else(db: Connection, service: Connection) -> None:
    """Each real transition, and in its transaction another manifest than the event has."""
    other = """UPDATE resources SET manifest = coalesce(manifest, '{}') || '{"extra": 1}' WHERE id = :id"""

    birth = registered(service)

    def start(session: Connection) -> None:
        jobs.start_provision(session, birth, worker="w1", manifest=planned(birth), credentials=b"sealed")

    def activate(session: Connection) -> None:
        jobs.activate(session, birth, worker="w1", manifest=planned(birth, oid=7))

    def tear_down(session: Connection) -> None:
        jobs.start(session, teardown, worker="w1", seen={"completes": {"role_oid": 9}})

    for act in (start, activate):
        refused(act, other, id=birth.resource_id)
        act(service)
    jobs.enqueue(service, birth.resource_id, actor="me")
    (teardown,) = claims(service)
    refused(tear_down, other, id=birth.resource_id)


def test_the_plan_of_a_start_is_the_one_that_its_event_says(db: Connection, service: Connection) -> None:
    claim = registered(service)
    start = "UPDATE outbox SET started_fence = fence WHERE id = :id"
    forged = FORGE.format(event="started", detail="""'{"manifest": {"database": "d"}}'""", which="outbox.id = :id")
    set_other = """UPDATE resources SET manifest = '{"database": "e"}' WHERE manifest IS NULL"""
    refused(start, forged, set_other, id=claim.id)


def test_an_event_or_a_start_of_an_earlier_transaction_allows_nothing(db: Connection, service: Connection) -> None:
    claim = registered(service)
    plan = planned(claim)
    jobs.start_provision(service, claim, worker="w1", manifest=plan, credentials=b"sealed")
    unguarded(db, "UPDATE resources SET manifest = NULL")
    again = "UPDATE resources SET manifest = CAST(:plan AS jsonb)"
    refused("UPDATE outbox SET lease_expires_at = lease_expires_at", again, plan=json.dumps(plan))
    refused(FORGE.format(event="started", detail="NULL", which="true"), again, plan=json.dumps(plan))


def test_an_event_of_another_resource_or_job_allows_nothing(db: Connection, service: Connection) -> None:
    one, other = registered(service), registered(service)
    start = "UPDATE outbox SET started_fence = fence WHERE id = :id"
    told = """INSERT INTO events (job_id, resource_id, fence, event, actor)
              VALUES (:id, :resource, :fence, 'started', 'w')"""
    change = """UPDATE resources SET manifest = '{"database": "e"}' WHERE id = :changed"""
    words = {"fence": 1, "changed": one.resource_id}
    refused(start, told, change, id=one.id, resource=other.resource_id, **words)
    refused(start, told, change, id=other.id, resource=one.resource_id, **words)
    in_one_transaction(start, told, change, id=one.id, resource=one.resource_id, **words)


def test_a_plan_is_stored_once_and_a_provision_that_runs_has_not_ended(db: Connection, service: Connection) -> None:
    claim = registered(service)
    jobs.start_provision(service, claim, worker="w1", manifest=planned(claim), credentials=b"sealed")
    touch = "UPDATE outbox SET lease_expires_at = lease_expires_at"
    refused(touch, FORGE.format(event="started", detail="NULL", which="true"), REWRITE)
    refused(touch, FORGE.format(event="activated", detail=WHOLE, which="true"), REWRITE)
    assert manifest_of(db, claim.resource_id) == planned(claim)


def test_the_fence_of_the_event_is_its_job_s(db: Connection, service: Connection) -> None:
    claim = registered(service)
    start = "UPDATE outbox SET started_fence = fence WHERE id = :id"
    told = (
        """INSERT INTO events (job_id, resource_id, fence, event, actor) VALUES (:id, :resource, 0, 'started', 'w')"""
    )
    refused(
        start, told, """UPDATE resources SET manifest = '{"database": "e"}'""", id=claim.id, resource=claim.resource_id
    )


def test_a_job_that_only_runs_has_not_started(db: Connection, service: Connection) -> None:
    claim = registered(service)
    refused(
        "UPDATE outbox SET lease_expires_at = lease_expires_at",
        FORGE.format(event="started", detail="NULL", which="true"),
        """UPDATE resources SET manifest = '{"database": "e"}'""",
    )
    assert claim.manifest is None


# -- the owner, who may switch triggers off ----------------------------------------------------------------------------


def test_the_doctor_finds_each_manifest_that_the_owner_rewrote(world: World) -> None:
    world.write("UPDATE outbox SET available_at = now() + interval '1 h' WHERE id = :id", id=world.pending)
    born = {str(world.born()) for _ in range(ROWS)}
    assert findings() == {}
    unguarded(world.db, f"{REWRITE} WHERE id = ANY(CAST(:ids AS uuid[]))", ids=list(born))
    found = findings()
    assert set(found) == {"manifest_altered"}
    assert found["manifest_altered"].count == ROWS
    assert {offender.id for offender in found["manifest_altered"].sample} <= born
    notes = {offender.note for offender in found["manifest_altered"].sample}
    assert all(
        re.fullmatch(r"database: not as event \d+ \(activated\) and later ones record it", note) for note in notes
    )


@pytest.mark.parametrize("which", ["deleted", "rolled_back", "running"])
@pytest.mark.parametrize("change", ["manifest || '{\"extra\": 1}'", "manifest - 'database'", "NULL"])
def test_the_doctor_compares_what_is_planned_completed_or_deleted_too(world: World, which: str, change: str) -> None:
    id = getattr(world, which).resource_id
    unguarded(world.db, f"UPDATE resources SET manifest = {change} WHERE id = :id", id=id)
    found = findings()
    assert set(found) == {"manifest_altered"}
    assert [offender.id for offender in found["manifest_altered"].sample] == [str(id)]


FORGED = {
    "a plan": ("started", {"manifest": {"database": "somebody_elses"}}, False),
    "an addition": ("started", {"seen": {"completes": {"database": "somebody_elses"}}}, False),
    "a second end": ("activated", {"manifest": {"database": "somebody_elses"}}, True),
    "its own end again": ("activated", None, True),
    "something else": ("started", {"seen": {"completes": "all"}}, False),
}


@pytest.mark.parametrize("what", FORGED)
def test_a_forged_event_teaches_doctor_and_runbook_no_other_manifest(world: World, what: str) -> None:
    event, detail, named = FORGED[what]
    id = world.active
    before = manifest_of(world.db, id)
    job = world.db.execute(
        text("SELECT id FROM outbox WHERE resource_id = :id AND kind = 'provision'"), {"id": id}
    ).scalar_one()
    world.tell(job, id, event, 1, **(detail or {"manifest": before}))
    found = findings().get("manifest_altered")
    assert (found is not None) is named
    assert found is None or found.error is None
    if found is not None:
        assert [(o.id, o.note) for o in found.sample] == [
            (str(id), "2 events end its one provision (activated): which is forged?")
        ]
    world.db.exec_driver_sql(repair(id))
    assert manifest_of(world.db, id) == before


def repair(resource: uuid.UUID) -> str:
    """The runbook's statement that puts back what the events say."""
    part = (ROOT / "docs/runbook.md").read_text().partition("### `manifest_altered`")[2].partition("\n### ")[0]
    return part.partition("```sql\n")[2].partition("```")[0].replace("$RESOURCE", str(resource))


@pytest.mark.parametrize("which", ["active", "running", "rolled_back"])
def test_the_runbook_s_statement_puts_back_what_the_events_say(world: World, which: str) -> None:
    broken = getattr(world, which)
    id = broken if isinstance(broken, uuid.UUID) else broken.resource_id
    before = manifest_of(world.db, id)
    change = """manifest || '{"database": "e", "extra": 1}'"""
    unguarded(world.db, f"UPDATE resources SET manifest = {change} WHERE id = :id", id=id)
    statement = repair(id)
    if status_of(world.db, id) == "deleted":
        with pytest.raises(sa.exc.IntegrityError, match="a deleted resource is final"):
            world.db.exec_driver_sql(statement)
        world.db.exec_driver_sql("ROLLBACK")
        assert set(findings()) == {"manifest_altered"}
    else:
        world.db.exec_driver_sql(statement)
        assert manifest_of(world.db, id) == before
        assert findings() == {}
