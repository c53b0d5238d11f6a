"""Evidence: chains that grow one event at a time, checkpoints over their heads, and a role that cannot rewrite them."""

import datetime as dt
import sys
import threading
import uuid
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
import structlog
from sqlalchemy import Connection, text
from structlog.testing import capture_logs

import migrations
from deprovisioner import grants
from outbox import audit, jobs, tables
from outbox import db as database
from outbox.audit import LINKS, SEAL, Checkpoint
from outbox.doctor import examine
from outbox.errors import BadRequest, Conflict, NotFound
from tests.support.factories import a_claim, a_resource, claims, unguarded
from tests.support.witness import eventually, waits_for_a_lock

TOLD = "INSERT INTO events (job_id, resource_id, fence, event, actor) VALUES (%s, %s, 0, 'late', 'w')"


def chain_of(db: Connection, resource: uuid.UUID) -> list[tuple[int, bool]]:
    links = f"SELECT seq, holds FROM ({LINKS.format(which='WHERE resource_id = :id')}) AS link ORDER BY seq"
    return [tuple(row) for row in db.execute(text(links), {"id": resource})]


def checkpoint(every: dt.timedelta = dt.timedelta(0)) -> Checkpoint | None:
    with database.transaction() as session:
        return audit.checkpoint(session, actor="me", every=every)


def heads(db: Connection, checkpoint: Checkpoint | None) -> dict[uuid.UUID, int]:
    asked = "SELECT resource_id, seq FROM audit_heads WHERE checkpoint_id = :id"
    return {row.resource_id: row.seq for row in db.execute(text(asked), {"id": checkpoint.id if checkpoint else 0})}


def waiting(db: Connection) -> int:
    asked = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    return db.execute(text(asked)).scalar_one()


# -- chains ----------------------------------------------------------------------------------------------------------


def test_each_event_follows_the_one_before_it_of_its_resource(db: Connection) -> None:
    one, other = a_claim(db), a_claim(db)
    jobs.start(db, one, worker="w", seen={"oid": 7, "name": 'a "b" \\ é', "ratio": 0.1})
    jobs.complete(db, one, worker="w", seen={})
    assert chain_of(db, one.resource_id) == [(1, True), (2, True), (3, True)]
    assert chain_of(db, other.resource_id) == [(1, True)]


def test_two_events_of_one_statement_follow_each_other(db: Connection) -> None:
    claim = a_claim(db, kind="provision")
    jobs.rollback(db, claim, worker="w", error="e")
    assert chain_of(db, claim.resource_id) == [(1, True), (2, True), (3, True)]


def test_two_transactions_that_write_to_one_chain_take_turns(db: Connection, connect: Any) -> None:
    claim = a_claim(db)
    other = connect()
    other.cursor().execute(TOLD, (claim.id, str(claim.resource_id)))

    def start() -> None:
        with database.statement() as session:
            jobs.start(session, claim, worker="w")

    thread = threading.Thread(target=start)
    thread.start()
    eventually(lambda: waits_for_a_lock(db), what="the start waits for the other's event")
    other.commit()
    thread.join()
    assert chain_of(db, claim.resource_id) == [(1, True), (2, True), (3, True)]


def test_no_setting_of_a_session_changes_a_hash(db: Connection, connect: Any) -> None:
    resource = a_resource(db)
    odd = connect()
    odd.cursor().execute("SET timezone = 'Asia/Kathmandu'; SET datestyle = 'German'; SET bytea_output = 'escape'")
    for _ in range(2):
        odd.cursor().execute(TOLD, (1, str(resource)))
    odd.commit()
    assert chain_of(db, resource) == [(1, True), (2, True)]


def test_an_insert_cannot_choose_an_event_s_place_or_hash(db: Connection) -> None:
    resource = a_resource(db)
    db.execute(
        text("""
        INSERT INTO events (job_id, resource_id, fence, event, actor, seq, hash)
        VALUES (1, :id, 0, 'late', 'w', 7, 'x')"""),
        {"id": resource},
    )
    assert chain_of(db, resource) == [(1, True)]


def test_a_place_in_a_chain_is_taken_once_whoever_writes(db: Connection) -> None:
    a_claim(db)
    db.execute(text("ALTER TABLE events DISABLE TRIGGER events_chained"))
    with pytest.raises(sa.exc.IntegrityError, match="events_chain"):
        db.execute(
            text("""
            INSERT INTO events (job_id, resource_id, fence, event, actor, seq, hash)
            SELECT job_id, resource_id, fence, event, actor, seq, hash FROM events""")
        )


@pytest.mark.parametrize("move", ["claim", "sweep"])
def test_statements_that_cross_each_other_s_chains_do_not_lock_each_other_out(
    db: Connection, connect: Any, move: str
) -> None:
    """Both write to the same two chains, the one's rows in the other order; a third makes both wait for the first."""
    first, second = sorted(a_resource(db, status="deleting") for _ in range(2))
    # Told apart by backend for the claim, by lease for the sweep; found in the order of their ids.
    for minutes, (resource, kind, backend) in enumerate(
        [
            (first, "deprovision", "a"),
            (second, "deprovision", "a"),
            (second, "provision", "b"),
            (first, "provision", "b"),
        ]
    ):
        unguarded(
            db,
            """
            INSERT INTO outbox (kind, resource_id, backend, max_attempts, request_id, state, fence, attempts,
                                claimed_by, lease_expires_at)
            VALUES (:kind, :resource, :backend, 9, gen_random_uuid(), :state, 1, 1,
                    CASE :state WHEN 'running' THEN 'w' END,
                    CASE :state WHEN 'running' THEN now() - :left * interval '1 minute' END)""",
            kind=kind,
            resource=resource,
            backend=backend,
            state="running" if move == "sweep" else "pending",
            left=9 - minutes,
        )
    acts: dict[str, Callable[[Connection, str], Any]] = {
        "claim": lambda session, backend: claims(session, 2, backend),
        "sweep": lambda session, _: range(jobs.sweep(session, actor="w", batch=2)),
    }
    gate = connect()
    gate.cursor().execute(TOLD, (1, str(first)))
    moved: dict[str, Any] = {}

    def run(backend: str) -> None:
        try:
            with database.statement() as session:
                moved[backend] = len(acts[move](session, backend))
        except sa.exc.DBAPIError as error:
            moved[backend] = str(error.orig)

    threads = []
    for number, backend in enumerate("ab"):
        threads.append(threading.Thread(target=run, args=(backend,)))
        threads[-1].start()
        eventually(lambda n=number: waiting(db) == n + 1, what=f"{backend} waits")  # type: ignore[misc]
    gate.commit()
    for thread in threads:
        thread.join()
    assert moved == {"a": 2, "b": 2}
    assert chain_of(db, first) == [(1, True), (2, True), (3, True)]
    assert chain_of(db, second) == [(1, True), (2, True)]


def test_a_history_from_before_the_chains_is_chained_by_the_migration(db: Connection) -> None:
    migrations.downgrade("0005")
    one, other = a_resource(db), a_resource(db)
    for resource in (one, other, one, one):
        told = "INSERT INTO events (job_id, resource_id, fence, event, actor) VALUES (1, :id, 0, 'late', 'w')"
        db.execute(text(told), {"id": resource})
    migrations.upgrade()
    assert chain_of(db, one) == [(1, True), (2, True), (3, True)]
    assert chain_of(db, other) == [(1, True)]
    with pytest.raises(sa.exc.IntegrityError, match="append-only"):
        db.execute(text("DELETE FROM events"))


# -- checkpoints -----------------------------------------------------------------------------------------------------


def test_a_checkpoint_keeps_the_heads_that_are_new(db: Connection) -> None:
    one, other = a_claim(db), a_claim(db)
    first = checkpoint()
    assert heads(db, first) == {one.resource_id: 1, other.resource_id: 1}
    assert checkpoint() is None, "nothing is new"
    jobs.start(db, one, worker="w")
    second = checkpoint()
    assert heads(db, second) == {one.resource_id: 2}
    previous, hash = db.execute(text("SELECT previous, hash FROM audit_checkpoints ORDER BY id DESC LIMIT 1")).one()
    assert (bytes(previous).hex(), bytes(hash).hex()) == (first and first.hash, second and second.hash)
    with database.snapshot() as session:
        assert {finding.check.code for finding in examine(session, head=migrations.head())} & {
            "chain_broken",
            "checkpoint_broken",
        } == set()


def test_one_checkpoint_is_made_an_hour(db: Connection) -> None:
    claim = a_claim(db)
    assert checkpoint(audit.CHECKPOINT_EVERY)
    jobs.start(db, claim, worker="w")
    assert checkpoint(audit.CHECKPOINT_EVERY) is None
    db.execute(text("ALTER TABLE audit_checkpoints DISABLE TRIGGER ALL"))
    db.execute(text("UPDATE audit_checkpoints SET at = at - interval '61 min'"))
    assert checkpoint(audit.CHECKPOINT_EVERY)


def test_a_checkpoint_dated_in_the_future_is_reported_and_stops_no_other(db: Connection) -> None:
    claim = a_claim(db)
    checkpoint()
    db.execute(
        text(f"""
        WITH made AS (
            SELECT now() + interval '1 year' AS at, events_to AS events_from, events_to, 0 AS heads, hash AS previous,
                   CAST('' AS bytea) AS body FROM audit_checkpoints
        )
        INSERT INTO audit_checkpoints (at, events_from, events_to, heads, previous, hash)
        SELECT at, events_from, events_to, heads, previous, {SEAL.format(row="made")} FROM made""")
    )
    with database.snapshot() as session:
        told = {finding.check.code: finding.sample for finding in examine(session, head=migrations.head())}
    assert told["checkpoint_overdue"][0].id == "2"
    assert "checkpoint_broken" not in told
    jobs.start(db, claim, worker="w")
    assert checkpoint(audit.CHECKPOINT_EVERY)
    with database.snapshot() as session:
        assert "checkpoint_overdue" not in {finding.check.code for finding in examine(session, head=migrations.head())}


def test_two_checkpoints_at_once_make_one(db: Connection) -> None:
    a_claim(db)
    made: list[Checkpoint | None] = []
    thread = threading.Thread(target=lambda: made.append(checkpoint()))
    with database.transaction() as session:
        assert audit.checkpoint(session, actor="me", every=dt.timedelta(0))
        thread.start()
        eventually(lambda: made or waits_for_a_lock(db), what="the second waits for the first, or is done")
    thread.join()
    assert made == [None]
    assert db.execute(text("SELECT count(*) FROM audit_checkpoints")).scalar_one() == 1
    assert db.execute(text("SELECT count(*) FROM audit_heads")).scalar_one() == 1


def test_an_event_that_commits_during_a_checkpoint_is_in_the_next_one(db: Connection, connect: Any) -> None:
    slow = a_resource(db)
    late = connect()
    late.cursor().execute(TOLD, (1, str(slow)))
    quick = a_claim(db)
    assert set(heads(db, checkpoint())) == {quick.resource_id}
    late.commit()
    assert set(heads(db, checkpoint())) == {slow}


def test_a_checkpoint_marks_only_events_older_than_five_minutes_as_read(db: Connection) -> None:
    resource = a_resource(db)
    for age in (6, 6, 4):  # minutes; SETTLES is 5
        db.execute(
            text(f"""
            INSERT INTO events (job_id, resource_id, fence, event, actor, at)
            VALUES (1, :id, 0, 'late', 'w', now() - interval '{age} min')"""),
            {"id": resource},
        )
    checkpoint()
    seen = "SELECT events_from, events_to, (SELECT array_agg(id ORDER BY id) FROM events) FROM audit_checkpoints"
    assert tuple(db.execute(text(seen)).one()) == (0, 2, [1, 2, 3])


@pytest.mark.parametrize("verb", ["UPDATE {} SET hash = ''", "DELETE FROM {}", "TRUNCATE {}"])
@pytest.mark.parametrize("table", ["audit_checkpoints", "audit_heads"])
def test_the_audit_is_append_only_whoever_writes(db: Connection, table: str, verb: str) -> None:
    a_claim(db)
    checkpoint()
    with pytest.raises(sa.exc.IntegrityError, match="append-only"):
        db.execute(text(verb.format(table)))


# -- proofs ----------------------------------------------------------------------------------------------------------


def torn_down(db: Connection) -> uuid.UUID:
    resource = a_resource(db)
    jobs.enqueue(db, resource, actor="token:acme", reason="ticket 811")
    (claim,) = claims(db)
    jobs.start(db, claim, worker="w1", seen={"oid": 7})
    jobs.retry(db, claim, worker="w1", error="still there")
    db.execute(text("UPDATE outbox SET available_at = now()"))
    (claim,) = claims(db, worker="w2")
    jobs.start(db, claim, worker="w2", seen={"oid": 8})
    jobs.complete(db, claim, worker="w2", seen={"database": None}, did={"dropped": 1})
    return resource


def test_a_proof_tells_who_asked_what_was_seen_and_done_and_how_it_was_verified(db: Connection) -> None:
    resource = torn_down(db)
    (proof,) = audit.proofs(dt.timedelta(minutes=1))
    assert proof.resource.id == resource
    assert proof.asked
    assert (proof.asked.actor, proof.asked.reason) == ("token:acme", "ticket 811")
    assert proof.asked.detail == {"request_id": str(proof.request_id)}
    told = [(a.fence, a.worker, a.saw, a.did, a.seen_gone, a.outcome, a.error) for a in proof.attempts]
    assert told == [
        (1, "w1", {"oid": 7}, None, None, "retried", "still there"),
        (2, "w2", {"oid": 8}, {"dropped": 1}, {"database": None}, "completed", None),
    ]
    assert proof.ended
    assert proof.chain.seq == len(proof.events) == 7
    assert proof.chain.verified
    assert proof.checkpoint is None
    made = checkpoint()
    jobs.note_late(db, a_claim(db), worker="w", news={})
    checkpoint()
    (covered,) = audit.proofs(dt.timedelta(minutes=1), resource)
    assert covered.checkpoint == made, "the first that covers it"


@pytest.mark.parametrize(
    "tampered",
    [
        "UPDATE events SET reason = 'x' WHERE event = 'enqueued'",
        "DELETE FROM events WHERE event = 'started'",
        "UPDATE audit_heads SET hash = sha256('x')",
        "DELETE FROM events",
        "DELETE FROM outbox",
    ],
)
def test_a_proof_whose_chain_was_tampered_with_says_so(db: Connection, tampered: str) -> None:
    torn_down(db)
    checkpoint()
    db.execute(text("SET session_replication_role = replica"))
    db.execute(text(tampered))
    db.execute(text("RESET session_replication_role"))
    (proof,) = audit.proofs(dt.timedelta(minutes=1))
    assert not proof.chain.verified


def test_proofs_come_page_by_page_each_once(db: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("outbox.audit.proof.PAGE", 2)
    # In one transaction, so that some have the same `purged_at`.
    made = [a_resource(db, status="deleted") for _ in range(3)]
    with database.transaction() as session:
        made += [a_resource(session, status="deleted") for _ in range(4)]
    assert sorted(proof.resource.id for proof in audit.proofs(dt.timedelta(minutes=1))) == sorted(made)
    assert list(audit.proofs(dt.datetime.now(dt.UTC) + dt.timedelta(hours=1))) == []


def test_a_resource_that_is_not_deleted_has_no_proof(db: Connection) -> None:
    with pytest.raises(Conflict, match="active"):
        next(audit.proofs(dt.timedelta(0), a_resource(db)))
    with pytest.raises(NotFound):
        next(audit.proofs(dt.timedelta(0), uuid.uuid4()))


# -- the service's role ----------------------------------------------------------------------------------------------


def test_every_table_has_its_rights() -> None:
    assert set(grants.RIGHTS) == {*tables.metadata.tables, "alembic_version"}
    evidence = {name: rights for name, rights in grants.RIGHTS.items() if name.startswith(("events", "audit_"))}
    assert set(evidence.values()) == {"SELECT, INSERT"}


def test_a_role_that_no_grant_can_hold_is_refused(db: Connection) -> None:
    with pytest.raises(NotFound, match="nobody_at_all"):
        grants.grant(db, "nobody_at_all")
    with pytest.raises(BadRequest, match="rewrite events"):
        grants.grant(db, "postgres")
    name = f"member_{uuid.uuid4().hex}"
    db.execute(text(f"CREATE ROLE {name} IN ROLE postgres"))
    try:
        with pytest.raises(BadRequest, match="rewrite events"):
            grants.grant(db, name)
    finally:
        db.execute(text(f"DROP ROLE {name}"))


# By default the schema belongs to pg_database_owner, so the owner of the database owns it too.
OWNERSHIP = {
    "a table": ["ALTER TABLE audit_heads OWNER TO {role}"],
    "schema": ["ALTER SCHEMA public OWNER TO {role}"],
    "database": ["ALTER SCHEMA public OWNER TO postgres", "ALTER DATABASE {database} OWNER TO {role}"],
    "database and by that its schema": ["ALTER DATABASE {database} OWNER TO {role}"],
}


@pytest.mark.parametrize("what", OWNERSHIP)
def test_a_role_that_owns_the_events_schema_or_is_a_member_of_its_owner_is_refused(db: Connection, what: str) -> None:
    owner, member = f"owner_{uuid.uuid4().hex}", f"member_{uuid.uuid4().hex}"
    database_name = db.execute(text("SELECT current_database()")).scalar_one()
    db.execute(text(f"CREATE ROLE {owner}"))
    db.execute(text(f"CREATE ROLE {member} IN ROLE {owner}"))
    try:
        for made in OWNERSHIP[what]:
            db.execute(text(made.format(role=owner, database=database_name)))
        for role in (owner, member):
            with pytest.raises(BadRequest, match="rewrite events"):
                grants.grant(db, role)
    finally:
        db.execute(text(f"REASSIGN OWNED BY {owner} TO postgres; DROP OWNED BY {owner}, {member}"))
        db.execute(text(f"DROP ROLE {member}, {owner}"))


def test_granting_again_revokes_rights_beyond_the_list(db: Connection) -> None:
    name = f"Role {uuid.uuid4().hex}"
    grants.make_role(db, name, "it's secret")
    grants.make_role(db, name, "another")
    try:
        db.execute(text(f'GRANT ALL ON events TO "{name}"'))
        grants.grant(db, name)
        rights = text("""
            SELECT privilege_type FROM information_schema.role_table_grants
             WHERE grantee = :name AND table_name = 'events'""")
        assert set(db.execute(rights, {"name": name}).scalars()) == {"SELECT", "INSERT"}
    finally:
        db.execute(text(f'DROP OWNED BY "{name}"; DROP ROLE "{name}"'))


def test_the_log_line_of_a_checkpoint_has_its_hash(db: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    a_claim(db)
    with capture_logs() as said:
        module = sys.modules["outbox.audit.checkpoint"]  # the package has a function of that name
        monkeypatch.setattr(module, "log", structlog.get_logger())  # the product's keeps the stream of its first use
        made = checkpoint()
    assert made
    assert [(line["event"], line["hash"]) for line in said] == [("audit_checkpoint", made.hash)]
