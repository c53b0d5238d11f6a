"""Quarantine a database with its role, which can be undone, and tear both down, which cannot."""

from collections.abc import Callable
from functools import partial

import psycopg2
from psycopg2 import errors as sqlstates
from psycopg2 import sql

from outbox.errors import Refused, Transient
from outbox.rows import Json
from worker.backends import Absent, Different, Same, Still
from worker.backends.postgres import grants, heir, identity, obstacles
from worker.backends.postgres.errors import describe
from worker.backends.postgres.identity import Database, Role
from worker.backends.postgres.session import Server, Session, afterwards

# A client may connect between "terminate" and "rename": try again, a few times.
RENAME_TRIES = 3
# A customer may change its own role's row, or its database's, at the moment at which we do: one of both fails.
CLOSE_TRIES = 10
# How long to wait for the end of the sessions that are there before the doors are closed: others can come meanwhile.
FIRST_SECONDS = 1.0
# Databases that are no customer's, as is the service's own.
MAINTENANCE = frozenset({"postgres", "template1"})
# How often a role is taken out of a neighbour's database in which a customer grants it something again.
DROP_TRIES = 5
# "tuple concurrently updated" has the code of every internal error.
_CHANGED_MEANWHILE = (sqlstates.InternalError_, sqlstates.DeadlockDetected)


def quarantine(server: Server, manifest: Json, still: Still) -> None:
    """No login, no session, no connection, no name: the last two in one transaction that checks identity."""
    identity.must_not_be_protected(server, manifest)
    with server.connect() as session:
        session.lock(manifest["database"])
        still()
        _quarantine(session, manifest)


def release(server: Server, manifest: Json) -> None:
    """Undo `quarantine`; see the Protocol."""
    with server.connect() as session:
        session.lock(manifest["database"])
        state = identity.read_state(session, manifest)
        identity.must_be_same(state, manifest)
        dying = identity.dying_name(manifest)
        with session.transaction():
            if state.named(dying):
                session.execute("ALTER DATABASE {old} RENAME TO {new}", old=dying, new=manifest["database"])
            # A quarantine that died before its rename has closed the door too.
            if state.named(dying) or state.named(manifest["database"]):
                _set_door(session, manifest, opened=True)
        if state.role is not None:
            with session.transaction():
                session.execute("ALTER ROLE {role} LOGIN", role=state.role.name)
                _must_be_our_role(session, manifest, state.role.name)


def teardown(server: Server, manifest: Json) -> Json:
    """Database first, then every grant of the role, then the role: a role that survives is a working credential."""
    identity.must_not_be_protected(server, manifest)
    with server.connect() as session:
        session.lock(manifest["database"])
        _quarantine(session, manifest)
        for name in (identity.dying_name(manifest), identity.new_name(manifest)):
            if identity.read_state(session, manifest).named(name):
                session.execute("DROP DATABASE {name}", name=name)
        _drop_role(session, manifest)
        return {"statements": session.executed}


def _quarantine(session: Session, manifest: Json) -> None:
    state = identity.read_state(session, manifest)
    identity.must_be_a_customers(state, manifest)
    match identity.judge(state, manifest):
        case Different(why=why):
            raise Refused(why)
        case Absent():
            return
        case Same():
            pass
    named = state.named(manifest["database"])
    ours = named if named is not None and identity.is_ours(named, manifest) else None
    # Before anything that waits for a lock: a transaction of the customer may hold its role's row.
    obstacles.end_sessions(session, ours, state.role, seconds=FIRST_SECONDS)
    locked: list[psycopg2.Error] = []
    for close in (_shut_out, _shut):
        try:
            _insist(session, manifest, close, ours, state.role)
        except sqlstates.LockNotAvailable as error:  # an operator holds it: close the other door all the same
            locked.append(error)
    left = obstacles.end_sessions(session, ours, state.role)
    if locked:
        raise locked[0]
    if ours is None:
        obstacles.must_be_ended(left, manifest["database"])
        return
    _roll_back_prepared(session, manifest, ours, state.role)
    obstacles.must_not_subscribe(session, ours, ours.name)
    obstacles.must_be_ended(left, ours.name)
    for last in (*[False] * (RENAME_TRIES - 1), True):
        try:
            _rename_away(session, manifest)
        except sqlstates.ObjectInUse as error:
            if last:
                raise Transient(f"database {manifest['database']!r} is in use: {describe(error)}") from error
            obstacles.must_be_ended(obstacles.end_sessions(session, ours, state.role), ours.name)
        else:
            return


_Close = Callable[[Session, Json, Database | None, Role | None], None]


def _insist(session: Session, manifest: Json, close: _Close, database: Database | None, role: Role | None) -> None:
    """Do it in a transaction, again where a customer was in its way, whose sessions are ended in between."""
    for last in (*[False] * (CLOSE_TRIES - 1), True):
        try:
            close(session, manifest, database, role)
        except _CHANGED_MEANWHILE:
            if last:
                raise
            obstacles.end_sessions(session, database, role, seconds=0)
        else:
            return


def _shut_out(session: Session, manifest: Json, _: Database | None, role: Role | None) -> None:
    if role is not None:
        with session.transaction():
            session.execute("ALTER ROLE {role} NOLOGIN", role=role.name)
            _must_be_our_role(session, manifest, role.name)


def _shut(session: Session, manifest: Json, database: Database | None, _: Role | None) -> None:
    """Else clients under other roles, superusers too, reconnect as fast as they are ended."""
    if database is not None:
        with session.transaction():
            _set_door(session, manifest, opened=False)


def _set_door(session: Session, manifest: Json, *, opened: bool) -> None:
    """Let connections in, or none, superusers' neither; in a transaction, which ends where the identity differs."""
    name = manifest["database"]
    limit, allowed = (sql.SQL("-1"), sql.SQL("true")) if opened else (sql.SQL("0"), sql.SQL("false"))
    session.execute(
        "ALTER DATABASE {name} CONNECTION LIMIT {limit} ALLOW_CONNECTIONS {allowed}",
        name=name,
        limit=limit,
        allowed=allowed,
    )
    touched = identity.read_state(session, manifest).named(name)
    if touched is None or not identity.is_ours(touched, manifest):
        raise Refused(f"database {name!r} is no longer the one of this resource")


def _roll_back_prepared(session: Session, manifest: Json, database: Database, role: Role | None) -> None:
    if not (found := obstacles.prepared(session, database.name)):
        return
    # ROLLBACK PREPARED works only inside the database: let one session of ours in, and close the door behind it.
    with session.transaction():
        _set_door(session, manifest, opened=True)
    close = partial(_shut, session, manifest, database, role)
    with afterwards(close), session.server.connect(database.name) as inside:
        close()
        obstacles.end_sessions(session, database, role, spared=inside.info.backend_pid)
        obstacles.roll_back(inside, database.name, found)


def _rename_away(session: Session, manifest: Json) -> None:
    """Rename in a transaction that commits only if the renamed database is the resource's."""
    dying = identity.dying_name(manifest)
    with session.transaction():
        session.execute("ALTER DATABASE {name} ALLOW_CONNECTIONS false", name=manifest["database"])
        session.execute("ALTER DATABASE {old} RENAME TO {new}", old=manifest["database"], new=dying)
        renamed = identity.read_state(session, manifest).named(dying)
        if renamed is None or not identity.is_ours(renamed, manifest):
            raise Refused(f"database {manifest['database']!r} is no longer the one of this resource")


def _drop_role(session: Session, manifest: Json) -> None:
    role = identity.read_state(session, manifest).role
    if role is None:
        return
    dying = identity.dying_name(manifest)
    if role.name != dying:
        with session.transaction():  # the name may be another's by now: then this is undone
            session.execute("ALTER ROLE {old} RENAME TO {new}", old=role.name, new=dying)
            _must_be_our_role(session, manifest, dying)
    # Also a session that logged in before NOLOGIN and was not shown yet when the others were ended.
    obstacles.must_be_ended(obstacles.end_sessions(session, None, role), dying)
    cleared: set[str] = set()
    for last in (*[False] * (DROP_TRIES - 1), True):
        tried = _clear(session, role, dying, cleared)
        try:
            with session.transaction():
                _disown(session, role, dying)
                obstacles.must_be_disowned(session, role, dying)
                session.execute("DROP ROLE {role}", role=dying)
        except (Refused, sqlstates.DependentObjectsStillExist):
            # A customer has granted the role something since its database was cleared, or was not known to have any
            # of its rights: else waiting changes nothing.
            if last or {name for name, _ in _elsewhere(session, role)} <= tried - cleared:
                raise
        else:
            return


def _elsewhere(session: Session, role: Role) -> list[tuple[str, int]]:
    """The databases in which the role owns objects or has rights."""
    with session.cursor() as cursor:
        cursor.execute(
            """
            SELECT DISTINCT datname, dbid::pg_catalog.int8
              FROM pg_catalog.pg_shdepend JOIN pg_catalog.pg_database ON pg_database.oid = dbid
             WHERE refclassid = 'pg_catalog.pg_authid'::pg_catalog.regclass AND refobjid = %s ORDER BY 1""",
            (role.oid,),
        )
        return [(name, oid) for name, oid in cursor]


def _clear(session: Session, role: Role, dying: str, cleared: set[str]) -> set[str]:
    """Take what the role has in each database, and add those where nothing was left to `cleared`; all of them."""
    found = _elsewhere(session, role)
    for name, oid in found:  # objects in a neighbour's database are the neighbour's: handed over
        if name in cleared:
            obstacles.end_customers(session, oid, f"in {name!r}, where the dying role was granted rights")
        with session.server.connect(name) as neighbour:
            if name in MAINTENANCE or name == session.info.dbname:
                heir.drop_large_objects(neighbour, role.oid)
            with neighbour.transaction():
                _disown(neighbour, role, dying)
                if obstacles.is_disowned(neighbour, role):
                    cleared.add(name)
            session.executed += [f"in {name!r}: {statement}" for statement in neighbour.executed]
            session.told += [f"in {name!r}: {done}" for done in neighbour.told]
    return {name for name, _ in found}


def _must_be_our_role(session: Session, manifest: Json, name: str) -> None:
    """Raises Refused unless the role of that name is the manifest's: asked after it was changed by name."""
    if not any(
        r.name == name and identity.is_our_role(r, manifest) for r in identity.read_state(session, manifest).roles
    ):
        raise Refused(f"role {manifest['role']!r} is no longer the one of this resource")


def _disown(session: Session, role: Role, name: str) -> None:
    heir.hand_over(session, name, role.oid)
    session.execute("DROP OWNED BY {role}", role=name)
    if not obstacles.is_disowned(session, role):
        grants.revoke_left(session, role.oid)
