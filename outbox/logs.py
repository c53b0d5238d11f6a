"""Log lines: a name and fixed keys (`job_id, fence, resource_id, backend, actor`); never prose, never a secret."""

import logging
import sys
from contextlib import suppress
from typing import Any

import structlog

log: Any = structlog.get_logger()


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
