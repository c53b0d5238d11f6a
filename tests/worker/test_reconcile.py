"""What a reconciliation finds on real servers: exactly what was done to them, and nothing where it could not see."""

import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import Connection, text

from outbox import db as database
from outbox import jobs, reconcile, rewinds, settings
from outbox.errors import Conflict, OutOfService, Refused, Rewound, Unavailable
from outbox.reconcile.compare import Counts
from tests.support import redis_servers, standby
from tests.support.factories import a_resource, unguarded
from tests.support.reconciling import a_row, keys, made, own_postgres, ran, standing
from tests.support.recoveries import rewind
from tests.support.witness import PgServer, RedisServer, eventually
from worker import reconcile as runs
from worker.backends import MarkedObject, mark
from worker.backends.postgres import Postgres, objects
from worker.backends.redis import Redis


@pytest.fixture(scope="module")
def pg() -> Iterator[PgServer]:
    with own_postgres() as started:
        yield started


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_servers.running("valkey", tmp_path_factory.mktemp("reconcile") / "own") as started:
        yield started


@pytest.fixture
def backend(pg: PgServer) -> Iterator[Postgres]:
    """A backend whose server is empty after the test."""
    made = Postgres(pg.service_dsn)
    yield made
    for name in pg.databases() - {"postgres", "template0", "template1", "deprovisioner_service"}:
        pg.query(f'DROP DATABASE "{name}" WITH (FORCE)')
    for name in pg.roles():
        if name.startswith(("usr_", "zz_", "app_")):
            pg.query(f'DROP ROLE "{name}"')
    pg.query("DROP SCHEMA IF EXISTS deprovisioner_memory CASCADE", database="deprovisioner_service")


@pytest.fixture
def namespaces(cache: RedisServer) -> Iterator[Redis]:
    yield Redis(cache.service_dsn)
    cache.client.flushall()
    for user in cache.users() - {"default", "deprovisioner_service"}:
        cache.client.acl_deluser(user)


def test_each_difference_on_postgresql_is_found_and_nothing_else(
    db: Connection, pg: PgServer, backend: Postgres
) -> None:
    a_row(db, made(backend))
    unknown = made(backend)
    survives = a_row(db, made(backend), status="deleted")
    dropped, bare, halved, shut, copied, moved = (made(backend) for _ in range(6))
    missing = a_row(db, dropped)
    backend.teardown(dropped, 1)
    differs = [a_row(db, one) for one in (bare, halved, shut, copied, moved)]
    pg.query(f'COMMENT ON DATABASE "{bare["database"]}" IS NULL')
    pg.query(f'DROP DATABASE "{halved["database"]}"')
    backend.quarantine(shut)
    pg.query("CREATE DATABASE app_copy")
    pg.query("COMMENT ON DATABASE app_copy IS %s", mark(copied["generation"]))
    pg.query(f'ALTER DATABASE "{moved["database"]}" RENAME TO "app_{moved["oid"]}"')
    # What is at work, or younger than an hour, or is no active resource, is no finding.
    leaving = a_row(db, made(backend))
    jobs.enqueue(db, leaving, actor="me")
    a_resource(db, status="provisioning")
    young = made(backend)
    a_row(db, young, hours=0)
    backend.teardown(young, 1)
    a_row(db, made(backend), status="deleted", hours=0)
    for state in ("succeeded", "pending"):
        back = made(backend)
        restored(db, a_row(db, back), state)
        backend.teardown(back, 1)
    elsewhere = made(backend)
    a_row(db, elsewhere, backend="redis-main")
    pg.query("CREATE DATABASE app_by_hand")
    before = pg.databases(), pg.roles(), db.execute(text("SELECT count(*) FROM events")).scalar_one()
    ended = runs.run(settings.backends()["pg-main"], backend, actor="cli:op")
    assert ended == runs.Ended(None, young=3), "the missing one, the one that survives, the one given back just now"
    assert keys(db) == {
        ("unknown", unknown["generation"]),
        ("survives", str(survives)),
        ("missing", str(missing)),
        *(("differs", str(one)) for one in differs),
    }
    assert (pg.databases(), pg.roles(), db.execute(text("SELECT count(*) FROM events")).scalar_one()) == before
    why = {one.resource_id: one.why for one in standing(db)}
    assert "the recorded OID, but its comment" in why[differs[0]]
    assert why[differs[1]] == "part of it is gone: databases"
    assert why[differs[2]].startswith("it is in quarantine")
    assert "a copy" in why[differs[3]]
    assert "was renamed" in why[differs[4]]
    (left,) = standing(db, code="unknown")
    assert left.parts == [f"{what} {unknown[what]!r} (OID {unknown[oid]})" for what, oid in PARTS]
    size = pg.query("SELECT pg_database_size(%s)", unknown["database"])
    assert [(left.size_bytes,)] == size


def test_what_was_given_up_with_its_server_or_released_and_is_there_with_its_mark_survives(
    db: Connection, backend: Postgres
) -> None:
    a_row(db, made(backend))
    for status in ("abandoned", "released"):
        row = a_row(db, made(backend))
        ended = "deleted_at = created_at" if status == "abandoned" else "credentials = NULL"
        unguarded(db, f"UPDATE resources SET status = '{status}', {ended} WHERE id = :id", id=row)
    assert ran(backend) is None
    found = standing(db)
    assert [one.code for one in found] == ["survives", "survives"]
    assert {one.why.split(",")[0] for one in found} == {"its resource is abandoned", "its resource is released"}
    assert reconcile.ledger(db)["abandoned"] == 1


def restored(db: Connection, resource: uuid.UUID, state: str) -> None:
    """A job that gives the resource back, under way or just ended."""
    unguarded(
        db,
        """
        INSERT INTO outbox (kind, state, resource_id, backend, max_attempts, request_id, finished_at)
        VALUES ('restore', :state, :id, 'pg-main', 10, gen_random_uuid(),
                CASE WHEN :state = 'succeeded' THEN now() END)""",
        state=state,
        id=resource,
    )


PARTS = (("database", "oid"), ("role", "role_oid"))


def test_each_difference_on_redis_is_found_and_nothing_else(
    db: Connection, cache: RedisServer, namespaces: Redis
) -> None:
    def row(manifest: dict[str, Any], **words: Any) -> uuid.UUID:
        return a_row(db, manifest, backend="redis-main", **words)

    row(made(namespaces))
    unknown, gone, bare, shut = (made(namespaces) for _ in range(4))
    cache.client.set(f"{unknown['prefix']}k", "x" * 10_000)
    survives = row(made(namespaces), status="deleted")
    missing, differs, closed = row(gone), row(bare), row(shut)
    namespaces.teardown(gone, 1)
    cache.client.execute_command("ACL", "SETUSER", bare["user"], "resetchannels")
    namespaces.quarantine(shut)
    cache.client.execute_command("ACL", "SETUSER", "app", "on", ">p", "~app:*", "+get")
    assert ran(namespaces, name="redis-main") is None
    assert keys(db) == {
        ("unknown", unknown["generation"]),
        ("survives", str(survives)),
        ("missing", str(missing)),
        ("differs", str(differs)),
        ("differs", str(closed)),
    }
    (left,) = standing(db, code="unknown")
    assert left.size_bytes == cache.client.memory_usage(f"{unknown['prefix']}k")


def test_unmarked_objects_are_found_where_they_are_asked_for_and_none_of_ours(
    db: Connection, pg: PgServer, backend: Postgres, cache: RedisServer, namespaces: Redis
) -> None:
    a_row(db, made(backend))
    a_row(db, made(namespaces), backend="redis-main")
    pg.query("CREATE ROLE app_owner LOGIN PASSWORD 'p'")
    pg.query("CREATE DATABASE app_orders OWNER app_owner")
    cache.client.execute_command("ACL", "SETUSER", "app", "on", ">p", "~app:*", "+get")
    for asked in (True, False):
        assert ran(backend, unmarked=asked) is None
        assert ran(namespaces, name="redis-main", unmarked=asked) is None
        found = [(one.code, one.backend, one.parts) for one in standing(db)]
        assert found == [
            ("unmarked", "pg-main", ["database 'app_orders'"]),
            ("unmarked", "redis-main", ["user 'app'", "prefix 'app:'"]),
        ], "a run that is not asked for them leaves them as they are"
    pg.query("DROP DATABASE app_orders")
    assert ran(backend, unmarked=True) is None
    assert [one.backend for one in standing(db)] == ["redis-main"]


def test_a_finding_keeps_its_id_while_it_stands_and_is_closed_with_its_time(db: Connection, backend: Postgres) -> None:
    a_row(db, made(backend))
    unknown = made(backend)
    assert ran(backend) is None
    (first,) = standing(db)
    assert ran(backend) is None
    (again,) = standing(db)
    assert (again.id, again.found_at) == (first.id, first.found_at)
    assert again.seen_at > first.seen_at
    backend.teardown(unknown, 1)
    assert ran(backend) is None
    assert standing(db) == []
    (closed,) = standing(db, closed=True)
    assert (closed.id, closed.closed_at > closed.seen_at) == (first.id, True)


def test_a_reading_that_breaks_half_way_writes_nothing_and_the_last_good_one_stays(
    db: Connection, pg: PgServer, backend: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(4):
        a_row(db, made(backend))
    made(backend)
    assert ran(backend) is None
    before = standing(db)
    lost = made(backend)
    a_row(db, lost)
    backend.teardown(lost, 1)
    monkeypatch.setattr(objects, "PAGE", 2)
    monkeypatch.setattr(runs, "PAGE", 1)
    keep = reconcile.keep
    kept: list[Any] = []

    def breaks(session: Connection, run: reconcile.Run, page: Any) -> None:
        keep(session, run, page)
        kept.append(page)
        if len(kept) == 2:
            pg.query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'FETCH%%marked%%'")

    monkeypatch.setattr(reconcile, "keep", breaks)
    error = ran(backend)
    assert error is not None
    assert len(kept) < 7, "it had not come to the end"
    assert standing(db) == before
    (told,) = reconcile.results(db)
    assert told.error == error
    assert told.ended_at is not None
    assert told.ended_at < told.tried_at
    assert staged(db) == 0


def staged(db: Connection) -> int:
    tables = ("reconciliation_objects", "reconciliation_items")
    return sum(db.execute(text(f"SELECT count(*) FROM {table}")).scalar_one() for table in tables)


class Told(Postgres):
    """A backend whose server answers as a test says."""

    def objects(self) -> Iterator[MarkedObject]:
        yield from ()


def test_an_empty_answer_is_an_error_where_resources_are_active_and_none_where_they_are_not(
    db: Connection, pg: PgServer, backend: Postgres
) -> None:
    manifest = made(backend)
    resource = a_row(db, manifest)
    error = ran(Told(pg.service_dsn))
    assert error is not None
    assert "shows no object of ours, and 1 resources are active there" in error
    assert keys(db) == set()
    unguarded(
        db, "UPDATE resources SET status = 'deleted', deleted_at = now(), purged_at = now() WHERE id = :id", id=resource
    )
    assert ran(Told(pg.service_dsn)) is None
    assert keys(db) == set()


def test_a_database_without_any_resource_of_the_backend_finds_nothing_there(db: Connection, backend: Postgres) -> None:
    made(backend)
    error = ran(backend)
    assert error is not None
    assert "1 objects with our mark, and this database has no resource there" in error
    assert keys(db) == set()


@pytest.mark.parametrize("shown", ["out of service", "no such verb"])
def test_a_backend_that_cannot_be_read_is_an_error_and_no_empty_answer(
    db: Connection, pg: PgServer, backend: Postgres, monkeypatch: pytest.MonkeyPatch, shown: str
) -> None:
    a_row(db, made(backend))
    if shown == "no such verb":
        monkeypatch.delattr(Postgres, "objects")
        assert "does not tell which objects bear our mark" in str(ran(backend))
    else:
        error = OutOfService("the server is a standby")
        monkeypatch.setattr(Postgres, "objects", lambda _: (_ for _ in ()).throw(error))
        assert ran(backend) == "the server is a standby"
    assert keys(db) == set()


def test_a_rewound_database_is_not_compared_and_none_that_is_rewound_meanwhile(
    db: Connection, backend: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_row(db, made(backend))
    unknown = made(backend)
    compare = reconcile.compare

    def rewound(*words: Any, **more: Any) -> Any:
        found = compare(*words, **more)
        rewind(db)
        return found

    monkeypatch.setattr(reconcile, "compare", rewound)
    with pytest.raises(Rewound):
        ran(backend)
    assert keys(db) == set()
    with pytest.raises(Rewound):
        ran(backend)
    unguarded(db, "DELETE FROM holds")
    monkeypatch.setattr(reconcile, "compare", compare)
    assert ran(backend) is None
    assert keys(db) == {("unknown", unknown["generation"])}


def test_a_database_that_no_worker_has_compared_since_its_start_and_a_backend_that_went_back_are_refused(
    db: Connection, backend: Postgres
) -> None:
    a_row(db, made(backend))
    assert rewinds.settle(db, rewinds.here(db, ["pg-main"]), ["pg-main"])
    assert ran(backend) is None
    db.execute(text("UPDATE installation SET compared_under = 'an older one'"))
    with pytest.raises(Conflict, match="no worker has compared it"):
        ran(backend)
    db.execute(text("UPDATE installation SET compared_under = NULL"))
    rewinds.went_back(db, "pg-main", "it remembers nothing")
    with pytest.raises(Conflict, match="deprovisioner recover --backend pg-main"):
        ran(backend)


def test_what_is_deleted_or_made_while_the_run_reads_is_no_finding(
    db: Connection, backend: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the reading, before the comparison; between that and the inspection; and just before the end."""
    first, second, third = (a_row(db, made(backend)) for _ in range(3))
    other = made(backend)
    undone = made(backend)
    steps = {"compare": first, "waiting": second, "conclude": third}

    def destroy(resource: uuid.UUID) -> None:
        manifest = db.execute(text("SELECT manifest FROM resources WHERE id = :id"), {"id": resource}).scalar_one()
        backend.teardown(manifest, 1)
        jobs.enqueue(db, resource, actor="me")

    for step, resource in steps.items():
        act = getattr(reconcile, step)

        def during(*words: Any, act: Any = act, step: str = step, resource: uuid.UUID = resource, **more: Any) -> Any:
            if step == "waiting" and other["generation"]:
                backend.teardown(undone, 1)
            if not done.get(step):
                destroy(resource)
            done[step] = True
            return act(*words, **more)

        monkeypatch.setattr(reconcile, step, during)
    done: dict[str, bool] = {}
    assert ran(backend) is None
    assert len(done) == 3
    assert keys(db) == {("unknown", other["generation"])}


def test_a_row_that_changes_before_the_end_is_neither_found_nor_does_it_end_a_finding(
    db: Connection, backend: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_row(db, made(backend))
    lost = made(backend)
    resource = a_row(db, lost)
    backend.teardown(lost, 1)
    assert ran(backend) is None
    (found,) = standing(db)
    conclude = reconcile.conclude

    def during(*words: Any, **more: Any) -> None:
        db.execute(text("UPDATE resources SET protected = NOT protected WHERE id = :id"), {"id": resource})
        conclude(*words, **more)

    monkeypatch.setattr(reconcile, "conclude", during)
    assert ran(backend) is None
    assert [(one.id, one.seen_at) for one in standing(db)] == [(found.id, found.seen_at)], "as it was"


def test_objects_of_other_installations_are_no_findings_and_what_a_note_names_is_ours(
    db: Connection, backend: Postgres
) -> None:
    a_row(db, made(backend))
    ours, theirs = made(backend), made(backend)
    here = rewinds.here(db, [])
    backend.remember(rewinds.Memory(uuid.uuid4(), 1, 1, "ab" * 32))
    told = {"backend": "pg-main", "generation": ours["generation"]}
    note = rewinds.Note(9, "ab" * 8, here_now(db), "registered", None, told)
    backend.remember(rewinds.Memory(here.installation, here.epoch, 9, "ab" * 32, False, (note,)))
    assert ran(backend) is None
    assert keys(db) == {("unknown", ours["generation"])}
    (told,) = reconcile.results(db)
    assert (told.others, told.objects) == (1, 3)
    assert theirs["generation"] not in str(standing(db))


def test_one_difference_that_is_refused_is_an_error_and_the_others_count(
    db: Connection, backend: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_row(db, made(backend))
    odd, plain = made(backend), made(backend)
    assert ran(backend) is None
    first = {one.seen_at for one in standing(db)}
    inspect = Postgres.inspect
    raised: list[Exception] = [Refused("a rule forbids it"), KeyError("hunter2"), Unavailable("it went away")]

    def refuses(self: Postgres, manifest: dict[str, Any]) -> Any:
        if manifest["generation"] == odd["generation"]:
            raise raised[0]
        return inspect(self, manifest)

    monkeypatch.setattr(Postgres, "inspect", refuses)
    error = ran(backend)
    assert error == "1 differences could not be inspected, and are not known; the first: a rule forbids it"
    (told,) = reconcile.results(db)
    assert (told.error, told.ended_at > told.tried_at) == (error, True)
    assert keys(db) == {("unknown", odd["generation"]), ("unknown", plain["generation"])}
    assert len({one.seen_at for one in standing(db)} - first) == 1, "the other stays as it was"
    del raised[0]
    assert "unexpected KeyError" in str(ran(backend))
    del raised[0]
    before = standing(db)
    assert ran(backend) == "it went away"
    assert standing(db) == before, "who is away refuses nothing: the run failed"


@pytest.mark.parametrize(
    ("said", "due"),
    [
        ("known_since = now() - interval '59 min'", False),
        ("known_since = now() - interval '61 min'", True),
        ("ended_at = now() - interval '23 h', told_at = now() - interval '23 h'", False),
        ("ended_at = now() - interval '25 h', told_at = now() - interval '25 h'", True),
        ("ended_at = now() - interval '25 h', told_at = now() - interval '59 min', error = 'x'", False),
        ("ended_at = now() - interval '25 h', told_at = now() - interval '61 min', error = 'x'", True),
    ],
)
def test_a_run_is_due_once_a_day_and_an_hour_after_one_that_failed_or_died(
    db: Connection, said: str, due: bool
) -> None:
    assert reconcile.due(db, ["pg-main"]) == [], "a worker has just begun to serve it"
    db.execute(text(f"UPDATE reconciliations SET {said}"))
    assert reconcile.due(db, ["pg-main", "redis-main"]) == ["pg-main"] * due


def test_of_many_workers_one_makes_the_daily_run(db: Connection, backend: Postgres) -> None:
    a_row(db, made(backend))
    unknown = made(backend)
    reconcile.due(db, ["pg-main"])
    db.execute(text("UPDATE reconciliations SET known_since = now() - interval '2 h'"))
    together = threading.Barrier(4)

    def begin(worker: int) -> reconcile.Run | None:
        with database.statement() as session:
            assert reconcile.due(session, ["pg-main"]) == ["pg-main"]
            together.wait(30)
            return reconcile.begin(session, "pg-main", actor=f"w{worker}", only_due=True)

    with ThreadPoolExecutor(4) as threads:
        begun = [run for run in threads.map(begin, range(4)) if run]
    assert len(begun) == 1
    db.execute(text("UPDATE reconciliations SET told_at = now() - interval '2 h'"))  # that worker has died
    runs.reconcile_due({"pg-main": backend}, worker="w9")
    assert keys(db) == {("unknown", unknown["generation"])}
    (told,) = reconcile.results(db)
    assert (told.actor, told.error) == ("w9", None)
    before = told.tried_at
    runs.reconcile_due({"pg-main": backend}, worker="w8")
    assert reconcile.results(db)[0].tried_at == before
    with pytest.raises(Conflict, match="another run of this backend has begun"):
        reconcile.keep(db, begun[0], [reconcile.Seen("m", {}, ())])
    with pytest.raises(Conflict, match="another run of this backend has begun"), database.transaction() as session:
        reconcile.conclude(session, begun[0], Counts(0, 0), runs.ALWAYS, field=None)
    assert keys(db) == {("unknown", unknown["generation"])}


def test_a_worker_reconciles_in_a_thread_of_its_own(db: Connection, backend: Postgres) -> None:
    a_row(db, made(backend))
    reconcile.due(db, ["pg-main"])
    db.execute(text("UPDATE reconciliations SET known_since = now() - interval '2 h'"))
    runs.keep_reconciling({"pg-main": backend}, worker="w1")
    eventually(lambda: [one.actor for one in reconcile.results(db) if one.ended_at] == ["w1"])


def test_a_standby_that_lags_is_an_error_and_no_finding(db: Connection) -> None:
    with standby.lagging() as (primary, copy):
        backend = Postgres(primary.service_dsn)
        a_row(db, made(backend))
        error = ran(Postgres(copy.service_dsn))
        assert error is not None
        assert "standby" in error
        assert keys(db) == set()
        assert ran(backend) is None


def here_now(db: Connection) -> Any:
    return db.execute(text("SELECT now()")).scalar_one()
