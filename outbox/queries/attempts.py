"""A job's attempts, made from its events: an attempt is the events of one fence."""

import datetime as dt
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

from outbox.events import ENDS_ATTEMPT, Event
from outbox.rows import Evidence, Json


@dataclass(frozen=True)
class Seen:
    """What an attempt saw when it inspected the backend before and after it acted; None where it did not inspect."""

    before: Json | None
    after: Json | None


@dataclass(frozen=True)
class Attempt:
    """One claim of a job and its end. `outcome` is None while the attempt runs."""

    fence: int
    worker: str
    claimed_at: dt.datetime
    started_at: dt.datetime | None
    finished_at: dt.datetime | None
    outcome: str | None
    error: str | None
    seen: Seen


def attempts(events: list[Evidence]) -> Iterator[tuple[Evidence, Evidence | None, Evidence | None]]:
    """The claim, the start and the end of each attempt, from a job's events in order; None for what did not happen.

    Events of operators and late reports are left out.
    """
    course = [event for event in events if event.event in (Event.CLAIMED, Event.STARTED, *ENDS_ATTEMPT)]
    for _, group in groupby(course, key=lambda event: event.fence):
        of_attempt = list(group)
        started = next((event for event in of_attempt if event.event == Event.STARTED), None)
        ended = next((event for event in of_attempt if event.event in ENDS_ATTEMPT), None)
        yield of_attempt[0], started, ended


def attempt_of(claimed: Evidence, started: Evidence | None, ended: Evidence | None) -> Attempt:
    """The attempt of these three events, of which `attempts` has found those that exist."""
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


def _seen(started: Evidence | None, ended: Evidence | None) -> Seen:
    before, after = (((event and event.detail) or {}) for event in (started, ended))
    last = after.get("seen") or after.get("manifest")
    # Without a start the attempt did not act, so its only inspection counts as the one before.
    return Seen(before.get("seen"), last) if started else Seen(last, None)
