"""Quarantine an ACL user, give it back as it was, and see a login work."""

from functools import partial

from redis import exceptions

from outbox.errors import BackendError, OutOfService, Refused, Transient
from outbox.rows import Json
from worker.backends import Absent, Different, Same, Still
from worker.backends.redis import changes, identity
from worker.backends.redis.changes import Command
from worker.backends.redis.session import LOGIN_REFUSED, MEANS, Server, Session, code_of, meaning

# The channel pattern of a user that `quarantine` found on. `release` switches on what bears it, and nothing else.
SHUT = f"&{identity.OURS}shut"


def quarantine(server: Server, manifest: Json, still: Still) -> None:
    """No login, no connection, and the change on disk; see the Protocol."""
    identity.must_not_be_protected(server, manifest)
    with server.connect() as session:
        seen = identity.judge(session, manifest)
        if isinstance(seen, Different):
            raise Refused(seen.why)
        if isinstance(seen, Absent) or identity.acl_user(session, manifest["user"]) is None:
            return
        away = _taken_over(session, manifest)
        changes.if_claimed(session, manifest, still, partial(shut, manifest["user"]))
        session.save_acl()
        if away is not None:  # the customer is cut off; but a release that is under way could still open
            raise away


def _taken_over(session: Session, manifest: Json) -> exceptions.ResponseError | None:
    """Why the server let nothing be taken over; None where it did."""
    try:
        changes.take_over(session, manifest)
    except exceptions.ResponseError as error:
        if not isinstance(meaning(error), OutOfService):
            raise
        return error
    return None


def shut(name: str, user: Json) -> list[Command]:
    """What switches the user off and ends its connections, so that `release` finds how it was."""
    was_on = [SHUT] if "on" in user["flags"] else []
    # `off` leaves connections alive.
    return [("ACL", "SETUSER", name, "off", *was_on), ("CLIENT", "KILL", "USER", name)]


def release(server: Server, manifest: Json, still: Still) -> None:
    """Undo `quarantine`; see the Protocol."""
    with server.connect() as session:
        _must_be_there(session, manifest)
        changes.take_over(session, manifest)
        changes.if_claimed(session, manifest, still, partial(_opened, manifest["user"]))
        session.save_acl()


def _opened(name: str, user: Json) -> list[Command]:
    if SHUT not in user["channels"]:
        return []
    kept = [channel for channel in user["channels"] if channel != SHUT]
    return [("ACL", "SETUSER", name, "on", "resetchannels", *kept)]


def prove(server: Server, manifest: Json, credentials: Json | None) -> Json:
    """A login on the server's own address, or for an adopted user its flag; see `worker.backends.prove`."""
    with server.connect() as session:
        user = _must_be_there(session, manifest)
        home = session.home
    name = manifest["user"]
    if SHUT in user["channels"]:
        raise Transient(f"ACL user {name!r} is still in quarantine")
    if credentials is None:
        return {"user": name, "flags": user["flags"]}
    if "on" not in user["flags"]:
        raise Refused(
            f"ACL user {name!r} was off before it was deleted, and is off again; when it is to be used, switch it on "
            f"(ACL SETUSER {name} on, ACL SAVE), then re-drive this job"
        )
    try:
        with server.connect(database=home, account=(name, credentials["password"])) as customer:
            customer.ping()
    except BackendError as error:
        raise _not_let_in(name, error) from None  # the words of the server may quote the password
    return {"user": name, "login": True}


def _must_be_there(session: Session, manifest: Json) -> Json:
    if not isinstance(identity.judge(session, manifest), Same):
        raise Refused("the namespace is not the one of this resource, or no longer there")
    user = identity.acl_user(session, manifest["user"])
    if user is None:
        raise Refused(f"ACL user {manifest['user']!r} is no longer there: the server lost it, or a person removed it")
    return user


def _not_let_in(name: str, error: BackendError) -> BackendError:
    code = code_of(error.__cause__)
    if code in MEANS and code not in LOGIN_REFUSED:
        return MEANS[code](f"a login as ACL user {name!r} fails: {code}")
    if code is None and not isinstance(error, Transient):
        return type(error)(f"a login as ACL user {name!r} finds no server")
    return Transient(f"a login as ACL user {name!r} fails: {code}")
