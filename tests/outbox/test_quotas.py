"""Quotas: how much a tenant may have, exactly, and never at the price of a DELETE."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import Connection, text

from outbox import db as database
from outbox import jobs, resources, settings
from outbox.errors import QuotaExceeded
from outbox.resources import NewResource
from outbox.rows import Job, Resource
from tests.support.factories import a_resource, claims, status_of
from tests.support.processes import System, client
from tests.support.witness import eventually, waits_for_a_lock

Limited = Callable[[str], None]


@pytest.fixture
def limited(settled: dict[str, str]) -> Limited:
    """Add tables of tenants to the backends file."""

    def settle(tenants: str) -> None:
        path = Path(settled["DEPROVISIONER_BACKENDS"])
        path.write_text(path.read_text() + tenants)
        settings._tenants.cache_clear()

    return settle


def create(db: Connection, tenant: str = "acme", key: str | None = None) -> tuple[Resource, Job]:
    new = NewResource(tenant, "postgres", "pg-main", "n")
    return resources.register(db, new, actor="api", idempotency_key=key, request_digest="d" if key else None)


def made(db: Connection) -> int:
    return db.execute(text("SELECT count(*) FROM resources")).scalar_one()


def test_a_tenant_has_no_more_resources_than_it_may_have(db: Connection, limited: Limited) -> None:
    limited("[tenants.acme]\nmax_resources = 2\n")
    first = a_resource(db)
    again = create(db, key="k")
    with pytest.raises(QuotaExceeded, match=r"'acme' has 2 resources.*max_resources.*delete some") as refused:
        create(db)
    assert (refused.value.quota, refused.value.limit, made(db)) == ("max_resources", 2, 2)
    assert create(db, key="k") == again, "what was made before is no second resource"
    assert create(db, tenant="zed")[0].tenant == "zed"
    assert jobs.enqueue(db, first, actor="api").won, "a DELETE is never refused"
    with pytest.raises(QuotaExceeded):
        create(db)
    (claim,) = claims(db)
    jobs.start(db, claim, worker="w")
    jobs.complete(db, claim, worker="w", seen={})
    create(db)


def test_what_was_released_is_not_counted(db: Connection, limited: Limited) -> None:
    limited("[tenants.acme]\nmax_resources = 1\n")
    jobs.release(db, a_resource(db), actor="op", reason="r")
    with pytest.raises(QuotaExceeded):
        create(db)
    (claim,) = claims(db)
    jobs.let_go(db, claim, worker="w", seen={})
    create(db)


def test_a_tenant_has_no_more_under_way_than_it_may_have(db: Connection, limited: Limited) -> None:
    limited('[tenants."*"]\nmax_pending = 2\n')
    lives = [a_resource(db) for _ in range(3)]
    create(db)
    assert jobs.enqueue(db, lives[0], actor="api").won
    with pytest.raises(QuotaExceeded, match=r"being provisioned or deleted.*max_pending.*ask again") as refused:
        create(db)
    assert (refused.value.quota, refused.value.limit) == ("max_pending", 2)
    assert all(jobs.enqueue(db, id, actor="api").won for id in lives[1:]), "a DELETE is never refused"
    create(db, tenant="zed")


def test_two_creates_at_once_do_not_pass_together(db: Connection, limited: Limited) -> None:
    """The second one waits for the first one's commit, and counts what it made."""
    limited("[tenants.acme]\nmax_resources = 1\n")
    refused: list[QuotaExceeded] = []

    def second() -> None:
        with database.statement() as session:
            try:
                create(session)
            except QuotaExceeded as error:
                refused.append(error)

    with database.transaction() as first:
        create(first)
        thread = threading.Thread(target=second)
        thread.start()
        eventually(lambda: waits_for_a_lock(db) or not thread.is_alive(), what="the second one waits")
        with database.statement() as session:
            create(session, tenant="zed")  # which does not wait
    thread.join()
    assert len(refused) == 1
    assert db.execute(text("SELECT count(*) FROM resources WHERE tenant = 'acme'")).scalar_one() == 1


@pytest.mark.parametrize("quota", ["max_resources", "max_pending"])
def test_of_sixteen_creates_at_once_as_many_pass_as_may(db: Connection, limited: Limited, quota: str) -> None:
    limited(f"[tenants.acme]\n{quota} = 5\n")
    barrier, refused = threading.Barrier(16), []

    def one() -> None:
        with database.statement() as session:
            barrier.wait()
            try:
                create(session)
            except QuotaExceeded as error:
                refused.append(error)

    threads = [threading.Thread(target=one) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (made(db), len(refused)) == (5, 11)


def test_a_tenants_own_table_leaves_it_what_every_tenant_has(limited: Limited) -> None:
    limited('[tenants."*"]\nbrake = "5/1h"\nmax_pending = 9\nmax_resources = 7\n[tenants.acme]\nmax_pending = 0\n')
    own = settings.tenant("acme")
    assert (str(own.brake), own.max_pending, own.max_resources) == ("5/1h of tenant acme", 0, 7)
    assert settings.brakes("pg-main", "acme") == [own.brake]


def test_over_http_a_quota_is_429_and_says_what_to_do(
    limited: Limited, db: Connection, system: System, tenant: str
) -> None:
    limited("[tenants.acme]\nmax_resources = 1\n")
    body = {"kind": "postgres", "backend": "pg-main", "name": "n"}
    with client(system.api(), tenant) as api:
        id = api.post("/v1/resources", json=body).json()["resource"]["id"]
        answer = api.post("/v1/resources", json=body)
        assert (answer.status_code, answer.headers["content-type"]) == (429, "application/problem+json")
        problem = answer.json()
        assert (problem["code"], problem["quota"], problem["limit"]) == ("quota_exceeded", "max_resources", 1)
        assert "delete some" in problem["detail"]
        documented = api.get("/openapi.json").json()["paths"]["/v1/resources"]["post"]["responses"]
        assert "application/problem+json" in documented["429"]["content"]
        assert api.delete(f"/v1/resources/{id}").status_code == 202
    assert str(status_of(db, id)) == "deleting"
