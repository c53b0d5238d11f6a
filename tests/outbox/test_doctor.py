"""The doctor is silent over honest work, and names each thing that is broken by its code."""

import json
import re
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psycopg2
import pytest
from sqlalchemy import Connection, text
from sqlalchemy.exc import IntegrityError

import migrations
from outbox import breakers, doctor, holds, jobs, tables
from outbox import db as database
from outbox.doctor import CHECKS, examine
from outbox.doctor.checks.schema import TRIGGERS
from outbox.doctor.checks.server import SETTINGS
from outbox.errors import Conflict
from outbox.events import ACTS, MOVES_NOTHING, STATE_AFTER, Event
from outbox.states import HoldScope, StuckReason
from tests.support.breaks import BREAKS, World, backend_away, findings
from tests.support.factories import a_job, a_resource
from tests.support.processes import shell
from tests.support.statements import statements

ROOT = Path(__file__).parents[2]
CODES = [check.code for check in CHECKS]
SEVERITY = {check.code: check.severity for check in CHECKS}


@pytest.fixture
def world(db: Connection) -> World:
    made = World(db)
    assert findings() == {}, "honest work leaves nothing to find"
    return made


def test_every_doctor_check_has_a_test_that_breaks_it() -> None:
    assert list(BREAKS) == CODES
    assert len(set(CODES)) == len(CODES)


@pytest.mark.parametrize("code", CODES)
def test_the_doctor_names_what_is_broken_and_nothing_else(world: World, code: str) -> None:
    named, also = BREAKS[code](world)
    found = findings()
    assert set(found) == {code} | also
    finding = found[code]
    assert finding.status == SEVERITY[code]
    assert finding.error is None
    assert finding.sample[0].id == str(named)
    assert finding.count == len(finding.sample)
    assert finding.sample[0].note


@pytest.mark.parametrize(
    ("setting", "value"), [("synchronous_commit", "off"), ("search_path", "public"), ("timezone", "Japan")]
)
def test_a_setting_that_a_pooler_dropped_is_wrong(db: Connection, setting: str, value: str) -> None:
    db.execute(text(f"SET {setting} = '{value}'"))
    assert [row.id for row in db.execute(text(SETTINGS))] == [setting]


def test_a_server_that_says_its_data_may_be_lost_is_not_unsafe(db: Connection) -> None:
    assert db.execute(text("SHOW fsync")).scalar_one() == "off"
    assert findings() == {}


@pytest.mark.parametrize("told", ["{}", '{"forced": true, "proposed_by": "token:1:a", "approved_by": "token:1:a"}'])
def test_a_resolved_job_is_evidence_only_when_it_was_seen_gone_or_forced_by_two(world: World, told: str) -> None:
    for claim in (world.resolved, world.forced):
        detail = json.loads(told) | {"state": "succeeded"}
        world.write(
            "UPDATE events SET detail = CAST(:detail AS jsonb) WHERE job_id = :id AND event = 'resolved'",
            id=claim.id,
            detail=json.dumps(detail),
        )
    found = findings()
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
def test_the_doctor_finds_rewritten_events(world: World, tampered: str, codes: set[str]) -> None:
    jobs.note_late(world.db, world.deleted, worker="w1", news={})
    world.checkpoint()
    jobs.note_late(world.db, world.swept, worker="w2", news={})
    world.checkpoint()
    assert set(findings()) == {"late"}
    words = {"id": world.deleted.resource_id} if ":id" in tampered else {}
    assert world.write(tampered, **words) > 0
    assert set(findings()) - {"late"} == codes


ACTS_CHAIN = "WHERE resource_id = (SELECT id FROM installation)"


@pytest.mark.parametrize(
    ("tampered", "code"),
    [
        (f"UPDATE events SET actor = 'somebody' {ACTS_CHAIN} AND event = 'hold_engaged'", "chain_broken"),
        (f"UPDATE events SET job_id = 1 {ACTS_CHAIN} AND event = 'token_created'", "chain_broken"),
        (f'UPDATE events SET detail = detail || \'{{"name": "bob"}}\' {ACTS_CHAIN} AND seq = 4', "chain_broken"),
        (f"DELETE FROM events {ACTS_CHAIN} AND event = 'hold_released'", "chain_broken"),
        (f"DELETE FROM events {ACTS_CHAIN}", "checkpoint_broken"),
        (f"DELETE FROM events {ACTS_CHAIN} AND event = 'token_revoked'", "checkpoint_broken"),
        ("DELETE FROM events WHERE event = 'changed' AND seq = 5", "chain_broken"),
    ],
)
def test_the_doctor_finds_rewritten_acts(world: World, tampered: str, code: str) -> None:
    world.checkpoint()
    assert world.write(tampered) > 0
    found = findings()
    assert set(found) == {code}
    assert (ACTS_CHAIN in tampered) == ("audit acts" in str(found[code].sample[0].note))


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
        return set(findings())

    assert made_anew() == set(), "nobody can tell before there is a checkpoint: keep them hourly"
    world.checkpoint()
    assert made_anew() == {"checkpoint_broken"}
    assert findings()["checkpoint_broken"].sample[0].id == str(id)


def test_a_finding_counts_all_rows_and_shows_the_oldest(world: World) -> None:
    made = [a_resource(world.db, status="deleting") for _ in range(doctor.SAMPLE + 5)]
    for age, id in enumerate(made):
        world.write(f"UPDATE resources SET deleted_at = now() - interval '{age} min' WHERE id = :id", id=id)
    finding = findings()["deleting_without_job"]
    assert finding.count == len(made)
    assert [offender.id for offender in finding.sample] == [str(id) for id in reversed(made)][: doctor.SAMPLE]


def test_the_doctor_reports_each_dropped_guard(world: World) -> None:
    world.write("DROP TRIGGER events_append_only ON events")
    world.write("DROP INDEX outbox_one_provision")
    world.write("ALTER TABLE resources DROP CONSTRAINT resources_active_has_manifest")
    world.write("ALTER TABLE outbox DROP CONSTRAINT outbox_resource_id_fkey")
    assert {offender.id for offender in findings()["guard_missing"].sample} == {
        "events_append_only",
        "outbox_one_provision",
        "resources_active_has_manifest",
        "outbox_resource_id_fkey",
    }


def test_an_index_of_that_name_that_is_not_unique_guards_nothing(world: World) -> None:
    world.write("DROP INDEX outbox_one_deprovision")
    world.write("CREATE INDEX outbox_one_deprovision ON outbox (resource_id)")
    assert set(findings()) == {"guard_missing"}


def test_the_doctor_knows_every_trigger_of_the_schema(db: Connection) -> None:
    rows = db.execute(
        text("SELECT tgname, CAST(CAST(tgrelid AS regclass) AS text) FROM pg_trigger WHERE NOT tgisinternal")
    )
    assert {name: table for name, table in rows} == TRIGGERS  # noqa: C416 - rows are no tuples


def test_every_event_is_written_and_no_other() -> None:
    """The enum is the one list: a statement that wrote another word would be evidence that nothing reads."""
    words = {"enqueued", "swept", "observed", "proposed", "cancelled", "resolved", "purge_ordered", "snapshot_removed"}
    sql = "".join(statement.sql for statement in statements() if "INSERT INTO events" in statement.sql)
    assert set(re.findall(r"fence, '(\w+)', ", sql)) == words
    code = "".join(path.read_text() for part in ("outbox/jobs", "worker/run") for path in (ROOT / part).glob("*.py"))
    named = {Event[name] for name in re.findall(r"Event\.([A-Z_]+)", code)}
    assert named | words | {*ACTS} == set(Event)
    assert {*STATE_AFTER} | {*MOVES_NOTHING} == set(Event)


def test_the_doctor_runs_read_only(world: World) -> None:
    def everything() -> list[object]:
        return [
            world.db.execute(text(f"SELECT xmin, ctid, * FROM {table} ORDER BY ctid")).all()
            for table in tables.metadata.tables
        ]

    before = everything()
    findings()
    assert everything() == before
    with pytest.raises(Exception, match="read-only transaction"), database.snapshot() as session:
        session.execute(text("UPDATE outbox SET last_error = 'x'"))


def test_all_checks_see_one_moment(world: World) -> None:
    with database.snapshot() as session:
        session.execute(text("SELECT count(*) FROM outbox"))
        a_resource(world.db, status="deleting")
        assert examine(session, head=migrations.head()) == []
    assert set(findings()) == {"deleting_without_job"}


def test_a_check_that_cannot_run_is_not_reported_as_ok(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = doctor.Check("slow", "job", "SELECT 1 AS id, now() AS since, '' AS note FROM pg_sleep(30)", "m", "d")
    monkeypatch.setattr(doctor, "CHECKS", (slow, *CHECKS))
    monkeypatch.setattr(doctor, "STATEMENT_TIMEOUT_SECONDS", 1)
    backend_away(world)
    found = findings()
    assert found["slow"].status == "unchecked"
    assert "statement timeout" in str(found["slow"].error)
    assert set(found) == {"slow", "breaker_open"}, "the others went on"


def test_a_half_open_breaker_is_a_warning_only_while_a_job_waits_that_could_be_its_probe(world: World) -> None:
    """A kill between a probe's work and its record leaves such a row; the next job's work removes it."""
    breakers.trip(world.db, "quiet", reason="connection refused")
    world.write("UPDATE breakers SET retry_at = now()")
    assert findings() == {}
    a_job(world.db, backend="quiet")
    assert "breaker_open" in findings()
    world.write(
        "UPDATE outbox SET held_by = :hold WHERE backend = 'quiet'",
        hold=holds.engage(world.db, HoldScope.BACKEND, "quiet", actor="op", reason="night").id,
    )
    assert "breaker_open" not in findings()


# -- the command ----------------------------------------------------------------------------------------------------


def _cli(env: dict[str, str], *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    return shell(env | more, "doctor", *words)


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
    assert re.search(
        rf"^warning    stuck: .*\n +job {stuck} .*\n +what to do: `deprovisioner jobs show {stuck}`", human.stdout, re.M
    )
    assert "ok         two_jobs\n" in human.stdout
    assert human.stdout.endswith(f"\n{len(CODES)} checks: 1 broken, 1 warning\n")


def test_a_warning_alone_is_no_failure(world: World, env: dict[str, str]) -> None:
    backend_away(world)
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
    assert findings() == {}
    (claim,) = jobs.claim(world.db, {"pg-main": 9}, slots=9, worker="w1")
    assert claim.resource_id == resource
    jobs.complete(world.db, claim, worker="w1", seen={"database": None})
    assert findings() == {}
