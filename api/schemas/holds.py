"""Holds and breakers."""

import datetime as dt

from pydantic import BaseModel

from api.schemas.fields import Cursor, Limit, Word, _In
from outbox.holds import Hold
from outbox.states import BreakerState, HoldCause, HoldScope


class NewHold(_In):
    """What to hold. `subject` names the backend, tenant or kind; a global hold has none."""

    scope: HoldScope
    subject: Word | None = None
    reason: Word


class HoldFilter(_In):
    """Which holds to list."""

    released: bool = False
    cursor: Cursor = None
    limit: Limit = 50


class HoldOut(BaseModel):
    """A hold; in force until `released_at`."""

    id: int
    scope: HoldScope
    subject: str | None
    cause: HoldCause
    reason: str
    actor: str
    created_at: dt.datetime
    released_at: dt.datetime | None
    released_by: str | None
    release_reason: str | None

    @classmethod
    def of(cls, row: Hold) -> "HoldOut":
        """From its row."""
        return cls(**vars(row))


class HoldPage(BaseModel):
    """One page of holds."""

    items: list[HoldOut]
    next_cursor: str | None


class BreakerOut(BaseModel):
    """A backend that workers cannot reach: since when, why, and how many jobs wait for it."""

    backend: str
    state: BreakerState
    since: dt.datetime
    why: str
    failures: int
    retry_at: dt.datetime
    waiting: int


class BreakerPage(BaseModel):
    """All open breakers, on one page: there are at most as many as backends."""

    items: list[BreakerOut]
    next_cursor: None = None
