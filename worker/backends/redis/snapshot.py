"""The final snapshot of a namespace in quarantine: each key's DUMP with its expiry, and its proof.

A DUMP cannot be compared with another one: the order inside a set or a hash differs. So the proof is that the store
gives back the bytes that the server gave, and that the server takes each record and makes a value of it.
"""

import struct
import time
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

from redis import exceptions

from outbox.errors import Refused, Transient
from outbox.rows import Json
from worker.backends import Read, Same, Still, Write
from worker.backends.redis import identity, keys
from worker.backends.redis.session import Server, Session, code_of

MAGIC = b"deprovisioner namespace 1\n"
# Database, expiry in milliseconds since 1970 or NEVER, lengths of key and value.
_RECORD = struct.Struct(">IqII")
NEVER = -1
# Values are fetched and restored in batches of at most so many keys and bytes; one that is larger goes alone.
BATCH_KEYS = 100
BATCH_BYTES = 8 << 20
BEAT_SECONDS = 1.0
# How long a key of a proof lives where its worker dies.
SCRATCH_MS = 600_000
_SCRATCH = f"{identity.OURS}scratch:"

Record = tuple[int, int, bytes, bytes]


def take(server: Server, manifest: Json, write: Write, still: Still) -> Json:
    """Write a record of every key; how many there are, and the sum of their hashes. See `worker.backends.snapshot`."""
    count = mixed = 0
    beat = _now_and_then(still)
    with server.connect() as session:
        seen = identity.judge(session, manifest)
        if not isinstance(seen, Same):
            raise Refused(f"the namespace is not the one of this resource, or no longer there: {seen}")
        user = identity.acl_user(session, manifest["user"])
        if user is not None and "on" in user["flags"]:
            raise Transient(f"user {manifest['user']!r} is not in quarantine")
        prefix = manifest["prefix"].encode()
        write(MAGIC + len(prefix).to_bytes(4, "big") + prefix)
        for record in _dumped(server, session, manifest):
            database, expiry, key, value = record
            write(_RECORD.pack(database, expiry, len(key), len(value)) + key)
            write(value)
            count, mixed = count + 1, _mixed(mixed, record)
            beat()
    return {"keys": count, "sum": mixed}


def verify(server: Server, manifest: Json, read: Read, source: Json, still: Still) -> Json:
    """Restore every record beside its source, and remove it again; see `worker.backends.verify_snapshot`."""
    count = mixed = 0
    beat = _now_and_then(still)
    scratch = f"{_SCRATCH}{manifest['generation']}:".encode()
    _prefix(read)
    with server.connect() as session:
        for batch in _batches(_records(read)):
            with (
                server.connect(database=session.home, decode=False) as there,
                there.pipeline(transaction=False) as pipe,
            ):
                names = [scratch + str(place).encode() for place in range(len(batch))]
                for name, (*_, value) in zip(names, batch, strict=True):
                    pipe.execute_command("RESTORE", name, SCRATCH_MS, value, "REPLACE")
                for name in names:
                    pipe.unlink(name)
                answers = pipe.execute(raise_on_error=False)
            _must_be_taken(answers[: len(batch)], batch)
            if answers[len(batch) :] != [1] * len(batch):
                raise Transient("the server made no value of a record")
            for record in batch:
                count, mixed = count + 1, _mixed(mixed, record)
            beat()
    if (count, mixed) != (source["keys"], source["sum"]):
        raise Transient(f"the stored snapshot differs from its source: it has {count} keys of {source['keys']}")
    return {"keys": count}


def restore(server: Server, manifest: Json, read: Read, still: Still) -> Json:
    """Put every key of another namespace under this one's prefix; see `worker.backends.restore_snapshot`."""
    beat, count = _now_and_then(still), 0
    old, new = _prefix(read), manifest["prefix"].encode()
    with server.connect() as session:
        if not isinstance(seen := identity.judge(session, manifest), Same):
            raise Refused(f"the namespace is not the one of this resource, or no longer there: {seen}")
        for batch in _batches(_records(read)):
            for database in sorted({record[0] for record in batch}):
                with (
                    server.connect(database=database, decode=False) as there,
                    there.pipeline(transaction=False) as pipe,
                ):
                    here = [record for record in batch if record[0] == database]
                    for _, expiry, key, value in here:
                        words = [new + key.removeprefix(old), max(expiry, 0), value, "REPLACE"]
                        pipe.execute_command("RESTORE", *words, *(["ABSTTL"] if expiry != NEVER else []))
                    _must_be_taken(pipe.execute(raise_on_error=False), here)
            count += len(batch)
            beat()
    return {"keys": count}


def _dumped(server: Server, session: Session, manifest: Json) -> Iterator[Record]:
    """Each key once or more often, as SCAN gives them; one that has expired meanwhile is left out."""
    found = keys.under_prefix(session, manifest)
    while some := list(islice(found, BATCH_KEYS)):
        for database in sorted({database for database, _ in some}):
            names = [key for at, key in some if at == database]
            with server.connect(database=database, decode=False) as there:
                yield from _values(there, database, names)


def _values(there: Session, database: int, names: list[bytes]) -> Iterator[Record]:
    with there.pipeline(transaction=False) as pipe:
        for name in names:
            pipe.execute_command("MEMORY", "USAGE", name, "SAMPLES", 5)
        sizes = pipe.execute()
    batch: list[bytes] = []
    size = 0
    for name, own in zip(names, sizes, strict=True):
        if batch and size + (own or 0) > BATCH_BYTES:
            yield from _fetched(there, database, batch)
            batch, size = [], 0
        batch.append(name)
        size += own or 0
    yield from _fetched(there, database, batch)


def _fetched(there: Session, database: int, names: list[bytes]) -> Iterator[Record]:
    with there.pipeline(transaction=False) as pipe:
        for name in names:
            pipe.execute_command("PEXPIRETIME", name)
            pipe.execute_command("DUMP", name)
        answers: list[Any] = pipe.execute()
    for name, expiry, value in zip(names, answers[::2], answers[1::2], strict=True):
        if value is not None:
            yield database, expiry, name, value


def _prefix(read: Read) -> bytes:
    if _exactly(read, len(MAGIC)) != MAGIC:
        raise Transient("the snapshot is not one of a namespace")
    return _exactly(read, int.from_bytes(_exactly(read, 4), "big"))


def _records(read: Read) -> Iterator[Record]:
    while head := _exactly(read, _RECORD.size):
        try:
            database, expiry, key, value = _RECORD.unpack(head)
        except struct.error as error:
            raise Transient("the snapshot ends inside a record") from error
        yield database, expiry, _exactly(read, key), _exactly(read, value)


def _batches(records: Iterator[Record]) -> Iterator[list[Record]]:
    batch: list[Record] = []
    size = 0
    for record in records:
        if batch and (len(batch) == BATCH_KEYS or size + len(record[3]) > BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(record)
        size += len(record[3])
    if batch:
        yield batch


def _must_be_taken(answers: list[Any], batch: list[Record]) -> None:
    for answer, (_, _, key, _) in zip(answers, batch, strict=True):
        if isinstance(answer, exceptions.ResponseError) and code_of(answer) in ("ERR", None):
            raise Transient(f"the server does not take the record of {key!r}: {answer}")
        if isinstance(answer, Exception):
            raise answer


def _mixed(mixed: int, record: Record) -> int:
    return (mixed + hash(record)) & 0xFFFFFFFFFFFFFFFF


def _exactly(read: Read, size: int) -> bytes:
    parts = bytearray()
    while len(parts) < size and (part := read(size - len(parts))):
        parts += part
    return bytes(parts)


def _now_and_then(still: Still) -> Callable[[], None]:
    last = time.monotonic()

    def beat() -> None:
        nonlocal last
        if time.monotonic() - last > BEAT_SECONDS:
            last = time.monotonic()
            still()

    return beat
