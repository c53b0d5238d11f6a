"""A backend whose server moved: its rows beside what the server shows, and the digest of what would be rewritten.

`backends rebind` compares by mark and generation, through a process that has the server's address. What was found is
not stored: a second comparison, under the hold of the rebind, must come to the same digest. The digest is of the
identities as they will be, so it stays the same while a rebind works, and after one that was killed.
"""

import hashlib
import json
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, Row, text
from sqlalchemy.exc import SQLAlchemyError

from outbox import holds, rewinds
from outbox.errors import BadRequest, Conflict
from outbox.memory import Memory
from outbox.rows import Json
from outbox.states import Found, ResourceStatus

# Resources that are read, and rewritten, at once.
PAGE = 100
# Of the advisory lock that one rebind at a time has; the number has no meaning.
_TURN = 4_702_119


class Verdict(StrEnum):
    """What a rebind does with an object.

    `rebind`: it is there, whole, and gets its new identity. `bound`: it has it already. `unmade`: its provision has not
    made it yet, and makes it on the new server. `differs`, `missing`: left as it is, for a person.
    """

    REBIND = "rebind"
    BOUND = "bound"
    UNMADE = "unmade"
    DIFFERS = "differs"
    MISSING = "missing"


REWRITTEN = (Verdict.REBIND, Verdict.UNMADE)


@dataclass(frozen=True)
class At:
    """Which server a backend is on, and what it remembers of this installation; `error`: why it could not be asked."""

    server: str | None = None
    memory: Memory | None = None
    keeps_memory: bool = False
    error: str = ""


@dataclass(frozen=True)
class Item:
    """One object: what its row has, and what the server shows. `now` is None where it is left as it is."""

    id: uuid.UUID
    tenant: str
    name: str
    status: ResourceStatus
    backend: str
    verdict: Verdict
    was: Json
    now: Json | None
    why: str


_ROWS = text("""
    SELECT id, tenant, name, status, kind, backend, manifest FROM resources
     WHERE backend = ANY(CAST(:backends AS text[])) AND status NOT IN ('deleted', 'released', 'abandoned')
       AND manifest IS NOT NULL
       AND (CAST(:after AS uuid) IS NULL OR id > CAST(:after AS uuid))
     ORDER BY id LIMIT :page""")


def page(db: Connection, backends: Sequence[str], after: uuid.UUID | None) -> Sequence[Row[Any]]:
    """The next resources of these backends that have, or may have, an object; in order of id."""
    return db.execute(_ROWS, {"backends": list(backends), "after": after, "page": PAGE}).all()


def judge(row: Row[Any], backend: str, found: Found, seen: Json) -> Item:
    """What becomes of a resource on `backend`, whose server shows this of its object."""
    now = seen.get("manifest")
    status = ResourceStatus(row.status)
    why = str(seen.get("why") or "")
    if found is Found.SAME and now is not None:
        verdict = Verdict.BOUND if (now, backend) == (row.manifest, row.backend) else Verdict.REBIND
    elif found is Found.ABSENT and now is not None and status is ResourceStatus.PROVISIONING:
        verdict = Verdict.BOUND if (now, backend) == (row.manifest, row.backend) else Verdict.UNMADE
    else:
        verdict, now = (Verdict.MISSING if found is Found.ABSENT else Verdict.DIFFERS), None
        why = why or "nothing on the server bears its name or its mark"
    return Item(row.id, row.tenant, row.name, status, row.backend, verdict, row.manifest, now, why)


def digest(backend: str, server: str | None, items: Iterable[Item]) -> str:
    """The number of objects that will be bound to this server, and SHA-256 of exactly what will be: see the module."""
    lines, count = hashlib.sha256(json.dumps([backend, server]).encode()), 0
    for item in items:
        count += item.now is not None
        said = item.verdict if item.now is None else "bound"
        lines.update(json.dumps([str(item.id), said, item.now], sort_keys=True).encode() + b"\n")
    return f"{count}-{lines.hexdigest()}"


@contextmanager
def one_at_a_time(db: Connection) -> Iterator[None]:
    """Keep other rebinds out meanwhile; `db` stays with this one. Raises Conflict where another one runs."""
    if not db.execute(text("SELECT pg_try_advisory_lock(:turn)"), {"turn": _TURN}).scalar_one():
        raise Conflict("another `deprovisioner backends rebind` is running: wait for its end")
    try:
        yield
    finally:
        with suppress(SQLAlchemyError):  # a connection that was lost has left the lock already
            db.execute(text("SELECT pg_advisory_unlock(:turn)"), {"turn": _TURN})


_OTHER_KIND = text("""
    SELECT kind FROM resources
     WHERE backend = ANY(CAST(:backends AS text[])) AND status NOT IN ('deleted', 'released', 'abandoned')
       AND kind <> :kind LIMIT 1""")
_HOLDS = text("""
    SELECT id FROM holds WHERE released_at IS NULL AND scope = 'backend' AND subject = :before AND cause <> 'rebind'
     ORDER BY id LIMIT 1""")


def refuse_unfit(db: Connection, backend: str, kind: str, before: str | None) -> None:
    """Raise BadRequest where the rows are of another kind, or Conflict where a hold would be left behind."""
    other = db.execute(_OTHER_KIND, {"backends": [backend, before or backend], "kind": kind}).scalar_one_or_none()
    if other is not None:
        raise BadRequest(f"backend {backend!r} is of kind {kind!r}, and there are resources of kind {other!r}")
    if before is None:
        return
    if not holds.in_use(db, before):
        raise BadRequest(f"--from {before}: no resource is on a backend of this name; check the name")
    if hold := db.execute(_HOLDS, {"before": before}).scalar_one_or_none():
        raise Conflict(
            f"hold {hold} on backend {before!r} would not cover {backend!r}: set the same hold on {backend!r} "
            f"(`deprovisioner hold set --backend {backend}`), then release hold {hold}"
        )


_AT_WORK = text("""
    SELECT id, lease_expires_at FROM outbox
     WHERE state = 'running' AND backend = ANY(CAST(:backends AS text[])) AND lease_expires_at > clock_timestamp()
     ORDER BY lease_expires_at DESC LIMIT 1""")


def at_work(db: Connection, backends: Sequence[str]) -> Row[Any] | None:
    """A job that still runs on one of these backends, with the end of its lease; None where none does."""
    return db.execute(_AT_WORK, {"backends": list(backends)}).one_or_none()


def behind(here: rewinds.Here, backend: str, at: At) -> bool:
    """Whether the server remembers less than was written to this backend: it went back in time, as a dump does."""
    written = here.written.get(backend)
    return at.memory is not None and written is not None and at.memory.least < written


_FORGET = text("DELETE FROM memories WHERE place = :before")


def settle(db: Connection, backends: Sequence[str], remembered: tuple[Memory, str | None] | None) -> None:
    """The backend's memory is that of the new server from now on, where that has taken one.

    `backends`: the backend, and after it the name that its rows had, which no place has any more.
    """
    if remembered is not None:
        rewinds.moved(db, backends[0], remembered[0], server=remembered[1])
    for before in backends[1:]:
        db.execute(_FORGET, {"before": before})
