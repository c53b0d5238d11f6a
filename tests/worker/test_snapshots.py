"""A teardown's snapshot on real servers: it counts when it was restored, and nothing is destroyed without it."""

import datetime as dt
import json
import os
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import psycopg2
import pytest
from sqlalchemy import Connection, text

from outbox import credentials, doorbell, jobs, resources, settings, snapshots
from outbox.errors import ClaimLost, SettingsError, Transient
from outbox.events import Event
from outbox.resources import NewResource
from tests.support import snapshots as support
from tests.support.factories import claims, events_of
from tests.support.processes import System
from tests.support.servers import Servers, clear_caches
from tests.support.snapshots import Teardown, require
from tests.support.witness import PgServer, eventually
from worker.backends.postgres import Postgres, contents, snapshot
from worker.run import Run
from worker.run.snapshot import snapshot as take_snapshot
from worker.snapshots import expiry, stores

FILLED = (
    "CREATE TABLE t AS SELECT i, md5(i::text) AS m FROM generate_series(1, 2000) AS i",
    'CREATE TABLE "q""uo\'ted ☃" (a int, b int GENERATED ALWAYS AS (a * 2) STORED)',
    'INSERT INTO "q""uo\'ted ☃" VALUES (1), (2)',
    "CREATE TABLE without ()",
    "INSERT INTO without DEFAULT VALUES",
    "CREATE SEQUENCE s START 7",
    "SELECT nextval('s')",
    "SELECT lo_from_bytea(0, 'hello')",
    "CREATE MATERIALIZED VIEW v AS SELECT count(*) FROM t",
)


@pytest.fixture
def pg(servers: Servers) -> PgServer:
    return servers.pg


@pytest.fixture
def store(settled: dict[str, str], tmp_path: Path) -> Path:
    folder = tmp_path / "store"
    folder.mkdir()
    require(settled, f"file:{folder}")
    return folder


@pytest.fixture
def backend(pg: PgServer) -> Postgres:
    return Postgres(pg.service_dsn)


def test_a_teardown_destroys_after_its_snapshot_was_restored_and_equal(
    db: Connection, store: Path, backend: Postgres, pg: PgServer
) -> None:
    teardown = Teardown(db, backend, *FILLED)
    job = teardown.delete()
    teardown.step()
    assert teardown.job().step == "wait", teardown.job().last_error
    (row,) = teardown.rows()
    (file,) = store.iterdir()
    assert row.location == f"file://{file}" or row.location == f"file:{file}"
    assert str(teardown.id) in file.name
    assert teardown.manifest["generation"] in file.name
    assert row.bytes == file.stat().st_size
    assert row.detail["restored"]["tables"] == 3
    assert row.detail["restored"]["rows"] == 2003
    assert (row.detail["restored"]["sequences"], row.detail["restored"]["large_objects"]) == (1, 1)
    teardown.is_frozen(pg)
    teardown.step()
    assert teardown.job().state == "succeeded"
    assert not pg.bears(teardown.manifest)
    assert events_of(db, job) == [
        *("enqueued", "claimed", "started", "quarantined"),
        *("claimed", "started", "snapshot_verified"),
        *("claimed", "started", "completed"),
    ]
    assert file.exists(), "it is kept"


@pytest.mark.parametrize("at", [0, 40, -20])
def test_a_byte_that_changes_in_the_store_is_no_snapshot_and_destroys_nothing(
    db: Connection, store: Path, backend: Postgres, pg: PgServer, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    teardown = Teardown(db, backend, *FILLED)
    job = teardown.delete()
    honest = stores.Folder.reading

    def damaged(self: stores.Folder, name: str) -> Any:
        data = bytearray((store / name).read_bytes())
        data[at] ^= 1
        (store / name).write_bytes(data)
        return honest(self, name)

    monkeypatch.setattr(stores.Folder, "reading", damaged)
    db.execute(text("UPDATE outbox SET max_attempts = 1 WHERE id = :id"), {"id": job})
    teardown.step()
    after = teardown.job()
    assert (after.state, after.stuck_reason) == ("stuck", "snapshot_failed")
    assert "damaged" in after.last_error
    assert [row.verified_at for row in teardown.rows()] == [None]
    teardown.is_frozen(pg)
    monkeypatch.undo()
    jobs.redrive(db, job, fence=after.fence, actor="op", reason="the disk was replaced")
    teardown.step()
    assert teardown.job().step == "wait"
    first, second = teardown.rows()
    assert first.removed_at
    assert second.verified_at
    assert [file.name for file in store.iterdir()] == [second.location.rpartition("/")[2]]


def test_another_key_opens_no_snapshot(
    db: Connection, store: Path, backend: Postgres, settled: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    teardown = Teardown(db, backend, *FILLED)
    teardown.delete()
    honest = stores.Folder.reading

    def forgotten(self: stores.Folder, name: str) -> Any:
        monkeypatch.setenv("DEPROVISIONER_CREDENTIALS_KEY", "0" * 43 + "=")
        clear_caches()
        return honest(self, name)

    monkeypatch.setattr(stores.Folder, "reading", forgotten)
    teardown.step()
    assert "no key in DEPROVISIONER_CREDENTIALS_KEY opens the snapshot" in teardown.job().last_error
    assert [row.verified_at for row in teardown.rows()] == [None]


def test_a_store_that_is_no_folder_takes_no_snapshot(
    db: Connection, store: Path, backend: Postgres, pg: PgServer
) -> None:
    teardown = Teardown(db, backend)
    teardown.delete()
    store.rmdir()
    teardown.step()
    assert "mount its disk" in teardown.job().last_error
    teardown.is_frozen(pg)


def test_a_full_store_takes_no_snapshot(
    db: Connection, store: Path, backend: Postgres, pg: PgServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    teardown = Teardown(db, backend, *FILLED)
    teardown.delete()
    monkeypatch.setattr(stores, "_new", lambda path, flags: _full(path))
    teardown.step()
    assert "No space left on device" in teardown.job().last_error
    assert list(store.iterdir()) == []
    teardown.is_frozen(pg)


def _full(path: str) -> int:
    os.symlink("/dev/full", path)
    return os.open(path, os.O_WRONLY)


def test_a_row_that_the_restored_snapshot_lacks_is_named(
    db: Connection, store: Path, backend: Postgres, pg: PgServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    teardown = Teardown(db, backend, *FILLED)
    teardown.delete()
    honest = contents.read

    def one_more(*words: Any) -> Any:
        monkeypatch.setattr(contents, "read", honest)
        found = honest(*words)
        return found | {'table "public"."t"': [2001, 0]}

    monkeypatch.setattr(contents, "read", one_more)
    teardown.step()
    assert 'table "public"."t" has 2000 of 2001' in teardown.job().last_error
    assert [row.verified_at for row in teardown.rows()] == [None]
    teardown.is_frozen(pg)


def test_rows_with_the_same_number_and_other_values_differ() -> None:
    with pytest.raises(Transient, match="other contents"):
        contents.must_be_equal({"table t": [1, 5]}, {"table t": [1, 6]})
    for source, restored in (
        ({"table t": [0, 0]}, {}),
        ({}, {"table t": [0, 0]}),
        ({"sequence s": 1}, {"sequence s": 2}),
    ):
        with pytest.raises(Transient):
            contents.must_be_equal(source, restored)


def test_nothing_starts_to_destroy_before_its_snapshot_is_verified(
    db: Connection, store: Path, backend: Postgres, pg: PgServer
) -> None:
    """The guard of the statement, and the trigger's, which holds for whatever writes."""
    teardown = Teardown(db, backend)
    job = teardown.delete()
    db.execute(text("UPDATE outbox SET step = 'destroy' WHERE id = :id"), {"id": job})
    teardown.step()
    assert teardown.job().started_step != "destroy"
    assert pg.bears(teardown.manifest)
    with pytest.raises(Exception, match="must not be destroyed before its snapshot is verified"):
        db.execute(
            text("UPDATE outbox SET started_fence = fence, started_step = 'destroy' WHERE id = :id"), {"id": job}
        )


def test_the_snapshot_step_ends_only_with_a_verified_snapshot(db: Connection, store: Path, backend: Postgres) -> None:
    teardown = Teardown(db, backend)
    teardown.delete()
    (claim,) = claims(db)
    jobs.start(db, claim, worker="w")
    id = snapshots.begin(db, claim, "file:/nowhere")
    with pytest.raises(ClaimLost):
        jobs.advance(db, claim, worker="w", event=Event.SNAPSHOT_VERIFIED, seen={})
    snapshots.verified(db, claim, id, size=1, detail={}, keep=dt.timedelta(days=1))
    jobs.advance(db, claim, worker="w", event=Event.SNAPSHOT_VERIFIED, seen={})


def test_a_claim_that_was_lost_records_no_snapshot_and_verifies_none(
    db: Connection, store: Path, backend: Postgres
) -> None:
    teardown = Teardown(db, backend)
    teardown.delete()
    (claim,) = claims(db)
    jobs.start(db, claim, worker="w")
    id = snapshots.begin(db, claim, "file:/nowhere")
    stale = replace(claim, fence=claim.fence - 1)
    with pytest.raises(ClaimLost):
        snapshots.begin(db, stale, "file:/nowhere")
    words: dict[str, Any] = {"size": 1, "detail": {}, "keep": dt.timedelta(days=1)}
    with pytest.raises(ClaimLost):
        snapshots.verified(db, stale, id, **words)
    assert snapshots.removed(db, id, actor="other", reason="another attempt")
    assert not snapshots.removed(db, id, actor="third", reason="it was late")
    with pytest.raises(ClaimLost):
        snapshots.verified(db, claim, id, **words)


def test_a_snapshot_that_was_verified_as_its_worker_died_is_not_taken_again(
    db: Connection, store: Path, backend: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    teardown = Teardown(db, backend)
    job = teardown.delete()
    with monkeypatch.context() as patch:
        patch.setattr(jobs, "advance", _dies)
        with pytest.raises(SystemExit):
            teardown.step()
    db.execute(text("UPDATE outbox SET lease_expires_at = now() - interval '1 s' WHERE id = :id"), {"id": job})
    jobs.sweep(db, actor="w")
    teardown.step()
    assert teardown.job().step == "wait"
    assert len(teardown.rows()) == 1


def _dies(*_: Any, **__: Any) -> None:
    raise SystemExit


def test_snapshots_get_at_most_half_of_a_backend_s_slots(db: Connection, store: Path, backend: Postgres) -> None:
    teardown = Teardown(db, backend)
    teardown.delete()
    assert teardown.job().lane >= jobs.CROWDED


def test_a_backend_that_requires_snapshots_needs_a_store(settled: dict[str, str]) -> None:
    path = Path(settled["DEPROVISIONER_BACKENDS"])
    text_ = path.read_text().replace("concurrency = 8", 'concurrency = 8\nsnapshot = "required"')
    path.write_text(text_)
    with pytest.raises(SettingsError, match="snapshot_store"):
        settings.read_backends(path)


def _expire(db: Connection, teardown: Teardown) -> None:
    db.execute(
        text("UPDATE snapshots SET expires_at = now() - interval '1 s' WHERE resource_id = :id"), {"id": teardown.id}
    )


def test_a_snapshot_is_kept_from_its_time_on_as_long_as_its_teardown_may_need_it(
    db: Connection, store: Path, backend: Postgres, system: System
) -> None:
    teardown = Teardown(db, backend)
    job = teardown.delete()
    teardown.step()
    (row,) = teardown.rows()
    assert 29.9 < (row.expires_at - row.verified_at).total_seconds() / 86_400 < 30.1
    assert expiry.remove_expired(worker="w") == 0
    _expire(db, teardown)
    assert expiry.remove_expired(worker="w") == 0, "the destruction is still to come"
    teardown.step()
    assert teardown.job().state == "succeeded"
    assert expiry.remove_expired(worker="w") == 1
    assert list(store.iterdir()) == []
    assert teardown.rows()[0].removed_at
    assert events_of(db, job)[-1] == "snapshot_removed"
    assert expiry.remove_expired(worker="w") == 0
    done = system.cli("doctor", "--json")
    assert done.returncode == 0, done.stdout
    (proof,) = json.loads(system.cli("audit", "export", "--resource", str(teardown.id), "--json").stdout)["items"]
    assert "snapshot_removed" in json.dumps(proof), "an auditor sees when the last copy was gone"


def test_a_store_that_cannot_be_reached_keeps_the_record(
    db: Connection, store: Path, backend: Postgres, tmp_path: Path
) -> None:
    teardown = Teardown(db, backend)
    teardown.delete()
    teardown.step()
    teardown.step()
    _expire(db, teardown)
    store.rename(tmp_path / "away")
    assert expiry.remove_expired(worker="w") == 0
    assert teardown.rows()[0].removed_at is None
    (tmp_path / "away").rename(store)
    assert expiry.remove_expired(worker="w") == 1


def test_a_restored_resource_s_snapshot_is_kept_and_its_next_teardown_takes_another(
    db: Connection, store: Path, backend: Postgres, pg: PgServer
) -> None:
    teardown = Teardown(db, backend, *FILLED)
    teardown.delete()
    teardown.step()
    jobs.restore(db, teardown.id, actor="op", reason="by mistake")
    teardown.step()
    with closing(psycopg2.connect(teardown.customer.dsn)) as connection, connection, connection.cursor() as cursor:
        cursor.execute("INSERT INTO t VALUES (0, 'new')")
    assert expiry.remove_expired(worker="w") == 0
    teardown.delete()
    teardown.step()
    first, second = teardown.rows()
    assert (first.removed_at, second.detail["restored"]["rows"]) == (None, 2004)
    assert first.location != second.location
    assert len(list(store.iterdir())) == 2


def test_what_an_attempt_stored_that_a_restore_called_off_is_removed(
    db: Connection, store: Path, backend: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    teardown = Teardown(db, backend, *FILLED)
    teardown.delete()
    honest = stores.Folder.reading

    def restored(self: stores.Folder, name: str) -> Any:
        jobs.restore(db, teardown.id, actor="op", reason="by mistake")
        return honest(self, name)

    monkeypatch.setattr(stores.Folder, "reading", restored)
    teardown.step()
    (row,) = teardown.rows()
    assert row.verified_at is None
    assert expiry.remove_expired(worker="w") == 1
    assert list(store.iterdir()) == []


def test_snapshots_are_listed_fetched_and_restored_into_a_new_resource(
    db: Connection, store: Path, backend: Postgres, system: System, tmp_path: Path
) -> None:
    teardown = Teardown(db, backend, *FILLED)
    teardown.delete()
    teardown.step()
    teardown.step()
    (row,) = teardown.rows()
    listed = json.loads(system.cli("snapshots", "list", "--json").stdout)["items"]
    assert [(one["id"], one["resource_id"]) for one in listed] == [(row.id, str(teardown.id))]
    file = tmp_path / "fetched.dump"
    fetched = system.cli("snapshots", "fetch", str(row.id), "--to", str(file))
    assert fetched.returncode == 0, fetched.stderr
    assert file.read_bytes().startswith(b"PGDMP")
    assert file.stat().st_mode & 0o777 == 0o600
    assert system.cli("snapshots", "fetch", str(row.id), "--to", str(file)).returncode == 1
    system.worker()
    done = system.cli("snapshots", "restore", str(row.id), "--name", "again", "--json")
    assert done.returncode == 0, done.stderr
    new = json.loads(done.stdout)["resource"]
    _, sealed = resources.find(db, new["id"])
    assert sealed is not None
    with closing(psycopg2.connect(credentials.unseal(sealed)["dsn"])) as connection, connection.cursor() as cursor:
        cursor.execute('SELECT count(*), (SELECT sum(b) FROM "q""uo\'ted ☃"), (SELECT count FROM v) FROM t')
        assert cursor.fetchone() == (2000, 6, 2000)
    _expire(db, teardown)
    assert expiry.remove_expired(worker="w") == 1
    gone = system.cli("snapshots", "fetch", str(row.id), "--to", str(tmp_path / "other.dump"))
    assert (gone.returncode, "was removed" in gone.stderr) == (1, True)


# Where a worker dies.
DEATHS = {
    "with the door open": "after:ALTER DATABASE name ALLOW_CONNECTIONS#2",
    "before the door is closed behind the dump": "before:ALTER DATABASE name ALLOW_CONNECTIONS#5",
    "as the scratch database is made": "after:CREATE DATABASE name TEMPLATE",
    "as the scratch database is named": "after:ALTER DATABASE old RENAME",
    "after it was restored": "before:DROP DATABASE name",
}


@pytest.mark.parametrize(
    "where", [pytest.param(where, marks=pytest.mark.proof if n else []) for n, where in enumerate(DEATHS)]
)
def test_a_worker_that_is_killed_leaves_what_the_next_attempt_removes(
    db: Connection, store: Path, backend: Postgres, pg: PgServer, system: System, where: str
) -> None:
    teardown = Teardown(db, backend, *FILLED)
    teardown.delete()
    at = DEATHS[where]
    dying = system.worker(ready=False, CRASH_AT=at, DEPROVISIONER_LEASE_SECONDS="2")
    eventually(lambda: dying.container._container.status == "exited", 60, f"it dies {where}")
    assert teardown.job().step == "snapshot", dying.container._container.logs().decode()
    assert len(teardown.rows()) == 1, dying.container._container.logs().decode()
    system.worker(DEPROVISIONER_SWEEP_SECONDS="0.2")  # its lease is long: no slow machine makes it lose one
    eventually(
        lambda: teardown.job().state == "succeeded",
        60,
        "another worker ends it",
    )
    assert [bool(row.verified_at) for row in teardown.rows()] == [False, True]
    assert teardown.rows()[0].removed_at
    assert len(list(store.iterdir())) == 1
    assert not pg.bears(teardown.manifest)
    support.nothing_of_scratch(pg, teardown.manifest)


def test_a_restore_while_a_worker_takes_a_snapshot_logs_in_within_five_seconds(
    db: Connection, store: Path, backend: Postgres, pg: PgServer, system: System
) -> None:
    teardown = Teardown(db, backend, *FILLED)
    with teardown.customer.inside("LOCK TABLE t", "PREPARE TRANSACTION 'holds the dump up'"):
        pass
    teardown.delete()
    worker = system.worker()
    waits = "SELECT 1 FROM pg_stat_activity WHERE datname = ANY(%s) AND wait_event_type = 'Lock'"
    names = [teardown.dying, teardown.manifest["database"]]
    eventually(lambda: pg.query(waits, names), 30, "its dump waits")
    began = time.monotonic()
    jobs.restore(db, teardown.id, actor="op", reason="by mistake")
    doorbell.ring_now()
    eventually(lambda: _logs_in(teardown.customer.dsn), 30, "the customer logs in", every=0.02)
    assert time.monotonic() - began < 5, worker.container._container.logs().decode()
    eventually(lambda: teardown.job().state == "succeeded", 30, "the restore ends")
    assert [row.verified_at for row in teardown.rows()] == [None]
    with closing(psycopg2.connect(teardown.customer.dsn)) as connection:
        connection.autocommit = True
        connection.cursor().execute("ROLLBACK PREPARED 'holds the dump up'")


def _logs_in(dsn: str) -> bool:
    try:
        psycopg2.connect(dsn).close()
    except psycopg2.OperationalError:
        return False
    return True


def test_what_a_prepared_transaction_holds_is_named(
    db: Connection, store: Path, backend: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot, "LOCK_TIMEOUT_MS", 300)
    teardown = Teardown(db, backend, *FILLED)
    with teardown.customer.inside("LOCK TABLE t", "PREPARE TRANSACTION 'holds the dump up'"):
        pass
    teardown.delete()
    teardown.step()
    assert "'holds the dump up' of " in teardown.job().last_error
    assert "ROLLBACK PREPARED" in teardown.job().last_error
    backend.release(teardown.manifest)
    with closing(psycopg2.connect(teardown.customer.dsn)) as connection:
        connection.autocommit = True
        connection.cursor().execute("ROLLBACK PREPARED 'holds the dump up'")


def test_a_snapshot_is_proved_on_the_server_that_the_file_names(
    db: Connection,
    settled: dict[str, str],
    store: Path,
    backend: Postgres,
    pg: PgServer,
    postgres15: PgServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PG_OTHER_DSN", postgres15.service_dsn)
    path = Path(settled["DEPROVISIONER_BACKENDS"])
    named = path.read_text().replace('"env:PG_MAIN_DSN"', '"env:PG_MAIN_DSN"\nsnapshot_server = "pg-other"')
    path.write_text(f'{named}\n[backends.pg-other]\nkind = "postgres"\ndsn = "env:PG_OTHER_DSN"\n')
    clear_caches()
    teardown = Teardown(db, backend, *FILLED)
    teardown.delete()
    since = len(postgres15.log.read_text())
    teardown.step()
    assert teardown.job().step == "wait", teardown.job().last_error
    assert f"zz_scratch_{teardown.manifest['generation']}" in postgres15.log.read_text()[since:]
    support.nothing_of_scratch(postgres15, teardown.manifest)
    path.write_text(path.read_text().replace('snapshot_server = "pg-other"', 'snapshot_server = "redis-main"'))
    with pytest.raises(SettingsError, match="snapshot_server"):
        settings.read_backends(path)


def test_a_zombie_s_snapshot_is_called_off_and_its_database_stays_the_customer_s(
    db: Connection, store: Path, backend: Postgres, pg: PgServer, system: System
) -> None:
    """It stands still before it opens the door, until the resource is restored and in use."""
    teardown = Teardown(db, backend, *FILLED)
    teardown.delete()
    short = {"DEPROVISIONER_LEASE_SECONDS": "2", "DEPROVISIONER_SWEEP_SECONDS": "0.2"}
    at = "before:ALTER DATABASE name ALLOW_CONNECTIONS#2"
    zombie = system.worker(CRASH_AT=at, CRASH_SIGNAL="SIGSTOP", **short)
    process = zombie.container._container
    eventually(lambda: psutil.Process(process.pid).status() == psutil.STATUS_STOPPED, 60, "it stands still")
    jobs.restore(db, teardown.id, actor="op", reason="by mistake")
    other = system.worker(DEPROVISIONER_LEASE_SECONDS="30", DEPROVISIONER_SWEEP_SECONDS="0.2")
    eventually(lambda: teardown.job().state == "succeeded", 60, "it is restored")
    with teardown.customer.inside("INSERT INTO t VALUES (0, 'new')") as inside:
        process.kill("SIGCONT")
        eventually(lambda: b'"claim_lost"' in process.logs(), 60, "it learns that its claim is lost")
        inside.commit()
    name = teardown.manifest["database"]
    assert pg.query("SELECT datallowconn, datconnlimit FROM pg_database WHERE datname = %s", name) == [(True, -1)]
    assert [row.verified_at for row in teardown.rows()] == [None]
    assert other.container._container.status == "running"


@pytest.mark.proof
@pytest.mark.timeout(3000)
def test_a_worker_may_die_at_every_boundary_of_a_snapshot(
    db: Connection, store: Path, backend: Postgres, pg: PgServer, system: System, tmp_path: Path
) -> None:
    """Before and after each statement that changes the backend: the next attempt destroys, with its own snapshot."""
    teardown = Teardown(db, backend, *FILLED)
    teardown.delete()
    trace = tmp_path / "trace"
    traced = system.worker(CRASH_TRACE=str(trace))
    eventually(lambda: teardown.job().state == "succeeded", 60, "it ends")
    traced.container._container.stop()
    reached = trace.read_text().splitlines()
    steps = reached[: [place for place, name in enumerate(reached) if name == "start"][1]]  # the next one destroys
    names = [f"{name}#{steps[: place + 1].count(name)}" for place, name in enumerate(steps)]
    names = [name for name in names if name.partition("#")[0] not in ("heartbeat", "BEGIN", "sweep")]
    assert len(names) > 20
    short = {"DEPROVISIONER_LEASE_SECONDS": "2", "DEPROVISIONER_SWEEP_SECONDS": "0.2"}
    for name in names:
        for moment in ("before", "after"):
            teardown = Teardown(db, backend, *FILLED)
            teardown.delete()
            dying = system.worker(ready=False, CRASH_AT=f"{moment}:{name}", **short).container._container
            eventually(lambda at=dying: at.status == "exited", 60, f"it dies {moment} {name}")  # type: ignore[misc]
            rescuer = system.worker(**short)
            eventually(
                lambda of=teardown: of.job().state == "succeeded",  # type: ignore[misc]
                60,
                f"another worker goes on {moment} {name}",
            )
            rescuer.container._container.stop()
            assert any(row.verified_at for row in teardown.rows()), (moment, name)
            assert [row.removed_at is None for row in teardown.rows()].count(True) == 1, (moment, name)
            assert not pg.bears(teardown.manifest), (moment, name)
            support.nothing_of_scratch(pg, teardown.manifest)


def test_a_namespace_is_destroyed_after_its_snapshot_was_restored(
    db: Connection, store: Path, servers: Servers, system: System
) -> None:
    new = NewResource(tenant="acme", kind="redis", backend="redis-main", name="n", manifest=None)
    id = resources.register(db, new, actor="me")[0].id
    system.worker()
    eventually(lambda: resources.find(db, id)[0].status == "active", 60, "it is made")
    manifest = resources.find(db, id)[0].manifest
    assert manifest is not None
    for place in range(250):
        servers.redis.client.set(f"{manifest['prefix']}{place}", "x" * 1000)
    job = jobs.enqueue(db, id, actor="me").job.id
    doorbell.ring_now()
    eventually(lambda: resources.find(db, id)[0].status == "deleted", 60, "it is destroyed")
    (row,) = snapshots.of_job(db, job)
    assert row.verified_at
    assert row.detail is not None
    assert row.detail["restored"] == {"keys": 250}
    (file,) = store.iterdir()
    assert file.name.startswith(f"redis-{id}-")
    assert not servers.redis.bears(manifest)
    made = json.loads(system.cli("snapshots", "restore", str(row.id), "--name", "again", "--json").stdout)["resource"]
    assert len(servers.redis.keys(made["manifest"]["prefix"])) == 250


def test_a_zombie_removes_nothing_that_its_successor_has_stored(
    db: Connection, store: Path, backend: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stood still before it looked for what earlier attempts have left."""
    teardown = Teardown(db, backend)
    job = teardown.delete()
    (zombie,) = claims(db)
    jobs.start(db, zombie, worker="zombie")
    db.execute(text("UPDATE outbox SET lease_expires_at = now() - interval '1 s' WHERE id = :id"), {"id": job})
    jobs.sweep(db, actor="w")
    honest = stores.Folder.reading

    def beside(self: stores.Folder, name: str) -> Any:
        with pytest.raises(ClaimLost):
            take_snapshot(Run(zombie, backend, worker="zombie"), teardown.manifest)
        return honest(self, name)

    monkeypatch.setattr(stores.Folder, "reading", beside)
    teardown.step()
    assert teardown.job().step == "wait", teardown.job().last_error
    (row,) = teardown.rows()
    assert row.verified_at
    assert row.removed_at is None
    assert len(list(store.iterdir())) == 1


def test_a_store_that_is_gone_does_not_keep_the_next_attempt_from_another_one(
    db: Connection, store: Path, settled: dict[str, str], backend: Postgres, tmp_path: Path
) -> None:
    teardown = Teardown(db, backend)
    teardown.delete()
    (claim,) = claims(db)
    jobs.start(db, claim, worker="w")
    snapshots.begin(db, claim, stores.located(f"file:{store}", "n"))
    jobs.retry(db, claim, worker="w", error="the disk died")
    store.rmdir()
    (tmp_path / "other").mkdir()
    require(settled, f"file:{tmp_path / 'other'}")
    teardown.due()
    teardown.step()
    assert teardown.job().step == "wait", teardown.job().last_error
    assert [row.removed_at for row in teardown.rows()] == [None, None]
    store.mkdir()
    teardown.step()
    assert expiry.remove_expired(worker="w") == 1, "once its job has ended, the first one is removed"
