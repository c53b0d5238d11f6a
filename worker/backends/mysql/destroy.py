"""Tear a schema down with its user, which cannot be undone."""

from outbox.errors import Refused, Transient
from outbox.rows import Json
from worker.backends import Absent, mark
from worker.backends.mysql import adopt, identity, names, obstacles, registry, rights, sessions
from worker.backends.mysql.create import must_be_right_server
from worker.backends.mysql.identity import State
from worker.backends.mysql.quarantine import close, others
from worker.backends.mysql.session import Server, Session

_DEFINERS = """
    SELECT CONCAT('routine ', db, '.', name) FROM mysql.proc WHERE db <> %s AND SUBSTRING_INDEX(definer, '@', 1) = %s
     UNION ALL
    SELECT CONCAT('event ', db, '.', name) FROM mysql.event WHERE db <> %s AND SUBSTRING_INDEX(definer, '@', 1) = %s
     LIMIT 10"""


def teardown(server: Server, manifest: Json) -> Json:
    """Access first, then the schema, then user and mark, and the record last: what is left is known as ours."""
    identity.must_not_be_protected(server, manifest)
    database, user = manifest["database"], manifest["user"]
    with server.connect() as session:
        must_be_right_server(session, manifest)
        registry.lock(session, database)
        before = close(session, manifest)
        if before is None:
            registry.forget(session, manifest)
            return {}
        _must_be_the_customers_alone(session, before, manifest)
        defined = [] if user is None else session.ask(_DEFINERS, database, user, database, user)
        _drop_schema(session, before, manifest)
        for grant in rights.on_schema(session, database, own=True):  # those of an adoption, the service's own
            for statement in grant.take():
                session.execute(statement)
        _drop_users(session, manifest)
        left = identity.read_state(session, manifest)
        if left.grants:  # given again meanwhile: a schema made again under the name would inherit them
            raise Transient(f"rights on {database!r} were given again to {left.grants[0].account}; trying again")
        if not isinstance(seen := identity.judge(left, manifest), Absent):
            raise Transient(f"it is still there: {seen}")
        registry.forget(session, manifest)
        evidence: Json = {"statements": session.executed, "told": session.told}
        return evidence | ({"definers_elsewhere": [name for (name,) in defined]} if defined else {})


def _must_be_the_customers_alone(session: Session, state: State, manifest: Json) -> None:
    """Raises Refused for an account of the user's name that came later, at another host, and has rights elsewhere."""
    if state.record is not None and state.record.making:
        return
    later = [account for account in state.named(manifest) if not account.marked]
    for found in adopt.reaching(session, state, manifest, later):
        raise Refused(
            f"{found.what}, and was not made for this resource: rename it ("
            f"RENAME USER {names.account(later[0].user, later[0].host)} TO …), then re-drive"
        )


def _drop_schema(session: Session, before: State, manifest: Json) -> None:
    if before.comment is None:
        return
    obstacles.must_not_be_referred_to(session, manifest["database"])
    identity.must_be_same(identity.read_state(session, manifest), manifest)  # DROP takes only a name
    obstacles.drop_schema(
        session, manifest["database"], [*filter(None, (manifest["user"],)), *others(before, manifest)]
    )


def _drop_users(session: Session, manifest: Json) -> None:
    """Every account of the user, its sessions, which outlive DROP USER, and the role that marked it."""
    state = identity.read_state(session, manifest)
    if isinstance(identity.judge(state, manifest), Absent):
        return
    identity.must_be_same(state, manifest)
    for account in state.named(manifest):
        session.execute(f"DROP USER {names.account(account.user, account.host)}")
    if manifest["user"] is not None:
        sessions.end_user(session, manifest["user"])
    if state.role:
        session.execute(f"DROP ROLE {names.identifier(mark(manifest['generation']))}")
