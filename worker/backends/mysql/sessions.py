"""Ends the sessions of customers, and sees them end."""

import time

from outbox.errors import Transient
from worker.backends.mysql import registry
from worker.backends.mysql.session import Session

END_SECONDS = 10.0  # a killed session first rolls its transaction back
_OF_USER = "SELECT ID, COMMAND FROM information_schema.PROCESSLIST WHERE BINARY USER = %s AND ID <> CONNECTION_ID()"
_INSIDE = """
    SELECT ID, COMMAND FROM information_schema.PROCESSLIST
     WHERE BINARY DB = %s AND BINARY USER = %s AND ID <> CONNECTION_ID()"""


def end_user(session: Session, user: str) -> None:
    """End every session of a user, at whatever host; an event of the user's runs as a session too."""
    _end(session, _OF_USER, (user,), f"of {user!r}")


def end_inside(session: Session, database: str, user: str) -> None:
    """End the sessions of another user that have entered this schema: those keep their rights until they leave it."""
    if user in session.server.protected_users:
        return
    _end(session, _INSIDE, (database, user), f"of {user!r} in {database!r}")


def _end(session: Session, question: str, values: tuple[str, ...], whose: str) -> None:
    deadline, ended = time.monotonic() + END_SECONDS, 0
    while found := session.ask(question, *values):
        alive = [number for number, command in found if command != "Killed"]
        for number in alive:
            registry.kill(session, number)
        ended += len(alive)
        if time.monotonic() > deadline:
            raise Transient(
                f"session {found[0][0]} {whose} does not end: it may be rolling back; {len(found)} are left"
            )
        time.sleep(0.01)
    if ended:
        session.tell(f"ended {ended} sessions {whose}")
