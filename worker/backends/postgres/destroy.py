"""Tear a database down with its role, which cannot be undone."""

from psycopg2 import errors as sqlstates

from outbox.errors import Refused
from outbox.rows import Json
from worker.backends.postgres import grants, heir, identity, obstacles, pace
from worker.backends.postgres.identity import Role
from worker.backends.postgres.quarantine import close
from worker.backends.postgres.session import Server, Session

# Databases that are no customer's, as is the service's own.
MAINTENANCE = frozenset({"postgres", "template1"})
# How often a role is taken out of a neighbour's database in which a customer grants it something again.
DROP_TRIES = 5


def teardown(server: Server, manifest: Json) -> Json:
    """Database first, then every grant of the role, then the role: a role that survives is a working credential."""
    identity.must_not_be_protected(server, manifest)
    with server.connect() as session:
        session.lock(manifest["database"])
        close(session, manifest, forever=True)
        for name in (identity.dying_name(manifest), identity.new_name(manifest)):
            if identity.read_state(session, manifest).named(name):
                with pace.turn(session, server.pace):
                    session.execute("DROP DATABASE {name}", name=name)
        _drop_role(session, manifest)
        return {"statements": session.executed}


def _drop_role(session: Session, manifest: Json) -> None:
    role = identity.read_state(session, manifest).role
    if role is None:
        return
    dying = identity.dying_name(manifest)
    if role.name != dying:
        with session.transaction():  # the name may be another's by now: then this is undone
            session.execute("ALTER ROLE {old} RENAME TO {new}", old=role.name, new=dying)
            identity.must_be_our_role(session, manifest, dying)
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


def _disown(session: Session, role: Role, name: str) -> None:
    heir.hand_over(session, name, role.oid)
    session.execute("DROP OWNED BY {role}", role=name)
    if not obstacles.is_disowned(session, role):
        grants.revoke_left(session, role.oid)
