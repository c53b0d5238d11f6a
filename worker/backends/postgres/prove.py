"""What shows that a released database can be used again: a login of the customer's own role."""

import threading
from contextlib import closing

import psycopg2
from psycopg2 import extensions

from outbox.errors import Transient, Unavailable
from outbox.opening import Opener
from outbox.rows import Json
from worker.backends.postgres import identity, notes
from worker.backends.postgres.errors import describe
from worker.backends.postgres.session import CONNECT_TIMEOUT_SECONDS, INSPECT_SECONDS, Server, cut

# How long the answer to a login's one question may take.
_ASKED_MS = 5_000


def prove(server: Server, manifest: Json, credentials: Json | None) -> Json:
    """Log in with these credentials, and see where that leads; see `worker.backends.prove`.

    It goes to the address that the service itself uses: the one of the backends file for customers may not lead there
    from here. An adopted object has no credentials: then what the catalog shows of it is enough.
    """
    shown = _shown(server, manifest)
    if credentials is None:
        return shown
    database, role = manifest["database"], manifest["role"]
    try:
        with closing(_logged_in(server, database, role, credentials["password"])) as session:
            limit = threading.Timer(INSPECT_SECONDS, cut, (session.fileno(),))
            limit.daemon = True
            limit.start()
            try:
                with session.cursor() as cursor:
                    cursor.execute("SELECT session_user, pg_catalog.current_database(), pg_catalog.pg_is_in_recovery()")
                    seen = cursor.fetchone()
            finally:
                limit.cancel()
    except psycopg2.Error as error:
        said = f"a login with the credentials on record failed: {describe(error)}"
        raise server.blamed(Unavailable, said, database) from error
    if seen != (role, database, False):  # of several hosts, another one may have answered than before
        raise Transient(f"a login as {role!r} to {database!r} led to {seen}")
    return shown | {"logged_in_as": role}


def _logged_in(server: Server, database: str, role: str, password: str) -> extensions.connection:
    theirs = {"dbname": database, "user": role, "password": password, "connect_timeout": str(CONNECT_TIMEOUT_SECONDS)}
    # What the customer has set on its role must not end this before it is answered.
    session = Opener().open(
        lambda options: psycopg2.connect(**server.parameters | theirs | {"options": options}),
        f"-c statement_timeout={_ASKED_MS}",
    )
    session.autocommit = True
    return session


def _shown(server: Server, manifest: Json) -> Json:
    with server.connect(seconds=INSPECT_SECONDS) as session:
        state = identity.read_state(session, manifest)
    identity.must_be_same(state, manifest)
    database, role = state.named(manifest["database"]), state.role
    if database is None or notes.before(database.comment, manifest, notes.CONNECTIONS):
        raise Transient(f"database {manifest['database']!r} is still in quarantine")
    if role is not None and notes.before(role.comment, manifest, notes.LOGIN):
        raise Transient(f"role {role.name!r} is still in quarantine")
    shown: Json = {"database": database.name, "allows_connections": database.open}
    return shown if role is None else shown | {"role": role.name, "may_log_in": role.login}
