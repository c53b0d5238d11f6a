"""Log lines as events: a name and fixed keys (`job_id, fence, resource_id, backend, actor`).

Never prose, never a secret.
"""

import logging
import sys
from typing import Any

import structlog

log: Any = structlog.get_logger()


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
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
