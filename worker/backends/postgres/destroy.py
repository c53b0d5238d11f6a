"""Quarantine a database with its role, which can be undone, and tear both down, which cannot."""

from psycopg2 import errors as sqlstates
from psycopg2 import sql

from outbox.errors import Refused, Transient
from outbox.rows import Json
from worker.backends import Absent, Different, Same
from worker.backends.postgres import identity
from worker.backends.postgres.errors import describe
from worker.backends.postgres.identity import Database, Role
from worker.backends.postgres.session import Server, Session

# How long one session may take to end.
TERMINATE_TIMEOUT_MS = 5_000
# A client may connect between "terminate" and "rename": try again, a few times.
RENAME_TRIES = 3


def quarantine(server: Server, manifest: Json) -> None:
    """No login, no session, no connection, no name: the last two in one transaction that checks identity."""
    identity.must_not_be_protected(server, manifest)
    with server.connect() as session:
        session.lock(manifest["database"])
        _quarantine(session, manifest)


def release(server: Server, manifest: Json) -> None:
    """Undo `quarantine`; see the Protocol."""
    with server.connect() as session:
        session.lock(manifest["database"])
        state = identity.read_state(session, manifest)
        identity.must_be_same(state, manifest)
        dying = identity.dying_name(manifest)
        if state.named(dying):
            with session.transaction():
                session.execute("ALTER DATABASE {old} RENAME TO {new}", old=dying, new=manifest["database"])
                session.execute("ALTER DATABASE {name} ALLOW_CONNECTIONS true", name=manifest["database"])
                session.execute("ALTER DATABASE {name} CONNECTION LIMIT -1", name=manifest["database"])
        if state.role is not None:
            session.execute("ALTER ROLE {role} LOGIN", role=manifest["role"])


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
    if state.role is not None:
        session.execute("ALTER ROLE {role} NOLOGIN", role=manifest["role"])
    named = state.named(manifest["database"])
    ours = named if named is not None and identity.is_ours(named, manifest) else None
    _end_sessions(session, ours, state.role)
    if ours is None:
        return
    with session.transaction():  # else clients under other roles reconnect as fast as they are ended
        session.execute("ALTER DATABASE {name} CONNECTION LIMIT 0", name=manifest["database"])
        limited = identity.read_state(session, manifest).named(manifest["database"])
        if limited is None or not identity.is_ours(limited, manifest):
            raise Refused(f"database {manifest['database']!r} is no longer the one of this resource")
    _end_sessions(session, ours, state.role)
    for last in (*[False] * (RENAME_TRIES - 1), True):
        try:
            _rename_away(session, manifest)
        except sqlstates.ObjectInUse as error:
            if last:
                raise Transient(f"database {manifest['database']!r} is in use: {describe(error)}") from error
            _end_sessions(session, ours, state.role)
        else:
            return


def _end_sessions(session: Session, database: Database | None, role: Role | None) -> None:
    with session.cursor() as cursor:
        cursor.execute(
            """
            SELECT pg_terminate_backend(pid, %(wait)s) FROM pg_stat_activity
             WHERE (datid = %(database)s OR usesysid = %(role)s) AND pid <> pg_backend_pid()
               AND COALESCE(backend_type, '') NOT LIKE 'autovacuum%%'""",  # the server ends autovacuum by itself
            {
                "wait": TERMINATE_TIMEOUT_MS,
                "database": database.oid if database else None,
                "role": role.oid if role else None,
            },
        )
        cursor.execute("SELECT gid FROM pg_prepared_xacts WHERE database = %s", (database.name if database else None,))
        prepared = [gid for (gid,) in cursor]
    if database and prepared:  # they keep the database in use after their sessions end
        with session.server.connect(database.name) as inside:
            for gid in prepared:
                inside.execute("ROLLBACK PREPARED {gid}", gid=sql.Literal(gid))


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
    if not identity.is_marked(role.comment, manifest):
        raise Refused(f"role {manifest['role']!r} is no longer the one of this resource")
    with session.cursor() as cursor:
        cursor.execute(
            """
            SELECT DISTINCT datname FROM pg_shdepend JOIN pg_database ON pg_database.oid = dbid
             WHERE refclassid = 'pg_authid'::regclass AND refobjid = %s""",
            (role.oid,),
        )
        elsewhere = [name for (name,) in cursor]
    for name in elsewhere:  # objects in a neighbour's database are the neighbour's: handed over, not dropped
        with session.server.connect(name) as neighbour:
            _disown(neighbour, manifest["role"])
            session.executed += [f"in {name!r}: {statement}" for statement in neighbour.executed]
    with session.transaction():  # checked again: a role is dropped under a name that others can take
        if (role := identity.read_state(session, manifest).role) is None:
            return
        if not identity.is_marked(role.comment, manifest):
            raise Refused(f"role {manifest['role']!r} is no longer the one of this resource")
        _disown(session, manifest["role"])
        session.execute("DROP ROLE {role}", role=manifest["role"])


def _disown(session: Session, role: str) -> None:
    session.execute("REASSIGN OWNED BY {role} TO CURRENT_USER", role=role)
    session.execute("DROP OWNED BY {role}", role=role)
