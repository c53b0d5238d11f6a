"""Reading the outbox over HTTP: filters, pages and counts, each caller within what it may see."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from sqlalchemy import Connection, text

from api.v1.jobs import OBSERVE_SECONDS, WAITING
from outbox import jobs as transitions
from outbox import observations, tokens
from outbox.states import Found, StuckReason
from tests.support.api import problem
from tests.support.factories import a_job, a_resource, claims
from tests.support.factories import a_stuck_job as stuck
from tests.support.processes import System, client
from tests.support.witness import eventually


@pytest.fixture
def api(system: System, operator: str) -> Iterator[httpx.Client]:
    with client(system.api(), operator) as made:
        yield made


OPEN = text("SELECT count(*) FROM observations WHERE observed_at IS NULL")


def ids(answer: httpx.Response) -> list[int]:
    assert answer.status_code == 200, answer.text
    return [item["id"] for item in answer.json()["items"]]


@pytest.fixture
def jobs(db: Connection) -> dict[str, int]:
    return {
        "full": stuck(db, error="ERROR: no space left on device (100%)", hours=5, reason="attempts_exhausted"),
        "other": stuck(db, tenant="globex", error="another's OID: 16_384", backend="pg-2"),
        "adoption": stuck(db, kind="provision", hours=2, error="C:\\temp/x"),
        "pending": a_job(db),
        "done": a_job(db, state="succeeded", backend="pg-2"),
    }


FILTERS = [
    ({}, ["done", "pending", "adoption", "other", "full"]),
    ({"state": "stuck"}, ["adoption", "other", "full"]),
    ({"reason": "attempts_exhausted"}, ["full"]),
    ({"kind": "provision"}, ["adoption"]),
    ({"backend": "pg-2"}, ["done", "other"]),
    ({"backend": "pg-2", "state": "stuck"}, ["other"]),
    ({"tenant": "globex"}, ["other"]),
    ({"tenant": "nobody"}, []),
    ({"error": "NO SPACE"}, ["full"]),
    ({"error": "100%"}, ["full"]),
    ({"error": "n%space"}, []),
    ({"error": "o_space"}, []),
    ({"error": "16_3"}, ["other"]),
    ({"error": "\\temp/"}, ["adoption"]),
    ({"error": "'; DROP TABLE outbox; --"}, []),
    ({"older_than_seconds": 3600}, ["adoption", "full"]),
    ({"older_than_seconds": 3 * 3600, "state": "stuck"}, ["full"]),
    ({"older_than_seconds": 0}, ["done", "pending", "adoption", "other", "full"]),
]


def test_each_filter_finds_its_jobs_newest_first_and_counts_the_same(api: httpx.Client, jobs: dict[str, int]) -> None:
    for words, expected in FILTERS:
        assert ids(api.get("/v1/jobs", params=words)) == [jobs[name] for name in expected], words
        assert api.get("/v1/jobs/counts", params=words).json()["total"] == len(expected), words
    assert api.get("/v1/jobs/counts").json() == {
        "total": 5,
        "by_state": {"pending": 1, "stuck": 3, "succeeded": 1},
        "by_reason": {"attempts_exhausted": 1, "refused": 2},
        "by_backend": {"pg-2": 2, "pg-main": 3},
    }


def test_pages_by_cursor_list_every_job_once(api: httpx.Client, db: Connection) -> None:
    made = [stuck(db) for _ in range(7)]
    a_job(db)
    walked: list[int] = []
    cursor: dict[str, str] = {}
    while True:
        page = api.get("/v1/jobs", params={"state": "stuck", "limit": 3} | cursor)
        walked += ids(page)
        made += [stuck(db)]  # what comes meanwhile is newer, and moves no page
        if page.json()["next_cursor"] is None:
            break
        cursor = {"cursor": page.json()["next_cursor"]}
    assert walked == made[6::-1]


def test_a_tenant_lists_and_counts_only_its_own_jobs(api: httpx.Client, jobs: dict[str, int], tenant: str) -> None:
    own = {"Authorization": f"Bearer {tenant}"}
    for words in ({}, {"tenant": "acme"}):
        assert jobs["other"] not in ids(api.get("/v1/jobs", params=words, headers=own))
        assert api.get("/v1/jobs/counts", params=words, headers=own).json()["total"] == 4
    assert api.get("/v1/jobs", params={"error": "another's"}, headers=own).json()["items"] == []
    for path in ("/v1/jobs", "/v1/jobs/counts"):
        body = problem(api.get(path, params={"tenant": "globex"}, headers=own), 422, "invalid_request")
        assert body["detail"].startswith("tenant: ")


@pytest.mark.parametrize(
    "query",
    [
        "older_than_seconds=-1",
        "older_than_seconds=1h",
        "older_than_seconds=1e30",
        "error=",
        "error=%00",
        "tenant=",
        "resource_id=x",
    ],
)
def test_a_wrong_filter_is_named(api: httpx.Client, query: str) -> None:
    for path in ("/v1/jobs", "/v1/jobs/counts"):
        assert query.partition("=")[0] in problem(api.get(f"{path}?{query}"), 422, "invalid_request")["detail"]
    problem(api.get("/v1/jobs/counts?limit=5"), 422, "invalid_request")


def test_requests_that_wait_for_an_inspection_leave_threads_for_others(api: httpx.Client, db: Connection) -> None:
    """More than a process has threads ask for a look, half of them to resolve, and no worker serves the backend."""
    ids = [stuck(db, backend="gone") for _ in range(45)]
    decision = {"reason": "r", "fence": 1}
    asked = [(id, "observe", None) for id in ids[::2]] + [(id, "resolve", decision) for id in ids[1::2]]
    with ThreadPoolExecutor(len(ids)) as people:
        answers = [people.submit(api.post, f"/v1/jobs/{id}/{verb}", json=body) for id, verb, body in asked]
        eventually(
            lambda: sum(answer.done() for answer in answers) == len(ids) - WAITING,
            OBSERVE_SECONDS - 2,
            "all but a few are answered at once",
        )
        assert api.get("/v1/jobs?limit=1").status_code == 200
        for answer in answers:
            if answer.done():
                problem(answer.result(), 503, "busy")
                assert answer.result().headers["retry-after"] == str(OBSERVE_SECONDS)
        for look in observations.take(db, {"gone": WAITING}, slots=WAITING):
            assert observations.record(db, look, worker="w", found=Found.ABSENT, seen={"looked": True})
    assert sum(answer.result().status_code == 200 for answer in answers) == WAITING
    with ThreadPoolExecutor(1) as person:
        id = next(id for (id, verb, _), answer in zip(asked, answers, strict=True) if answer.result().is_error)
        again = person.submit(api.post, f"/v1/jobs/{id}/observe")
        eventually(lambda: db.execute(OPEN).scalar_one() == 1, what="there is room again")
        (look,) = observations.take(db, {"gone": 1}, slots=1)
        assert observations.record(db, look, worker="w", found=Found.ABSENT, seen={"looked": True})
        assert again.result().status_code == 200


def test_a_tenant_reads_that_an_operator_acted_but_not_who_why_or_what_was_seen(
    api: httpx.Client, db: Connection, operator: str, tenant: str
) -> None:
    own, boss = (token.actor for who in (tenant, operator) if (token := tokens.find(db, who)))
    theirs, offboarded, expired = a_resource(db), a_resource(db), a_resource(db, expires="now()")
    asked = transitions.enqueue(db, theirs, actor=own, reason="too dear").job.id
    (claim,) = claims(db)
    transitions.stick(db, claim, worker="w", why=StuckReason.OUTCOME_UNKNOWN, error="not sure")
    word: dict[str, Any] = {"fence": 1, "actor": boss, "reason": "SECRET fraud"}
    transitions.redrive(db, asked, **word)
    (claim,) = claims(db)
    transitions.stick(db, claim, worker="w", why=StuckReason.OUTCOME_UNKNOWN, error="not sure")
    transitions.resolve_forced(db, asked, **word | {"fence": 2})
    observations.ask(db, asked, actor=boss)
    (look,) = observations.take(db, {"pg-main": 1}, slots=1)
    assert observations.record(db, look, worker="w", found=Found.DIFFERENT, seen={"who": "SECRET stranger"})
    transitions.resolve_forced(db, asked, **word | {"fence": 2, "actor": "token:99:SECRET name"})
    gone = transitions.Delete(offboarded, "cli:SECRET root", "acme", "SECRET fraud", {"operation": 7})
    away = transitions.enqueue_all(db, [gone])[gone.request_id].job.id
    transitions.expire(db, actor="w")
    over = db.execute(text("SELECT id FROM outbox WHERE resource_id = :id"), {"id": expired}).scalar_one()

    with client(str(api.base_url), tenant) as acme:
        told = {id: acme.get(f"/v1/jobs/{id}") for id in (asked, away, over)}
        listed = acme.get("/v1/jobs")
    assert "SECRET" not in listed.text + "".join(answer.text for answer in told.values())
    assert boss not in "".join(answer.text for answer in told.values())
    events = {e["event"]: (e["actor"], e["reason"], e["detail"]) for e in told[asked].json()["events"]}
    assert (events["enqueued"][0], events["enqueued"][1], events["stuck"][1]) == (own, "too dear", "not sure")
    assert events["redriven"] == events["proposed"] == events["resolved"] == ("operator", None, None)
    assert events["observed"] == ("w", None, None)
    requests = [answer.json()["request"] for answer in told.values()]
    assert [(r["actor"], r["reason"]) for r in requests] == [(own, "too dear"), ("operator", None), ("w", "expired")]
    assert all(api.get(f"/v1/jobs/{id}").text.count("SECRET") for id in (asked, away)), "operators read it all"
