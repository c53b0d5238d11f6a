"""One step of one operation, and its end."""

from dataclasses import fields

from sqlalchemy import Connection, text

from outbox.errors import AlreadyFinished, NotFound
from outbox.operations.offboard import offboard_step
from outbox.operations.redrive import redrive_step
from outbox.operations.selection import POLL_SECONDS
from outbox.rows import Operation
from outbox.states import OperationKind

_COLUMNS = ", ".join(f"operations.{f.name}" for f in fields(Operation))
# A step that is under way comes first, for it has the row; what it has done stays done.
_STOP = text(f"""
    WITH ended AS (
        UPDATE operations SET finished_at = now(), error = concat_ws('; ', error, CAST(:why AS text))
         WHERE id = :id AND finished_at IS NULL
     RETURNING {_COLUMNS}
    ), others AS (
        UPDATE operation_items AS item SET outcome = 'stopped'
          FROM ended WHERE item.operation_id = ended.id AND item.outcome IS NULL
    )
    SELECT * FROM ended""")


def stop(db: Connection, operation_id: int, *, actor: str, reason: str) -> Operation:
    """Have workers leave alone what an operation has not done yet; it ends `stopped`, and its error says who and why.

    What it has done goes on: only a hold stops jobs. Raises NotFound, AlreadyFinished.
    """
    row = db.execute(_STOP, {"id": operation_id, "why": f"stopped by {actor}: {reason}"}).one_or_none()
    if row is not None:
        return Operation(**row._mapping)
    state = db.execute(text("SELECT state FROM operations WHERE id = :id"), {"id": operation_id}).scalar_one_or_none()
    if state is None:
        raise NotFound(f"there is no operation {operation_id}")
    raise AlreadyFinished(f"operation {operation_id} has ended already: {state}")


# One that fails at each try must not stand before the others for ever: hence any of those that are due.
_TAKE = text("""
    SELECT id, kind, filter, reason, actor, rate FROM operations
     WHERE finished_at IS NULL AND next_at <= now()
     ORDER BY random() LIMIT 1
       FOR UPDATE SKIP LOCKED""")
# Until its canaries have succeeded, an operation has not ended well, even when there is nothing else to do.
_PACE = text("""
    UPDATE operations
       SET next_at = now() + :pause * interval '1 second',
           finished_at = CASE WHEN NOT EXISTS (
                                   SELECT FROM operation_items WHERE operation_id = :id AND outcome IS NULL)
                               AND NOT EXISTS (
                                   SELECT FROM operation_items AS canary JOIN outbox ON outbox.id = canary.job_id
                                    WHERE operation_id = :id AND canary AND outcome = 'redriven'
                                      AND outbox.state <> 'succeeded')
                         THEN now() END
     WHERE id = :id""")
_NEXT = text("""
    SELECT CAST(extract(epoch FROM min(next_at) - clock_timestamp()) AS float) FROM operations
     WHERE finished_at IS NULL""")


def advance(db: Connection, *, worker: str) -> tuple[int, float | None]:
    """One step of one operation that is due; how many jobs it made pending, and the seconds until the next step.

    None while no operation runs. `db` is a transaction's: the step is done as a whole, or not at all.
    """
    operation, moved = db.execute(_TAKE).one_or_none(), 0
    if operation is not None:
        match OperationKind(operation.kind):
            case OperationKind.REDRIVE:
                moved, pause = redrive_step(db, operation, worker)
            case OperationKind.OFFBOARD:
                moved, pause = offboard_step(db, operation, worker)
        db.execute(_PACE, {"id": operation.id, "pause": pause})
    wait = db.execute(_NEXT).scalar_one()
    return moved, None if wait is None else min(max(wait, 0.0), POLL_SECONDS)
