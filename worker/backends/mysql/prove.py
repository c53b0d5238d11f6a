"""What shows that a released schema can be used again: a login of the customer's own user."""

from contextlib import closing

import pymysql

from outbox.errors import OutOfService, Refused, Transient, Unavailable
from outbox.rows import Json
from worker.backends.mysql import errors, identity
from worker.backends.mysql.session import INSPECT_SECONDS, Server


def prove(server: Server, manifest: Json, credentials: Json | None) -> Json:
    """Log in with these credentials, on the server's own address; see `worker.backends.prove`."""
    shown = _shown(server, manifest)
    if credentials is None:
        return shown
    try:
        customer = server.opened(manifest["user"], credentials["password"], manifest["database"], INSPECT_SECONDS)
        with closing(customer), customer.cursor() as cursor:
            cursor.execute("SELECT DATABASE(), SUBSTRING_INDEX(CURRENT_USER(), '@', 1)")
            seen = cursor.fetchone()
    except pymysql.Error as error:
        found = errors.meaning(error)
        lost = isinstance(found, Unavailable) and errors.number(error) not in _LET_NOT_IN
        kind = type(found) if lost or isinstance(found, OutOfService) else Transient
        raise kind(f"a login with the credentials on record failed: {errors.describe(error)}") from None
    if seen != (manifest["database"], manifest["user"]):
        raise Transient(f"a login as {manifest['user']!r} to {manifest['database']!r} led to {seen}")
    return shown | {"logged_in_as": manifest["user"]}


_LET_NOT_IN = frozenset({1045, 1698, 4151})


def _shown(server: Server, manifest: Json) -> Json:
    with server.connect(seconds=INSPECT_SECONDS) as session:
        state = identity.read_state(session, manifest)
    identity.must_be_same(state, manifest)
    if state.record is not None and state.record.closed is not None:
        raise Transient(f"schema {manifest['database']!r} is still in quarantine")
    if state.comment is None:
        raise Transient(f"there is no schema {manifest['database']!r}")
    named = state.named(manifest)
    if manifest["user"] is not None and named and all(account.locked for account in named):
        raise Refused(
            f"user {manifest['user']!r} was locked before the resource was deleted, and is locked again; when it is to "
            "be used, unlock it (ALTER USER … ACCOUNT UNLOCK), then re-drive this job"
        )
    return {"database": manifest["database"], "users": [f"{account.user}@{account.host}" for account in named]}
