"""The doorbell on Redis: a sorted set with at most one member, which one of the waiting workers takes."""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from outbox import settings

BELL = "deprovisioner:bell"
MEMBER = "deprovisioner.drain"
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
