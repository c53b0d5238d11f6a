"""Tear a vhost down with its user, which cannot be undone."""

import time

from outbox.errors import Refused, Transient
from outbox.rows import Json
from worker.backends import Absent
from worker.backends.fleet import tell
from worker.backends.rabbitmq import connections, identity
from worker.backends.rabbitmq.create import LIMIT
from worker.backends.rabbitmq.session import DoubtError, Server, Session

# An import of old definitions, or a person, brings back what was just deleted; and a deletion may end half-way.
ROUNDS = 10
PAUSE_SECONDS = 0.5
DELETE_SECONDS = 120  # 1,000 queues took 3 s; the server stops a deletion whose caller hangs up
# What makes clients inside the server that connect again by themselves.
CLIENTS = ("shovel", "federation-upstream")


def teardown(server: Server, manifest: Json) -> Json:
    """Clients first, then the user, then the vhost with all in it, until the server says that neither is there.

    The API takes no condition: identity is read just before each deletion, and no name is ever used again.
    """
    identity.must_not_be_protected(server, manifest)
    with server.connect() as session:
        if isinstance(identity.must_be_ours(session, manifest), Absent):
            return {}
        done = {"connections_closed": 0, "queues": 0, "users_removed": 0, "vhosts_removed": 0}
        for number in range(ROUNDS):
            time.sleep(PAUSE_SECONDS if number else 0)
            identity.nodes(session, all_running=True)
            _destroy(session, manifest, done)
            if identity.read_vhost(session, manifest) is None and identity.read_user(session, manifest) is None:
                return done
    raise Transient(f"vhost {manifest['vhost']!r} or its user is there again after {ROUNDS} deletions: who makes it?")


def _destroy(session: Session, manifest: Json, done: Json) -> None:
    """One deletion of all that is there; `done` counts."""
    vhost = manifest["vhost"]
    if _there(session, manifest, "vhost"):
        session.put("vhost-limits", vhost, LIMIT, value=0)  # no client connects from now on, whoever it is
        done["connections_closed"] += connections.close(session, manifest)
        done["queues"] = max(done["queues"], _queues(session, vhost))
        tell(0, done["queues"], "queues")  # one call deletes them all
    if _there(session, manifest, "user"):  # before the vhost: a user that is left is working credentials
        done["users_removed"] += session.delete("users", manifest["user"])
    done["connections_closed"] += connections.close(session, manifest)
    for component in CLIENTS:
        for one in session.get("parameters", component, vhost) or []:
            session.delete("parameters", component, vhost, one["name"])
    if _there(session, manifest, "vhost"):
        try:
            done["vhosts_removed"] += session.delete("vhosts", vhost, seconds=DELETE_SECONDS)
        except DoubtError:  # it may be gone, half gone, or as it was: the next round sees
            return


def _there(session: Session, manifest: Json, word: str) -> bool:
    """Whether it is there, and ours, as of now. Raises Refused where it is another's."""
    record = (identity.read_vhost if word == "vhost" else identity.read_user)(session, manifest)
    if record is not None and not identity.is_marked(record, manifest):
        raise Refused(f"{word} {manifest[word]!r} is not the one of this resource any more")
    return record is not None


def _queues(session: Session, vhost: str) -> int:
    found = session.get("queues", vhost, columns="name", page="1", page_size="1")
    return int(found.get("total_count", 0)) if isinstance(found, dict) else 0
