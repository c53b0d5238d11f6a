"""The keys under a resource's prefix, in every logical database: scanned, and unlinked in batches."""

from collections.abc import Iterator
from typing import Any

from outbox.errors import Refused
from outbox.rows import Json
from worker.backends.redis.session import Session

MARKS = "deprovisioner:gen:"  # the keys that say whose a prefix is; no customer reaches them
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

# A customer may have put anything there; only what can be a generation leaves the server.
_OLDER = """
if redis.call('TYPE', KEYS[1]).ok ~= 'string' then return false end
local found = redis.call('GET', KEYS[1])
return #found == 36 and found
"""
# A full server takes this key too: what is removed with its help is more. KEYS[2], where there is one: an older
# version's key, which must hold the generation.
_PLANT = """#!lua flags=allow-oom
if KEYS[2] and redis.call('GET', KEYS[2]) ~= ARGV[1] then return false end
return redis.call('SET', KEYS[1], ARGV[1], 'NX')
"""


# The same value: what it changes is that no EXEC of a session succeeds that watches the key since before.
_REWRITE = """#!lua flags=allow-oom
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return false end
return redis.call('SET', KEYS[1], ARGV[1])
"""


class GenerationVanishedError(Exception):
    """The generation key disappeared during a teardown."""


def under_prefix(session: Session, manifest: Json) -> Iterator[tuple[int, bytes]]:
    """Every key under the prefix, with its database; keys are any bytes."""
    pattern = f"{escape(manifest['prefix'])}*"
    for name in session.info("keyspace"):
        database = int(name.removeprefix("db"))
        with session.server.connect(database=database, decode=False) as there:
            for key in there.scan_iter(match=pattern, count=1000):
                yield database, key


def unlink_pass(session: Session, manifest: Json) -> Iterator[int]:
    """One SCAN of every database; how many keys each batch unlinked. Raises Refused when the generation key changed."""
    for batch in _batches(under_prefix(session, manifest)):
        yield unlink(session, manifest, *batch)


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


def plant(session: Session, manifest: Json) -> bool:
    """Write the generation key where there is none; whether this wrote it. On a full server too."""
    return bool(session.eval(_PLANT, 1, generation_key(manifest), manifest["generation"]))


def rewrite(session: Session, manifest: Json) -> bool:
    """Write the generation key anew where it holds the generation; whether it does. On a full server too."""
    return bool(session.eval(_REWRITE, 1, generation_key(manifest), manifest["generation"]))


def take_over_older(session: Session, manifest: Json) -> bool:
    """Write the generation key where only an older version's key holds the generation; whether this wrote it."""
    both = (generation_key(manifest), older_key(manifest))
    return bool(session.eval(_PLANT, 2, *both, manifest["generation"]))


def generation(session: Session, manifest: Json) -> str | None:
    """The value of the generation key, None when there is none."""
    kind: Any = session.type(generation_key(manifest))
    if kind in ("string", "none"):
        found: Any = session.get(generation_key(manifest))
        return None if found is None else str(found)
    return f"({kind})"  # no generation of ours is a list


def older_generation(session: Session, manifest: Json) -> str | None:
    """The value of an older version's key, None when there is none or it is too long or short for a generation."""
    found: Any = session.eval(_OLDER, 1, older_key(manifest))
    return None if found is None else str(found)


def generation_key(manifest: Json) -> str:
    """The key whose value is the generation."""
    return f"{MARKS}{manifest['prefix']}"


def older_key(manifest: Json) -> str:
    """Where older versions kept the generation: a customer could change it, so it counts only once its user is gone."""
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
