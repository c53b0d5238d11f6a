"""Drops take turns on their server: each forces a checkpoint, for which every customer's commits wait."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psycopg2

from worker.backends.postgres.session import Session, lock_key

# Who has waited so long goes on without a turn: a worker that stands still in its own must not stop all teardowns.
LONGEST_WAIT_SECONDS = 5.0
_POLL_SECONDS = 0.03


@contextmanager
def turn(session: Session, at_once: int) -> Iterator[None]:
    """One of the server's `at_once` turns, which the workers of all processes share; waits for it, but not for long."""
    key = _take(session, at_once)
    try:
        yield
    finally:
        if key is not None:
            with suppress(psycopg2.Error), session.cursor() as cursor:  # the session's end gives it back, too
                cursor.execute("SELECT pg_catalog.pg_advisory_unlock(%s)", (key,))


def _take(session: Session, at_once: int) -> int | None:
    deadline = time.monotonic() + LONGEST_WAIT_SECONDS
    keys = [lock_key(f"turn {number}") for number in range(at_once)]
    with session.cursor() as cursor:
        while True:
            for key in keys:
                cursor.execute("SELECT pg_catalog.pg_try_advisory_lock(%s)", (key,))
                if cursor.fetchone() == (True,):
                    return key
            if time.monotonic() > deadline:
                return None
            time.sleep(_POLL_SECONDS)
