"""Log lines: a name and fixed keys (`job_id, fence, resource_id, backend, actor`); never prose, never a secret."""

import logging
import sys
from contextlib import suppress
from typing import Any

import structlog

from outbox import foreign

log: Any = structlog.get_logger()
_VALUE = 20_000  # characters of one value; a long traceback has 10,000


class _LossyLogger(structlog.PrintLogger):
    """Drops a line that cannot be written (the disk is full, the pipe is closed), so that logging never raises."""

    def msg(self, message: str) -> None:
        with suppress(OSError):
            super().msg(message)

    log = debug = info = warn = warning = msg
    fatal = failure = err = error = critical = exception = msg


def _bound(_: Any, __: str, keys: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Short, printable values: a traceback ends with an error's words, which may be a customer's."""
    return {name: foreign.block(value, _VALUE) if isinstance(value, str) else value for name, value in keys.items()}


def configure() -> None:
    """Log one JSON object a line to stderr, or coloured text when stderr is a terminal."""
    processors: list[Any] = [structlog.processors.add_log_level, structlog.processors.TimeStamper(fmt="iso", utc=True)]
    processors += [structlog.processors.format_exc_info, _bound]
    if sys.stderr.isatty():
        processors.append(structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback))
    else:
        processors.append(structlog.processors.JSONRenderer())
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        # stderr as it is now: Celery replaces sys.stderr with its own log.
        logger_factory=lambda *_, stderr=sys.stderr: _LossyLogger(stderr),
        cache_logger_on_first_use=True,
    )
