"""Take a schema with its user out of use, and give it back as it was.

ACCOUNT LOCK alone is no quarantine: events of the locked user go on, and so do other users with rights on the schema.
So all rights on the schema by its name are taken too, whoever has them. They are noted before, for `release`.
"""

import pymysql

from outbox.errors import Refused, Unavailable
from outbox.rows import Json
from worker.backends import Absent, Different, Still, always
from worker.backends.mysql import errors, identity, names, registry, sessions
from worker.backends.mysql.create import must_be_right_server
from worker.backends.mysql.identity import State
from worker.backends.mysql.rights import Grant
from worker.backends.mysql.session import Server, Session


def quarantine(server: Server, manifest: Json, still: Still) -> None:
    """No login, no right, no session; see the Protocol."""
    identity.must_not_be_protected(server, manifest)
    try:
        with server.connect() as session:
            still()
            must_be_right_server(session, manifest)
            registry.lock(session, manifest["database"], take_over=True)
            close(session, manifest, still)
    except Unavailable:
        still()  # another worker has ended our session: then the claim is lost, and the server is not away
        raise


def close(session: Session, manifest: Json, still: Still = always) -> State | None:
    """The quarantine, under the object's lock; what was there before it, None where nothing of the object is."""
    state = identity.read_state(session, manifest)
    match identity.judge(state, manifest):
        case Different(why=why):
            raise Refused(why)
        case Absent():
            return None
    open_accounts = [account for account in state.named(manifest) if not account.locked]
    still()
    if state.record is None:  # the record was lost, and the marks show whose it is
        registry.put(session, manifest, frozenset(grant.account for grant in state.grants), making=False)
    accounts = [[account.user, account.host] for account in open_accounts]
    registry.close(session, manifest, {"accounts": accounts, "grants": [one.as_json() for one in state.grants]})
    for account in open_accounts:
        session.execute(f"ALTER USER {names.account(account.user, account.host)} ACCOUNT LOCK")
    for grant in state.grants:
        _take(session, grant)
    if manifest["user"] is not None:
        sessions.end_user(session, manifest["user"])
    for user in others(state, manifest):
        sessions.end_inside(session, manifest["database"], user)
    return state


def _take(session: Session, grant: Grant) -> None:
    for statement in grant.take():
        try:
            session.execute(statement)
        except pymysql.Error as error:
            if errors.number(error) not in errors.RIGHT_MISSING:
                raise
            raise Refused(
                f"the service's account may not take rights of {grant.account}: {errors.describe(error)}; as an "
                f"administrator: {statement}; then re-drive"
            ) from error


def others(state: State, manifest: Json) -> list[str]:
    """The users with rights on the schema that are not the resource's own; what a quarantine took counts."""
    noted = state.record.closed["grants"] if state.record and state.record.closed else ()
    had = {grant.user for grant in (*state.grants, *map(Grant.read, noted)) if grant.host}
    return sorted(had - {manifest["user"]})


def release(server: Server, manifest: Json, still: Still) -> None:
    """Undo `quarantine`; see the Protocol."""
    try:
        with server.connect() as session:
            still()
            must_be_right_server(session, manifest)
            registry.lock(session, manifest["database"], take_over=True)
            state = identity.read_state(session, manifest)
            identity.must_be_same(state, manifest)
            if state.record is None or state.record.closed is None:
                return
            still()
            _give_back(session, manifest, state.record.closed)
    except Unavailable:
        still()
        raise


def _give_back(session: Session, manifest: Json, noted: Json) -> None:
    for grant in map(Grant.read, noted["grants"]):
        if grant.user == "PUBLIC" or _is_there(session, grant.user, grant.host):
            session.execute(grant.give())
    for user, host in noted["accounts"]:
        if _is_there(session, user, host):
            session.execute(f"ALTER USER {names.account(user, host)} ACCOUNT UNLOCK")
    registry.opened(session, manifest)


def _is_there(session: Session, user: str, host: str) -> bool:
    return bool(session.ask("SELECT 1 FROM mysql.global_priv WHERE User = %s AND Host = %s", user, host))
