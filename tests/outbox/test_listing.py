"""A hundred thousand stuck jobs, and as many that ended well: pages are read by an index, counts in one pass."""

import base64
import datetime as dt
import json
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Connection, text

from outbox import queries
from outbox.queries import JobFilter
from tests.support.processes import System, client

NUMBER = 100_000
# Each resource's birth went well, one a second for a day; then its teardown got stuck. `early` was there first.
MADE = (
    "SET statement_timeout = 0; SET session_replication_role = replica",
    f"""INSERT INTO resources (id, tenant, kind, backend, name, status, generation, manifest, activated_at, deleted_at,
                               created_at)
        SELECT gen_random_uuid(),
               CASE WHEN n % 1000 = 0 THEN 'small' WHEN n <= 2000 THEN 'early' WHEN n % 10 = 0 THEN 'globex'
                    ELSE 'acme' END,
               'postgres', CASE WHEN n % 5000 = 0 THEN 'pg-rare' WHEN n % 3 = 0 THEN 'pg-2' ELSE 'pg-main' END,
               'orders', 'deleting', gen_random_uuid(), jsonb_build_object('n', n), now(), now(),
               now() - ({NUMBER} - n) * interval '1 second'
          FROM generate_series(1, {NUMBER}) AS n""",
    """INSERT INTO outbox (kind, state, resource_id, backend, fence, attempts, max_attempts, request_id, created_at,
                            finished_at)
       SELECT 'provision', 'succeeded', id, backend, 1, 1, 10, id, created_at, created_at FROM resources
        ORDER BY created_at""",
    """INSERT INTO outbox (kind, state, stuck_reason, resource_id, backend, fence, attempts, max_attempts, request_id,
                           created_at, last_error)
       SELECT 'deprovision', 'stuck',
              CASE WHEN n % 5000 = 0 THEN 'outcome_unknown' WHEN n % 7 = 0 THEN 'refused'
                   ELSE 'attempts_exhausted' END,
              id, backend, 10, 10, 10, id, created_at,
              'cannot reach 10.0.0.' || n % 250 || CASE WHEN n % 9999 = 0 THEN ': No space left on device'
                                                        ELSE ': connection refused, three times' END
         FROM (SELECT *, CAST(manifest ->> 'n' AS int) AS n FROM resources ORDER BY created_at) AS resources""",
    "VACUUM ANALYZE outbox",
    "VACUUM ANALYZE resources",
    "SET session_replication_role = origin",
    "RESET statement_timeout",
)
DAY = dt.timedelta(days=1)
FILTERS: list[dict[str, Any]] = [
    {},
    *({"state": state} for state in ("stuck", "succeeded", "pending", "running", "cancelled")),
    *({"reason": reason} for reason in ("attempts_exhausted", "refused", "outcome_unknown")),
    *({"kind": kind} for kind in ("provision", "deprovision", "restore")),
    *({"backend": backend} for backend in ("pg-main", "pg-2", "pg-rare", "nowhere")),
    *({"tenant": tenant} for tenant in ("acme", "globex", "small", "early", "nobody")),
    *({"error": error} for error in ("connection REFUSED", "no space", "no such words")),
    *({"older_than": age} for age in (dt.timedelta(hours=1), DAY, DAY + dt.timedelta(hours=3.75), 9 * DAY)),
    {"backend": "pg-2", "tenant": "globex", "error": "refused", "older_than": dt.timedelta(hours=1)},
]


@pytest.fixture
def many(db: Connection) -> Connection:
    for statement in MADE:
        db.execute(text(statement))
    return db


@contextmanager
def timed(db: Connection, took: list[str]) -> Iterator[list[Any]]:
    """The one statement that is asked meanwhile and its parameters; how long it all took goes to `took`."""
    asked: list[Any] = []

    def note(conn: Any, cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        assert not asked, "one statement"
        asked.extend((statement, parameters))

    sa.event.listen(db.engine, "before_cursor_execute", note)
    began = time.perf_counter()
    yield asked
    took.append(f"{1000 * (time.perf_counter() - began):.1f} ms")
    sa.event.remove(db.engine, "before_cursor_execute", note)


def scans(db: Connection, statement: str, parameters: Any) -> list[str]:
    """How each scan of the plan reads, and what."""
    with db.connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN (FORMAT JSON) {statement}", parameters)
        plan = cursor.fetchone()[0]
    plan = json.loads(plan) if isinstance(plan, str) else plan
    nodes = [node for node in _nodes(plan[0]["Plan"]) if "Scan" in node["Node Type"]]
    return [f"{node['Node Type']} {node.get('Index Name') or node.get('Relation Name')}" for node in nodes]


def _nodes(plan: dict[str, Any]) -> list[dict[str, Any]]:
    return [plan, *(node for child in plan.get("Plans", []) for node in _nodes(child))]


@pytest.mark.proof
def test_each_page_is_read_by_an_index_and_each_count_in_one_pass(many: Connection) -> None:
    asked = [words | more for words in FILTERS for more in ({}, {"state": "stuck"}) if not words.keys() & more.keys()]
    for words in asked:
        took = []
        # The first page, one in the middle of the stuck ones, and one among those that ended well.
        for before in (None, NUMBER * 3 // 2, NUMBER // 2):
            cursor = before and base64.urlsafe_b64encode(json.dumps([before]).encode()).decode()
            with timed(many, took) as seen:
                queries.list_jobs(many, JobFilter(**words), cursor=cursor, limit=50)
            read = scans(many, *seen)
            assert not [scan for scan in read if scan.startswith("Seq Scan")], (words, before, read)
        with timed(many, took) as seen:
            counts = queries.count_jobs(many, JobFilter(**words))
        passes = [scan for scan in scans(many, *seen) if "outbox" in scan and "Bitmap Index" not in scan]
        assert len(passes) == 1, (words, passes)
        assert counts.total == sum(counts.by_state.values()) == sum(counts.by_backend.values())
        assert counts.by_state.get("stuck", 0) == sum(counts.by_reason.values())
        print(f"{words}: pages {', '.join(took[:3])}; count {took[3]}; by {read}")
    assert queries.count_jobs(many).by_state == {"stuck": NUMBER, "succeeded": NUMBER}


@pytest.mark.proof
def test_all_of_them_are_walked_over_http_page_by_page(many: Connection, system: System, operator: str) -> None:
    walked: list[int] = []
    took: list[float] = []
    with client(system.api(), operator) as api:
        asked: dict[str, Any] = {"state": "stuck", "limit": 200}
        while asked.get("cursor", "") is not None:
            began = time.perf_counter()
            page = api.get("/v1/jobs", params=asked).json()
            took.append(1000 * (time.perf_counter() - began))
            walked += [item["id"] for item in page["items"]]
            asked["cursor"] = page["next_cursor"]
    print(f"{len(took)} pages of 200: median {statistics.median(took):.1f} ms, longest {max(took):.1f} ms")
    assert walked == list(range(2 * NUMBER, NUMBER, -1))
