"""The service's own schema: who the server is, which objects are ours, what a quarantine has taken away, locks.

No customer may read or change it. An object's marks stand in the server's catalog; a customer who owns a schema can
take the schema's mark off, or drop the schema and make it again. The record here shows whose it is all the same.
"""

import hashlib
import json
import time
import uuid
from dataclasses import dataclass
from typing import Any

import pymysql

from outbox.errors import Transient
from outbox.rows import Json
from worker.backends.mysql import errors
from worker.backends.mysql.session import Session

LOCK_SECONDS = 10.0  # how long to wait for another worker inside the same object
_OPTIONS = "ENGINE = InnoDB CHARACTER SET utf8mb4 COLLATE utf8mb4_bin"
_TABLES = (
    f"""CREATE TABLE IF NOT EXISTS {{own}}.server (
        one TINYINT NOT NULL PRIMARY KEY CHECK (one = 1), id CHAR(36) NOT NULL, secret CHAR(36) NOT NULL
    ) {_OPTIONS}""",
    f"""CREATE TABLE IF NOT EXISTS {{own}}.objects (
        generation CHAR(36) NOT NULL PRIMARY KEY, `database` VARCHAR(64) NOT NULL, user VARCHAR(128),
        making BOOLEAN NOT NULL, grantees MEDIUMTEXT NOT NULL, closed MEDIUMTEXT, KEY (`database`), KEY (user)
    ) {_OPTIONS}""",
)


@dataclass(frozen=True)
class Record:
    """A row of `objects`.

    `making`: its provision was not finished. `grantees`: who had rights on the schema when it was marked. `closed`:
    what a quarantine has taken away; None where there is none.
    """

    generation: str
    database: str
    user: str | None
    making: bool
    grantees: frozenset[str]
    closed: Json | None


def identify(session: Session) -> str:
    """The identity of this server, made when it has none; it is replicated, and lives as long as the users do."""
    if (found := server_id(session)) is not None:
        return found
    for table in _TABLES:
        session.run(table.format(own=session.own))
    session.run(
        f"INSERT IGNORE INTO {session.own}.server (one, id, secret) VALUES (1, %s, %s)",
        str(uuid.uuid4()),
        str(uuid.uuid4()),
    )
    return str(server_id(session))


def server_id(session: Session) -> str | None:
    """What identifies this server; None where no worker has named it yet."""
    rows = _ask(session, f"SELECT id FROM {session.own}.server")
    return str(rows[0][0]) if rows else None


_CLAIMS = """
    SELECT s.id, o.generation, o.`database`, o.user, o.making, o.grantees, o.closed
      FROM {own}.server AS s
      LEFT JOIN {own}.objects AS o ON o.generation = %s OR o.`database` = %s OR o.user = %s"""


def claims(session: Session, manifest: Json) -> tuple[str | None, Record | None, list[Record]]:
    """The server's identity, the record of this generation, and those of others that claim its schema or its user."""
    generation = manifest["generation"]
    rows = _ask(session, _CLAIMS.format(own=session.own), generation, manifest["database"], manifest["user"])
    found = [_read(row[1:]) for row in rows if row[1] is not None]
    ours = next((one for one in found if one.generation == generation), None)
    return (str(rows[0][0]) if rows else None), ours, [one for one in found if one.generation != generation]


def _read(row: tuple[Any, ...]) -> Record:
    generation, database, user, making, grantees, closed = row
    noted = None if closed is None else json.loads(closed)
    return Record(generation, database, user, bool(making), frozenset(json.loads(grantees)), noted)


def put(session: Session, manifest: Json, grantees: frozenset[str], *, making: bool) -> None:
    """Record an object before anything of it is made or marked; an earlier record of it stays."""
    session.run(
        f"""INSERT IGNORE INTO {session.own}.objects (generation, `database`, user, making, grantees)
            VALUES (%s, %s, %s, %s, %s)""",
        manifest["generation"],
        manifest["database"],
        manifest["user"],
        making,
        json.dumps(sorted(grantees)),
    )


def made(session: Session, manifest: Json) -> None:
    """Note that all of the object is there, with its marks."""
    _change(session, manifest, "making = FALSE")


def close(session: Session, manifest: Json, noted: Json) -> None:
    """Note what a quarantine is about to take away; what an earlier one has noted stays."""
    _change(session, manifest, "closed = COALESCE(closed, %s)", json.dumps(noted))


def opened(session: Session, manifest: Json) -> None:
    """Note that all is given back."""
    _change(session, manifest, "closed = NULL")


def forget(session: Session, manifest: Json) -> None:
    """Remove the record of an object, which is gone or goes out of management."""
    _ask(session, f"DELETE FROM {session.own}.objects WHERE generation = %s", manifest["generation"])


def _change(session: Session, manifest: Json, what: str, *values: Any) -> None:
    session.run(f"UPDATE {session.own}.objects SET {what} WHERE generation = %s", *values, manifest["generation"])


def _ask(session: Session, statement: str, *values: Any) -> list[tuple[Any, ...]]:
    """The rows; none where no worker has made the tables yet."""
    try:
        return session.ask(statement, *values)
    except pymysql.ProgrammingError as error:
        if errors.number(error) != errors.NO_TABLE:
            raise
        return []


def lock(session: Session, what: str, *, take_over: bool = False) -> None:
    """Take the lock on a schema or a user. `take_over`: a worker that has it has lost its claim, so it is ended.

    Any user of the server may take any named lock: the name holds a secret, and a stranger who has it is ended.
    """
    ((secret,),) = session.ask(f"SELECT secret FROM {session.own}.server")
    name = "deprovisioner " + hashlib.sha256(f"{secret} {what}".encode()).hexdigest()[:40]
    me = session.server.address.user
    deadline = time.monotonic() + LOCK_SECONDS
    while session.ask("SELECT GET_LOCK(%s, %s)", name, 0 if take_over else 1) != [(1,)]:
        if time.monotonic() > deadline:
            raise Transient(f"another worker is at {what!r}")
        holders = session.ask("SELECT ID, USER FROM information_schema.PROCESSLIST WHERE ID = IS_USED_LOCK(%s)", name)
        for holder, user in holders:
            if take_over or user != me:
                kill(session, holder)
                session.tell(f"ended session {holder} of {user!r}, which had the lock on {what!r}")
        time.sleep(0.02)


def kill(session: Session, number: int) -> None:
    """End a session; one that has ended by itself is none of our errors."""
    try:
        session.run(f"KILL CONNECTION {int(number)}")
    except pymysql.Error as error:
        if errors.number(error) != _NO_THREAD:
            raise


_NO_THREAD = 1094
