"""A backend's server moves: what is compared, what is rewritten and by which event, and what waits meanwhile."""

import uuid
from typing import Any

import psycopg2
import pytest
import sqlalchemy as sa
from sqlalchemy import Connection, text

from outbox import actions, holds, jobs, rewinds
from outbox import db as database
from outbox.actions import Move
from outbox.errors import BadRequest, Conflict, DigestMismatch, Held
from outbox.rows import Claim, Json
from outbox.states import HoldCause, HoldScope, JobKind
from tests.support.breaks import findings
from tests.support.factories import a_job, a_resource, claims, unguarded
from tests.support.moved import GONE, Servers, dry_run, rebound
from tests.support.recoveries import EDGE, ME

RENAMED = Move("pg-eu", "postgres", before="pg-main")


def manifest_of(db: Connection, id: uuid.UUID) -> Json:
    return db.execute(text("SELECT manifest FROM resources WHERE id = :id"), {"id": id}).scalar_one()


def resource_of(db: Connection, job: int) -> uuid.UUID:
    return db.execute(text("SELECT resource_id FROM outbox WHERE id = :id"), {"id": job}).scalar_one()


def events(db: Connection) -> list[Any]:
    asked = "SELECT resource_id, actor, reason, detail FROM events WHERE event = 'rebound' ORDER BY id"
    return db.execute(text(asked)).all()


def in_force(db: Connection) -> list[tuple[str, str]]:
    asked = "SELECT cause, subject FROM holds WHERE released_at IS NULL ORDER BY id"
    return [tuple(row) for row in db.execute(text(asked))]


def moved(db: Connection, n: int = 1, **words: Any) -> tuple[Servers, list[uuid.UUID]]:
    """Resources whose objects stand on a new server, with other OIDs."""
    servers = Servers()
    ids = [a_resource(db, **words) for _ in range(n)]
    for number, id in enumerate(ids):
        servers.take(manifest_of(db, id), oid=100 + number)
    return servers, ids


def test_each_manifest_is_rewritten_whole_with_an_event_that_says_what_was_what_is_who_and_why(db: Connection) -> None:
    servers, ids = moved(db, 3)
    before = {id: manifest_of(db, id) for id in ids}
    seen = dry_run(servers)
    assert ({id: manifest_of(db, id) for id in ids}, events(db)) == (before, [])
    assert seen.counts["rebind"] == 3
    rebound(servers, digest=seen.digest)
    told = {event.resource_id: event for event in events(db)}
    for id in ids:
        assert manifest_of(db, id) == servers.has[before[id]["generation"]]
        event = told.pop(id)
        assert (event.actor, event.reason) == ("cli:op", "moved")
        assert event.detail == {
            "digest": seen.digest,
            "server": "new/1",
            "old_server": GONE,
            "was": {"backend": "pg-main", "manifest": before[id]},
            "is": {"backend": "pg-main", "manifest": manifest_of(db, id)},
        }
    assert told == {}
    assert in_force(db) == []
    assert "manifest_altered" not in findings()


def test_what_differs_is_missing_or_deleted_is_left_as_it_is(db: Connection) -> None:
    servers, (whole, part) = moved(db, 2)
    gone, deleted = a_resource(db), a_resource(db, status="deleted")
    generation = manifest_of(db, part)["generation"]
    servers.differs[generation] = "no role bears the mark"
    servers.take(manifest_of(db, deleted))
    before = {id: manifest_of(db, id) for id in (part, gone, deleted)}
    seen = dry_run(servers)
    assert {item.id: str(item.verdict) for item in seen.items} == {whole: "rebind", part: "differs", gone: "missing"}
    assert next(item.why for item in seen.items if item.id == part) == "no role bears the mark"
    rebound(servers, digest=seen.digest)
    assert {id: manifest_of(db, id) for id in before} == before
    assert [event.resource_id for event in events(db)] == [whole]


def test_what_its_provision_has_not_made_yet_is_made_on_the_new_server(db: Connection) -> None:
    servers = Servers()
    planned = a_resource(db, status="provisioning")
    assert str(dry_run(servers).items[0].verdict) == "unmade"
    rebound(servers)
    assert manifest_of(db, planned)["system_identifier"] == 2


def test_a_set_that_is_not_the_one_of_the_dry_run_is_refused_and_nothing_is_rewritten(db: Connection) -> None:
    servers, (id,) = moved(db)
    digest = dry_run(servers).digest
    before = manifest_of(db, id)
    servers.take(before, oid=7)
    with pytest.raises(DigestMismatch):
        rebound(servers, digest=digest)
    assert (manifest_of(db, id), events(db), in_force(db)) == (before, [], [])


def test_another_server_that_shows_the_same_objects_has_another_digest(db: Connection) -> None:
    servers, _ = moved(db)
    digest = dry_run(servers).digest
    servers.identity = "copy/1"
    with pytest.raises(DigestMismatch):
        rebound(servers, digest=digest)


def test_without_a_word_on_the_old_server_nothing_is_rewritten(db: Connection) -> None:
    servers, _ = moved(db)
    with pytest.raises(BadRequest, match="--old-server"):
        rebound(servers, old_server=None)
    assert (events(db), in_force(db)) == ([], [])


def test_a_server_that_cannot_be_read_is_an_error_and_no_finding(db: Connection) -> None:
    servers, _ = moved(db)
    servers.away = "connection refused"
    with pytest.raises(Conflict, match="connection refused"):
        dry_run(servers)


def test_no_job_of_the_backend_starts_meanwhile_neither_a_birth_nor_a_restore_and_all_start_after_it(
    db: Connection,
) -> None:
    servers, _ = moved(db)
    kinds = ("provision", "deprovision", "restore")
    waiting = {a_job(db, kind=kind): kind for kind in kinds}
    tried: list[int] = []

    def begin(claim: Claim) -> None:
        if claim.kind is JobKind.PROVISION:
            jobs.start_provision(db, claim, worker="w", manifest=claim.manifest, credentials=b"sealed")
        else:
            jobs.start(db, claim, worker="w")

    def try_them() -> None:
        for claim in claims(db, 9) if not tried else ():
            with pytest.raises(Held):
                begin(claim)
            jobs.defer(db, claim, worker="w", error="held", delay=0)
            tried.append(claim.id)

    servers.before = try_them
    digest = dry_run(Servers(has=dict(servers.has), absent=None)).digest
    servers.absent = None
    rebound(servers, digest=digest)
    assert set(tried) == set(waiting)
    servers.before = lambda: None
    for claim in claims(db, 9):
        begin(claim)
        tried.remove(claim.id)
    assert tried == []


def test_a_rebind_waits_for_a_job_that_has_started_and_gives_up_with_nothing_rewritten(
    db: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("outbox.actions.backends.QUIET_SECONDS", 0)
    servers, (id,) = moved(db)
    before = manifest_of(db, id)
    job = a_job(db, state="running")
    with pytest.raises(Conflict, match=f"job {job} still runs"):
        rebound(servers)
    assert (manifest_of(db, id), in_force(db)) == (before, [])


def test_a_resource_whose_job_runs_is_not_rewritten_by_the_statement_itself(db: Connection) -> None:
    job = a_job(db, state="running")
    id = resource_of(db, job)
    before = manifest_of(db, id)
    holds.engage_cause(db, HoldCause.REBIND, "pg-main", actor="x", reason="r")
    words = {"backend": "pg-main", "actor": "x", "reason": "r", "detail": {}}
    assert jobs.rebind(db, {id: (before, before | {"oid": 9})}, **words) == set()
    unguarded(db, "UPDATE outbox SET lease_expires_at = now() - interval '1 s' WHERE id = :id", id=job)
    assert jobs.rebind(db, {id: (before, before | {"oid": 9})}, **words) == {id}


def test_without_the_hold_of_a_rebind_neither_the_statement_nor_any_other_changes_a_manifest(db: Connection) -> None:
    id = a_resource(db)
    before = manifest_of(db, id)
    words = {"backend": "pg-main", "actor": "x", "reason": "r", "detail": {}}
    holds.engage(db, HoldScope.BACKEND, "pg-main", actor="x", reason="another cause")
    assert jobs.rebind(db, {id: (before, before | {"oid": 9})}, **words) == set()
    forged = """
        INSERT INTO events (resource_id, fence, event, actor, detail)
        SELECT id, 0, 'rebound', 'x', jsonb_build_object('was', jsonb_build_object('manifest', manifest),
               'is', jsonb_build_object('manifest', manifest || '{"oid": 9}')) FROM resources"""

    def rewrite() -> None:
        with database.transaction() as session:
            session.execute(text(forged))
            session.execute(text("""UPDATE resources SET manifest = manifest || '{"oid": 9}'"""))

    with pytest.raises(sa.exc.IntegrityError, match="its manifest changes only"):
        rewrite()
    assert manifest_of(db, id) == before


def test_a_manifest_that_changed_since_it_was_compared_is_left_and_the_hold_stays_for_the_next_run(
    db: Connection,
) -> None:
    servers, _ = moved(db)
    digest = dry_run(servers).digest
    late: list[int] = []

    def change() -> None:
        late.append(unguarded(db, """UPDATE resources SET manifest = manifest || '{"role": "other"}'"""))

    servers.before = change
    with pytest.raises(Conflict, match="run the command again"):
        rebound(servers, digest=digest)
    assert (events(db), in_force(db)) == ([], [("rebind", "pg-main")])


def test_a_rebind_that_was_killed_after_a_batch_goes_on_with_the_same_digest_and_its_hold_is_named(
    db: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("outbox.moves.PAGE", 2)
    servers, ids = moved(db, 5)
    digest = dry_run(servers).digest
    done = 0

    def killed(words: str) -> None:
        nonlocal done
        if words.startswith("rewrote"):
            done += 1
            if done == 2:
                raise KeyboardInterrupt

    words = {"digest": digest, "reason": "moved", "old_server": GONE}
    with pytest.raises(KeyboardInterrupt):
        actions.rebind(EDGE, ME, servers, killed, Move("pg-main", "postgres"), **words)
    assert (len(events(db)), in_force(db)) == (4, [("rebind", "pg-main")])
    unguarded(db, "UPDATE holds SET created_at = now() - interval '1 h'")
    assert "rebind_unfinished" in findings()
    assert dry_run(servers).digest == digest
    rebound(servers, digest=digest)
    assert (len(events(db)), in_force(db)) == (5, [])
    assert [manifest_of(db, id) for id in ids] == [servers.has[manifest_of(db, id)["generation"]] for id in ids]


def test_two_rebinds_at_once_are_one(db: Connection, settled: dict[str, str]) -> None:
    servers, _ = moved(db)
    other = psycopg2.connect(settled["DEPROVISIONER_DATABASE_URL"])
    other.cursor().execute("SELECT pg_advisory_lock(4702119)")
    with pytest.raises(Conflict, match="another"):
        rebound(servers)
    other.close()


# -- the backend's name ------------------------------------------------------------------------------------------------


def test_a_renamed_backend_takes_its_resources_and_their_unfinished_jobs_along(db: Connection) -> None:
    pending, stuck = a_job(db), a_job(db, state="stuck")
    done = a_job(db, state="succeeded")
    servers = Servers()
    for job in (pending, stuck):
        own = manifest_of(db, resource_of(db, job))
        servers.has[own["generation"]] = own
    rebound(servers, RENAMED, old_server=None)
    home = dict(db.execute(text("SELECT id, backend FROM outbox")).all())
    assert home == {pending: "pg-eu", stuck: "pg-eu", done: "pg-main"}
    assert {claim.id for claim in claims(db, 9, backend="pg-eu")} == {pending}
    assert in_force(db) == []


def test_a_hold_on_the_old_name_is_not_left_behind(db: Connection) -> None:
    a_resource(db)
    holds.engage(db, HoldScope.BACKEND, "pg-main", actor="x", reason="an incident")
    with pytest.raises(Conflict, match="set the same hold"):
        dry_run(Servers(), RENAMED)


def test_a_backend_of_another_kind_or_a_name_that_no_resource_has_is_refused(db: Connection) -> None:
    a_resource(db)
    with pytest.raises(BadRequest, match="kind"):
        dry_run(Servers(), Move("pg-main", "redis"))
    with pytest.raises(BadRequest, match="check the name"):
        dry_run(Servers(), Move("pg-main", "postgres", before="pg-mian"))


# -- its memory --------------------------------------------------------------------------------------------------------


def remembered_on(db: Connection, server: str) -> rewinds.Here:
    """Workers wrote where the database is to this server of the backend."""
    here = rewinds.here(db, ["pg-main"])
    rewinds.settle(db, here, ["pg-main"])
    a_resource(db)
    rewinds.wrote(db, "pg-main", here.memory(), server=server)
    return here


def memory_row(db: Connection) -> Any:
    return db.execute(text("SELECT epoch, event, server, behind_since FROM memories WHERE place = 'pg-main'")).one()


def test_the_new_server_is_told_where_the_database_is_and_is_the_backend_s_from_then_on(db: Connection) -> None:
    remembered_on(db, "old/1")
    servers, _ = moved(db)
    seen = dry_run(servers)
    assert (seen.server_was, seen.remembers, seen.behind) == ("old/1", False, False)
    rebound(servers)
    assert servers.memory is not None
    row = memory_row(db)
    assert (row.event, row.server) == (servers.memory.event, "new/1")


def test_a_server_that_remembers_less_went_back_and_a_rebind_does_not_hide_that(db: Connection) -> None:
    here = remembered_on(db, "old/1")
    rewinds.wrote(db, "pg-main", rewinds.Memory(here.installation, here.epoch, 9, "ab" * 32), server="old/1")
    servers, _ = moved(db)
    servers.memory = rewinds.Memory(here.installation, here.epoch, 4, "ab" * 32)
    assert dry_run(servers).behind
    rebound(servers)
    assert servers.memory.event == 4
    assert (memory_row(db).event, memory_row(db).server) == (9, "old/1")
