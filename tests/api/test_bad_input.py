"""Bad input: a problem+json with a stable code that names what was wrong; nothing is lost, nothing half done."""

import base64
import json
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import httpx
import pytest
from sqlalchemy import Connection, text

from outbox import db as database
from outbox import holds, jobs, tokens
from outbox.states import HoldScope, StuckReason
from tests.support.api import problem
from tests.support.factories import a_claim, a_resource
from tests.support.processes import System, client
from tests.support.witness import eventually, waits_for_a_lock

GOOD = {"kind": "postgres", "backend": "pg-main", "name": "orders"}
NO_SUCH = "00000000-0000-4000-8000-000000000000"


@pytest.fixture
def api(system: System, tenant: str) -> Iterator[httpx.Client]:
    with client(system.api(), tenant) as made:
        yield made


def rows(db: Connection) -> tuple[int, int, int]:
    """Resources, jobs, and events but for those of the tests' own tokens."""
    events = "events WHERE event <> 'token_created'"
    return tuple(db.execute(text(f"SELECT count(*) FROM {t}")).scalar_one() for t in ("resources", "outbox", events))  # type: ignore[return-value]


def test_a_locked_resource_delays_no_other_delete(
    system: System, api: httpx.Client, tenant: str, db: Connection, connect: Any
) -> None:
    held, free = a_resource(db), a_resource(db)
    holder = connect()
    holder.cursor().execute("SELECT FROM resources WHERE id = %s FOR UPDATE", (str(held),))
    with ThreadPoolExecutor(2) as pool, client(str(api.base_url), tenant) as other:
        waiting = pool.submit(other.delete, f"/v1/resources/{held}")
        eventually(lambda: waits_for_a_lock(db), what="it waits for the row")
        going = pool.submit(api.delete, f"/v1/resources/{free}")
        assert wait([going], database.STATEMENT_TIMEOUT_MS / 2000).done, "sooner than a statement gives up waiting"
        assert going.result().status_code == 202
        assert not waiting.done()
        holder.commit()
        assert waiting.result(20).status_code == 202


@pytest.mark.proof
def test_45_callers_of_one_locked_row_are_busy_whatever_they_ask_and_everybody_else_is_served(
    api: httpx.Client, operator: str, db: Connection, connect: Any
) -> None:
    resource, free = a_resource(db), a_resource(db)
    claim = a_claim(db)
    jobs.stick(db, claim, worker="w", why=StuckReason.ATTEMPTS_EXHAUSTED, error="e")
    hold = holds.engage(db, HoldScope.BACKEND, "pg-main", actor="op", reason="r").id
    word = {"reason": "r", "fence": claim.fence}
    asked: list[tuple[str, str, dict[str, object] | None]] = [
        ("DELETE", f"/v1/resources/{resource}", None),
        ("PATCH", f"/v1/resources/{resource}", {"protected": True}),
        ("POST", f"/v1/resources/{claim.resource_id}/restore", {"reason": "r"}),
        ("POST", f"/v1/resources/{claim.resource_id}/purge", {"reason": "r"}),
        ("POST", f"/v1/jobs/{claim.id}/redrive", word),
        ("POST", f"/v1/jobs/{claim.id}/resolve", word | {"force": True}),
        ("POST", f"/v1/holds/{hold}/release", {"reason": "r"}),
    ]
    holder = connect()
    with holder.cursor() as cursor:
        cursor.execute("SELECT FROM resources WHERE id = %s FOR UPDATE", (str(resource),))
        cursor.execute("SELECT FROM outbox WHERE id = %s FOR UPDATE", (claim.id,))
        cursor.execute("SELECT FROM holds WHERE id = %s FOR UPDATE", (hold,))
    with ThreadPoolExecutor(45) as pool, client(str(api.base_url), operator) as other:
        waiting = [pool.submit(other.request, method, path, json=body) for method, path, body in (asked * 7)[:45]]
        eventually(lambda: waits_for_a_lock(db), what="one waits for a row")
        for answer in (other.get("/healthz"), api.delete(f"/v1/resources/{free}"), api.get("/v1/resources")):
            assert answer.is_success, answer.text
            assert answer.elapsed.total_seconds() < database.LOCK_TIMEOUT_MS / 2000
        for one in waiting:
            problem(one.result(30), 503, "busy")
            assert one.result().headers["retry-after"]
        holder.commit()
        assert api.delete(f"/v1/resources/{resource}").status_code == 202


def test_each_wrong_request_has_its_code(api: httpx.Client, db: Connection, operator: str) -> None:
    """One API process, every wrong request in turn; after all of them nothing is stored."""
    v1, boss = "/v1/resources", {"Authorization": f"Bearer {operator}"}
    for method in ("GET", "DELETE", "PATCH"):
        body = {"json": {"protected": True}} if method == "PATCH" else {}
        problem(api.request(method, f"{v1}/not-a-uuid", **body), 422, "invalid_id")
        problem(api.request(method, f"{v1}/{NO_SUCH}", **body), 404, "not_found")
        problem(api.request(method, f"{v1}/{NO_SUCH}'; DROP TABLE resources;--", **body), 422, "invalid_id")
    problem(api.get(f"{v1}/{NO_SUCH}/credentials"), 404, "not_found")
    problem(api.get("/v1/jobs/1"), 404, "not_found")
    for id in (
        "x",
        "-1",
        "0",
        str(2**63),
        "1.5",
        "1.0",
        "+1",
        "01",
        "1_0",
        "1%0a",
        "%00",
        "%D9%A3",
        "%zz",
        "%ff",
        "9" * 5000,
    ):
        problem(api.get(f"/v1/jobs/{id}"), 422, "invalid_id")

    body = problem(api.post(v1, json=GOOD | {"backend": "pg-mian"}), 422, "unknown_backend")
    assert "pg-main" in body["detail"]
    assert "redis-main" in body["detail"]
    body = problem(api.post(v1, json=GOOD | {"kind": "mysql"}), 422, "unknown_kind")
    assert "postgres" in body["detail"]
    body = problem(api.post(v1, json=GOOD | {"backend": "redis-main"}), 422, "unknown_kind")
    assert "pg-main" in body["detail"]

    for wrong, field in [
        ({"name": ""}, "name"),
        ({"name": "x" * 201}, "name"),
        ({"name": "a\u0000b"}, "name"),
        ({"name": "a\nb"}, "name"),
        ({"name": 5}, "name"),
        ({"nmae": "typo"}, "nmae"),
        ({"protected": "maybe"}, "protected"),
        ({"expires_at": "tomorrow"}, "expires_at"),
        ({"expires_at": "2030-01-01T00:00:00"}, "expires_at"),
        ({"expires_at": "2020-01-01T00:00:00Z"}, "expires_at"),
        ({"expires_at": 3600}, "expires_at"),
        ({"expires_at": "0001-01-01T00:00:00+14:00"}, "expires_at"),
        ({"expires_at": "9999-12-31T23:59:59-14:00"}, "expires_at"),
        ({"expires_at": 4102444800}, "expires_at"),
        ({"manifest": []}, "manifest"),
        ({"manifest": {"oid": 1}}, "manifest.database"),
        ({"manifest": {"database": "x", "oid": "one"}}, "manifest.oid"),
        ({"manifest": {"database": "x" * 64}}, "manifest.database"),
        ({"manifest": {"database": "x", "gen": 1}}, "manifest.gen"),
        ({"manifest": {"database": "x", "generation": "g"}}, "manifest.generation"),
        ({"tenant": "globex"}, "tenant"),
    ]:
        assert field in problem(api.post(v1, json=GOOD | wrong), 422, "invalid_request")["detail"]
    redis = {"kind": "redis", "backend": "redis-main", "name": "cache"}
    for prefix in ("", ":", "x"):
        problem(api.post(v1, json=redis | {"manifest": {"user": "u", "prefix": prefix}}), 422, "invalid_request")
    problem(api.post(v1, content=b"{not json", headers={"Content-Type": "application/json"}), 422, "invalid_json")
    lone = json.dumps(GOOD).replace("orders", "\\ud800").encode()
    problem(api.post(v1, content=lone, headers={"Content-Type": "application/json"}), 422, "invalid_request")
    problem(api.post(v1, content=b"\xff\xfe", headers={"Content-Type": "application/json"}), 422, "invalid_json")
    problem(api.post(v1, json=[]), 422, "invalid_request")
    problem(api.post(v1, json=GOOD, headers={"Idempotency-Key": "x" * 201}), 422, "invalid_request")

    for query in (
        "limit=0",
        "limit=201",
        "limit=x",
        "status=gone",
        "state=deleted",
        "tenant=x",
        "cursor=zzz",
        "cursor=W10=",
        "cursor=WzFlNDAwXQ==",
        "cursor=WyIyMDIwLTAxLTAxVDAwOjAwOjAwIiwgNV0=",
        "kind=%00",
    ):
        code = "invalid_cursor" if query.startswith("cursor") else "invalid_request"
        problem(api.get(f"{v1}?{query}"), 422, code)
    for query in ("state=gone", "status=stuck", "kind=drop", "reason=x", "backend=%00"):
        problem(api.get(f"/v1/jobs?{query}"), 422, "invalid_request")
    for cursor in ("zzz", "WzFlNDAwXQ==", "WzEsMl0="):
        problem(api.get(f"/v1/jobs?cursor={cursor}"), 422, "invalid_cursor")

    problem(api.get("/v1/nowhere"), 404, "not_found")
    problem(api.get(f"{v1}/{NO_SUCH}/"), 404, "not_found")
    for content_type in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
        answer = api.post(v1, content=json.dumps(GOOD), headers={"Content-Type": content_type})
        assert "application/json" in problem(answer, 422, "invalid_request")["detail"]
    for query in ("limit=1&limit=2", "status=active&status=deleted"):
        assert "more than once" in problem(api.get(f"{v1}?{query}"), 422, "invalid_request")["detail"]
    keys = [("Idempotency-Key", "a"), ("Idempotency-Key", "b")]
    assert "more than once" in problem(api.post(v1, json=GOOD, headers=keys), 422, "invalid_request")["detail"]
    for method in ("HEAD", "OPTIONS", "TRACE", "PUT"):
        answer = api.request(method, v1)
        assert (answer.status_code, answer.headers["allow"]) == (405, "GET, POST")
        assert answer.headers["content-type"] == "application/problem+json"
    problem(api.put(v1), 405, "method_not_allowed")
    for path, word in {
        "redrive": {"reason": "r", "fence": 1},
        "resolve": {"reason": "r", "fence": 1},
        "observe": None,
    }.items():
        problem(api.post(f"/v1/jobs/1/{path}", json=word), 403, "forbidden")
        problem(api.post(f"/v1/jobs/1/{path}", json=word, headers=boss), 404, "not_found")
    for path, wrong in [
        ("resolve", {"fence": 1}),
        ("resolve", {"reason": "r"}),
        ("resolve", {"reason": "", "fence": 1}),
        ("resolve", {"reason": "r", "fence": 1, "force": "perhaps"}),
        ("resolve", {"reason": "r", "fence": 1, "force_outcome_unknown": True}),
        ("redrive", {"reason": "r", "fence": 1, "force": True}),
    ]:
        problem(api.post(f"/v1/jobs/1/{path}", json=wrong, headers=boss), 422, "invalid_request")
    who_is_it = {"Authorization": "Bearer wrong"}, {"Authorization": "Basic x"}, {"Authorization": ""}
    for headers in who_is_it:
        for path in (v1, f"{v1}/{NO_SUCH}", "/v1/jobs", "/v1/jobs/1"):
            answer = api.get(path, headers=headers)
            problem(answer, 401, "unauthenticated")
            assert answer.headers["www-authenticate"] == "Bearer"
        problem(api.get("/v1/nowhere", headers=headers), 401, "unauthenticated")
        problem(api.put(v1, headers=headers), 401, "unauthenticated")
        problem(api.get(f"{v1}?limit=1&limit=2", headers=headers), 401, "unauthenticated")
    problem(
        api.delete(f"{v1}/{NO_SUCH}", headers={"Authorization": "Bearer \xe9".encode("latin-1")}),
        401,
        "unauthenticated",
    )  # type: ignore[dict-item]
    problem(api.post(v1, json=GOOD, headers={"Authorization": f"Bearer {operator}"}), 422, "invalid_request")
    assert rows(db) == (0, 0, 0)


def test_ten_megabytes_of_garbage_are_refused_and_the_next_request_is_served(api: httpx.Client, db: Connection) -> None:
    garbage = b"\x00{[" * (10 * 1024 * 1024 // 3)
    problem(api.post("/v1/resources", content=garbage), 413, "body_too_large")

    def dribble() -> Iterator[bytes]:
        for _ in range(200):
            yield b"x" * 51_200

    problem(api.post("/v1/resources", content=dribble()), 413, "body_too_large")
    assert api.get("/healthz").json() == {"ok": True}
    assert rows(db) == (0, 0, 0)


def test_an_answer_to_thousands_of_wrong_fields_is_short(api: httpx.Client) -> None:
    many = api.post("/v1/resources", json={f"f{n}": n for n in range(5000)})
    assert len(problem(many, 422, "invalid_request")["errors"]) <= 20
    long = api.post("/v1/resources", json={"x" * 60_000: 1})
    repeated = api.get(f"/v1/resources?{'y' * 9000}=1&{'y' * 9000}=2")
    for answer in (many, long, repeated):
        problem(answer, 422, "invalid_request")
        assert len(answer.content) < 4000


def test_another_tenants_resources_and_jobs_are_not_found(api: httpx.Client, db: Connection, operator: str) -> None:
    theirs = a_resource(db, tenant="globex")
    for answer in (
        api.get(f"/v1/resources/{theirs}"),
        api.get(f"/v1/resources/{theirs}/credentials"),
        api.delete(f"/v1/resources/{theirs}"),
        api.patch(f"/v1/resources/{theirs}", json={"protected": True}),
    ):
        problem(answer, 404, "not_found")
    assert api.get("/v1/resources").json()["items"] == []
    boss = {"Authorization": f"Bearer {operator}"}
    job = api.delete(f"/v1/resources/{theirs}", headers=boss).json()["job"]
    problem(api.get(job["url"]), 404, "not_found")
    assert api.get("/v1/jobs").json()["items"] == []
    assert api.get(job["url"], headers=boss).json()["tenant"] == "globex"


def test_a_tenant_cannot_adopt(api: httpx.Client, db: Connection) -> None:
    problem(api.post("/v1/resources", json=GOOD | {"manifest": {"database": "x"}}), 403, "forbidden")
    assert rows(db) == (0, 0, 0)


@pytest.mark.parametrize(
    "name", ["'; DROP TABLE resources; --", "*", "ten[ant]?\\", "%s %(x)s :name", "ä😀 \u202e", "\\x00"]
)
def test_special_characters_in_a_name_are_only_data(api: httpx.Client, name: str) -> None:
    made = api.post("/v1/resources", json=GOOD | {"name": name})
    assert made.status_code == 202
    assert api.get(f"/v1/resources/{made.json()['resource']['id']}").json()["name"] == name


def test_a_protected_resource_answers_409_until_it_is_released(api: httpx.Client, db: Connection) -> None:
    resource = a_resource(db, protected=True)
    problem(api.delete(f"/v1/resources/{resource}"), 409, "deletion_protected")
    assert api.patch(f"/v1/resources/{resource}", json={"protected": False}).json()["protected"] is False
    assert api.delete(f"/v1/resources/{resource}").status_code == 202
    problem(api.patch(f"/v1/resources/{resource}", json={"protected": True}), 409, "not_active")
    problem(api.get(f"/v1/resources/{resource}/credentials"), 409, "not_active")


def test_an_expiry_can_be_moved_and_lifted(api: httpx.Client, db: Connection) -> None:
    resource = a_resource(db, protected=True, expires="now() - interval '1 s'")
    path = f"/v1/resources/{resource}"
    problem(api.patch(path, json={"expires_at": "2020-01-01T00:00:00Z"}), 422, "invalid_request")
    assert api.patch(path, json={"expires_at": "2090-01-01T00:00:00Z"}).json()["expires_at"] == "2090-01-01T00:00:00Z"
    assert api.patch(path, json={"protected": False}).json()["expires_at"] == "2090-01-01T00:00:00Z"
    assert api.patch(path, json={"protected": True, "expires_at": None}).json()["expires_at"] is None


def test_an_object_is_adopted_by_one_resource_only(api: httpx.Client, operator: str) -> None:
    boss = {"Authorization": f"Bearer {operator}"}
    twin = GOOD | {"tenant": "globex", "manifest": {"database": "x", "generation": str(uuid.uuid4())}}
    assert api.post("/v1/resources", json=twin, headers=boss).status_code == 202
    for tenant in ("acme", "globex"):
        problem(api.post("/v1/resources", json=twin | {"tenant": tenant}, headers=boss), 409, "already_managed")


def test_an_idempotency_key_repeats_its_answer_and_refuses_another_body(api: httpx.Client) -> None:
    key = {"Idempotency-Key": str(uuid.uuid4())}
    one = api.post("/v1/resources", json=GOOD, headers=key)
    two = api.post("/v1/resources", json=GOOD, headers=key)
    assert (one.status_code, two.status_code) == (202, 202)
    assert one.json()["resource"]["id"] == two.json()["resource"]["id"]
    problem(api.post("/v1/resources", json=GOOD | {"name": "x"}, headers=key), 409, "idempotency_key_reused")


def test_an_idempotency_key_is_honoured_after_the_expiry_it_asked_for(api: httpx.Client, db: Connection) -> None:
    soon = db.execute(text("SELECT now() + interval '1 s'")).scalar_one()
    key, body = {"Idempotency-Key": str(uuid.uuid4())}, GOOD | {"expires_at": soon.isoformat()}
    one = api.post("/v1/resources", json=body, headers=key)
    eventually(lambda: db.execute(text("SELECT now()")).scalar_one() > soon)
    two = api.post("/v1/resources", json=body, headers=key)
    assert (one.status_code, two.status_code) == (202, 202)
    assert one.json()["resource"]["id"] == two.json()["resource"]["id"]
    problem(api.post("/v1/resources", json=body), 422, "invalid_request")


def test_a_revoked_token_opens_nothing_after_the_cache_has_forgotten_it(api: httpx.Client, db: Connection) -> None:
    made, secret = tokens.create(db, actor="op", role="tenant", tenant="acme", name="short")
    headers = {"Authorization": f"Bearer {secret}"}
    assert api.get("/v1/resources", headers=headers).status_code == 200
    tokens.revoke(db, made.id, actor="op")
    eventually(lambda: api.get("/v1/resources", headers=headers).status_code == 401, within=4)


def test_pages_list_every_item_once(api: httpx.Client, db: Connection) -> None:
    made = {str(a_resource(db)) for _ in range(7)}
    for id in made:
        api.delete(f"/v1/resources/{id}")
    for path, key in (("/v1/resources?status=deleting", "id"), ("/v1/jobs?state=pending", "resource_id")):
        seen: list[str] = []
        cursor = ""
        while True:
            page = api.get(f"{path}&limit=3{cursor}").json()
            seen += [item[key] for item in page["items"]]
            if page["next_cursor"] is None:
                break
            cursor = f"&cursor={page['next_cursor']}"
        assert len(seen) == 7
        assert set(seen) == made


def test_resources_and_jobs_have_the_documented_fields(api: httpx.Client, db: Connection) -> None:
    resource = a_resource(db)
    shown = api.get(f"/v1/resources/{resource}").json()
    assert list(shown) == [
        "id",
        "tenant",
        "kind",
        "backend",
        "name",
        "status",
        "protected",
        "manifest",
        "created_at",
        "deleted_at",
        "purged_at",
        "expires_at",
        "purge_at",
        "grace",
        "snapshot",
        "version",
        "external_id",
        "labels",
        "adopted",
        "login_attempts",
    ]
    assert shown["created_at"].endswith("Z")
    deleted = api.delete(f"/v1/resources/{resource}").json()
    assert list(deleted) == ["ok", "already_deleted", "resource", "job"]
    assert list(deleted["job"]) == ["id", "state", "url"]
    job = api.get(deleted["job"]["url"]).json()
    fields = "id kind state step stuck_reason resource_id backend fence attempts max_attempts available_at created_at"
    assert set(f"{fields} finished_at last_error url attempt_history events".split()) <= set(job)
    openapi = api.get("/openapi.json").json()
    assert {"/v1/resources", "/v1/resources/{resource_id}", "/v1/jobs/{job_id}", "/healthz"} <= set(openapi["paths"])


def test_readiness_tells_database_schema_and_broker(api: httpx.Client, db: Connection) -> None:
    assert api.get("/readyz").json() == {"ok": True, "database": "ok", "broker": True}
    db.execute(text("UPDATE alembic_version SET version_num = '0000'"))
    answer = api.get("/readyz")
    assert answer.status_code == 503
    assert "deprovisioner migrate" in answer.json()["database"]


def test_a_body_that_cannot_be_parsed_is_a_problem_and_only_for_callers_with_a_token(api: httpx.Client) -> None:
    json_type = {"Content-Type": "application/json"}
    for body in (b"[" * 30_000, b'"\xff"', b'{"name": "\xff"}', b"{not json"):
        problem(api.post("/v1/resources", content=body, headers=json_type), 422, "invalid_json")
        stranger = json_type | {"Authorization": "Bearer wrong"}
        problem(api.post("/v1/resources", content=body, headers=stranger), 401, "unauthenticated")


def test_a_method_that_a_path_does_not_have_is_405_and_allow_names_all_others(api: httpx.Client) -> None:
    for method, path, allowed in [
        ("PUT", "/v1/resources", "GET, POST"),
        ("POST", f"/v1/resources/{NO_SUCH}", "DELETE, GET, PATCH"),
        ("GET", "/v1/jobs/redrive", "POST"),
        ("DELETE", "/v1/jobs/1", "GET"),
    ]:
        answer = api.request(method, path)
        problem(answer, 405, "method_not_allowed")
        assert answer.headers["allow"] == allowed


def test_a_time_whose_offset_postgresql_does_not_know_is_taken_or_refused_with_words(api: httpx.Client) -> None:
    for offset in ("+15:59", "+16:00", "-23:59", "+23:59"):
        answer = api.post("/v1/resources", json=GOOD | {"expires_at": f"2040-01-01T00:00:00{offset}"})
        assert answer.status_code == 202, answer.text
    for time in ("0000-01-01T00:00:00Z", "10000-01-01T00:00:00Z", "2040-01-01T00:00:00+24:00"):
        problem(api.post("/v1/resources", json=GOOD | {"expires_at": time}), 422, "invalid_request")
    for time, status in (("2020-01-01T00:00:00+23:59", 200), ("0001-01-01T00:00:00+14:00", 422)):
        cursor = base64.urlsafe_b64encode(json.dumps([time, NO_SUCH]).encode()).decode()
        answer = api.get(f"/v1/resources?cursor={cursor}")
        assert answer.status_code == status, answer.text
