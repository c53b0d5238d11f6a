"""Take a database with its role out of use, which `release` can undo."""

from collections.abc import Callable
from functools import partial

import psycopg2
from psycopg2 import errors as sqlstates

from outbox.errors import Refused, Transient, Unavailable
from outbox.rows import Json
from worker.backends import Absent, Different, Same, Still, always
from worker.backends.postgres import identity, notes, obstacles
from worker.backends.postgres.errors import describe
from worker.backends.postgres.identity import Database, Role, State
from worker.backends.postgres.lock import take_over
from worker.backends.postgres.session import Server, Session, afterwards

# A client may connect between "terminate" and "rename": try again, a few times.
RENAME_TRIES = 3
# A customer may change its own role's row, or its database's, at the moment at which we do: one of both fails.
CLOSE_TRIES = 10
# How long to wait for the end of the sessions that are there before the doors are closed: others can come meanwhile.
FIRST_SECONDS = 1.0
# "tuple concurrently updated" has the code of every internal error.
_CHANGED_MEANWHILE = (sqlstates.InternalError_, sqlstates.DeadlockDetected)


def quarantine(server: Server, manifest: Json, still: Still) -> None:
    """No login, no session, no connection, no name: the last two in one transaction that checks identity."""
    identity.must_not_be_protected(server, manifest)
    try:
        with server.connect() as session:
            still()
            take_over(session, manifest["database"])
            close(session, manifest, still)
    except Unavailable:
        still()  # another worker has ended our session: then the claim is lost, and the server is not away
        raise


def close(session: Session, manifest: Json, still: Still = always, *, forever: bool = False) -> None:
    """The quarantine, under the object's lock. `forever`: nothing of it will be given back.

    Else it notes what was there before. A database with prepared transactions keeps them, and so its name: the server
    renames none with them.
    """
    state = identity.read_state(session, manifest)
    identity.must_be_a_customers(state, manifest)
    match identity.judge(state, manifest):
        case Different(why=why):
            raise Refused(why)
        case Absent():
            return
        case Same():
            pass
    ours = _to_close(state, manifest)
    still()
    # Before anything that waits for a lock: a transaction of the customer may hold its role's row.
    obstacles.end_sessions(session, ours, state.role, seconds=FIRST_SECONDS)
    locked = _shut(session, manifest, state.role, ours, forever=forever)
    left = obstacles.end_sessions(session, ours, state.role)
    if locked:
        raise locked[0]
    if ours is None:
        obstacles.must_be_ended(left, manifest["database"])
        return
    prepared = obstacles.prepared(session, ours.name)
    if prepared and forever:
        _roll_back(session, manifest, ours, state.role, prepared)
    obstacles.must_not_subscribe(session, ours, ours.name)
    obstacles.must_be_ended(left, ours.name)
    if ours.name == manifest["database"] and (forever or not prepared):
        _insist_on_rename(session, manifest, ours, state.role, still)


def _to_close(state: State, manifest: Json) -> Database | None:
    """The resource's database, unless it is closed under its quarantine's name already."""
    named, away = (state.named(name) for name in (manifest["database"], identity.dying_name(manifest)))
    if named is not None and identity.is_ours(named, manifest):
        return named
    return away if away is not None and away.open and identity.is_ours(away, manifest) else None


def _shut(
    session: Session, manifest: Json, role: Role | None, database: Database | None, *, forever: bool
) -> list[psycopg2.Error]:
    """Both doors; what was locked. When an operator holds one, the other is closed all the same."""
    locked: list[psycopg2.Error] = []
    for shut in (_shut_role, _shut_database):
        try:
            insist(session, partial(shut, session, manifest, role, database, forever=forever), database, role)
        except sqlstates.LockNotAvailable as error:
            locked.append(error)
    return locked


def insist(session: Session, act: Callable[[], None], database: Database | None, role: Role | None) -> None:
    """Do it, again where a customer was in its way, whose sessions are ended in between."""
    for last in (*[False] * (CLOSE_TRIES - 1), True):
        try:
            act()
        except _CHANGED_MEANWHILE:
            if last:
                raise
            obstacles.end_sessions(session, database, role, seconds=0)
        else:
            return


def _shut_role(session: Session, manifest: Json, role: Role | None, _: Database | None, *, forever: bool) -> None:
    if role is None:
        return
    with session.transaction():
        now = role if forever else identity.must_be_our_role(session, manifest, role.name)
        session.execute("ALTER ROLE {role} NOLOGIN", role=role.name)
        if not forever and notes.before(now.comment, manifest, notes.LOGIN) is None:
            notes.put(session, "ROLE", role.name, now.comment, manifest, notes.LOGIN[now.login])
        identity.must_be_our_role(session, manifest, role.name)


def _shut_database(
    session: Session, manifest: Json, _: Role | None, database: Database | None, *, forever: bool
) -> None:
    """Else clients under other roles, superusers too, reconnect as fast as they are ended."""
    if database is None:
        return
    name = database.name
    with session.transaction():
        now = database if forever else identity.must_be_our_database(session, manifest, name)
        session.execute("ALTER DATABASE {name} ALLOW_CONNECTIONS false", name=name)
        if not forever and notes.before(now.comment, manifest, notes.CONNECTIONS) is None:
            notes.put(session, "DATABASE", name, now.comment, manifest, notes.CONNECTIONS[now.open])
        identity.must_be_our_database(session, manifest, name)


def _roll_back(
    session: Session, manifest: Json, database: Database, role: Role | None, prepared: list[tuple[str, str | None]]
) -> None:
    # ROLLBACK PREPARED works only inside the database: let one session of ours in, and close the door behind it.
    with session.transaction():
        session.execute("ALTER DATABASE {name} CONNECTION LIMIT -1 ALLOW_CONNECTIONS true", name=database.name)
        identity.must_be_our_database(session, manifest, database.name)
    shut = partial(_shut_database, session, manifest, role, database, forever=True)
    with afterwards(shut), session.server.connect(database.name) as inside:
        shut()
        obstacles.end_sessions(session, database, role, spared=inside.info.backend_pid)
        obstacles.roll_back(inside, database.name, prepared)


def _insist_on_rename(session: Session, manifest: Json, database: Database, role: Role | None, still: Still) -> None:
    for last in (*[False] * (RENAME_TRIES - 1), True):
        still()  # sessions may have taken long to end
        try:
            _rename_away(session, manifest)
        except sqlstates.ObjectInUse as error:
            if last:
                raise Transient(f"database {manifest['database']!r} is in use: {describe(error)}") from error
            obstacles.must_be_ended(obstacles.end_sessions(session, database, role), database.name)
        else:
            return


def _rename_away(session: Session, manifest: Json) -> None:
    """Rename in a transaction that commits only if the renamed database is the resource's."""
    dying = identity.dying_name(manifest)
    with session.transaction():
        session.execute("ALTER DATABASE {name} ALLOW_CONNECTIONS false", name=manifest["database"])
        session.execute("ALTER DATABASE {old} RENAME TO {new}", old=manifest["database"], new=dying)
        identity.must_be_our_database(session, manifest, dying)
