"""The connections into a vhost, and those of its user: closed, all of them."""

from collections.abc import Iterator

from outbox.errors import Transient
from outbox.rows import Json
from worker.backends.rabbitmq import permissions
from worker.backends.rabbitmq.session import Session

ROUNDS = 100


def close(session: Session, manifest: Json) -> int:
    """Close what is there until nothing else appears; how many that were. New ones must be kept out already.

    A connection that was told to close has lost its channels by the time of the server's answer, and can do nothing
    more; one whose client does not listen stays listed for half a minute.
    """
    told: set[str] = set()
    for _ in range(ROUNDS):
        new = set(_open(session, manifest)) - told
        if not new:
            return len(told)
        for name in new:
            session.delete("connections", name)
        told |= new
    raise Transient(f"clients keep connecting to vhost {manifest['vhost']!r}: {len(told)} connections were closed")


def _open(session: Session, manifest: Json) -> Iterator[str]:
    """The names of the connections, some twice.

    The list of a vhost is five seconds behind, that of a user is not. So both are asked: users are those who may open
    the vhost, or are in it by that list.
    """
    vhost = manifest["vhost"]
    listed = session.get("vhosts", vhost, "connections", columns="name,user") or []
    yield from (one["name"] for one in listed)
    users = permissions.users(session, vhost) | {one.get("user") or "" for one in listed} | {manifest["user"] or ""}
    for user in sorted(users - {""}):
        for one in session.get("connections", "username", user) or []:
            if one.get("vhost") == vhost or user == manifest["user"]:
                yield one["name"]
