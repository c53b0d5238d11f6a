"""The memory of the control database on MariaDB: one row for each installation, in the service's own schema."""

import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import pymysql

from outbox.errors import MemoryForbidden, OutOfService, Transient
from outbox.memory import LONGEST, Memory, Moment, nothing, offered
from worker.backends.mysql import errors
from worker.backends.mysql.session import INSPECT_SECONDS, Server, Session

TRIES = 10  # each is lost to a write of another worker
_MAKE = """
    CREATE TABLE IF NOT EXISTS {own}.memories (
        installation CHAR(36) NOT NULL PRIMARY KEY, epoch BIGINT NOT NULL, event BIGINT NOT NULL,
        hash VARCHAR(100) NOT NULL, still BOOLEAN NOT NULL, notes MEDIUMTEXT NOT NULL, at DATETIME(6) NOT NULL
    ) ENGINE = InnoDB CHARACTER SET utf8mb4 COLLATE utf8mb4_bin"""
# Foreign text: only as much is read as a memory can have, and its whole length.
_READ = f"""
    SELECT epoch, event, hash, still, CHAR_LENGTH(notes), IF(CHAR_LENGTH(notes) <= {LONGEST}, notes, NULL)
      FROM {{own}}.memories WHERE installation = %s"""
_INSERT = """
    INSERT INTO {own}.memories (epoch, event, hash, still, notes, at, installation)
    VALUES (%s, %s, %s, %s, %s, NOW(6), %s)"""
_UPDATE = """
    UPDATE {own}.memories SET epoch = %s, event = %s, hash = %s, still = %s, notes = %s, at = NOW(6)
     WHERE installation = %s"""
_LOST = frozenset({errors.DUPLICATE, errors.DEADLOCK})  # to another worker that wrote first
_OTHER = (pymysql.ProgrammingError, pymysql.DataError, pymysql.IntegrityError)


def remember(server: Server, memory: Memory, least: Moment | None = None) -> Memory | None:
    """See `worker.backends.remember`; a row lock keeps other workers out between reading and writing."""
    with server.connect(seconds=INSPECT_SECONDS) as session, _ours(session):
        for _ in range(TRIES):
            try:
                return _remember(session, memory, least)
            except pymysql.Error as error:
                if errors.number(error) == errors.NO_TABLE:
                    session.run(_MAKE.format(own=session.own))
                elif errors.number(error) not in _LOST:
                    raise
    raise Transient("other workers write at this moment what the control database has; trying again")


def _remember(session: Session, memory: Memory, least: Moment | None) -> Memory | None:
    with session.transaction():
        there = _read(session, memory.installation, "FOR UPDATE")
        left, kept = offered(there, memory, least)
        if left is not None and left != there:
            written = left.as_json()
            session.run(
                (_INSERT if there is None else _UPDATE).format(own=session.own),
                *(written[name] for name in ("epoch", "event", "hash", "still")),
                json.dumps(written["notes"]),
                str(memory.installation),
            )
    return None if kept else left or nothing(memory.installation)


def recall(server: Server, installation: uuid.UUID) -> Memory | None:
    """See `worker.backends.recall`."""
    with server.connect(seconds=INSPECT_SECONDS) as session, _ours(session):
        try:
            return _read(session, installation)
        except pymysql.Error as error:
            if errors.number(error) != errors.NO_TABLE:
                raise
            return None


def installations(server: Server) -> list[uuid.UUID]:
    """See `worker.backends.installations`."""
    with server.connect(seconds=INSPECT_SECONDS) as session, _ours(session):
        try:
            rows = session.ask(f"SELECT installation FROM {session.own}.memories ORDER BY installation")
        except pymysql.Error as error:
            if errors.number(error) != errors.NO_TABLE:
                raise
            return []
        return [uuid.UUID(one) for (one,) in rows]


@contextmanager
def _ours(session: Session) -> Iterator[None]:
    """Raise OutOfService where the table is not as the service made it, MemoryForbidden where it may not be used."""
    place = f"{session.own}.memories"
    try:
        yield
    except (pymysql.OperationalError, *_OTHER) as error:
        if errors.number(error) in errors.RIGHT_MISSING:
            raise MemoryForbidden(
                f"the service's account may not use {place}: {errors.describe(error)}; give it SELECT, INSERT, UPDATE, "
                "DELETE, CREATE on the service's own schema"
            ) from error
        if not isinstance(error, _OTHER):
            raise
        raise OutOfService(
            f"{place} does not keep what the control database had, since it is not as the service made it: "
            f"{errors.describe(error)}; find out who changed it, then remove it"
        ) from error


def _read(session: Session, installation: uuid.UUID, locking: str = "") -> Memory | None:
    """The row, as it can be read. Raises OutOfService where it is no memory."""
    rows = session.ask(f"{_READ.format(own=session.own)} {locking}", str(installation))
    if not rows:
        return None
    epoch, event, digest, still, length, notes = rows[0]
    try:
        if notes is None:
            raise ValueError(f"its notes have {length} characters")
        made = {"epoch": epoch, "event": event, "hash": digest, "still": bool(still), "notes": json.loads(notes)}
        return Memory.read(made | {"installation": str(installation)})
    except (ValueError, RecursionError) as error:
        raise OutOfService(
            f"what the server keeps of the control database, the row of {installation} in {session.own}.memories, is "
            f"no memory: {error}; find out who wrote it, then remove it"
        ) from error
