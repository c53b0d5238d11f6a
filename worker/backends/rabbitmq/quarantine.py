"""Quarantine a vhost with its user, and give both back as they were."""

from outbox.errors import Refused
from outbox.rows import Json
from worker.backends import Absent, Same, Still
from worker.backends.rabbitmq import connections, identity, marks, permissions
from worker.backends.rabbitmq.create import LIMIT
from worker.backends.rabbitmq.session import Server, Session
from worker.backends.rabbitmq.turns import Turn

_SHA256, _SHA512 = "rabbit_password_hashing_sha256", "rabbit_password_hashing_sha512"
_NONE = "none"


def quarantine(server: Server, manifest: Json, still: Still) -> None:
    """Nobody connects to the vhost, or may do anything in it, and no password opens its user; see the Protocol.

    Each is noted beside the change: the vhost's limit before as a tag of the vhost, the user's algorithm as one of the
    user, permissions as `permissions` says. Passwords, topic permissions and other tags stay as they are.
    """
    identity.must_not_be_protected(server, manifest)
    with server.connect() as session:
        if isinstance(identity.must_be_ours(session, manifest), Absent):
            return
        if identity.read_vhost(session, manifest) is None:  # a destruction has begun: no release comes after that
            still()
            shut_user(session, manifest, identity.read_user(session, manifest))
            return
        turn = Turn(session, manifest)
        still()
        vhost = turn.vhost()
        if marks.note(marks.of(vhost)) is None:
            before = limit(session, manifest)
            note = f"{marks.SHUT}{_NONE if before is None else before}"
            turn.write(vhost, [*marks.of(vhost), note])
        turn.vhost()
        session.put("vhost-limits", manifest["vhost"], LIMIT, value=0)
        permissions.take(session, manifest, turn)
        shut_user(session, manifest, turn.user())
        connections.close(session, manifest)


def release(server: Server, manifest: Json, still: Still) -> None:
    """Undo `quarantine`, the vhost's note last; see the Protocol."""
    with server.connect() as session:
        must_be_whole(session, manifest)
        turn = Turn(session, manifest)
        still()
        _open_user(session, turn.user())
        permissions.give_back(session, manifest, turn)
        note = marks.note(marks.of(turn.vhost()))
        if note == _NONE:
            session.delete("vhost-limits", manifest["vhost"], LIMIT)
        elif note is not None:
            session.put("vhost-limits", manifest["vhost"], LIMIT, value=int(note))
        vhost = turn.vhost()
        turn.write(vhost, marks.without(marks.of(vhost), marks.SHUT), last=True)


def limit(session: Session, manifest: Json) -> int | None:
    """How many connections the vhost may have; None is no limit."""
    for one in session.get("vhost-limits", manifest["vhost"]) or []:
        found: int | None = one.get("value", {}).get(LIMIT)
        return found
    return None


def shut_user(session: Session, manifest: Json, user: Json | None) -> None:
    """No password opens the user: its hash stays, and is read by another algorithm. Safe to repeat."""
    if user is None or is_shut(user):
        return
    if not identity.is_marked(user, manifest):
        raise Refused(f"user {manifest['user']!r} is not the one of this resource any more")
    tags = [*marks.without(marks.of(user), marks.SHUT), f"{marks.SHUT}{user['hashing_algorithm']}"]
    marks.write(session, "user", user, tags, hashing_algorithm=_other(user["hashing_algorithm"]))


def _open_user(session: Session, user: Json | None) -> None:
    """Where its password was changed in quarantine, the new one stays."""
    if user is None or marks.note(marks.of(user)) is None:
        return
    algorithm = marks.note(marks.of(user)) if is_shut(user) else user["hashing_algorithm"]
    marks.write(session, "user", user, marks.without(marks.of(user), marks.SHUT), hashing_algorithm=str(algorithm))


def is_shut(user: Json) -> bool:
    """Whether `shut_user` did it, and no person set another password since."""
    note = marks.note(marks.of(user))
    return note is not None and user["hashing_algorithm"] == _other(note)


def _other(algorithm: str) -> str:
    return _SHA256 if algorithm == _SHA512 else _SHA512


def must_be_whole(session: Session, manifest: Json) -> tuple[Json, Json | None]:
    """The vhost and its user. Raises Refused where they are not the manifest's, or not both there."""
    if not isinstance(identity.must_be_ours(session, manifest), Same):
        raise Refused("the vhost is no longer there")
    vhost, user = identity.read_vhost(session, manifest), identity.read_user(session, manifest)
    if vhost is None or (user is None and manifest["user"]):
        missing = f"vhost {manifest['vhost']!r}" if vhost is None else f"user {manifest['user']!r}"
        raise Refused(f"{missing} is no longer there: the server lost it, or a person removed it")
    return vhost, user
