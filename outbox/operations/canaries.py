"""Canaries: one item of each backend goes first; the backend's other items follow when its job has succeeded."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Row, text

# The outcomes of an item whose job is at work.
_BEGUN = "outcome IN ('redriven', 'restoring')"
# When a canary has ended without success, the other items of its backend are left alone; other backends go on.
_JUDGE = text(f"""
    WITH bad AS (
        UPDATE operation_items AS item SET outcome = 'failed'
          FROM outbox
         WHERE operation_id = :id AND canary AND {_BEGUN}
           AND outbox.id = item.job_id AND outbox.state IN ('stuck', 'cancelled')
     RETURNING item.backend, item.job_id, outbox.state AS ended, outbox.last_error
    ), others AS (
        UPDATE operation_items AS item SET outcome = 'stopped'
          FROM bad
         WHERE item.operation_id = :id AND item.backend = bad.backend AND item.outcome IS NULL
    )
    UPDATE operations
       SET error = concat_ws('; ', error, (
               SELECT string_agg(format('backend %s: job %s, %s first, ended %s: %s', backend, job_id,
                                        CASE operations.kind WHEN 'restore' THEN 'restored' ELSE 're-driven' END, ended,
                                        coalesce(last_error, 'no error was recorded')), '; ' ORDER BY backend)
                 FROM bad))
     WHERE id = :id AND EXISTS (SELECT FROM bad)""")
# A canary that was skipped (an operator had moved its job on) proves nothing: the backend's next item that is still
# as it was listed becomes the canary. If there is none, all items of the backend are skipped.
_REPLACE = """
    WITH lost AS (
        SELECT backend FROM operation_items
         WHERE operation_id = :id AND canary
         GROUP BY backend HAVING bool_and(outcome IS NOT DISTINCT FROM 'skipped')
    ), successor AS (
        SELECT DISTINCT ON (item.backend) item.backend, n
          FROM operation_items AS item
          JOIN lost ON lost.backend = item.backend
          JOIN outbox ON outbox.id = item.job_id
         WHERE operation_id = :id AND outcome IS NULL AND {as_listed}
         ORDER BY item.backend, n
    )
    UPDATE operation_items AS item
       SET canary = successor.n IS NOT NULL,
           outcome = CASE WHEN successor.n IS NULL THEN 'skipped' END
      FROM lost LEFT JOIN successor ON successor.backend = lost.backend
     WHERE operation_id = :id AND item.backend = lost.backend AND outcome IS NULL
       AND item.n = coalesce(successor.n, item.n)"""
_ELIGIBLE = text(f"""
    SELECT n, job_id, fence, resource_id FROM operation_items
     WHERE operation_id = :id AND outcome IS NULL
       AND (canary OR backend IN (
            SELECT item.backend FROM operation_items AS item JOIN outbox ON outbox.id = item.job_id
             WHERE operation_id = :id AND canary AND {_BEGUN} AND outbox.state = 'succeeded'))
     ORDER BY canary DESC, n LIMIT :batch""")


def eligible(db: Connection, operation_id: int, *, as_listed: str, batch: int) -> Sequence[Row[Any]]:
    """The next items, at most `batch` of them, after the canaries were judged, and replaced where they were skipped.

    `as_listed` is the condition on `item` and its job in `outbox` that makes an item a canary's successor.
    """
    mine = {"id": operation_id}
    db.execute(_JUDGE, mine)
    db.execute(text(_REPLACE.format(as_listed=as_listed)), mine)
    return db.execute(_ELIGIBLE, mine | {"batch": batch}).all()
