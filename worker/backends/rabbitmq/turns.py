"""Whose turn it is to change an object, since the management API knows no condition."""

import secrets

from outbox.errors import Refused, Transient
from outbox.rows import Json
from worker.backends.rabbitmq import identity, marks
from worker.backends.rabbitmq.session import Session


class Turn:
    """A worker's turn, written on the vhost: a tag with a number. The next worker writes its own over it.

    `vhost` and `user` read an object just before it is changed, and raise where the turn is another's. So a worker that
    stood still while another one took the object over changes nothing; but for one that stands still between that
    read and the change itself, a request later, which nothing at this API can keep from it.
    """

    def __init__(self, session: Session, manifest: Json) -> None:
        self._session, self._manifest = session, manifest
        # Of ten thousand numbers: a server keeps each different tag until it restarts.
        self._tag = f"{marks.TURN}{secrets.randbelow(10_000)}"
        record = _ours(session, manifest)
        self.write(record, marks.of(record))

    def vhost(self) -> Json:
        """The vhost as it is now. Raises Transient where another worker has its turn."""
        record = _ours(self._session, self._manifest)
        if marks.turn(marks.of(record)) != self._tag:
            raise Transient("another worker is at this vhost: it took it over")
        return record

    def user(self) -> Json | None:
        """The user as it is now, None when there is none."""
        record = identity.read_user(self._session, self._manifest)
        if record is not None and not identity.is_marked(record, self._manifest):
            raise Refused(f"user {self._manifest['user']!r} is not the one of this resource any more")
        self.vhost()
        return record

    def write(self, record: Json, tags: list[str], *, last: bool = False) -> None:
        """Replace the vhost's tags; `last`: the turn is over."""
        others = marks.without(tags, marks.TURN)
        marks.write(self._session, "vhost", record, others if last else [*others, self._tag])


def _ours(session: Session, manifest: Json) -> Json:
    record = identity.read_vhost(session, manifest)
    if record is None:
        raise Transient(f"vhost {manifest['vhost']!r} vanished while it was worked at")
    if not identity.is_marked(record, manifest):
        raise Refused(f"vhost {manifest['vhost']!r} is not the one of this resource any more")
    return record
