"""What users may do in a vhost, taken away in quarantine and given back: that of every user, as they log in anywhere.

What was taken is kept on the server, as topic permissions of a user who has no password and no permission. Only
administrators can read or change these, they take expressions of any length, and they go with the vhost.
"""

from collections.abc import Iterator

from outbox.rows import Json
from worker.backends.rabbitmq.session import OURS, Session
from worker.backends.rabbitmq.turns import Turn

KEEPER = f"{OURS}kept"
# A permission has three expressions; a topic permission has two, and an exchange's name: two of these keep one.
_FIRST, _SECOND = "1 ", "2 "


def take(session: Session, manifest: Json, turn: Turn) -> None:
    """Nobody may do anything in the vhost, not by the management API either. Safe to repeat."""
    vhost = manifest["vhost"]
    found: list[Json] = session.get("vhosts", vhost, "permissions") or []
    if found and session.get("users", KEEPER) is None:
        session.put("users", KEEPER, password_hash="", tags=[])
    for one in found:
        turn.vhost()
        _keep(session, vhost, exchange=f"{_FIRST}{one['user']}", write=one["configure"], read=one["write"])
        _keep(session, vhost, exchange=f"{_SECOND}{one['user']}", write=one["read"], read="")
        session.delete("permissions", vhost, one["user"])


def give_back(session: Session, manifest: Json, turn: Turn) -> None:
    """What `take` took, but to users who are gone or were given another permission since. Safe to repeat."""
    vhost = manifest["vhost"]
    kept = {one["exchange"]: one for one in _kept(session, vhost)}
    have = {one["user"] for one in session.get("vhosts", vhost, "permissions") or []}
    for name, first in kept.items():
        user = name.removeprefix(_FIRST)
        second = kept.get(f"{_SECOND}{user}")
        if name.startswith(_FIRST) and second and user not in have and session.get("users", user) is not None:
            turn.vhost()
            words = {"configure": first["write"], "write": first["read"], "read": second["write"]}
            session.put("permissions", vhost, user, **words)
    if kept:
        turn.vhost()
        session.delete("topic-permissions", vhost, KEEPER)


def users(session: Session, vhost: str) -> set[str]:
    """Who may open the vhost, or might before `take`."""
    may = {one["user"] for one in session.get("vhosts", vhost, "permissions") or []}
    return may | {
        one["exchange"].removeprefix(_FIRST) for one in _kept(session, vhost) if one["exchange"][:2] == _FIRST
    }


def _keep(session: Session, vhost: str, **words: str) -> None:
    session.put("topic-permissions", vhost, KEEPER, **words)


def _kept(session: Session, vhost: str) -> Iterator[Json]:
    found: list[Json] = session.get("vhosts", vhost, "topic-permissions") or []
    return (one for one in found if one["user"] == KEEPER)
