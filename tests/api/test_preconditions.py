"""ETag, If-Match and Idempotency-Key: no caller overwrites another's change, and nothing is done twice."""

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import Connection, text

from outbox import tokens
from tests.support.api import at_once, problem
from tests.support.factories import a_resource
from tests.support.processes import System, client

MISTAKE = {"reason": "a mistake"}


@pytest.fixture
def env(env: dict[str, str]) -> dict[str, str]:
    """The backends keep what is deleted for an hour."""
    file = Path(env["DEPROVISIONER_BACKENDS"])
    file.write_text(file.read_text().replace("concurrency = 8", 'concurrency = 8\ngrace = "1h"'))
    return env


@pytest.fixture
def boss(acme: httpx.Client, operator: str) -> Iterator[httpx.Client]:
    with client(str(acme.base_url), operator) as made:
        yield made


def row(db: Connection, resource: uuid.UUID) -> Any:
    return db.execute(text("SELECT * FROM resources WHERE id = :id"), {"id": resource}).one()


def jobs_of(db: Connection, resource: uuid.UUID, kind: str) -> list[str]:
    asked = "SELECT state FROM outbox WHERE resource_id = :id AND kind = :kind ORDER BY id"
    return list(db.execute(text(asked), {"id": resource, "kind": kind}).scalars())


def if_match(answer: httpx.Response) -> dict[str, str]:
    return {"If-Match": answer.headers["etag"]}


def test_every_answer_with_a_resource_has_its_etag(acme: httpx.Client, boss: httpx.Client, db: Connection) -> None:
    made = acme.post("/v1/resources", json={"kind": "postgres", "backend": "pg-main", "name": "orders"})
    path = f"/v1/resources/{a_resource(db)}"
    answers = [made, acme.get(path), acme.patch(path, json={"protected": False}), acme.delete(path)]
    answers += [boss.post(f"{path}/purge", json=MISTAKE), acme.post(f"{path}/restore", json=MISTAKE), acme.get(path)]
    for answer in answers:
        resource = answer.json().get("resource", answer.json())
        assert answer.headers["etag"] == f'"{resource["version"]}"', answer.request.url
    versions = [int(answer.headers["etag"].strip('"')) for answer in answers[1:]]
    assert versions == [1, 2, 3, 4, 5, 5], "each change raises it, and reading does not"


def test_a_change_of_what_has_changed_meanwhile_is_refused_and_changes_nothing(
    acme: httpx.Client, boss: httpx.Client, db: Connection
) -> None:
    resource = a_resource(db)
    path = f"/v1/resources/{resource}"
    old = if_match(acme.get(path))
    fresh = if_match(acme.patch(path, json={"grace": "2h"}, headers=old))
    assert fresh != old
    assert fresh["If-Match"] in problem(acme.delete(path, headers=old), 412, "version_mismatch")["detail"]
    problem(acme.patch(path, json={"protected": True}, headers=old), 412, "version_mismatch")
    assert (row(db, resource).status, row(db, resource).protected) == ("active", False)
    deleted = acme.delete(path, headers=fresh)
    assert deleted.status_code == 202
    problem(acme.post(f"{path}/restore", json=MISTAKE, headers=fresh), 412, "version_mismatch")
    problem(boss.post(f"{path}/purge", json=MISTAKE, headers=fresh), 412, "version_mismatch")
    assert (row(db, resource).status, jobs_of(db, resource, "restore")) == ("deleting", [])
    purged = boss.post(f"{path}/purge", json=MISTAKE, headers=if_match(deleted))
    assert purged.status_code == 200
    assert acme.post(f"{path}/restore", json=MISTAKE, headers=if_match(purged)).status_code == 202


def test_a_tag_that_is_no_strong_one_of_ours_never_matches(acme: httpx.Client, db: Connection) -> None:
    path = f"/v1/resources/{a_resource(db)}"
    for tag in ('W/"1"', '"x"', '"01"', '"99999999999999999999999"', '""'):
        problem(acme.delete(path, headers={"If-Match": tag}), 412, "version_mismatch")


def test_a_star_matches_what_exists_and_what_is_no_tag_is_refused(acme: httpx.Client, db: Connection) -> None:
    path = f"/v1/resources/{a_resource(db)}"
    for wrong in ("1", "", '"1", "2"', '"1', "\xe9"):
        body = problem(acme.delete(path, headers=[("If-Match", wrong.encode("latin-1"))]), 422, "invalid_request")
        assert "if-match" in body["detail"].lower()
    twice = [("If-Match", '"1"'), ("If-Match", '"2"')]
    assert "If-Match" in problem(acme.delete(path, headers=twice), 422, "invalid_request")["detail"]
    star = {"If-Match": "*"}
    assert acme.delete(path, headers=star).status_code == 202
    problem(acme.delete(f"/v1/resources/{uuid.uuid4()}", headers=star), 404, "not_found")


def test_of_many_changes_of_one_version_one_is_made(
    acme: httpx.Client, db: Connection, system: System, tenant: str
) -> None:
    resource = a_resource(db)
    tag = if_match(acme.get(f"/v1/resources/{resource}"))
    callers = [client(url, tenant) for url in (str(acme.base_url), system.api()) * 6]
    answers = at_once(12, lambda i: callers[i].patch(f"/v1/resources/{resource}", json={"grace": "2h"}, headers=tag))
    for caller in callers:
        caller.close()
    assert sorted(answer.status_code for answer in answers) == [200] + [412] * 11
    assert row(db, resource).version == 2


def test_a_delete_that_is_repeated_with_its_key_after_a_restore_deletes_nothing(
    acme: httpx.Client, db: Connection
) -> None:
    resource = a_resource(db)
    path, key = f"/v1/resources/{resource}", {"Idempotency-Key": "offboarding 7"}
    tag = if_match(acme.get(path))
    asked = {"grace": "2h", "reason": "left", "on_behalf_of": "jo"}
    first, again = (acme.delete(path, params=asked, headers=key | tag) for _ in range(2))
    assert (first.status_code, first.content) == (again.status_code, again.content)
    restored = acme.post(f"{path}/restore", json=MISTAKE)
    assert restored.status_code == 202
    given_back(db, resource)
    late = acme.delete(path, params=asked, headers=key)
    assert (late.status_code, late.json()["already_deleted"]) == (202, False), "as it was answered the first time"
    assert (late.json()["job"]["id"], late.json()["job"]["state"]) == (first.json()["job"]["id"], "cancelled")
    assert late.json()["resource"]["status"] == row(db, resource).status == "active"
    assert acme.delete(path, headers={"Idempotency-Key": "another"}).status_code == 202
    assert jobs_of(db, resource, "deprovision") == ["cancelled", "pending"]
    still = acme.delete(path, params=asked, headers=key)
    assert (still.status_code, still.json()["job"]["id"]) == (202, first.json()["job"]["id"])


def test_a_delete_with_a_key_that_came_before_with_other_parameters_is_refused(
    acme: httpx.Client, db: Connection
) -> None:
    path, key = f"/v1/resources/{a_resource(db)}", {"Idempotency-Key": "k"}
    asked = {"grace": "2h", "reason": "left", "on_behalf_of": "jo"}
    assert acme.delete(path, params=asked, headers=key).status_code == 202
    for other in ({"grace": "3h"}, {"reason": "r"}, {"on_behalf_of": "ann"}, {"snapshot": "off"}):
        problem(acme.delete(path, params=asked | other, headers=key), 409, "idempotency_key_reused")
    problem(acme.delete(path, params={"reason": "left"}, headers=key), 409, "idempotency_key_reused")
    same_time = acme.delete(path, params=asked | {"grace": "120m"}, headers=key)
    assert same_time.status_code == 202, "the same time in other words"
    assert acme.delete(path, params=asked).json()["already_deleted"] is True, "without a key it is another request"


def test_deletes_with_one_key_and_different_parameters_at_once_are_one_and_refusals(
    acme: httpx.Client, db: Connection, tenant: str
) -> None:
    for _ in range(5):
        path = f"/v1/resources/{a_resource(db)}"

        def delete(number: int, path: str = path) -> httpx.Response:
            with client(str(acme.base_url), tenant) as caller:
                caller.get("/healthz")
                asked = {"grace": f"{2 + number % 2}h"}
                return caller.delete(path, params=asked, headers={"Idempotency-Key": "k"})

        answers = at_once(8, delete)
        assert sorted(answer.status_code for answer in answers) == [202] * 4 + [409] * 4
        assert len({answer.json()["job"]["id"] for answer in answers if answer.is_success}) == 1


def test_a_key_belongs_to_its_tenant_or_operator_its_verb_and_its_resource(
    acme: httpx.Client, boss: httpx.Client, db: Connection
) -> None:
    key, other = {"Idempotency-Key": "k"}, a_resource(db)
    resource = a_resource(db)
    path = f"/v1/resources/{resource}"
    assert acme.delete(path, headers=key).status_code == 202
    assert acme.delete(f"/v1/resources/{other}", headers=key).json()["already_deleted"] is False
    assert boss.delete(path, headers=key).json()["already_deleted"] is True, "another caller"
    twin = tokens.create(db, actor="op", role="tenant", tenant="acme", name="twin")[1]
    with client(str(acme.base_url), twin) as same:
        assert same.delete(path, headers=key).json()["already_deleted"] is False, "the same tenant"
    with_key = {"Idempotency-Key": "another verb's"}
    assert acme.post(f"{path}/restore", json=MISTAKE, headers=with_key).status_code == 202
    given_back(db, resource)
    assert acme.delete(path, headers=with_key).status_code == 202


def given_back(db: Connection, resource: uuid.UUID) -> None:
    """As a worker leaves it."""
    db.execute(text("UPDATE resources SET status = 'active' WHERE id = :id"), {"id": resource})
    db.execute(text("UPDATE outbox SET state = 'succeeded', finished_at = now() WHERE kind = 'restore'"))


def test_one_key_on_many_resources_at_once_deletes_each(acme: httpx.Client, db: Connection, tenant: str) -> None:
    resources = [str(a_resource(db)) for _ in range(16)]

    def delete(number: int) -> httpx.Response:
        with client(str(acme.base_url), tenant) as caller:
            caller.get("/healthz")
            return caller.delete(f"/v1/resources/{resources[number]}", headers={"Idempotency-Key": "k"})

    answers = at_once(len(resources), delete)
    assert [(a.status_code, a.json()["resource"]["id"]) for a in answers] == [(202, id) for id in resources]


def test_a_restore_and_a_purge_with_their_keys_are_done_once(
    acme: httpx.Client, boss: httpx.Client, db: Connection
) -> None:
    resource = a_resource(db)
    path, key = f"/v1/resources/{resource}", {"Idempotency-Key": "k"}
    acme.delete(path)
    purged, again = (boss.post(f"{path}/purge", json=MISTAKE, headers=key) for _ in range(2))
    assert (purged.status_code, purged.content) == (again.status_code, again.content)
    restored, again = (acme.post(f"{path}/restore", json=MISTAKE, headers=key) for _ in range(2))
    assert (restored.status_code, restored.content) == (202, again.content)
    for who, verb in ((acme, "restore"), (boss, "purge")):
        other = who.post(f"{path}/{verb}", json={"reason": "another"}, headers=key)
        problem(other, 409, "idempotency_key_reused")
    given_back(db, resource)
    acme.delete(path)
    assert acme.post(f"{path}/restore", json=MISTAKE, headers=key).json()["job"]["id"] == restored.json()["job"]["id"]
    assert boss.post(f"{path}/purge", json=MISTAKE, headers=key).json()["job"]["id"] == purged.json()["job"]["id"]
    now = row(db, resource)
    assert (now.status, now.purge_at > now.deleted_at) == ("deleting", True), "neither was done again"
