"""What can happen to a job, as one list: the words of the evidence and the names of the log lines come from it.

A log line is a name and fixed keys (`job_id, fence, resource_id, backend, actor`): never prose, never a secret.
"""

import logging
import sys
from contextlib import suppress
from enum import StrEnum
from typing import Any

import structlog

from outbox.states import JobState

log: Any = structlog.get_logger()


class Event(StrEnum):
    """One event of a job's evidence. A transition writes its event in its own transaction.

    Three events move nothing: `late`, a worker's report after it had lost its claim; `observed`, an inspection that an
    operator asked for; `proposed`, the proposal of the first of two operators.
    """

    ENQUEUED = "enqueued"
    CLAIMED = "claimed"
    STARTED = "started"
    COMPLETED = "completed"
    ACTIVATED = "activated"
    RETRIED = "retried"
    DEFERRED = "deferred"
    STUCK = "stuck"
    ROLLED_BACK = "rolled_back"
    SWEPT = "swept"
    REDRIVEN = "redriven"
    RESOLVED = "resolved"
    LATE = "late"
    OBSERVED = "observed"
    PROPOSED = "proposed"


# The job's state after an event. None: the event's detail has the state. Events that move nothing are not listed.
STATE_AFTER: dict[Event, JobState | None] = {
    Event.ENQUEUED: JobState.PENDING,
    Event.CLAIMED: JobState.RUNNING,
    Event.STARTED: JobState.RUNNING,
    Event.COMPLETED: JobState.SUCCEEDED,
    Event.ACTIVATED: JobState.SUCCEEDED,
    Event.RETRIED: JobState.PENDING,
    Event.DEFERRED: JobState.PENDING,
    Event.STUCK: JobState.STUCK,
    Event.ROLLED_BACK: JobState.CANCELLED,
    Event.SWEPT: None,
    Event.REDRIVEN: JobState.PENDING,
    Event.RESOLVED: None,
}
MOVES_NOTHING = tuple(event for event in Event if event not in STATE_AFTER)
# How a worker's attempt ends, in the order of the enum.
ENDS_ATTEMPT = tuple(
    event
    for event in STATE_AFTER
    if event not in (Event.ENQUEUED, Event.CLAIMED, Event.STARTED, Event.REDRIVEN, Event.RESOLVED)
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


def emit(event: Event, logger: Any = log, **keys: Any) -> None:
    """Write the log line of an event, after its transaction has committed; `keys` beside those that `logger` has."""
    getattr(logger, _LEVELS.get(event, "info"))(str(event), **keys)


class _LossyLogger(structlog.PrintLogger):
    """Drops a line that cannot be written (the disk is full, the pipe is closed), so that logging never raises."""

    def msg(self, message: str) -> None:
        with suppress(OSError):
            super().msg(message)

    log = debug = info = warn = warning = msg
    fatal = failure = err = error = critical = exception = msg


def configure() -> None:
    """Log one JSON object a line to stderr, or coloured text when stderr is a terminal."""
    processors: list[Any] = [structlog.processors.add_log_level, structlog.processors.TimeStamper(fmt="iso", utc=True)]
    if sys.stderr.isatty():
        processors.append(structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback))
    else:
        processors += [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        # stderr as it is now: Celery replaces sys.stderr with its own log.
        logger_factory=lambda *_, stderr=sys.stderr: _LossyLogger(stderr),
        cache_logger_on_first_use=True,
    )
