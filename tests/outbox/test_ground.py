"""Settings, tokens, credentials, the doorbell: each wrong input named, nothing leaked."""

import datetime as dt
import re
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import redis
from sqlalchemy import Connection, text
from sqlalchemy.exc import NotSupportedError, OperationalError

from deprovisioner.up import servers as embedded
from outbox import credentials, doorbell, resources, settings, tokens
from outbox import db as database
from outbox.errors import BadRequest, IdempotencyKeyReused, NotActive, SettingsError
from outbox.resources import NewResource
from outbox.settings import Brake
from tests.support.factories import a_job, a_resource
from tests.support.servers import use_environment
from tests.support.witness import slowness


@pytest.mark.parametrize(
    ("variable", "value", "named"),
    [
        ("DEPROVISIONER_LEASE_SECOND", "30", "did you mean DEPROVISIONER_LEASE_SECONDS"),
        ("DEPROVISIONER_LEASE_SECONDS", "soon", "DEPROVISIONER_LEASE_SECONDS='soon'"),
        ("DEPROVISIONER_BROKER_URL", "localhost", "DEPROVISIONER_BROKER_URL='localhost': must be a URL"),
        ("DEPROVISIONER_API_PORT", "99999", "DEPROVISIONER_API_PORT"),
        ("DEPROVISIONER_MAX_ATTEMPTS", "0", "DEPROVISIONER_MAX_ATTEMPTS='0': Expected `int` >= 1"),
        ("DEPROVISIONER_BACKOFF_MAX_SECONDS", "nan", "DEPROVISIONER_BACKOFF_MAX_SECONDS='nan'"),
        ("DEPROVISIONER_PREPARED_STATEMENTS", "maybe", "DEPROVISIONER_PREPARED_STATEMENTS='maybe': Expected `bool`"),
        ("DEPROVISIONER_QQQ", "1", "is not a setting; known:"),
        ("DEPROVISIONER_WORKER_SLOTS", "8\udcff", "DEPROVISIONER_WORKER_SLOTS='8\\udcff': it is not UTF-8"),
    ],
)
def test_a_wrong_setting_is_named(
    settled: dict, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, named: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError, match=re.escape(named)):
        settings.load()


def test_a_connection_lost_while_it_prepares_is_known_to_be_lost(db: Connection, connect: Any) -> None:
    fresh = database.prepared("SELECT CAST(:word AS text) || '%' FROM outbox WHERE id = :id")
    with database.statement() as session:
        pid = session.execute(text("SELECT pg_backend_pid()")).scalar_one()
        connect().cursor().execute("SELECT pg_terminate_backend(%s, 5000)", (pid,))
        with pytest.raises(OperationalError) as lost:
            session.execute(fresh, {"word": "x", "id": 1})
    assert database.unreachable(lost.value)
    id = a_job(db)
    with database.statement() as session:
        assert session.execute(fresh, {"word": "x", "id": id}).scalars().all() == ["x%"]


def test_a_plan_that_no_longer_fits_after_a_migration_is_made_anew(db: Connection) -> None:
    database.engine().dispose()
    whole = database.prepared("SELECT * FROM holds WHERE id = :id")
    with database.statement() as session:
        session.execute(whole, {"id": 1})
        db.execute(text("ALTER TABLE holds ADD COLUMN more text"))
        with pytest.raises(NotSupportedError) as lost:
            session.execute(whole, {"id": 1})
    assert database.unreachable(lost.value), "so it is asked again"
    with database.statement() as session:
        assert [*session.execute(whole, {"id": 1}).keys()][-1] == "more"


def test_a_missing_setting_is_named_when_it_is_needed(settled: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DEPROVISIONER_DATABASE_URL")
    with pytest.raises(SettingsError, match="DEPROVISIONER_DATABASE_URL is not set"):
        settings.load().need("database_url")


@pytest.mark.parametrize(
    ("toml", "named"),
    [
        ("", "no table"),
        ("[backends.a]\nkind='postgres'", "'dsn'"),
        ("[backends.a]\nkind='postgres'\ndsn='x'\ngrase='0s'", "unknown key 'grase'"),
        ("[backends.a]\nkind='postgres'\ndsn='x'\ngrace='1w'", "'grace'"),
        ("[backends.a]\nkind='postgres'\ndsn='x'\ngrace='1h'\nmin_grace='2h'", "'min_grace'"),
        ("[backends.a]\nkind='postgres'\ndsn='x'\nsnapshot='always'", "'snapshot'"),
        ("[backends.a]\nkind='postgres'\ndsn='x'\npurge='anybody'", "'purge'"),
        ("[backends.a]\nkind='postgres'\ndsn='x'\nbrake='lots'", "'brake'"),
        ("[backends.a]\nkind='postgres'\ndsn='x'\nconcurrency=0", "'concurrency'"),
        ("[backends.a]\nkind='postgres'\ndsn='x'\nconcurrency=true", "'concurrency'"),
        ("backends = 3", "no table"),
        ("[[[", "cannot read"),
    ],
)
def test_a_wrong_backends_file_names_backend_and_key(tmp_path: Path, toml: str, named: str) -> None:
    path = tmp_path / "backends.toml"
    path.write_text(toml)
    with pytest.raises(SettingsError, match=re.escape(named)):
        settings.read_backends(path)


def test_the_example_of_the_contract_is_read(tmp_path: Path) -> None:
    path = tmp_path / "backends.toml"
    path.write_text(
        '[backends.pg-main]\nkind = "postgres"\ndsn = "env:PG_X_DSN"\ngrace = "0s"\nbrake = "50/10m"\nconcurrency = 4\n'
    )
    config = settings.read_backends(path)["pg-main"]
    assert (config.kind, config.concurrency, config.brake) == (
        "postgres",
        4,
        Brake("backend", "pg-main", 50, dt.timedelta(minutes=10)),
    )
    assert settings.address_variables(path) == {"PG_X_DSN"}


def test_a_token_is_kept_only_as_a_hash_and_ends_when_revoked(db: Connection) -> None:
    made, secret = tokens.create(db, actor="op", role="tenant", tenant="acme", name="ci")
    assert tokens.find(db, secret) == made
    stored = db.execute(text("SELECT * FROM tokens")).one()
    assert secret.encode() not in bytes(stored.digest)
    assert secret not in str(stored)
    tokens.revoke(db, made.id, actor="op")
    assert tokens.find(db, secret) is None
    assert tokens.find(db, secret + "x") is None
    with pytest.raises(BadRequest):
        tokens.create(db, actor="op", role="operator", tenant="acme", name="x")


def test_credentials_are_sealed_and_an_old_key_still_opens_them(settled: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    sealed = credentials.seal({"password": "s3cret"})
    assert b"s3cret" not in sealed
    monkeypatch.setenv(
        "DEPROVISIONER_CREDENTIALS_KEY", f"{credentials.new_key()},{settled['DEPROVISIONER_CREDENTIALS_KEY']}"
    )
    settings.get.cache_clear()
    credentials._keys.cache_clear()
    assert credentials.unseal(sealed) == {"password": "s3cret"}
    monkeypatch.setenv("DEPROVISIONER_CREDENTIALS_KEY", credentials.new_key())
    settings.get.cache_clear()
    credentials._keys.cache_clear()
    with pytest.raises(SettingsError, match="no key"):
        credentials.unseal(sealed)


def test_an_idempotency_key_makes_one_resource(db: Connection) -> None:
    new = NewResource(tenant="acme", kind="postgres", backend="pg-main", name="orders")
    one = resources.register(db, new, actor="me", idempotency_key="k", request_digest="d")
    assert resources.register(db, new, actor="me", idempotency_key="k", request_digest="d") == one
    with pytest.raises(IdempotencyKeyReused):
        resources.register(db, new, actor="me", idempotency_key="k", request_digest="other")
    elsewhere = NewResource(tenant="globex", kind="postgres", backend="pg-main", name="orders")
    assert resources.register(db, elsewhere, actor="me", idempotency_key="k", request_digest="d")[0].id != one[0].id


def test_protection_can_be_lifted_until_the_delete(db: Connection) -> None:
    resource = a_resource(db, protected=True)
    assert not resources.change(db, resource, actor="op", changes={"protected": False}).protected
    gone = a_resource(db, status="deleting")
    with pytest.raises(NotActive):
        resources.change(db, gone, actor="op", changes={"protected": True})


def test_many_rings_wake_a_worker_once(settled: dict) -> None:
    broker = redis.Redis.from_url(settled["DEPROVISIONER_BROKER_URL"])
    broker.flushdb()
    for _ in range(2):
        for _ in range(20):
            assert doorbell.ring_now()
        assert broker.zcard(doorbell.BELL) == 1
        assert doorbell.wait([], 5)
        assert not doorbell.wait([], 0.01)
    assert doorbell.ring_now(["a", "b"])
    assert not doorbell.wait(["c"], 0.01), "no ring was for it or for all"
    assert doorbell.wait(["c", "a"], 5)
    assert broker.keys() == [b"deprovisioner:bell:b"]
    broker.flushdb()


@pytest.mark.parametrize(
    ("url", "bell"),
    [
        ("redis://h/1", True),
        ("rediss://h/1?ssl_cert_reqs=CERT_REQUIRED", True),
        ("redis://a/3;redis://b/3", False),
        ("sentinel://h", False),
        ("amqp://h", False),
    ],
)
def test_a_worker_can_wait_only_at_a_single_redis_broker(
    settled: dict, monkeypatch: pytest.MonkeyPatch, url: str, bell: bool
) -> None:
    use_environment(monkeypatch, settled | {"DEPROVISIONER_BROKER_URL": url})
    assert doorbell.on_redis() == bell
    if bell:
        doorbell.redis.client_for(1.0).connection_pool.make_connection()


def test_why_the_bell_did_not_ring_is_logged(
    settled: dict, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    no_such = settled["DEPROVISIONER_BROKER_URL"].rpartition("/")[0] + "/99"
    use_environment(monkeypatch, settled | {"DEPROVISIONER_BROKER_URL": no_such})
    assert doorbell.ring_now() is False
    assert "DB index is out of range" in "".join(capsys.readouterr())


def test_a_broker_other_than_redis_gets_one_message_for_each_ring(
    settled: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_environment(monkeypatch, settled | {"DEPROVISIONER_BROKER_URL": "memory://"})
    assert not doorbell.on_redis()
    assert doorbell.ring_now()
    assert doorbell.ring_now()
    with doorbell.celery.sender().connection_for_read() as connection:
        queue = connection.SimpleQueue(doorbell.QUEUE)
        rung = [queue.get(block=False).headers["task"] for _ in range(2)]
        assert queue.qsize() == 0
    assert rung == [doorbell.DRAIN] * 2


def test_a_ring_to_a_dead_broker_is_bounded_and_raises_nothing(settled: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    use_environment(monkeypatch, settled | {"DEPROVISIONER_BROKER_URL": f"redis://127.0.0.1:{embedded.free_port()}/0"})
    began = time.monotonic()
    assert doorbell.ring_now() is False
    assert doorbell.broker_alive() is False
    assert time.monotonic() - began < 2 * doorbell.TIMEOUT_SECONDS * slowness()
    began = time.monotonic()
    doorbell.Bell().ring()
    assert time.monotonic() - began < 0.1 * slowness(), "a request never waits for the broker"


def test_a_broker_that_takes_connections_and_never_answers_is_asked_once(
    settled: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        use_environment(
            monkeypatch, settled | {"DEPROVISIONER_BROKER_URL": f"redis://127.0.0.1:{silent.getsockname()[1]}/0"}
        )
        began = time.monotonic()
        assert doorbell.broker_alive() is False
        assert time.monotonic() - began < 1.5 * doorbell.TIMEOUT_SECONDS * slowness()


def test_a_log_that_cannot_be_written_raises_nothing() -> None:
    says = "from outbox import logs; logs.configure(); logs.log.info('a'); logs.log.exception('b'); print('on')"
    with Path("/dev/full").open("w") as full:
        argv = [sys.executable, "-c", says]
        done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=full, text=True, timeout=60, check=False)
    assert done.stdout == "on\n"
