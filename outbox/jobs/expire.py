"""() -> pending: what has passed its `expires_at`, and neither is protected nor waits for a hold."""

import datetime as dt
import uuid

from sqlalchemy import Connection, text

from outbox import rewinds, settings
from outbox.jobs._sql import _skip_locked
from outbox.jobs.enqueue import _NO_HOLD, _config, _enqueue
from outbox.rows import Json

# Where a listing of the due rows goes on: the last one's `expires_at` and id.
Due = tuple[dt.datetime, uuid.UUID]

# The oldest rows that are due, from the cursor on; and the rows of them that a statement looks at. Those that wait for
# a hold stay due, and with a bound they cost a sweep some tens of milliseconds, however many they are.
_DUE = """status = 'active' AND expires_at <= now()
                           AND (expires_at, id) > (CAST(:after AS timestamptz), CAST(:after_id AS uuid))
                         ORDER BY expires_at, id"""
DUE_ROWS = 10_000
# It skips what is locked, so it never waits between its snapshot, which has the holds, and its end.
_EXPIRE = text(
    _enqueue(
        f"""
        SELECT due.id, CAST(:actor AS text) AS actor, 'expired' AS reason, CAST(:request_id AS uuid) AS request_id,
               CAST(NULL AS text) AS detail, CAST(NULL AS float8) AS grace, CAST(NULL AS text) AS snapshot,
               false AS may_purge
          FROM (SELECT id
                  FROM (SELECT * FROM resources
                         WHERE {_DUE} LIMIT :rows) AS resources
                 WHERE NOT protected AND {_NO_HOLD}
                   AND {rewinds.GOES_ON}) AS due
         CROSS JOIN LATERAL (SELECT FROM resources WHERE resources.id = due.id {_skip_locked("due.id")}) AS locked
         LIMIT :batch""",
        "status = 'active' AND expires_at <= now()",
    )
)


def expire(db: Connection, *, actor: str, batch: int = 100, after: Due | None = None, rows: int = DUE_ROWS) -> int:
    """() -> pending, for at most `batch` active resources past their `expires_at`; returns how many.

    It looks at the first `rows` that are due behind `after`, and leaves those that are protected or that a hold covers.
    """
    asked = {"actor": actor, "max_attempts": settings.get().max_attempts, "request_id": uuid.uuid4(), "batch": batch}
    return len(db.execute(_EXPIRE, asked | _config() | _from(after) | {"rows": rows}).all())


_LAST_DUE = text(f"""
    SELECT expires_at, id FROM resources WHERE {_DUE} OFFSET :rows - 1 LIMIT 1""")


def last_due(db: Connection, *, after: Due | None = None, rows: int = DUE_ROWS) -> Due | None:
    """The last of the rows that `expire` looks at, where the next ones begin; None when they are fewer than `rows`."""
    row = db.execute(_LAST_DUE, _from(after) | {"rows": rows}).one_or_none()
    return None if row is None else (row.expires_at, row.id)


def _from(after: Due | None) -> Json:
    at, id = after or ("-infinity", uuid.UUID(int=0))
    return {"after": at, "after_id": id}
