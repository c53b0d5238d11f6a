"""Bulk work through the real command line, HTTP and workers: previewed, canaries first, each thing once."""

import json
import re
import shlex
import signal
import subprocess
import sys
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import Connection, text

from deprovisioner.cli.shell import cell
from outbox import db as database
from outbox import jobs, operations
from outbox.queries import JobFilter
from outbox.states import JobKind, StuckReason
from tests.support import accounts
from tests.support.api import at_once, create, problem, until
from tests.support.factories import a_job, a_resource, claims, events_of, job, status_of, unguarded
from tests.support.processes import System, client, interruptible
from tests.support.servers import Servers
from tests.support.witness import eventually

ALL = {"filter": {"all": True}, "reason": "mended"}


@pytest.fixture
def api(system: System, operator: str) -> Iterator[httpx.Client]:
    with client(system.api(), operator) as made:
        yield made


@pytest.fixture
def shell(system: System) -> Callable[..., subprocess.CompletedProcess[str]]:
    """The real command, as a person runs it."""

    def run(*words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = system.cli(*words)
        assert done.returncode == code, done.stdout + done.stderr
        return done

    return run


def stuck(db: Connection, n: int = 1, backend: str = "pg-main") -> list[int]:
    """Stuck teardowns of what is gone from the server already: a worker that looks completes them."""
    return [a_job(db, state="stuck", backend=backend) for _ in range(n)]


def taken_name(db: Connection, servers: Servers, id: int) -> str:
    """The job's database name, now borne by a stranger's database: who looks refuses it."""
    name = db.execute(
        text(
            "SELECT manifest ->> 'database' FROM resources WHERE id = (SELECT resource_id FROM outbox WHERE id = :id)"
        ),
        {"id": id},
    ).scalar_one()
    servers.pg.query(f'CREATE DATABASE "{name}" OWNER {accounts.NAME}')
    return name


def times_redriven(db: Connection, ids: list[int]) -> Counter[int]:
    return Counter(events_of(db, id).count("redriven") for id in ids)


def until_ended(api: httpx.Client, id: int) -> dict[str, Any]:
    def ended() -> dict[str, Any] | None:
        now = api.get(f"/v1/operations/{id}").json()
        return now if now["state"] != "running" else None

    return eventually(ended, what=f"operation {id} ends", every=0.1)  # type: ignore[return-value]


def test_a_bulk_redrive_is_previewed_begun_with_the_digest_and_told_of(
    api: httpx.Client, db: Connection, system: System
) -> None:
    ids = stuck(db, 25)
    other = stuck(db, backend="elsewhere")
    seen = api.post("/v1/jobs/redrive", json={"filter": {"backend": "pg-main"}, "reason": "mended"})
    assert seen.status_code == 200, "a dry run unless it is said otherwise"
    told = seen.json()
    assert (told["count"], told["backends"]) == (25, {"pg-main": 25})
    assert [j["id"] for j in told["sample"]] == ids[:20]
    assert times_redriven(db, ids) == {0: 25}
    body = {"filter": {"backend": "pg-main"}, "reason": "mended", "dry_run": False, "digest": told["digest"]}
    answer = api.post("/v1/jobs/redrive", json=body | {"rate": 200})
    assert answer.status_code == 202, answer.text
    begun = answer.json()["operation"]
    assert (begun["state"], begun["total"], begun["rate"], begun["filter"]) == (
        "running", 25, 200, {"backend": "pg-main"},
    )  # fmt: skip
    system.worker()
    ended = until_ended(api, begun["id"])
    assert ended["state"] == "succeeded"
    assert (ended["progress"]["done"], ended["progress"]["backends"]["pg-main"]["done"]) == (25, 25)
    assert ended["progress"]["canaries"] == [
        {
            "backend": "pg-main",
            "job_id": ids[0],
            "state": "succeeded",
            "outcome": "redriven",
            "next_attempt_at": None,
        }
    ]
    eventually(lambda: api.get(begun["url"]).json()["progress"]["jobs"] == {"succeeded": 25}, what="all done")
    assert times_redriven(db, ids) == {1: 25}
    assert job(db, other[0]).state == "stuck"
    page = api.get("/v1/operations?limit=1").json()
    assert [(o["id"], o["state"], o["actor"]) for o in page["items"]] == [(begun["id"], "succeeded", begun["actor"])]
    problem(api.post("/v1/jobs/redrive", json=body), 409, "digest_mismatch")


def test_each_wrong_request_for_bulk_work_has_its_code(
    api: httpx.Client, db: Connection, system: System, tenant: str
) -> None:
    stuck(db)
    for wrong in (
        {"reason": "r"},
        {"filter": {}, "reason": "r"},
        {"filter": {"backend": None}, "reason": "r"},
        {"filter": {"all": True, "backend": "pg-main"}, "reason": "r"},
        {"filter": {"state": "running", "backend": "pg-main"}, "reason": "r"},
        {"filter": {"bakcend": "pg-main"}, "reason": "r"},
        {"filter": {"all": True}},
        ALL | {"dry_run": False},
        ALL | {"dry_run": False, "digest": "1-abc"},
        ALL | {"rate": 0},
        ALL | {"rate": 1001},
    ):
        problem(api.post("/v1/jobs/redrive", json=wrong), 422, "invalid_request")
    digest = f"1-{'0' * 64}"
    body = problem(
        api.post("/v1/jobs/redrive", json=ALL | {"dry_run": False, "digest": digest}), 409, "digest_mismatch"
    )
    assert "there are 1, as before, but other jobs (or at other fences), or the digest is mistyped" in body["detail"]
    problem(
        api.post("/v1/jobs/redrive", json={"filter": {"backend": "pg-mian"}, "reason": "r"}), 422, "invalid_request"
    )
    problem(api.post("/v1/tenants/zzz/offboard", json={"reason": "r"}), 404, "not_found")
    problem(api.post("/v1/operations/1/stop", json={"reason": "r"}), 404, "not_found")
    problem(api.post("/v1/operations/1/stop", json={}), 422, "invalid_request")
    for wrong in ({}, {"dry_run": False, "reason": "r", "digest": digest}, {"reason": "r", "count": 1}):
        problem(api.post("/v1/tenants/acme/offboard", json=wrong), 422, "invalid_request")
    real = {"reason": "r", "dry_run": False, "expected_count": 0, "digest": digest}
    problem(api.post("/v1/tenants/acme/offboard", json=real), 409, "digest_mismatch")
    problem(api.get("/v1/operations/1"), 404, "not_found")
    problem(api.get("/v1/operations/redrive"), 422, "invalid_id")
    problem(api.get("/v1/operations?cursor=x"), 422, "invalid_cursor")
    with client(str(api.base_url), tenant) as acme:
        problem(acme.post("/v1/jobs/redrive", json=ALL), 403, "forbidden")
        problem(acme.post("/v1/tenants/acme/offboard", json={"reason": "r"}), 403, "forbidden")
        problem(acme.get("/v1/operations"), 403, "forbidden")
        problem(acme.post("/v1/operations/1/stop", json={"reason": "r"}), 403, "forbidden")
    assert db.execute(text("SELECT count(*) FROM operations")).scalar_one() == 0


def test_the_command_that_the_dry_run_prints_does_it(shell: Any, db: Connection, system: System) -> None:
    ids = stuck(db, 30)
    old = stuck(db)[0]
    db.execute(
        text("UPDATE outbox SET created_at = now() - interval '3 h', last_error = 'no space' WHERE id <> :id"),
        {"id": old},
    )
    words = ("jobs", "redrive-all", "--backend", "pg-main", "--reason-was", "refused", "--older-than", "2h")
    dry = shell(*words, "--error", "NO SPACE", "--reason", "disk was full, it's not now", "--rate", "100").stdout
    assert "30 stuck jobs" in dry
    assert "and 10 more" in dry
    assert times_redriven(db, ids) == {0: 30}
    (command,) = [line.strip() for line in dry.splitlines() if line.startswith("  deprovisioner ")]
    system.worker()
    told = json.loads(shell(*shlex.split(command)[1:], "--json").stdout)
    assert (told["state"], told["total"], told["progress"]["done"]) == ("succeeded", 30, 30)
    assert told["reason"] == "disk was full, it's not now"
    assert told["actor"].startswith("cli:")
    assert times_redriven(db, ids) == {1: 30}
    assert job(db, old).state == "stuck"
    again = shell(*shlex.split(command)[1:], code=1)
    assert "the preview found 30, and now there are 0; preview again" in again.stderr
    listed = json.loads(shell("operations", "list", "--json").stdout)["items"]
    assert [(o["id"], o["kind"], o["state"]) for o in listed] == [(told["id"], "redrive", "succeeded")]
    eventually(lambda: {job(db, id).state for id in ids} == {"succeeded"}, what="all done")
    shown = shell("operations", "show", str(told["id"])).stdout
    assert re.search(r"^state +re-driven$", shown, re.M)
    assert re.search(r"^backend +total +waiting +re-driven ", shown, re.M)
    assert re.search(r"^1 +redrive +re-driven ", shell("operations", "list").stdout, re.M)


def test_a_redrive_of_all_stuck_jobs_needs_the_option_all(shell: Any, db: Connection) -> None:
    stuck(db)
    assert "--all" in shell("jobs", "redrive-all", "--reason", "r", code=2).stderr
    assert "not both" in shell("jobs", "redrive-all", "--all", "--backend", "b", "--reason", "r", code=2).stderr
    assert json.loads(shell("jobs", "redrive-all", "--all", "--reason", "r", "--json").stdout)["count"] == 1
    assert "go together" in shell("tenants", "offboard", "acme", "--reason", "r", "--expect", "1", code=2).stderr


def test_a_canary_that_is_refused_stops_its_backend_and_the_other_goes_on(
    shell: Any, db: Connection, system: System, servers: Servers
) -> None:
    bad = stuck(db, 6)
    unguarded(db, "UPDATE outbox SET backend = 'pg-copy' WHERE id = ANY(:ids)", ids=bad[:3])
    with Path(system.env["DEPROVISIONER_BACKENDS"]).open("a") as file:  # the same server under another name
        file.write('\n[backends.pg-copy]\nkind = "postgres"\ndsn = "env:PG_MAIN_DSN"\n')
    name = taken_name(db, servers, bad[0])
    try:
        digest = json.loads(shell("jobs", "redrive-all", "--all", "--reason", "r", "--json").stdout)["digest"]
        system.worker()
        done = shell("jobs", "redrive-all", "--all", "--reason", "r", "--digest", digest, "--json", code=1)
        assert name in servers.pg.databases(), "it is a stranger's"
    finally:
        servers.pg.query(f'DROP DATABASE "{name}"')
    told = json.loads(done.stdout)
    assert told["state"] == "stopped"
    assert f"backend pg-copy: job {bad[0]}, re-driven first, ended stuck" in told["error"]
    tallies = {name: (t["done"], t["failed"], t["stopped"]) for name, t in told["progress"]["backends"].items()}
    assert tallies == {"pg-copy": (0, 1, 2), "pg-main": (3, 0, 0)}
    assert [times_redriven(db, [id]) for id in bad[:3]] == [{1: 1}, {0: 1}, {0: 1}]
    shell("operations", "show", str(told["id"]), code=1)


def test_a_worker_killed_in_the_middle_of_an_operation_leaves_it_to_the_others(
    api: httpx.Client, db: Connection, system: System
) -> None:
    ids = stuck(db, 80)
    digest = api.post("/v1/jobs/redrive", json=ALL).json()["digest"]
    # The claims of the one that is killed must soon be given to the other.
    workers = [system.worker(DEPROVISIONER_LEASE_SECONDS="3"), system.worker()]
    begun = api.post("/v1/jobs/redrive", json=ALL | {"dry_run": False, "digest": digest, "rate": 20}).json()[
        "operation"
    ]
    progress = lambda: api.get(begun["url"]).json()["progress"]["done"]  # noqa: E731
    eventually(lambda: progress() > 20, what="it is under way")
    workers[0].kill()
    assert workers[0].container.status == "exited"
    assert progress() < 80, "in the middle"
    assert until_ended(api, begun["id"])["progress"]["done"] == 80
    eventually(lambda: api.get(begun["url"]).json()["progress"]["jobs"] == {"succeeded": 80}, what="all done")
    assert times_redriven(db, ids) == {1: 80}
    workers = db.execute(text("SELECT DISTINCT detail ->> 'worker' FROM events WHERE event = 'redriven'")).all()
    assert 1 <= len(workers) <= 2


def test_two_operators_who_begin_the_same_at_once_redrive_each_job_once(
    api: httpx.Client, db: Connection, system: System
) -> None:
    ids = stuck(db, 40)
    digest = api.post("/v1/jobs/redrive", json=ALL).json()["digest"]
    for _ in range(2):
        system.worker()
    body = ALL | {"dry_run": False, "digest": digest, "rate": 100}
    answers = at_once(4, lambda n: api.post("/v1/jobs/redrive", json=body))
    assert {a.status_code for a in answers} <= {202, 409}
    begun = [a.json()["operation"]["id"] for a in answers if a.status_code == 202]
    assert begun
    tallies = [until_ended(api, id)["progress"] for id in begun]
    assert sum(t["done"] for t in tallies) == 40
    assert times_redriven(db, ids) == {1: 40}


def test_interrupting_the_wait_leaves_the_operation_running(db: Connection, system: System, shell: Any) -> None:
    stuck(db, 3)
    digest = json.loads(shell("jobs", "redrive-all", "--all", "--reason", "r", "--json").stdout)["digest"]
    argv = [
        sys.executable,
        "-m",
        "deprovisioner.cli",
        "jobs",
        "redrive-all",
        "--all",
        "--reason",
        "r",
        "--digest",
        digest,
    ]
    with interruptible(argv, env=system.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as waiting:
        assert waiting.stderr is not None
        first = waiting.stderr.readline()
        waiting.send_signal(signal.SIGINT)
        _, said = waiting.communicate(timeout=60)
    id, state = db.execute(text("SELECT id, state FROM operations")).one()
    assert (first.strip(), state) == (f"operation {id} is running; Ctrl-C leaves it running", "running")
    assert f"operation {id} is still running: deprovisioner operations show {id}" in said
    assert waiting.returncode == 0
    system.worker()
    asked = text("SELECT state FROM operations")
    eventually(lambda: db.execute(asked).scalar_one() == "succeeded", what="a worker ends it", every=0.1)


def test_offboarding_takes_all_of_a_tenant_but_what_is_protected(
    api: httpx.Client, acme: httpx.Client, shell: Any, db: Connection, system: System, servers: Servers
) -> None:
    system.worker()
    made = [create(acme, "redis") for _ in range(12)]
    kept = create(acme, "redis", protected=True)
    neighbour = create(api, "redis", tenant="globex")
    made = [until(acme, resource, "active") for resource in made]
    kept, neighbour = until(acme, kept, "active"), until(api, neighbour, "active")
    assert acme.delete(f"/v1/resources/{made[0]['id']}").status_code == 202
    until(acme, made[0], "deleted")
    seen = api.post("/v1/tenants/acme/offboard", json={"reason": "left"}).json()
    assert (seen["count"], seen["protected"], seen["deleting"]) == (12, 1, 0)
    dry = shell("tenants", "offboard", "acme", "--reason", "left").stdout
    assert "resources of acme: 12, of them protected, which stay: 1; being deleted already: " in dry
    assert "nothing was done. To delete 11 and leave 1 protected:" in dry
    (command,) = [line.strip() for line in dry.splitlines() if line.startswith("  deprovisioner ")]
    assert f"--expect 12 --digest {seen['digest']}" in command
    later = create(acme, "redis")
    shell(*shlex.split(command)[1:], code=1)  # what came after the preview is not what was previewed
    until(acme, later, "active")
    acme.delete(f"/v1/resources/{later['id']}")
    until(acme, later, "deleted")
    told = json.loads(shell(*shlex.split(command)[1:], "--json").stdout)
    assert (told["state"], told["progress"]["done"], told["progress"]["protected"]) == ("succeeded", 11, 1)
    for resource in made:
        assert not servers.redis.bears(until(acme, resource, "deleted")["manifest"])
    for resource in (kept, neighbour):
        assert servers.redis.bears(resource["manifest"])
    jobs = api.get(f"/v1/operations/{told['id']}").json()["progress"]["jobs"]
    assert jobs == {"succeeded": 11}


def test_waiting_for_an_operation_with_a_stuck_job_exits_with_failure(shell: Any, db: Connection) -> None:
    """No worker runs here: the steps and the teardown are this test's."""
    resource = a_resource(db, tenant="zed")
    a_resource(db, tenant="zed", protected=True)
    words = ("tenants", "offboard", "zed", "--reason", "left")
    digest = json.loads(shell(*words, "--json").stdout)["digest"]
    begun = json.loads(shell(*words, "--expect", "2", "--digest", digest, "--no-wait", "--json").stdout)
    running = shell("operations", "show", str(begun["id"])).stdout
    assert f"deprovisioner operations stop {begun['id']} --reason" in running
    with database.transaction() as session:
        operations.advance(session, worker="w")
    enqueued = shell("operations", "show", str(begun["id"])).stdout
    assert re.search(r"^state +deletes enqueued$", enqueued, re.M)
    assert "1 of its jobs is not done yet; to see them later:" in enqueued
    assert "1 protected and not deleted" in enqueued
    (claim,) = claims(db)
    assert claim.resource_id == resource
    jobs.stick(db, claim, worker="w", why=StuckReason.REFUSED, error="no")
    ended = shell("operations", "show", str(begun["id"]), code=1).stdout
    assert (
        f"1 of its jobs is stuck ({claim.id}); to see what each needs:\n  deprovisioner jobs show {claim.id}\n" in ended
    )
    (command,) = [line.strip() for line in ended.splitlines() if "jobs list" in line]
    assert command == "deprovisioner jobs list --state stuck --tenant zed"
    assert str(claim.id) in shell(*shlex.split(command)[1:]).stdout
    told = json.loads(shell("operations", "show", str(begun["id"]), "--json", code=1).stdout)
    assert (told["state"], told["progress"]["stuck_jobs"]) == ("succeeded", [claim.id])


def test_a_running_operation_is_stopped_at_a_shell_and_over_http(api: httpx.Client, shell: Any, db: Connection) -> None:
    ids = stuck(db, 4)
    words = ("jobs", "redrive-all", "--backend", "pg-main", "--older-than", "3d", "--reason", "r o")
    db.execute(text("UPDATE outbox SET created_at = now() - interval '4 d'"))
    digest = json.loads(shell(*words, "--json").stdout)["digest"]
    begin = (*words, "--digest", digest, "--no-wait", "--json")
    begun = [json.loads(shell(*begin).stdout)["id"]]
    assert "an operation on the same set is running" in shell(*begin, code=1).stderr, "a double click"
    answer = api.post(f"/v1/operations/{begun[0]}/stop", json={"reason": "wrong filter"})
    assert (answer.status_code, answer.json()["state"]) == (200, "stopped")
    assert re.fullmatch(r"stopped by token:\d+:\S+: wrong filter", answer.json()["error"])
    problem(api.post(f"/v1/operations/{begun[0]}/stop", json={"reason": "again"}), 409, "already_finished")
    begun.append(json.loads(shell(*begin).stdout)["id"])
    said = shell("operations", "stop", str(begun[1]), "--reason", "wrong filter").stdout
    assert re.search(r"^error +stopped by cli:\S+: wrong filter$", said, re.M)
    assert "4 not started" in said
    (command,) = [line.strip() for line in said.splitlines() if "redrive-all" in line]
    assert command == "deprovisioner jobs redrive-all --backend pg-main --older-than 4320m --reason …"
    assert "4 stuck jobs" in shell(*shlex.split(command)[1:]).stdout
    assert "has already ended" in shell("operations", "stop", str(begun[1]), "--reason", "r", code=1).stderr
    with database.transaction() as session:
        assert operations.advance(session, worker="w") == (0, None)
    assert times_redriven(db, ids) == {0: 4}


def test_a_mistyped_filter_is_refused_rather_than_finding_nothing(shell: Any, db: Connection) -> None:
    stuck(db)
    a_resource(db, tenant="zed", protected=True)
    assert shell("tenants", "offboard", "zed", "--reason", "r").stdout.endswith("\nthere is nothing to delete\n")
    for words, code, said in [
        (("jobs", "redrive-all", "--backend", "pg-mian"), 1, "there is no backend 'pg-mian' here"),
        (("jobs", "redrive-all", "--tenant", "acne"), 1, "there is no tenant 'acne' here"),
        (("jobs", "redrive-all", "--all", "--digest", "5-deadbeef"), 2, "'5-deadbeef' is not a digest"),
        (("tenants", "offboard", "zzz"), 1, "there is no tenant 'zzz'"),
        (("tenants", "offboard", "acme", "--expect", "1", "--digest", "1"), 2, "is not a digest"),
    ]:
        assert said in " ".join(shell(*words, "--reason", "r", code=code).stderr.split())


def test_progress_shows_when_a_waiting_canary_is_tried_again(db: Connection, system: System) -> None:
    id = stuck(db)[0]
    with database.snapshot() as session:
        digest = operations.preview_redrive(session, JobFilter(backend="pg-main")).digest
    argv = [sys.executable, "-m", "deprovisioner.cli", "jobs", "redrive-all", "--backend", "pg-main", "--reason", "r"]
    argv += ["--digest", digest]
    with interruptible(argv, env=system.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as waiting:
        assert waiting.stderr is not None
        assert "is running" in waiting.stderr.readline()
        with database.transaction() as session:
            operations.advance(session, worker="w")
        (claim,) = claims(db)
        jobs.start(db, claim, worker="w")
        jobs.retry(db, claim, worker="w", error="no space")
        at = db.execute(
            text("UPDATE outbox SET available_at = now() + interval '9 min' RETURNING available_at")
        ).scalar_one()
        told = f"job {id}, the first of pg-main, waits for its next attempt at {cell(at)}"
        assert any(told in line for line in waiting.stderr)
        waiting.send_signal(signal.SIGINT)
        waiting.communicate(timeout=60)


def test_offboarding_over_http_is_begun_with_count_and_digest(
    api: httpx.Client, db: Connection, system: System
) -> None:
    mine = [a_resource(db) for _ in range(5)]
    neighbour = a_resource(db, tenant="globex")
    seen = api.post("/v1/tenants/acme/offboard", json={"reason": "left"}).json()
    real = {"reason": "left", "dry_run": False, "expected_count": 5, "digest": seen["digest"]}
    problem(api.post("/v1/tenants/acme/offboard", json=real | {"expected_count": 4}), 409, "digest_mismatch")
    answer = api.post("/v1/tenants/acme/offboard", json=real)
    assert answer.status_code == 202, answer.text
    system.worker()
    assert until_ended(api, answer.json()["operation"]["id"])["progress"]["done"] == 5
    assert "active" not in {status_of(db, resource) for resource in mine}
    assert status_of(db, neighbour) == "active"


# -- bulk restore ---------------------------------------------------------------------------------------------------


def deleted(db: Connection, n: int, tenant: str = "acme") -> list[uuid.UUID]:
    """Resources with an accepted DELETE and an hour of grace."""
    made = [a_resource(db, tenant=tenant) for _ in range(n)]
    jobs.enqueue_all(db, [jobs.Delete(resource, "op", grace=3600.0) for resource in made])
    return made


def test_a_bulk_restore_over_http_is_previewed_and_begun_with_the_digest(
    api: httpx.Client, db: Connection, tenant: str
) -> None:
    mine = deleted(db, 25)
    deleted(db, 1, tenant="globex")
    body = {"filter": {"tenant": "acme", "deleted_since": "2020-01-01T00:00:00+01:00"}, "reason": "wrong"}
    seen = api.post("/v1/resources/restore", json=body)
    assert seen.status_code == 200, "a dry run unless it is said otherwise"
    told = seen.json()
    assert (told["count"], told["backends"], told["unheld"]) == (25, {"pg-main": 25}, 25)
    assert (told["started"], told["destroyed"], told["never_active"], len(told["sample"])) == (0, 0, 0, 20)
    real = body | {"dry_run": False, "digest": told["digest"]}
    answer = api.post("/v1/resources/restore", json=real)
    assert answer.status_code == 202, answer.text
    begun = answer.json()["operation"]
    assert (begun["kind"], begun["state"], begun["total"], begun["rate"]) == ("restore", "running", 25, None)
    assert begun["filter"] == {"tenant": "acme", "deleted_since": "2019-12-31T23:00:00+00:00"}
    problem(api.post("/v1/resources/restore", json=real), 409, "already_running")
    with database.transaction() as session:
        assert operations.advance(session, worker="w")[0] == 1
    progress = api.get(begun["url"]).json()["progress"]
    assert (progress["done"], progress["waiting"], progress["jobs"], progress["holds"]) == (1, 24, {"pending": 1}, [])
    assert sorted(status_of(db, resource) for resource in mine) == ["deleting"] * 24 + ["restoring"]
    assert api.post(f"{begun['url']}/stop", json={"reason": "seen enough"}).json()["state"] == "stopped"
    problem(api.post("/v1/resources/restore", json=real), 409, "digest_mismatch")


def test_each_wrong_request_for_a_bulk_restore_has_its_code(api: httpx.Client, db: Connection, tenant: str) -> None:
    deleted(db, 1)
    acme = {"tenant": "acme", "deleted_since": "2020-01-01T00:00:00Z"}
    for filter in (
        {},
        {"tenant": "acme"},
        {"deleted_since": "2020-01-01T00:00:00Z"},
        acme | {"deleted_since": "2020-01-01T00:00:00"},
        acme | {"deleted_since": 3600},
        acme | {"deleted_until": "2020-01-01T00:00:00Z"},
        acme | {"tenant": "acne"},
        acme | {"backend": "pg-mian"},
        acme | {"all": True},
        {"operation": 7},
        {"operation": 0},
    ):
        problem(api.post("/v1/resources/restore", json={"filter": filter, "reason": "r"}), 422, "invalid_request")
    for wrong in ({"filter": acme}, {"reason": "r"}, {"filter": acme, "reason": "r", "dry_run": False}):
        problem(api.post("/v1/resources/restore", json=wrong), 422, "invalid_request")
    with client(str(api.base_url), tenant) as mine:
        problem(mine.post("/v1/resources/restore", json={"filter": acme, "reason": "r"}), 403, "forbidden")


def test_the_command_that_the_dry_run_of_a_restore_prints_does_it(shell: Any, db: Connection) -> None:
    """No worker runs here: the steps and the restores are this test's."""
    mine = deleted(db, 2)
    words = ("resources", "restore-all", "--tenant", "acme", "--deleted-since", "2020-01-01T00:00+01:00")
    dry = shell(*words, "--actor", "op", "--reason", "it's wrong").stdout
    assert "deletes that can be taken back: 2; not any more: 0 being destroyed, 0 destroyed, 0 never active" in dry
    assert "no hold covers 2 of them" in dry
    (command,) = [line.strip() for line in dry.splitlines() if line.startswith("  deprovisioner ")]
    shell("hold", "set", "--tenant", "acme", "--reason", "wrong deletes")
    assert "no hold covers" not in shell(*words, "--reason", "r").stdout
    begun = json.loads(shell(*shlex.split(command)[1:], "--no-wait", "--json").stdout)
    assert (begun["kind"], begun["total"], begun["reason"]) == ("restore", 2, "it's wrong")
    with database.transaction() as session:
        operations.advance(session, worker="w")
    shown = shell("operations", "show", str(begun["id"])).stdout
    assert re.search(r"^backend +total +waiting +restoring ", shown, re.M)
    assert "restoring first" in shown
    claim = next(claim for claim in claims(db) if claim.kind == JobKind.RESTORE)
    jobs.stick(db, claim, worker="w", why=StuckReason.REFUSED, error="a login failed")
    with database.transaction() as session:
        session.execute(text("UPDATE operations SET next_at = now()"))
    with database.transaction() as session:
        operations.advance(session, worker="w")
    ended = shell("operations", "show", str(begun["id"]), code=1).stdout
    assert f"backend pg-main: job {claim.id}, restored first, ended stuck: a login failed" in ended
    (again,) = [line.strip() for line in ended.splitlines() if "restore-all" in line]
    since = "--deleted-since 2019-12-31T23:00:00+00:00"
    assert again == f"deprovisioner resources restore-all --actor op --tenant acme {since} --reason …"
    assert "deletes that can be taken back: 1;" in shell(*shlex.split(again)[1:]).stdout
    assert sorted(status_of(db, resource) for resource in mine) == ["deleting", "restoring"]


def test_a_restore_at_a_shell_needs_bounds_and_a_time_with_its_offset(shell: Any, db: Connection) -> None:
    deleted(db, 1)
    for words, code, said in [
        (("--deleted-since", "2020-01-01T00:00Z"), 2, "say whose deletes are meant"),
        (("--tenant", "acme"), 2, "say since when"),
        (("--tenant", "acme", "--deleted-since", "2020-01-01T00:00"), 2, "write the time with its offset"),
        (("--tenant", "acme", "--deleted-since", "noon"), 2, "'noon' is not a time"),
        (("--tenant", "acne", "--deleted-since", "2020-01-01T00:00Z"), 1, "there is no tenant 'acne' here"),
        (("--operation", "7"), 1, "operation 7 is not an offboarding, or does not exist"),
    ]:
        assert said in " ".join(shell("resources", "restore-all", *words, "--reason", "r", code=code).stderr.split())


def test_an_offboarding_that_waits_for_a_hold_says_so(shell: Any, db: Connection) -> None:
    a_resource(db)
    digest = json.loads(shell("tenants", "offboard", "acme", "--reason", "left", "--json").stdout)["digest"]
    real = ("tenants", "offboard", "acme", "--reason", "left", "--expect", "1", "--digest", digest)
    begun = json.loads(shell(*real, "--no-wait", "--json").stdout)
    shell("hold", "set", "--tenant", "acme", "--reason", "wrong tenant?")
    with database.transaction() as session:
        assert operations.advance(session, worker="w")[0] == 0
    shown = shell("operations", "show", str(begun["id"])).stdout
    assert "it is running: waits for the release of hold 1 on tenant acme: wrong tenant?; to stop it:" in shown
    told = json.loads(shell("operations", "show", str(begun["id"]), "--json").stdout)
    assert [hold["id"] for hold in told["progress"]["holds"]] == [1]
