"""Acts that are no job's: what people did in the installation, and what they changed of a resource."""

import datetime as dt
import uuid
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy import Connection

from outbox import tables
from outbox.events import Event
from outbox.queries.pages import Page, decode_cursor, page_of
from outbox.rows import Json

# As many changes of a resource as a person reads; its chain has all of them.
CHANGES = 50


@dataclass(frozen=True)
class Act:
    """One act: an event of the installation's chain, or a change of a resource. `seq` is its place in the chain."""

    id: int
    seq: int
    at: dt.datetime
    event: str
    actor: str
    reason: str | None
    detail: Json | None


_EVENT = tables.events.c
_ACTS = sa.select(*(_EVENT[name] for name in Act.__dataclass_fields__)).order_by(_EVENT.seq.desc())


def list_acts(
    db: Connection,
    *,
    since: dt.datetime | dt.timedelta | None = None,
    cursor: str | None = None,
    limit: int = 50,
) -> Page:
    """The installation's acts since a time, or within an interval, newest first. Raises BadCursor."""
    here = sa.select(tables.installation.c.id).scalar_subquery()
    query = _ACTS.where(_EVENT.resource_id == here)
    if since is not None:
        query = query.where(_EVENT.at >= (sa.func.now() - since if isinstance(since, dt.timedelta) else since))
    if cursor is not None:
        (last,) = decode_cursor(cursor, lambda last: (int(last),))
        query = query.where(_EVENT.seq < last)
    rows = [Act(**row._mapping) for row in db.execute(query.limit(limit + 1))]
    return page_of(rows, limit, lambda act: [act.seq])


def changes_of(db: Connection, resource_id: uuid.UUID) -> list[Act]:
    """The last changes of a resource, at most CHANGES, newest first."""
    query = _ACTS.where(_EVENT.resource_id == resource_id, _EVENT.event == Event.CHANGED).limit(CHANGES)
    return [Act(**row._mapping) for row in db.execute(query)]
