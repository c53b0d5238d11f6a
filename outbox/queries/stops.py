"""What keeps jobs from starting: holds in force and open breakers."""

import datetime as dt
from dataclasses import dataclass, fields

import sqlalchemy as sa
from sqlalchemy import Connection, text

from outbox import tables
from outbox.holds import Hold
from outbox.queries.pages import Page, decode_cursor, page_of
from outbox.states import BreakerState


def list_holds(db: Connection, *, released: bool = False, cursor: str | None = None, limit: int = 50) -> Page:
    """Holds in force, or with `released` also the released ones; newest first. Raises BadCursor."""
    query = sa.select(*(tables.holds.c[field.name] for field in fields(Hold)))
    if not released:
        query = query.where(tables.holds.c.released_at.is_(None))
    if cursor is not None:
        (last,) = decode_cursor(cursor, lambda last: (int(last),))
        query = query.where(tables.holds.c.id < last)
    rows = [Hold.read(row) for row in db.execute(query.order_by(tables.holds.c.id.desc()).limit(limit + 1))]
    return page_of(rows, limit, lambda hold: [hold.id])


@dataclass(frozen=True)
class Breaker:
    """A backend that is out of reach. `half_open`: its pause is over, and the next claim is the probe."""

    backend: str
    state: BreakerState
    since: dt.datetime
    why: str
    failures: int
    retry_at: dt.datetime
    waiting: int


_BREAKERS = text("""
    SELECT backend, CASE WHEN retry_at > now() THEN 'open' ELSE 'half_open' END AS state,
           opened_at AS since, reason AS why, failures, retry_at,
           (SELECT count(*) FROM outbox WHERE state = 'pending' AND outbox.backend = breakers.backend) AS waiting
      FROM breakers WHERE CAST(:backend AS text) IS NULL OR backend = :backend
     ORDER BY opened_at, backend""")


def list_breakers(db: Connection, backend: str | None = None) -> list[Breaker]:
    """The backends that are out of reach, or only this one, and how many jobs wait for each; longest outage first."""
    rows = db.execute(_BREAKERS, {"backend": backend})
    return [Breaker(**{**row._mapping, "state": BreakerState(row.state)}) for row in rows]
