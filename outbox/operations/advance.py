"""The next step of an operation, and its end."""

from dataclasses import fields
from typing import assert_never

from sqlalchemy import Connection, text

from outbox import rewinds
from outbox.errors import AlreadyFinished, NotFound
from outbox.events import Event
from outbox.operations.adopt import adopt_step, preview_step
from outbox.operations.offboard import offboard_step
from outbox.operations.redrive import redrive_step
from outbox.operations.restore import restore_step
from outbox.operations.selection import POLL_SECONDS, noted
from outbox.rows import Operation
from outbox.states import OperationKind

_COLUMNS = ", ".join(f"operations.{f.name}" for f in fields(Operation))
_STOPPED = noted(
    "done",
    Event.OPERATION_STOPPED,
    actor="CAST(:actor AS text)",
    reason="CAST(:reason AS text)",
    more="jsonb_build_object('left_alone', left_alone)",
)
# This waits for a step that is under way, which has locked the row; what that step has done stays done. The event comes
# last: stopping many items takes seconds, and until the event is committed other acts wait.
_STOP = text(f"""
    WITH ended AS (
        UPDATE operations SET finished_at = now(), error = concat_ws('; ', error, CAST(:why AS text))
         WHERE id = :id AND finished_at IS NULL
     RETURNING {_COLUMNS}
    ), others AS (
        UPDATE operation_items AS item SET outcome = 'stopped'
          FROM ended WHERE item.operation_id = ended.id AND item.outcome IS NULL
     RETURNING item.n
    ), done AS (
        SELECT ended.*, (SELECT count(*) FROM others) AS left_alone FROM ended
    ), {_STOPPED}
    SELECT * FROM ended""")


def stop(db: Connection, operation_id: int, *, actor: str, reason: str) -> Operation:
    """End an operation as `stopped`: its waiting items are left alone, and its error says who stopped it and why.

    Jobs that it has already made pending go on: only a hold stops jobs. Raises NotFound, AlreadyFinished.
    """
    row = db.execute(
        _STOP, {"id": operation_id, "why": f"stopped by {actor}: {reason}", "actor": actor, "reason": reason}
    ).one_or_none()
    if row is not None:
        return Operation.read(row)
    state = db.execute(text("SELECT state FROM operations WHERE id = :id"), {"id": operation_id}).scalar_one_or_none()
    if state is None:
        raise NotFound(f"there is no operation {operation_id}")
    raise AlreadyFinished(f"operation {operation_id} has already ended; its state is {state}")


# ORDER BY random(): an operation whose step fails each time must not block the others for ever.
_TAKE = text(f"""
    SELECT id, kind, filter, reason, actor, rate FROM operations
     WHERE finished_at IS NULL AND next_at <= now()
       AND {rewinds.GOES_ON}
     ORDER BY random() LIMIT 1
       FOR UPDATE SKIP LOCKED""")
# An operation ends only when its canaries have succeeded too, even when no item waits any more.
_PACE = text("""
    UPDATE operations
       SET next_at = now() + :pause * interval '1 second',
           finished_at = CASE WHEN :whole AND NOT EXISTS (
                                   SELECT FROM operation_items WHERE operation_id = :id AND outcome IS NULL)
                               AND NOT EXISTS (
                                   SELECT FROM operation_items AS canary JOIN outbox ON outbox.id = canary.job_id
                                    WHERE operation_id = :id AND canary AND outcome IN ('redriven', 'restoring')
                                      AND outbox.state <> 'succeeded')
                         THEN now() END
     WHERE id = :id""")
_NEXT = text("""
    SELECT CAST(extract(epoch FROM min(next_at) - clock_timestamp()) AS float) FROM operations
     WHERE finished_at IS NULL""")


def advance(db: Connection, *, worker: str) -> tuple[int, float | None]:
    """Do one step of one operation that is due; returns how many jobs it made pending, and the seconds to the next.

    The seconds are None when no operation is running. `db` must be a transaction: the step is done whole or not at all.
    """
    operation, moved, whole = db.execute(_TAKE).one_or_none(), 0, True
    if operation is not None:
        match OperationKind(operation.kind):
            case OperationKind.REDRIVE:
                moved, pause = redrive_step(db, operation, worker)
            case OperationKind.OFFBOARD:
                moved, pause = offboard_step(db, operation, worker)
            case OperationKind.RESTORE:
                moved, pause = restore_step(db, operation, worker)
            case OperationKind.ADOPT_PREVIEW:
                whole, pause = preview_step(db, operation)
            case OperationKind.ADOPT:
                moved, pause = adopt_step(db, operation, worker)
            case never:
                assert_never(never)
        db.execute(_PACE, {"id": operation.id, "pause": pause, "whole": whole})
    wait = db.execute(_NEXT).scalar_one()
    return moved, None if wait is None else min(max(wait, 0.0), POLL_SECONDS)
