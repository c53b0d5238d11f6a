"""`deprovisioner recover` as a person runs it, on real servers: what it prints, its exit, and what a kill leaves."""

import json
import re
import subprocess
import sys
import uuid
from collections.abc import Mapping
from typing import Any

import psycopg2
import pytest
from sqlalchemy import Connection, text

from deprovisioner import grants
from outbox import db as database
from outbox import jobs, rewinds, settings
from tests.support.customers import Customer, a_customer
from tests.support.factories import a_job, a_resource, claims, status_of
from tests.support.processes import shell
from tests.support.recoveries import rewind, still_held
from tests.support.witness import eventually
from worker import backends
from worker.backends.postgres import Postgres
from worker.intake import Intake
from worker.run import Run

# Other tests leave objects on the shared servers.
OTHERS = "unknown_objects=leave"


def survey(env: Mapping[str, str], *words: str) -> dict[str, Any]:
    answer = shell(env, "recover", "--json", *words)
    assert answer.returncode == 0, answer.stderr
    return json.loads(answer.stdout)


def run(env: Mapping[str, str], found: Mapping[str, Any], *said: str) -> "subprocess.CompletedProcess[str]":
    """The real run on what was found; `unknown_objects` are left unless something else is said."""
    said = said if any(word.startswith("unknown_objects") for word in said) else (*said, OTHERS)
    decisions = [word for one in said if "=" in one for word in ("--decide", one)]
    rest = [word for word in said if "=" not in word]
    return shell(env, "recover", "--digest", found["digest"], "--reason", "restored", *decisions, *rest)


@pytest.fixture
def pg(settled: dict[str, str]) -> Postgres:
    return backends.build(settings.backends()["pg-main"], protected=frozenset())  # type: ignore[return-value]


def row_of(db: Connection, customer: Customer, **words: Any) -> uuid.UUID:
    """An active resource whose object is the customer's."""
    kind = words.pop("kind", "postgres")
    id = a_resource(db, **words)
    db.execute(text("ALTER TABLE resources DISABLE TRIGGER USER"))
    told = {"manifest": json.dumps(customer.manifest), "generation": customer.manifest["generation"], "kind": kind}
    sets = "manifest = CAST(:manifest AS jsonb), generation = :generation, kind = :kind"
    db.execute(text(f"UPDATE resources SET {sets} WHERE id = :id"), told | {"id": id})
    db.execute(text("ALTER TABLE resources ENABLE TRIGGER USER"))
    return id


def share(served: Intake) -> None:
    """Another installation uses the backend too: other tests' objects are none of ours."""
    served.remember(rewinds.Memory(uuid.uuid4(), 1, 1, "ab" * 32))


def noted(db: Connection, backend: Any, resource: uuid.UUID, told: dict[str, Any]) -> Intake:
    """Let a backend remember that this resource was made, which the database does not know."""
    here = rewinds.here(db, [])
    at = db.execute(text("SELECT now()")).scalar_one()
    note = rewinds.Note(10**6, "ab" * 8, at, "registered", resource, told)
    served = Intake(backend)
    share(served)
    assert served.remember(rewinds.Memory(here.installation, here.epoch, 10**6, "ab" * 32, False, (note,))) is None
    return served


def test_a_dry_run_shows_each_class_what_each_decision_does_and_the_command_and_changes_nothing(
    env: dict[str, str], db: Connection, pg: Postgres
) -> None:
    row_of(db, a_customer(pg))
    gone, due = a_resource(db), a_resource(db, expires="now()")
    rewind(db)
    answer = shell(env, "recover")
    assert answer.returncode == 0
    assert "reading pg-main" in answer.stderr
    shown = answer.stdout
    assert re.search(r"^active_gone +2$", shown, re.MULTILINE)
    assert str(gone) in shown
    assert "  --decide expiries_due=cancel   `expires_at` is cleared: they stay" in shown
    command = re.search(r"\n  deprovisioner (recover --digest \S+ .*--decide expiries_due=… .*--reason …)\n", shown)
    assert command, shown
    assert (status_of(db, gone), status_of(db, due), still_held(db)) == ("active", "active", True)
    assert db.execute(text("SELECT count(*) FROM events WHERE event = 'decided'")).scalar_one() == 0


def test_what_is_gone_is_closed_by_an_inspection_of_the_server_and_what_is_there_stays(
    env: dict[str, str], db: Connection, pg: Postgres
) -> None:
    there, dropped = a_customer(pg), a_customer(pg)
    kept, gone = row_of(db, there), row_of(db, dropped)
    pg.teardown(dropped.manifest, 1)
    rewind(db)
    found = survey(env)
    assert [item["resource_id"] for item in found["samples"]["active_gone"]] == [str(gone)]
    answer = run(env, found, "active_gone=confirm")
    assert answer.returncode == 0, answer.stderr
    assert (status_of(db, kept), status_of(db, gone), still_held(db)) == ("active", "deleted", False)
    seen = db.execute(text("SELECT detail -> 'seen' FROM events WHERE event = 'resolved'")).scalar_one()
    assert seen["system_identifier"] == there.manifest["system_identifier"]
    assert seen["databases"] == []


def test_a_teardown_that_was_cancelled_is_restored_and_its_customer_logs_in_again(
    env: dict[str, str], db: Connection, pg: Postgres
) -> None:
    customer = a_customer(pg)
    resource = row_of(db, customer)
    pg.quarantine(customer.manifest)
    jobs.enqueue(db, resource, actor="a", grace=3600.0)
    rewind(db)
    answer = run(env, survey(env), "teardowns=cancel")
    assert answer.returncode == 0, answer.stderr
    assert status_of(db, resource) == "restoring"
    pg.release(customer.manifest)
    with customer.inside("SELECT 1"):
        pass


def test_an_object_that_was_made_since_is_adopted_again_by_its_mark_and_its_customer_keeps_it(
    env: dict[str, str], db: Connection, pg: Postgres
) -> None:
    customer = a_customer(pg)
    resource = uuid.UUID(customer.manifest["database"].removeprefix("db_"))
    served = noted(db, pg, resource, {"tenant": "acme", "kind": "postgres", "backend": "pg-main", "name": "made since"})
    here = rewinds.here(db, [])
    found = survey(env)
    assert "pg-main remembers event 1000000, which is missing here" in found["verdict"]
    assert [item["resource_id"] for item in found["samples"]["unknown_objects"]] == [str(resource)], (
        "others' are not ours"
    )
    answer = run(env, found, "unknown_objects=confirm")
    assert answer.returncode == 0, answer.stderr
    (claim,) = claims(db)
    Run(claim, served, worker="w")()
    assert (status_of(db, resource), claim.manifest["generation"]) == ("active", customer.manifest["generation"])
    with customer.inside("SELECT 1"):
        pass
    kept = served.recall(here.installation)
    assert kept is not None
    assert (kept.epoch, kept.still) == (2, False)


def test_a_backend_that_was_restored_is_compared_alone_and_what_is_there_again_can_be_deleted_again(
    env: dict[str, str], db: Connection, pg: Postgres
) -> None:
    customer, kept = a_customer(pg), a_customer(pg)
    old = row_of(db, customer, status="deleted")
    row_of(db, kept)
    places = ["pg-main", "redis-main"]
    rewinds.settle(db, rewinds.here(db, places), places)
    rewinds.went_back(db, "pg-main", "it remembers nothing")
    found = survey(env, "--backend", "pg-main")
    assert (found["counts"], found["backend"]) == ({"active_gone": 0, "deleted_there": 1}, "pg-main")
    said = ("--decide", "deleted_there=confirm", "--backend", "pg-main", "--reason", "its disk was restored")
    answer = shell(env, "recover", "--digest", found["digest"], *said)
    assert answer.returncode == 0, answer.stderr
    (claim,) = claims(db)
    Run(claim, Intake(pg), worker="w")()
    assert (status_of(db, claim.resource_id), status_of(db, old)) == ("active", "deleted")
    jobs.enqueue(db, claim.resource_id, actor="a")
    (teardown,) = claims(db)
    Run(teardown, Intake(pg), worker="w")()
    assert status_of(db, claim.resource_id) == "deleted"
    with pytest.raises(psycopg2.OperationalError), customer.inside():
        pass
    with kept.inside("SELECT 1"):
        pass


def test_a_redis_namespace_that_is_there_is_not_gone_and_one_that_no_row_knows_is_adopted_again(
    env: dict[str, str], db: Connection, pg: Postgres
) -> None:
    row_of(db, a_customer(pg))
    redis = backends.build(settings.backends()["redis-main"], protected=frozenset())
    id = uuid.uuid4()
    plans = [redis.plan(each, uuid.uuid4()) for each in (uuid.uuid4(), id)]
    there, made = [Customer(redis.provision(plan.manifest, plan.credentials), "") for plan in plans]
    row_of(db, there, backend="redis-main", kind="redis")
    share(Intake(pg))
    noted(db, redis, id, {"tenant": "acme", "kind": "redis", "backend": "redis-main", "name": "made since"})
    found = survey(env)
    assert found["counts"]["active_gone"] == 0
    answer = run(env, found, "unknown_objects=confirm")
    assert answer.returncode == 0, answer.stderr
    row = db.execute(text("SELECT id, kind, generation, manifest FROM resources WHERE id = :id"), {"id": id}).one()
    assert (row.kind, row.manifest["prefix"]) == ("redis", made.manifest["prefix"])
    assert str(row.generation) == made.manifest["generation"]
    (claim,) = claims(db, backend="redis-main")
    Run(claim, Intake(redis), worker="w")()
    assert status_of(db, row.id) == "active"


def test_a_kill_between_batches_leaves_a_recovery_that_the_same_command_ends(
    env: dict[str, str], db: Connection, pg: Postgres
) -> None:
    row_of(db, a_customer(pg), backend="pg-main")
    ids = [a_resource(db, status="provisioning", expires="now()") for _ in range(350)]
    rewind(db)
    found = survey(env)
    said = ("--decide", "expiries_due=leave", "--decide", OTHERS)
    words = ("recover", "--digest", found["digest"], "--reason", "restored", *said)
    argv = [sys.executable, "-m", "deprovisioner.cli", *words]
    with subprocess.Popen(argv, env={**_path(), **env}, stderr=subprocess.PIPE, text=True) as killed:
        assert killed.stderr
        line = next(line for line in killed.stderr if line.startswith("expiries_due: "))
        killed.kill()
    assert killed.returncode == -9
    done = db.execute(text("SELECT count(*) FROM resources WHERE protected")).scalar_one()
    assert 0 < done < len(ids), line
    assert still_held(db)
    assert claims(db) == []
    other = shell(env, *(word.replace("leave", "cancel", 1) if "expiries" in word else word for word in words))
    assert other.returncode == 1
    assert "was begun by" in other.stderr
    eventually(lambda: shell(env, *words).returncode == 0, 60, "the killed run's sessions have ended")
    assert db.execute(text("SELECT count(*) FROM resources WHERE protected")).scalar_one() == len(ids)
    events = (
        "SELECT count(*), count(DISTINCT resource_id) FROM events WHERE event = 'decided' AND detail ->> 'class' = :c"
    )
    assert tuple(db.execute(text(events), {"c": "expiries_due"}).one()) == (len(ids), len(ids))
    assert not still_held(db)


def _path() -> dict[str, str]:
    import os

    return {name: value for name, value in os.environ.items() if not name.startswith("DEPROVISIONER_")}


def test_usage_errors_end_with_2_and_refusals_with_1(env: dict[str, str], db: Connection, pg: Postgres) -> None:
    row_of(db, a_customer(pg))
    a_job(db)
    rewind(db)
    found = survey(env)
    missing = run(env, found)
    assert missing.returncode == 2
    assert "no decision (--decide CLASS=DECISION): teardowns" in missing.stderr
    assert run(env, found, "teardowns=perhaps").returncode == 2
    assert shell(env, "recover", "--decide", "teardowns=leave").returncode == 2
    assert shell(env, "recover", "--digest", found["digest"]).returncode == 2
    assert shell(env, "recover", "--revoke-tokens-before", "yesterday").returncode == 2
    other = run(env, found | {"digest": "3-" + "0" * 64}, "teardowns=leave")
    assert other.returncode == 1
    assert "not the digest of the last survey" in other.stderr
    assert shell(env, "recover", "--backend", "pg-mian").returncode == 1
    assert still_held(db)


def test_a_backend_that_cannot_be_reached_is_named_without_its_secret_and_left_out_when_a_person_says_so(
    env: dict[str, str], db: Connection, pg: Postgres
) -> None:
    a_resource(db, backend="redis-main")
    row_of(db, a_customer(pg))
    rewind(db)
    away = env | {"REDIS_MAIN_URL": "redis://service:hunter2@127.0.0.1:1/0"}
    answer = shell(away, "recover")
    assert "ERROR: backend redis-main could not be read" in answer.stdout
    assert "--without redis-main" in answer.stdout
    assert "hunter2" not in answer.stdout + answer.stderr
    found = survey(away)
    assert found["counts"]["active_gone"] == 0
    refused = run(away, found)
    assert refused.returncode == 2
    assert "--without redis-main" in refused.stderr
    assert still_held(db)
    done = run(away, found, "--without", "redis-main")
    assert done.returncode == 0, done.stderr
    assert "redis-main has not taken the new epoch" in done.stdout
    assert not still_held(db)


def test_an_announced_restore_is_told_to_the_servers_and_ended_by_a_recovery(
    env: dict[str, str], db: Connection, pg: Postgres
) -> None:
    row_of(db, a_customer(pg))
    assert shell(env, "recover", "--announce").returncode == 2
    answer = shell(env, "recover", "--announce", "--reason", "moving")
    assert answer.returncode == 0, answer.stderr
    installation = rewinds.here(db, []).installation
    kept = Intake(pg).recall(installation)
    assert kept is not None
    assert (kept.still, still_held(db)) == (True, True)
    assert run(env, survey(env)).returncode == 0
    kept = Intake(pg).recall(installation)
    assert kept is not None
    assert (kept.still, kept.epoch, still_held(db)) == (False, 2, False)


def test_a_database_role_without_the_right_gets_a_clear_error(env: dict[str, str], db: Connection) -> None:
    rewind(db)
    role = f"reader_{uuid.uuid4().hex[:8]}"
    with psycopg2.connect(env["DEPROVISIONER_DATABASE_URL"]) as owner:
        owner.cursor().execute(
            f"CREATE ROLE {role} LOGIN PASSWORD 's3cret'; GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}"
        )
    url = re.sub(r"//[^@/]*@", f"//{role}:s3cret@", env["DEPROVISIONER_DATABASE_URL"])
    answer = shell(env | {"DEPROVISIONER_DATABASE_URL": url}, "recover")
    assert answer.returncode == 1
    assert "permission denied" in answer.stderr
    assert "the service's role has no right to do this" in answer.stderr


def test_the_services_role_has_the_rights_that_a_recovery_needs(
    env: dict[str, str], db: Connection, pg: Postgres
) -> None:
    row_of(db, a_customer(pg))
    a_job(db), a_resource(db, status="provisioning", expires="now()")
    rewind(db)
    role = f"service_{uuid.uuid4().hex[:8]}"
    with database.transaction() as session:
        grants.make_role(session, role, "s3cret")
        grants.grant(session, role)
    url = re.sub(r"//[^@/]*@", f"//{role}:s3cret@", env["DEPROVISIONER_DATABASE_URL"])
    service = env | {"DEPROVISIONER_DATABASE_URL": url}
    answer = run(service, survey(service), "teardowns=cancel", "expiries_due=cancel")
    assert answer.returncode == 0, answer.stderr
    assert not still_held(db)
