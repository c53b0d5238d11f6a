"""`backends rebind`, `retire`, `abandon` and their kin as people at shells run them."""

import json
from typing import Any

import pytest
from sqlalchemy import Connection, text

from outbox import settings, tokens
from tests.deprovisioner.test_recover import row_of
from tests.support.api import problem
from tests.support.customers import a_customer
from tests.support.factories import a_job, a_resource, job, status_of
from tests.support.processes import System, client, shell
from worker import backends


@pytest.fixture
def pair(db: Connection) -> list[str]:
    """The tokens of two operators."""
    return [tokens.create(db, actor="op", role="operator", tenant=None, name=name)[1] for name in ("ann", "bob")]


def answered(env: dict[str, str], *words: str, code: int = 0) -> Any:
    answer = shell(env, *words, "--json")
    assert answer.returncode == code, answer.stderr + answer.stdout
    return json.loads(answer.stdout)


def test_a_backend_gets_another_name_and_its_resources_follow(env: dict[str, str], db: Connection) -> None:
    customer = a_customer(backends.build(settings.backends()["pg-main"], protected=frozenset()))  # type: ignore[arg-type]
    id = row_of(db, customer)
    still = shell(env, "backends", "rebind", "pg-main", "--from", "redis-main", "--dry-run")
    assert still.returncode == 2
    assert "the backends file still has it" in still.stderr
    with open(env["DEPROVISIONER_BACKENDS"], encoding="utf-8") as file:
        renamed = file.read().replace("[backends.pg-main]", "[backends.pg-eu]")
    with open(env["DEPROVISIONER_BACKENDS"], "w", encoding="utf-8") as file:
        file.write(renamed)
    shown = shell(env, "backends", "rebind", "pg-eu", "--from", "pg-main", "--dry-run")
    assert shown.returncode == 0, shown.stderr
    assert "backends rebind pg-eu --from pg-main --digest" in shown.stdout
    assert "--old-server" not in shown.stdout, "the server is the same"
    seen = answered(env, "backends", "rebind", "pg-eu", "--from", "pg-main", "--dry-run")
    assert seen["counts"]["rebind"] == 1
    words = ("--from", "pg-main", "--digest", seen["digest"], "--reason", "a better name")
    assert answered(env, "backends", "rebind", "pg-eu", *words)["rebound"] == 1
    assert db.execute(text("SELECT backend FROM resources WHERE id = :id"), {"id": id}).scalar_one() == "pg-eu"


def test_a_gone_server_s_teardowns_are_abandoned_by_two_at_shells_and_the_ledger_lists_them(
    env: dict[str, str], db: Connection, pair: list[str]
) -> None:
    ids = [a_job(db), a_job(db)]
    early = shell(env, "backends", "abandon", "pg-main", "--reason", "r", "--token", pair[0])
    assert (early.returncode, "is not retired" in early.stderr) == (1, True)
    assert answered(env, "backends", "retire", "pg-main", "--reason", "the rack burned: INC-7")["cause"] == "retired"
    said = ("backends", "abandon", "pg-main", "--reason", "certificate 4711", "--token")
    assert answered(env, *said, pair[0], code=1) == {"abandoned": 0, "proposed": 2, "refused": {}}
    assert answered(env, *said, pair[1]) == {"abandoned": 2, "proposed": 0, "refused": {}}
    assert {job(db, id).state for id in ids} == {"abandoned"}
    ledger = answered(env, "audit", "abandoned", "--backend", "pg-main")["items"]
    assert [row["job_id"] for row in ledger] == ids
    assert "certificate 4711" in shell(env, "audit", "abandoned").stdout
    back = shell(env, "backends", "unretire", "pg-main", "--reason", "it came back")
    assert (back.returncode, "stays retired" in back.stderr) == (1, True)


def test_a_retired_backend_and_an_abandonment_have_their_problem_codes(
    system: System, db: Connection, pair: list[str], tenant: str
) -> None:
    id, kept = a_job(db), a_resource(db)
    url = system.api()
    with client(url, pair[0]) as ann, client(url, pair[1]) as bob, client(url, tenant) as acme:
        said = {"fence": 0, "reason": "certificate 4711"}
        problem(ann.post(f"/v1/jobs/{id}/abandon", json=said), 409, "not_retired")
        assert system.cli("backends", "retire", "pg-main", "--reason", "gone").returncode == 0
        new = {"kind": "postgres", "backend": "pg-main", "name": "orders"}
        problem(acme.post("/v1/resources", json=new), 409, "backend_retired")
        problem(acme.get(f"/v1/resources/{kept}/credentials"), 409, "backend_retired")
        assert acme.delete(f"/v1/resources/{kept}").status_code == 202
        assert ann.post(f"/v1/jobs/{id}/abandon", json=said).status_code == 202
        assert bob.post(f"/v1/jobs/{id}/abandon", json=said).json()["state"] == "abandoned"
        hold = ann.get("/v1/holds").json()["items"][0]
        problem(ann.post(f"/v1/holds/{hold['id']}/release", json={"reason": "r"}), 409, "has_abandoned")
    assert status_of(db, kept) == "deleting"
