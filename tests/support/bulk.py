"""Operations step by step: what a worker would do of them, and what became of their items."""

from typing import Any

from sqlalchemy import Connection, text

from outbox import db as database
from outbox import jobs, operations, queries
from outbox.operations import DeleteFilter
from outbox.rows import Claim, Operation
from outbox.states import StuckReason
from tests.support.factories import job


def offboard(tenant: str = "acme", **words: Any) -> Operation:
    """The offboarding that its own preview found."""
    with database.snapshot() as session:
        seen = operations.preview_offboard(session, tenant)
    said = {"reason": "left", "actor": "op", "digest": seen.digest, "expected_count": seen.count}
    with database.transaction() as session:
        return operations.begin_offboard(session, tenant, **said | words)


def step(worker: str = "w") -> int:
    """One step now, whatever the pace; how many jobs it made pending."""
    with database.transaction() as session:
        session.execute(
            text("""UPDATE operations SET next_at = now() WHERE id = ANY(ARRAY(
                    SELECT id FROM operations WHERE finished_at IS NULL FOR UPDATE SKIP LOCKED))""")
        )
    with database.transaction() as session:
        return operations.advance(session, worker=worker)[0]


def claimed(db: Connection, id: int) -> Claim:
    """A worker's claim of the job."""
    return next(c for c in jobs.claim(db, {job(db, id).backend: 99}, slots=99, worker="w") if c.id == id)


def succeed(db: Connection, id: int) -> None:
    claim = claimed(db, id)
    jobs.start(db, claim, worker="w")
    jobs.complete(db, claim, worker="w", seen={"absent": True})


def stick(db: Connection, id: int, error: str = "still full") -> None:
    jobs.stick(db, claimed(db, id), worker="w", why=StuckReason.REFUSED, error=error)


def outcomes(db: Connection, operation: Operation) -> list[str | None]:
    asked = "SELECT outcome FROM operation_items WHERE operation_id = :id ORDER BY n"
    return list(db.execute(text(asked), {"id": operation.id}).scalars())


def now(db: Connection, operation: Operation) -> Operation:
    return queries.operation(db, operation.id)[0]


def begun_restore(wanted: DeleteFilter, **words: Any) -> Operation:
    """The bulk restore that its own preview found."""
    with database.snapshot() as session:
        digest = operations.preview_restore(session, wanted).digest
    with database.transaction() as session:
        return operations.begin_restore(session, wanted, **{"reason": "wrong", "actor": "op", "digest": digest} | words)
