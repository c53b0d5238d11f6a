"""A teardown's snapshot on real servers: it counts when it was restored, and nothing is destroyed without it."""

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, text

from outbox import jobs, snapshots
from outbox.errors import SettingsError, Transient
from tests.support.factories import claims, events_of
from tests.support.servers import Servers, clear_caches
from tests.support.snapshots import Teardown, require
from tests.support.witness import PgServer
from worker.backends.postgres import Postgres, contents
from worker.snapshots import stores

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
    import os

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
    from outbox.errors import ClaimLost
    from outbox.events import Event

    teardown = Teardown(db, backend)
    teardown.delete()
    (claim,) = claims(db)
    jobs.start(db, claim, worker="w")
    id = snapshots.begin(db, claim, "file:/nowhere")
    with pytest.raises(ClaimLost):
        jobs.advance(db, claim, worker="w", event=Event.SNAPSHOT_VERIFIED, seen={})
    import datetime as dt

    snapshots.verified(db, claim, id, size=1, detail={}, keep=dt.timedelta(days=1))
    jobs.advance(db, claim, worker="w", event=Event.SNAPSHOT_VERIFIED, seen={})


def test_a_backend_that_requires_snapshots_needs_a_store(settled: dict[str, str]) -> None:
    from outbox import settings

    path = Path(settled["DEPROVISIONER_BACKENDS"])
    text_ = path.read_text().replace("concurrency = 8", 'concurrency = 8\nsnapshot = "required"')
    path.write_text(text_)
    with pytest.raises(SettingsError, match="snapshot_store"):
        settings.read_backends(path)
