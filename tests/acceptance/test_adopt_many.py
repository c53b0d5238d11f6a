"""Adoption of many objects, through the real command line, HTTP and workers, on real servers."""

import json
import signal
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, text

from outbox import adoptions, operations, resources
from outbox import db as database
from outbox.adoptions import Candidate
from outbox.errors import BadRequest, DigestMismatch, Refused, Unavailable
from outbox.resources import NewResource
from tests.support import accounts
from tests.support.processes import System, client
from tests.support.servers import Servers
from tests.support.shelf import Shelf
from tests.support.witness import PgServer, eventually
from worker import adoptions as inspections
from worker.backends.postgres import Postgres


def make(pg: PgServer, n: int) -> list[str]:
    """So many databases, each with a role, which the service's account may adopt."""
    names = [f"fleet_{uuid.uuid4().hex}" for _ in range(n)]
    for name in names:
        pg.query(f"CREATE ROLE {name} LOGIN")
        accounts.adoptable(pg, name, name)
    return names


@pytest.fixture
def pg(servers: Servers) -> PgServer:
    return servers.pg


def csv_of(path: Path, names: list[str], more: str = "") -> Path:
    rows = [f'{name},{name},shop-{n},acme,ext-{n},"{{""team"": ""t{n % 2}""}}"' for n, name in enumerate(names)]
    path.write_text("\ufeffdatabase,role,name,tenant,external_id,labels\r\n" + "\r\n".join(rows) + more, "utf-8")
    return path


def marked(pg: PgServer, names: list[str]) -> int:
    return pg.query(
        """SELECT count(*) FROM pg_database WHERE datname = ANY(%s)
              AND shobj_description(oid, 'pg_database') LIKE 'deprovisioner gen=%%'""",
        names,
    )[0][0]


def test_a_list_is_inspected_then_exactly_the_adoptable_ones_are_adopted(
    system: System, db: Connection, pg: PgServer, operator: str, tmp_path: Path
) -> None:
    names = make(pg, 6)
    stranger = f"theirs_{uuid.uuid4().hex}"
    pg.query(f"CREATE ROLE {stranger} LOGIN")
    pg.query(f"CREATE DATABASE {stranger} OWNER {stranger}")
    managed = names.pop()
    Postgres(pg.service_dsn).adopt({"database": managed, "role": managed}, uuid.uuid4())
    resources.register(db, NewResource("acme", "postgres", "pg-main", "n", external_id="ext-0"), actor="me")
    source = csv_of(tmp_path / "list.csv", [*names, "no_such_database", stranger, managed, "postgres"])
    system.worker()
    seen = json.loads(system.cli("adopt", "--backend", "pg-main", "--from", str(source), "--json").stdout)
    assert (seen["adoptable"], seen["refused"], seen["state"]) == (4, 5, "succeeded")
    wrong = {one["manifest"]["database"]: one["findings"] for one in seen["objects"] if one["outcome"] == "refused"}
    assert [one["code"] for one in wrong["no_such_database"]] == ["not_there"]
    assert [one["code"] for one in wrong[stranger]] == ["right_missing"]
    assert wrong[stranger][0]["mend"].startswith(f'GRANT "{stranger}"')
    assert "another resource already" in wrong[managed][0]["what"]
    assert "protected" in wrong["postgres"][0]["what"]
    assert "another resource of the tenant has this external_id" in wrong[names[0]][0]["what"]
    assert marked(pg, names) == 0, "a dry run changes nothing"
    table = system.cli("operations", "objects", str(seen["id"]), "--wrong").stdout
    assert len(wrong["postgres"]) > 1, "else the next line shows nothing"
    assert [finding["what"] in table for one in wrong.values() for finding in one] == [True] * table.count("database=")
    assert any(line.startswith("7 ") and "database=no_such_database" in line for line in table.splitlines()), table
    page = json.loads(system.cli("operations", "objects", str(seen["id"]), "--json").stdout)
    assert page["digest"] == seen["digest"]
    said = system.cli("adopt", "--backend", "pg-main", "--from", str(source)).stdout
    assert "adoptable: 4; refused: 5" in said
    assert "--preview" in said

    run = ("adopt", "--backend", "pg-main", "--preview", str(seen["id"]), "--digest", seen["digest"])
    done = system.cli(*run)
    assert done.returncode == 0, done.stdout + done.stderr
    active = """SELECT name, external_id, labels, adopted, tenant FROM resources
                 WHERE status = 'active' AND adopted ORDER BY name"""
    eventually(lambda: len(db.execute(text(active)).all()) == 4, what="all are active")
    rows = db.execute(text(active)).all()
    assert [row.name for row in rows] == ["shop-1", "shop-2", "shop-3", "shop-4"]
    assert {(row.external_id, row.labels["team"], row.adopted, row.tenant) for row in rows} == {
        (f"ext-{n}", f"t{n % 2}", True, "acme") for n in range(1, 5)
    }
    assert marked(pg, names) == 4
    again = json.loads(system.cli(*run, "--json").stdout)
    assert (again["progress"]["done"], again["state"]) == (4, "succeeded"), "the same run again is the first one"
    assert db.execute(text("SELECT count(*) FROM operations WHERE kind = 'adopt'")).scalar_one() == 1
    shown = json.loads(system.cli("operations", "show", str(seen["id"]), "--json").stdout)
    assert shown["digest"] == seen["digest"]
    other = system.cli("adopt", "--backend", "redis-main", *run[3:])
    assert other.returncode == 1
    assert f"operation {seen['id']} is of backend 'pg-main', and not of 'redis-main'" in other.stderr
    assert db.execute(text("SELECT count(*) FROM resources WHERE adopted")).scalar_one() == 4
    told = db.execute(text("SELECT detail FROM events WHERE event = 'enqueued' AND detail ? 'operation'")).scalars()
    assert len(list(told)) == 4
    with client(system.api(), operator) as api:
        page = api.get(f"/v1/operations/{seen['id']}/objects", params={"wrong": "true", "limit": 2}).json()
        assert [item["outcome"] for item in page["items"]] == ["refused", "refused"]
        assert page["digest"] == seen["digest"]
        more = api.get(f"/v1/operations/{seen['id']}/objects", params={"wrong": "true", "cursor": page["next_cursor"]})
        assert len(more.json()["items"]) >= 3


def test_what_was_made_again_since_the_preview_is_not_adopted_in_the_others_place(db: Connection, pg: PgServer) -> None:
    same, again = make(pg, 2)
    rows = [
        (n, {"tenant": "acme", "manifest": {"database": name, "role": name}}) for n, name in enumerate((same, again), 1)
    ]
    with database.transaction() as session:
        begun = operations.begin_preview(session, "pg-main", adoptions.check("pg-main", rows), reason="r", actor="op")
    backend = Postgres(pg.service_dsn)
    assert inspections.inspect_some({"pg-main": backend}, worker="w") == 2
    with database.transaction() as session:
        operations.advance(session, worker="w")
    digest = operations.previewed(db, begun.id).digest
    pg.query(f"DROP DATABASE {again}")
    pg.query(f"CREATE DATABASE {again} OWNER {again}")
    with database.transaction() as session:
        operations.begin_adopt(session, begun.id, reason="r", actor="op", digest=digest or "")
    with database.transaction() as session:
        assert operations.advance(session, worker="w")[0] == 2
    asked = {row.manifest["database"]: row.manifest for row in db.execute(text("SELECT manifest FROM resources"))}
    assert backend.adopt(asked[same], uuid.UUID(asked[same]["generation"])) == asked[same], "nothing was left open"
    with pytest.raises(Refused, match=r"has OID \d+, not"):
        backend.adopt(asked[again], uuid.UUID(asked[again]["generation"]))
    assert marked(pg, [same, again]) == 1


def test_over_http_a_list_and_its_real_run_are_operations(
    system: System, pg: PgServer, operator: str, tenant: str
) -> None:
    (name,) = make(pg, 1)
    system.worker()
    url = system.api()
    asked: dict[str, Any] = {"backend": "pg-main", "reason": "take over"}
    asked["objects"] = [{"tenant": "acme", "manifest": {"database": name, "role": name}, "labels": {"a": "b"}}]
    with client(url, operator) as api, client(url, tenant) as theirs:
        assert theirs.post("/v1/resources:adopt", json=asked).status_code == 403
        begun = api.post("/v1/resources:adopt", json=asked)
        assert begun.status_code == 202, begun.text
        id = begun.json()["operation"]["id"]
        assert begun.json()["operation"]["digest"] is None, "the list's is no digest of a real run"
        digest = eventually(lambda: api.get(f"/v1/operations/{id}/objects").json()["digest"], what="all is inspected")
        real = {"dry_run": False, "preview": id, "digest": digest, "reason": "take over"}
        wrong = api.post("/v1/resources:adopt", json=real | {"digest": f"7-{'0' * 64}"})
        assert (wrong.status_code, wrong.json()["code"]) == (409, "digest_mismatch")
        assert f"not the digest of preview {id}" in wrong.json()["detail"]
        assert api.get(f"/v1/operations/{id}").json()["digest"] == digest
        first, second = (api.post("/v1/resources:adopt", json=real) for _ in range(2))
        assert first.status_code == second.status_code == 202
        assert first.json()["operation"]["id"] == second.json()["operation"]["id"]
        found = eventually(
            lambda: api.get("/v1/resources", params={"adopted": "true", "status": "active"}).json()["items"],
            what="it is active",
        )
        assert [(one["name"], one["labels"]) for one in found] == [(name, {"a": "b"})]
        for broken in (
            {"objects": []},
            {"objects": [{}]},
            {"objects": [{"tenant": "acme", "manifest": {"role": "r"}}]},
            {"objects": [{"tenant": "acme", "manifest": {"database": "d"}, "nonsense": 1}]},
            {"objects": asked["objects"] * 2},
            {"backend": "nowhere"},
            {"dry_run": False},
            {"rate": 0},
            {"objects": [7]},
        ):
            assert api.post("/v1/resources:adopt", json=asked | broken).status_code == 422, broken
        long = [{"tenant": "acme", "manifest": {"database": f"d{n}"}} for n in range(4_000)]
        assert api.post("/v1/resources:adopt", json=asked | {"objects": long}).status_code == 202
        assert api.post("/v1/resources:adopt", content=b"x" * 2_000_000).status_code == 413
        assert api.post("/v1/resources", content=b"x" * 70_000).status_code == 413


@pytest.mark.proof
def test_it_goes_on_where_the_shell_and_the_worker_were_killed(
    system: System, db: Connection, pg: PgServer, tmp_path: Path
) -> None:
    names = make(pg, 12)
    source = csv_of(tmp_path / "list.csv", names)
    argv = [sys.executable, "-m", "deprovisioner.cli", "adopt", "--backend", "pg-main", "--from", str(source)]
    waiting = subprocess.Popen(argv, env=system.env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    eventually(lambda: db.execute(text("SELECT count(*) FROM adoptions")).scalar_one() == 12, what="the list is stored")
    waiting.send_signal(signal.SIGKILL)
    waiting.communicate()
    # As a worker that died with these has left them.
    taken = adoptions.take(db, ["pg-main"], batch=5)
    assert len(taken) == 5
    db.execute(text("UPDATE adoptions SET taken_until = now() WHERE taken_until IS NOT NULL"))
    worker = system.worker(DEPROVISIONER_LEASE_SECONDS="4")
    seen = json.loads(system.cli("adopt", "--backend", "pg-main", "--from", str(source), "--json").stdout)
    assert seen["adoptable"] == 12
    assert db.execute(text("SELECT count(*) FROM operations")).scalar_one() == 1, "the same preview went on"
    run = ("adopt", "--backend", "pg-main", "--preview", str(seen["id"]), "--digest", seen["digest"], "--rate", "5")
    system.cli(*run, "--no-wait")
    eventually(lambda: db.execute(text("SELECT count(*) FROM resources")).scalar_one() > 0, what="it begins")
    worker.container._container.kill("SIGKILL")
    system.worker()
    done = "SELECT count(*) FROM resources WHERE status = 'active' AND adopted"
    eventually(lambda: db.execute(text(done)).scalar_one() == 12, what="all are active")
    assert marked(pg, names) == 12


@pytest.fixture
def listed(tmp_path: Path) -> Any:
    from deprovisioner.cli.lists import read

    def check(content: bytes, name: str = "list.csv", tenant: str | None = "acme") -> list[Any]:
        (tmp_path / name).write_bytes(content)
        return adoptions.check("pg-main", read(tmp_path / name, "postgres", tenant=tenant))

    return check


@pytest.mark.parametrize(
    ("content", "name", "why"),
    [
        (b"", "list.csv", "has no header"),
        (b"database;role\na;b\n", "list.csv", "line 1: the columns must be separated by commas"),
        (b"database,database\na,b\n", "list.csv", "line 1: column 'database' is there twice"),
        (b"database,role\na\n", "list.csv", "line 2: has 1 cells, and the header has 2"),
        (b"database,role\n\na,b\nc,d,e\n", "list.csv", "line 4: has 3 cells"),
        (b"database,nonsense\na,b\nc,d\n", "list.csv", "^line 1: column 'nonsense' is none of name, .*, generation$"),
        (b"database,\na,\n", "list.csv", "^line 1: column '' is none of"),
        pytest.param(b"role\nb\nc\n", "list.csv", "^line 1: column 'database' is missing$", id="missing"),
        (b"database,role\n,b\n", "list.csv", "^line 2: manifest.database: is required$"),
        (b"database,oid\na,x\nb,y\n", "list.csv", "line 2: manifest.oid.*line 3: manifest.oid"),
        pytest.param(b"database\na\nb\na\n", "list.csv", "line 4: database: a is that of line 2", id="twice"),
        (b"database,role\na,r\nb,r\n", "list.csv", "line 3: role: r is that of line 2"),
        (b"database,external_id\na,x\nb,x\n", "list.csv", "line 3: external_id: acme: x is that of line 2"),
        (b"database,labels\na,team\n", "list.csv", "line 2: labels: must be an object"),
        (b"database,protected\na,maybe\n", "list.csv", "line 2: protected: must be true or false"),
        (b"database\na\n\xff\xfe\xfd\n", "list.csv", "^line 3: is not UTF-8"),
        pytest.param(b"database\n" + b"abcdefgh\n" * 5_000 + b"\xff\n", "list.csv", "^line 5002: is not", id="far"),
        ("database\na\n".encode("utf-16"), "list.csv", "is UTF-16"),
        (b"database\na\0b\n", "list.csv", "line 2: has a NUL byte"),
        (b'database\n"a\n', "list.csv", "is not CSV"),
        (b"x" * 10_000_000, "list.csv", "is not CSV: field larger"),
        (b"\n" * 10_000, "list.csv", "has no header"),
        (b"database\n" + b"a" * 100 + b"\n", "list.csv", "line 2: manifest.database: must have 1 to 63"),
        (b"{}\n", "list.txt", "must end with .csv or .jsonl"),
        (b"[1]\n", "list.jsonl", "line 1: must be an object"),
        (b'{"database": "a"}\nnonsense\n', "list.jsonl", "line 2: is not JSON"),
        (b"[" * 1_000_000, "list.jsonl", "line 1: is not JSON"),
        (b'{"database": "a", "manifest": 7}\n', "list.jsonl", "line 1: manifest: is required"),
        (b'{"database": {"a": 1}}\n', "list.jsonl", "line 1: manifest.database: must be text"),
        (b'{"database": "a", "tenant": 7}\n', "list.jsonl", "line 1: tenant: must be text"),
    ],
)
def test_a_wrong_list_is_refused_with_its_lines(
    settled: dict[str, str], listed: Any, content: bytes, name: str, why: str
) -> None:
    with pytest.raises(BadRequest, match=why) as refused:
        listed(content, name)
    assert len(str(refused.value)) < 5_000
    assert str(refused.value).isprintable()


def test_a_list_that_does_not_say_whose_its_objects_are_is_told_of_the_option(
    settled: dict[str, str], listed: Any
) -> None:
    with pytest.raises(BadRequest, match=r"^line 1: column 'tenant' is missing: .*--tenant"):
        listed(b"database\na\n", tenant=None)
    with pytest.raises(BadRequest, match=r"^line 2: tenant: is required .*--tenant"):
        listed(b"database,tenant\na,\n", tenant=None)
    with pytest.raises(BadRequest, match=r"^line 1: tenant: is required .*--tenant"):
        listed(b'{"database": "a"}\n', "list.jsonl", tenant=None)


def test_a_list_of_any_kind_says_the_same(settled: dict[str, str], listed: Any) -> None:
    csv = listed(
        b'\xef\xbb\xbfdatabase,role,tenant,labels,protected\r\n"a,b",r,t,"{""k"": ""v""}",TRUE\r\n=1+1,,,,\r\n'
    )
    same = [
        {"database": "a,b", "role": "r", "tenant": "t", "labels": {"k": "v"}, "protected": True},
        {"manifest": {"database": "=1+1"}, "tenant": "acme"},
    ]
    assert [one.pop("line") for one in csv] == [2, 3]
    jsonl = listed("\n".join(json.dumps(one) for one in same).encode(), "list.jsonl")
    assert [one.pop("line") for one in jsonl] == [1, 2]
    assert csv == jsonl
    assert csv[0]["name"] == "a,b", "without a name it has that of its object"
    most = b"database\n" + b"".join(b"d%d\n" % n for n in range(adoptions.MOST + 1))
    with pytest.raises(BadRequest, match="more than 50000 objects"):
        listed(most)


def test_what_is_out_of_reach_is_inspected_again_and_not_judged(db: Connection) -> None:
    objects = adoptions.check("pg-main", [(1, {"tenant": "acme", "manifest": {"database": "d"}})])
    with database.transaction() as session:
        begun = operations.begin_preview(session, "pg-main", objects, reason="r", actor="op")

    class Away(Shelf):
        def adoptable(self, manifest: Any) -> Any:
            raise Unavailable("no route")

    assert inspections.inspect_some({"pg-main": Away()}, worker="w") == 1
    assert inspections.inspect_some({"pg-main": Away()}, worker="w") == 0, "not at once"
    assert operations.previewed(db, begun.id).digest is None
    with pytest.raises(BadRequest, match="has not inspected"), database.transaction() as session:
        operations.begin_adopt(session, begun.id, reason="r", actor="op", digest="1-x")
    db.execute(text("UPDATE adoptions SET taken_until = now()"))
    assert inspections.inspect_some({"pg-main": Shelf()}, worker="w") == 1
    with database.transaction() as session:
        operations.advance(session, worker="w")
    assert (operations.previewed(db, begun.id).adoptable, operations.previewed(db, begun.id).refused) == (0, 1)


def test_a_finding_that_comes_too_late_changes_nothing(db: Connection) -> None:
    objects = adoptions.check("pg-main", [(n, {"tenant": "acme", "manifest": {"database": f"d{n}"}}) for n in (1, 2)])
    with database.transaction() as session:
        begun = operations.begin_preview(session, "pg-main", objects, reason="r", actor="op")
    one = Candidate(begun.id, 1, "pg-main", "postgres", {})
    adoptions.record(db, one, [], worker="w1")
    adoptions.record(db, one, [{"code": "refused", "what": "late", "mend": ""}], worker="w2")
    assert db.execute(text("SELECT findings FROM adoptions WHERE n = 1")).scalar_one() == []
    adoptions.record(db, Candidate(begun.id, 2, "pg-main", "postgres", {}), [], worker="w1")
    with database.transaction() as session:
        operations.advance(session, worker="w")
    seen = operations.previewed(db, begun.id)
    assert (seen.adoptable, seen.refused) == (2, 0)
    with pytest.raises(DigestMismatch), database.transaction() as session:
        operations.begin_adopt(session, begun.id, reason="r", actor="op", digest=f"2-{'0' * 64}")


def test_an_object_that_is_refused_at_its_turn_does_not_stop_the_others(db: Connection) -> None:
    rows = [
        (n, {"tenant": "acme", "manifest": {"database": f"d{n}"}, "external_id": f"e{n}", "name": f"n{n}"})
        for n in (1, 2, 3)
    ]
    with database.transaction() as session:
        begun = operations.begin_preview(session, "pg-main", adoptions.check("pg-main", rows), reason="r", actor="op")
    for n in (1, 2, 3):
        adoptions.record(db, Candidate(begun.id, n, "pg-main", "postgres", {}), [], worker="w")
    with database.transaction() as session:
        operations.advance(session, worker="w")
    resources.register(db, NewResource("acme", "postgres", "pg-main", "x", external_id="e2"), actor="me")
    digest = operations.previewed(db, begun.id).digest
    with database.transaction() as session:
        operations.begin_adopt(session, begun.id, reason="r", actor="op", digest=digest or "", rate=50)
    with database.transaction() as session:
        assert operations.advance(session, worker="w")[0] == 2
    assert db.execute(text("SELECT name FROM resources ORDER BY name")).scalars().all() == ["n1", "n3", "x"]
    said = db.execute(text("SELECT findings FROM adoptions WHERE n = 2")).scalar_one()
    assert "has another resource with the external_id 'e2'" in said[0]["what"]
    assert db.execute(text("SELECT state FROM operations WHERE kind = 'adopt'")).scalar_one() == "succeeded"
    with database.transaction() as session:
        again = operations.begin_adopt(session, begun.id, reason="r", actor="op", digest=digest or "", rate=50)
    assert again.state == "succeeded", "a preview is carried out once"


def test_a_run_that_was_stopped_may_be_begun_again_and_adopts_nothing_twice(db: Connection) -> None:
    rows = [(n, {"tenant": "acme", "manifest": {"database": f"d{n}"}}) for n in (1, 2)]
    with database.transaction() as session:
        begun = operations.begin_preview(session, "pg-main", adoptions.check("pg-main", rows), reason="r", actor="op")
    for n in (1, 2):
        adoptions.record(db, Candidate(begun.id, n, "pg-main", "postgres", {}), [], worker="w")
    with database.transaction() as session:
        operations.advance(session, worker="w")
    digest = operations.previewed(db, begun.id).digest or ""
    with database.transaction() as session:
        first = operations.begin_adopt(session, begun.id, reason="r", actor="op", digest=digest, rate=1)
    with database.transaction() as session:
        assert operations.advance(session, worker="w")[0] == 1
    operations.stop(db, first.id, actor="op", reason="r")
    with database.transaction() as session:
        again = operations.begin_adopt(session, begun.id, reason="r", actor="op", digest=digest)
    assert again.id != first.id
    with database.transaction() as session:
        assert operations.advance(session, worker="w")[0] == 1, "what an earlier run made is not made again"
