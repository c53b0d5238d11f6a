"""A job's attempts, made from its events: an attempt is the events of one fence."""

import datetime as dt
from dataclasses import dataclass
from itertools import groupby

from outbox.events import ENDS_ATTEMPT, Event
from outbox.rows import Evidence, Json
from outbox.states import Step


@dataclass(frozen=True)
class Seen:
    """What an attempt saw when it inspected the backend before and after it acted; None where it did not inspect."""

    before: Json | None
    after: Json | None


@dataclass(frozen=True)
class Attempt:
    """One claim of a job and its end. `outcome` is None while the attempt runs; `step` is a teardown's."""

    fence: int
    step: Step | None
    worker: str
    claimed_at: dt.datetime
    started_at: dt.datetime | None
    finished_at: dt.datetime | None
    outcome: str | None
    error: str | None
    seen: Seen


@dataclass(frozen=True)
class Course:
    """The events of one attempt; None for what did not happen."""

    claimed: Evidence
    started: Evidence | None
    ended: Evidence | None
    step: Step | None


_ENDS_STEP = {Event.QUARANTINED: Step.QUARANTINE, Event.SNAPSHOT_VERIFIED: Step.SNAPSHOT}


def attempts(events: list[Evidence], step: Step | None) -> list[Course]:
    """The attempts of a job, from its events in order and the step that it is at.

    Events of operators and late reports are left out.
    """
    course = [event for event in events if event.event in (Event.CLAIMED, Event.STARTED, *ENDS_ATTEMPT)]
    found = []
    # The waiting is nobody's work: who claims what has waited destroys it.
    at: Step | None = Step.DESTROY if step is Step.WAIT else step
    for _, group in reversed([(fence, list(group)) for fence, group in groupby(course, key=lambda event: event.fence)]):
        claimed = next((event for event in group if event.event == Event.CLAIMED), None)
        if claimed is None:  # cancelled before it was ever claimed
            continue
        started = next((event for event in group if event.event == Event.STARTED), None)
        ended = next((event for event in group if event.event in ENDS_ATTEMPT), None)
        at = _ENDS_STEP.get(Event(ended.event), at) if ended else at
        found.append(Course(claimed, started, ended, at))
    return found[::-1]


def attempt_of(course: Course) -> Attempt:
    """The attempt that had this course."""
    claimed, started, ended = course.claimed, course.started, course.ended
    return Attempt(
        fence=claimed.fence,
        step=course.step,
        worker=claimed.actor,
        claimed_at=claimed.at,
        started_at=started.at if started else None,
        finished_at=ended.at if ended else None,
        outcome=ended.event if ended else None,
        # Of a cancelled attempt the event has the reason of who took the teardown back.
        error=ended.reason if ended and ended.event != Event.CANCELLED else None,
        seen=_seen(started, ended),
    )


def _seen(started: Evidence | None, ended: Evidence | None) -> Seen:
    before, after = (((event and event.detail) or {}) for event in (started, ended))
    last = after.get("seen") or after.get("manifest")
    # Without a start the attempt did not act, so its only inspection counts as the one before.
    return Seen(before.get("seen"), last) if started else Seen(last, None)
