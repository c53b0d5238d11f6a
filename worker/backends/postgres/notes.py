"""What was there before a quarantine: a note in the object's comment, written by the transaction that changes it.

So a quarantine that dies after any statement has left either both or neither, and a release gives back what was there.
Only an administrator of the object can write its comment.
"""

import re
from collections.abc import Sequence

from psycopg2 import sql

from outbox.rows import Json
from worker.backends import mark
from worker.backends.postgres.session import Session

LOGIN = ("NOLOGIN", "LOGIN")
CONNECTIONS = ("ALLOW_CONNECTIONS false", "ALLOW_CONNECTIONS true")
_NOTE = "[closed by deprovisioner; before: {}] "


def before(comment: str | None, manifest: Json, clauses: Sequence[str]) -> str | None:
    """The one of these clauses that gives back what was there; None where no quarantine has noted any."""
    found = _found(comment, manifest, clauses)
    return found[1] if found else None


def put(session: Session, what: str, name: str, comment: str | None, manifest: Json, clause: str) -> None:
    """Write the clause in front of the mark; `what` is DATABASE or ROLE. In a transaction."""
    ours = mark(manifest["generation"])
    _comment(session, what, name, (comment or "").removesuffix(ours) + _NOTE.format(clause) + ours)


def take_off(
    session: Session, what: str, name: str, comment: str | None, manifest: Json, clauses: Sequence[str]
) -> None:
    """Make the comment what it was before `put`. In a transaction."""
    if found := _found(comment, manifest, clauses):
        _comment(session, what, name, found.string[: found.start()] + mark(manifest["generation"]))


def _comment(session: Session, what: str, name: str, comment: str) -> None:
    session.execute(f"COMMENT ON {what} {{name}} IS {{comment}}", name=name, comment=sql.Literal(comment))


def _found(comment: str | None, manifest: Json, clauses: Sequence[str]) -> "re.Match[str] | None":
    note = re.escape(_NOTE).replace(re.escape("{}"), f"({'|'.join(clauses)})")
    return re.search(note + re.escape(mark(manifest["generation"])) + r"\Z", comment or "")
