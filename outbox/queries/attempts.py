"""A job's attempts, told from its events: an attempt is the events of one fence."""

import datetime as dt
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

from outbox.rows import Event, Json


@dataclass(frozen=True)
class Seen:
    """What an attempt saw of the backend before it acted, and when it had; None where it did not look."""

    before: Json | None
    after: Json | None


@dataclass(frozen=True)
class Attempt:
    """One claim of a job, told from its events. `outcome` is None while it runs."""

    fence: int
    worker: str
    claimed_at: dt.datetime
    started_at: dt.datetime | None
    finished_at: dt.datetime | None
    outcome: str | None
    error: str | None
    seen: Seen


_ENDINGS = {"completed", "activated", "retried", "deferred", "stuck", "rolled_back", "swept"}


def attempts(events: list[Event]) -> Iterator[tuple[Event, Event | None, Event | None]]:
    """Of a job's events, in order: each attempt's first, which is its claim, its start and its end, as far as it came.

    What a person or a latecomer did beside an attempt is no part of it.
    """
    course = [event for event in events if event.event in {"claimed", "started", *_ENDINGS}]
    for _, group in groupby(course, key=lambda event: event.fence):
        of_attempt = list(group)
        started = next((event for event in of_attempt if event.event == "started"), None)
        ended = next((event for event in of_attempt if event.event in _ENDINGS), None)
        yield of_attempt[0], started, ended


def _attempt(claimed: Event, started: Event | None, ended: Event | None) -> Attempt:
    return Attempt(
        fence=claimed.fence,
        worker=claimed.actor,
        claimed_at=claimed.at,
        started_at=started.at if started else None,
        finished_at=ended.at if ended else None,
        outcome=ended.event if ended else None,
        error=ended.reason if ended else None,
        seen=_seen(started, ended),
    )


def _seen(started: Event | None, ended: Event | None) -> Seen:
    before, after = (((event and event.detail) or {}) for event in (started, ended))
    last = after.get("seen") or after.get("manifest")
    # Without a start nothing was done between: the one look that there was is the one before.
    return Seen(before.get("seen"), last) if started else Seen(last, None)
