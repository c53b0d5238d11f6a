"""What a quarantine closes, and what a release gives back."""

import re
import threading
import uuid
from pathlib import Path
from string import Template
from typing import Any

import pymysql
import pytest

from outbox.errors import ClaimLost, Refused, Transient
from tests.support import accounts
from tests.support.mariadb_servers import MariadbServer, customer
from tests.support.witness import eventually
from tests.worker.backends.mysql.conftest import Make, by_hand, say
from worker.backends import IN_QUARANTINE
from worker.backends.mysql import Mysql, registry


def counted(server: MariadbServer, manifest: dict[str, Any]) -> int:
    return int(server.query(f"SELECT n FROM `{manifest['database']}`.t")[0][0])


def test_an_event_of_a_locked_user_goes_on_and_a_quarantine_stops_it(
    server: MariadbServer, backend: Mysql, provisioned: dict[str, Any]
) -> None:
    say(
        provisioned,
        "CREATE TABLE t (n INT) ENGINE = InnoDB",
        "INSERT INTO t VALUES (0)",
        "CREATE EVENT e ON SCHEDULE EVERY 1 SECOND DO UPDATE t SET n = n + 1",
        "CREATE EVENT s ON SCHEDULE EVERY 1 SECOND DO SELECT SLEEP(100)",
    )
    server.query(f"ALTER USER `{provisioned['user']}` ACCOUNT LOCK")
    before = counted(server, provisioned)
    eventually(lambda: counted(server, provisioned) > before)
    server.query(f"ALTER USER `{provisioned['user']}` ACCOUNT UNLOCK")
    backend.quarantine(provisioned)
    stopped = counted(server, provisioned)
    refused = len(server.errors("Access denied for user"))
    eventually(lambda: len(server.errors("Access denied for user")) > refused + 1)  # it was due since
    assert counted(server, provisioned) == stopped
    sessions = server.query(f"SELECT ID FROM information_schema.PROCESSLIST WHERE USER = '{provisioned['user']}'")
    assert sessions == []
    backend.release(provisioned)
    eventually(lambda: counted(server, provisioned) > stopped)
    backend.teardown(provisioned, 1)


def test_a_release_gives_back_exactly_the_rights_that_were_there(
    server: MariadbServer, backend: Mysql, provisioned: dict[str, Any]
) -> None:
    database, name = provisioned["database"], f"reader_{uuid.uuid4().hex[:8]}"
    say(
        provisioned,
        "CREATE TABLE t (n INT PRIMARY KEY, m INT)",
        "CREATE FUNCTION f() RETURNS INT RETURN 1",
        "CREATE PROCEDURE p() SELECT 1",
    )
    server.query(
        f"CREATE USER {name}@localhost IDENTIFIED BY 'x'",
        f"CREATE ROLE r{name}",
        f"GRANT SELECT, DELETE HISTORY, LOCK TABLES ON `{database}`.* TO {name}@localhost WITH GRANT OPTION",
        f"GRANT SELECT (n), UPDATE (n, m), DELETE ON `{database}`.t TO {name}@localhost",
        f"GRANT EXECUTE ON FUNCTION `{database}`.f TO {name}@localhost",
        f"GRANT ALTER ROUTINE ON PROCEDURE `{database}`.p TO {name}@localhost WITH GRANT OPTION",
        f"GRANT SHOW VIEW ON `{database}`.* TO r{name}",
    )

    def rights() -> list[tuple[Any, ...]]:
        everyone = (f"'{provisioned['user']}'", f"{name}@localhost", f"r{name}")
        return sorted(row for one in everyone for row in server.query(f"SHOW GRANTS FOR {one}"))

    before = rights()
    for _ in range(2):
        backend.quarantine(provisioned)
    assert [row for row in rights() if database in row[0]] == []
    for _ in range(2):
        backend.release(provisioned)
    assert rights() == before
    server.query(f"DROP USER {name}@localhost", f"DROP ROLE r{name}")
    backend.teardown(provisioned, 1)


def test_another_users_session_inside_the_schema_ends_and_one_outside_goes_on(
    server: MariadbServer, backend: Mysql, provisioned: dict[str, Any]
) -> None:
    database, name = provisioned["database"], f"reader_{uuid.uuid4().hex[:8]}"
    server.query(f"CREATE USER {name} IDENTIFIED BY 'x'", f"GRANT ALL ON `{database}`.* TO {name}")
    inside, outside = (
        pymysql.connect(host="127.0.0.1", port=server.port, user=name, password="x", database=one)
        for one in (database, None)
    )
    backend.quarantine(provisioned)
    with pytest.raises(pymysql.Error):
        inside.ping(reconnect=False)
    with outside, outside.cursor() as cursor, pytest.raises(pymysql.OperationalError, match="denied"):
        cursor.execute(f"CREATE TABLE `{database}`.t (n INT)")
    backend.teardown(provisioned, 1)
    server.query(f"DROP USER {name}")


def test_an_account_that_was_locked_before_stays_locked_after_a_release(
    server: MariadbServer, backend: Mysql, provisioned: dict[str, Any]
) -> None:
    server.query(f"ALTER USER `{provisioned['user']}` ACCOUNT LOCK")
    backend.quarantine(provisioned)
    backend.release(provisioned)
    with pytest.raises(pymysql.OperationalError, match="locked"):
        customer(provisioned["opens"])
    with pytest.raises(Refused, match="was locked before"):
        backend.prove(provisioned, provisioned["opens"])
    backend.teardown(provisioned, 1)


@pytest.mark.parametrize(("stands_at", "then"), [("quarantine", "release"), ("release", "quarantine")])
def test_a_worker_that_stood_still_past_the_other_verb_changes_nothing_more(
    server: MariadbServer, backend: Mysql, provisioned: dict[str, Any], stands_at: str, then: str
) -> None:
    if stands_at == "release":
        backend.quarantine(provisioned)
    stands, go_on, calls, ends = threading.Event(), threading.Event(), iter(range(10)), []

    def still() -> None:
        if (call := next(calls)) == 1:  # the second call is just before the change
            stands.set()
            go_on.wait()
        elif call > 1:
            raise ClaimLost("another worker has it")

    def work() -> None:
        try:
            getattr(backend, stands_at)(provisioned, still)
        except Exception as error:  # noqa: BLE001 - the test tells what it was
            ends.append(error)

    worker = threading.Thread(target=work)
    worker.start()
    assert stands.wait(30), "it was not asked just before the change"
    getattr(backend, then)(provisioned)
    go_on.set()
    worker.join()
    assert [type(one) for one in ends] == [ClaimLost]
    if then == "release":
        customer(provisioned["opens"]).close()
        backend.prove(provisioned, provisioned["opens"])
    else:
        with pytest.raises(pymysql.OperationalError, match="locked"):
            customer(provisioned["opens"])
    backend.teardown(provisioned, 1)


def test_a_stranger_that_takes_the_named_lock_is_ended(
    server: MariadbServer, backend: Mysql, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, other = make(), make()
    backend.quarantine(mine)
    locks = [line for line in server.log() if "GET_LOCK" in line and "deprovisioner " in line]
    name = locks[-1].split("'")[1]
    assert mine["database"] not in name, "it cannot be guessed"
    stranger = say(other, f"SELECT GET_LOCK('{name}', 0)")
    monkeypatch.setattr(registry, "LOCK_SECONDS", 20)
    evidence = backend.teardown(mine, 1)
    assert any("ended session" in done and other["user"] in done for done in evidence["told"])
    with pytest.raises(pymysql.Error):
        stranger.ping(reconnect=False)


def test_what_is_in_quarantine_is_proven_by_nothing(backend: Mysql, provisioned: dict[str, Any]) -> None:
    backend.quarantine(provisioned)
    for opens in (provisioned["opens"], None):
        with pytest.raises(Transient, match="in quarantine"):
            backend.prove(provisioned, opens)
    backend.release(provisioned)
    assert backend.prove(provisioned, None)
    with pytest.raises(Transient, match="1045") as failed:
        backend.prove(provisioned, provisioned["opens"] | {"password": "a-wrong-one"})
    assert "a-wrong-one" not in str(failed.value)


def test_a_right_that_the_account_may_not_take_is_told_with_the_statement_that_takes_it(
    server: MariadbServer, backend: Mysql
) -> None:
    """An adopted name with `_`: a right that was given later without the escape is a pattern's."""
    unique = uuid.uuid4().hex[:8]
    manifest = by_hand(server, f"my_app_{unique}", f"u{unique}")
    full = backend.adopt(manifest, uuid.uuid4())
    server.query(f"CREATE USER late{unique}", f"GRANT SELECT ON `my_app_{unique}`.* TO late{unique}")
    with pytest.raises(Refused, match=rf"REVOKE SELECT ON `my_app_{unique}`\.\* FROM 'late{unique}'@'%'"):
        backend.teardown(full, 1)
    assert manifest["database"] in server.schemas()
    server.query(f"REVOKE SELECT ON `my_app_{unique}`.* FROM late{unique}", f"DROP USER late{unique}")
    backend.teardown(full, 2)
    assert not server.bears(full)


def test_what_is_in_quarantine_is_adopted_once_a_person_has_opened_it_as_the_runbook_says(
    backend: Mysql, provisioned: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    opens = provisioned.pop("opens")
    with monkeypatch.context() as patch:  # a destruction that has begun is a quarantine too
        patch.delattr("worker.backends.mysql.obstacles.drop_schema")
        with pytest.raises(AttributeError):
            backend.teardown(provisioned, 1)
    (one,) = [one for one in backend.objects() if one.generation == provisioned["generation"]]
    assert one.why == IN_QUARANTINE
    page = (Path(__file__).parents[4] / "docs/runbook.md").read_text()
    found = re.search(r"<!-- open: mysql -->\n```\w*\n(.*?)```", page, re.DOTALL)
    assert found
    filled = Template(found[1]).substitute({name.upper(): value for name, value in provisioned.items()})
    service = backend._server.opened(accounts.NAME, accounts.PASSWORD, None, 5)
    with service, service.cursor() as cursor:
        for statement in filled.splitlines():
            cursor.execute(statement)
    (one,) = [one for one in backend.objects() if one.generation == provisioned["generation"]]
    assert (one.names, one.quarantined, one.why) == (provisioned, False, "")
    assert backend.adopt(one.names, uuid.UUID(one.generation)) == provisioned
    customer(opens).close()
    backend.teardown(provisioned, 1)
