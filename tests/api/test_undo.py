"""Delete, restore and purge over HTTP on real servers: who is cut off, who may log in again, and what is refused."""

import datetime as dt
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg2
import pytest
import redis
from sqlalchemy import Connection, text

from outbox import tokens
from tests.support.api import KINDS, create, problem, until
from tests.support.factories import a_job, a_resource
from tests.support.processes import System, client
from tests.support.servers import Servers
from tests.support.witness import eventually

NO_SUCH = "00000000-0000-4000-8000-000000000000"
GOOD = {"kind": "postgres", "backend": "pg-main", "name": "orders"}
MISTAKE = {"reason": "a mistake"}


@pytest.fixture
def env(env: dict[str, str], tmp_path: Path) -> dict[str, str]:
    """Each backend keeps what is deleted for an hour, and can store snapshots."""
    keep(env, 'grace = "1h"', 'min_grace = "10m"', f'snapshot_store = "file:{tmp_path}"')
    return env


def keep(env: dict[str, str], *lines: str) -> None:
    """Add these lines to the table of each backend."""
    file = Path(env["DEPROVISIONER_BACKENDS"])
    added = "\n".join(lines)
    file.write_text(file.read_text().replace("concurrency = 8", f"concurrency = 8\n{added}"))


@pytest.fixture
def boss(acme: httpx.Client, operator: str) -> Iterator[httpx.Client]:
    with client(str(acme.base_url), operator) as made:
        yield made


def log_in(login: dict[str, Any]) -> Any:
    """A session of the customer, who has written there before."""
    if "dsn" in login:
        session = psycopg2.connect(login["dsn"])
        session.autocommit = True
        return session
    return redis.Redis.from_url(login["url"], single_connection_client=True, retry=None)


def written(session: Any, login: dict[str, Any]) -> Any:
    if "dsn" not in login:
        return session.get(f"{login['prefix']}a")
    with session.cursor() as cursor:
        cursor.execute("SELECT n FROM t")
        return cursor.fetchone()


def write(session: Any, login: dict[str, Any]) -> None:
    if "dsn" not in login:
        session.set(f"{login['prefix']}a", 1)
    else:
        session.cursor().execute("CREATE TABLE t AS SELECT 1 AS n")


LOST = (psycopg2.Error, redis.RedisError)


def row(db: Connection, resource: Any) -> Any:
    return db.execute(text("SELECT * FROM resources WHERE id = :id"), {"id": str(resource)}).one()


@pytest.mark.parametrize("kind", KINDS)
def test_a_deleted_resource_is_cut_off_at_once_and_restored_with_the_same_login(
    acme: httpx.Client, system: System, servers: Servers, kind: str
) -> None:
    system.worker()
    resource = until(acme, create(acme, kind), "active")
    path = f"/v1/resources/{resource['id']}"
    login = acme.get(f"{path}/credentials").json()
    session = log_in(login)
    write(session, login)
    deleted = acme.delete(path, params={"reason": "ticket 811", "on_behalf_of": "jo"})
    assert deleted.status_code == 202, deleted.text
    assert deleted.json()["resource"]["purge_at"] > deleted.json()["resource"]["deleted_at"]
    job = deleted.json()["job"]["url"]
    story = eventually(lambda: (told := acme.get(job).json())["step"] == "wait" and told, what="it is in quarantine")
    with pytest.raises(LOST):
        written(session, login)
    with pytest.raises(LOST):
        written(log_in(login), login)
    assert (story["state"], story["purge_at"]) == ("pending", deleted.json()["resource"]["purge_at"])
    assert (story["request"]["reason"], story["request"]["on_behalf_of"]) == ("ticket 811", "jo")
    assert [(a["step"], a["outcome"]) for a in story["attempt_history"]] == [("quarantine", "quarantined")]
    told = system.cli("jobs", "show", str(story["id"]))
    assert "is in quarantine, and is not destroyed before 20" in told.stdout
    assert f"deprovisioner resources restore {resource['id']}" in told.stdout
    problem(acme.get(f"{path}/credentials"), 409, "not_active")

    restored = acme.post(f"{path}/restore", json=MISTAKE)
    assert (restored.status_code, restored.json()["job"]["kind"]) == (202, "restore")
    now = until(acme, resource, "active")
    assert (now["purge_at"], now["deleted_at"]) == (None, None)
    assert acme.get(f"{path}/credentials").json() == login
    assert written(log_in(login), login), "what was there"
    witness = servers.pg if kind == "postgres" else servers.redis
    assert witness.bears(resource["manifest"])
    given_back = acme.get(restored.json()["job"]["url"]).json()
    assert [(a["step"], a["outcome"]) for a in given_back["attempt_history"]] == [(None, "restored")]
    assert acme.get(job).json()["state"] == "cancelled"
    again = acme.post(f"{path}/restore", json=MISTAKE)
    assert (again.status_code, again.json()["job"]["id"]) == (200, given_back["id"])


def test_a_purge_lets_the_destruction_begin_and_stands_in_the_proof(
    acme: httpx.Client, boss: httpx.Client, system: System, servers: Servers
) -> None:
    system.worker()
    resource = until(acme, create(acme), "active")
    path = f"/v1/resources/{resource['id']}"
    job = boss.delete(path, params={"reason": "ticket 811", "on_behalf_of": "jo of acme"}).json()["job"]
    eventually(lambda: boss.get(job["url"]).json()["step"] == "wait", what="it is in quarantine")
    problem(acme.post(f"{path}/purge", json=MISTAKE), 403, "forbidden")
    assert servers.pg.bears(resource["manifest"])
    purged = boss.post(f"{path}/purge", json={"reason": "they want it gone"}, headers={"Idempotency-Key": "k"})
    assert (purged.status_code, purged.json()["job"]["id"]) == (200, job["id"])
    until(acme, resource, "deleted")
    assert servers.pg.drops_of(resource["manifest"]) == 1
    attempts = boss.get(job["url"]).json()["attempt_history"]
    assert [(a["step"], a["outcome"]) for a in attempts] == [("quarantine", "quarantined"), ("destroy", "completed")]
    problem(acme.post(f"{path}/restore", json=MISTAKE), 409, "teardown_started")
    problem(boss.post(f"{path}/purge", json=MISTAKE), 409, "not_deleting")
    again = boss.post(f"{path}/purge", json={"reason": "they want it gone"}, headers={"Idempotency-Key": "k"})
    assert (again.status_code, again.json()["resource"]["status"]) == (200, "deleted")
    proof = system.cli("audit", "export", "--resource", resource["id"]).stdout
    for told in ("on behalf of jo of acme, reason: ticket 811", "purged", "they want it gone", " at quarantine by "):
        assert told in proof


def test_a_purge_by_two_operators_is_first_proposed(
    env: dict[str, str], db: Connection, system: System, operator: str
) -> None:
    keep(env, 'purge = "two operators"')
    resource, second = a_resource(db), tokens.create(db, actor="op", role="operator", tenant=None, name="second")[1]
    path = f"/v1/resources/{resource}"
    with client(system.api(), operator) as boss:
        for less in ({"grace": "0s"}, {"grace": "9m"}):
            assert "two operators" in problem(boss.delete(path, params=less), 403, "forbidden")["detail"]
            problem(boss.patch(path, json=less), 403, "forbidden")
        assert boss.delete(path).status_code == 202
        for new in (True, False):
            proposed = boss.post(f"{path}/purge", json=MISTAKE)
            assert (proposed.status_code, proposed.json().get("new")) == (202, new)
        assert (proposed.json()["approval"]["action"], proposed.json()["last_look"]) == ("purge", None)
    job = str(proposed.json()["approval"]["job_id"])
    assert "a purge was proposed by" in system.cli("jobs", "show", job).stdout
    shell = system.cli("resources", "purge", str(resource), "--reason", "r")
    assert (shell.returncode, "has no token" in shell.stderr) == (1, True), shell
    same = system.cli("resources", "purge", "--job", job, "--reason", "r", "--token", operator)
    assert (same.returncode, "you are the operator who proposed it" in same.stdout) == (1, True), same
    assert f"resources purge --job {job} --reason 'WHY' --token TOKEN" in same.stdout
    assert row(db, resource).purge_at > db.execute(text("SELECT now()")).scalar_one()
    done = system.cli("resources", "purge", "--job", job, "--reason", "yes", "--token", second, "--json")
    assert (done.returncode, json.loads(done.stdout)["job"]["id"]) == (0, int(job)), done
    assert row(db, resource).purge_at <= db.execute(text("SELECT now()")).scalar_one()


def test_less_than_the_least_grace_is_for_operators(acme: httpx.Client, boss: httpx.Client, db: Connection) -> None:
    kept, short, own = (a_resource(db) for _ in range(3))
    detail = problem(acme.delete(f"/v1/resources/{kept}?grace=9m"), 403, "forbidden")["detail"]
    assert "at least 10m" in detail
    problem(acme.patch(f"/v1/resources/{kept}", json={"grace": "9m"}), 403, "forbidden")
    problem(acme.post("/v1/resources", json=GOOD | {"grace": "0s"}), 403, "forbidden")
    assert seconds(acme.delete(f"/v1/resources/{kept}?grace=10m")) == 600
    assert seconds(boss.delete(f"/v1/resources/{short}?grace=0s")) == 0
    assert boss.patch(f"/v1/resources/{own}", json={"grace": "30s"}).json()["grace"] == "30s"
    assert acme.patch(f"/v1/resources/{own}", json={"protected": False}).json()["grace"] == "30s"
    assert seconds(acme.delete(f"/v1/resources/{own}")) == 600, "a tenant's is never shorter"
    event = boss.get("/v1/jobs", params={"resource_id": str(short)}).json()["items"][0]
    assert boss.get(event["url"]).json()["events"][0]["detail"]["grace_seconds"] == 0, "who asked for less is on record"


def seconds(deleted: httpx.Response) -> float:
    """How long it is kept."""
    assert deleted.status_code == 202, deleted.text
    told = deleted.json()["resource"]
    return (parse(told["purge_at"]) - parse(told["deleted_at"])).total_seconds()


def parse(time: str) -> dt.datetime:
    return dt.datetime.fromisoformat(time)


def test_a_resource_has_its_own_grace_until_it_is_lifted(acme: httpx.Client, db: Connection) -> None:
    made = acme.post("/v1/resources", json=GOOD | {"grace": "7d", "snapshot": "off"}).json()["resource"]
    assert (made["grace"], made["snapshot"], made["version"]) == ("7d", "off", 1)
    resource = a_resource(db)
    path = f"/v1/resources/{resource}"
    assert acme.get(path).json()["grace"] is None
    assert acme.patch(path, json={"grace": "90m"}).json()["grace"] == "90m"
    assert acme.patch(path, json={"snapshot": "required"}).json()["snapshot"] == "required"
    changed = acme.patch(path, json={"protected": False}).json()
    assert (changed["grace"], changed["snapshot"]) == ("90m", "required")
    same = acme.patch(path, json={}).json()
    assert (same["grace"], same["snapshot"]) == ("90m", "required")
    lifted = acme.patch(path, json={"grace": None, "snapshot": None}).json()
    assert (lifted["grace"], lifted["snapshot"]) == (None, None)
    assert acme.patch(path, json={"grace": "2h"}).json()["grace"] == "2h"
    assert seconds(acme.delete(path)) == 7200


def test_no_snapshot_where_one_is_required_is_for_operators(
    env: dict[str, str], system: System, db: Connection, tenant: str, operator: str
) -> None:
    keep(env, 'snapshot = "required"')
    one, other = a_resource(db), a_resource(db)
    url = system.api()
    with client(url, tenant) as acme, client(url, operator) as boss:
        for refused in (
            acme.delete(f"/v1/resources/{one}?snapshot=off"),
            acme.patch(f"/v1/resources/{one}", json={"snapshot": "off"}),
            acme.post("/v1/resources", json=GOOD | {"snapshot": "off"}),
        ):
            assert "snapshot" in problem(refused, 403, "forbidden")["detail"]
        assert acme.delete(f"/v1/resources/{one}").status_code == 202
        assert boss.delete(f"/v1/resources/{other}?snapshot=off&grace=0s").status_code == 202
    asked = "SELECT needs_snapshot, step FROM outbox WHERE resource_id = :id"
    needs = [tuple(db.execute(text(asked), {"id": id}).one()) for id in (one, other)]
    assert needs == [(True, "quarantine"), (False, "destroy")]


def test_a_wrong_parameter_of_a_delete_is_named_and_deletes_nothing(acme: httpx.Client, db: Connection) -> None:
    resource = a_resource(db)
    for query in (
        "grace=1w",
        "grace=",
        "grace=-1s",
        "grace=60",
        "grace=4000d",
        "grace=1d&grace=2d",
        "grce=1d",
        "snapshot=perhaps",
        "reason=%20",
        "on_behalf_of=%00",
    ):
        body = problem(acme.delete(f"/v1/resources/{resource}?{query}"), 422, "invalid_request")
        assert query.partition("=")[0] in body["detail"]
    assert row(db, resource).status == "active"


def test_a_delete_with_a_body_is_refused_and_not_dropped(acme: httpx.Client, db: Connection) -> None:
    resource = a_resource(db)
    for body in (b'{"reason": "r"}', b"{}", b" ", b"not json"):
        refused = acme.request("DELETE", f"/v1/resources/{resource}", content=body)
        assert problem(refused, 422, "invalid_request")["errors"][0]["field"] == "body"
    stranger = {"Authorization": "Bearer wrong"}
    refused = acme.request("DELETE", f"/v1/resources/{resource}", content=b"{}", headers=stranger)
    problem(refused, 401, "unauthenticated")
    assert row(db, resource).status == "active"


def test_what_cannot_be_restored_or_purged_says_why(acme: httpx.Client, boss: httpx.Client, db: Connection) -> None:
    theirs, lives, never = a_resource(db, tenant="globex"), a_resource(db), a_resource(db, status="provisioning")
    for path in (NO_SUCH, theirs):
        problem(acme.post(f"/v1/resources/{path}/restore", json=MISTAKE), 404, "not_found")
    problem(boss.post(f"/v1/resources/{NO_SUCH}/purge", json=MISTAKE), 404, "not_found")
    problem(boss.post(f"/v1/resources/{lives}/purge", json=MISTAKE), 409, "not_deleting")
    active = acme.post(f"/v1/resources/{lives}/restore", json=MISTAKE)
    assert (active.status_code, active.json()["job"]) == (200, None)
    assert acme.delete(f"/v1/resources/{never}").status_code == 202
    problem(acme.post(f"/v1/resources/{never}/restore", json=MISTAKE), 409, "nothing_to_restore")
    started = a_job(db, state="running", step="destroy", started=True)
    of = db.execute(text("SELECT resource_id FROM outbox WHERE id = :id"), {"id": started}).scalar_one()
    problem(acme.post(f"/v1/resources/{of}/restore", json=MISTAKE), 409, "teardown_started")
    for body in ({}, {"reason": " "}, {"reason": "r", "force": True}):
        for verb, who in (("restore", acme), ("purge", boss)):
            problem(who.post(f"/v1/resources/{lives}/{verb}", json=body), 422, "invalid_request")


def test_while_it_is_being_restored_it_can_be_neither_deleted_nor_used(
    acme: httpx.Client, boss: httpx.Client, db: Connection
) -> None:
    resource = a_resource(db)
    path = f"/v1/resources/{resource}"
    acme.delete(path)
    first, again = (acme.post(f"{path}/restore", json=MISTAKE) for _ in range(2))
    assert (first.status_code, again.status_code) == (202, 200)
    assert (first.json()["resource"]["status"], first.json()["job"]) == ("restoring", again.json()["job"])
    problem(acme.delete(path), 409, "restoring")
    problem(acme.get(f"{path}/credentials"), 409, "not_active")
    problem(acme.patch(path, json={"protected": True}), 409, "not_active")
    problem(boss.post(f"{path}/purge", json=MISTAKE), 409, "not_deleting")
    assert acme.get("/v1/resources?status=restoring").json()["items"][0]["id"] == str(resource)
    assert len(acme.get("/v1/jobs?kind=restore").json()["items"]) == 1


def test_a_tenant_reads_that_an_operator_restored_but_not_who_or_why(
    acme: httpx.Client, boss: httpx.Client, db: Connection
) -> None:
    resource = a_resource(db)
    path = f"/v1/resources/{resource}"
    job = acme.delete(path, params={"reason": "ours"}).json()["job"]
    boss.post(f"{path}/purge", json={"reason": "SECRET"})
    restored = boss.post(f"{path}/restore", json={"reason": "SECRET"}).json()["job"]
    told = [acme.get(one["url"]) for one in (job, restored)]
    assert "SECRET" not in told[0].text + told[1].text
    assert told[0].json()["request"]["reason"] == "ours"
    assert told[1].json()["request"]["actor"] == "operator"
    assert told[0].json()["attempt_history"] == [], "it was cancelled before it was claimed"
    assert [e["event"] for e in told[0].json()["events"]] == ["enqueued", "purge_ordered", "cancelled"]


def test_the_commands_delete_restore_and_purge(system: System, db: Connection) -> None:
    resource = str(a_resource(db))
    words = ["--reason", "ticket 811", "--on-behalf-of", "jo", "--grace", "2h", "--snapshot", "off"]
    deleted = system.cli("resources", "delete", resource, *words)
    assert (deleted.returncode, "accepted" in deleted.stdout) == (0, True), deleted
    assert f"deprovisioner resources restore {resource} --reason 'WHY'" in deleted.stdout
    listed = system.cli("resources", "list").stdout
    shown = system.cli("resources", "show", resource).stdout
    for told in (listed, shown):
        assert "quarantine" in told
        assert "purge_at" in told
    (item,) = json.loads(system.cli("resources", "list", "--json").stdout)["items"]
    assert (item["step"], item["grace"], item["purge_at"] > item["deleted_at"]) == ("quarantine", None, True)
    restored = system.cli("resources", "restore", resource, "--reason", "mistake")
    assert (restored.returncode, restored.stdout.startswith("it is restoring; job ")) == (0, True), restored
    again = json.loads(system.cli("resources", "restore", resource, "--reason", "mistake", "--json").stdout)
    assert (again["resource"]["status"], again["job"]["kind"]) == ("restoring", "restore")
    early = system.cli("resources", "purge", resource, "--reason", "r")
    assert (early.returncode, "only what is being deleted" in early.stderr) == (1, True), early
    for wrong in (["purge", "--reason", "r"], ["purge", resource, "--job", "1", "--reason", "r"]):
        assert system.cli("resources", *wrong).returncode == 2
    assert system.cli("resources", "delete", resource, "--grace", "1w").returncode == 2
    other = str(a_resource(db))
    system.cli("resources", "delete", other)
    purged = system.cli("resources", "purge", other, "--reason", "they want it gone")
    assert (purged.returncode, purged.stdout.startswith("it is not kept any longer")) == (0, True), purged
    assert row(db, other).purge_at <= db.execute(text("SELECT now()")).scalar_one()


def test_a_snapshot_that_nothing_could_store_is_refused_at_once(
    env: dict[str, str], system: System, db: Connection, tenant: str
) -> None:
    file = Path(env["DEPROVISIONER_BACKENDS"])
    file.write_text("\n".join(line for line in file.read_text().splitlines() if "snapshot_store" not in line))
    path = f"/v1/resources/{a_resource(db)}"
    with client(system.api(), tenant) as acme:
        for refused in (
            acme.delete(f"{path}?snapshot=required"),
            acme.patch(path, json={"snapshot": "required"}),
            acme.post("/v1/resources", json=GOOD | {"snapshot": "required"}),
        ):
            assert "snapshot_store" in problem(refused, 422, "invalid_request")["detail"]
            assert refused.json()["errors"][0]["field"] == "snapshot"
        assert acme.get(path).json()["status"] == "active"
        assert acme.delete(f"{path}?snapshot=off").status_code == 202
