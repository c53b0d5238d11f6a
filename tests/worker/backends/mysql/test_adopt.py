"""Schemas that were made by hand: what is adopted, what is refused and why, and the way out of management."""

import uuid
from typing import Any

import pytest

from outbox.errors import Refused
from tests.support import accounts
from tests.support.mariadb_servers import MariadbServer, customer
from tests.worker.backends.mysql.conftest import Make, by_hand, recorded
from worker.backends import Absent, Same
from worker.backends.mysql import Mysql
from worker.backends.mysql.create import mark_user
from worker.backends.mysql.names import identifier


@pytest.fixture
def unique() -> str:
    return uuid.uuid4().hex[:8]


def names(manifest: dict[str, Any]) -> dict[str, Any]:
    return {name: manifest[name] for name in ("database", "user", "generation", "server")}


@pytest.mark.parametrize(
    "strange", ["or`ders", "50%_off", "über_ñ日", "a.b/c", "Mixed Case", "back\\slash", "q'uo\"te"]
)
def test_a_schema_with_a_strange_name_lives_its_life_beside_its_neighbours(
    server: MariadbServer, backend: Mysql, unique: str, strange: str
) -> None:
    manifest = by_hand(server, f"{strange}{unique}", f"u%_'{strange[:4]}{unique}")
    neighbour = f"{strange.replace('_', 'x').replace('%', 'yy')}{unique}x"
    server.query(f"CREATE DATABASE {identifier(neighbour)}")
    full = backend.adopt(names(manifest), uuid.uuid4())
    customer(manifest["opens"]).close()
    backend.quarantine(full)
    backend.release(full)
    customer(manifest["opens"]).close()
    assert [one.names for one in backend.objects() if one.generation == full["generation"]] == [full]
    backend.teardown(full, 1)
    assert isinstance(backend.inspect(full), Absent)
    assert not server.bears(full)
    assert neighbour in server.schemas()
    server.query(f"DROP DATABASE {identifier(neighbour)}")


def test_rights_that_were_granted_without_escapes_are_adopted_once_the_account_can_take_them(
    server: MariadbServer, backend: Mysql, unique: str
) -> None:
    manifest = by_hand(server, f"my_app_{unique}", f"u{unique}", escaped=False)
    server.query(
        f"REVOKE ALL ON `my_app_{unique}`.* FROM {accounts.NAME}",
        f"REVOKE GRANT OPTION ON `my_app_{unique}`.* FROM {accounts.NAME}",
        f"GRANT ALL ON `my\\_app\\_{unique}`.* TO {accounts.NAME} WITH GRANT OPTION",
    )
    (missing,) = backend.adoptable(names(manifest))
    server.query(missing.mend)
    full = backend.adopt(names(manifest), uuid.uuid4())
    backend.quarantine(full)
    backend.release(full)
    customer(manifest["opens"]).close()
    backend.teardown(full, 1)
    assert not server.bears(full)


def test_what_stands_against_an_adoption_is_told_in_full_and_nothing_is_changed(
    server: MariadbServer, backend: Mysql, unique: str
) -> None:
    manifest, other = by_hand(server, f"a_{unique}", f"u{unique}"), f"b{unique}"
    server.query(
        f"CREATE DATABASE {other}",
        f"GRANT SELECT ON {other}.* TO u{unique}",
        f"CREATE ROLE r{unique}",
        f"GRANT r{unique} TO u{unique}",
        f"GRANT RELOAD ON *.* TO u{unique}",
        f"REVOKE DROP ON `a\\_{unique}`.* FROM {accounts.NAME}",
    )
    found = backend.adoptable(names(manifest))
    assert sorted(one.code for one in found) == ["refused", "refused", "refused", "right_missing"]
    for one in found:
        server.query(one.mend.removeprefix("when its owner agrees: "))
    assert backend.adoptable(names(manifest)) == [], "each finding has what mends it"
    assert not [one for one in backend.objects() if one.names["database"] == manifest["database"]]
    full = backend.adopt(names(manifest), uuid.uuid4())
    backend.teardown(full, 1)
    assert not server.bears(full)
    server.query(f"DROP DATABASE {other}", f"DROP ROLE r{unique}")


@pytest.mark.parametrize(
    ("database", "user", "why"),
    [
        ("mysql", None, "protected"),
        ("MYSQL", None, "protected"),
        ("information_schema", None, "protected"),
        (accounts.NAME, None, "protected"),
        ("control_db", None, "protected"),
        ("no_such_schema", None, "no schema"),
        ("seen", "root", "protected"),
        ("seen", accounts.NAME, "protected"),
        ("seen", "no_such_user", "no user"),
    ],
)
def test_what_is_no_customers_is_not_adopted(
    server: MariadbServer, backend: Mysql, database: str, user: str | None, why: str
) -> None:
    server.query("CREATE DATABASE IF NOT EXISTS seen")
    manifest = {"database": database, "user": user, "generation": None, "server": None}
    assert why in " ".join(one.what for one in backend.adoptable(manifest))
    with pytest.raises(Refused, match=why):
        backend.adopt(manifest, uuid.uuid4())


def test_a_schema_of_another_resource_and_one_in_quarantine_are_refused(
    server: MariadbServer, backend: Mysql, make: Make
) -> None:
    manifest, generation = make(), uuid.uuid4()
    asked = names(manifest) | {"generation": None}
    with pytest.raises(Refused, match="belongs to"):
        backend.adopt(asked, generation)
    server.query(f"ALTER DATABASE `{manifest['database']}` COMMENT = ''")
    with pytest.raises(Refused, match="belongs to the resource of"):
        backend.adopt(asked, generation)
    backend.quarantine(manifest)
    with pytest.raises(Refused, match="in quarantine"):
        backend.adopt(names(manifest), uuid.UUID(manifest["generation"]))
    backend.teardown(manifest, 1)


def test_a_schema_with_no_user_and_several_readers_is_adopted_and_its_readers_stay(
    server: MariadbServer, backend: Mysql, unique: str
) -> None:
    manifest = by_hand(server, f"shared_{unique}", f"one{unique}") | {"user": None}
    full = backend.adopt(names(manifest), uuid.uuid4())
    assert full["user"] is None
    customer(manifest["opens"]).close()
    backend.quarantine(full)
    with pytest.raises(Exception, match="Access denied"):
        customer(manifest["opens"])
    backend.release(full)
    customer(manifest["opens"]).close()
    backend.teardown(full, 1)
    assert not server.bears(full | {"user": ""})
    assert (f"one{unique}", "%") in server.users()
    server.query(f"DROP USER one{unique}")


def test_an_adoption_that_died_after_any_statement_is_finished_by_the_next(
    server: MariadbServer, backend: Mysql, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest, generation = by_hand(server, f"a_{unique}", f"u{unique}"), uuid.uuid4()

    class DiedError(BaseException):
        pass

    def die(*_: object) -> None:
        raise DiedError

    for step in ("create.mark_user", "adopt._mark_schema"):
        with monkeypatch.context() as patch:
            patch.setattr(f"worker.backends.mysql.{step}", die)
            patch.setattr("worker.backends.mysql.adopt.mark_user", die if step == "create.mark_user" else mark_user)
            with pytest.raises(DiedError):
                backend.adopt(names(manifest), generation)
    full = backend.adopt(names(manifest), generation)
    assert backend.adopt(full, generation) == full
    assert isinstance(backend.inspect(full), Same)
    backend.teardown(full, 1)


def test_a_comment_keeps_its_words_in_and_out_of_management(server: MariadbServer, backend: Mysql, unique: str) -> None:
    manifest = by_hand(server, f"a_{unique}", f"u{unique}")
    asked = f"SELECT SCHEMA_COMMENT FROM information_schema.SCHEMATA WHERE SCHEMA_NAME = 'a_{unique}'"
    server.query(f"ALTER DATABASE `a_{unique}` COMMENT = 'the orders'")
    full = backend.adopt(names(manifest), uuid.uuid4())
    assert server.query(asked) == [(f"the orders deprovisioner gen={full['generation']}",)]
    backend.quarantine(full)
    with pytest.raises(Refused, match="in quarantine"):
        backend.unmark(full)
    backend.release(full)
    backend.unmark(full)
    assert backend.unmark(full) == {}
    assert server.query(asked) == [("the orders",)]
    assert not recorded(server, full)
    assert not [user for user, _ in server.users() if full["generation"] in user]
    customer(manifest["opens"]).close()
    backend.teardown(backend.adopt(names(manifest), uuid.uuid4()), 1)


def test_what_bears_no_mark_is_told_with_its_user_and_its_size(
    server: MariadbServer, backend: Mysql, make: Make, unique: str
) -> None:
    manifest, mine = by_hand(server, f"a_{unique}", f"u{unique}"), make()
    server.query(f"CREATE TABLE `a_{unique}`.t (n INT) ENGINE = InnoDB")
    found = {one.names["database"]: one for one in backend.unmarked()}
    assert found[f"a_{unique}"].names == {"database": f"a_{unique}", "user": f"u{unique}"}
    assert (found[f"a_{unique}"].size_bytes or 0) >= 16384
    assert backend.measured(found[f"a_{unique}"].names).size_bytes == found[f"a_{unique}"].size_bytes
    assert mine["database"] not in found
    assert {"mysql", "sys", accounts.NAME} & found.keys() == set()
    backend.teardown(backend.adopt(names(manifest), uuid.uuid4()), 1)
    backend.teardown(mine, 1)


def test_a_mark_that_a_customer_copied_is_told_as_a_contradiction(
    server: MariadbServer, backend: Mysql, make: Make
) -> None:
    mine, other = make(), make()
    server.query(f"ALTER DATABASE `{other['database']}` COMMENT = 'deprovisioner gen={mine['generation']}'")
    told = {one.generation: one for one in backend.objects()}
    assert told[mine["generation"]].contradictory
    assert told[other["generation"]].names == names(other), "by its user and its record"
    for one in (mine, other):
        backend.teardown(one, 1)
    assert not {mine["generation"], other["generation"]} & {one.generation for one in backend.objects()}


def test_a_right_by_a_pattern_that_matches_a_neighbour_stays(
    server: MariadbServer, backend: Mysql, unique: str
) -> None:
    manifest, neighbour, wide = by_hand(server, f"a_{unique}", f"u{unique}"), f"ax{unique}", f"w{unique}"
    server.query(
        f"CREATE DATABASE {neighbour}",
        f"CREATE USER {wide} IDENTIFIED BY 'x'",
        f"GRANT SELECT ON `a_{unique}`.* TO {wide}",  # without the escape, it matches both
    )
    opens = {"database": neighbour, "user": wide, "password": "x", "url": manifest["opens"]["url"]}
    full = backend.adopt(names(manifest), uuid.uuid4())
    backend.quarantine(full)
    customer(opens).close()
    backend.teardown(full, 1)
    customer(opens).close()
    server.query(f"DROP DATABASE {neighbour}", f"DROP USER {wide}")
    assert not server.bears(full)
