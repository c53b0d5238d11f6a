"""The keys under a resource's prefix, in every logical database: scanned, and unlinked in batches."""

from collections.abc import Iterator
from typing import Any

from outbox.errors import Refused
from outbox.rows import Json
from worker.backends.redis.session import Session

# One UNLINK of this many keys blocks the server for well under a millisecond.
BATCH = 500

# KEYS[1]: the generation key; the rest: what to unlink. ARGV: generation, its database, the keys' database.
# -1: the generation is another resource's. -2: there is none; another worker may have finished this teardown.
_UNLINK_IF_OURS = """
redis.call('SELECT', ARGV[2])
local generation = redis.call('GET', KEYS[1])
if not generation then return -2 end
if generation ~= ARGV[1] then return -1 end
redis.call('SELECT', ARGV[3])
return redis.call('UNLINK', unpack(KEYS, 2))
"""


class GenerationVanishedError(Exception):
    """The generation key disappeared during a teardown."""


def under_prefix(session: Session, manifest: Json) -> Iterator[tuple[int, bytes]]:
    """Every key under the prefix but the generation key, with its database; keys are any bytes."""
    pattern = f"{escape(manifest['prefix'])}*"
    home = session.home
    for name in session.info("keyspace"):
        database = int(name.removeprefix("db"))
        with session.server.connect(database=database, decode=False) as there:
            for key in there.scan_iter(match=pattern, count=1000):
                if database != home or key != generation_key(manifest).encode():
                    yield database, key


def unlink_pass(session: Session, manifest: Json) -> int:
    """One SCAN of every database; how many keys it unlinked. Raises Refused when the generation key changed."""
    return sum(unlink(session, manifest, *batch) for batch in _batches(under_prefix(session, manifest)))


def unlink(session: Session, manifest: Json, database: int, keys: list[bytes]) -> int:
    """Unlink keys of one database in one script that first compares the generation; how many there were.

    Raises Refused when the generation is another's, GenerationVanishedError when there is none.
    """
    arguments = (manifest["generation"], session.home, database)
    done: Any = session.eval(_UNLINK_IF_OURS, 1 + len(keys), generation_key(manifest), *keys, *arguments)
    if done == -1:
        raise Refused(f"generation key {generation_key(manifest)!r} is no longer the one of this resource")
    if done == -2:
        raise GenerationVanishedError
    return int(done)


def unlink_generation(session: Session, manifest: Json) -> None:
    """Unlink the generation key itself, as long as it is the manifest's; raises as `unlink` does."""
    unlink(session, manifest, session.home, [generation_key(manifest).encode()])


def generation_key(manifest: Json) -> str:
    """The key whose value is the generation."""
    return f"{manifest['prefix']}gen"


def escape(prefix: str) -> str:
    """A prefix for SCAN and ACL patterns, in which glob characters would match other names."""
    return "".join(f"\\{c}" if c in "*?[]\\" else c for c in prefix)


def _batches(keys: Iterator[tuple[int, bytes]]) -> Iterator[tuple[int, list[bytes]]]:
    """Runs of at most BATCH keys of one database."""
    batch: list[bytes] = []
    current = 0
    for database, key in keys:
        if batch and (database != current or len(batch) == BATCH):
            yield current, batch
            batch = []
        current = database
        batch.append(key)
    if batch:
        yield current, batch
