"""Log lines as events: a name and fixed keys (`job_id, fence, resource_id, backend, actor`).

Never prose, never a secret.
"""

import logging
import sys
from contextlib import suppress
from typing import Any

import structlog

log: Any = structlog.get_logger()


class _Lines(structlog.PrintLogger):
    """A line that cannot be written (a full disk, a pipe nobody reads) is lost, and nothing that it tells of."""

    def msg(self, message: str) -> None:
        with suppress(OSError):
            super().msg(message)

    log = debug = info = warn = warning = msg
    fatal = failure = err = error = critical = exception = msg


def configure() -> None:
    """One JSON object a line on stderr, or coloured text where a person looks on."""
    processors: list[Any] = [structlog.processors.add_log_level, structlog.processors.TimeStamper(fmt="iso", utc=True)]
    if sys.stderr.isatty():
        processors.append(structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback))
    else:
        processors += [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=lambda *_, stderr=sys.stderr: _Lines(stderr),  # as it is now: Celery puts its own log there
        cache_logger_on_first_use=True,
    )
