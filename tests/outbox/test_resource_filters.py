"""Filters of the listing of resources: each finds its rows by an index; labels and external ids are the caller's."""

import json
import uuid
from typing import Any

import pytest
from sqlalchemy import Connection, text

from outbox import queries, resources
from outbox.errors import BadRequest, ExternalIdTaken
from outbox.queries import ResourceFilter
from outbox.resources import NewResource
from tests.outbox.test_listing import timed
from tests.support.factories import a_resource, unguarded
from tests.support.processes import System, client

NUMBER = 100_000
MADE = (
    "SET statement_timeout = 0; SET session_replication_role = replica",
    f"""INSERT INTO resources (id, tenant, kind, backend, name, status, generation, manifest, activated_at, created_at,
                               external_id, labels, adopted, protected)
        SELECT gen_random_uuid(), CASE WHEN n % 5 = 0 THEN 'globex' ELSE 'acme' END, 'postgres',
               CASE WHEN n <= 30 THEN 'pg-old' WHEN n <= 30000 THEN 'pg-2' ELSE 'pg-main' END,
               CASE WHEN n % 20000 = 0 THEN 'rare' ELSE 'orders' || n % 7 END, 'active', gen_random_uuid(), '{{}}',
               now(),
               now() - ({NUMBER} - n) * interval '1 second',
               CASE WHEN n <= 40000 THEN 'ext-' || n END,
               CASE WHEN n <= 20 THEN '{{"team": "first", "tier": "gold"}}'::jsonb
                    WHEN n % 2 = 0 THEN jsonb_build_object('team', 'payments', 'cost', n % 5000 || '') ELSE '{{}}' END,
               n <= 50, n <= 60
          FROM generate_series(1, {NUMBER}) AS n""",
    "VACUUM ANALYZE resources",
    "SET session_replication_role = origin",
    "RESET statement_timeout",
)
FILTERS: list[tuple[ResourceFilter, int]] = [
    (ResourceFilter(), 50),
    (ResourceFilter(tenant="globex"), 50),
    (ResourceFilter(backend="pg-main"), 50),
    (ResourceFilter(backend="pg-2"), 50),
    (ResourceFilter(backend="pg-old"), 30),
    (ResourceFilter(backend="nowhere"), 0),
    (ResourceFilter(name="rare"), 5),
    (ResourceFilter(name="orders3"), 50),
    (ResourceFilter(name="nothing"), 0),
    (ResourceFilter(external_id="ext-39"), 1),
    (ResourceFilter(external_id="none"), 0),
    (ResourceFilter(labels=(("team", "first"),)), 20),
    (ResourceFilter(labels=(("team", "first"), ("tier", "gold"))), 20),
    (ResourceFilter(labels=(("team", "first"), ("tier", "lead"))), 0),
    (ResourceFilter(labels=(("team", "payments"),)), 50),
    (ResourceFilter(labels=(("cost", "42"),)), 20),
    (ResourceFilter(labels=(("cost", "none"),)), 0),
    (ResourceFilter(adopted=True), 50),
    (ResourceFilter(adopted=False), 50),
    (ResourceFilter(protected=True), 50),
    (ResourceFilter(protected=False, backend="pg-2"), 50),
    (ResourceFilter(tenant="globex", labels=(("team", "first"),)), 4),
]
# Of 100,000: a page has 51 rows, and a filter that fits every second or seventh row skips some.
MOST_READ = 2_000


def test_each_filter_reads_a_page_and_not_the_table(db: Connection) -> None:
    for statement in MADE:
        db.execute(text(statement))
    for wanted, found in FILTERS:
        took: list[str] = []
        with timed(db, took) as asked:
            page = queries.list_resources(db, wanted)
        assert len(page.items) == found, wanted
        read = _rows_read(db, *asked)
        print(f"{wanted.clauses()}: {took[0]}, {read} rows")
        assert read <= MOST_READ, (wanted, read)


def _rows_read(db: Connection, statement: str, parameters: Any) -> int:
    """How many rows all scans of the plan gave or skipped, by the server's own count."""
    with db.connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", parameters)
        plan = cursor.fetchone()[0]
    plan = json.loads(plan) if isinstance(plan, str) else plan
    nodes, read = [plan[0]["Plan"]], 0
    while nodes:
        node = nodes.pop()
        nodes += node.get("Plans", [])
        if "Scan" in node["Node Type"]:
            read += int(node["Actual Rows"]) + int(node.get("Rows Removed by Filter", 0))
    return read


def test_external_id_and_labels_come_back_and_filter_over_http(system: System, operator: str, tenant: str) -> None:
    body = {"kind": "postgres", "backend": "pg-main", "name": "orders", "external_id": "crm-7"}
    with client(system.api(), tenant) as api, client(system.api(), operator) as every:
        made = api.post("/v1/resources", json=body | {"labels": {"team": "payments", "tier": "gold"}}).json()[
            "resource"
        ]
        plain = api.post("/v1/resources", json={**body, "external_id": None}).json()["resource"]
        assert (made["external_id"], made["labels"], made["adopted"]) == (
            "crm-7",
            {"team": "payments", "tier": "gold"},
            False,
        )
        assert (plain["external_id"], plain["labels"]) == (None, {})

        def found(who: Any, **filters: Any) -> list[str]:
            answer = who.get("/v1/resources", params=filters)
            assert answer.status_code == 200, answer.text
            return [item["id"] for item in answer.json()["items"]]

        assert found(api, external_id="crm-7") == [made["id"]]
        assert found(api, label=["team:payments", "tier:gold"]) == [made["id"]]
        assert found(api, label=["team:payments", "tier:lead"]) == []
        assert set(found(api, name="orders", backend="pg-main", adopted="false", protected="false")) == {
            made["id"],
            plain["id"],
        }
        assert found(api, adopted="true") == found(api, protected="true") == found(api, name="nothing") == []
        assert set(found(every, tenant=made["tenant"])) == {made["id"], plain["id"]}
        assert found(every, tenant="another") == []
        taken = api.post("/v1/resources", json=body)
        assert (taken.status_code, taken.json()["code"]) == (409, "external_id_taken")
        assert api.get("/v1/resources", params={"tenant": "another"}).status_code == 422
        assert api.get("/v1/resources", params={"name": ["a", "b"]}).status_code == 422
        for wrong in ({"label": "team"}, {"label": ":x"}, {"labels": "x"}, {"adopted": "maybe"}):
            assert api.get("/v1/resources", params=wrong).status_code == 422, wrong
        for wrong_body in (
            {"labels": {"a": 1}},
            {"labels": {"a:b": "x"}},
            {"labels": {"": "x"}},
            {"labels": {"a": "x" * 201}},
            {"labels": {str(n): "x" for n in range(21)}},
            {"labels": []},
            {"labels": None},
            {"external_id": ""},
            {"external_id": "x" * 201},
            {"external_id": "a\nb"},
        ):
            answer = api.post("/v1/resources", json=body | wrong_body)
            assert answer.status_code == 422, (wrong_body, answer.text)


def test_a_key_from_before_labels_still_fits_its_body() -> None:
    from api.schemas.resources import CreateResource

    body = {"kind": "postgres", "backend": "pg-main", "name": "orders"}
    plain = CreateResource(**body).digest()
    assert plain == CreateResource(**body, labels={}, external_id=None).digest()
    assert (
        plain != CreateResource(**body, labels={"a": "b"}).digest() != CreateResource(**body, external_id="a").digest()
    )
    assert CreateResource(**body, grace="0s").digest() != plain


def test_an_external_id_belongs_to_one_resource_of_a_tenant_that_is_there(db: Connection) -> None:
    new = NewResource("acme", "postgres", "pg-main", "orders", external_id="crm-7")
    first, _ = resources.register(db, new, actor="me")
    with pytest.raises(ExternalIdTaken, match="crm-7"):
        resources.register(db, new, actor="me")
    resources.register(db, NewResource(**{**vars(new), "tenant": "globex"}), actor="me")
    gone = "UPDATE resources SET status = 'deleted', deleted_at = now(), purged_at = now() WHERE id = :id"
    unguarded(db, gone, id=first.id)
    assert resources.register(db, new, actor="me")[0].external_id == "crm-7"


def test_the_database_itself_takes_labels_only_as_an_object(db: Connection) -> None:
    id: uuid.UUID = a_resource(db)
    with pytest.raises(Exception, match="resources_labels_object"):
        db.execute(text("""UPDATE resources SET labels = '["a"]' WHERE id = :id"""), {"id": id})
    with pytest.raises(BadRequest, match="labels"):
        resources.register(db, NewResource("acme", "postgres", "pg-main", "n", labels={"a": 7}), actor="me")  # type: ignore[dict-item]
