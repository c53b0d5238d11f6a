"""Acts that are no job's transition, as events: what happened to holds, tokens, operations and the installation itself.

Such an event has no job, and stands in the chain of the installation's id. An act writes it in its own statement, so
that one is never committed without the other. A changed resource has its event in its own chain (`resources.change`).
"""

import json

from sqlalchemy import Connection, text

from outbox.events import Event
from outbox.rows import Json


def noted(act: str, event: str, *, actor: str, reason: str, detail: str) -> str:
    """The CTEs that write the event of the one row of the CTE `act`; where that has no row, they write nothing.

    `actor`, `reason` and `detail` are SQL over this row. The installation's row is made when it is first needed, and
    locked: acts take turns until they commit. A statement has these CTEs last, after all its locks.
    """
    return f"""here AS (
        INSERT INTO installation (one) SELECT true FROM {act}
            ON CONFLICT (one) DO UPDATE SET one = installation.one
     RETURNING id AS installation_id
    ), noted AS (
        INSERT INTO events (resource_id, fence, event, actor, reason, detail)
        SELECT installation_id, 0, {event}, {actor}, {reason}, {detail} FROM {act}, here
     RETURNING id
    )"""


_NOTE = text(f"""
    WITH act AS (
        SELECT CAST(:event AS text) AS event, CAST(:actor AS text) AS actor, CAST(:reason AS text) AS reason,
               CAST(:detail AS jsonb) AS detail
    ), {noted("act", "event", actor="actor", reason="reason", detail="detail")}
    SELECT id FROM noted""")


def note(db: Connection, event: Event, *, actor: str, reason: str | None, detail: Json) -> int:
    """Write the event of an act that has no statement of its own, in the act's transaction; returns the event's id."""
    asked = {"event": event, "actor": actor, "reason": reason, "detail": json.dumps(detail)}
    return int(db.execute(_NOTE, asked).scalar_one())
