"""The doorbell on Redis: a sorted set with at most one member, which one of the waiting workers takes.

Beside it, what the broker keeps of the control database. A flushed broker keeps nothing, and nothing is all that says.
"""

import json
import re
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from outbox import foreign, settings
from outbox.errors import OutOfService, Unavailable
from outbox.memory import LONGEST, Memory, offered

BELL = "deprovisioner:bell"
MEMBER = "deprovisioner.drain"
MEMORY = "deprovisioner:memory:"  # of the keys that keep what the control database had, one an installation
_TRIES = 100  # each is lost to a write of another worker
# How long a ring waits for a broker that does not answer.
TIMEOUT_SECONDS = 1.0


def on_redis() -> bool:
    """Whether workers wait for the doorbell on Redis; on another broker every ring is a Celery message."""
    url = settings.get().need("broker_url")
    return url.startswith(("redis://", "rediss://")) and ";" not in url  # only Celery can choose from several URLs


def key_of(backend: str) -> str:
    """The key of one backend's own doorbell."""
    return f"{BELL}:{backend}"


def ask(*command: Any, takes: float = 0) -> Any:
    """The answer to one command, which may take `takes` seconds by itself. Raises redis.RedisError."""
    client = client_for(takes + TIMEOUT_SECONDS)
    try:
        return client.execute_command(*command)
    except redis.RedisError:
        # After a failover the connection may lead to a server that is up but takes no writes.
        client.connection_pool.disconnect(inuse_connections=False)
        raise


def put(key: str) -> None:
    """Put our member into the sorted set. Raises redis.RedisError."""
    _on_sorted_sets([key], "ZADD", key, 0, MEMBER)


def take(keys: Sequence[str], seconds: float) -> bool:
    """Wait for a member of one of these sorted sets, and take it; whether there was one. Raises redis.RedisError."""
    taken = _on_sorted_sets(keys, "BZPOPMIN", *keys, seconds, takes=seconds)
    if taken and taken[1] != MEMBER.encode():
        ask("DEL", taken[0])  # another program's: a million members are one wake-up, too
    return bool(taken)


def _on_sorted_sets(keys: Sequence[str], *command: Any, takes: float = 0) -> Any:
    """The answer to a command on these keys; what stands there and is no sorted set is removed."""
    try:
        return ask(*command, takes=takes)
    except redis.ResponseError as error:
        if not str(error).startswith("WRONGTYPE"):
            raise
    ask("DEL", *keys)
    return ask(*command, takes=takes)


def remember(memory: Memory) -> Memory | None:
    """Keep a memory, by the rule of `outbox.memory.offered`; None when it was kept, else what is there.

    Raises OutOfService where what is there is no memory, Unavailable where the broker does not take it.
    """
    key = f"{MEMORY}{memory.installation}"
    for _ in range(_TRIES):
        with _answered(), client_for(TIMEOUT_SECONDS).pipeline() as pipe, suppress(redis.WatchError):
            pipe.watch(key)
            there = _memory(memory.installation, pipe.execute_command)
            left, kept = offered(there, memory)
            if left is not None and left != there:
                pipe.multi()
                pipe.execute_command("SET", key, json.dumps(left.as_json()))
                pipe.execute()
            return None if kept else left
    raise Unavailable("the broker: other workers write at this moment what the control database has; trying again")


def recall(installation: uuid.UUID) -> Memory | None:
    """What the broker keeps of an installation, None where that is nothing; raises as `remember`."""
    with _answered():
        return _memory(installation, ask)


def _memory(installation: uuid.UUID, execute: Callable[..., Any]) -> Memory | None:
    key = f"{MEMORY}{installation}"
    try:
        if not (text := execute("GETRANGE", key, 0, LONGEST)):
            return None
        if (memory := Memory.read(text)).installation == installation:
            return memory
        wrong = f"it is that of installation {memory.installation}"
    except (ValueError, redis.ResponseError) as error:
        if isinstance(error, redis.ResponseError) and not str(error).startswith("WRONGTYPE"):
            raise
        wrong = foreign.line(str(error))
    raise OutOfService(
        f"what the broker keeps of the control database, the key {key!r}, is no memory: {wrong}; find out who wrote "
        "it, then remove the key"
    )


@contextmanager
def _answered() -> Iterator[None]:
    try:
        yield
    except redis.RedisError as error:
        client_for(TIMEOUT_SECONDS).connection_pool.disconnect(inuse_connections=False)  # as in `ask`
        raise Unavailable(f"the broker does not answer: {foreign.line(str(error))}") from error


@lru_cache(maxsize=2)
def client_for(answers_within: float) -> "redis.Redis":
    """This process's client of the broker, for commands that answer within so many seconds."""
    # Celery's URLs may name the level as Python's ssl module does (CERT_REQUIRED); redis-py wants `required`.
    url = re.sub(r"(?<=ssl_cert_reqs=)CERT_\w+", lambda name: name[0][5:].lower(), settings.get().need("broker_url"))
    return redis.Redis.from_url(
        url,
        socket_timeout=answers_within,
        socket_connect_timeout=TIMEOUT_SECONDS,
        socket_keepalive=True,
        # After a restart of the broker, the retry makes the next command succeed. A slow broker is not asked twice.
        retry=Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,)),
    )
