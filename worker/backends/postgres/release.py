"""Give back what is in quarantine, as it was before."""

from outbox.rows import Json
from worker.backends import Still
from worker.backends.postgres import identity, notes, obstacles
from worker.backends.postgres.identity import Database, State
from worker.backends.postgres.lock import take_over
from worker.backends.postgres.quarantine import insist
from worker.backends.postgres.session import Server, Session


def release(server: Server, manifest: Json, still: Still) -> None:
    """Undo `quarantine`, all of it in one transaction; see the Protocol."""
    with server.connect() as session:
        still()
        take_over(session, manifest["database"])
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
