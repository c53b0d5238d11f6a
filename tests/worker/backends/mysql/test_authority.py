"""Whose word counts: a writable primary with the manifest's own identity."""

import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest

from deprovisioner.conformance.verbs import every_verb
from outbox.errors import OutOfService, Refused, SettingsError, Transient, Unavailable
from tests.support import accounts
from tests.support.mariadb_servers import MariadbServer
from tests.support.subjects.mysql import replicated
from tests.support.witness import eventually
from tests.worker.backends.mysql.conftest import Make
from worker.backends import Absent, Different, Same
from worker.backends.mysql import Mysql, registry


@contextmanager
def read_only(server: MariadbServer) -> Iterator[None]:
    server.query("SET GLOBAL read_only = 1")
    try:
        yield
    finally:
        server.query("SET GLOBAL read_only = 0")


def test_a_server_that_is_read_only_is_believed_in_nothing(
    server: MariadbServer, backend: Mysql, provisioned: dict[str, Any]
) -> None:
    with read_only(server):
        for act in every_verb(backend, provisioned, provisioned["opens"]):
            with pytest.raises(OutOfService, match="read_only"):
                act()
    assert isinstance(backend.inspect(provisioned), Same)


def test_a_replica_that_was_promoted_is_the_server_and_goes_on() -> None:
    """Users, marks and the service's schema are replicated; what the promoted replica lacks, it never had."""
    with replicated() as (primary, replica):
        old, new = Mysql(primary.service_dsn), Mysql(replica.service_dsn)
        plan = old.plan(uuid.uuid4(), uuid.uuid4())
        manifest = old.provision(plan.manifest, plan.credentials)
        replica.query("START SLAVE")
        eventually(lambda: manifest["database"] in replica.schemas() and replica.bears(manifest))
        eventually(lambda: replica.query("SELECT @@gtid_slave_pos") == primary.query("SELECT @@gtid_binlog_pos"))
        with pytest.raises(OutOfService, match="replica"):
            new.inspect(manifest)
        replica.query("STOP SLAVE", "RESET SLAVE ALL")
        assert isinstance(new.inspect(manifest), Same)
        new.teardown(manifest, 1)
        assert isinstance(new.inspect(manifest), Absent)
        assert not replica.bears(manifest)


def test_a_server_that_lost_the_services_schema_is_not_the_manifests(
    server: MariadbServer, backend: Mysql, provisioned: dict[str, Any]
) -> None:
    server.query("RENAME TABLE deprovisioner_service.server TO deprovisioner_service.away")
    try:
        assert isinstance(backend.inspect(provisioned), Different)
        for act in (backend.quarantine, backend.release, lambda manifest: backend.teardown(manifest, 1)):
            with pytest.raises(Refused, match="wrong server"):
                act(provisioned)
    finally:
        server.query("RENAME TABLE deprovisioner_service.away TO deprovisioner_service.server")
    assert isinstance(backend.inspect(provisioned), Same)


def test_an_object_on_a_server_that_moved_is_located_by_its_marks(
    server: MariadbServer, backend: Mysql, make: Make
) -> None:
    manifest, other = make(), make()
    moved = {name: manifest[name] for name in ("database", "user", "generation")} | {"server": "an older server"}
    assert isinstance(backend.inspect(moved), Different)
    found = backend.locate(moved)
    assert isinstance(found, Same)
    assert found.seen["manifest"] == {name: manifest[name] for name in moved}
    assert isinstance(backend.locate(moved | {"generation": other["generation"]}), Different)
    server.query(f"DELETE FROM deprovisioner_service.objects WHERE generation = '{manifest['generation']}'")
    assert isinstance(backend.locate(moved), Same), "after a dump and restore the marks alone are there"
    backend.teardown(manifest, 1)
    assert not server.bears(manifest)
    assert isinstance(backend.locate(moved), Absent)


def test_what_is_left_of_an_object_is_never_absence(server: MariadbServer, backend: Mysql, make: Make) -> None:
    for left in (
        ("DROP DATABASE `{database}`", "DROP USER `{user}`"),
        ("DROP DATABASE `{database}`", "DROP ROLE `deprovisioner gen={generation}`"),
        ("DROP USER `{user}`", "DROP ROLE `deprovisioner gen={generation}`"),
        (
            "GRANT SELECT ON `{database}`.* TO reader",
            "DROP DATABASE `{database}`",
            "DROP USER `{user}`",
            "DROP ROLE `deprovisioner gen={generation}`",
        ),
    ):
        manifest = make()
        server.query("CREATE USER IF NOT EXISTS reader", *(one.format(**manifest) for one in left))
        seen = backend.inspect(manifest)
        assert not isinstance(seen, Absent), left
        if isinstance(seen, Same):
            backend.teardown(manifest, 1)
            assert not server.bears(manifest)
    server.query("DROP USER reader")


@pytest.mark.parametrize("dsn", ["postgresql://a@b/c", "mysql://user@host", "mysql://host/x", "mysql://u:p@h/x?a=b"])
def test_a_dsn_that_cannot_be_read_is_an_error_without_its_password(dsn: str) -> None:
    with pytest.raises(SettingsError) as failed:
        Mysql(dsn)
    assert ":p@" not in str(failed.value)


def test_a_login_that_the_server_refuses_means_unavailable(server: MariadbServer) -> None:
    wrong = Mysql(server.service_dsn.replace(accounts.PASSWORD, "a-wrong-one"))
    with pytest.raises(Unavailable, match="1045") as failed:
        wrong.server_identity()
    assert "a-wrong-one" not in str(failed.value)


def test_settings_of_the_server_for_all_sessions_do_not_change_what_is_done(
    server: MariadbServer, backend: Mysql, make: Make
) -> None:
    settings = {
        "sql_mode": "'ANSI_QUOTES,NO_BACKSLASH_ESCAPES,PIPES_AS_CONCAT,ORACLE'",
        "sql_select_limit": "0",
        "sql_safe_updates": "1",
        "autocommit": "0",
        "tx_read_only": "1",
        "foreign_key_checks": "0",
        "lock_wait_timeout": "1000000",
        "completion_type": "2",
        "max_statement_time": "0.000001",
    }
    names = ", ".join(f"@@global.{name}" for name in settings)
    (before,) = server.query(f"SELECT {names}")
    with server.root() as root, root.cursor() as cursor:  # one session, which is older than what it sets
        cursor.execute("SET SESSION max_statement_time = 0, sql_mode = ''")
        for name, value in settings.items():
            cursor.execute(f"SET GLOBAL {name} = {value}")
        try:
            manifest = make()
            backend.quarantine(manifest)
            backend.release(manifest)
            assert isinstance(backend.inspect(manifest), Same)
            backend.teardown(manifest, 1)
            assert isinstance(backend.inspect(manifest), Absent)
        finally:
            for name, value in zip(settings, before, strict=True):
                cursor.execute(f"SET GLOBAL {name} = %s", (value,))
    assert not server.bears(manifest)


def test_a_lock_of_another_worker_is_waited_for_and_then_told(
    server: MariadbServer, backend: Mysql, provisioned: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "LOCK_SECONDS", 0.1)
    backend.quarantine(provisioned)
    name = next(line for line in reversed(server.log()) if "GET_LOCK" in line).split("'")[1]
    held = backend._server.opened(accounts.NAME, accounts.PASSWORD, None, 5)
    with held, held.cursor() as cursor:
        cursor.execute("SELECT GET_LOCK(%s, 0)", (name,))
        with pytest.raises(Transient, match="another worker"):
            backend.teardown(provisioned, 1)
    backend.teardown(provisioned, 2)


@pytest.mark.parametrize("lacking", ["PROCESS", "SHOW DATABASES"])
def test_an_account_that_is_not_shown_all_never_says_absent(
    server: MariadbServer, backend: Mysql, provisioned: dict[str, Any], lacking: str
) -> None:
    """Without these rights the server answers, and leaves out what others have."""
    missing = {"database": "somebodys", "user": None, "generation": str(uuid.uuid4()), "server": provisioned["server"]}
    server.query(f"REVOKE {lacking} ON *.* FROM {accounts.NAME}")
    try:
        for act in (backend.inspect, backend.quarantine, lambda manifest: backend.teardown(manifest, 1)):
            for manifest in (missing, provisioned):
                with pytest.raises(Refused, match=f"has no {lacking}"):
                    act(manifest)
    finally:
        server.query(f"GRANT {lacking} ON *.* TO {accounts.NAME}")
    assert isinstance(backend.inspect(missing), Absent)


def test_a_server_that_stands_still_is_unavailable_within_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.backends.mysql.session.CONNECT_TIMEOUT_SECONDS", 1)
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        stands = Mysql(f"mysql://x:y@127.0.0.1:{silent.getsockname()[1]}/x")
        begun = time.monotonic()
        with pytest.raises(Unavailable):
            stands.teardown({"database": "d", "user": None, "generation": "g", "server": "s"}, 1)
        assert time.monotonic() - begun < 30
