"""`deprovisioner reconcile` as a person runs it, and the API that shows it; on a server of its own."""

import json
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from sqlalchemy import Connection, text

from tests.support.api import problem
from tests.support.factories import status_of
from tests.support.processes import System, client, shell
from tests.support.reconciling import a_row, made, own_postgres, standing
from tests.support.recoveries import rewind
from tests.support.witness import PgServer, eventually
from worker.backends.postgres import Postgres


@pytest.fixture(scope="module")
def pg() -> Iterator[PgServer]:
    with own_postgres() as started:
        yield started


@pytest.fixture
def env(env: dict[str, str], pg: PgServer) -> dict[str, str]:
    env["PG_MAIN_DSN"] = pg.service_dsn
    return env


@pytest.fixture
def backend(pg: PgServer) -> Postgres:
    """The server's objects are those of the test: what an earlier one has left is removed."""
    for name in pg.databases() - {"postgres", "template0", "template1", "deprovisioner_service"}:
        pg.query(f'DROP DATABASE "{name}" WITH (FORCE)')
    for name in pg.roles():
        if name.startswith(("usr_", "zz_")):
            pg.query(f'DROP ROLE "{name}"')
    pg.query("DROP SCHEMA IF EXISTS deprovisioner_memory CASCADE", database="deprovisioner_service")
    return Postgres(pg.service_dsn)


def run(env: Mapping[str, str], *words: str, code: int = 0) -> dict[str, Any]:
    answer = shell(env, "reconcile", *words, "--json")
    assert answer.returncode == code, (answer.stdout, answer.stderr)
    return json.loads(answer.stdout)


def only(env: Mapping[str, str], *words: str, code: int = 0) -> dict[str, Any]:
    return run(env, "--backend", "pg-main", *words, code=code)


def test_a_run_says_what_it_found_and_how_much_is_left_behind_and_exits_so(
    env: dict[str, str], db: Connection, pg: PgServer, backend: Postgres
) -> None:
    row = a_row(db, made(backend))
    clean = only(env)
    assert (clean["ok"], clean["findings"], clean["left_behind"]["objects"]) == (True, [], 0)
    assert [(one["backend"], one["objects"], one["resources"]) for one in clean["backends"]] == [("pg-main", 1, 1)]
    unknown = made(backend)
    told = only(env, code=1)
    (found,) = told["findings"]
    assert (found["code"], found["resource_id"]) == ("unknown", None)
    ((size,),) = pg.query("SELECT pg_database_size(%s)", unknown["database"])
    assert told["left_behind"] == {"objects": 1, "bytes": size, "unsized": 0, "abandoned": 0}
    shown = shell(env, "reconcile", "--backend", "pg-main")
    assert "found  pg-main: 2 objects, 1 resources: 1 unknown" in shown.stdout
    assert "left behind, with no resource that manages it: 1 objects, " in shown.stdout
    assert "reading pg-main" in shown.stderr
    assert run(env, "list")["items"] == standing_as_json(db)
    assert shell(env, "reconcile", "--backend", "nowhere").returncode == 1
    pg.query("CREATE DATABASE app_by_hand")
    unmarked = only(env, "--unmarked", code=1)["findings"]
    assert [one["code"] for one in unmarked] == ["unknown", "unmarked"]
    backend.teardown(unknown, 1)
    assert only(env)["ok"], "an unmarked object is no fault"
    dropped = made(backend)
    a_row(db, dropped, hours=0)
    backend.teardown(dropped, 1)
    told = only(env)
    assert (told["backends"][0]["young"], [one["code"] for one in told["findings"]]) == (1, ["unmarked"])
    shown = shell(env, "reconcile", "--backend", "pg-main").stdout
    assert "1 difference is younger than an hour, and not told yet" in shown
    rewind(db)
    refused = shell(env, "reconcile", "--backend", "pg-main")
    assert (refused.returncode, "went back in time" in refused.stderr) == (1, True)
    assert status_of(db, row) == "active"


def standing_as_json(db: Connection) -> list[dict[str, Any]]:
    from deprovisioner.cli.shell import as_text

    return json.loads(as_text([vars(one) for one in standing(db)]))


def test_what_fails_is_told_beside_the_last_good_findings(
    env: dict[str, str], db: Connection, backend: Postgres
) -> None:
    a_row(db, made(backend))
    made(backend)
    good = only(env, code=1)
    lost = env | {"PG_MAIN_DSN": "postgresql://x@127.0.0.1:1/x"}
    told = only(lost, code=1)
    assert told["findings"] == good["findings"]
    assert told["backends"][0]["ended_at"] == good["backends"][0]["ended_at"]
    assert "Connection refused" in told["backends"][0]["error"]
    assert "ERROR  pg-main: " in shell(lost, "reconcile", "--backend", "pg-main").stdout
    doctor = {one["code"]: one for one in json.loads(shell(env, "doctor", "--json").stdout)["checks"]}
    (stale,) = doctor["reconcile_stale"]["sample"]
    assert "Connection refused" in stale["note"]
    assert "; the last good one ended 00:00:00 ago" in stale["note"]
    (unknown,) = doctor["object_unknown"]["sample"]
    assert unknown["id"] == str(good["findings"][0]["id"])


def test_an_unknown_object_is_adopted_by_the_ordinary_door_and_one_that_survives_is_torn_down_again(
    env: dict[str, str], db: Connection, pg: PgServer, backend: Postgres, system: System
) -> None:
    a_row(db, made(backend))
    unknown, orphan = made(backend), made(backend)
    deleted = a_row(db, orphan, status="deleted")
    found = {one["code"]: one["id"] for one in only(env, code=1)["findings"]}
    before = pg.databases()
    asked = ("adopt", str(found["unknown"]), "--tenant", "acme", "--name", "orders")
    assert shell(env, "reconcile", *asked[:2]).returncode == 1, "no row says whose it is"
    preview = run(env, *asked)
    assert (preview["items"][0]["refused"], pg.databases()) == ("", before)
    assert shell(env, "reconcile", *asked, "--digest", preview["digest"]).returncode == 2, "without a reason"
    other = run(env, *asked[:4], "--name", "others")["digest"]
    wrong = shell(env, "reconcile", *asked, "--digest", other, "--reason", "found")
    assert (wrong.returncode, "not the digest of these findings" in wrong.stderr) == (1, True)
    (done,) = run(env, *asked, "--digest", preview["digest"], "--reason", "found")["items"]
    adopted = uuid.UUID(done["resource_id"])
    assert shell(env, "reconcile", *asked, "--digest", preview["digest"], "--reason", "found").returncode == 1
    system.worker()
    eventually(lambda: status_of(db, adopted) == "active")
    told = db.execute(
        text("SELECT event, actor, reason, detail FROM events WHERE resource_id = :id ORDER BY seq"), {"id": adopted}
    ).all()
    assert [row.event for row in told][:2] == ["enqueued", "decided"]
    assert (told[1].reason, told[1].detail["finding"]) == ("found", found["unknown"])
    assert db.execute(text("SELECT generation, tenant, name FROM resources WHERE id = :id"), {"id": adopted}).one() == (
        uuid.UUID(unknown["generation"]),
        "acme",
        "orders",
    )
    asked = ("delete", str(found["survives"]))
    digest = run(env, *asked)["digest"]
    (gone,) = run(env, *asked, "--digest", digest, "--reason", "an orphan")["items"]
    assert gone["deleted"]
    eventually(lambda: status_of(db, uuid.UUID(gone["resource_id"])) == "deleted")
    assert (pg.drops_of(orphan), orphan["database"] in pg.databases()) == (1, False)
    told = text("SELECT event FROM events WHERE resource_id = :id AND event IN ('enqueued', 'activated') ORDER BY seq")
    order = db.execute(told, {"id": gone["resource_id"]}).scalars().all()
    assert order == ["enqueued", "activated", "enqueued"], "what never was active would have no grace"
    assert (status_of(db, deleted), unknown["database"] in pg.databases()) == ("deleted", True)
    assert only(env)["findings"] == []


def test_what_cannot_be_adopted_or_deleted_is_refused_with_what_to_do_instead(
    env: dict[str, str], db: Connection, pg: PgServer, backend: Postgres
) -> None:
    a_row(db, made(backend))
    gone, shut = made(backend), made(backend)
    missing = a_row(db, gone)
    backend.teardown(gone, 1)
    backend.quarantine(shut)
    pg.query("CREATE DATABASE app_by_hand")
    found = {one["code"]: str(one["id"]) for one in only(env, "--unmarked", code=1)["findings"]}
    preview = run(env, "adopt", found["missing"], found["unknown"], "--tenant", "acme", code=1)
    told = preview["items"]
    assert preview["command"] is None, "there is nothing to do"
    assert f"resources delete {missing}" in told[0]["refused"]
    assert "it is in quarantine" in told[1]["refused"]
    bare = shell(env, "reconcile", "delete", found["unmarked"], "--tenant", "acme")
    assert (bare.returncode, "adopt it first" in bare.stdout, "--digest" in bare.stdout) == (1, True, False)
    asked = ("adopt", found["unmarked"], "--tenant", "acme")
    preview = run(env, *asked)
    assert (preview["items"][0]["name"], preview["digest"] in preview["command"]) == ("app_by_hand", True)
    digest = preview["digest"]
    (done,) = run(env, *asked, "--digest", digest, "--reason", "ours now")["items"]
    assert status_of(db, uuid.UUID(done["resource_id"])) == "provisioning"
    assert shell(env, "reconcile", "adopt", "999").returncode == 1


def test_operators_see_runs_and_findings_over_http_and_tenants_nothing(
    env: dict[str, str], db: Connection, backend: Postgres, system: System, operator: str, tenant: str
) -> None:
    a_row(db, made(backend))
    for _ in range(3):
        made(backend)
    found = only(env, code=1)
    address = system.api()
    with client(address, operator) as api:
        shown = api.get("/v1/reconcile").json()
        (run,) = [one for one in shown["backends"] if one["backend"] == "pg-main"]
        assert (run["found"], run["error"], run["objects"]) == ({"unknown": 3}, None, 4)
        assert shown["left_behind"] == found["left_behind"]
        first = api.get("/v1/reconcile/findings", params={"limit": 2, "code": "unknown"}).json()
        rest = api.get("/v1/reconcile/findings", params={"cursor": first["next_cursor"]}).json()
        ids = [one["id"] for page in (first, rest) for one in page["items"]]
        assert ids == [one["id"] for one in found["findings"]]
        assert api.get("/v1/reconcile/findings", params={"backend": "redis-main"}).json()["items"] == []
        assert api.get("/v1/reconcile/findings", params={"code": "odd"}).status_code == 422
        assert api.get("/v1/reconcile/findings", params={"cursor": "x"}).status_code == 422
    with client(address, tenant) as acme:
        problem(acme.get("/v1/reconcile"), 403, "forbidden")
        problem(acme.get("/v1/reconcile/findings"), 403, "forbidden")
