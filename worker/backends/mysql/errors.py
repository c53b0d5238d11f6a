"""What each error of MariaDB means for a job, told by its number, and the words in which it is told."""

import re

import pymysql

from outbox import foreign
from outbox.errors import BackendError, OutOfService, Refused, Transient, Unavailable

MAX_CHARACTERS = 500  # `last_error` is read in a terminal, and a customer can choose the names in it
NO_TABLE, NO_SCHEMA = 1146, 1049
LOCK_WAIT, DEADLOCK, DUPLICATE = 1205, 1213, 1062
FOREIGN_KEY = 1451
# Number, what it means, why. Any other is Transient: the next attempt inspects the object first.
TABLE: tuple[tuple[int, type[BackendError], str], ...] = (
    (0, Unavailable, "the connection broke"),
    (2002, Unavailable, "the server cannot be reached"),
    (2003, Unavailable, "the server cannot be reached"),
    (2006, Unavailable, "the connection broke"),
    (2013, Unavailable, "the connection broke, or the server does not answer"),
    (2014, Unavailable, "the connection broke"),
    (2026, Unavailable, "no connection with TLS can be made"),
    (1045, Unavailable, "the server does not let the service's account in"),
    (1698, Unavailable, "the server does not let the service's account in"),
    (4151, Unavailable, "the service's account is locked"),
    (1862, Unavailable, "the password of the service's account has expired"),
    (1820, Unavailable, "the password of the service's account has expired"),
    (1129, Unavailable, "the server blocks the worker's host"),
    (1130, Unavailable, "the server does not let the worker's host in"),
    (1053, Unavailable, "the server is shutting down"),
    (1927, Unavailable, "an administrator or another worker ended the session"),
    (1040, OutOfService, "no connection is free"),
    (1203, OutOfService, "the service's account has no connection left"),
    (1226, OutOfService, "the service's account has used up what it may use"),
    (1021, OutOfService, "the disk is full"),
    (1041, OutOfService, "out of memory"),
    (1290, OutOfService, "the server is read-only"),
    (1792, OutOfService, "the session is read-only"),
    (1836, OutOfService, "the server is read-only"),
    (1044, Refused, "the service's account lacks a right"),
    (1142, Refused, "the service's account lacks a right"),
    (1143, Refused, "the service's account lacks a right"),
    (1227, Refused, "the service's account lacks a right"),
    (1370, Refused, "the service's account lacks a right"),
    (1410, Refused, "the service's account lacks a right"),
    (1010, Refused, "files that are no table's stand in the schema's folder"),
    (FOREIGN_KEY, Refused, "a foreign key of another schema refers to a table"),
)
RIGHT_MISSING = frozenset({1044, 1142, 1143, 1227, 1370, 1410})
_MEANING = {number: meaning for number, meaning, _ in TABLE}
_HASH = re.compile(r"\*[0-9A-Fa-f]{8,40}")


def number(error: BaseException) -> int:
    """The error's number; 0 where the server sent none."""
    first = error.args[0] if error.args else 0
    return first if isinstance(first, int) else 0


def meaning(error: pymysql.Error) -> BackendError:
    """The error that a backend raises in place of this one: one bounded line without secrets."""
    found = number(error)
    return _MEANING.get(found, Transient)(describe(error))


def describe(error: pymysql.Error) -> str:
    """The server's number and message. That of a syntax error quotes the statement, which may hold a hash."""
    found = number(error)
    said = str(error.args[1]) if len(error.args) > 1 else "the connection broke"
    if found == 1064:
        said = "the server does not understand a statement"
    return foreign.line(f"{found}: {_HASH.sub('(secret)', said)}", MAX_CHARACTERS)
