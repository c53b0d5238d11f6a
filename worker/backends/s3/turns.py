"""Whose turn it is to change a bucket's policy: S3 cannot compare a policy and change it in one step.

An object of the service's own bucket says which verb came last. `quarantine` and `release` each take the turn first, so
that a worker that stood still at the other one finds it lost, before its change or after it.
"""

import json
import uuid
from dataclasses import asdict, dataclass

from outbox.errors import OutOfService, Transient
from outbox.rows import Json
from worker.backends.s3.session import Session

_TURNS = "deprovisioner/turns/"
_LONGEST = 300


@dataclass(frozen=True)
class Turn:
    """One verb of one worker; `at` is like no other."""

    verb: str
    at: str


def take(session: Session, manifest: Json, verb: str) -> Turn:
    """Take the turn, whoever has it."""
    turn = Turn(verb, str(uuid.uuid4()))
    session.write(_key(manifest), json.dumps(asdict(turn)))
    return turn


def current(session: Session, manifest: Json) -> Turn | None:
    """Whose turn it is; None where a teardown has ended it."""
    written, _ = session.read(_key(manifest), _LONGEST)
    if written is None:
        return None
    try:
        return Turn(**json.loads(written))
    except (ValueError, TypeError):
        raise OutOfService(f"object {_key(manifest)!r} of the service's own bucket is not what was put there") from None


def must_have(session: Session, manifest: Json, turn: Turn) -> None:
    """Raises Transient where another worker has taken the turn meanwhile."""
    if current(session, manifest) != turn:
        raise Transient(f"another worker changes bucket {manifest['bucket']!r} meanwhile; trying again")


def end(session: Session, manifest: Json) -> None:
    """Take the turn from everybody; nobody's turn comes after it."""
    session.remove(_key(manifest))


def _key(manifest: Json) -> str:
    return f"{_TURNS}{manifest['bucket']}"
