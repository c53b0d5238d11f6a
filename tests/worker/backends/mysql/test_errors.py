"""What errors of the server mean, and what they never show."""

import re

import pymysql
import pytest

from outbox.errors import BackendError, OutOfService, Refused, Transient, Unavailable
from tests.support import accounts
from worker.backends.mysql import errors
from worker.backends.mysql.create import _hashed

NAMED: dict[str, type[BackendError]] = {"Unavailable": Unavailable, "OutOfService": OutOfService, "Refused": Refused}


def test_the_document_has_every_error_and_what_it_means() -> None:
    section = accounts.DOCUMENT.read_text().split("\n## MariaDB", 1)[1].split("\n## ", 1)[0]
    rows = re.findall(r"^\| ([\d, ]+) \| `(\w+)`", section, re.MULTILINE)
    documented = {int(number): NAMED[name] for numbers, name in rows for number in numbers.split(",")}
    assert documented == {number: meaning for number, meaning, _ in errors.TABLE}
    assert "| any other | `Transient`" in section


@pytest.mark.parametrize(
    ("number", "meaning"), [(1040, OutOfService), (1142, Refused), (1205, Transient), (2013, Unavailable)]
)
def test_an_error_is_told_by_its_number(number: int, meaning: type[BackendError]) -> None:
    assert type(errors.meaning(pymysql.err.OperationalError(number, "words"))) is meaning


def test_an_error_shows_no_statement_and_no_hash_and_is_one_line() -> None:
    hashed = _hashed("a-secret")
    syntax = errors.meaning(pymysql.err.ProgrammingError(1064, f"syntax error near 'BY PASSWORD '{hashed}''"))
    other = errors.meaning(pymysql.err.OperationalError(1396, f"Operation failed\n for {hashed} " + "x" * 10_000))
    for one in (syntax, other):
        assert hashed not in str(one)
        assert len(str(one)) < 700
        assert "\n" not in str(one)
