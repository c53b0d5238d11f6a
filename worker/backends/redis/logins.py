"""Who tried to log in to a user in quarantine: what ACL LOG has of it."""

import datetime as dt
import re
from typing import Any

from redis import exceptions

from outbox.rows import Json
from worker.backends import LoginAttempts
from worker.backends.redis import identity
from worker.backends.redis.session import Server, code_of

# As many as a server keeps, unless its `acllog-max-len` says more.
MOST = 128
# Anybody may write names of users and of keys to that log, of any length.
LONGEST = 16_384
_ADDRESS = re.compile(r"(?:^| )addr=(\S+):\d+(?: |$)")


def login_attempts(server: Server, manifest: Json, since: dt.datetime) -> LoginAttempts | None:
    """See `worker.backends.login_attempts`. None where the service's account may not read the log.

    The server adds an attempt to the group of one that came less than a minute before. Where it gives groups no id
    (Redis 7.0), those of one command count as one: so there may have been more attempts.
    """
    with server.connect(longest=LONGEST) as session:
        identity.must_be_right_server(session, manifest)
        now = dt.datetime.now(dt.UTC)
        try:
            log: Any = session.execute_command("ACL", "LOG", MOST)
        except exceptions.ResponseError as error:
            if code_of(error) != "NOPERM":
                raise
            return None
    ours = [one for one in log if (one["reason"], one["username"]) == ("auth", manifest["user"])]
    later = [(at, one) for one in ours if (at := _last(one, now)) > since]
    if not later:
        return None
    groups: dict[str, int] = {}
    for _, one in later:
        name = f"{one.get('entry-id', '')} {one.get('timestamp-created', one['object'])}"
        groups[name] = groups.get(name, 0) + int(one["count"])
    addresses = [found[1] for _, one in later if (found := _ADDRESS.search(one["client-info"]))]
    return LoginAttempts(sum(groups.values()), max(at for at, _ in later), [*dict.fromkeys(addresses)], groups)


def _last(entry: Json, now: dt.datetime) -> dt.datetime:
    """When the last attempt of a group came; by the server's clock, where it tells."""
    if (milliseconds := entry.get("timestamp-last-updated")) is not None:
        return dt.datetime.fromtimestamp(int(milliseconds) / 1000, dt.UTC)
    return now - dt.timedelta(seconds=float(entry["age-seconds"]))
