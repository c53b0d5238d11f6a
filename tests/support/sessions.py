"""Clients of a PostgreSQL server that a teardown has to get rid of."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg2


@contextmanager
def reconnecting(dsn: str, *, clients: int) -> Iterator[None]:
    """So many clients connect again each time that their session is ended, until the block ends."""
    done = threading.Event()

    def keep_coming() -> None:
        while not done.is_set():
            try:
                psycopg2.connect(dsn).cursor().execute("SELECT pg_sleep(5)")
            except psycopg2.Error:
                continue

    threads = [threading.Thread(target=keep_coming) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        done.set()
        for thread in threads:
            thread.join()
