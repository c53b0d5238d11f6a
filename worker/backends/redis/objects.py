"""All ACL users and generation keys of a server that bear a mark of ours."""

import re
import uuid
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from outbox.errors import Refused, Transient
from outbox.kinds.redis import KIND
from outbox.rows import Json
from worker.backends import IN_QUARANTINE, MarkedObject
from worker.backends.redis import identity, keys, rights
from worker.backends.redis.quarantine import SHUT
from worker.backends.redis.session import Server, Session

# Keys that one SCAN and one script look at, which takes the server a millisecond.
BATCH = 1000
# For ACL LIST: the first one after a start of Redis 7.0 with 10,000 users took 6 to 17 s, each later one 0.02 s.
LIST_SECONDS = 120
_USER = re.compile(r"usr_([0-9a-f]{32})")
# What these keys hold: "" where it cannot be a generation, false where the key is gone.
_GENERATIONS = """
local found = {}
for n, key in ipairs(KEYS) do
  local kind = redis.call('TYPE', key).ok
  local value = kind == 'string' and redis.call('GET', key) or ''
  found[n] = kind ~= 'none' and (#value <= 100 and value or '')
end
return found
"""


@dataclass
class _Parts:
    """What bears one mark: users with their patterns, and prefixes that have a generation key."""

    users: list[tuple[str, list[str]]] = field(default_factory=list)
    prefixes: list[str] = field(default_factory=list)


def objects(server: Server) -> Iterator[MarkedObject]:
    """A user and its generation key are one object; see `worker.backends.objects`.

    ACL LIST is one answer, so memory grows with the users, by two kilobytes each. The keys are those of the dsn's
    logical database, and none of a customer's: what an older version's key alone bears (`<prefix>gen`) is not found.
    """
    servers, users, generations = _read(server)
    by_mark: defaultdict[tuple[str, str], _Parts] = defaultdict(_Parts)
    for name, patterns in users:
        for mark in _marks(patterns):
            by_mark[mark, "" if _is_ours(mark) else f"user {name}"].users.append((name, patterns))
    for prefix, mark in generations.items():
        by_mark[mark, "" if _is_ours(mark) else f"key {prefix}"].prefixes.append(prefix)
    for (mark, _), parts in by_mark.items():
        yield _object(servers, mark, parts, generations)


def _read(server: Server) -> tuple[list[str], list[tuple[str, list[str]]], dict[str, str]]:
    """The server's identities, its marked users, and the generation of each prefix. The keys come first.

    So an object that a worker makes meanwhile, the key before the user, is seen whole or as a user alone.
    """
    with (
        server.connect() as session,
        server.connect(database=session.home, decode=False) as raw,
        server.connect(database=session.home) as patient,
    ):
        patient.connection_pool.connection_kwargs["socket_timeout"] = LIST_SECONDS
        if session.info("cluster").get("cluster_enabled"):
            raise Refused("the server is part of a Redis Cluster: it shows the keys of its own slots alone")
        began = _life(session)
        generations = dict(_generation_keys(raw))
        users = identity.marked_users(patient, identity.CHANNEL)
        servers = identity.server_ids(session)
        session.must_be_primary()  # until now: what a server did not show while it became a replica is not absent
        # A client connects again by itself. After a restart, a cursor of SCAN means nothing, and tells no error.
        if any(_life(one) != began for one in (session, raw, patient)):
            raise Transient("the server was restarted or replaced while it was read; trying again")
    return servers, users, generations


def _life(session: Session) -> tuple[Any, Any]:
    """What changes when a server starts, or takes over the data of another one."""
    return session.info("server")["run_id"], session.info("replication")["master_replid"]


def _generation_keys(raw: Session) -> Iterator[tuple[str, str]]:
    """Prefix and value of each generation key, some perhaps twice. SCAN misses none that stays."""
    cursor: Any = 0
    while True:
        cursor, found = raw.scan(cursor, match=f"{keys.MARKS}*", count=BATCH)
        if found:
            values: Any = raw.eval(_GENERATIONS, len(found), *found)
            for key, value in zip(found, values, strict=True):
                if value is not None:
                    # An administrator may have put any bytes there: the intake finds what cannot be stored.
                    yield _text(key).removeprefix(keys.MARKS), _text(value)
        if cursor == 0:
            return


def _text(answer: bytes | str) -> str:
    return answer if isinstance(answer, str) else answer.decode(errors="surrogateescape")


def _object(servers: list[str], mark: str, parts: _Parts, generations: dict[str, str]) -> MarkedObject:
    name, patterns = parts.users[0] if len(parts.users) == 1 else (None, [])
    prefix = parts.prefixes[0] if len(parts.prefixes) == 1 else None
    if name and not parts.prefixes:
        prefix = _made_with(name, patterns)
    against = list(_contradictions(mark, parts, prefix, generations))
    quarantined = any(SHUT in shown for _, shown in parts.users)
    why = against or list(_obstacles(name, prefix, quarantined=quarantined))
    values: Json = {
        "user": name,
        "prefix": prefix,
        "generation": mark,
        "server": servers[0] if len(servers) == 1 else None,
    }
    return MarkedObject(
        generation=mark,
        names={field.name: values[field.name] for field in KIND.fields},
        parts=(
            *(f"ACL user {shown!r}" for shown, _ in parts.users),
            *(f"key {keys.generation_key({'prefix': shown})!r}" for shown in parts.prefixes),
        ),
        resource_id=_resource(name, prefix),
        quarantined=quarantined,
        contradictory=bool(against),
        why="; ".join(why),
    )


def _marks(patterns: list[str]) -> list[str]:
    return [pattern.removeprefix(identity.CHANNEL) for pattern in patterns if pattern.startswith(identity.CHANNEL)]


def _is_ours(mark: str) -> bool:
    try:
        return str(uuid.UUID(mark)) == mark
    except ValueError:
        return False


def _made_with(name: str, patterns: list[str]) -> str | None:
    """The prefix of a user whose generation key is gone; None where a person chose the names."""
    made = _USER.fullmatch(name)
    prefix = f"{uuid.UUID(made[1])}:" if made else None
    return prefix if f"~{prefix}*" in patterns else None


def _resource(name: str | None, prefix: str | None) -> uuid.UUID | None:
    made = _USER.fullmatch(name or "")
    held = {made[1]} if made else set()
    if prefix and _is_ours(prefix[:-1]):
        held.add(uuid.UUID(prefix[:-1]).hex)
    return uuid.UUID(held.pop()) if len(held) == 1 else None


def _contradictions(mark: str, parts: _Parts, prefix: str | None, generations: dict[str, str]) -> Iterator[str]:
    if not _is_ours(mark):
        yield f"the mark {mark!r} is not one as we write it"
    if len(parts.users) > 1:
        yield f"several ACL users bear this mark ({rights.some([repr(name) for name, _ in parts.users])}): copies"
    if len(parts.prefixes) > 1:
        yield f"the keys of several prefixes have this mark ({rights.some([repr(p) for p in parts.prefixes])})"
    for name, patterns in parts.users:
        if len(_marks(patterns)) > 1:
            yield f"ACL user {name!r} bears more than one mark"
        reached = [rights.beginning(pattern) for pattern in patterns if pattern[0] != "&"]
        if prefix and reached and not any(one.startswith(prefix) for one in reached):
            yield f"ACL user {name!r} does not reach the keys under {prefix!r}"
    if prefix and generations.get(prefix, mark) != mark:
        yield f"the generation key of {prefix!r} has another mark"


def _obstacles(name: str | None, prefix: str | None, *, quarantined: bool) -> Iterator[str]:
    """Why one whole object could not be adopted, or not as the customer left it."""
    if name is None:
        yield "no ACL user bears its mark: its destruction was not finished or is under way, or its user was lost"
    elif prefix is None:
        yield f"ACL user {name!r} has no generation key any more, which said its prefix"
    elif quarantined:
        yield IN_QUARANTINE
