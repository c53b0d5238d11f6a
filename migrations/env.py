"""Alembic's entry: migrates this process's control database, with timeouts so that it does not block the service."""

import time

from alembic import context
from sqlalchemy import Connection, text

from outbox import db, tables

# While a migration waits for a lock, every claim waits behind it: better to fail and be run again.
LOCK_TIMEOUT = "4s"
STATEMENT_TIMEOUT = "60s"
# Two `migrate` at once (two containers of one deploy) must take turns; the number itself has no meaning.
MIGRATION_LOCK = 4_702_111


def run() -> None:
    """Apply the requested migrations, each in a transaction of its own."""
    with db.engine().execution_options(isolation_level="READ COMMITTED").connect() as connection:
        try:
            _take_turn(connection)
            limits = f"SET lock_timeout = '{LOCK_TIMEOUT}'; SET statement_timeout = '{STATEMENT_TIMEOUT}'"
            connection.execute(text(limits))
            connection.commit()
            context.configure(
                connection=connection,
                target_metadata=tables.metadata,
                compare_server_default=True,
                transaction_per_migration=True,
            )
            with context.begin_transaction():
                context.run_migrations()
        finally:
            connection.invalidate()  # closes it, and with it the lock and the timeouts end


def _take_turn(connection: Connection) -> None:
    """Wait without a snapshot: CREATE INDEX CONCURRENTLY of the one before would wait for it, and so for ever."""
    taken = text("SELECT pg_try_advisory_lock(:key)")
    while not connection.execute(taken, {"key": MIGRATION_LOCK}).scalar_one():
        connection.commit()
        time.sleep(0.2)
    connection.commit()


run()
