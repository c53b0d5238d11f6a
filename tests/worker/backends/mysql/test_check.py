"""What is not as it should be on a server, each with the statement that mends it; and what is kept there."""

import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from outbox.errors import MemoryForbidden, OutOfService
from outbox.memory import Memory
from tests.support import accounts
from tests.support.mariadb_servers import MariadbServer
from worker.backends import Finding, check
from worker.backends.mysql import Mysql

Account = Callable[..., Mysql]


@pytest.fixture
def account(server: MariadbServer) -> Iterator[Account]:
    """Makes a backend whose account is the documented one, but for what it lacks, or has more."""
    made = []

    def make(*, lacking: str = "", more: str = "") -> Mysql:
        made.append(name := f"s{uuid.uuid4().hex[:8]}")
        server.query(f"CREATE USER {name} IDENTIFIED BY 'p'")
        for statement in accounts.documented("mysql")[2:]:
            kept = statement.replace(f"{lacking}, ", "").replace(f", {lacking} ON", " ON") if lacking else statement
            if not (lacking and lacking in kept):
                server.query(kept.replace(f" {accounts.NAME}", f" {name}"))
        if more:
            server.query(f"GRANT {more} ON *.* TO {name}")
        return Mysql(f"mysql://{name}:p@127.0.0.1:{server.port}/{accounts.NAME}")

    yield make
    server.query(*(f"DROP USER {name}" for name in made))


def found_by(backend: Mysql) -> list[Finding]:
    """The findings, without the rights of the other service accounts of these tests."""
    return [one for one in check(backend) if accounts.NAME not in one.what]


def test_the_documented_account_on_a_server_as_it_should_be_has_no_finding(
    server: MariadbServer, backend: Mysql
) -> None:
    assert check(backend) == []


@pytest.mark.parametrize(
    "lacking", ["CREATE USER", "PROCESS", "SHOW DATABASES", "CONNECTION ADMIN", "mysql.event", "TRIGGER"]
)
def test_a_right_that_is_missing_is_told_with_the_grant_that_mends_it(
    server: MariadbServer, account: Account, lacking: str
) -> None:
    weak = account(lacking=lacking)
    found = found_by(weak)
    assert [one.code for one in found] == ["rights_too_few"]
    server.query(found[0].mend)
    assert found_by(weak) == []


@pytest.mark.parametrize("more", ["SUPER", "FILE", "ALL"])
def test_a_right_too_many_is_told(account: Account, more: str) -> None:
    found = found_by(account(more=more))
    assert {one.code for one in found} == {"rights_too_many"}
    if more != "ALL":
        assert found[0].what.count(more) == 1


def test_doors_and_settings_are_told(server: MariadbServer, backend: Mysql) -> None:
    server.query(
        "CREATE USER ''@'%'",
        "CREATE USER reads_all",
        "GRANT SELECT ON `dpd%`.* TO reads_all",
        "SET GLOBAL innodb_flush_log_at_trx_commit = 2",
    )
    found = check(backend)
    assert sorted(one.code for one in found) == ["public_connect", "public_rights", "setting_unsafe"]
    server.query(*(one.mend for one in found if one.code != "setting_unsafe"))
    server.query("SET GLOBAL innodb_flush_log_at_trx_commit = 1", "DROP USER reads_all")
    assert check(backend) == []


def test_many_workers_at_once_leave_the_latest_memory(backend: Mysql) -> None:
    first = Memory(uuid.uuid4(), 1, 0, "", notes=())
    begun, errors = threading.Barrier(8), []

    def work(event: int) -> None:
        begun.wait()
        try:
            backend.remember(replace(first, event=event, hash=f"{event:064x}"))
        except Exception as error:  # noqa: BLE001 - the test tells what it was
            errors.append(error)

    workers = [threading.Thread(target=work, args=(event,)) for event in range(1, 9)]
    for one in workers:
        one.start()
    for one in workers:
        one.join()
    assert errors == []
    kept = backend.recall(first.installation)
    assert kept is not None
    assert kept.event == 8
    assert first.installation in backend.installations()


def test_a_memory_that_somebody_changed_is_not_believed(server: MariadbServer, backend: Mysql) -> None:
    memory = Memory(uuid.uuid4(), 1, 5, "aa", notes=())
    assert backend.remember(memory) is None
    assert backend.recall(memory.installation) == memory
    for wrong in ("notes = 'no JSON'", "event = -1", "hash = 'xyz'", "notes = REPEAT('x', 1000000)"):
        server.query(f"UPDATE deprovisioner_service.memories SET {wrong} WHERE installation = '{memory.installation}'")
        with pytest.raises(OutOfService, match="is no memory"):
            backend.recall(memory.installation)
        server.query(f"DELETE FROM deprovisioner_service.memories WHERE installation = '{memory.installation}'")
        backend.remember(memory)


def test_an_account_that_may_keep_no_memory_says_so(account: Account) -> None:
    weak = account(lacking="SELECT, INSERT, UPDATE, DELETE, CREATE ON `deprovisioner")
    with pytest.raises(MemoryForbidden):
        weak.remember(Memory(uuid.uuid4(), 1, 5, "aa", notes=()))


def test_a_server_that_went_back_in_time_is_left_as_it_is(backend: Mysql) -> None:
    memory = Memory(uuid.uuid4(), 2, 5, "aa", notes=())
    backend.remember(memory)
    found = backend.remember(replace(memory, event=9, hash="bb"), (2, 7))
    assert found == memory
    assert backend.recall(memory.installation) == memory
