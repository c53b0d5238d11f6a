"""Clients of a PostgreSQL server that a teardown has to get rid of."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg2

# What a shell's variables would have of each session; libpq sends the first two beside the options of a connection.
WRONG_ENVIRONMENT = {
    "PGTZ": "Asia/Tokyo",
    "PGDATESTYLE": "SQL, DMY",
    "PGCLIENTENCODING": "LATIN1",
    "PGOPTIONS": "-c statement_timeout=9ms -c search_path=public -c default_transaction_isolation=serializable",
}


@contextmanager
def reconnecting(dsn: str, *, clients: int) -> Iterator[None]:
    """So many clients connect again each time that their session is ended, until the block ends."""
    done = threading.Event()

    def keep_coming() -> None:
        while not done.is_set():
            try:
                psycopg2.connect(dsn).cursor().execute("SELECT pg_sleep(10)")
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
