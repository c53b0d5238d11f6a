"""What can happen to a job, and what people do beside jobs, as one list.

The words of the evidence and the names of the log lines come from it.
"""

from enum import StrEnum
from typing import Any

from outbox.states import JobState


class Event(StrEnum):
    """One event of the evidence. A transition, or an act, writes its event in its own transaction.

    Five events of a job move nothing: `late`, a worker's report after it had lost its claim; `observed`, an inspection
    that an operator asked for; `proposed`, the proposal of the first of two operators; `purge_ordered`, an earlier
    `purge_at`; `snapshot_removed`, the end of a snapshot in its store. From `changed` on, they are acts, which are no
    job's.
    """

    ENQUEUED = "enqueued"
    CLAIMED = "claimed"
    STARTED = "started"
    QUARANTINED = "quarantined"
    SNAPSHOT_VERIFIED = "snapshot_verified"
    COMPLETED = "completed"
    ACTIVATED = "activated"
    RESTORED = "restored"
    RELEASED = "released"
    RETRIED = "retried"
    DEFERRED = "deferred"
    STUCK = "stuck"
    ROLLED_BACK = "rolled_back"
    SWEPT = "swept"
    CANCELLED = "cancelled"
    REDRIVEN = "redriven"
    RESOLVED = "resolved"
    ABANDONED = "abandoned"
    PURGE_ORDERED = "purge_ordered"
    SNAPSHOT_REMOVED = "snapshot_removed"
    LATE = "late"
    OBSERVED = "observed"
    PROPOSED = "proposed"
    CHANGED = "changed"
    REBOUND = "rebound"
    HOLD_ENGAGED = "hold_engaged"
    HOLD_RELEASED = "hold_released"
    TOKEN_CREATED = "token_created"  # noqa: S105 - no password
    TOKEN_REVOKED = "token_revoked"  # noqa: S105 - no password
    OPERATION_BEGUN = "operation_begun"
    OPERATION_STOPPED = "operation_stopped"
    ANNOUNCED = "announced"
    REWOUND = "rewound"
    DECIDED = "decided"
    RECOVERED = "recovered"


# The job's state after an event. None: the event's detail has the state. Events that move nothing are not listed.
STATE_AFTER: dict[Event, JobState | None] = {
    Event.ENQUEUED: JobState.PENDING,
    Event.CLAIMED: JobState.RUNNING,
    Event.STARTED: JobState.RUNNING,
    Event.QUARANTINED: JobState.PENDING,
    Event.SNAPSHOT_VERIFIED: JobState.PENDING,
    Event.COMPLETED: JobState.SUCCEEDED,
    Event.ACTIVATED: JobState.SUCCEEDED,
    Event.RESTORED: JobState.SUCCEEDED,
    Event.RELEASED: JobState.SUCCEEDED,
    Event.RETRIED: JobState.PENDING,
    Event.DEFERRED: JobState.PENDING,
    Event.STUCK: JobState.STUCK,
    Event.ROLLED_BACK: JobState.CANCELLED,
    Event.SWEPT: None,
    Event.CANCELLED: JobState.CANCELLED,
    Event.REDRIVEN: JobState.PENDING,
    Event.RESOLVED: None,
    Event.ABANDONED: JobState.ABANDONED,
}
# Events of acts, which have no job. They stand in the installation's own chain; `changed`, `rebound`, and `decided`
# where it is about a resource, in that resource's.
ACTS = (
    Event.CHANGED,
    Event.REBOUND,
    Event.HOLD_ENGAGED,
    Event.HOLD_RELEASED,
    Event.TOKEN_CREATED,
    Event.TOKEN_REVOKED,
    Event.OPERATION_BEGUN,
    Event.OPERATION_STOPPED,
    Event.ANNOUNCED,
    Event.REWOUND,
    Event.DECIDED,
    Event.RECOVERED,
)
MOVES_NOTHING = tuple(event for event in Event if event not in STATE_AFTER)
# How a worker's attempt ends, in the order of the enum.
ENDS_ATTEMPT = tuple(
    event
    for event in STATE_AFTER
    if event not in (Event.ENQUEUED, Event.CLAIMED, Event.STARTED, Event.REDRIVEN, Event.RESOLVED, Event.ABANDONED)
)
# How a resource's deletion ends: a worker saw its object absent, or an operator resolved the job.
ENDS_DELETION = (Event.COMPLETED, Event.RESOLVED)


def quoted(*events: Event) -> str:
    """The events as SQL's list of words: `'completed', 'resolved'`."""
    return ", ".join(f"'{event}'" for event in events)


# The level of a log line that is not `info`: `warning` for a job that waits, `error` for a job that is stuck.
_LEVELS = {
    Event.RETRIED: "warning",
    Event.DEFERRED: "warning",
    Event.ROLLED_BACK: "warning",
    Event.SWEPT: "warning",
    Event.STUCK: "error",
}


def emit(event: Event, logger: Any, **keys: Any) -> None:
    """Write the log line of an event, after its transaction has committed; `keys` beside those that `logger` has."""
    getattr(logger, _LEVELS.get(event, "info"))(str(event), **keys)
