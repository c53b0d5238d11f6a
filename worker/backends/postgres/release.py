"""Give back what is in quarantine, as it was before."""

import time

from outbox.rows import Json
from worker.backends import Still
from worker.backends.postgres import identity, notes, obstacles
from worker.backends.postgres.identity import Database, State
from worker.backends.postgres.quarantine import insist
from worker.backends.postgres.session import Server, Session, lock_key

# How long our own sessions may take to end that hold the object's lock: a killed server process takes milliseconds.
TAKE_OVER_SECONDS = 2.0
# What of ours has the lock: a worker that stands still at a quarantine, or one that takes a snapshot.
_HOLDERS = """
    SELECT pg_catalog.pg_terminate_backend(pid)
      FROM pg_catalog.pg_locks JOIN pg_catalog.pg_stat_activity USING (pid)
     WHERE locktype = 'advisory' AND granted AND objsubid = 1 AND pid <> pg_catalog.pg_backend_pid()
       AND database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())
       AND (classid::pg_catalog.int8 << 32) | objid::pg_catalog.int8 = %s
       AND usesysid = (SELECT oid FROM pg_catalog.pg_roles WHERE rolname = session_user)"""


def release(server: Server, manifest: Json, still: Still) -> None:
    """Undo `quarantine`, all of it in one transaction; see the Protocol."""
    with server.connect() as session:
        still()
        _take_over(session, manifest["database"])
        state = identity.read_state(session, manifest)
        identity.must_be_same(state, manifest)
        away = _away(state, manifest)
        still()
        if away is not None:  # RENAME waits five seconds for a session, and then fails
            obstacles.must_be_ended(obstacles.end_sessions(session, away, state.role), away.name)
        insist(session, lambda: _give_back(session, manifest), away, state.role)


def _away(state: State, manifest: Json) -> Database | None:
    """The database under its quarantine's name, which a stranger's may bear too."""
    found = state.named(identity.dying_name(manifest))
    return found if found is not None and identity.is_ours(found, manifest) else None


def _take_over(session: Session, name: str) -> None:
    """Take the object's lock; sessions of our own account that hold it are ended: theirs is no valid claim any more."""
    deadline = time.monotonic() + TAKE_OVER_SECONDS
    with session.cursor() as cursor:
        while time.monotonic() < deadline:
            cursor.execute("SELECT pg_catalog.pg_try_advisory_lock(%s)", (lock_key(name),))
            if cursor.fetchone() == (True,):
                return
            cursor.execute(_HOLDERS, (lock_key(name),))
            if cursor.rowcount:
                session.tell(f"ended {cursor.rowcount} sessions of our own that were at {name!r}")
            time.sleep(0.02)
    session.lock(name)


def _give_back(session: Session, manifest: Json) -> None:
    name, dying = manifest["database"], identity.dying_name(manifest)
    with session.transaction():
        state = identity.read_state(session, manifest)
        if (database := _away(state, manifest)) is not None:
            session.execute("ALTER DATABASE {old} RENAME TO {new}", old=dying, new=name)
        database = database or state.named(name)
        if database is not None:
            if was := notes.before(database.comment, manifest, notes.CONNECTIONS):
                session.execute(f"ALTER DATABASE {{name}} {was}", name=name)
                notes.take_off(session, "DATABASE", name, database.comment, manifest, notes.CONNECTIONS)
            identity.must_be_our_database(session, manifest, name)
        if (role := state.role) is not None and (was := notes.before(role.comment, manifest, notes.LOGIN)):
            session.execute(f"ALTER ROLE {{role}} {was}", role=role.name)
            notes.take_off(session, "ROLE", role.name, role.comment, manifest, notes.LOGIN)
            identity.must_be_our_role(session, manifest, role.name)
