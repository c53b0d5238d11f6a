"""All ACL users of a server that bear no mark of ours; and the size of one namespace."""

import time
from collections.abc import Iterator
from typing import Any

from outbox.kinds.redis import KIND
from outbox.rows import Json
from worker.backends.fleet import Measured, UnmarkedObject
from worker.backends.redis import identity, keys, rights
from worker.backends.redis.objects import LIST_SECONDS
from worker.backends.redis.session import Server

# A namespace that is not counted within this time is told without a size: SCAN looks at all keys of the server.
MEASURE_SECONDS = 5.0
BATCH = 500


def unmarked(server: Server) -> Iterator[UnmarkedObject]:
    """Users that nobody has given us, each with the manifest that would adopt it; ACL LIST is one answer."""
    with server.connect() as session:
        session.connection_pool.connection_kwargs["socket_timeout"] = LIST_SECONDS
        us: Any = session.acl_whoami()
        lines: Any = session.acl_list()
        servers = identity.server_ids(session)
        session.must_be_primary()  # until now, as in `objects`
    for line in lines:
        _, name, *rules = line.split()
        patterns = list(identity.patterns(rules))
        ours = name.startswith(identity.OURS) or any(one.startswith(identity.CHANNEL) for one in patterns)
        if not ours and name != us and name not in server.protected:
            names = {"user": name, "prefix": _prefix(patterns), "server": servers[0] if len(servers) == 1 else None}
            yield UnmarkedObject({field.name: names.get(field.name) for field in KIND.fields})


def _prefix(patterns: list[str]) -> str | None:
    """The one prefix that the user reaches; None where it reaches several, or more than a prefix."""
    reached = {rights.beginning(pattern) for pattern in patterns if pattern[0] != "&"}
    prefix = reached.pop() if len(reached) == 1 else ""
    return prefix if len(prefix) > 1 and prefix.endswith(":") else None


def measured(server: Server, names: Json) -> Measured:
    """The memory that the keys under the prefix take, in all logical databases; the server keeps no other of it."""
    if not names.get("prefix"):
        return Measured()
    until, size = time.monotonic() + MEASURE_SECONDS, 0
    pattern = f"{keys.escape(names['prefix'])}*"
    with server.connect() as session:
        for name in session.info("keyspace"):
            with server.connect(database=int(name.removeprefix("db")), decode=False) as there:
                cursor: Any = 0
                while True:
                    cursor, found = there.scan(cursor, match=pattern, count=BATCH)
                    pipe = there.pipeline(transaction=False)
                    for key in found:
                        pipe.memory_usage(key)
                    size += sum(taken or 0 for taken in pipe.execute())
                    if cursor == 0:
                        break
                    if time.monotonic() > until:
                        return Measured()
    return Measured(size_bytes=size)
