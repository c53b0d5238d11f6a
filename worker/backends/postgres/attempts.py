"""Who still tries to log in to what is in quarantine, as the server's own log tells it.

The log is a superuser's to read, and so is all that a function which reads files can reach. So the service calls a
function that a superuser has made for it (docs/backends.md), which reads the end of the log and nothing else.
"""

import datetime as dt
import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import psycopg2

from outbox.rows import Json
from worker.backends import LoginAttempts
from worker.backends.postgres import identity
from worker.backends.postgres.session import INSPECT_SECONDS, Server, Session

# What a look reads: thousands of attempts. Of more in a minute, the last are counted.
TAIL_BYTES = 1 << 20
# How many addresses are told, the last ones.
ADDRESSES = 20
# No such role's login, a wrong password, a database that lets none in, is away, is full, or is not the role's.
_REFUSED = frozenset({"28000", "28P01", "55000", "3D000", "53300", "42501"})
# The function that reads the log, where a superuser has made it: another's could tell anything, with our rights.
_FUNCTION = """
    SELECT 1 FROM pg_catalog.pg_proc AS p JOIN pg_catalog.pg_roles AS r ON r.oid = p.proowner
     WHERE p.oid = pg_catalog.to_regprocedure('deprovisioner.log_tail(pg_catalog.int8)') AND rolsuper AND prosecdef
       AND pg_catalog.has_schema_privilege(pronamespace, 'USAGE')
       AND pg_catalog.has_function_privilege(p.oid, 'EXECUTE')"""


@dataclass(frozen=True)
class _Line:
    at: str
    host: str | None


def login_attempts(server: Server, manifest: Json, since: dt.datetime) -> LoginAttempts | None:
    """See `worker.backends.login_attempts`; None too where the server writes no log in JSON."""
    with server.connect(seconds=INSPECT_SECONDS, frees=False) as session, session.cursor() as cursor:
        cursor.execute(_FUNCTION)
        if cursor.fetchone() is None:
            return None
        try:
            cursor.execute("SELECT deprovisioner.log_tail(%s)", (TAIL_BYTES,))
            (tail,) = cursor.fetchone()
            lines = [] if tail is None else list(_refused(bytes(tail), manifest))
            times = _times(session, lines)
        except (
            psycopg2.ProgrammingError,
            psycopg2.DataError,
        ):  # a log that is away, or a time zone with a name of its own
            return None
    if tail is None:
        return None
    later = [(at, line.host) for at, line in zip(times, lines, strict=True) if at > since]
    hosts = list(dict.fromkeys(host for _, host in reversed(later) if host))
    return LoginAttempts(len(later), max((at for at, _ in later), default=since), hosts[:ADDRESSES])


def _refused(tail: bytes, manifest: Json) -> Iterator[_Line]:
    """The lines that tell of a login to the manifest's object which the server refused."""
    names = {manifest["database"], identity.dying_name(manifest)}
    for line in tail.decode(errors="replace").splitlines():
        found: Any = None
        with suppress(ValueError, RecursionError):  # the first line may be cut
            found = json.loads(line)
        if not isinstance(found, dict) or found.get("error_severity") != "FATAL":
            continue
        ours = found.get("dbname") in names or found.get("user") == manifest.get("role")
        if ours and found.get("state_code") in _REFUSED and isinstance(found.get("timestamp"), str):
            host = found.get("remote_host")
            yield _Line(found["timestamp"], host if isinstance(host, str) else None)


def _times(session: Session, lines: list[_Line]) -> list[dt.datetime]:
    """The server reads its own times: the log's may have any zone's name in them."""
    with session.cursor() as cursor:
        cursor.execute(
            """
            SELECT at::pg_catalog.timestamptz
              FROM pg_catalog.unnest(%s::pg_catalog.text[]) WITH ORDINALITY AS t (at, n) ORDER BY n""",
            ([line.at for line in lines],),
        )
        return [at for (at,) in cursor]
