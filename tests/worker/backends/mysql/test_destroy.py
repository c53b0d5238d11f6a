"""What customers and neighbours have put in the way of a teardown, and what is left behind it."""

import threading
import time
import uuid
from contextlib import ExitStack, suppress
from typing import Any

import pymysql
import pytest

from outbox.errors import OutOfService, Refused, Transient
from tests.support.mariadb_servers import MariadbServer, customer
from tests.support.witness import eventually
from tests.worker.backends.mysql.conftest import Make, say
from worker.backends import Absent, Different, Same
from worker.backends.mysql import Mysql, obstacles, session


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock is waited for one second, not five."""
    monkeypatch.setattr(session, "_PINNED", session._PINNED.replace("lock_wait_timeout = 5", "lock_wait_timeout = 1"))


def test_a_teardown_leaves_nothing_in_any_table_of_the_server(
    server: MariadbServer, backend: Mysql, provisioned: dict[str, Any]
) -> None:
    say(
        provisioned,
        "CREATE TABLE t (n INT PRIMARY KEY)",
        "CREATE TRIGGER tr BEFORE INSERT ON t FOR EACH ROW SET @x = 1",
        "CREATE VIEW v AS SELECT * FROM t",
        "CREATE FUNCTION f() RETURNS INT SQL SECURITY DEFINER RETURN 1",
        "CREATE PROCEDURE p() SELECT SLEEP(100)",
        "CREATE EVENT e ON SCHEDULE EVERY 1 SECOND DO CALL p()",
        "LOCK TABLES t WRITE",
    )
    eventually(lambda: ("SELECT SLEEP(100)",) in server.query("SELECT INFO FROM information_schema.PROCESSLIST"))
    evidence = backend.teardown(provisioned, 1)
    assert isinstance(backend.inspect(provisioned), Absent)
    assert not server.bears(provisioned)
    assert not server.query(
        f"SELECT 1 FROM deprovisioner_service.objects WHERE generation = '{provisioned['generation']}'"
    )
    assert any(statement.startswith("DROP DATABASE") for statement in evidence["statements"])
    assert backend.teardown(provisioned, 2) == {}


def test_other_users_keep_no_rights_on_a_schema_that_could_be_made_again(
    server: MariadbServer, backend: Mysql, provisioned: dict[str, Any]
) -> None:
    name, database = f"reader_{uuid.uuid4().hex[:8]}", provisioned["database"]
    say(provisioned, "CREATE TABLE t (n INT PRIMARY KEY, m INT)", "CREATE FUNCTION f() RETURNS INT RETURN 1")
    server.query(
        f"CREATE USER {name} IDENTIFIED BY 'x'",
        f"CREATE ROLE r{name}",
        f"GRANT SELECT ON `{database}`.* TO {name}",
        f"GRANT INSERT ON `{database}`.* TO r{name}",
        f"GRANT SELECT (n), UPDATE (n, m) ON `{database}`.t TO {name} WITH GRANT OPTION",
        f"GRANT EXECUTE ON FUNCTION `{database}`.f TO {name}",
        f"GRANT SELECT ON `dpdb%`.* TO r{name}",
    )
    backend.teardown(provisioned, 1)
    assert not server.bears(provisioned)
    rights = [row[0] for row in server.query(f"SHOW GRANTS FOR {name}")]
    assert len(rights) == 1, rights
    assert len(server.query(f"SHOW GRANTS FOR r{name}")) == 2, "a pattern for all schemas is not this schema's"
    server.query(f"DROP USER {name}", f"DROP ROLE r{name}")


def test_a_foreign_key_of_a_neighbour_is_refused_before_anything_is_dropped(
    server: MariadbServer, backend: Mysql, make: Make
) -> None:
    mine, other = make(), make()
    say(mine, "CREATE TABLE a (n INT PRIMARY KEY)", "CREATE TABLE b (n INT PRIMARY KEY)")
    server.query(
        f"CREATE TABLE `{other['database']}`.c (n INT, FOREIGN KEY k (n) REFERENCES `{mine['database']}`.b (n))"
    )
    with pytest.raises(Refused, match="DROP FOREIGN KEY `k`"):
        backend.teardown(mine, 1)
    assert len(server.query(f"SHOW TABLES IN `{mine['database']}`")) == 2
    server.query(f"ALTER TABLE `{other['database']}`.c DROP FOREIGN KEY k")
    backend.teardown(mine, 2)
    assert not server.bears(mine)
    assert isinstance(backend.inspect(other), Same)


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("plugin", [False, True], ids=["blind", "metadata_lock_info"])
def test_a_metadata_lock_of_another_customer_is_ended_and_an_administrators_is_named(
    server: MariadbServer, backend: Mysql, provisioned: dict[str, Any], plugin: bool
) -> None:
    database, name = provisioned["database"], f"reader_{uuid.uuid4().hex[:8]}"
    say(provisioned, "CREATE TABLE t (n INT PRIMARY KEY) ENGINE = InnoDB")
    server.query(f"CREATE USER {name} IDENTIFIED BY 'x'", f"GRANT SELECT ON `{database}`.* TO {name}")
    if plugin:
        server.query("INSTALL SONAME 'metadata_lock_info'")
    reader = pymysql.connect(host="127.0.0.1", port=server.port, user=name, password="x")
    with server.root() as dump:
        dump.begin()
        for one in (dump, reader):
            with one.cursor() as cursor:
                cursor.execute(f"SELECT * FROM `{database}`.t")
        with pytest.raises(Transient, match=rf"session {dump.thread_id()} of 'root'"):
            backend.teardown(provisioned, 1)
        dump.rollback()
    backend.teardown(provisioned, 2)
    assert not server.bears(provisioned)
    with pytest.raises(pymysql.Error):
        reader.ping(reconnect=False)
    server.query(f"DROP USER {name}", *(["UNINSTALL SONAME 'metadata_lock_info'"] if plugin else []))


@pytest.mark.usefixtures("hurried")
def test_a_prepared_transaction_is_named_with_the_statement_that_ends_it(
    server: MariadbServer, backend: Mysql, provisioned: dict[str, Any]
) -> None:
    say(provisioned, "CREATE TABLE t (n INT PRIMARY KEY) ENGINE = InnoDB")
    xid = f"x{uuid.uuid4().hex[:8]}"
    prepared = say(
        provisioned, f"XA START '{xid}'", "INSERT INTO t VALUES (1)", f"XA END '{xid}'", f"XA PREPARE '{xid}'"
    )
    with pytest.raises(Transient, match=f"XA ROLLBACK '{xid}'"):
        backend.teardown(provisioned, 1)
    with pytest.raises(pymysql.Error):
        prepared.ping(reconnect=False)
    server.query(f"XA ROLLBACK '{xid}'")
    backend.teardown(provisioned, 2)
    assert not server.bears(provisioned)


def test_a_schema_that_its_customer_dropped_and_made_again_is_torn_down(
    server: MariadbServer, backend: Mysql, make: Make
) -> None:
    forged = "deprovisioner gen=" + str(uuid.uuid4())
    for trick in (
        ("DROP DATABASE `{database}`",),
        ("DROP DATABASE `{database}`", "CREATE DATABASE `{database}`", "CREATE TABLE `{database}`.t (n INT)"),
        (f"ALTER DATABASE `{{database}}` COMMENT = '{forged}'",),
        ("ALTER DATABASE `{database}` COMMENT = ''",),
    ):
        manifest = make()
        say(manifest, *(statement.format(**manifest) for statement in trick))
        assert isinstance(backend.inspect(manifest), Same), trick
        backend.teardown(manifest, 1)
        assert not server.bears(manifest)


def test_a_customer_that_writes_a_neighbours_mark_stops_nobody(
    server: MariadbServer, backend: Mysql, make: Make
) -> None:
    mine, other = make(), make()
    say(mine, f"ALTER DATABASE `{mine['database']}` COMMENT = 'deprovisioner gen={other['generation']}'")
    backend.teardown(other, 1)
    assert isinstance(backend.inspect(other), Absent)
    assert isinstance(backend.inspect(mine), Same)
    backend.teardown(mine, 1)
    assert not server.bears(mine)


def test_an_account_of_the_same_name_at_another_host_goes_too_unless_it_has_rights_elsewhere(
    server: MariadbServer, backend: Mysql, provisioned: dict[str, Any]
) -> None:
    user = provisioned["user"]
    elsewhere = f"other_{uuid.uuid4().hex[:8]}"
    server.query(
        f"CREATE DATABASE {elsewhere}",
        f"CREATE USER `{user}`@localhost",
        f"GRANT SELECT ON {elsewhere}.* TO `{user}`@localhost",
    )
    with pytest.raises(Refused, match=rf"RENAME USER '{user}'@'localhost'"):
        backend.teardown(provisioned, 1)
    assert provisioned["database"] in server.schemas()
    server.query(f"REVOKE SELECT ON {elsewhere}.* FROM `{user}`@localhost")
    backend.teardown(provisioned, 2)
    assert not server.bears(provisioned)
    server.query(f"DROP DATABASE {elsewhere}")


def test_routines_of_neighbours_that_the_dropped_user_defined_are_told(
    server: MariadbServer, backend: Mysql, make: Make
) -> None:
    mine, other = make(), make()
    server.query(f"CREATE DEFINER = `{mine['user']}` PROCEDURE `{other['database']}`.p() SELECT 1")
    assert backend.teardown(mine, 1)["definers_elsewhere"] == [f"routine {other['database']}.p"]
    assert server.query(f"SELECT name FROM mysql.proc WHERE db = '{other['database']}'") == [("p",)]


def test_an_object_that_took_the_name_between_check_and_drop_is_not_dropped(
    server: MariadbServer, backend: Mysql, provisioned: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    checked = obstacles.must_not_be_referred_to

    def and_replaced(session: Any, database: str) -> None:
        checked(session, database)
        server.query(
            f"DROP DATABASE `{database}`",
            f"DROP USER `{provisioned['user']}`",
            f"CREATE DATABASE `{database}`",
            f"CREATE TABLE `{database}`.precious (n INT)",
        )

    monkeypatch.setattr(obstacles, "must_not_be_referred_to", and_replaced)
    with pytest.raises(Refused, match="lost its mark"):
        backend.teardown(provisioned, 1)
    assert server.query(f"SHOW TABLES IN `{provisioned['database']}`") == [("precious",)]
    assert isinstance(backend.inspect(provisioned), Different)


def test_all_connections_taken_by_customers_leave_one_for_a_teardown(
    server: MariadbServer, backend: Mysql, make: Make
) -> None:
    mine, greedy = make(), make()
    server.query(f"ALTER USER `{greedy['user']}` WITH MAX_USER_CONNECTIONS 0")

    def torn_down() -> bool:
        try:  # a customer who was just turned away has the last place for a moment: the job would not lose an attempt
            backend.teardown(mine, 1)
        except OutOfService:
            return False
        return True

    with ExitStack() as taken:
        with suppress(pymysql.OperationalError):
            while True:
                taken.callback(customer(greedy["opens"]).close)
        with pytest.raises(pymysql.OperationalError, match="Too many connections"):
            customer(greedy["opens"])
        eventually(torn_down, what="the last place is the service's")
    assert not server.bears(mine)


def test_a_customer_cannot_take_all_connections(make: Make, server: MariadbServer) -> None:
    manifest = make()
    rows = server.query(
        f"SELECT JSON_VALUE(Priv, '$.max_user_connections') FROM mysql.global_priv WHERE User = '{manifest['user']}'"
    )
    assert rows == [("50",)]


def test_two_workers_in_one_teardown_drop_it_once(
    server: MariadbServer, backend: Mysql, provisioned: dict[str, Any]
) -> None:
    begun, done = threading.Barrier(2), []

    def work() -> None:
        begun.wait()
        done.append(backend.teardown(provisioned, 1))

    workers = [threading.Thread(target=work) for _ in range(2)]
    for one in workers:
        one.start()
    for one in workers:
        one.join()
    assert sorted(map(bool, done)) == [False, True]
    drops = [line for line in server.log() if f"DROP DATABASE `{provisioned['database']}`" in line]
    assert len(drops) == 1


def test_a_teardown_costs_little_more_than_the_bare_statements(
    server: MariadbServer, backend: Mysql, make: Make
) -> None:
    """A figure for `-s`; the bound only shows that nothing waits."""
    by_hand, by_us = [], []
    for _ in range(5):
        one = make()
        begun = time.perf_counter()
        server.query(f"DROP DATABASE `{one['database']}`", f"DROP USER `{one['user']}`")
        by_hand.append(time.perf_counter() - begun)
        other = make()
        begun = time.perf_counter()
        backend.teardown(other, 1)
        by_us.append(time.perf_counter() - begun)
    print(f"bare {min(by_hand) * 1000:.1f} ms, teardown {min(by_us) * 1000:.1f} ms")
    assert min(by_us) < min(by_hand) + 1


@pytest.mark.usefixtures("hurried")
def test_a_neighbours_idle_transaction_that_came_by_a_view_is_ended(
    server: MariadbServer, backend: Mysql, make: Make
) -> None:
    mine, other = make(), make()
    say(mine, "CREATE TABLE t (n INT PRIMARY KEY) ENGINE = InnoDB")
    server.query(
        f"CREATE DEFINER = `{mine['user']}` VIEW `{other['database']}`.v AS SELECT * FROM `{mine['database']}`.t",
        "INSTALL SONAME 'metadata_lock_info'",
    )
    idle = say(other, "BEGIN", "SELECT * FROM v")
    evidence = backend.teardown(mine, 1)
    assert any(other["user"] in done for done in evidence["told"])
    with pytest.raises(pymysql.Error):
        idle.ping(reconnect=False)
    server.query("UNINSTALL SONAME 'metadata_lock_info'")
    assert not server.bears(mine)
    assert isinstance(backend.inspect(other), Same)
