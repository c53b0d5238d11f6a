"""What each error of PostgreSQL means for a job, told by its SQLSTATE, and the words in which it is told."""

import re

import psycopg2

from outbox.errors import BackendError, OutOfService, Refused, Transient, Unavailable

# `last_error` is read in a terminal, and a customer can choose the names in it.
MAX_CHARACTERS = 500
LOST = "none"  # the connection broke, and the server sent no SQLSTATE
# SQLSTATE or its first two characters, what it means, why; the longest fit counts. The table of docs/runbook.md.
TABLE: tuple[tuple[str, type[BackendError], str], ...] = (
    (LOST, Unavailable, "the connection broke, or could not be made"),
    ("08", Unavailable, "the connection broke"),
    ("25006", OutOfService, "the server, or this session, is read-only"),
    ("28", Unavailable, "the server does not let the service's account in"),
    ("2BP01", Refused, "other objects depend on what is to be dropped"),
    ("42501", Refused, "the service's account lacks a right"),
    ("53100", OutOfService, "the disk is full"),
    ("53300", OutOfService, "no connection slot is free"),
    ("57P01", Unavailable, "the server is shutting down, or an administrator ended the session"),
    ("57P02", Unavailable, "the server has crashed and restarts"),
    ("57P03", Unavailable, "the server is starting"),
    ("53", Transient, "out of memory or of locks: this job may be the one that needs too many"),
    ("55", Transient, "the object is in use, or another session holds a lock on it"),
    ("57", Transient, "a timeout, or a cancelled statement"),
    ("58", Transient, "an error of the file system, perhaps in the files of one database alone"),
    ("XX", Transient, "an internal error, or damaged data in one database"),
    ("any other", Transient, "the next attempt inspects the object first"),
)
_MEANING = {code: meaning for code, meaning, _ in TABLE}


def meaning(error: psycopg2.Error) -> type[BackendError]:
    """The error that a backend raises in place of this one."""
    code = error.pgcode or LOST
    return _MEANING.get(code) or _MEANING.get(code[:2]) or _MEANING["any other"]


def describe(error: psycopg2.Error) -> str:
    """The server's message with DETAIL, HINT and place, without the statement: that may hold a password."""
    diag = error.diag
    if not diag.message_primary:
        return clean(str(error) or repr(error))
    place = ".".join(filter(None, (diag.schema_name, diag.table_name, diag.column_name)))
    parts = (
        diag.message_primary,
        diag.message_detail and f"DETAIL: {diag.message_detail}",
        diag.message_hint and f"HINT: {diag.message_hint}",
        place and f"at {place}",
    )
    return clean("; ".join(filter(None, parts)))


def clean(text: str) -> str:
    """One line of printable characters, at most MAX_CHARACTERS."""
    line = re.sub(r"[\s\x00-\x1f\x7f-\x9f]+", " ", text).strip()
    line = "".join(character for character in line if character.isprintable())
    return line if len(line) <= MAX_CHARACTERS else f"{line[: MAX_CHARACTERS - 1]}…"
